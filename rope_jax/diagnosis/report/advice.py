"""What to try first, then, and not, with what each change wins back and what it costs."""

import dataclasses
from collections.abc import Iterator, Mapping

from rope_jax.diagnosis.report.reading import Reading, Record, change_of, leading, nothing_lost, words_of
from rope_jax.diagnosis.report.wording import (
    TASKS,
    estimate,
    named,
    negated,
    numbered,
    points,
    probability,
    significant,
)
from rope_jax.diagnosis.verdict.wording import listed

__all__ = ["Advice", "advice"]


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


def advice(one: Reading) -> list[Advice]:
    """Returns what to try, best first; never nothing."""
    verdict, ranking = one.verdict, leading(one.verdict)
    found = []
    if verdict["first"] == "repair":
        repair = verdict["implementation"]["repair"]
        lines = [f"an exact run wins back: {_shifts(repair)}"] if repair else []
        found.append(Advice("TRY FIRST", "repair: run what is deployed exactly", "before any change", tuple(lines)))
    if not ranking["places"]:
        return found or [Advice("TRY FIRST", "nothing: none of the three changes applies to it", "")]
    best, *others = ranking["places"]
    unit = "nats" if one.used else "nats a token"
    by = listed([named(task) for task in ranking["weights"]]) if ranking["by"] == "together" else named(ranking["by"])
    beside = f"P(first of {1 + len(others)}) {probability(best['probability_first'])}"
    lines = [f"expected gain {estimate(best['gain'])} {unit} of {by}", *_on_first(one, best)]
    found.append(
        Advice(
            "THEN" if found else "TRY FIRST",
            numbered(best["option"], words_of(verdict, best)),
            beside if others else "the only one of the three measured",
            tuple(lines),
        )
    )
    for place in others:
        verb = "NOT" if significant(place["gain"]) < 0 or place["demoted"] else "THEN"
        reason = f"; {place['demoted']}" if place["demoted"] else ""
        what = numbered(place["option"], words_of(verdict, place))
        found.append(Advice(verb, what, f"{estimate(place['gain'])} {unit}{reason}"))
    for place in ranking["outside"][:1]:
        chance, gain = place["probability_first"], f"{estimate(place['gain'])} {unit} of {by}"
        beside = f"{gain}; better than the three with P {probability(chance)}, but more or other than one change"
        if chance >= 0.5:
            found.append(Advice("OUTSIDE", place["change"], beside))
    return found


def _on_first(one: Reading, place: Record) -> Iterator[str]:
    verdict, change = one.verdict, change_of(one.verdict, place)
    if significant(place["gain"]) < 0:
        yield "it loses least of those measured: what is deployed is better"
    if nothing_lost(verdict):
        yield "no task fell by more than its margin: nothing needs to change"
    if change is not None:
        if change["gain"]:
            yield f"at {one.long}: {_shifts(change['gain'])}"
        yield f"price against deployed: {_price(one, change['against_deployed'])}"
        yield f"price against the original: {_price(one, change['against_original'])}"
        known = {cost.get("configuration"): cost for cost in one.costs if cost.get("milliseconds")}
        before, after = known.get(verdict["deployed"]), known.get(change["configuration"])
        if before and after:
            yield (
                f"one row of {one.long} tokens takes {after['milliseconds']:.3g} ms and {after['mib']:.3g} MiB "
                f"(deployed {before['milliseconds']:.3g} ms, {before['mib']:.3g} MiB)"
            )
    if place["demoted"]:
        yield place["demoted"]
    yield from _apart(verdict)


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
    places = [verdict["rankings"].get(name, {"places": []})["places"] for name in ("order", "binding")]
    if min(map(len, places)) < 2:
        return
    (order, p_order), (binding, p_binding) = (
        (best["option"], probability(best["probability_first"])) for best, *_ in places
    )
    if order == binding:
        yield f"event order alone (P {p_order}) and binding alone (P {p_binding}) both put {order} first"
    else:
        yield f"event order alone puts {order} first (P {p_order}), binding alone {binding} (P {p_binding})"
