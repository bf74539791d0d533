"""Answer 6: what to do, one step a line, most useful first; only what the evidence supports."""

import dataclasses
from collections.abc import Sequence

from rope_jax.diagnosis.evaluation.panel import PRECISION, RETRIEVAL
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import Change, Implementation, Place, Regression, Shipping
from rope_jax.diagnosis.verdict.contrasts import TEXT
from rope_jax.diagnosis.verdict.ranking import Contest

__all__ = ["Known", "next_steps"]


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """What is known when the steps are chosen.

    Attributes:
      deployed: name of the deployed configuration.
      regression: answer 1.
      regression_needs: what would resolve it, such as "50 contexts", or "".
      implementation: answer 2.
      repair_first: whether the repair comes before every change.
      contest: what answer 3 was drawn from.
      best: the best change of the three, or None where none was tried.
      shipping: answer 5.
      open: configurations worth asking more of.
      transforms: how many were tried as option 3.
    """

    deployed: str
    regression: Regression
    regression_needs: str
    implementation: Implementation
    repair_first: bool
    contest: Contest
    best: Change | None
    shipping: Shipping
    open: Sequence[str]
    transforms: int


def next_steps(known: Known) -> tuple[str, ...]:
    """Returns the steps."""
    steps = []
    ranking = known.contest.rankings[known.contest.decisive]
    counted = "rows of text" if ranking.by == TEXT else "contexts"
    if known.repair_first:
        steps.append("Repair the implementation so that it runs the deployed configuration exactly, and measure again.")
    elif known.implementation.status == "repair may help":
        steps.append("Find out whether the implementation is at fault: ask it more contexts beside the exact run.")
    if known.best is not None:
        steps.append(_of_change(known, known.best, ranking.places[0], ranking.by))
        steps += _apart(known.contest)
    steps += [_outside(place, ranking.by) for place in ranking.outside if _gains(place)]
    steps += _not_enough(known)
    if known.open:
        steps.append(f"Ask more {counted} of {wording.listed(list(known.open))}: which is best is not settled.")
    if known.regression.answer == "not resolved" and known.regression_needs:
        open_ = wording.listed(list(known.regression.open))
        are = "is" if len(known.regression.open) == 1 else "are"
        steps.append(f"Ask about {known.regression_needs}, to know whether {open_} {are} kept.")
    if known.shipping.answer == "not resolved" and known.shipping.resolve:
        steps.append(f"Ask about {known.shipping.resolve}, to know whether it may ship.")
    return tuple(steps)


def _gains(place: Place) -> bool:
    return not place.demoted and place.gain.low is not None and place.gain.low > 0


def _loses(place: Place) -> bool:
    return place.gain.high is not None and place.gain.high < 0


def _of_change(known: Known, best: Change, place: Place, by: str) -> str:
    gains = wording.listed([wording.shift(task, gain) for task, gain in best.gain.items() if task in PRECISION])
    if by == TEXT:
        gains = wording.shift(TEXT, best.together)
    what = f"{best.words} ({best.configuration}): {gains}"
    if place.demoted:
        return f"None of the three keeps retrieval; of them the best is to {what}."
    if _loses(place):
        return f"Keep what is deployed rather than change one thing: of the three the least is lost by this: {what}."
    nothing_lost = known.regression.answer == "no" and not known.regression.lost and not known.regression.open
    opening = "Then" if known.repair_first else "Try first"
    if nothing_lost and not known.repair_first:
        opening = "Nothing needs to change; what gains most"
    if place.gain.low == place.gain.high == 0:
        return f"{opening}: {what}; it changes nothing."
    return f"{opening}: {what}{'' if _gains(place) else '; that it gains at all is not resolved'}."


def _apart(contest: Contest) -> list[str]:
    """Returns what to know where order and binding point to different options."""
    rankings = contest.rankings
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
    return (
        f"Outside the three, '{place.change}' gains {wording.interval(place.gain, sign=True)} {unit}; more than each "
        f"of the three with probability {place.probability_first:.2f}."
    )


def _not_enough(known: Known) -> list[str]:
    """Returns what goes further than any change that was tried, where the best of them does not suffice."""
    best, what, keeps = known.best, known.deployed, False
    answer, decides = known.shipping.answer, known.shipping.decides
    if best is not None:
        ranking = known.contest.rankings[known.contest.decisive]
        keeps = _loses(ranking.places[0])
        what = known.deployed if keeps else best.configuration
        answer, decides = best.ships, best.decides
    if answer != "no":
        return []
    steps = []
    if decides in (*PRECISION, RETRIEVAL, TEXT):
        leaves = f"by itself it leaves {decides} beyond its margin, and " if best is None or not keeps else ""
        steps.append(f"Adapt the model under {what}: {leaves}a trial of 100 steps shows what training wins back.")
        if best is not None and best.option == "3" and decides in PRECISION:
            tried = "one transform was" if known.transforms == 1 else f"{known.transforms} transforms were"
            steps.append(f"Search for factors of your own: only {tried} tried.")
        if RETRIEVAL in known.regression.lost:
            steps.append("Try a shorter target: at this one the deployed configuration loses retrieval.")
    else:
        steps.append(
            f"Keep the original for short contexts, or adapt under {what}: {decides} is worse than that of the "
            "original by more than the margin."
        )
    return steps
