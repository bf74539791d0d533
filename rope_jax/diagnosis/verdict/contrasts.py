"""Paired contrasts: what one configuration does against another, on the same contexts and the same rows of text.

Contexts and rows are the units that vary, never questions or tokens. Several models are rows of their own axis from
five on; fewer are taken as they are and averaged, so that a contrast speaks of these models alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float64

from rope_jax.diagnosis.evaluation.panel import LIMIT, PRECISION, Panel, Reach, Values
from rope_jax.diagnosis.verdict.answers import Answer, Price, Shift
from rope_jax.statistics import intervals
from rope_jax.statistics.intervals import Estimate

__all__ = ["MODELS", "TEXT", "Contrasts", "Paired", "above", "few_averaged", "weights_of"]

MODELS = 5
"""From so many models on they are units of a verdict; fewer do not tell how models vary."""
TEXT = "long loss of text"
_Kind = Literal["log_odds", "accuracy"]
_CEILING: Mapping[_Kind, float] = {"log_odds": LIMIT, "accuracy": 1.0}
_UNMEASURED = Estimate(float("nan"), None, None)


@dataclasses.dataclass(frozen=True, eq=False)
class Paired:
    """Differences of two configurations, one a model and unit.

    Attributes:
      values: `[models, units]`; no units where something was not measured.
      unseen: by how much a context that fails would differ, where none of either configuration has failed.
    """

    values: Values
    unseen: float = 0.0

    @property
    def units(self) -> int:
        return self.values.shape[1]

    def estimate(self, confidence: float, seed: int = 0) -> Estimate:
        """Returns the mean and its interval; not a number where nothing was measured."""
        if not self.units:
            return _UNMEASURED
        return intervals.clustered(self.values, confidence=confidence, seed=seed, unseen=self.unseen)


def above(value: Estimate, margin: float) -> Answer:
    """Returns whether a value lies above a margin: yes or no only where its whole interval says so."""
    if value.low is None or value.high is None:
        return "not resolved"
    return "yes" if value.low > margin else "no" if value.high <= margin else "not resolved"


def weights_of(used: tuple[str, ...]) -> dict[str, float]:
    """Returns what order and binding count together: half each, or the one that was learned all.

    >>> weights_of(("retrieval", "binding", "order"))
    {'order': 0.5, 'binding': 0.5}
    >>> weights_of(("retrieval",))
    {}
    """
    learned = [task for task in PRECISION if task in used]
    return {task: 1 / len(learned) for task in learned}


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
        return weights_of(self.used)

    def estimate(self, paired: Paired) -> Estimate:
        """Returns a contrast with its interval."""
        return paired.estimate(self.confidence, self.seed)

    def task(self, after: Panel, before: Panel, task: str, *, kind: _Kind = "log_odds", was: Reach = "long") -> Paired:
        """Returns `after - before` of one task at the target length, nats or accuracy.

        Args:
          after: one configuration.
          before: the other.
          task: which.
          kind: of outcome.
          was: at which length `before` is taken; at another than the target its contexts are other draws.
        """
        return _difference(after, before, lambda panel, reach: _of_task(panel, kind, reach, task), kind, was=was)

    def together(self, after: Panel, before: Panel, *, kind: _Kind = "log_odds") -> Paired:
        """Returns `after - before` of order and binding at the target length by their weights.

        Where neither was learned, the fall of the long loss of text; nothing there where accuracy is asked for.
        """
        weights = self.weights
        if not weights:
            return Paired(np.zeros((1, 0))) if kind == "accuracy" else self.loss(before, after, "long")
        return _difference(after, before, lambda panel, reach: _weighted(panel, kind, reach, weights), kind)

    def shift(self, after: Panel, before: Panel, task: str, *, was: Reach = "long") -> Shift:
        """Returns `after - before` of one task, in log-odds and in accuracy; see `task`."""
        return Shift(
            self.estimate(self.task(after, before, task, was=was)),
            self.estimate(self.task(after, before, task, kind="accuracy", was=was)),
        )

    def shift_together(self, after: Panel, before: Panel) -> Shift:
        """Returns `after - before` of order and binding together; see `together`."""
        accuracy = self.together(after, before, kind="accuracy")
        return Shift(self.estimate(self.together(after, before)), self.estimate(accuracy) if self.weights else None)

    def fall(self, original: Panel, after: Panel, task: str) -> Paired:
        """Returns the fall of one task from the original at `L` to another configuration at `L'`, nats."""
        rise = self.task(after, original, task, was="short")
        return Paired(-rise.values, rise.unseen)

    def short_accuracy(self, after: Panel, before: Panel) -> Paired:
        """Returns the fall of the accuracy of all tasks used at the trained length; a context that fails, fails one."""
        equal = {task: 1 / len(self.used) for task in self.used}
        fall = _difference(before, after, lambda panel, reach: _weighted(panel, "accuracy", "short", equal), "accuracy")
        return Paired(fall.values, fall.unseen / max(1, len(self.used)))

    def loss(self, after: Panel, before: Panel, reach: Reach, *, was: Reach | None = None) -> Paired:
        """Returns `after - before` of the loss of text, nats a token, row by row."""
        one, other = after.loss.get(reach), before.loss.get(was or reach)
        if one is None or other is None:
            return Paired(np.zeros((1, 0)))
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
    after: Panel, before: Panel, of: Callable[[Panel, Reach], Values | None], kind: _Kind, *, was: Reach = "long"
) -> Paired:
    one, other = of(after, "long"), of(before, was)
    if one is None or other is None:
        return Paired(np.zeros((1, 0)))
    contexts = min(one.shape[1], other.shape[1])
    one, other = one[:, :contexts], other[:, :contexts]
    unseen = 0.0 if was == "long" and _same(after, before, contexts) else _unseen(one, other, _CEILING[kind])
    return Paired(few_averaged(one - other), unseen)


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


def _of_task(panel: Panel, kind: _Kind, reach: Reach, task: str) -> Values | None:
    return getattr(panel, kind).get(reach, {}).get(task)


def _weighted(panel: Panel, kind: _Kind, reach: Reach, weights: Mapping[str, float]) -> Values | None:
    parts = [(weight, _of_task(panel, kind, reach, task)) for task, weight in weights.items()]
    if not parts or any(values is None for _, values in parts):
        return None
    return sum((weight * values for weight, values in parts if values is not None), start=np.zeros((1, 1)))
