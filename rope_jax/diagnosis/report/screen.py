"""What stands first in a report, one screen a deployed configuration, as words and rows that any medium can lay out."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from rope_jax.diagnosis.report import labels
from rope_jax.diagnosis.report.details import Table
from rope_jax.diagnosis.report.reading import Reading, Record, all_kept, in_order
from rope_jax.diagnosis.report.wording import (
    TASKS,
    answered,
    capital,
    estimate,
    model_name,
    negated,
    numbered,
    percent,
    points,
    probability,
    significant,
)
from rope_jax.diagnosis.verdict.answers import TEXT
from rope_jax.diagnosis.verdict.wording import listed, milliseconds, named

__all__ = ["Advice", "advice", "finding", "gist", "notes", "said", "ship", "steps", "table", "title", "tone"]

_BEGIN = {"yes": "", "no": "NOT this regression: ", "not resolved": "OPEN whether it is this regression: "}


@dataclasses.dataclass(frozen=True)
class Advice:
    """One line of what to try.

    Attributes:
      verb: "TRY FIRST", "THEN", "NOT" or "OUTSIDE" (outside the one change).
      what: the change, its number before it where it is one of the three.
      beside: what stands beside it: how probable it is that it is the first, or what it gains.
      lines: gains and prices, each a sentence.
    """

    verb: str
    what: str
    beside: str
    lines: Sequence[str] = ()


def title(one: Reading) -> str:
    """Returns model, lengths and deployed configuration."""
    lengths = f"{one.short} -> {one.long} tokens (x{one.record['lengths']['factor']:g})"
    words = labels.configuration(one.original, one.deployed)
    return f"{model_name(one.record['models'])}, {lengths}, {words} (deployed)"


def finding(one: Reading) -> str:
    """Returns whether it is the regression described, in a few words."""
    regression = one.verdict["regression"]
    if not one.used:
        why = "the model ANSWERS NONE OF THE TASKS" if one.asked else "the model was ASKED NO QUESTIONS"
        return f"{why}: judged by loss of text alone"
    kept, lost, open_ = (listed([named(task) for task in regression[key]]) for key in ("kept", "lost", "open"))
    said = {f"{kept} kept": kept, f"{lost.upper()} LOST": lost, f"{open_} not resolved": open_}
    return _BEGIN[regression["answer"]] + ", ".join(words for words, tasks in said.items() if tasks)


def tone(one: Reading) -> Literal["bad", "warn", "calm"]:
    """Returns how the finding is to be taken."""
    if one.verdict["regression"]["answer"] == "not resolved":
        return "warn"
    return "bad" if one.verdict["regression"]["lost"] else "calm"


def gist(links: Mapping[str, str]) -> dict[str, str]:
    """Returns why, by heading: the first sentence of each link, and the choice in full."""
    first = {heading: re.split(r"(?<=[.!?]) (?=[A-Z0-9])", text)[0] for heading, text in links.items()}
    return first | dict([*links.items()][-1:])


def notes(one: Reading) -> Iterator[str]:
    """Yields what the finding rests on."""
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
        yield f"More {'contexts' if one.used else 'rows of text'} could still change what is tried first."


def table(one: Reading) -> Table:
    """Returns the original at the trained length, and what is deployed and after the first change at the target."""
    faulty, repaired = one.verdict["implementation"]["status"] != "exact", one.verdict["first"] == "repair"
    after = one.deployed if repaired else one.changed
    name = "repaired" if repaired else f"after {one.change['option']}" if one.change else ""
    head = ("", f"original @{one.short}", f"deployed @{one.long}", f"{name} @{one.long}", "chance")
    rows: list[tuple[str, ...]] = []
    for task in _shown_tasks(one):
        chance = one.record["tasks"]["chance"]["order" if task.startswith("order") else task]
        asked = ((one.original, "short"), (one.deployed, "long"), (after, "long"))
        cells = [percent(_right(each, reach, task)) for each, reach in asked]
        if faulty:
            cells[1] = _as_it_runs(one, task)
        rows.append((TASKS.get(task, task), *cells, f"{chance * 100:.0f} %"))
    guess = f"{math.log(one.record['models'][0]['vocabulary']):.2f}"
    for reach, words in (("short", f"loss to {one.short}"), ("long", f"loss beyond {one.short}")):
        shown = (one.original, None if faulty else one.deployed, after)
        values = (estimate(each["loss"][reach] if each else None, sign=False) for each in shown)
        rows.append((words, *values, guess))
    if after is None:  # nothing to show in that column
        return Table((*head[:3], head[4]), [(*row[:3], row[4]) for row in rows])
    return Table(head, rows)


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
    fall, before = one.verdict["regression"]["falls"].get(task), _right(one.original, "short", task)
    if fall is None or before is None:
        return "-"
    return percent({"mean": before["mean"] - fall["accuracy"]["mean"], "low": None, "high": None})


def said(one: Reading) -> Iterator[str]:
    """Yields what the table shows that must not be overlooked."""
    pull = one.verdict["regression"]["pull"]
    if significant(pull):
        toward, lean = ("nearer", pull) if significant(pull) > 0 else ("farther", negated(pull))
        yield (
            f"Asked for event order, the deployed model leans to the {toward} event, whichever is asked for, by "
            f"{estimate(lean, sign=False)} nats (0 is no lean)."
        )
    answers = "Right answers; loss" if one.used else "Loss"
    yield (
        f"{answers} of text in nats a token, lower is better, by chance if all tokens were alike. The "
        f"original's loss beyond {one.short} is of the unchanged model run at {one.long}."
    )
    if one.change is None:
        return
    for against, key in (("what is deployed", "against_deployed"), ("the original model", "against_original")):
        rise = one.change[key]["long_loss"]
        after = f'With "{one.change["words"]}" loss of text beyond {one.short}'
        if significant(rise) > 0:
            yield f"{after} is HIGHER than that of {against} by {estimate(rise, sign=False)} nats a token."
        elif key == "against_deployed" and significant(rise) < 0:
            yield f"{after} is lower than that of {against} by {estimate(negated(rise), sign=False)} nats a token."


def ship(one: Reading) -> str:
    """Returns whether the first change may ship, and by how much the tasks stay below the original after it."""
    text = _timed(one, answered(one.verdict["shipping"]["sentence"]))
    if not one.used:
        return f"{text} That is of the loss of text alone: no task was {'answered' if one.asked else 'asked'}."
    if one.changed is None or one.verdict["first"] == "repair":
        return text
    parts = []
    for task in one.used:
        before, now = one.original["accuracy"]["short"][task], one.changed["accuracy"]["long"][task]
        gap = round(100 * (before["mean"] - now["mean"]))
        if gap >= 1:
            parts.append(f"{named(task)} by {gap} point{'s' * (gap > 1)}")
    if not parts:
        return text
    return (
        f"{text} After it, at {one.long}, right answers are fewer than the original's at {one.short}: {listed(parts)}."
    )


def advice(one: Reading) -> list[Advice]:
    """Returns what to try, best first; never nothing."""
    verdict, ranking, found = one.verdict, one.ranking, []
    if verdict["first"] == "repair":
        repair = verdict["implementation"]["repair"]
        lines = [f"an exact run wins back: {_shifts(repair)}"] if repair else []
        found.append(Advice("TRY FIRST", "repair: run what is deployed exactly", "before any change", lines))
    if not ranking["places"]:
        return found or [Advice("TRY FIRST", "nothing: none of the three changes applies to it", "")]
    best, *others = ranking["places"]
    by = listed([named(task) for task in ranking["weights"]]) if ranking["by"] == "together" else named(ranking["by"])
    beside = f"P(first of {1 + len(others)}) {probability(best['probability_first'])}"
    lines = [*_only_text(one), f"expected gain {estimate(best['gain'])} {one.unit} of {by}", *_on_first(one, best)]
    beside = beside if others else "the only one of the three measured"
    found.append(Advice("THEN" if found else "TRY FIRST", numbered(best["option"], best["change"]), beside, lines))
    for place in others:
        verb = "NOT" if significant(place["gain"]) < 0 or place["demoted"] else "THEN"
        reason = f"; {place['demoted']}" if place["demoted"] else ""
        what = numbered(place["option"], place["change"])
        found.append(Advice(verb, what, f"{estimate(place['gain'])} {one.unit}{reason}"))
    for place in ranking["outside"][:1]:
        chance, gain = place["probability_first"], f"{estimate(place['gain'])} {one.unit} of {by}"
        beside = f"{gain}; better than the three with P {probability(chance)}, but more or other than one change"
        if chance >= 0.5:
            found.append(Advice("OUTSIDE", place["change"], beside))
    return found


def _on_first(one: Reading, place: Record) -> Iterator[str]:
    change = one.change
    if significant(place["gain"]) < 0:
        yield "even this loses: what is deployed is better"
    if kept := all_kept(one.verdict):
        yield f"{kept}: nothing needs to change" if one.used else kept
    if change["gain"]:
        yield f"at {one.long}: {_shifts(change['gain'])}"
    yield f"price against deployed: {_price(one, change['against_deployed'])}"
    yield f"price against the original: {_price(one, change['against_original'])}"
    before, after = one.costs.get(one.verdict["deployed"]), one.costs.get(change["configuration"])
    if before and after:
        now, was = ([*filter(None, [milliseconds(cost)]), f"{cost['mib']:.3g} MiB"] for cost in (after, before))
        rounds = f", median and range of {after['rounds']} rounds" if len(now) > 1 else ""
        yield f"one row of {one.long} tokens takes {' and '.join(now)} (deployed {', '.join(was)}){rounds}"
    if place["demoted"]:
        yield place["demoted"]
    yield from _apart(one.verdict)


def _only_text(one: Reading) -> Iterator[str]:
    """Yields why no task decides, where none does, and whether text can."""
    if one.ranking["by"] != TEXT:
        return
    if one.used:
        yield "neither event order nor binding was learned: ranked by the loss of text alone"
    elif one.asked:
        yield (
            "NO RECOMMENDATION CAN REST ON THE TASKS, of which the model answers none: ranked by the loss of text alone"
        )
    else:
        yield "no questions were asked: ranked by the loss of text alone"
    loss = one.original["loss"]["short"]
    if not _below(loss, math.log(one.record["models"][0]["vocabulary"])):
        yield f"nor on text: the original predicts it no better than by chance, even to {one.short}"


def _below(value: Record, bound: float) -> bool:
    """Returns whether a value is known to lie below a bound, by its interval where it has one."""
    return (value["mean"] if value["high"] is None else value["high"]) < bound


def steps(one: Reading) -> list[str]:
    """Returns what to do next, in order; what is impractical with the time that it takes at least."""
    return [_timed(one, step) for step in one.verdict["next"]]


def _timed(one: Reading, text: str) -> str:
    """Returns a text with the time of a number of contexts, or of rows, that is called impractical, where one is."""
    row = sum(cost["milliseconds"] for cost in one.costs.values())

    def hours(found: re.Match[str]) -> str:
        value = int(found[1].replace(",", "")) * row / 3.6e6
        amount = f"{value:.1f}" if value < 10 else f"{value:,.0f}"
        return (
            f"{found[0][:-1]}; at least {amount} hours for the {len(one.costs)} configurations timed, by the measured "
            "time of a row)"
        )

    return re.sub(r"than is practical \([a-z ]*([\d,]+)\)", hours, text) if row else text


def _shifts(by_task: Mapping[str, Record]) -> str:
    tasks = [task for task in ("order", "binding", "retrieval") if task in by_task]
    tasks += [task for task in by_task if task not in TASKS]
    said = []
    for task in tasks:
        amount, accuracy = estimate(by_task[task]["log_odds"]), by_task[task]["accuracy"]
        said.append(
            f"{named(task)} {amount} nats ({points(accuracy)})" if accuracy else f"{amount} nats a token of {task}"
        )
    return "; ".join(said)


def _price(one: Reading, price: Record) -> str:
    parts = [
        f"loss of text to {one.short} {estimate(price['short_loss'], digits=3)} nats a token",
        f"beyond {one.short} {estimate(price['long_loss'], digits=3)}",
    ]
    if price["short_accuracy"] is not None:
        parts.insert(0, f"accuracy at {one.short} {points(negated(price['short_accuracy']), digits=1)}")
    return "; ".join(parts)


def _apart(verdict: Record) -> Iterator[str]:
    """Yields what event order and binding would each name by themselves, where both were learned."""
    apart = [verdict["rankings"][name]["places"] for name in ("order", "binding") if name in verdict["rankings"]]
    if len(apart) < 2 or len(apart[0]) < 2:
        return
    (order, p_order), (binding, p_binding) = (
        (places[0]["option"], probability(places[0]["probability_first"])) for places in apart
    )
    if order == binding:
        yield f"event order alone (P {p_order}) and binding alone (P {p_binding}) both put {order} first"
    else:
        yield f"event order alone puts {order} first (P {p_order}), binding alone {binding} (P {p_binding})"
