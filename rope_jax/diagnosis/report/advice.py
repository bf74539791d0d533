"""What to try first, then, and not, with what each change wins back and what it costs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rope_jax.diagnosis.report.wording import (
    TASKS,
    estimate,
    listed,
    named,
    negated,
    points,
    probability,
    significant,
    tokens,
)

__all__ = ["Advice", "advice", "change_of", "find", "first_change", "leading"]

Record = Mapping[str, Any]


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
    lines: tuple[str, ...] = ()


def advice(record: Record, verdict: Record, costs: Sequence[Record] = ()) -> list[Advice]:
    """Returns what to try, best first; never nothing.

    Args:
      record: from `record.record_of`.
      verdict: one in it.
      costs: objects with `configuration`, `milliseconds` and `mib`, where they were measured.
    """
    ranking = leading(verdict)
    found: list[Advice] = []
    if verdict["first"] == "repair":
        found.append(_repair(verdict))
    if ranking is None or not ranking["places"]:
        if not found:
            found.append(Advice("TRY FIRST", "nothing: none of the three changes applies to it", ""))
        return found
    unit = "nats" if record["tasks"]["used"] else "nats a token"
    of = _of(ranking)
    places = ranking["places"]
    for rank, place in enumerate(places):
        change = change_of(verdict, place)
        words = place["change"] if change is None else change["words"]
        what = f"{place['option']}: {words}" if place["option"] != words else words
        gain = f"{estimate(place['gain'])} {unit} of {of}"
        worse = significant(place["gain"]) < 0
        if rank == 0:
            first = f"P(first of {len(places)}) {probability(place['probability_first'])}"
            beside = first if len(places) > 1 else "the only one of the three measured"
            lines = [f"expected gain {gain}"]
            lines += ["it loses least of those measured: what is deployed is better"] if worse else []
            lines += ["no task fell by more than its margin: nothing needs to change"] if _nothing_lost(verdict) else []
            lines += [] if change is None else _gains_and_price(record, verdict, change, costs)
            lines += [place["demoted"]] if place["demoted"] else []
            lines += _apart(verdict)
            found.append(Advice("THEN" if found else "TRY FIRST", what, beside, tuple(lines)))
            continue
        rejected = worse or bool(place["demoted"])
        reason = f"; {place['demoted']}" if place["demoted"] else ""
        found.append(Advice("NOT" if rejected else "THEN", what, f"{estimate(place['gain'])} {unit}{reason}"))
    found += [
        Advice(
            "OUTSIDE",
            place["change"],
            f"{estimate(place['gain'])} {unit} of {of}; better than the three with P "
            f"{probability(place['probability_first'])}, but more or other than one change",
        )
        for place in ranking["outside"][:1]
        if place["probability_first"] >= 0.5
    ]
    return found


def _nothing_lost(verdict: Record) -> bool:
    regression = verdict["regression"]
    return bool(regression["kept"]) and not (regression["lost"] or regression["open"])


def _of(ranking: Record) -> str:
    if ranking["by"] == "together":
        return listed([named(task) for task in ranking["weights"]]) or "order and binding"
    return named(ranking["by"])


def _repair(verdict: Record) -> Advice:
    lines = []
    if verdict["implementation"]["repair"]:
        lines.append("an exact run wins back: " + _shifts(verdict["implementation"]["repair"]))
    return Advice("TRY FIRST", "repair: run what is deployed exactly", "before any change", tuple(lines))


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


def _gains_and_price(record: Record, verdict: Record, change: Record, costs: Sequence[Record]) -> list[str]:
    lines = [f"at {tokens(record['lengths']['target'])}: {_shifts(change['gain'])}"] if change["gain"] else []
    lines.append(f"price against deployed: {_price(record, change['against_deployed'])}")
    lines.append(f"price against the original: {_price(record, change['against_original'])}")
    before, after = (_cost(costs, name) for name in (verdict["deployed"], change["configuration"]))
    if before and after:
        lines.append(
            f"one row of {tokens(record['lengths']['target'])} tokens takes {after['milliseconds']:.3g} ms and "
            f"{after['mib']:.3g} MiB (deployed {before['milliseconds']:.3g} ms, {before['mib']:.3g} MiB)"
        )
    return lines


def _price(record: Record, price: Record) -> str:
    short = tokens(record["lengths"]["trained"])
    parts = []
    if price["short_accuracy"] is not None:
        parts.append(f"accuracy at {short} {points(negated(price['short_accuracy']), digits=1)}")
    parts.append(f"loss of text to {short} {estimate(price['short_loss'], digits=3)} nats a token")
    parts.append(f"beyond {short} {estimate(price['long_loss'], digits=3)}")
    return "; ".join(parts)


def _cost(costs: Sequence[Record], name: str) -> Record | None:
    return next((one for one in costs if one.get("configuration") == name and one.get("milliseconds")), None)


def _apart(verdict: Record) -> list[str]:
    """Returns what event order and binding would each name by themselves, where both were learned."""
    apart = [verdict["rankings"].get(name) for name in ("order", "binding")]
    if not all(ranking and len(ranking["places"]) > 1 for ranking in apart):
        return []
    (order, binding) = (ranking["places"][0] for ranking in apart if ranking)
    chances = [probability(place["probability_first"]) for place in (order, binding)]
    if order["option"] == binding["option"]:
        return [
            f"event order alone (P {chances[0]}) and binding alone (P {chances[1]}) both put {order['option']} first"
        ]
    return [
        f"event order alone puts {order['option']} first (P {chances[0]}), binding alone {binding['option']} "
        f"(P {chances[1]})"
    ]


def find(record: Record, name: str | None) -> Record | None:
    """Returns the configuration of a name, or None where it was not run."""
    return next((one for one in record["configurations"] if one["name"] == name), None)


def change_of(verdict: Record, place: Record) -> Record | None:
    """Returns the measured change that a place of a ranking speaks of."""
    alike = [one for one in verdict["changes"] if place["change"] in (one["words"], one["configuration"])]
    return next((one for one in alike if one["option"] == place["option"]), alike[0] if alike else None)


def leading(verdict: Record) -> Record | None:
    """Returns the ranking that decides: order and binding together, or what takes its place; None without one."""
    rankings = verdict["rankings"]
    names = [name for name in ("together", "order", "binding") if name in rankings] or list(rankings)
    return rankings[names[0]] if names else None


def first_change(verdict: Record) -> Record | None:
    """Returns the change of the best of the three, or None."""
    ranking = leading(verdict)
    return None if ranking is None or not ranking["places"] else change_of(verdict, ranking["places"][0])
