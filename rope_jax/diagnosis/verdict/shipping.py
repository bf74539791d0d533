"""Answer 5: may a configuration ship as it is, which margin decides, and what would resolve an open one?

It ships where, at the target length, order, binding and retrieval are those of the original model at the trained
length; where short contexts are answered and predicted as by the original; and where the long loss of text is not above
that of the deployed configuration nor of the original. Each within its margin, with the whole interval.
"""

import dataclasses
import math
from collections.abc import Sequence

from rope_jax.diagnosis.evaluation.panel import Panel
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import Answer, Margins, Shipping
from rope_jax.diagnosis.verdict.contrasts import TEXT, Contrasts, Paired, above
from rope_jax.diagnosis.verdict.needed import in_words, needed
from rope_jax.diagnosis.verdict.regression import margin_of
from rope_jax.statistics.intervals import Estimate

__all__ = ["Criterion", "criteria", "resolve", "shipping", "ships"]

SHORT_ACCURACY = "short accuracy"
SHORT_LOSS = "short loss of text"


@dataclasses.dataclass(frozen=True)
class Criterion:
    """One thing that must not be lost by more than its margin.

    Attributes:
      name: of the measure.
      against: what it is compared with, in words.
      loss: how much is lost, positive is worse.
      margin: how much may be.
      unit: of the loss.
      counted: what its units are, "contexts" or "rows of text".
      units: how many there are.
      needed: how many would resolve it, as far as its interval tells; None where it is resolved or cannot tell.
      answer: whether it is lost.
    """

    name: str
    against: str
    loss: Estimate
    margin: float
    unit: str
    counted: str
    units: int
    needed: int | None
    answer: Answer


def criteria(after: Panel, deployed: Panel, original: Panel, contrasts: Contrasts, margins: Margins) -> list[Criterion]:
    """Returns everything that decides whether a configuration may ship.

    Args:
      after: the configuration.
      deployed: what runs now, run exactly.
      original: the unchanged model.
      contrasts: makes the contrasts.
      margins: what may be lost.
    """
    found = [
        _criterion(
            task,
            "the original at the trained length",
            contrasts.fall(original, after, task),
            margin_of(task, margins),
            "nats",
            contrasts,
        )
        for task in contrasts.used
    ]
    if contrasts.used:
        found.append(
            _criterion(
                SHORT_ACCURACY,
                "the original",
                contrasts.short_accuracy(after, original),
                margins.short_accuracy,
                "",
                contrasts,
            )
        )
    for name, reach, other, against, margin in (
        (SHORT_LOSS, "short", original, "the original", margins.short_loss),
        (TEXT, "long", deployed, "the deployed configuration", margins.long_loss),
        (TEXT, "long", original, "the original at the same length", margins.long_loss),
    ):
        rise = contrasts.loss(after, other, "short" if reach == "short" else "long")
        found.append(_criterion(name, against, rise, margin, "nats a token", contrasts, counted="rows of text"))
    return found


def ships(found: Sequence[Criterion]) -> tuple[Answer, str]:
    """Returns whether a configuration may ship, and the measure that decides, "" where nothing is lost."""
    worst = _worst(found)
    answers = {one.answer for one in found}
    answer: Answer = "no" if "yes" in answers else "not resolved" if "not resolved" in answers else "yes"
    return answer, "" if worst is None else worst.name


def resolve(found: Sequence[Criterion]) -> str:
    """Returns what would resolve everything open, such as "80 contexts and 260 rows of text", or ""."""
    parts = []
    for counted in ("contexts", "rows of text"):
        most = [one.needed for one in found if one.counted == counted and one.needed is not None]
        if most:
            parts.append(in_words(max(most), counted))
    return " and ".join(parts)


def shipping(what: str, found: Sequence[Criterion]) -> Shipping:
    """Returns the answer in words.

    Args:
      what: the configuration, in words that begin a sentence: "drop the bias".
      found: its criteria.
    """
    answer, decides = ships(found)
    worst = _worst(found)
    if worst is None:
        largest = max(found, key=lambda one: one.loss.mean / one.margin)
        return Shipping(
            "yes",
            "",
            "",
            f"Yes: after '{what}' every loss is within its margin; the nearest to it is {_said(largest)}.",
        )
    if answer == "no":
        others = [one.name for one in found if one.answer == "yes" and one.name != decides]
        also = f"; lost beyond the margin too: {wording.listed(list(dict.fromkeys(others)))}" if others else ""
        return Shipping("no", decides, "", f"No: after '{what}' too much is lost: {_said(worst)}{also}.")
    wanted = resolve(found)
    would = f"; about {wanted} would resolve it" if wanted else ""
    if "more than" in wanted:
        would = f"; it lies so near its margin that {wanted} would be needed"
    others = [one.name for one in found if one.answer == "not resolved" and one.name != decides]
    also = f"; open too: {wording.listed(list(dict.fromkeys(others)))}" if others else ""
    return Shipping(
        "not resolved",
        decides,
        wanted,
        f"Not resolved: after '{what}' nothing is known to be lost beyond its margin, "
        f"and open is {_said(worst)}{also}{would}.",
    )


def _worst(found: Sequence[Criterion]) -> Criterion | None:
    """Returns the loss that exceeds its margin most; where none does, the open one that needs most to be resolved."""
    lost = [one for one in found if one.answer == "yes"]
    if lost:
        return max(lost, key=lambda one: one.loss.mean / one.margin)
    unresolved = [one for one in found if one.answer == "not resolved"]
    return max(unresolved, key=lambda one: (one.needed or math.inf) / max(1, one.units), default=None)


def _criterion(
    name: str,
    against: str,
    loss: Paired,
    margin: float,
    unit: str,
    contrasts: Contrasts,
    *,
    counted: str = "contexts",
) -> Criterion:
    estimate = contrasts.estimate(loss)
    answer = above(estimate, margin)
    enough = needed(estimate, margin, loss, contrasts.confidence) if answer == "not resolved" else None
    return Criterion(name, against, estimate, margin, unit, counted, loss.units, enough, answer)


def _said(one: Criterion) -> str:
    digits = 2 if one.unit == "nats" else 3
    sign = one.unit != "nats"
    amount = wording.interval(one.loss, sign=sign, digits=digits)
    unit = f" {one.unit}" if one.unit else ""
    way = {"nats": "falls by", "nats a token": "changes by"}.get(one.unit, "falls by")
    return f"{one.name}, which {way} {amount}{unit} from {one.against}, with {one.margin:g} allowed"
