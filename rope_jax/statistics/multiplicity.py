"""Several comparisons at once: p-values that agree with the intervals, Holm's correction, simultaneous confidence."""

import itertools
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from rope_jax.statistics import intervals

Name = TypeVar("Name", bound=Hashable)

SMALLEST = 1 / intervals.RESAMPLES
"""No p-value is stated below this: the resampling behind it cannot tell."""


def simultaneous_confidence(count: int, confidence: float = 0.95) -> float:
    r"""Returns the confidence each of several intervals needs for all of them to hold together (Bonferroni).

    .. math:: 1 - (1 - c)/n

    Args:
      count: how many intervals, 1 or more; they may depend on each other in any way.
      confidence: that all hold.

    Raises:
      ValueError: if `count` is below 1.

    >>> simultaneous_confidence(5)
    0.99
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    return 1 - (1 - confidence) / count


def mean_p_value(values: Float[np.ndarray, "*seeds rows"], *, seed: int = 0) -> float:
    """Returns the two-sided p-value of a mean of zero: the largest level at which the interval leaves zero out.

    The interval is that of `intervals.estimate` for `[rows]`: Student's t below 20 rows, where this is the t test's
    p-value; the widened bootstrap from 20 on. For `[seeds, rows]` it is that of `intervals.clustered`. So `p < 0.05`
    says the same as a 95 % interval without zero, made with the same `seed`.

    Args:
      values: `[rows]` or `[seeds, rows]`; for a difference of two cells, the paired difference.
      seed: of the resampling.

    Returns:
      From `SMALLEST` to 1; 1 for a single row, which has no interval.

    Raises:
      ValueError: without values.

    >>> round(mean_p_value(np.array([1.0, 2.0, 3.0])), 4)  # t = 2 * sqrt(3), two degrees of freedom
    0.0742
    """
    of_confidence = intervals.limits(values, seed=seed)
    if of_confidence is None:
        return 1.0

    def without_zero(level: float) -> bool:
        low, high = of_confidence(1 - level)
        return low > 0 or high < 0

    if without_zero(SMALLEST):
        return SMALLEST
    inside, outside = SMALLEST, 1.0  # levels; at 1 the interval is a point
    for _ in range(30):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if without_zero(middle) else (middle, outside)
    return outside


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    r"""Returns Holm's step-down adjusted p-values, in the order given.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min\big(1, (n - j + 1)\, p_{(j)}\big)

    Rejecting where the adjusted value is at most `alpha` errs, in any of the comparisons, with probability of at most
    `alpha`, however they depend on each other.

    Args:
      p_values: by name of the comparison, each from 0 to 1.

    Raises:
      ValueError: if a p-value is not from 0 to 1.

    Source: Holm, Scand. J. Stat. 6 (1979) 65.

    >>> holm({"alibi": 0.01, "t5": 0.04, "ntk": 0.03})
    {'alibi': 0.03, 't5': 0.06, 'ntk': 0.06}
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"the p-value of {name} must be from 0 to 1, got {p}")
    order = sorted(p_values, key=p_values.__getitem__)
    steps = (min(1.0, (len(order) - passed) * p_values[name]) for passed, name in enumerate(order))
    adjusted = dict(zip(order, itertools.accumulate(steps, max), strict=True))
    return {name: adjusted[name] for name in p_values}
