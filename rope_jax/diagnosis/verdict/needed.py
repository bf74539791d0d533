"""How many contexts or rows of text would resolve what is open, computed from how wide its interval is now."""

import math

from rope_jax.diagnosis.verdict.contrasts import Paired
from rope_jax.statistics.intervals import Estimate, rule_of_three

__all__ = ["MOST", "in_words", "needed"]

MOST = 100_000
"""Contexts or rows; what needs more lies at its margin."""


def needed(value: Estimate, margin: float, of: Paired, confidence: float) -> int | None:
    """Returns how many units would take the margin out of the interval, were the mean to stay where it is.

    Half widths fall with the root of the number of units; those of a kind that was not seen by the rule of three.

    Args:
      value: the interval now.
      margin: that it holds.
      of: what it is the interval of.
      confidence: of the interval.

    Returns:
      More than `MOST` where the mean lies at the margin; None for one unit, and where models vary beside the units.
    """
    if value.low is None or value.high is None or of.values.shape[0] > 1:
        return None
    gap = abs(value.mean - margin)
    half = value.high - value.mean if value.mean <= margin else value.mean - value.low
    if of.units * (half / MOST**0.5) ** 2 >= gap**2:
        return MOST + 1
    floor = of.unseen * rule_of_three(of.units, confidence)
    if floor < half * (1 - 1e-9):
        return math.ceil(of.units * (half / gap) ** 2)
    return math.ceil(math.log(1 - confidence) / math.log1p(-min(gap / of.unseen, 1 - 1e-9)))


def in_words(number: int, counted: str) -> str:
    """Returns a number to two digits, upward, and what is counted.

    >>> in_words(7, "contexts"), in_words(183, "contexts"), in_words(4021, "rows of text"), in_words(MOST + 1, "rows")
    ('7 contexts', '190 contexts', '4,100 rows of text', 'more than 100,000 rows')
    """
    if number > MOST:
        return f"more than {MOST:,} {counted}"
    step = 10 ** max(0, len(str(number)) - 2)
    return f"{math.ceil(number / step) * step:,} {counted}"
