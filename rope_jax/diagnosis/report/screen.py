"""What stands first in a report, one screen a deployed configuration, as words and rows that any medium can lay out."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from rope_jax.diagnosis.report import labels
from rope_jax.diagnosis.report.advice import Advice, advice
from rope_jax.diagnosis.report.details import Table
from rope_jax.diagnosis.report.reading import Reading, Record, first_change, in_order
from rope_jax.diagnosis.report.wording import (
    TASKS,
    answered,
    capital,
    estimate,
    model_name,
    named,
    negated,
    percent,
    significant,
)
from rope_jax.diagnosis.verdict.wording import listed

__all__ = ["Screen", "screens"]

Tone = Literal["bad", "warn", "calm"]

_MARGINS = {
    # how `decides` may begin: key of the margin and its unit
    "retrieval": ("retrieval", "nats"),
    "event order": ("gain", "nats"),
    "order": ("gain", "nats"),
    "binding": ("gain", "nats"),
    "short accuracy": ("short_accuracy", "of 1"),
    "short loss": ("short_loss", "nats a token"),
    "long loss": ("long_loss", "nats a token"),
}
_BEGIN = {"yes": "", "no": "NOT this regression: ", "not resolved": "OPEN whether it is this regression: "}


@dataclasses.dataclass(frozen=True)
class Screen:
    """The first screen of one deployed configuration.

    Attributes:
      title: model, lengths, deployed configuration.
      finding: whether it is the regression, in a few words.
      tone: of the finding.
      notes: what the finding rests on.
      advice: what to try, best first.
      table: the original at the trained length, deployed and after the first change at the target; the task first.
      said: what the table shows that must not be overlooked, as sentences.
      ship: whether the first change may ship, with the margin that decides.
      next: steps, most useful first.
      gist: why, by heading: the first sentence of each link, and the choice in full.
    """

    title: str
    finding: str
    tone: Tone
    notes: tuple[str, ...]
    advice: tuple[Advice, ...]
    table: Table
    said: tuple[str, ...]
    ship: str
    next: tuple[str, ...]
    gist: Mapping[str, str]


def screens(record: Record, costs: Sequence[Record] = ()) -> list[Screen]:
    """Returns one screen a deployed configuration.

    Args:
      record: from `record.record_of`.
      costs: objects with `configuration`, `milliseconds` and `mib`, where they were measured.
    """
    return [_screen(Reading(record, costs, judgement)) for judgement in record["judgements"]]


def _screen(one: Reading) -> Screen:
    record, verdict, deployed = one.record, one.verdict, one.deployed
    regression = verdict["regression"]
    words = verdict["deployed"] if deployed is None else labels.configuration(one.original, deployed)
    lengths = f"{one.short} -> {one.long} tokens (x{record['lengths']['factor']:g})"
    tone: Tone = "bad" if regression["lost"] else "calm"
    return Screen(
        title=f"{model_name(record['models'])}, {lengths}, {words} (deployed)",
        finding=_finding(one, regression),
        tone="warn" if regression["answer"] == "not resolved" else tone,
        notes=tuple(_notes(one)),
        advice=tuple(advice(one)),
        table=_table(one),
        said=tuple(_said(one)),
        ship=_ship(one),
        next=tuple(capital(step) for step in verdict["next"]),
        gist=_gist(one.judgement["links"]),
    )


def _gist(links: Mapping[str, str]) -> dict[str, str]:
    first = {heading: re.split(r"(?<=[.!?]) (?=[A-Z0-9])", text)[0] for heading, text in links.items()}
    return first | dict([*links.items()][-1:])


def _finding(one: Reading, regression: Record) -> str:
    if not one.used:
        return "judged by LOSS OF TEXT alone: the model has learned none of the tasks"
    kept, lost, open_ = (listed([named(task) for task in regression[key]]) for key in ("kept", "lost", "open"))
    said = {f"{kept} kept": kept, f"{lost.upper()} LOST": lost, f"{open_} not resolved": open_}
    return _BEGIN[regression["answer"]] + ", ".join(words for words, tasks in said.items() if tasks)


def _notes(one: Reading) -> Iterator[str]:
    record, verdict = one.record, one.verdict
    rows = f"{record['items']['text_rows']} rows of text; {verdict['confidence'] * 100:.4g} % intervals."
    yield f"{verdict['contexts']} contexts at each length, {rows}" if one.used else rows
    if one.judgement["by_model"]:
        yield f"The numbers are of the first of {len(record['models'])} models, each judged by itself."
    if one.judgement["agreement"]:
        yield capital(one.judgement["agreement"])
    yield capital(verdict["implementation"]["sentence"])
    if verdict["implementation"]["status"] != "exact":
        yield "Changes are counted from its exact run."
    if not verdict["settled"]:
        yield "More contexts could still change what is tried first."


def _table(one: Reading) -> Table:
    verdict, exact = one.verdict, one.deployed
    change, faulty = first_change(verdict), verdict["implementation"]["status"] != "exact"
    repaired = verdict["first"] == "repair"
    after = exact if repaired else one.changed
    name = "repaired" if repaired else f"after {change['option'] or 'it'}" if change else ""
    head = ("", f"original @{one.short}", f"deployed @{one.long}", f"{name} @{one.long}", "chance")
    rows: list[tuple[str, ...]] = []
    for task in _shown_tasks(one):
        chance = one.record["tasks"]["chance"].get("order" if task.startswith("order") else task)
        asked = ((one.original, "short"), (exact, "long"), (after, "long"))
        cells = [percent(_right(each, reach, task)) for each, reach in asked]
        if faulty:
            cells[1] = _as_it_runs(one, task)
        rows.append((TASKS.get(task, task), *cells, "-" if chance is None else f"{chance * 100:.0f} %"))
    guess = f"{math.log(one.record['models'][0]['vocabulary']):.2f}"
    for reach, words in (("short", f"loss to {one.short}"), ("long", f"loss beyond {one.short}")):
        shown = (one.original, None if faulty else exact, after)
        values = (estimate(each["loss"].get(reach) if each else None, sign=False) for each in shown)
        rows.append((words, *values, guess))
    if after is None:  # nothing to show in that column
        return Table((*head[:3], head[4]), tuple((*row[:3], row[4]) for row in rows))
    return Table(head, tuple(rows))


def _right(one: Record | None, reach: str, task: str) -> Record | None:
    return one["accuracy"].get(reach, {}).get(task) if one else None


def _shown_tasks(one: Reading) -> list[str]:
    """Returns the tasks used; both ways of asking for order where answers lean significantly to one event."""
    used = in_order(one.used)
    if "order" in used and significant(one.verdict["regression"]["pull"]):
        at = used.index("order") + 1
        used[at:at] = [task for task in TASKS if task.startswith("order,") and _right(one.deployed, "long", task)]
    return used


def _as_it_runs(one: Reading, task: str) -> str:
    """Returns what a deployment with a fault answers, from its fall: only its exact run is among the configurations."""
    fall = one.verdict["regression"]["falls"].get(task)
    before = _right(one.original, "short", task)
    if not fall or not fall["accuracy"] or not before or before["mean"] is None:
        return "-"
    return percent({"mean": before["mean"] - fall["accuracy"]["mean"], "low": None, "high": None})


def _said(one: Reading) -> Iterator[str]:
    pull = one.verdict["regression"]["pull"]
    if significant(pull):
        toward, lean = ("nearer", pull) if significant(pull) > 0 else ("farther", negated(pull))
        yield (
            f"Asked for order, the deployed model leans to the {toward} event, whichever is asked for, by "
            f"{estimate(lean, sign=False)} nats (0 is no lean)."
        )
    answers = "Right answers; loss" if one.used else "Loss"
    yield (
        f"{answers} of text in nats a token, lower is better, by chance if all tokens were alike. The "
        f"original's loss beyond {one.short} is of the unchanged model run at {one.long}."
    )
    change = first_change(one.verdict)
    if change is None:
        return
    for against, key in (("what is deployed", "against_deployed"), ("the original model", "against_original")):
        rise = change[key]["long_loss"]
        after = f'With "{change["words"]}" loss of text beyond {one.short}'
        if significant(rise) > 0:
            yield f"{after} is HIGHER than that of {against} by {estimate(rise, sign=False)} nats a token."
        elif key == "against_deployed" and significant(rise) < 0:
            yield f"{after} is lower than that of {against} by {estimate(negated(rise), sign=False)} nats a token."


def _ship(one: Reading) -> str:
    shipping, margins = one.verdict["shipping"], one.record["margins"]
    text, decides = answered(shipping["answer"], shipping["sentence"]), shipping["decides"]
    if decides and decides.lower() not in text.lower():
        known = next((known for begin, known in _MARGINS.items() if decides.startswith(begin)), None)
        text += f" Decided by {decides}{f' (margin {margins[known[0]]:g} {known[1]})' if known else ''}."
    if shipping["resolve"] and shipping["resolve"].lower() not in text.lower():
        text += f" To resolve it: {shipping['resolve']}."
    below = "" if "point" in text else _below(one)
    return f"{text} {below}".strip()


def _below(one: Reading) -> str:
    """Returns by how much the tasks stay below the original after the change, in points."""
    if one.verdict["first"] == "repair":
        return ""
    parts = []
    for task in one.used:
        before, now = _right(one.original, "short", task), _right(one.changed, "long", task)
        if before and now and before["mean"] is not None and now["mean"] is not None:
            gap = round(100 * (before["mean"] - now["mean"]))
            parts += [f"{named(task)} by {gap} point{'s' * (gap > 1)}"] if gap >= 1 else []
    if not parts:
        return ""
    return f"After it, at {one.long}, right answers are fewer than the original's at {one.short}: {listed(parts)}."
