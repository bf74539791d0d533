"""Which tiles of queries and keys meet, in which order, and how little is known of each to treat it cheaply.

Everything here is worked out from positions and segments at run time, in a few operations on arrays with one entry a
pair of tiles; nothing is as large as queries times keys.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rope_jax.attention.call import Settings, Tokens

PADDING = -1  # the segment of a slot that only fills a tile
_FAR = jnp.iinfo(jnp.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tokens of one sequence cut into tiles, and the extent of each tile; `[tiles]` or `[tiles, size]`.

    Attributes:
      positions: of every slot; padding continues the count.
      segments: of every slot; negative where it holds nothing.
      first: smallest position of the tile's tokens.
      last: largest position.
      low: smallest segment.
      high: largest segment.
      some: whether the tile holds any token.
      full: whether every slot does.
      contiguous: whether each position is one more than that before.
    """

    positions: Array
    segments: Array
    first: Array
    last: Array
    low: Array
    high: Array
    some: Array
    full: Array
    contiguous: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
    """How every tile of queries meets every tile of keys; all `[query tiles, key tiles]`.

    Attributes:
      sees: whether any query may see any key.
      level: whether all offsets are of one sign and share one value of the strip.
      plain: whether that is so and every query sees every key.
      nearest: smallest distance between a query and a key.
      farthest: largest distance.
    """

    sees: Array
    level: Array
    plain: Array
    nearest: Array
    farthest: Array


def cut(tokens: Tokens, size: int, *, multiple: int = 1) -> Tiles:
    """Returns the tokens of one sequence in tiles of `size` slots, as many of them as a multiple has."""
    positions = tokens.positions.astype(jnp.int32)
    count = positions.shape[0]
    segments = jnp.zeros_like(positions) if tokens.segments is None else tokens.segments.astype(jnp.int32)
    padding = -count % (size * multiple)
    if padding:
        continued = positions[-1:] + jnp.arange(1, padding + 1, dtype=jnp.int32)
        positions = jnp.concatenate([positions, continued])
        segments = jnp.pad(segments, (0, padding), constant_values=PADDING)
    positions, segments = positions.reshape(-1, size), segments.reshape(-1, size)
    held = segments >= 0
    some = held.any(axis=1)
    low = jnp.min(segments, axis=1, where=held, initial=_FAR)
    step = positions[:, 1:] - positions[:, :-1]
    return Tiles(
        positions=positions,
        segments=segments,
        first=jnp.where(some, jnp.min(positions, axis=1, where=held, initial=_FAR), 0),
        last=jnp.where(some, jnp.max(positions, axis=1, where=held, initial=-_FAR), 0),
        low=jnp.where(some, low, PADDING),
        high=jnp.max(segments, axis=1),
        some=some,
        full=held.all(axis=1),
        contiguous=(step == 1).all(axis=1),
    )


def meet(queries: Tiles, keys: Tiles, settings: Settings, *, max_offset: int) -> Pairs:
    """Returns how every tile of queries meets every tile of keys.

    Args:
      queries: tiles of queries.
      keys: tiles of keys.
      settings: causality and window.
      max_offset: offsets at this distance or more share one value of the strip on their side.
    """
    column = lambda x: x[:, None]  # noqa: E731
    row = lambda x: x[None, :]  # noqa: E731
    least, most = column(queries.first) - row(keys.last), column(queries.last) - row(keys.first)
    sees = column(queries.some) & row(keys.some)
    sees &= (column(queries.low) <= row(keys.high)) & (row(keys.low) <= column(queries.high))
    sees_all = column(queries.full) & row(keys.full) & (column(queries.low) == row(keys.high))
    sees_all &= column(queries.low == queries.high) & row(keys.low == keys.high)
    if settings.causal:
        sees &= most >= 0
        sees_all &= least >= 0
    if settings.window is not None:
        sees &= (least < settings.window) & (most > -settings.window)
        sees_all &= (most < settings.window) & (least > -settings.window)
    level = (least >= max_offset) | (most <= -max_offset)
    return Pairs(
        sees=sees,
        level=level,
        plain=sees_all & level,
        nearest=jnp.maximum(jnp.maximum(least, -most), 0),
        farthest=jnp.maximum(jnp.abs(least), jnp.abs(most)),
    )


def midpoint(first: Array, last: Array) -> Array:
    """Returns the position in the middle of two; the difference itself may be beyond int32."""
    return first + (last // 2 - first // 2)


def aligned(queries: Tokens, keys: Tokens) -> Array:
    """Returns whether queries and keys are the same packed documents, each in one piece and counted by ones.

    Then a query and a key that see each other are as far apart as their slots, wherever a document begins.
    """
    batch = queries.positions.shape[0]
    if queries.positions.shape != keys.positions.shape:
        return jnp.zeros((batch,), bool)
    p, s = (
        (tokens.positions, jnp.zeros_like(tokens.positions) if tokens.segments is None else tokens.segments)
        for tokens in (queries, keys)
    )
    same = ((p[0] == s[0]) & (p[1] == s[1])).all(axis=1)
    positions, segments = p
    steps = positions[:, 1:] - positions[:, :-1] == 1
    goes_on = (segments[:, 1:] == segments[:, :-1]) & steps
    begins = segments[:, 1:] > jax.lax.cummax(segments, axis=1)[:, :-1]
    return same & (goes_on | begins | (segments[:, 1:] < 0)).all(axis=1)
