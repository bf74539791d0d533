"""A record as the parts of a report read it: its lengths and configurations, and what a verdict in it puts first."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rope_jax.diagnosis.report.wording import TASKS, tokens
from rope_jax.diagnosis.verdict.contrasts import TEXT

Record = Mapping[str, Any]


class Reading:
    """A record, and one judgement in it where one is spoken of.

    Args:
      record: from `record.record_of`.
      costs: from `costs_record`, where they were measured.
      judgement: of a deployed configuration; None for none.

    Attributes:
      costs: by configuration.
      used: tasks that decide.
      asked: whether the models were asked any questions.
      short: the trained length, in words.
      long: the target length, in words.
      original: configuration of the unchanged model.
      verdict: of the judgement.
      ranking: the one that decides in it.
      unit: what that ranks by, nats or, of text, nats a token.
      deployed: the deployed configuration, run exactly.
      change: the best of the three, None where none was measured.
      changed: the configuration after it, None where there is none or it was not run by itself.
    """

    def __init__(self, record: Record, costs: Sequence[Record] = (), judgement: Record | None = None) -> None:
        self.record, self.costs = record, {one["configuration"]: one for one in costs}
        self.used: list[str] = record["tasks"]["used"]
        self.asked = bool(record["tasks"]["accuracy"])
        self.short, self.long = (tokens(record["lengths"][name]) for name in ("trained", "target"))
        self.original: Record = record["configurations"][0]
        if judgement is not None:
            self.judgement, self.verdict = judgement, judgement["verdict"]
            self.ranking = leading(self.verdict)
            self.unit = "nats a token" if self.ranking["by"] == TEXT else "nats"
            self.deployed: Any = self.find(judgement["deployed"])
            self.change: Any = change_of(self.verdict)
            self.changed = None if self.change is None else self.find(self.change["configuration"])

    def of(self, judgement: Record) -> "Reading":
        """Returns the same record, read for a judgement."""
        return Reading(self.record, list(self.costs.values()), judgement)

    def find(self, name: str) -> Record | None:
        """Returns the configuration of a name, or None where it was not run."""
        return next((one for one in self.record["configurations"] if one["name"] == name), None)


def readings(record: Record, costs: Sequence[Record] = ()) -> list[Reading]:
    """Returns the record read for each of its judgements; arguments as of `Reading`."""
    return [Reading(record, costs, judgement) for judgement in record["judgements"]]


def leading(verdict: Record) -> Record:
    """Returns the ranking that decides: order and binding together, or the long loss of text where none was learned."""
    return verdict["rankings"].get("together") or verdict["rankings"][TEXT]


def change_of(verdict: Record, option: str | None = None) -> Record | None:
    """Returns the change that the ranking that decides puts first, of one of the three or of all; None without one."""
    for place in leading(verdict)["places"]:
        if option in (None, place["option"]):
            best = (place["option"], place["change"])
            return next(one for one in verdict["changes"] if (one["option"], one["words"]) == best)
    return None


def all_kept(verdict: Record) -> str:
    """Returns in words that everything that decides is known to be kept; "" where it is not."""
    regression = verdict["regression"]
    if not regression["kept"] or regression["lost"] or regression["open"]:
        return ""
    if regression["kept"] == [TEXT]:
        return "the loss of text rose by no more than its margin"
    return "no task fell by more than its margin"


def in_order(tasks: Iterable[str]) -> list[str]:
    """Returns tasks in the order in which they are shown, unknown ones last."""
    shown = list(TASKS)
    return sorted(tasks, key=lambda task: shown.index(task) if task in TASKS else len(shown))
