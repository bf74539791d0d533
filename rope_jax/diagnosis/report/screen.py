"""What stands first in a report, one screen a deployed configuration, as words and rows that any medium can lay out."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from rope_jax.diagnosis.report import labels
from rope_jax.diagnosis.report.advice import Advice, advice, find, first_change
from rope_jax.diagnosis.report.wording import (
    TASKS,
    answered,
    capital,
    estimate,
    listed,
    model_name,
    named,
    negated,
    percent,
    significant,
    tokens,
)

__all__ = ["Screen", "screen", "screens"]

Record = Mapping[str, Any]
Tone = Literal["good", "bad", "warn", "info", "calm"]

_MARGINS = {
    # how `decides` may begin, key of the margin, its unit
    "retrieval": ("retrieval", "nats"),
    "event order": ("gain", "nats"),
    "order": ("gain", "nats"),
    "binding": ("gain", "nats"),
    "short accuracy": ("short_accuracy", "of 1"),
    "short loss": ("short_loss", "nats a token"),
    "long loss": ("long_loss", "nats a token"),
}


@dataclasses.dataclass(frozen=True)
class Screen:
    """The first screen of one deployed configuration.

    Attributes:
      title: model, lengths, deployed configuration.
      finding: whether it is the regression, in a few words.
      tone: of the finding.
      notes: what the finding rests on.
      advice: what to try, best first.
      head: of the small table.
      rows: its rows, the task first.
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
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
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
    return [screen(record, judgement, judgement["verdict"], costs) for judgement in record["judgements"]]


def screen(record: Record, judgement: Record, verdict: Record, costs: Sequence[Record] = ()) -> Screen:
    """Returns the screen of one verdict.

    Args:
      record: from `record.record_of`.
      judgement: the judgement of a deployed configuration in it.
      verdict: the judgement's, or that of one of its models.
      costs: as in `screens`.
    """
    lengths = record["lengths"]
    deployed = find(record, verdict["deployed"])
    words = verdict["deployed"] if deployed is None else labels.configuration(record["configurations"][0], deployed)
    short, long = tokens(lengths["trained"]), tokens(lengths["target"])
    head, rows = _table(record, verdict)
    return Screen(
        title=f"{model_name(record['models'])}, {short} -> {long} tokens (x{lengths['factor']:g}), {words} (deployed)",
        finding=_finding(record, verdict["regression"]),
        tone=_tone(verdict["regression"]),
        notes=tuple(_notes(record, judgement, verdict)),
        advice=tuple(advice(record, verdict, costs)),
        head=head,
        rows=rows,
        said=tuple(_said(record, verdict)),
        ship=_ship(record, verdict),
        next=tuple(capital(step) for step in verdict["next"]),
        gist=_gist(judgement["links"]),
    )


def _gist(links: Mapping[str, str]) -> dict[str, str]:
    *why, choice = links.items() if links else [("", "")]
    return {heading: re.split(r"(?<=[.!?]) (?=[A-Z0-9])", text)[0] for heading, text in why} | dict(
        [choice] if links else []
    )


def _finding(record: Record, regression: Record) -> str:
    if not record["tasks"]["used"]:
        return "judged by LOSS OF TEXT alone: the model has learned none of the tasks"

    kept, lost, open_ = (listed([named(task) for task in regression[key]]) for key in ("kept", "lost", "open"))
    parts = [f"{kept} kept"] if kept else []
    parts += [f"{lost.upper()} LOST"] if lost else []
    parts += [f"{open_} not resolved"] if open_ else []
    begin = {"yes": "", "no": "NOT this regression: ", "not resolved": "OPEN whether it is this regression: "}
    return begin[regression["answer"]] + ", ".join(parts)


def _tone(regression: Record) -> Tone:
    if regression["answer"] == "not resolved":
        return "warn"
    return "bad" if regression["lost"] else "calm"


def _notes(record: Record, judgement: Record, verdict: Record) -> Iterator[str]:
    rows = f"{record['items']['text_rows']} rows of text; {verdict['confidence'] * 100:.4g} % intervals."
    yield f"{verdict['contexts']} contexts at each length, {rows}" if record["tasks"]["used"] else rows
    if len(record["models"]) > 1 and judgement["by_model"]:
        yield f"The numbers are of the first of {len(record['models'])} models, each judged by itself."
    if judgement["agreement"]:
        yield capital(judgement["agreement"])
    yield capital(verdict["implementation"]["sentence"])
    if verdict["implementation"]["status"] != "exact":
        yield "Changes are counted from its exact run."
    if not verdict["settled"]:
        yield "More contexts could still change what is tried first."


def _table(record: Record, verdict: Record) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Returns the small table: original at the trained length, deployed and after the change at the target."""
    short, long = tokens(record["lengths"]["trained"]), tokens(record["lengths"]["target"])
    original, exact = record["configurations"][0], find(record, verdict["deployed"])
    change, faulty = first_change(verdict), verdict["implementation"]["status"] != "exact"
    repaired = verdict["first"] == "repair"
    after = exact if repaired else find(record, change["configuration"] if change else None)
    name = "repaired" if repaired else f"after {change['option'] or 'it'}" if change else ""
    head: tuple[str, ...] = ("", f"original @{short}", f"deployed @{long}", f"{name} @{long}", "chance")

    def right(one: Record | None, reach: str, task: str) -> str:
        return percent(one["accuracy"].get(reach, {}).get(task) if one else None)

    rows: list[tuple[str, ...]] = []
    for task in _shown_tasks(record, verdict):
        deployed = right(exact, "long", task)
        if faulty:
            deployed = _as_it_runs(original, verdict, task)
        whole = "order" if task.startswith("order") else task
        chance = record["tasks"]["chance"].get(whole)
        rows.append(
            (
                TASKS.get(task, task),
                right(original, "short", task),
                deployed,
                right(after, "long", task),
                "-" if chance is None else f"{chance * 100:.0f} %",
            )
        )
    guess = f"{math.log(record['models'][0]['vocabulary']):.2f}"
    for reach, words in (("short", f"loss to {short}"), ("long", f"loss beyond {short}")):
        values = [one["loss"].get(reach) if one else None for one in (original, None if faulty else exact, after)]
        rows.append((words, *(estimate(value, sign=False) for value in values), guess))
    if after is None:  # nothing to show in that column
        head, rows = (*head[:3], head[4]), [(*row[:3], row[4]) for row in rows]
    return head, tuple(rows)


def _shown_tasks(record: Record, verdict: Record) -> list[str]:
    """Returns the tasks used; both ways of asking for order where answers lean significantly to one event."""
    used = [task for task in TASKS if task in record["tasks"]["used"]]
    used += [task for task in record["tasks"]["used"] if task not in TASKS]
    if "order" in used and significant(verdict["regression"]["pull"]):
        deployed = find(record, verdict["deployed"])
        known = deployed["accuracy"].get("long", {}) if deployed else {}
        ways = [task for task in TASKS if task.startswith("order,") and task in known]
        at = used.index("order") + 1
        used[at:at] = ways
    return used


def _as_it_runs(original: Record, verdict: Record, task: str) -> str:
    """Returns what a deployment with a fault answers, from its fall: only its exact run is among the configurations."""
    fall = verdict["regression"]["falls"].get(task)
    before = original["accuracy"].get("short", {}).get(task)
    if not fall or not fall["accuracy"] or not before or before["mean"] is None:
        return "-"
    return percent({"mean": before["mean"] - fall["accuracy"]["mean"], "low": None, "high": None})


def _said(record: Record, verdict: Record) -> Iterator[str]:
    short, long = tokens(record["lengths"]["trained"]), tokens(record["lengths"]["target"])
    pull = verdict["regression"]["pull"]
    if significant(pull):
        toward, lean = ("nearer", pull) if significant(pull) > 0 else ("farther", negated(pull))
        yield (
            f"Asked for order, the deployed model leans to the {toward} event, whichever is asked for, by "
            f"{estimate(lean, sign=False)} nats (0 is no lean)."
        )
    answers = "Right answers; loss" if record["tasks"]["used"] else "Loss"
    yield (
        f"{answers} of text in nats a token, lower is better, by chance if all tokens were alike. The "
        f"original's loss beyond {short} is of the unchanged model run at {long}."
    )
    change = first_change(verdict)
    if change is None:
        return
    for against, key in (("what is deployed", "against_deployed"), ("the original model", "against_original")):
        rise = change[key]["long_loss"]
        after = f'With "{change["words"]}" loss of text beyond {short}'
        if significant(rise) > 0:
            yield f"{after} is HIGHER than that of {against} by {estimate(rise, sign=False)} nats a token."
        elif key == "against_deployed" and significant(rise) < 0:
            yield f"{after} is lower than that of {against} by {estimate(negated(rise), sign=False)} nats a token."


def _ship(record: Record, verdict: Record) -> str:
    shipping = verdict["shipping"]
    text = answered(shipping["answer"], shipping["sentence"])
    decides = shipping["decides"]
    if decides:
        known = next((value for name, value in _MARGINS.items() if decides.startswith(name)), None)
        margin = f" (margin {record['margins'][known[0]]:g} {known[1]})" if known else ""
        if decides.lower() not in text.lower():
            text += f" Decided by {decides}{margin}."
    if shipping["resolve"] and shipping["resolve"].lower() not in text.lower():
        text += f" To resolve it: {shipping['resolve']}."
    below = "" if "point" in text else _below(record, verdict)
    return f"{text} {below}".strip()


def _below(record: Record, verdict: Record) -> str:
    """Returns by how much the tasks stay below the original after the change, in points."""
    change = first_change(verdict)
    after = find(record, change["configuration"]) if change else None
    if after is None or verdict["first"] == "repair":
        return ""
    parts = []
    for task in record["tasks"]["used"]:
        before = record["configurations"][0]["accuracy"].get("short", {}).get(task)
        now = after["accuracy"].get("long", {}).get(task)
        if before and now and before["mean"] is not None and now["mean"] is not None:
            gap = round(100 * (before["mean"] - now["mean"]))
            parts += [f"{named(task)} by {gap} point{'s' * (gap > 1)}"] if gap >= 1 else []
    if not parts:
        return ""
    long, short = tokens(record["lengths"]["target"]), tokens(record["lengths"]["trained"])
    return f"After it, at {long}, right answers are fewer than the original's at {short}: {listed(parts)}."
