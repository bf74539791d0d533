"""Answer 5: may a configuration ship as it is, which margin decides, and what would resolve an open one?

It ships where, at the target length, order, binding and retrieval are those of the original model at the trained
length; where short contexts are answered and predicted as by the original; and where the long loss of text is not above
that of the deployed configuration nor of the original. Each within its margin, with the whole interval.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence

from rope_jax.diagnosis.evaluation.panel import Panel
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import TEXT, Answer, Margins, Shipping
from rope_jax.diagnosis.verdict.contrasts import Contrasts, above
from rope_jax.statistics.intervals import Estimate

__all__ = ["Criterion", "criteria", "shipping"]

_A_TOKEN = "nats a token"


@dataclasses.dataclass(frozen=True)
class Criterion:
    """One thing that must not be lost by more than its margin.

    Attributes:
      name: of the measure.
      against: what it is compared with, in words.
      loss: how much is lost, positive is worse.
      margin: how much may be.
      unit: of the loss: "nats", "nats a token" of text, or "" for a share.
      units: how many contexts, or rows of text, there are.
      needed: how many would resolve it, as far as its interval tells; None where it is resolved or cannot tell.
      answer: whether it is lost.
    """

    name: str
    against: str
    loss: Estimate
    margin: float
    unit: str
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
    judged = [
        (task, "the original at the trained length", contrasts.fall(original, after, task), margins.of(task), "nats")
        for task in contrasts.used
    ]
    if contrasts.used:
        fall = contrasts.short_accuracy(after, original)
        judged.append(("short accuracy", "the original", fall, margins.short_accuracy, ""))
    short, over_deployed, over_original = (
        contrasts.loss(after, original, "short"),
        contrasts.loss(after, deployed, "long"),
        contrasts.loss(after, original, "long"),
    )
    judged += [
        ("short loss of text", "the original", short, margins.short_loss, _A_TOKEN),
        (TEXT, "the deployed configuration", over_deployed, margins.long_loss, _A_TOKEN),
        (TEXT, "the original at the same length", over_original, margins.long_loss, _A_TOKEN),
    ]
    found = []
    for name, against, loss, margin, unit in judged:
        estimate = contrasts.estimate(loss)
        answer = above(estimate, margin)
        needed = contrasts.needed(loss, margin) if answer == "not resolved" else None
        found.append(Criterion(name, against, estimate, margin, unit, loss.units, needed, answer))
    return found


def shipping(what: str, found: Sequence[Criterion]) -> Shipping:
    """Returns whether a configuration may ship, and what decides.

    That is the loss that exceeds its margin most; where none does, the open one that needs most to be resolved.

    Args:
      what: the configuration, in words that begin a sentence: "drop the bias".
      found: its criteria.
    """
    lost, open_ = ([one for one in found if one.answer == answer] for answer in ("yes", "not resolved"))
    if lost:
        worst = max(lost, key=_share_of_margin)
        also = _also(lost, worst, "lost beyond the margin")
        return Shipping("no", worst.name, "", f"No: after '{what}' too much is lost: {_said(worst)}{also}.")
    if not open_:
        nearest = _said(max(found, key=_share_of_margin))
        within = f"Yes: after '{what}' every loss is within its margin; the nearest to it is {nearest}."
        return Shipping("yes", "", "", within)
    worst = max(open_, key=lambda one: (one.needed or math.inf) / max(1, one.units))
    resolve = _resolve(open_)
    would = f"; about {resolve} would resolve it" if resolve else ""
    if not wording.is_practical(resolve):
        would = f"; it lies so near its margin that {resolve} would be needed"
    return Shipping(
        "not resolved",
        worst.name,
        resolve,
        f"Not resolved: after '{what}' nothing is known to be lost beyond its margin, and open is "
        f"{_said(worst)}{_also(open_, worst, 'open')}{would}.",
    )


def _share_of_margin(one: Criterion) -> float:
    return one.loss.mean / (one.margin or sys.float_info.min)  # what must not be lost at all weighs most


def _also(found: Sequence[Criterion], worst: Criterion, what: str) -> str:
    others = list(dict.fromkeys(wording.named(one.name) for one in found if one.name != worst.name))
    return f"; {what} too: {wording.listed(others)}" if others else ""


def _resolve(found: Sequence[Criterion]) -> str:
    """Returns what would resolve everything open, such as "80 contexts and 260 rows of text", or ""."""
    parts = []
    for counted, of_text in (("contexts", False), ("rows of text", True)):
        needed = [one.needed for one in found if (one.unit == _A_TOKEN) == of_text and one.needed is not None]
        parts += [wording.number(max(needed), counted)] if needed else []
    return " and ".join(parts)


def _said(one: Criterion) -> str:
    ways, digits = ("rises by", "falls by"), 2 if one.unit == "nats" else 3
    amount = wording.signed(one.loss, *(ways if one.unit == _A_TOKEN else ways[::-1]), digits=digits)
    change = f"{amount} {one.unit}".rstrip()
    return f"{wording.named(one.name)}, which {change} from {one.against}, with {one.margin:g} allowed"
