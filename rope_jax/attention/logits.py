"""The logits of one tile: the line, the offset strip and the mask, worked out where they are used.

A *plain* tile is wholly visible and adds to `q.k` only what separates into a part of the query and a part of the key,
`-m (i - j) = -m (i - a) - m (a - j)`. Any other tile has its bias and its mask written out, with either the queries or
the keys as its rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int

from rope_jax.attention.call import Settings


class Side(NamedTuple):
    """The rows or the columns of a tile."""

    positions: Array  # [slots]
    segments: Array  # [slots]
    contiguous: Array  # [], whether each position is one more than that before
    sign: int | Array  # 1 for queries, -1 for keys


def capped(logits: Float32[Array, "*shape"], soft_cap: float | None) -> tuple[Array, Array | None]:
    """Returns soft-capped logits and their derivative; None where there is no cap."""
    if soft_cap is None:
        return logits, None
    bent = jnp.tanh(logits / soft_cap)
    return soft_cap * bent, (1 - bent) * (1 + bent)  # near 1 a square loses what is left


def separated_line(
    slopes: Float32[Array, " groups"],
    strip: Float32[Array, "groups offsets"],
    q_positions: Int[Array, " queries"],
    kv_positions: Int[Array, "tiles keys"],
) -> tuple[Float32[Array, "2 groups queries"], Float32[Array, "tiles groups keys"], Int[Array, " tiles"]]:
    """Returns the parts of the query, one a side, and of the key, whose sum is the bias of a plain tile.

    The third result says on which side of the queries each tile of keys lies, were it plain: 0 behind, 1 ahead.
    """
    # Both parts count from the query that is nearest to the keys: where a bias is small, and matters most, both are.
    first, last = q_positions.min(), q_positions.max()
    ahead = kv_positions.max(axis=1) > first  # one pair tells: the whole tile lies on one side
    to_nearest = jnp.stack([q_positions - first, last - q_positions]).astype(jnp.float32)
    ends = jnp.stack([strip[:, -1:], strip[:, :1]])
    of_query = ends - slopes[None, :, None] * to_nearest[:, None, :]
    distance = jnp.where(ahead[:, None], kv_positions - last, first - kv_positions).astype(jnp.float32)
    of_key = -slopes[None, :, None] * distance[:, None, :]
    return of_query, of_key, ahead.astype(jnp.int32)


def tile_mask(rows: Side, columns: Side, settings: Settings) -> Bool[Array, "rows columns"]:
    """Returns which queries and keys of a tile see each other."""
    offset = _offset(rows, columns)
    mask = (rows.segments[:, None] == columns.segments[None, :]) & (rows.segments >= 0)[:, None]
    if settings.causal:
        mask &= offset >= 0
    if settings.window is not None:
        mask &= jnp.abs(offset) < settings.window
    return mask


def distance(rows: Side, columns: Side) -> Float32[Array, "rows columns"]:
    """Returns `|i - j|`."""
    return jnp.abs(_offset(rows, columns)).astype(jnp.float32)


def written_bias(
    slopes: Float32[Array, " groups"], strip: Float32[Array, "groups offsets"], rows: Side, columns: Side
) -> Float32[Array, "groups rows columns"]:
    """Returns the bias of every pair of a tile."""
    if strip.shape[-1] == 1:
        return gathered_bias(slopes, strip, rows, columns)

    def by_diagonals():
        diagonals = jnp.take(strip, _diagonal_index(strip, rows, columns), axis=1)
        return skew(diagonals, rows.positions.shape[0], columns.positions.shape[0])

    def by_offset():
        return jnp.take(strip, _index(strip, _offset(rows, columns)), axis=1)

    line = -slopes[:, None, None] * distance(rows, columns)[None]
    return line + jax.lax.cond(rows.contiguous & columns.contiguous, by_diagonals, by_offset)


def gathered_bias(
    slopes: Float32[Array, " groups"], strip: Float32[Array, "groups offsets"], rows: Side, columns: Side
) -> Float32[Array, "groups rows columns"]:
    """Returns what `written_bias` does, without a choice at run time: a gather for any positions."""
    line = -slopes[:, None, None] * distance(rows, columns)[None]
    if strip.shape[-1] == 1:
        return line + strip[:, :, None]
    return line + jnp.take(strip, _index(strip, _offset(rows, columns)), axis=1, mode="clip")


def strip_gradient(
    d_bias: Float32[Array, "groups rows columns"], strip: Float32[Array, "groups offsets"], rows: Side, columns: Side
) -> Float32[Array, "groups offsets"]:
    """Returns the gradient of the strip from that of a tile's bias; every sum is made in one fixed order."""
    if strip.shape[-1] == 1:
        return d_bias.sum(axis=(1, 2))[:, None]

    def by_diagonals():
        return strip_of_diagonals(sum_diagonals(d_bias), strip, rows, columns)

    def by_offset():
        return offset_gradient(d_bias, strip, rows, columns)

    return jax.lax.cond(rows.contiguous & columns.contiguous, by_diagonals, by_offset)


def offset_gradient(
    d_bias: Float32[Array, "groups rows columns"], strip: Float32[Array, "groups offsets"], rows: Side, columns: Side
) -> Float32[Array, "groups offsets"]:
    """Returns what `strip_gradient` does, by scattering: for any positions."""
    return jnp.zeros_like(strip).at[:, _index(strip, _offset(rows, columns))].add(d_bias)


def skew(diagonals: Float32[Array, "groups slots"], rows: int, columns: int) -> Float32[Array, "groups rows columns"]:
    """Returns the tile whose entry `(r, c)` is `diagonals[rows - 1 - r + c]`, by copies and without a gather."""
    groups, slots = diagonals.shape
    # Cut into rows one slot shorter than what is repeated in them, each row begins one slot earlier.
    flat = jnp.broadcast_to(diagonals[:, None, :], (groups, rows, slots)).reshape(groups, rows * slots)
    return flat[:, rows - 1 : rows - 1 + rows * (slots - 1)].reshape(groups, rows, slots - 1)[:, :, :columns]


def sum_diagonals(tile: Float32[Array, "groups rows columns"]) -> Float32[Array, "groups slots"]:
    """Returns the sum of each diagonal of a tile: the transpose of `skew`."""
    groups, rows, columns = tile.shape
    slots = rows + columns
    wide = jnp.pad(tile, ((0, 0), (0, 0), (0, rows - 1))).reshape(groups, rows * (slots - 1))
    return jnp.pad(wide, ((0, 0), (rows - 1, 1))).reshape(groups, rows, slots).sum(axis=1)


def strip_of_diagonals(
    diagonals: Float32[Array, "groups slots"], strip: Float32[Array, "groups offsets"], rows: Side, columns: Side
) -> Float32[Array, "groups offsets"]:
    """Returns the gradient of the strip from the sums of the diagonals of a tile of contiguous positions.

    Nothing is scattered: where scattered sums are atomic additions, two runs differ in their last bits.
    """
    reach, slots = strip.shape[-1] // 2, diagonals.shape[-1]
    lower_left = rows.sign * (rows.positions[-1] - columns.positions[0])
    offset = lower_left - rows.sign * jnp.arange(slots, dtype=jnp.int32)
    inner = rows.sign * (lower_left - jnp.arange(1 - reach, reach, dtype=jnp.int32))
    taken = jnp.take(diagonals, inner, axis=1, mode="clip")
    end = lambda there: jnp.sum(diagonals, axis=1, where=there, keepdims=True)  # noqa: E731
    middle = jnp.where((inner >= 0) & (inner < slots), taken, 0.0)
    return jnp.concatenate([end(offset <= -reach), middle, end(offset >= reach)], axis=1)


def _offset(rows: Side, columns: Side) -> Int[Array, "rows columns"]:
    """Returns query minus key position."""
    return rows.sign * (rows.positions[:, None] - columns.positions[None, :])


def _index(strip: Array, offset: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    reach = strip.shape[-1] // 2
    return jnp.clip(offset, -reach, reach) + reach


def _diagonal_index(strip: Array, rows: Side, columns: Side) -> Int[Array, " slots"]:
    """Returns where the strip holds each diagonal of a tile of contiguous positions, the lower left one first."""
    # One slot more than there are diagonals, for the skew.
    slot = jnp.arange(rows.positions.shape[0] + columns.positions.shape[0], dtype=jnp.int32)
    return _index(strip, rows.sign * (rows.positions[-1] - columns.positions[0] - slot))
