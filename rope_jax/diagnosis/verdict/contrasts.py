"""Paired contrasts: what one configuration does against another, on the same contexts and the same rows of text.

Contexts and rows are the units that vary, never questions or tokens. Several models are rows of their own axis from
five on; fewer are taken as they are and averaged, so that a contrast speaks of these models alone.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float64

from rope_jax.diagnosis.evaluation.panel import LIMIT, PRECISION, Panel, Reach, Values
from rope_jax.diagnosis.verdict.answers import TEXT, TOGETHER, Answer, Price, Shift
from rope_jax.statistics import intervals
from rope_jax.statistics.intervals import Estimate

__all__ = ["MODELS", "MOST", "Contrasts", "Paired", "above", "few_averaged"]

MODELS = 5
"""From so many models on they are units of a verdict; fewer do not tell how models vary."""
MOST = 100_000
"""Contexts or rows that could be asked; what needs more lies at its margin."""
_Kind = Literal["log_odds", "accuracy"]
_CEILING: Mapping[_Kind, float] = {"log_odds": LIMIT, "accuracy": 1.0}


@dataclasses.dataclass(frozen=True, eq=False)
class Paired:
    """Differences of two configurations, one a model and unit.

    Attributes:
      values: `[models, units]`; no units where something was not measured.
      unseen: by how much a context that fails would differ, where none of either configuration has failed.
      most: that their mean can be, either way: 1 of accuracies.
    """

    values: Values
    unseen: float = 0.0
    most: float = math.inf

    @property
    def units(self) -> int:
        return self.values.shape[1]


_UNMEASURED = Paired(np.zeros((1, 0)))


def above(value: Estimate, margin: float) -> Answer:
    """Returns whether a value lies above a margin: yes or no only where its whole interval says so."""
    if value.low is None or value.high is None:
        return "not resolved"
    return "yes" if value.low > margin else "no" if value.high <= margin else "not resolved"


def few_averaged(values: Values) -> Float64[np.ndarray, "clusters _"]:
    """Returns values whose models are units, or, of fewer than `MODELS`, their mean: of these models alone."""
    return values if values.shape[0] >= MODELS else values.mean(axis=0, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Contrasts:
    """Makes every contrast of one verdict, all with the same confidence.

    Attributes:
      used: tasks that were learned.
      confidence: of every interval.
      seed: of the resampling.
    """

    used: tuple[str, ...]
    confidence: float
    seed: int = 0

    @property
    def weights(self) -> dict[str, float]:
        """What order and binding count together: half each, or the one that was learned all."""
        learned = [task for task in PRECISION if task in self.used]
        return {task: 1 / len(learned) for task in learned}

    @property
    def decisive(self) -> str:
        """What changes are ranked by: order and binding together or, where neither was learned, text."""
        return TOGETHER if self.weights else TEXT

    def estimate(self, paired: Paired) -> Estimate:
        """Returns the mean and its interval; not a number where nothing was measured."""
        return self._unbounded(paired).within(-paired.most, paired.most)

    def _unbounded(self, paired: Paired) -> Estimate:
        if not paired.units:
            return Estimate(math.nan, None, None)
        return intervals.clustered(paired.values, confidence=self.confidence, seed=self.seed, unseen=paired.unseen)

    def needed(self, paired: Paired, margin: float) -> int | None:
        """Returns how many units would take the margin out of the interval, were the mean to stay where it is.

        Half widths fall with the root of the number of units; those of a kind that was not seen by the rule of three.

        Returns:
          More than `MOST` where the mean lies at the margin; None for one unit, and where models vary beside the units.
        """
        value = self._unbounded(paired)
        if value.low is None or value.high is None or paired.values.shape[0] > 1:
            return None
        gap = abs(value.mean - margin)
        half = value.high - value.mean if value.mean <= margin else value.mean - value.low
        if paired.units * (half / MOST**0.5) ** 2 >= gap**2:
            return MOST + 1
        if paired.unseen * intervals.rule_of_three(paired.units, self.confidence) < half * (1 - 1e-9):
            return math.ceil(paired.units * (half / gap) ** 2)
        return math.ceil(math.log(1 - self.confidence) / math.log1p(-min(gap / paired.unseen, 1 - 1e-9)))

    def gain(self, after: Panel, before: Panel, by: str, *, kind: _Kind = "log_odds", was: Reach = "long") -> Paired:
        """Returns by how much `after` is ahead of `before` at the target length, nats or accuracy.

        Args:
          after: one configuration.
          before: the other.
          by: a task; `TOGETHER`, order and binding by their weights; or `TEXT`, the fall of the loss.
          kind: of outcome.
          was: at which length `before` is taken; at another than the target its contexts are other draws.
        """
        if by == TEXT:
            return self.loss(before, after, "long")
        return _difference(after, before, self.weights if by == TOGETHER else {by: 1.0}, kind, was=was)

    def together(self, after: Panel, before: Panel) -> Paired:
        """Returns the gain by what is decisive."""
        return self.gain(after, before, self.decisive)

    def shift(self, after: Panel, before: Panel, by: str, *, was: Reach = "long") -> Shift:
        """Returns the gain in log-odds and in accuracy; see `gain`."""
        accuracy = None if by == TEXT else self.gain(after, before, by, kind="accuracy", was=was)
        return Shift(
            self.estimate(self.gain(after, before, by, was=was)),
            None if accuracy is None else self.estimate(accuracy),
        )

    def fall(self, original: Panel, after: Panel, task: str) -> Paired:
        """Returns the fall of one task from the original at `L` to another configuration at `L'`, nats."""
        rise = self.gain(after, original, task, was="short")
        return Paired(-rise.values, rise.unseen)

    def short_accuracy(self, after: Panel, before: Panel) -> Paired:
        """Returns the fall of the accuracy of all tasks used at the trained length; a context that fails, fails one."""
        equal = {task: 1 / len(self.used) for task in self.used}
        fall = _difference(before, after, equal, "accuracy", at="short", was="short")
        return Paired(fall.values, fall.unseen / max(1, len(self.used)), fall.most)

    def loss(self, after: Panel, before: Panel, reach: Reach, *, was: Reach | None = None) -> Paired:
        """Returns `after - before` of the loss of text, nats a token, row by row."""
        one, other = after.loss.get(reach), before.loss.get(was or reach)
        if one is None or other is None:
            return _UNMEASURED
        rows = min(one.shape[1], other.shape[1])
        return Paired(few_averaged(one[:, :rows] - other[:, :rows]))

    def price(self, after: Panel, before: Panel) -> Price:
        """Returns what `after` costs against `before`."""
        return Price(
            self.estimate(self.short_accuracy(after, before)) if self.used else None,
            self.estimate(self.loss(after, before, "short")),
            self.estimate(self.loss(after, before, "long")),
        )


def _difference(
    after: Panel,
    before: Panel,
    weights: Mapping[str, float],
    kind: _Kind,
    *,
    at: Reach = "long",
    was: Reach = "long",
) -> Paired:
    one, other = _weighted(after, kind, at, weights), _weighted(before, kind, was, weights)
    if one is None or other is None:
        return _UNMEASURED
    contexts = min(one.shape[1], other.shape[1])
    one, other = one[:, :contexts], other[:, :contexts]
    unseen = 0.0 if at == was and _same(after, before, contexts) else _unseen(one, other, _CEILING[kind])
    return Paired(few_averaged(one - other), unseen, 1.0 if kind == "accuracy" else math.inf)


def _weighted(panel: Panel, kind: _Kind, reach: Reach, weights: Mapping[str, float]) -> Values | None:
    values = getattr(panel, kind).get(reach, {})
    if not weights or not weights.keys() <= values.keys():
        return None
    return sum((weight * values[task] for task, weight in weights.items()), start=np.zeros((1, 1)))


def _unseen(one: Values, other: Values, ceiling: float) -> float:
    """Returns by how much a context that fails would differ: all that there is to lose, where none was seen to fail.

    Contexts fail by what they hold: one of a kind that comes once in twelve is not among twenty in one draw of six.
    """
    difference = one - other
    alike = bool((difference == difference[:, :1]).all())
    none_failed = bool(min(one.min(initial=ceiling), other.min(initial=ceiling)) > ceiling / 2)
    return ceiling if alike or none_failed else 0.0


def _same(one: Panel, other: Panel, contexts: int) -> bool:
    """Returns whether two names stand for one configuration: equal to the last bit although contexts vary."""
    pairs = [
        (values[:, :contexts], other.log_odds[reach][task][:, :contexts])
        for reach, of_task in one.log_odds.items()
        for task, values in of_task.items()
        if task in other.log_odds.get(reach, {})
    ]
    return all(np.array_equal(a, b) for a, b in pairs) and any(np.ptp(a) > 0 for a, _ in pairs)
