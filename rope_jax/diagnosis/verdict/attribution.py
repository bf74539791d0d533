"""Which part of a retrofit costs what: paired contrasts of cells, the 2 x 2, and the symptom.

A contrast is taken haystack by haystack on the same items; haystacks and rows of text are the units that vary, never
questions or tokens. With several models each is a row of its own axis.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.cell_runs import Scores
from rope_jax.diagnosis.evaluation.cells import Cell
from rope_jax.diagnosis.tasks.subject import Reach
from rope_jax.statistics import intervals, multiplicity
from rope_jax.statistics.intervals import Estimate

Table = Mapping[Cell, Sequence[Scores]]
"""Scores of every cell, one a model."""

Values = Float64[np.ndarray, "models rows"]


@dataclasses.dataclass(frozen=True)
class Used:
    """The probes that passed their gate.

    Attributes:
      precision: those that ask where something stands.
      retrieval: whether `ret` passed.
      refused: why the others are left out, by name.
      accuracy: at the trained length on the unchanged model, by name.
    """

    precision: tuple[str, ...]
    retrieval: bool
    refused: Mapping[str, str]
    accuracy: Mapping[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        return (("ret",) if self.retrieval else ()) + self.precision


def gated(unchanged: Sequence[Scores], *, gate: float) -> Used:
    """Returns the probes that the unchanged model has learned: accuracy of at least `gate` at the trained length."""
    accuracy = {
        name: float(np.mean([scores.accuracy["short"][name] for scores in unchanged]))
        for name in unchanged[0].accuracy.get("short", {})
    }
    learned = {name for name, value in accuracy.items() if value >= gate}
    return Used(
        precision=tuple(name for name in probes.PRECISION if name in learned),
        retrieval=probes.RETRIEVAL in learned,
        refused={
            name: f"not learned: right in {value:.1%} at the trained length, {gate:.0%} needed"
            for name, value in accuracy.items()
            if name not in learned
        },
        accuracy=accuracy,
    )


def outcome(scores: Sequence[Scores], reach: Reach, names: Sequence[str], *, accuracy: bool = False) -> Values:
    """Returns the mean outcome over `names` of every haystack, nats (or share right), `[models, haystacks]`."""
    return np.stack(
        [
            np.mean([(one.accuracy if accuracy else one.log_odds)[reach][name] for name in names], axis=0)
            for one in scores
        ]
    )


def text_loss(scores: Sequence[Scores], reach: Reach) -> Values:
    """Returns the loss of every row of text, nats a counted token, `[models, rows]`."""
    return np.stack([one.loss[reach] for one in scores])


@dataclasses.dataclass(frozen=True)
class Effect:
    """What one change does, paired item by item with the status quo.

    Attributes:
      precision: gain of the long precision probes, nats; positive is better.
      precision_accuracy: the same in share of right answers.
      retrieval_loss: fall of long retrieval, nats; positive is worse.
      short_loss: fall of the accuracy of all probes used at the trained length; positive is worse.
      short_cost: rise of the loss of text below the trained length, nats a token; positive is worse.
      long_gain: fall of the loss of text beyond it, nats a token; positive is better.
      by_probe: gain of every probe used at the target length, nats.
    """

    precision: Estimate
    precision_accuracy: Estimate
    retrieval_loss: Estimate
    short_loss: Estimate
    short_cost: Estimate
    long_gain: Estimate
    by_probe: Mapping[str, Estimate]


def precision_gain(changed: Sequence[Scores], before: Sequence[Scores], used: Used) -> Values:
    """Returns the gain of the long precision probes in every haystack, nats, `[models, haystacks]`."""
    return outcome(changed, "long", used.precision) - outcome(before, "long", used.precision)


def effect(changed: Sequence[Scores], before: Sequence[Scores], used: Used, *, confidence: float) -> Effect:
    """Returns the effect of going from `before` to `changed`.

    Args:
      changed: scores after the change, one a model.
      before: scores before it, on the same items.
      used: the probes to look at.
      confidence: of every interval.
    """

    def estimate(difference: Values) -> Estimate:
        return intervals.clustered(difference, confidence=confidence)

    def gain(reach: Reach, names: Sequence[str], *, accuracy: bool = False) -> Values:
        return outcome(changed, reach, names, accuracy=accuracy) - outcome(before, reach, names, accuracy=accuracy)

    return Effect(
        precision=estimate(precision_gain(changed, before, used)),
        precision_accuracy=estimate(gain("long", used.precision, accuracy=True)),
        retrieval_loss=estimate(-gain("long", [probes.RETRIEVAL])),
        short_loss=estimate(-gain("short", used.names, accuracy=True)),
        short_cost=estimate(text_loss(changed, "short") - text_loss(before, "short")),
        long_gain=estimate(text_loss(before, "long") - text_loss(changed, "long")),
        by_probe={name: estimate(gain("long", [name])) for name in used.names},
    )


def shapley(
    corners: Mapping[frozenset[str], Sequence[Scores]], used: Used, reach: Reach = "long"
) -> dict[str, Estimate]:
    r"""Returns how the precision lost to scaling and bias together divides between them, nats.

    .. math:: \phi_s = \tfrac12\big[v(s) - v(\emptyset)\big] + \tfrac12\big[v(s, b) - v(b)\big]

    with `v` the mean log-odds of the precision probes; `interaction` is `v(s, b) - v(s) - v(b) + v(none)`.

    Args:
      corners: scores of the 2 x 2, by which of "scaling" and "bias" are in place.
      used: the probes to look at.
      reach: at which length.
    """
    value = {parts: outcome(scores, reach, used.precision) for parts, scores in corners.items()}
    none, s, b, both = (value[frozenset(parts)] for parts in ((), ("scaling",), ("bias",), ("scaling", "bias")))
    return {
        "scaling": intervals.clustered(((s - none) + (both - b)) / 2),
        "bias": intervals.clustered(((b - none) + (both - s)) / 2),
        "interaction": intervals.clustered(both - s - b + none),
    }


@dataclasses.dataclass(frozen=True)
class Symptom:
    """What is wrong with the status quo, against the unchanged model at the trained length; it ranks no option.

    Attributes:
      precision_drop: fall of the precision probes from short to long, nats.
      retrieval_drop: the same of retrieval.
      specific: the difference of the two: above zero, precision suffers more than retrieval.
      by_probe: drop of every probe used, nats.
      accuracy: of every probe used in the status quo, by reach.
      p_values: of no drop, by probe, adjusted for asking of several probes (Holm).
    """

    precision_drop: Estimate
    retrieval_drop: Estimate
    specific: Estimate
    by_probe: Mapping[str, Estimate]
    accuracy: Mapping[str, Mapping[str, Estimate]]
    p_values: Mapping[str, float] = dataclasses.field(default_factory=dict)


def symptom(status_quo: Sequence[Scores], unchanged: Sequence[Scores], used: Used, *, share: float = 1.0) -> Symptom:
    """Returns how far the status quo at the target length falls behind the unchanged model at the trained one.

    Short and long haystacks hold the same numbers of facts but are other draws, row by row independent.

    Args:
      status_quo: its scores, one a model.
      unchanged: scores of the models as trained.
      used: the probes to look at.
      share: of the level that this look at the data may spend; intervals and p-values allow for the others.
    """
    estimate = functools.partial(intervals.clustered, confidence=multiplicity.shared_confidence(share))

    def drop(names: Sequence[str]) -> Values:
        return outcome(unchanged, "short", names) - outcome(status_quo, "long", names)

    return Symptom(
        precision_drop=estimate(drop(used.precision)),
        retrieval_drop=estimate(drop([probes.RETRIEVAL])),
        specific=estimate(drop(used.precision) - drop([probes.RETRIEVAL])),
        by_probe={name: estimate(drop([name])) for name in used.names},
        accuracy={
            reach: {name: estimate(outcome(status_quo, reach, [name], accuracy=True)) for name in used.names}
            for reach in ("short", "long")
        },
        p_values=multiplicity.holm(
            {name: min(1.0, multiplicity.mean_p_value(drop([name])) / share) for name in used.names}
        ),
    )
