"""Joint resamples of paired outcomes: the same for all that is compared, in halves that share no context."""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float, Float64

from rope_jax.statistics.intervals import RESAMPLES, resample_weights

__all__ = ["JointResamples", "joint_resamples"]

_FEWEST_HALVED = 4  # with fewer contexts a half has no spread of its own


@dataclasses.dataclass(frozen=True, eq=False)
class JointResamples:
    """Weights of every context in each resample, in two halves.

    The contexts are split at random, anew in every resample, and each half is resampled by itself: what is chosen on
    one half is valued on contexts that had no say in it. Below four contexts both halves are the whole.

    Attributes:
      plain: weights of the contexts in either half before it is resampled, each summing to 1, `[resamples, contexts]`:
        to choose by.
      halves: the same after it is resampled: to value by.
      sizes: share of the contexts in either half.
      of_models: weights of the models, `[resamples, models]`; of one model, ones.
      stretch: by how much a resample's deviation is to be enlarged, `[resamples]`: it makes up for the spread that
        resamples of few units lack, and for how little few units tell of it, so that quantiles are as far out as
        Student's t.
    """

    plain: tuple[Float64[np.ndarray, "R contexts"], Float64[np.ndarray, "R contexts"]]
    halves: tuple[Float64[np.ndarray, "R contexts"], Float64[np.ndarray, "R contexts"]]
    sizes: tuple[float, float]
    of_models: Float64[np.ndarray, "R models"]
    stretch: Float64[np.ndarray, " R"]

    def mean(
        self, weights: Float64[np.ndarray, "R contexts"], values: Float[np.ndarray, "models units things"]
    ) -> Float64[np.ndarray, "R things"]:
        """Returns the mean of each thing in every resample.

        Args:
          weights: one of `plain` or of `halves`.
          values: `[models, units, things]` on all contexts, or on the first of them.
        """
        models, units, things = values.shape
        if units < weights.shape[1]:
            weights = weights[:, :units]
            total = weights.sum(axis=1, keepdims=True)
            weights = np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / units)
        means = weights @ np.moveaxis(values, 0, 1).reshape(units, models * things)
        return np.einsum("rm,rmt->rt", self.of_models, means.reshape(-1, models, things))


@functools.lru_cache(maxsize=2)
def joint_resamples(contexts: int, models: int = 1, *, seed: int = 0, resamples: int = RESAMPLES) -> JointResamples:
    r"""Returns joint resamples of contexts, and of models where there are several.

    .. math:: \text{stretch} = \sqrt{\frac{h}{h-1}}\,\sqrt{\frac{\nu}{\chi^2_\nu}}

    with `h` the smaller of the units that are resampled together (half of the contexts, or the models) and `ν` one less
    than the smaller number of units: with it a mean of normal values has the quantiles of Student's t.

    Args:
      contexts: how many, 2 or more.
      models: how many, all of which have seen the same contexts.
      seed: of the resampling.
      resamples: how many.

    Raises:
      ValueError: with fewer than two contexts.
    """
    if contexts < 2:
        raise ValueError(f"one context does not vary, got {contexts}")
    rng = np.random.default_rng(seed)
    if contexts < _FEWEST_HALVED:
        group, whole = contexts, resample_weights(rng, contexts, resamples)
        even = np.full((resamples, contexts), 1 / contexts)
        plain, halves, sizes = (even, even), (whole, whole), (0.5, 0.5)
    else:
        group = contexts // 2
        shuffled = rng.random((resamples, contexts)).argsort(axis=1)
        first, second = shuffled[:, :group], shuffled[:, group:]
        halves = (_resampled(rng, first, contexts), _resampled(rng, second, contexts))
        plain = (_scattered(1 / group, first, contexts), _scattered(1 / (contexts - group), second, contexts))
        sizes = (group / contexts, 1 - group / contexts)
    fewest, smallest = (contexts, group) if models == 1 else (min(contexts, models), min(group, models))
    stretch = math.sqrt(smallest / (smallest - 1)) * np.sqrt((fewest - 1) / rng.chisquare(fewest - 1, resamples))
    return JointResamples(plain, halves, sizes, resample_weights(rng, models, resamples), stretch)


def _resampled(rng: np.random.Generator, places: np.ndarray, width: int) -> np.ndarray:
    return _scattered(resample_weights(rng, places.shape[1], len(places)), places, width)


def _scattered(weights: np.ndarray | float, places: np.ndarray, width: int) -> np.ndarray:
    result = np.zeros((len(places), width))
    np.put_along_axis(result, places, weights, axis=1)
    return result
