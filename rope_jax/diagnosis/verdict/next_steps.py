"""Answer 6: what to do, one step a line, most useful first; only what the evidence supports."""

from collections.abc import Iterator

from rope_jax.diagnosis.evaluation.panel import PRECISION, RETRIEVAL
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import TEXT, Change, Place, Verdict

__all__ = ["next_steps"]


def next_steps(verdict: Verdict, best: Change | None, repair_first: bool, regression_needs: str) -> Iterator[str]:
    """Yields the steps.

    Args:
      verdict: the other five answers.
      best: the best change of the three, or None where none was tried.
      repair_first: whether the repair comes before every change.
      regression_needs: what would resolve whether this is the regression, such as "50 contexts", or "".
    """
    ranking, symptom = verdict.decisive, verdict.regression
    if repair_first:
        yield "Repair the implementation so that it runs the deployed configuration exactly, and measure again."
    elif verdict.implementation.status == "repair may help":
        yield "Find out whether the implementation is at fault: ask it more contexts beside the exact run."
    if best is not None:
        yield _of_change(verdict, best, repair_first)
        yield from _apart(verdict)
    for place in ranking.outside:
        if _gains(place):
            yield (
                f"Outside the three, '{place.change}' gains {wording.interval(place.gain, sign=True)} "
                f"{wording.unit(ranking.by)}; more than each of the three with probability "
                f"{place.probability_first:.2f}."
            )
    yield from _not_enough(verdict, best)
    if verdict.open:
        counted = "rows of text" if ranking.by == TEXT else "contexts"
        yield f"Ask more {counted} of {wording.listed(verdict.open)}: which is best is not settled."
    if symptom.answer == "not resolved" and regression_needs:
        tasks = wording.listed([wording.named(task) for task in symptom.open])
        are = "is" if len(symptom.open) == 1 else "are"
        yield _ask(regression_needs, f"whether {tasks} {are} kept")
    if verdict.shipping.resolve:
        yield _ask(verdict.shipping.resolve, "whether it may ship")


def _ask(number: str, question: str) -> str:
    if wording.is_practical(number):
        return f"Ask about {number}, to know {question}."
    return f"To know {question} takes {number}."


def _gains(place: Place) -> bool:
    return not place.demoted and place.gain.low is not None and place.gain.low > 0


def _loses(place: Place) -> bool:
    return place.gain.high is not None and place.gain.high < 0


def _of_change(verdict: Verdict, best: Change, repair_first: bool) -> str:
    place, symptom = verdict.decisive.places[0], verdict.regression
    gains = wording.listed([wording.shift(task, gain) for task, gain in best.gain.items() if task in PRECISION])
    if verdict.decisive.by == TEXT:
        gains = wording.shift(TEXT, best.together)
    what = f"{best.words} ({best.configuration}): {gains}"
    if place.demoted:
        return f"None of the three that were tried keeps retrieval; of them the best is to {what}."
    if _loses(place):
        return f"Keep what is deployed rather than change one thing: even the first of the three loses: {what}."
    opening = "Then" if repair_first else "Try first"
    if symptom.answer == "no" and not symptom.lost and not symptom.open and not repair_first:
        opening = "Nothing needs to change; what gains most"
    if verdict.decisive.by == TEXT:
        opening = f"By the loss of text alone, {opening[0].lower()}{opening[1:]}"
    if place.gain.low == place.gain.high == 0:
        return f"{opening}: {what}; it changes nothing."
    return f"{opening}: {what}{'' if _gains(place) else '; that it gains at all is not resolved'}."


def _apart(verdict: Verdict) -> Iterator[str]:
    """Yields what to know where order and binding point to different options."""
    if all(task in verdict.rankings for task in PRECISION):
        order, binding = (verdict.rankings[task].places[0] for task in PRECISION)
        if order.option != binding.option:
            yield (
                f"If event order alone matters, option {order.option} ({order.change}) is the best with probability "
                f"{order.probability_first:.2f}; if binding alone does, option {binding.option} ({binding.change}) "
                f"with {binding.probability_first:.2f}."
            )


def _not_enough(verdict: Verdict, best: Change | None) -> Iterator[str]:
    """Yields what goes further than any change that was tried, where the best of them does not suffice."""
    keeps = best is not None and _loses(verdict.decisive.places[0])
    what = verdict.deployed if best is None or keeps else best.configuration
    answer, decides = (
        (verdict.shipping.answer, verdict.shipping.decides) if best is None else (best.ships, best.decides)
    )
    if answer != "no":
        return
    if decides not in (*PRECISION, RETRIEVAL, TEXT):
        yield (
            f"Keep the original for short contexts, or adapt under {what}: {wording.named(decides)} is worse than that "
            "of the original by more than the margin."
        )
        return
    leaves = "" if keeps else f"by itself it leaves {wording.named(decides)} beyond its margin, and "
    yield f"Adapt the model under {what}: {leaves}a trial of 100 steps shows what training wins back."
    if best is not None and best.option == "3" and decides in PRECISION:
        transforms = sum(change.option == "3" for change in verdict.changes)
        tried = "one transform was" if transforms == 1 else f"{transforms} transforms were"
        yield f"Search for factors of your own: only {tried} tried."
    if RETRIEVAL in verdict.regression.lost:
        yield "Try a shorter target: at this one the deployed configuration loses retrieval."
