"""Where the Hopper kernels begin and end: which tiles of keys a tile of queries goes along, and the reverse."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from rope_jax.attention.call import NOTHING, Tokens
from rope_jax.attention.logits import capped
from rope_jax.attention.mosaic_gpu_tile import TILE, Inputs, Plan, Slots, Turn
from rope_jax.attention.operands import ROUNDING, bounds_by_norm, without_effect
from rope_jax.attention.tiles import Pairs, Tiles, aligned, cut, meet

_ROUNDED = 2.0**-8  # how much of a vector's length its rounding to bfloat16 may change, and as much again
FARTHEST = 2**30  # between the first query and the first key; the kernels count in int32


class Known(NamedTuple):
    """What is known of tiles of `TILE` tokens, with a leading batch axis."""

    queries: Tiles
    keys: Tiles
    pairs: Pairs


def in_slots(queries: Tokens, keys: Tokens) -> tuple[Array, Bool[Array, ""]]:
    """Returns the first query's position less the first key's `[batch]`, and whether slots tell all offsets.

    They do where positions go up by ones throughout, or where queries and keys are the same packed documents. What
    stands in a slot of a negative segment does not matter.
    """
    starts, regular = [], jnp.bool_(True)
    for tokens in (queries, keys):
        ahead = tokens.positions - jnp.arange(tokens.positions.shape[1], dtype=jnp.int32)[None]
        held = jnp.ones(ahead.shape, bool) if tokens.segments is None else tokens.segments >= 0
        first = jnp.take_along_axis(ahead, jnp.argmax(held, axis=1)[:, None], axis=1)
        regular = regular & (~held | (ahead == first)).all(axis=1)
        starts.append(first[:, 0])
    same = aligned(queries, keys)
    base = jnp.where(regular, starts[0] - starts[1], 0)
    near = (base > -FARTHEST) & (base < FARTHEST)
    return base, ((regular | same) & near).all()


def known(plan: Plan, slots: Slots, tokens: int) -> Known:
    """Returns what is known of the tiles; `tokens` are the queries of a sequence that are no padding."""

    def of_sequence(base: Array, q_segments: Array, k_segments: Array) -> Known:
        q_slots, k_slots = (jnp.arange(count, dtype=jnp.int32) for count in (tokens, plan.keys))
        segments = (q_segments[:tokens], k_segments[: plan.keys]) if plan.segmented else (None, None)
        queries = cut(Tokens(q_slots + base, segments[0]), TILE)
        keys = cut(Tokens(k_slots, segments[1]), TILE)
        return Known(queries, keys, meet(queries, keys, plan.settings, max_offset=plan.reach))

    return jax.vmap(of_sequence)(*slots)


def span(sees: Bool[Array, "*shape tiles others"], plain: Bool[Array, "*shape tiles others"]) -> Int32[Array, "..."]:
    """Returns, for every tile, the first other one, where the last run of plain ones begins and ends, and the end."""
    count = sees.shape[-1]
    number = jax.lax.broadcasted_iota(jnp.int32, sees.shape, sees.ndim - 1)
    some = sees.any(axis=-1)
    first = jnp.where(some, jnp.argmax(sees, axis=-1), 0).astype(jnp.int32)
    end = jnp.where(some, count - jnp.argmax(jnp.flip(sees, axis=-1), axis=-1), 0).astype(jnp.int32)
    inside = (number >= first[..., None]) & (number < end[..., None])
    plain = plain & inside
    plain_end = jnp.max(jnp.where(plain, number + 1, 0), axis=-1)
    plain_end = jnp.where(plain.any(axis=-1), plain_end, end)
    before = ~plain & (number < plain_end[..., None])
    plain_first = jnp.maximum(jnp.max(jnp.where(before, number + 1, 0), axis=-1), first)
    return jnp.stack([first, jnp.minimum(plain_first, plain_end), plain_end, end], axis=-1)


def bounds(
    plan: Plan, inputs: Inputs, tiles: Known, strip: Array, turn: Turn | None = None
) -> Float32[Array, "batch heads q_tiles k_tiles"]:
    """Returns what no logit of a tile exceeds, in nats: as `operands.bounds_by_norm`, for all heads.

    Args:
      plan: of the call.
      inputs: arrays.
      tiles: what is known of them.
      strip: the whole strip `[batch, heads, offsets]`.
      turn: what queries are still to be turned and scaled by, if anything.
    """
    batch = inputs.q.shape[0]

    def largest(x: Array, grown: Array | None = None) -> Array:  # [B, heads, tiles]
        size = jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1))
        size = size if grown is None else size * grown[..., None]
        return size.reshape(batch, -1, TILE, x.shape[2]).max(axis=2).swapaxes(1, 2)

    by_group = lambda x: x.reshape(batch, -1, plan.groups, *x.shape[2:])  # noqa: E731
    of_sequence = jax.vmap(functools.partial(bounds_by_norm, settings=plan.settings), (0, 0, 0, 0, None))
    q_norms = largest(inputs.q, None if turn is None else _growth(turn))
    arrays = by_group(q_norms), largest(inputs.k), by_group(inputs.slopes), by_group(strip)
    found = jax.vmap(of_sequence)(*arrays, tiles.pairs)
    return found.reshape(batch, -1, *found.shape[3:])


def _growth(turn: Turn) -> Float32[Array, "batch queries"]:
    """Returns how much longer queries may be after they are turned, scaled and rounded to bfloat16."""
    of_pairs = jnp.sqrt((jnp.square(turn.cos) + jnp.square(turn.sin)).max(axis=-1))
    return jnp.maximum(of_pairs, jnp.abs(turn.factor)[:, None]) * (1 + _ROUNDED)


def least_lse(
    plan: Plan,
    inputs: Inputs,
    slots: Slots,
    tokens: int,
    strip: Array,
    sinks: Array,
    turn: tuple[Turn, Array] | None = None,
) -> Float32[Array, "batch heads q_tiles"]:
    """Returns what the log-sum-exp of no query of a tile is below, in nats.

    A query's own position is a key that it sees, in most calls; else a sink is what is known, or nothing.

    Args:
      plan: of the call.
      inputs: arrays.
      slots: where tokens stand.
      tokens: queries of a sequence that are no padding.
      strip: the whole strip `[batch, heads, offsets]`.
      sinks: `[batch, heads]`.
      turn: what queries are still to be turned by, and keys `[B, S, K, d]` before they were, by the same: at a query's
        own position one turn undoes the other, but for what the kernel rounds. None where queries are turned.
    """
    batch, padded, heads, dim = inputs.q.shape
    query = jnp.arange(padded, dtype=jnp.int32)[None]
    own = slots.base[:, None] + query
    slot = jnp.clip(own, 0, plan.keys - 1)
    sees = own == slot
    if plan.segmented:
        sees &= slots.q_segments == jnp.take_along_axis(slots.k_segments, slot, axis=1)
    k = inputs.k if turn is None else turn[1]
    keys = jnp.take_along_axis(k, slot[:, :, None, None], axis=1).astype(jnp.float32)
    q = inputs.q.reshape(batch, padded, -1, plan.groups, dim).astype(jnp.float32)
    if turn is not None:
        of_call, pairs = turn[0].factor, turn[0].cos.shape[-1]  # the factor on cos and sin is in both tables
        turned = (jnp.square(turn[0].cos[:, :1, :1]) + jnp.square(turn[0].sin[:, :1, :1])) / of_call[:, None, None]
        gains = jnp.where(jnp.arange(dim)[None, None] < 2 * pairs, turned, of_call[:, None, None])
        keys = keys * gains[:, :, None]
    keys = keys[:, :, :, None]
    product = jnp.sum(q * keys, axis=-1)
    if turn is not None:
        lengths = jnp.sqrt(jnp.sum(jnp.square(q), axis=-1) * jnp.sum(jnp.square(keys), axis=-1))
        product -= 2 * _ROUNDED * lengths
    product, _ = capped(product.reshape(batch, padded, heads), plan.settings.soft_cap)
    logit = jnp.swapaxes(product, 1, 2) + strip[:, :, plan.reach, None]
    logit = jnp.where(sees[:, None], logit, NOTHING)
    logit = jnp.maximum(logit, sinks[:, :, None])
    counts = query < tokens
    if plan.segmented:
        counts = counts & (slots.q_segments >= 0)
    logit = jnp.where(jnp.broadcast_to(counts, (batch, padded))[:, None], logit, -NOTHING)
    return logit.reshape(batch, heads, -1, TILE).min(axis=-1)


def sizes(x: Array) -> Float32[Array, "batch heads tiles"]:
    """Returns the largest entry of each tile."""
    batch, _, heads, dim = x.shape
    largest = jnp.abs(x.astype(jnp.float32)).reshape(batch, -1, TILE, heads, dim).max(axis=(2, 4))
    return jnp.swapaxes(largest, 1, 2)


def void_forward(plan: Plan, limits: Array, lowest: Array, inputs: Inputs, tiles: Known) -> Array:
    """Returns which tiles cannot change an output by more than the rounding of the smallest tile of values.

    Even if all keys of such tiles had the largest logit and the largest value, they would vanish.
    """
    values = jnp.repeat(sizes(inputs.v), plan.groups, axis=1)
    least = jnp.min(values, axis=-1, where=tiles.keys.some[:, None], initial=jnp.inf)
    excess = jnp.log(values / least[..., None])[..., None, :]
    return limits + jnp.log(2 * inputs.k.shape[1] / ROUNDING) + excess <= lowest[..., None]


def void_backward(plan: Plan, limits: Array, inputs: Inputs, lse: Array, out: Array, tiles: Known) -> Array:
    """Returns which tiles cannot change a gradient beyond rounding; as in `blockwise_backward`.

    Args:
      plan: of the call.
      limits: `bounds`.
      inputs: arrays.
      lse: true log-sum-exps `[batch, heads, queries]`, large where a slot holds no query.
      out: outputs `[batch, queries, heads, dim]`.
      tiles: what is known of them.
    """
    least = lambda x: x.reshape(*x.shape[:2], -1, TILE).min(axis=-1)  # noqa: E731
    of_output = lse + jnp.log(jnp.abs(out.astype(jnp.float32)).max(axis=-1)).swapaxes(1, 2)
    keys, values = (jnp.repeat(sizes(x), plan.groups, axis=1) for x in (inputs.k, inputs.v))
    # Heads of queries one by one: those of a key head may begin elsewhere.
    arrays = limits[:, :, None], keys, values, least(lse)[:, :, None], least(of_output)[:, :, None]
    of_sequence = jax.vmap(functools.partial(without_effect, columns=TILE), (0, 0, 0, 0, 0, None, None))
    return jax.vmap(of_sequence)(*arrays, tiles.keys.some, tiles.pairs.farthest)
