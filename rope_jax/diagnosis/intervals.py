"""95 % intervals over rows of text. Rows are the unit: tokens of one row share its story and are never resampled."""

import dataclasses

import numpy as np
from scipy import stats

FEW_ROWS = 20
CONFIDENCE = 0.95
_RESAMPLES = 4000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over rows with its interval, which is None for a single row.

    Attributes:
      mean: the mean.
      low: lower end of the 95 % interval.
      high: upper end.
    """

    mean: float
    low: float | None
    high: float | None


def method(rows: int) -> str:
    """Returns, in words, how intervals over this many rows are made."""
    if rows < 2:
        return "one row: no interval"
    if rows < FEW_ROWS:
        return f"t interval over {rows} rows (fewer than {FEW_ROWS}), which assumes row means are near normal"
    return f"percentile bootstrap, {_RESAMPLES} resamples of {rows} whole rows"


def estimate(per_row: np.ndarray, *, seed: int = 0) -> Estimate:
    """Returns the mean of one number a row and its 95 % interval.

    With fewer than `FEW_ROWS` rows the interval is Student's t on row means; else a percentile bootstrap over rows.

    Args:
      per_row: float `[rows]`; for a difference of two cells, the difference in each row (paired).
      seed: of the resampling.
    """
    values = np.asarray(per_row, np.float64)
    mean, rows = float(values.mean()), len(values)
    if rows < 2:
        return Estimate(mean, None, None)
    if rows < FEW_ROWS:
        half = stats.t.ppf((1 + CONFIDENCE) / 2, rows - 1) * values.std(ddof=1) / np.sqrt(rows)
        return Estimate(mean, float(mean - half), float(mean + half))
    picks = np.random.default_rng(seed).integers(0, rows, (_RESAMPLES, rows))
    low, high = np.quantile(values[picks].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean, float(low), float(high))
