"""What is true of a planted case: the verdict's own rule on effects measured without intervals on many haystacks.

An option is right where it truly wins back the margin, truly loses nothing beyond its margins, and no option that does
the same wins back more by a margin. Running the scheme exactly is right where that wins back the margin. Where nothing
is right, it is "outside these options" if precision is truly lost, else "no fault found". All of it is true of the
probes that the verdict speaks of: those that passed its gate.

That last rule was set after a pilot case had been counted wrong, whose gate had flipped on few haystacks: it forgives
such flips, so the report counts them.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from rope_jax.diagnosis.evaluation.cell_runs import Scores
from rope_jax.diagnosis.verdict.attribution import Used
from rope_jax.diagnosis.verdict.verdict import IMPLEMENTATION, Margins, attribution

UNDETERMINED = "undetermined"
OUTSIDE = "outside these options"
NO_FAULT = "no fault found"
EDGE = 0.2
"""A case is at the edge if what decides it is this close to its margin, relative to it; it counts all the same."""

SURE = 4.0
"""Standard errors from its margin at which a number counts as known, so that it needs no more of the haystacks."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """What the rule reads of one run: a number a haystack, or a row of text.

    Attributes:
      precision: long log-odds of the precision probes, nats.
      retrieval: long log-odds of retrieval, nats.
      short: accuracy of all probes used at the trained length.
      text: loss of text below the trained length, nats a token, `[rows of text]`.
    """

    precision: Float64[np.ndarray, " haystacks"]
    retrieval: Float64[np.ndarray, " haystacks"]
    short: Float64[np.ndarray, " haystacks"]
    text: Float64[np.ndarray, " texts"]


@dataclasses.dataclass(frozen=True)
class Effect:
    """What a change truly does against what is deployed.

    Attributes:
      gain: of long precision, nats.
      retrieval_loss: fall of long retrieval, nats.
      short_loss: fall of accuracy at the trained length.
      short_cost: rise of the loss of text below it, nats a token.
      rows: haystacks it was measured on.
    """

    gain: float
    retrieval_loss: float
    short_loss: float
    short_cost: float
    rows: int


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is true of a case.

    Attributes:
      effects: of every option, by its label.
      drop: fall of precision from the unchanged model at the trained length to what is deployed at the target, nats.
      right: labels of the verdicts that are right.
      null: whether nothing wins back the margin.
      edge: whether any of that hangs on a number close to its margin.
    """

    effects: Mapping[str, Effect]
    drop: float
    right: frozenset[str]
    null: bool
    edge: bool


def rows_of(scores: Scores, used: Used) -> Rows:
    """Returns what the rule reads of a run's scores."""
    one = [scores]
    return Rows(
        attribution.outcome(one, "long", used.precision)[0],
        attribution.outcome(one, "long", ["ret"])[0],
        attribution.outcome(one, "short", used.names, accuracy=True)[0],
        attribution.text_loss(one, "short")[0],
    )


def joined(parts: Sequence[Rows]) -> Rows:
    """Returns the rows of several runs as one."""
    names = [field.name for field in dataclasses.fields(Rows)]
    return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def effect(after: Rows, before: Rows) -> Effect:
    """Returns the effect of a change, its rows the same as those before it."""
    gain, retrieval, short, text = (float(values.mean()) for values in _differences(after, before))
    return Effect(gain, retrieval, short, text, rows=len(after.precision))


def _differences(after: Rows, before: Rows) -> tuple[np.ndarray, ...]:
    return (
        after.precision - before.precision,
        before.retrieval - after.retrieval,
        before.short - after.short,
        after.text - before.text,
    )


@dataclasses.dataclass(frozen=True)
class Standing:
    """What part of the truth's haystacks leaves to be found out.

    Attributes:
      open: options that need more haystacks, since they may be right, or may be the best.
      settled: whether no more haystacks are needed: all that hangs on a margin is many standard errors away from it.
    """

    open: tuple[str, ...]
    settled: bool


def standing(
    changed: Mapping[str, Rows], before: Rows, short: Float64[np.ndarray, " rows"], margins: Margins
) -> Standing:
    """Returns what is left open after some of the haystacks, each option's rows the same as those before it.

    Args:
      changed: rows of every option that is not dropped yet.
      before: rows of what is deployed.
      short: precision of the unchanged model at the trained length, by haystack.
      margins: the verdict's own.
    """
    helps: dict[str, int] = {}
    harmless: dict[str, int] = {}
    for label, after in changed.items():
        gain, *losses = _differences(after, before)
        helps[label] = _side(gain, margins.gain)
        sides = [-_side(loss, margin) for loss, margin in zip(losses, _loss_margins(margins), strict=True)]
        # The exact run is right by its gain alone.
        harmless[label] = 1 if label == IMPLEMENTATION else min(sides)
    kept = [label for label in changed if helps[label] >= 0 and harmless[label] >= 0]
    sure = [label for label in kept if helps[label] > 0 and harmless[label] > 0]

    def ahead(label: str, other: str) -> int:
        return 0 if label == other else _side(changed[label].precision - changed[other].precision, margins.gain)

    kept = [label for label in kept if label == IMPLEMENTATION or all(ahead(best, label) <= 0 for best in sure)]
    settled = all(
        label in sure and (label == IMPLEMENTATION or all(ahead(other, label) < 0 or other == label for other in kept))
        for label in kept
    )
    if not any(side > 0 for side in helps.values()):
        # Whether anything helps at all decides what is a null, also where it harms something else.
        undecided = [label for label, side in helps.items() if side == 0]
        kept += [label for label in undecided if label not in kept]
        settled &= not undecided
    if not kept:
        away = float(short.mean() - before.precision.mean()) - margins.gain
        settled &= abs(away) > SURE * np.hypot(_error(short), _error(before.precision))
    return Standing(tuple(kept), bool(settled))


def _side(values: Float64[np.ndarray, " rows"], margin: float) -> int:
    """Returns 1 where a mean surely reaches a margin, -1 where it surely does not, else 0."""
    away = float(values.mean()) - margin
    return 0 if abs(away) <= SURE * _error(values) else 1 if away > 0 else -1


def _error(values: Float64[np.ndarray, " rows"]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf


def _loss_margins(margins: Margins) -> tuple[float, float, float]:
    return margins.retrieval, margins.short_accuracy, margins.short_cost


def truth(effects: Mapping[str, Effect], drop: float, margins: Margins) -> Truth:
    """Returns which verdicts are right.

    Args:
      effects: of every option by its label ("option 1", "option 3: llama3", `IMPLEMENTATION` where a fault may be).
      drop: see `Truth`.
      margins: the verdict's own.
    """
    fixes = {label: one.gain for label, one in effects.items() if one.gain >= margins.gain and _qualifies(one, margins)}
    best = max(fixes.values(), default=0.0)
    right = {label for label, gain in fixes.items() if gain >= best - margins.gain}
    exact = effects.get(IMPLEMENTATION)
    if exact is not None and exact.gain >= margins.gain:
        right.add(IMPLEMENTATION)
    edge = any(_at_edge(one, margins) for one in effects.values())
    if not right:
        right = {OUTSIDE if drop >= margins.gain else NO_FAULT}
        edge |= _near(drop, margins.gain)
    null = all(one.gain < margins.gain for one in effects.values())
    return Truth(effects, drop, frozenset(right), null, edge)


def _qualifies(one: Effect, margins: Margins) -> bool:
    losses = (one.retrieval_loss, one.short_loss, one.short_cost)
    return all(loss <= margin for loss, margin in zip(losses, _loss_margins(margins), strict=True))


def _near(value: float, margin: float) -> bool:
    return abs(value - margin) < EDGE * margin


def _at_edge(one: Effect, margins: Margins) -> bool:
    """Returns whether a small change of one number would make an option a fix, or no fix any more."""
    numbers = [(one.gain, margins.gain, 1.0)]
    losses = (one.retrieval_loss, one.short_loss, one.short_cost)
    numbers += [(loss, margin, -1.0) for loss, margin in zip(losses, _loss_margins(margins), strict=True)]
    close = [_near(value, margin) for value, margin, _ in numbers]
    good = [(value - margin) * sign >= 0 for value, margin, sign in numbers]
    return any(close) and all(near or fine for near, fine in zip(close, good, strict=True))


def best_arm(effects: Mapping[str, float]) -> str:
    """Returns what the baseline names: the option with the largest mean gain, whatever it is."""
    return max(effects, key=effects.__getitem__)


def kind_of(label: str) -> str:
    """Returns the verdict of a label: "option 3" of "option 3: llama3"."""
    return label.split(":")[0]


def outcome(label: str, right: frozenset[str] | Sequence[str], allowed: frozenset[str]) -> str:
    """Returns "right", "wrong" or "undetermined".

    Args:
      label: of the verdict, with the transform that it names.
      right: labels that are right by the truth.
      allowed: verdicts that the family allows.
    """
    if label == UNDETERMINED:
        return UNDETERMINED
    return "right" if label in right and kind_of(label) in allowed else "wrong"


def is_named(label: str) -> bool:
    """Returns whether a verdict names something to change: what makes it a false alarm where nothing is to be won."""
    return label not in (UNDETERMINED, OUTSIDE, NO_FAULT)
