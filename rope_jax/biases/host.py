"""What a bias is, and the numbers of the published ones, on the host: ALiBi's slopes, and where T5's buckets begin."""

import functools
import math
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rope_jax.errors import ScalingError


@runtime_checkable  # tests check annotations
class Bias(Protocol):
    """A pytree that gives every head's bias at an offset.

    A bias that is one constant from some offset on also has `flat_from`, that offset; one without it (KERPLE) changes
    forever. A bias whose attention has no `1 / sqrt(head_dim)` has `unscaled_logits = True`.
    """

    @property
    def num_heads(self) -> int:
        """Query heads."""

    def __call__(self, offset: Any, /) -> Any:
        """Returns float32 `[heads, *offset.shape]`, nats, at `offset = i - j`, query minus key position."""


def _check_heads(num_heads: int) -> None:
    if num_heads < 1:
        raise ScalingError(f"num_heads must be at least 1, got {num_heads}")


def paper_slopes(num_heads: int) -> np.ndarray:
    r"""Returns ALiBi's slopes, float64 `[num_heads]`, by the published rule for every head count.

    .. math:: m_h = 2^{-8(h+1)/n} \text{ for } n = 2^k

    For other counts: the slopes of the next lower power of two, then every second slope of the doubled set.

    Source: Press et al., arXiv 2108.12409, section 3, and its published code.

    >>> paper_slopes(8)[[0, 7]].tolist()
    [0.5, 0.00390625]
    """
    _check_heads(num_heads)
    lower = 2 ** int(math.log2(num_heads))
    slopes = geometric_slopes(lower)
    if lower == num_heads:
        return slopes
    return np.concatenate([slopes, geometric_slopes(2 * lower)[::2][: num_heads - lower]])


def geometric_slopes(num_heads: int) -> np.ndarray:
    """Returns `2^(-8(h+1)/n)` for every `n`: a variant some libraries use, up to 2.3 times off where `n` is not 2^k."""
    _check_heads(num_heads)
    return 2.0 ** (-8 * (np.arange(num_heads) + 1) / num_heads)


@functools.cache
def bucket_starts(num_buckets: int, max_distance: int) -> tuple[int, ...]:
    r"""Returns the smallest offset in each of `num_buckets` one-sided buckets.

    The first half hold one offset each; bucket `e + k` of the rest starts at the first integer not below

    .. math:: e\,(D/e)^{k/(n-e)}, \quad e = \lfloor n/2 \rfloor

    found in integers, so an edge that falls on a whole number lands where real arithmetic puts it; code that takes
    float32 logarithms may put such an edge one offset later.

    Args:
      num_buckets: `n`, at least 2.
      max_distance: `D`, above `n // 2`.

    Source: Raffel et al., arXiv 1910.10683, section 2.1, and its published code.

    >>> bucket_starts(32, 128)[-1], bucket_starts(32, 32768)[-1]
    (113, 20347)
    """
    exact = num_buckets // 2
    if num_buckets < 2:
        raise ScalingError(f"num_buckets must be at least 2 on each side, got {num_buckets}")
    if max_distance <= exact:
        raise ScalingError(f"max_distance must be above {exact} for {num_buckets} buckets, got {max_distance}")
    logarithmic = num_buckets - exact
    starts = list(range(exact))
    for k in range(logarithmic):
        # The smallest x with x^m >= e^(m-k) D^k.
        threshold = exact ** (logarithmic - k) * max_distance**k
        guess = int(exact * (max_distance / exact) ** (k / logarithmic))
        while guess**logarithmic >= threshold:
            guess -= 1
        while guess**logarithmic < threshold:
            guess += 1
        starts.append(guess)
    return tuple(starts)


def textbook_buckets(n_b: int) -> int:
    """Returns the `num_buckets` of the published code that gives the textbook's `n_b + 1` buckets."""
    if n_b < 1:
        raise ScalingError(f"n_b must be at least 1, got {n_b}")
    return n_b + 1
