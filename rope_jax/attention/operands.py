"""What blockwise attention works on: a call's arrays by name, and cut into heads and tiles."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Shaped

from rope_jax import rotation
from rope_jax.attention.call import NOTHING, Settings, Tokens, without_padding
from rope_jax.attention.logits import Side
from rope_jax.attention.tiles import Pairs, Tiles, cut, meet, midpoint
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


class Asked(NamedTuple):
    """Which gradients are asked for, of those that take a pass over logits or products of their own."""

    frequencies: bool
    slopes: bool
    strip: bool


ALL = Asked(frequencies=True, slopes=True, strip=True)


def primals(arguments):
    """Returns the arrays that a forward rule with symbolic zeros is given."""
    is_primal = lambda x: isinstance(x, jax.custom_derivatives.CustomVJPPrimal)  # noqa: E731
    return jax.tree.map(lambda x: x.value, arguments, is_leaf=is_primal)


def with_zeros(cotangent, like: Array) -> Array:
    """Returns a cotangent that a backward rule with symbolic zeros is given, as an array."""
    return jnp.zeros_like(like) if isinstance(cotangent, jax.custom_derivatives.SymbolicZero) else cotangent


def operands_of(
    q: Array, k: Array, v: Array, scheme: Scheme, sinks: Array | None, queries: Tokens, keys: Tokens
) -> Operands:
    """Returns the operands of a call, zeros where a slot holds nothing, and turns through which no gradient goes."""
    return Operands.of(
        without_padding(q, queries),
        without_padding(k, keys),
        without_padding(v, keys),
        scheme,
        sinks,
        turns_of_fixed(scheme, queries),
        turns_of_fixed(scheme, keys),
        scheme.inverse_frequencies,
    )


def turns_of_fixed(scheme: Scheme, tokens: Tokens) -> tuple[Array, Array]:
    """Returns cos and sin at the positions of one side, through which no gradient reaches the inverse frequencies.

    The gradient of a phase is multiplied by a position. Summed over tokens far from position 0, what rounding left of
    it would be too; only offsets matter, so the backward pass sums tile by tile, relative to the tile (`Operands`).
    """
    fixed = jax.lax.stop_gradient(scheme.inverse_frequencies)
    return dataclasses.replace(scheme, inverse_frequencies=fixed).cos_sin(tokens.positions)


def middle(queries: Tokens, keys: Tokens) -> Int32[Array, "batch 1"]:
    """Returns the middle position of each sequence, whatever stands in slots that hold nothing."""
    positions = jnp.concatenate([queries.positions, keys.positions], axis=1)
    sides = [x.positions == x.positions if x.segments is None else x.segments >= 0 for x in (queries, keys)]
    held = jnp.concatenate(sides, axis=1)
    limits = jnp.iinfo(jnp.int32)
    first = jnp.min(positions, axis=1, keepdims=True, where=held, initial=limits.max)
    last = jnp.max(positions, axis=1, keepdims=True, where=held, initial=limits.min)
    return midpoint(first, last)


def turns_from(
    place: Int32[Array, "batch 1"],
    turn: tuple[Array, Array],
    frequencies: Float32[Array, "batch pairs"],
    positions: Int32[Array, "batch tokens"],
) -> tuple[Float32[Array, "batch tokens pairs"], Float32[Array, "batch tokens pairs"]]:
    """Returns cos and sin as they are, with a gradient to the frequencies that is counted from a place.

    Args:
      place: position that counts as 0; only offsets matter, and near ones lose least.
      turn: what `turns_of_fixed` returns.
      frequencies: inverse frequencies.
      positions: of the tokens.
    """
    cos, sin = turn
    change = frequencies - jax.lax.stop_gradient(frequencies)  # zeros
    angle = (positions - place).astype(jnp.float32)[..., None] * change[:, None, :]
    return cos - sin * angle, sin + cos * angle


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

    def zeros(self, *shape: int) -> Array:
        """Returns zeros to begin a loop with."""
        return jnp.broadcast_to(self.origin.ravel()[0], shape)

    def side_of_queries(self, i: Array) -> Side:
        return self._side(self.queries, i, 1)

    def side_of_keys(self, j: Array) -> Side:
        return self._side(self.keys, j, -1)

    def _side(self, tiles: Tiles, index: Array, sign: int) -> Side:
        return Side(at(tiles.positions, index), at(tiles.segments, index), at(tiles.contiguous, index), sign)


class Plan(NamedTuple):
    """How a call is cut into tiles, one head at a time; static."""

    rows: int  # queries of a tile
    columns: int  # keys of a tile
    block: int  # tiles of queries that may go on together; there is a multiple of as many


def prepare(operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, *, block: int = 1):
    """Returns a call's arrays by token, by head and by sequence, and how they are cut for one head at a time."""
    batch, tokens, heads, _ = operands.q.shape
    kv_heads = operands.k.shape[2]
    groups = heads // kv_heads
    round_up = lambda x: -(-x // 8) * 8  # noqa: E731
    rows, columns = min(max(ROWS // groups, 64), round_up(tokens)), min(COLUMNS, round_up(operands.k.shape[1]))
    few = tokens < LEAST_BLOCKS * block * rows
    # A block has tiles of keys in common that it takes later, together: with a single tile of keys there are none.
    block = 1 if few or operands.k.shape[1] <= columns else block
    by_token = (operands.q.reshape(batch, tokens, kv_heads, groups, -1), operands.k, operands.v)
    by_head = tuple(x.reshape(batch, kv_heads, groups, *x.shape[2:]) for x in operands[-3:])
    q_tiles = jax.vmap(lambda x: cut(x, rows, multiple=block))(queries)
    k_tiles = jax.vmap(lambda x: cut(x, columns))(keys)
    reach = operands.strip.shape[-1] // 2
    pairs = jax.vmap(lambda a, b: meet(a, b, settings, max_offset=reach))(q_tiles, k_tiles)
    scale = operands.scale * settings.scale
    origin = jnp.where(scale == scale, 0.0, 0.0).astype(jnp.float32)
    row = Row(scale, operands.q_turn, operands.k_turn, q_tiles, k_tiles, pairs, origin)
    return by_token, by_head, row, Plan(rows, columns, block)


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
    """Returns what no logit of a tile exceeds; queries come scaled."""
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1))  # noqa: E731
    of_q = norm(q_tiles).reshape(q_tiles.shape[0], slopes.shape[0], -1).max(axis=-1).T
    return bounds_by_norm(of_q, norm(k_tiles).max(axis=1), slopes, strip, pairs, settings)


def bounds_by_norm(
    of_q: Float32[Array, "groups q_tiles"],
    of_k: Float32[Array, " k_tiles"],
    slopes: Float32[Array, " groups"],
    strip: Float32[Array, "groups offsets"],
    pairs: Pairs,
    settings: Settings,
) -> Float32[Array, "groups q_tiles k_tiles"]:
    """Returns what no logit of a tile exceeds: Cauchy-Schwarz for `q.k`, the line's ends, the highest of the strip.

    Norms are the largest of each tile, those of scaled queries; a capped product is at most the cap. For a negative
    slope the line is highest at the far end.
    """
    product = of_q[:, :, None] * of_k[None, None, :] * 1.0001  # beyond what rounding can add
    if settings.soft_cap is not None:
        product = jnp.minimum(product, settings.soft_cap)
    near, far = (-slopes[:, None, None] * x.astype(jnp.float32)[None] for x in (pairs.nearest, pairs.farthest))
    return product + jnp.maximum(near, far) + strip.max(axis=1)[:, None, None]


def without_effect(
    bounds: Float32[Array, "groups q_tiles k_tiles"],
    k_sizes: Float32[Array, " k_tiles"],
    v_sizes: Float32[Array, " k_tiles"],
    lse: Float32[Array, "groups q_tiles"],
    of_output: Float32[Array, "groups q_tiles"],
    some: Bool[Array, " k_tiles"],
    farthest: Int[Array, "q_tiles k_tiles"],
    columns: int,
) -> Bool[Array, "q_tiles k_tiles"]:
    """Returns which tiles cannot change any gradient of a key head beyond rounding.

    Every weight of such a tile, times the number of keys, times the farthest offset (for the slopes), times how far its
    keys and values exceed what the rows and the other tiles have, vanishes beside one.

    Args:
      bounds: of the tile's logits.
      k_sizes: how large its keys are.
      v_sizes: the same of its values.
      lse: the lowest log-sum-exp of its rows.
      of_output: the same, plus the logarithm of the row's largest output.
      some: whether it holds any key.
      farthest: its largest distance.
      columns: its keys.
    """
    excess_k = jnp.log(k_sizes / jnp.min(k_sizes, where=some, initial=jnp.inf))[None, None, :]
    keys_and_offsets = k_sizes.shape[0] * columns * jnp.maximum(farthest, 1).astype(jnp.float32)
    excess = bounds + jnp.log(keys_and_offsets / ROUNDING)[None] + excess_k
    most = jnp.minimum(lse[:, :, None], of_output[:, :, None] - jnp.log(v_sizes)[None, None, :])
    return (excess <= most).all(axis=0)
