"""A record as the parts of a report read it: its lengths and configurations, and what a verdict in it puts first."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rope_jax.diagnosis.report.wording import TASKS, tokens

Record = Mapping[str, Any]

_NO_RANKING: Record = {"by": "", "weights": {}, "places": [], "outside": []}


@dataclasses.dataclass(frozen=True)
class Reading:
    """A record, and one judgement in it where one is spoken of.

    Attributes:
      record: from `record.record_of`.
      costs: objects with `configuration`, `milliseconds` and `mib`, where they were measured.
      judgement: of a deployed configuration; empty for none.
    """

    record: Record
    costs: Sequence[Record] = ()
    judgement: Record = dataclasses.field(default_factory=dict)

    def of(self, judgement: Record) -> "Reading":
        """Returns the same record, read for another judgement."""
        return dataclasses.replace(self, judgement=judgement)

    @property
    def verdict(self) -> Record:
        return self.judgement["verdict"]

    @property
    def used(self) -> list[str]:
        return self.record["tasks"]["used"]

    @property
    def short(self) -> str:
        return tokens(self.record["lengths"]["trained"])

    @property
    def long(self) -> str:
        return tokens(self.record["lengths"]["target"])

    @property
    def original(self) -> Record:
        return self.record["configurations"][0]

    @property
    def deployed(self) -> Record | None:
        """The deployed configuration, run exactly."""
        return self.find(self.judgement["deployed"])

    @property
    def changed(self) -> Record | None:
        """The configuration after the first change, or None where there is none."""
        change = first_change(self.verdict)
        return None if change is None else self.find(change["configuration"])

    def find(self, name: str) -> Record | None:
        """Returns the configuration of a name, or None where it was not run."""
        return next((one for one in self.record["configurations"] if one["name"] == name), None)


def leading(verdict: Record) -> Record:
    """Returns the ranking that decides: order and binding together, or what takes its place; an empty one for none."""
    rankings = verdict["rankings"]
    names = [name for name in ("together", "order", "binding") if name in rankings] or list(rankings)
    return rankings[names[0]] if names else _NO_RANKING


def change_of(verdict: Record, place: Record) -> Record | None:
    """Returns the measured change that a place of a ranking speaks of."""
    alike = [one for one in verdict["changes"] if place["change"] in (one["words"], one["configuration"])]
    return next((one for one in alike if one["option"] == place["option"]), alike[0] if alike else None)


def words_of(verdict: Record, place: Record) -> str:
    """Returns what the change in a place of a ranking is called."""
    change = change_of(verdict, place)
    return place["change"] if change is None else change["words"]


def first_change(verdict: Record) -> Record | None:
    """Returns the change of the best of the three, or None."""
    return next((change_of(verdict, place) for place in leading(verdict)["places"][:1]), None)


def nothing_lost(verdict: Record) -> bool:
    """Returns whether every task that was asked is known to be kept."""
    regression = verdict["regression"]
    return bool(regression["kept"]) and not (regression["lost"] or regression["open"])


def in_order(tasks: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Returns tasks in the order in which they are shown, unknown ones last."""
    return [*(task for task in TASKS if task in tasks), *(task for task in tasks if task not in TASKS)]
