"""Whether a prediction ranks the cells as they were measured: Spearman's correlation within groups."""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import stats

from rope_jax.statistics import intervals
from rope_jax.statistics.intervals import CONFIDENCE, Estimate

_RESAMPLES = 1000
_DIGITS = 12


@dataclasses.dataclass(frozen=True)
class RankAgreement:
    """How well predicted ranks agree with measured ones.

    Attributes:
      correlation: mean over the groups of Spearman's correlation across cells, with its interval over clusters; None
        where no group has an order on both sides.
      groups: how many groups counted.
      constant: how many were left out because one side is the same in every cell.
    """

    correlation: Estimate | None
    groups: int
    constant: int


def within_group_spearman(
    predicted: Float[np.ndarray, "cells groups"],
    measured: Float[np.ndarray, "clusters cells groups"],
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> RankAgreement:
    r"""Returns Spearman's correlation of prediction and measurement across cells, within each group, then averaged.

    .. math:: \bar\rho = \frac1G \sum_g \operatorname{corr}_c\big(\operatorname{rank}_c p_{cg},
        \operatorname{rank}_c \bar m_{cg}\big)

    Ties share their middle rank. Within a group (an offset), what all cells have in common does not count: that far is
    harder than near is no credit to a prediction.

    The interval resamples whole clusters, averages and ranks again. Cells and groups are held fixed: it says nothing of
    other retrofits. Noise in the measurement pulls a rank correlation toward zero; mean and interval speak of what as
    many clusters give on average, not of a measurement without noise. A resample is noisier than the data, so resampled
    correlations lie too near zero: the interval spans both their quantiles and the same moved back onto the estimate,
    widened as those of `intervals.estimate`. Simulated (6 to 48 clusters, 6 and 16 cells) it holds the truth in
    93-100 % where 95 % is meant; the percentile interval alone falls below 50 % where correlations are high.

    Args:
      predicted: `[cells, groups]`, in any unit; only its order within a group counts.
      measured: `[clusters, cells, groups]`, averaged over clusters (contexts, or models) before ranking.
      confidence: of the interval, between 0 and 1.
      seed: of the resampling.

    Raises:
      ValueError: if a value is not finite, or there are no clusters.

    >>> within_group_spearman(np.array([[1.0], [2.0], [3.0]]), np.array([[[0.1], [0.4], [0.2]]]))
    RankAgreement(correlation=Estimate(mean=0.5, low=None, high=None), groups=1, constant=0)
    """
    clusters = len(measured)
    if not clusters or not (np.isfinite(predicted).all() and np.isfinite(measured).all()):
        raise ValueError("ranks need at least one cluster and finite values")
    measured = measured.astype(np.float64) / (np.abs(measured).max(initial=0) or 1.0)
    ranks = _centred_ranks(predicted.astype(np.float64))
    per_group = _correlations(ranks, measured.mean(axis=0))
    counted = np.isfinite(per_group)
    constant = int((~counted).sum())
    if not counted.any():
        return RankAgreement(None, 0, constant)
    mean = float(per_group[counted].mean())
    if clusters < 2:
        return RankAgreement(Estimate(mean, None, None), int(counted.sum()), constant)
    weights = intervals.resample_weights(np.random.default_rng(seed), clusters, _RESAMPLES)
    resampled = _correlations(ranks[:, counted], np.tensordot(weights, measured[:, :, counted], axes=1))
    resampled = resampled[np.isfinite(resampled).any(axis=1)]  # a resample may be constant where the data are not
    low, high = _limits(mean, np.nanmean(resampled, axis=1), clusters, confidence)
    return RankAgreement(Estimate(mean, low, high), int(counted.sum()), constant)


def _limits(mean: float, resampled: np.ndarray, clusters: int, confidence: float) -> tuple[float, float]:
    ends = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    widen = intervals.small_sample_factor(clusters, confidence)
    both = [mean + widen * (ends - centre) for centre in (mean, resampled.mean())]
    return float(max(min(low for low, _ in both), -1)), float(min(max(high for _, high in both), 1))


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    ranks = stats.rankdata(values, axis=-2)
    return ranks - ranks.mean(axis=-2, keepdims=True)


def _correlations(ranks: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Returns the correlation of every group, `[..., groups]`; NaN where one side is constant."""
    others = _centred_ranks(np.round(measured, _DIGITS))  # equal sums of other parts differ in the last digit
    scale = np.sqrt((ranks**2).sum(axis=-2) * (others**2).sum(axis=-2))
    return np.where(scale > 0, (ranks * others).sum(axis=-2) / np.where(scale > 0, scale, 1), np.nan)
