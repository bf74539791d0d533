"""ALiBi's slopes, float64 on the host."""

import math

import numpy as np

from rope_jax.errors import ScalingError


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
