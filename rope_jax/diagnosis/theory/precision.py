"""What rounding alone does to positions: faults of an implementation that look like faults of a scheme."""

import math

import numpy as np

from rope_jax.errors import InputError
from rope_jax.frequencies import Frequencies

SIGNIFICAND_BITS = {"bfloat16": 8, "float16": 11, "float32": 24}


def _bits(dtype: str) -> int:
    if dtype not in SIGNIFICAND_BITS:
        raise InputError(f"no significand known for dtype {dtype!r}; known: {', '.join(SIGNIFICAND_BITS)}")
    return SIGNIFICAND_BITS[dtype]


def largest_exact_position(dtype: str) -> int:
    """Returns the last position up to which every whole number is exact in `dtype`, `2^p`.

    >>> largest_exact_position("bfloat16")
    256
    """
    return 2 ** _bits(dtype)


def bias_steps(dtype: str, *, target_length: int) -> tuple[int, int] | None:
    r"""Returns where a linear bias kept in `dtype` is coarsest, as (first offset, tokens that share one value).

    A value in `[2^k, 2^{k+1})` is rounded to a multiple of `2^{k-p+1}`, so offsets from `2^k` on, times a slope that
    is a power of two, fall into steps of `2^{k-p+1}` tokens; other slopes shift the edges by less than a factor of 2.

    Args:
      dtype: a key of `SIGNIFICAND_BITS`.
      target_length: `L'`, tokens.

    Returns:
      None when even the largest offset is told from its neighbours.

    >>> bias_steps("bfloat16", target_length=32768)
    (16384, 128)
    """
    if target_length < 2:
        return None
    exponent = int(math.log2(target_length - 1))
    step = 2 ** max(exponent - _bits(dtype) + 1, 0)
    return (2**exponent, step) if step > 1 else None


def float32_phase_error(inverse_frequencies: Frequencies, *, length: int, positions: int = 4096) -> float:
    """Returns the largest error of cos and sin when `position * theta` is computed in float32, near the end.

    Args:
      inverse_frequencies: `theta`, float64, `[pairs]`.
      length: tokens; the last `positions` of them are tried.
      positions: how many.
    """
    at = np.arange(max(length - positions, 0), length)
    exact = at[:, None] * inverse_frequencies
    rounded = (at.astype(np.float32)[:, None] * inverse_frequencies.astype(np.float32)).astype(np.float64)

    return float(np.maximum(np.abs(np.cos(exact) - np.cos(rounded)), np.abs(np.sin(exact) - np.sin(rounded))).max())
