"""What blockwise attention works on: a call's arrays by name, and cut into heads and tiles."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Shaped

from rope_jax import rotation
from rope_jax.attention.call import NOTHING, Settings, Tokens
from rope_jax.attention.logits import Side
from rope_jax.attention.tiles import Pairs, Tiles, cut, meet
from rope_jax.scheme import Scheme

ROWS, COLUMNS = 512, 512  # of a tile of logits; the forward pass takes several tiles of rows at once where it can
LEAST_BLOCKS = 8  # of a call; fewer, and there is little that their tiles have in common
ROUNDING = 2.0**-25  # half a unit in the last place of float32


class Operands(NamedTuple):
    """Everything of a call that has a gradient.

    Attributes:
      q: `[B, N, H, d]`.
      k: `[B, S, K, d]`.
      v: `[B, S, K, e]`.
      q_turn: cos and sin to turn the queries by, `[B, N, P]` each; no pairs for queries that are turned already.
      k_turn: the same of the keys, `[B, S, P]`.
      frequencies: the scheme's inverse frequencies, `[B, P]`, for their gradient alone: the forward pass turns by what
        `turns_of_fixed` made of them. No pairs where the turns carry that gradient themselves.
      scale: of `q.k`, `[B]`; the scheme's logit scale, without the setting's.
      slopes: `[B, H]`.
      strip: `[B, H, 2M + 1]`.
      sinks: `[B, H]`; `NOTHING` where there are none.
    """

    q: Array
    k: Array
    v: Array
    q_turn: tuple[Array, Array]
    k_turn: tuple[Array, Array]
    frequencies: Array
    scale: Array
    slopes: Array
    strip: Array
    sinks: Array

    @classmethod
    def of(
        cls, q: Array, k: Array, v: Array, scheme: Scheme, sinks: Array | None, q_turn, k_turn, frequencies: Array
    ) -> "Operands":
        """Returns the operands of a call, with whatever the sequences share repeated for each of them."""
        batch, heads = q.shape[0], q.shape[2]
        sinks = jnp.full((heads,), NOTHING, jnp.float32) if sinks is None else sinks.astype(jnp.float32)
        repeat = lambda x, rank: jnp.broadcast_to(x, (batch, *x.shape[x.ndim - rank :]))  # noqa: E731
        return cls(
            q,
            k,
            v,
            q_turn,
            k_turn,
            repeat(frequencies, 1),
            repeat(scheme.logit_scale, 0),
            repeat(scheme.slopes, 1),
            repeat(scheme.offset_bias, 2),
            repeat(sinks, 1),
        )


def turns_of_fixed(scheme: Scheme, tokens: Tokens) -> tuple[Array, Array]:
    """Returns cos and sin at the positions of one side, through which no gradient reaches the inverse frequencies.

    The gradient of a phase is multiplied by a position. Summed over tokens far from position 0, what rounding left of
    it would be too; only offsets matter, so the backward pass sums tile by tile, relative to the tile (`Operands`).
    """
    fixed = jax.lax.stop_gradient(scheme.inverse_frequencies)
    return dataclasses.replace(scheme, inverse_frequencies=fixed).cos_sin(tokens.positions)


def varying_axes(tree) -> frozenset:
    """Returns the mesh axes over which any array varies inside `shard_map`; none where that is not checked."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(tree)))


def vary_together(tree, axes: frozenset = frozenset()):
    """Inside `shard_map`, lets every array of a call vary over all the mesh axes that any of them varies over.

    A loop's carry has one type throughout, and is made from operands, positions and segments alike; done here, outside
    the custom derivative, the transpose sums what devices share.

    Args:
      tree: operands and tokens.
      axes: more axes to vary over.
    """
    axes |= varying_axes(tree)
    missing = lambda x: tuple(axes - jax.typeof(x).manual_axis_type.varying)  # noqa: E731
    return jax.tree.map(lambda x: jax.lax.pcast(x, missing(x), to="varying") if missing(x) else x, tree)


class Row(NamedTuple):
    """What the heads of one sequence share; `prepare` makes it with a batch axis."""

    scale: Array  # [], of q.k, all factors together
    q_turn: tuple[Array, Array]  # [N, P]
    k_turn: tuple[Array, Array]  # [S, P]
    queries: Tiles
    keys: Tiles
    pairs: Pairs
    origin: Array  # [], a zero that varies over the same mesh axes as the operands
    contiguous: Array | None = None  # [], of the plan, for heads that run at once

    def zeros(self, *shape: int) -> Array:
        """Returns zeros to begin a loop with."""
        return jnp.broadcast_to(self.origin.ravel()[0], shape)

    def side_of_queries(self, i: Array) -> Side:
        return self._side(self.queries, i, 1)

    def side_of_keys(self, j: Array) -> Side:
        return self._side(self.keys, j, -1)

    def contiguous_tiles(self, tiles: Tiles) -> Array:
        """Returns whether each tile may be taken for contiguous."""
        if self.contiguous is None:
            return tiles.contiguous
        return jnp.broadcast_to(self.contiguous, tiles.contiguous.shape)

    def _side(self, tiles: Tiles, index: Array, sign: int) -> Side:
        contiguous = at(tiles.contiguous, index) if self.contiguous is None else self.contiguous
        return Side(at(tiles.positions, index), at(tiles.segments, index), contiguous, sign)


class Plan(NamedTuple):
    """How a call is cut into tiles; static but for the last."""

    rows: int  # queries of a tile
    columns: int  # keys of a tile
    block: int  # tiles of queries that may go on together; there is a multiple of as many
    together: bool  # whether all heads run at once
    contiguous: Array | None  # [], then: whether all tiles are, as what differs among heads would be done both ways


def product_dtype(*arrays: Array, together: bool):
    """Returns the dtype of the operands of products: bfloat16 off the CPU where all of them are, else float32.

    Not float16: it holds neither weights of e^30 nor, next to its least normal number, scaled queries.
    """
    return jnp.bfloat16 if together and all(x.dtype == jnp.bfloat16 for x in arrays) else jnp.float32


def heads_at_once() -> bool:
    """Returns whether all heads run at once: not on a CPU, where a tile of one head fills every core."""
    return jax.default_backend() != "cpu"


def prepare(operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, *, block: int = 1):
    """Returns a call's arrays by token, by head and by sequence, and how they are cut."""
    batch, tokens, heads, _ = operands.q.shape
    kv_heads = operands.k.shape[2]
    groups = heads // kv_heads
    round_up = lambda x: -(-x // 8) * 8  # noqa: E731
    rows, columns = min(max(ROWS // groups, 64), round_up(tokens)), min(COLUMNS, round_up(operands.k.shape[1]))
    together = heads_at_once()
    few = tokens < LEAST_BLOCKS * block * rows
    # A block has tiles of keys in common that it takes later, together: with a single tile of keys there are none.
    block = 1 if few or together or operands.k.shape[1] <= columns else block
    by_token = (operands.q.reshape(batch, tokens, kv_heads, groups, -1), operands.k, operands.v)
    by_head = tuple(x.reshape(batch, kv_heads, groups, *x.shape[2:]) for x in operands[-3:])
    q_tiles = jax.vmap(lambda x: cut(x, rows, multiple=block))(queries)
    k_tiles = jax.vmap(lambda x: cut(x, columns))(keys)
    reach = operands.strip.shape[-1] // 2
    pairs = jax.vmap(lambda a, b: meet(a, b, settings, max_offset=reach))(q_tiles, k_tiles)
    scale = operands.scale * settings.scale
    origin = jnp.where(scale == scale, 0.0, 0.0).astype(jnp.float32)
    contiguous = q_tiles.contiguous.all() & k_tiles.contiguous.all() if together else None
    plan = Plan(rows, columns, block, together, contiguous)
    row = Row(scale, operands.q_turn, operands.k_turn, q_tiles, k_tiles, pairs, origin)
    return by_token, by_head, row, plan


def at(x: Shaped[Array, "tiles *shape"], index: Array) -> Shaped[Array, "*shape"]:
    """Returns `x[index]` for an index known to be in range."""
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False, allow_negative_indices=False)


def turned_tiles(
    x: Float[Array, "tokens heads dim"], turn, layout: rotation.Layout, size: int, multiple: int = 1
) -> Array:
    """Returns `x` rotated, in float32, in tiles `[tiles, heads * size, dim]`, zeros in the padding."""
    cos, sin = turn
    return in_tiles(rotation.rotate(x.astype(jnp.float32), cos, sin, layout=layout), size, multiple)


def in_tiles(x: Float[Array, "tokens heads *dim"], size: int, multiple: int = 1) -> Float[Array, "tiles rows *dim"]:
    """Returns `x` in a multiple of tiles, whose rows go head by head; zeros in the padding."""
    tokens, heads = x.shape[:2]
    x = jnp.pad(x, ((0, -tokens % (size * multiple)), *((0, 0),) * (x.ndim - 1)))
    x = x.reshape(-1, size, heads, *x.shape[2:])
    return jnp.swapaxes(x, 1, 2).reshape(-1, heads * size, *x.shape[3:])


def from_tiles(x: Float[Array, "tiles rows *dim"], heads: int, tokens: int) -> Float[Array, "tokens heads *dim"]:
    """Returns what `in_tiles` was given."""
    x = x.reshape(x.shape[0], heads, -1, *x.shape[2:])
    return jnp.swapaxes(x, 1, 2).reshape(-1, heads, *x.shape[3:])[:tokens]


def logit_bounds(
    q_tiles: Float[Array, "q_tiles rows dim"],
    k_tiles: Float[Array, "k_tiles keys dim"],
    slopes: Float32[Array, " groups"],
    strip: Float32[Array, "groups offsets"],
    pairs: Pairs,
    settings: Settings,
) -> Float32[Array, "groups q_tiles k_tiles"]:
    """Returns what no logit of a tile exceeds: Cauchy-Schwarz for `q.k`, the line's ends, the highest of the strip.

    Queries come scaled; a capped product is at most the cap. For a negative slope the line is highest at the far end.
    """
    groups = slopes.shape[0]
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1))  # noqa: E731
    of_q = norm(q_tiles).reshape(q_tiles.shape[0], groups, -1).max(axis=-1).T
    product = of_q[:, :, None] * norm(k_tiles).max(axis=1)[None, None, :] * 1.0001  # beyond what rounding can add
    if settings.soft_cap is not None:
        product = jnp.minimum(product, settings.soft_cap)
    near, far = (-slopes[:, None, None] * x.astype(jnp.float32)[None] for x in (pairs.nearest, pairs.farthest))
    return product + jnp.maximum(near, far) + strip.max(axis=1)[:, None, None]
