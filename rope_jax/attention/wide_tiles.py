"""All heads of all sequences in one tile at a time, for machines on which a step costs more than what it works on.

A pair of tiles is met by every head at once: a few large batched products and a fused pass over their logits. Which
pairs are met is the same for all heads (`wide_loops`).

Queries are turned and brought into the order of heads as they are cut out, keys and values a block of tiles at a time:
copies of all of them would be half as large as what a pass may need.

Axes: B batch, N queries and S keys, padded to whole tiles, I and J of these, K key heads, G query heads to a key head,
R = G * rows, C columns, d head dimension, e value dimension, P rotary pairs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from rope_jax import rotation
from rope_jax.attention.call import Settings, Tokens
from rope_jax.attention.logits import Side, gathered_bias, tile_mask
from rope_jax.attention.machine import product_dtype
from rope_jax.attention.operands import Operands, bounds_by_norm
from rope_jax.attention.tiles import Pairs, Tiles, cut, meet

LEAST, MOST = 128, 2048  # rows and columns of a tile


def sizes(heads: int, logits: int) -> tuple[int, int]:
    """Returns the rows and columns of tiles that have about so many logits over all heads of all sequences."""
    bits = max(logits // heads, 1).bit_length() - 1
    limited = lambda bits: min(max(2**bits, LEAST), MOST)  # noqa: E731
    # What a tile of keys gathers is fetched for each pair, what one of queries does is not: fewer keys than queries.
    return limited((bits + 1) // 2), limited(bits // 2)


def even(tokens: int, size: int) -> int:
    """Returns the size of as many tiles as those of `size` are, with the least padding."""
    count = -(-tokens // size)
    return -(-tokens // (8 * count)) * 8


class Block(NamedTuple):
    """Tiles of keys that are met one after another."""

    first: Array  # [], which tile the first is
    k: Array  # [block, B, K, C, d], turned
    v: Array  # [block, B, K, C, e]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call cut into tiles; not a pytree: loops close over it.

    Attributes:
      q: `[B, N, K, G, d]`, padded but otherwise as they came.
      k: `[B, S, K, d]`.
      v: `[B, S, K, e]`.
      q_turn: cos and sin, `[B, N, P]`.
      k_turn: the same, `[B, S, P]`.
      scale: of `q.k`, `[B]`, all factors together.
      slopes: `[B, K, G]`.
      strip: `[B, K, G, 2M + 1]`.
      sinks: `[B, K, G]`.
      queries: with a leading batch axis.
      keys: the same.
      pairs: the same.
      rows: queries of a tile.
      columns: keys of a tile.
      block: tiles of keys that are met one after another by all queries; divides the number of tiles.
      settings: of the call.
      layout: of the rotary pairs.
      dtype: of the operands of products.
      origin: a zero that varies over the same mesh axes as the operands.
    """

    q: Array
    k: Array
    v: Array
    q_turn: tuple[Array, Array]
    k_turn: tuple[Array, Array]
    scale: Array
    slopes: Array
    strip: Array
    sinks: Array
    queries: Tiles
    keys: Tiles
    pairs: Pairs
    rows: int
    columns: int
    block: int
    settings: Settings
    layout: rotation.Layout
    dtype: jnp.dtype
    origin: Array

    @classmethod
    def of(
        cls,
        operands: Operands,
        queries: Tokens,
        keys: Tokens,
        settings: Settings,
        layout: rotation.Layout,
        *,
        logits: int,
        gathered: int = 0,
    ) -> "Call":
        """Returns a call in tiles.

        Args:
          operands: of the call.
          queries: where they stand.
          keys: where they stand.
          settings: of the call.
          layout: of the rotary pairs.
          logits: about how many a tile has, over all heads of all sequences.
          gathered: about how many numbers the keys and values of a block have, if there is more than a tile in one.
        """
        batch, tokens, heads, dim = operands.q.shape
        key_tokens, kv_heads, v_dim = operands.v.shape[1:]
        rows, columns = sizes(batch * heads, logits)
        rows, columns = even(tokens, rows), even(key_tokens, columns)
        count = -(-key_tokens // columns)
        blocks = -(-count // max(gathered // (columns * batch * kv_heads * (dim + v_dim)), 1))
        block = -(-count // blocks) if gathered else 1
        slopes, strip, sinks = (x.reshape(batch, kv_heads, -1, *x.shape[2:]) for x in operands[-3:])
        q_tiles = jax.vmap(lambda x: cut(x, rows))(queries)
        k_tiles = jax.vmap(lambda x: cut(x, columns, multiple=block))(keys)
        reach = strip.shape[-1] // 2
        scale = operands.scale * settings.scale
        of_queries = lambda x: padded(x, rows)  # noqa: E731
        of_keys = lambda x: padded(x, columns * block)  # noqa: E731
        q = of_queries(operands.q)
        return cls(
            q=q.reshape(*q.shape[:2], kv_heads, heads // kv_heads, -1),
            k=of_keys(operands.k),
            v=of_keys(operands.v),
            q_turn=jax.tree.map(of_queries, operands.q_turn),
            k_turn=jax.tree.map(of_keys, operands.k_turn),
            scale=scale,
            slopes=slopes,
            strip=strip,
            sinks=sinks,
            queries=q_tiles,
            keys=k_tiles,
            pairs=jax.vmap(lambda a, b: meet(a, b, settings, max_offset=reach))(q_tiles, k_tiles),
            rows=rows,
            columns=columns,
            block=block,
            settings=settings,
            layout=layout,
            dtype=product_dtype(operands.q, operands.k, operands.v),
            origin=jnp.where(scale[0] == scale[0], 0.0, 0.0).astype(jnp.float32),
        )

    @property
    def heads(self) -> tuple[int, int, int]:
        """Sequences, key heads, and query heads to each of these."""
        batch, kv_heads, groups = self.slopes.shape
        return batch, kv_heads, groups

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles of queries and of keys."""
        _, of_queries, of_keys = self.pairs.sees.shape
        return of_queries, of_keys

    def zeros(self, *shape: int) -> Float32[Array, "*shape"]:
        """Returns zeros to begin a loop with."""
        return jnp.broadcast_to(self.origin, shape)

    def buffer(self, like: Array, dtype=jnp.float32) -> Array:
        """Returns zeros in the shape of an array, to be written over; no others are shared with them, and then copied.

        A compiler would make equal zeros once, keep them for every loop that begins with them and copy them there.
        """
        origin, _ = jax.lax.optimization_barrier((self.origin, like.ravel()[:1]))
        return jnp.broadcast_to(origin, like.shape).astype(dtype)

    def turned(self, x: Float[Array, "batch tokens *heads dim"], turn) -> Float32[Array, "batch tokens *heads dim"]:
        """Returns tokens rotated, in float32."""
        by_head = lambda table: table.reshape(*table.shape[:2], *(1,) * (x.ndim - 3), -1)  # noqa: E731
        return rotation.turn(x.astype(jnp.float32), *map(by_head, turn), layout=self.layout)

    def query_tile(self, i: Array, where: Array | None = None) -> Float[Array, "batch kv_heads rows dim"]:
        """Returns queries turned and scaled, head by head; zeros but `where`, if given, `[B, rows, K, G]`."""
        take = lambda x: slots(x, i, self.rows)  # noqa: E731
        q = take(self.q)
        if where is not None:
            q = jnp.where(where[..., None], q, 0)
        q = q.astype(jnp.float32) * self.scale[:, None, None, None, None]
        return by_head(self.turned(q, jax.tree.map(take, self.q_turn))).astype(self.dtype)

    def key_tile(self, j: Array) -> Float[Array, "batch kv_heads keys dim"]:
        """Returns keys turned."""
        take = lambda x: slots(x, j, self.columns)  # noqa: E731
        return by_head(self.turned(take(self.k), jax.tree.map(take, self.k_turn))).astype(self.dtype)

    def key_block(self, b: Array) -> Block:
        """Returns a block of keys and values."""
        take = lambda x: slots(x, b, self.block * self.columns)  # noqa: E731
        k = self.turned(take(self.k), jax.tree.map(take, self.k_turn)).astype(self.dtype)
        return Block(b * self.block, self.in_tiles(k), self.in_tiles(take(self.v).astype(self.dtype)))

    def in_tiles(self, x: Float[Array, "batch S kv_heads d"]) -> Float[Array, "tiles batch kv_heads keys d"]:
        """Returns arrays of keys tile by tile, each in the order of heads: a tile is one piece of memory."""
        return jnp.transpose(x.reshape(x.shape[0], -1, self.columns, *x.shape[2:]), (1, 0, 3, 2, 4))

    def from_tiles(self, x: Float[Array, "tiles batch kv_heads keys d"]) -> Float[Array, "batch S kv_heads d"]:
        """Returns what `in_tiles` was given."""
        x = jnp.transpose(x, (1, 0, 3, 2, 4))
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    def of_block(self, b: Array, wanted: Bool[Array, "q_tiles k_tiles"]) -> Bool[Array, "q_tiles block"]:
        """Returns the pairs of tiles of one block of keys."""
        return jax.lax.dynamic_slice_in_dim(wanted, b * self.block, self.block, 1)

    def value_tile(self, j: Array) -> Float[Array, "batch kv_heads keys e"]:
        """Returns values."""
        return by_head(slots(self.v, j, self.columns)).astype(self.dtype)

    def logits(self, q: Array, k: Array) -> Float32[Array, "batch kv_heads groups rows keys"]:
        """Returns what the soft cap is put on."""
        s = jnp.einsum("bkrd,bkcd->bkrc", q, k, preferred_element_type=jnp.float32)
        return s.reshape(*self.heads, self.rows, self.columns)

    def sides(self, i: Array, j: Array):
        """Returns positions and segments of queries, then of keys, `[B, slots]` each."""
        of = lambda tiles, tile: (index(tiles.positions, tile), index(tiles.segments, tile))  # noqa: E731
        return *of(self.queries, i), *of(self.keys, j)

    def each_sequence(self, function: Callable, i: Array, j: Array, *arrays: Array):
        """Returns `function(rows, columns, *arrays)` for each sequence, of its two sides of a pair of tiles."""

        def of_one(q_positions, q_segments, k_positions, k_segments, *arrays):
            sure = jnp.bool_(True)
            rows, columns = Side(q_positions, q_segments, sure, 1), Side(k_positions, k_segments, sure, -1)
            return function(rows, columns, *arrays)

        return jax.vmap(of_one)(*self.sides(i, j), *arrays)

    def mask(self, i: Array, j: Array) -> Bool[Array, "batch 1 1 rows keys"]:
        """Returns which queries see which keys."""
        return self.each_sequence(functools.partial(tile_mask, settings=self.settings), i, j)[:, None, None]

    def bias(self, i: Array, j: Array) -> Float32[Array, "batch kv_heads groups rows keys"]:
        """Returns the bias of every pair."""

        def of_sequence(rows, columns, slopes, strip):
            return jax.vmap(lambda slopes, strip: gathered_bias(slopes, strip, rows, columns))(slopes, strip)

        return self.each_sequence(of_sequence, i, j, self.slopes, self.strip)

    def row_parts(self, i: Array) -> Float32[Array, "sides *heads rows"]:
        """Returns the part of the query in the bias of a plain pair of tiles, for keys behind it and for keys ahead."""
        # As `separated_line`, of extents that are known already: what is plain is full.
        rows = index(self.queries.positions, i)
        first, last = index(self.queries.first, i)[:, None], index(self.queries.last, i)[:, None]
        part = lambda end, x: end - self.slopes[..., None] * x.astype(jnp.float32)[:, None, None]  # noqa: E731
        behind = part(self.strip[..., -1:], rows - first)
        # Of causal attention no plain pair has its keys ahead.
        return behind[None] if self.settings.causal else jnp.stack([behind, part(self.strip[..., :1], last - rows)])

    def plain_bias(
        self, rows: Float32[Array, "sides *heads rows"], i: Array, j: Array, valid: Array
    ) -> tuple[Float32[Array, "*heads rows"], Float32[Array, "*heads keys"]]:
        """Returns the parts of query and key whose sum is the bias of a plain pair of tiles; `rows` as of `row_parts`.

        Where a sequence takes no part in the pair, or it is not `valid`, that of the key is minus infinity.
        """
        columns = index(self.keys.positions, j)
        first, last = index(self.queries.first, i)[:, None], index(self.queries.last, i)[:, None]
        ahead = index(self.keys.last, j)[:, None] > first
        beyond = first - columns if self.settings.causal else jnp.where(ahead, columns - last, first - columns)
        takes_part = index(index(self.pairs.sees, i), j)[:, None, None, None] & valid
        of_key = -self.slopes[..., None] * beyond.astype(jnp.float32)[:, None, None]
        of_row = rows[0] if self.settings.causal else jnp.where(ahead[:, None, None], rows[1], rows[0])
        return of_row, jnp.where(takes_part, of_key, -jnp.inf)

    def key_norms(self) -> Float32[Array, "batch kv_heads k_tiles"]:
        """Returns the largest norm in each tile of turned keys."""
        return self._norms(self.k, self.k_turn, self.columns)

    def value_sizes(self) -> Float32[Array, "batch kv_heads k_tiles"]:
        """Returns the largest entry of each tile of values."""
        return largest(jnp.abs(self.v).max(axis=-1).astype(jnp.float32), self.columns)

    def bounds(self, key_norms: Array) -> Float32[Array, "batch kv_heads groups q_tiles k_tiles"]:
        """Returns what no logit of a pair of tiles exceeds."""
        q_norms = self._norms(self.q, self.q_turn, self.rows) * jnp.abs(self.scale)[:, None, None, None]
        of_sequence = jax.vmap(functools.partial(bounds_by_norm, settings=self.settings), (0, 0, 0, 0, None))
        return jax.vmap(of_sequence)(q_norms, key_norms, self.slopes, self.strip, self.pairs)

    def lowest(self, x: Float32[Array, "batch kv_heads groups N"]) -> Float32[Array, "batch kv_heads groups q_tiles"]:
        """Returns the smallest of each tile of queries, empty slots apart."""
        held = (self.queries.segments >= 0)[:, None, None]
        return jnp.min(x.reshape(*x.shape[:3], -1, self.rows), axis=-1, where=held, initial=jnp.inf)

    def _norms(self, x: Array, turn, size: int) -> Float32[Array, "batch *heads tiles"]:
        # Turning leaves norms as they are but for the factor on cos and sin, and what is rounded after it.
        norms = largest(jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(axis=-1)), size)
        if turn[0].shape[-1]:
            grown = jnp.sqrt((jnp.square(turn[0]) + jnp.square(turn[1])).max(axis=-1))
            grown = jnp.maximum(largest(grown, size), 1.0)
            norms = norms * grown.reshape(grown.shape[0], *(1,) * (norms.ndim - 2), -1)
        return norms * (1 + float(jnp.finfo(self.dtype).eps))


def padded(x: Array, multiple: int) -> Array:
    """Returns `[B, tokens, ..]` with zeros up to a multiple of so many tokens."""
    padding = -x.shape[1] % multiple
    return jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2))) if padding else x


def slots(x: Array, tile: Array, size: int, axis: int = 1) -> Array:
    """Returns one tile of an array of tokens."""
    return jax.lax.dynamic_slice_in_dim(x, tile * size, size, axis, allow_negative_indices=False)


def with_slots(x: Array, of_tile: Array, tile: Array, size: int, axis: int = 1) -> Array:
    """Returns an array of tokens with one tile replaced."""
    of_tile = of_tile.astype(x.dtype)
    return jax.lax.dynamic_update_slice_in_dim(x, of_tile, tile * size, axis, allow_negative_indices=False)


def index(x: Array, tile: Array) -> Array:
    """Returns one tile of `[B, tiles, ..]`."""
    return jax.lax.dynamic_index_in_dim(x, tile, 1, keepdims=False, allow_negative_indices=False)


def by_head(x: Array) -> Array:
    """Returns `[B, tokens, K, G, ..]` or `[B, tokens, K, ..]` with tokens last but one: `[B, K, G * tokens, ..]`."""
    x = jnp.moveaxis(x, 1, -2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def by_token(x: Float[Array, "batch kv_heads rows dim"], tokens: int) -> Float[Array, "batch tokens kv_heads groups d"]:
    """Returns what `by_head` was given, with an axis of groups."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, tokens, x.shape[-1]), 3, 1)


def largest(x: Float32[Array, "batch tokens *heads"], size: int) -> Float32[Array, "batch *heads tiles"]:
    """Returns the largest of each tile."""
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]).max(axis=2), 1, -1)


def with_index(x: Array, of_tile: Array, tile: Array) -> Array:
    """Returns `[tiles, ..]` with one tile replaced."""
    return jax.lax.dynamic_update_index_in_dim(x, of_tile.astype(x.dtype), tile, 0, allow_negative_indices=False)


def add_at(x: Array, of_tile: Array, tile: Array) -> Array:
    """Returns `[tiles, ..]` with something added to one tile."""
    # With its axis kept, the tile is read, added to and written by one kernel; without, by two.
    before = jax.lax.dynamic_slice_in_dim(x, tile, 1, allow_negative_indices=False)
    return jax.lax.dynamic_update_slice_in_dim(x, before + of_tile[None], tile, 0, allow_negative_indices=False)
