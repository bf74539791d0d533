"""Answer 6: what to do, one step a line, most useful first; only what the evidence supports."""

from collections.abc import Mapping, Sequence

from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import (
    Change,
    Implementation,
    Margins,
    Place,
    Ranking,
    Regression,
    Shipping,
)
from rope_jax.diagnosis.verdict.contrasts import TEXT
from rope_jax.diagnosis.verdict.panel import PRECISION, RETRIEVAL

__all__ = ["next_steps"]


def next_steps(
    regression: Regression,
    implementation: Implementation,
    repair_first: bool,
    best: Change | None,
    rankings: Mapping[str, Ranking],
    decisive: Ranking,
    shipping: Shipping,
    open_: Sequence[str],
    margins: Margins,
) -> tuple[str, ...]:
    """Returns the steps.

    Args:
      regression: answer 1.
      implementation: answer 2.
      repair_first: whether the repair comes before every change.
      best: the best change of the three, or None where none was tried.
      rankings: answer 3.
      decisive: the ranking that decides.
      shipping: answer 5, of the best change, or of the repair.
      open_: configurations worth asking more contexts of.
      margins: what is too little to matter.
    """
    steps: list[str] = []
    if repair_first:
        steps.append("Repair the implementation so that it runs the deployed configuration exactly, and measure again.")
    elif implementation.status == "repair may help":
        steps.append("Find out whether the implementation is at fault: ask it more contexts beside the exact run.")
    if best is not None:
        steps.append(_of_change(best, decisive.places[0], decisive.by, repair_first))
        steps += _apart(rankings)
    steps += [_outside(place, decisive.by) for place in decisive.outside if _gains(place)]
    if shipping.answer == "no":
        steps += _not_enough(shipping, best, regression, margins)
    if shipping.answer == "not resolved" and shipping.resolve:
        steps.append(f"Ask more, to know whether it may ship: {shipping.resolve}.")
    if open_:
        steps.append(f"Ask more contexts of {wording.listed(list(open_))}: which is best is not settled.")
    if regression.answer == "not resolved" and regression.open:
        steps.append(f"Ask more contexts, to know whether {wording.listed(list(regression.open))} is kept.")
    return tuple(steps)


def _gains(place: Place) -> bool:
    return not place.demoted and place.gain.low is not None and place.gain.low > 0


def _of_change(best: Change, place: Place, by: str, repair_first: bool) -> str:
    gains = wording.listed([wording.shift(task, gain) for task, gain in best.gain.items() if task in PRECISION])
    if by == TEXT:
        gains = wording.shift(TEXT, best.together)
    opening = "Then" if repair_first else "Try first"
    if place.demoted:
        return (
            f"None of the changes tried keeps retrieval; the best of them is '{best.words}' ({best.configuration}): "
            f"{gains}."
        )
    if place.gain.high is not None and place.gain.high < 0:
        return (
            f"Keep what is deployed rather than change it: all three lose, and the least is lost by '{best.words}' "
            f"({best.configuration}): {gains}."
        )
    if not _gains(place):
        return f"{opening}: {best.words} ({best.configuration}): {gains}; that it gains at all is not resolved."
    return f"{opening}: {best.words} ({best.configuration}): {gains}."


def _apart(rankings: Mapping[str, Ranking]) -> list[str]:
    """Returns what to know where order and binding point to different options."""
    if not all(task in rankings and rankings[task].places for task in PRECISION):
        return []
    order, binding = (rankings[task].places[0] for task in PRECISION)
    if order.option == binding.option:
        return []
    return [
        f"If order alone matters, option {order.option} ({order.change}) is the best with probability "
        f"{order.probability_first:.2f}; if binding alone does, option {binding.option} ({binding.change}) with "
        f"{binding.probability_first:.2f}."
    ]


def _outside(place: Place, by: str) -> str:
    unit = "nats a token of the long loss of text" if by == TEXT else "nats of order and binding"
    if by in PRECISION:
        unit = f"nats of {by}"
    return (
        f"Outside the three, '{place.change}' gains {wording.interval(place.gain, sign=True)} {unit}; more than each "
        f"of the three with probability {place.probability_first:.2f}."
    )


def _not_enough(shipping: Shipping, best: Change | None, regression: Regression, margins: Margins) -> list[str]:
    steps = []
    what = "the deployed configuration" if best is None else best.configuration
    if shipping.decides in (*PRECISION, RETRIEVAL, TEXT):
        steps.append(
            f"Adapt the model under {what}: by itself it leaves {shipping.decides} beyond its margin, and a trial of "
            "100 steps shows what training wins back."
        )
    if best is not None and best.option == "3" and shipping.decides in PRECISION:
        steps.append(
            f"Search for factors of its own: {shipping.decides} stays beyond its margin under the transforms tried."
        )
    if RETRIEVAL in regression.lost or shipping.decides == RETRIEVAL:
        steps.append("Try a shorter target: retrieval itself is lost at this one.")
    if shipping.decides in ("short accuracy", "short loss of text"):
        steps.append(
            f"Keep the original for short contexts, or adapt under {what}: {shipping.decides} is worse than that of "
            "the original by more than the margin."
        )
    return steps
