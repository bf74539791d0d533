"""Which offsets a prediction is worked out at: every one of a short context, blocks of neighbours of a long one."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from rope_jax.diagnosis.theory.resolution import BLOCK
from rope_jax.errors import InputError

MOST_OFFSETS = 2**17
MOST_PAIRS = 1024
_CELLS = 2**24  # (pair, offset): as many as 128 pairs have at the most offsets
_BYTES = 16 * 6  # a cell of a phase table: a complex number, and copies of it at work


@dataclasses.dataclass(frozen=True, eq=False)
class OffsetSamples:
    """Offsets at which curves are worked out, and the offsets that each of them stands for.

    Attributes:
      blocks: rising numbers of the blocks of `resolution.BLOCK` neighbouring offsets, `[blocks]`.
      offsets: the offsets in them, tokens, `[offsets]`.
      edges: sample `k` stands for the offsets from `edges[k]` up to `edges[k + 1]`, `[offsets + 1]`.
    """

    blocks: Int64[np.ndarray, " blocks"]
    offsets: Int64[np.ndarray, " offsets"]
    edges: Float64[np.ndarray, " edges"]

    def index(self, offset: int) -> int:
        """Returns the place of an offset that is among the samples."""
        return int(np.searchsorted(self.offsets, offset))


def most_offsets(pairs: int) -> int:
    """Returns up to how many offsets every one is worked out; the more pairs, the fewer, so that the work is bounded."""
    return min(MOST_OFFSETS, _CELLS // max(pairs, 1) // BLOCK * BLOCK)


def check_pairs(pairs: int, reach: int, *, origin: str) -> None:
    """Raises `InputError` where there are too many rotary pairs to inspect, before anything of that size is made."""
    if pairs > MOST_PAIRS:
        rows = BLOCK + -(-min(reach, MOST_OFFSETS) // BLOCK)
        raise InputError(
            f"{origin}: a rotary dimension of {2 * pairs:,} makes {pairs:,} pairs; their phases would take about "
            f"{rows * pairs * _BYTES / 1e9:,.1f} GB: at most {MOST_PAIRS:,} pairs are inspected"
        )


def around(centres: Sequence[int], reach: int, *, pairs: int) -> OffsetSamples:
    """Returns every offset below `reach`, or, beyond `most_offsets`, ever fewer with the distance to all centres.

    Args:
      centres: offsets around which samples are close, beside 0 and the last one, tokens.
      reach: offsets `0 ... reach - 1`.
      pairs: rotary pairs.
    """
    most = most_offsets(pairs)
    last = (reach - 1) // BLOCK
    if reach <= most:
        return _samples(np.arange(last + 2), reach)
    close, closest = max(most // 2**14, 1), max(most // 2**12, 1)
    points = sorted({0, last, *(centre // BLOCK for centre in centres)})
    begins, at = [], 0
    while at <= last:
        begins.append(at)
        ahead = [point for point in points if point > at]
        distance = min(abs(point - at) for point in points if point)
        size = max(1, min(distance // close, at // closest))
        at = min([at + size, *ahead])
    return _samples(np.array([*begins, last + 1]), reach)


def evenly(reach: int, *, pairs: int) -> OffsetSamples:
    """Returns every offset below `reach`, or, beyond a limit, that many: half at both ends, half in between.

    The limit is eight times `most_offsets`: a dip is a single offset, of which its neighbours say little.

    Args:
      reach: offsets `0 ... reach - 1`; one more than the limit is still within it, a target length counted in.
      pairs: rotary pairs.
    """
    most, last = 8 * most_offsets(pairs) // BLOCK, (reach - 1) // BLOCK
    if reach <= most * BLOCK + 1:
        return _samples(np.arange(last + 2), reach)
    dense = max(most // 4, 1)
    between = np.linspace(dense, last + 1 - dense, max(most - 2 * dense, 1), endpoint=False).astype(np.int64)
    begins = np.concatenate([np.arange(dense), between, np.arange(last + 1 - dense, last + 2)])
    return _samples(np.unique(begins), reach)


def _samples(begins: Int64[np.ndarray, " strata"], reach: int) -> OffsetSamples:
    """Returns one block for the blocks from `begins[k]` up to `begins[k + 1]`: the one in their middle."""
    sizes = np.diff(begins)
    blocks = begins[:-1] + (sizes - 1) // 2
    inside = np.arange(BLOCK)
    offsets = (blocks[:, None] * BLOCK + inside).reshape(-1)
    edges = (begins[:-1, None] * BLOCK + sizes[:, None] * inside).reshape(-1)
    count = int(np.searchsorted(offsets, reach))  # the last block may end beyond the reach
    return OffsetSamples(blocks, offsets[:count], np.append(edges[:count], reach).astype(np.float64))
