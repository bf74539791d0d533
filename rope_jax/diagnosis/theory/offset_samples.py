"""Which offsets a prediction is worked out at: every one of a short context, blocks of neighbours of a long one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from rope_jax.diagnosis.theory.resolution import BLOCK
from rope_jax.errors import InputError

MOST_OFFSETS = 2**17
MOST_PAIRS = 1024
_PHASES = 2**24  # (pair, offset): as many as 128 pairs have at the most offsets
_BYTES = 16 * 6  # an entry of a phase table: a complex number, and copies of it at work


def most_offsets(pairs: int) -> int:
    """Returns how many offsets are worked out at most; the more pairs, the fewer, so that the work is bounded."""
    return min(MOST_OFFSETS, _PHASES // max(pairs, 1) // BLOCK * BLOCK)


def check_pairs(pairs: int, reach: int, *, origin: str) -> None:
    """Raises `InputError` where there are too many rotary pairs to inspect, before anything of that size is made."""
    if pairs > MOST_PAIRS:
        rows = BLOCK + -(-min(reach, MOST_OFFSETS) // BLOCK)
        raise InputError(
            f"{origin}: a rotary dimension of {2 * pairs:,} makes {pairs:,} pairs; their phases would take about "
            f"{rows * pairs * _BYTES / 1e9:,.1f} GB: at most {MOST_PAIRS:,} pairs are inspected"
        )


def evenly(
    reach: int, *, most: int, also: Sequence[float] = ()
) -> tuple[Int64[np.ndarray, " blocks"], Int64[np.ndarray, " offsets"]]:
    """Returns every offset below `reach`, or, beyond a limit, that many: half at both ends, half in between.

    Args:
      reach: offsets `0 ... reach - 1`; one more than the limit is still within it, a target length counted in.
      most: the limit, a multiple of `resolution.BLOCK`.
      also: offsets whose blocks are there too, beside the limit; those beyond `reach` do not count.

    Returns:
      rising numbers of the blocks of `resolution.BLOCK` neighbouring offsets, and the offsets below `reach` in them.
    """
    last = (reach - 1) // BLOCK
    blocks = np.arange(last + 1)
    if reach > most + 1:
        dense = max(most // BLOCK // 4, 1)
        between = np.linspace(dense, last + 1 - dense, max(most // BLOCK - 2 * dense, 1), endpoint=False)
        named = np.array([offset // BLOCK for offset in also if offset < reach], np.int64)
        blocks = np.unique(np.concatenate([blocks[:dense], between.astype(np.int64), blocks[-dense:], named]))
    offsets = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    return blocks, offsets[offsets < reach]
