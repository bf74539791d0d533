"""The backward pass of blockwise attention with all heads in a tile: on GPUs, and wherever else is no CPU.

    dS = P * (dO V^T - D),  D = rowsum(dO * O) - d(lse),  dV = P^T dO,  dK = dS^T Q,  dQ = dS K

Blocks of keys are met one after another, each by all queries that see any of it: what a block's keys gather is held in
float32 and written out once; so is what the queries gather, at the end. Pairs of tiles whose offsets share one value of
the strip need only the sum of dS for it; the near ones sum their diagonals.

Axes as in `wide_tiles`. Source: Dao et al., arXiv 2205.14135, appendix B.2; the cotangent of the log-sum-exp added.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from rope_jax import rotation
from rope_jax.attention.call import NOTHING, Settings, Tokens
from rope_jax.attention.logits import capped, distance, offset_gradient, strip_of_diagonals, sum_diagonals
from rope_jax.attention.operands import Operands, without_effect
from rope_jax.attention.tiles import midpoint
from rope_jax.attention.wide_tiles import (
    Call,
    by_head,
    by_token,
    index,
    over_pairs,
    padded,
    slots,
    with_slots,
)

LOGITS = 2**22  # of a tile, over all heads: two of them are held, and both again as weights
BLOCK = 2**23  # numbers that the keys and values of a block gather, over all heads


class Results(NamedTuple):
    """What the forward pass left, and the cotangents, in the order of tiles."""

    lse: Array  # [B, K, G, N]
    through_lse: Array  # [B, K, G, N], D above
    d_out: Array  # [B, N, K, G, e]
    correction: Array  # [B, N, K, G], of every weight of a query, and so of its cotangents
    seen: Array  # [B, N, K, G], whether the query saw anything


class Gradients(NamedTuple):
    """Of one block of keys, and of everything else so far."""

    k: Array  # [B, block, K, d], of the turned keys
    v: Array  # [B, block, K, e]
    q: Array  # [B, N, K, G, d], of the turned and scaled queries
    slopes: Array  # [B, K, G]
    ends: Array  # [2, B, K, G], of the strip's first and last value
    strip: Array  # [B, K, G, 2M + 1], from the near pairs of tiles
    frequencies: Array  # [B, P]


class OfKeys(NamedTuple):
    """Of all keys, as they came."""

    k: Array  # [B, S, K, d]
    v: Array  # [B, S, K, e]
    turn: tuple[Array, Array]  # [B, S, P]


def backward(
    operands: Operands,
    queries: Tokens,
    keys: Tokens,
    out: Float32[Array, "batch queries heads v_dim"],
    lse: Float32[Array, "batch queries heads"],
    d_out: Float[Array, "batch queries heads v_dim"],
    d_lse: Float32[Array, "batch queries heads"],
    settings: Settings,
    layout: rotation.Layout,
    correction: Float32[Array, "batch queries heads"],
) -> Operands:
    """Returns the gradient of every operand; arguments as in `blockwise_backward.backward`."""
    batch, tokens, heads, dim = operands.q.shape
    key_tokens, kv_heads, v_dim = operands.v.shape[1:]
    call = Call.of(operands, queries, keys, settings, layout, logits=LOGITS, gathered=BLOCK)
    block = call.block
    in_block = block * call.columns
    in_tiles = lambda x: padded(x, call.rows).reshape(batch, -1, *call.heads[1:], *x.shape[3:])  # noqa: E731
    last = lambda x: jnp.moveaxis(in_tiles(x), 1, 3)  # noqa: E731
    # Every gradient is linear in weight * cotangent, row by row.
    corrected = d_out.astype(jnp.float32) * correction[..., None]
    through_lse = jnp.sum(corrected * out, axis=-1) - d_lse * correction
    seen = in_tiles(lse > NOTHING)
    results = Results(last(lse), last(through_lse), in_tiles(d_out), in_tiles(correction), seen)
    wanted = call.pairs.sees.any(axis=0)
    if settings.skip_tiles:
        wanted &= ~_without_effect(call, results.lse, last(jnp.abs(out).max(axis=-1)))
    near = wanted & (call.pairs.sees & ~call.pairs.level).any(axis=0)
    if call.strip.shape[-1] == 1:
        near = jnp.zeros_like(near)
    elif near.size == 1:  # only the general form is compiled
        near = wanted
    pairs = operands.frequencies.shape[-1]

    def of_block(b: Array, state: tuple[Gradients, OfKeys]) -> tuple[Gradients, OfKeys]:
        sums, of_keys = state
        sums = sums._replace(
            k=call.zeros(batch, in_block, kv_heads, dim), v=call.zeros(batch, in_block, kv_heads, v_dim)
        )
        of = lambda pairs: jax.lax.dynamic_slice_in_dim(pairs, b * block, block, 1)  # noqa: E731
        step = functools.partial(_add, call, results, b * block)
        if call.strip.shape[-1] > 1:
            sums = over_pairs(functools.partial(step, True), of(near), sums)
        if call.strip.shape[-1] == 1 or near.size > 1:
            sums = over_pairs(functools.partial(step, False), of(wanted & ~near), sums)
        take = functools.partial(slots, tile=b, size=in_block)
        put = functools.partial(with_slots, tile=b, size=in_block)
        turn = jax.tree.map(take, call.k_turn)
        turned, back = jax.vjp(call.turned, take(call.k), turn)
        d_k, d_turn = back(sums.k)
        far = index_distance(call, b, block)
        frequencies = sums.frequencies + phase_moments(turned[:, :, :, None], sums.k[:, :, :, None], far, pairs, layout)
        of_keys = OfKeys(put(of_keys.k, d_k), put(of_keys.v, sums.v), jax.tree.map(put, of_keys.turn, d_turn))
        return sums._replace(frequencies=frequencies), of_keys

    zeros = lambda x: call.zeros(*x.shape)  # noqa: E731
    start = Gradients(
        k=call.zeros(batch, in_block, kv_heads, dim),
        v=call.zeros(batch, in_block, kv_heads, v_dim),
        q=call.buffer(call.q),
        slopes=zeros(call.slopes),
        ends=call.zeros(2, *call.slopes.shape),
        strip=zeros(call.strip),
        frequencies=zeros(operands.frequencies),
    )
    of_keys = OfKeys(
        k=call.buffer(call.k, call.k.dtype),
        v=call.buffer(call.v, call.v.dtype),
        turn=jax.tree.map(call.buffer, call.k_turn),
    )
    sums, of_keys = jax.lax.fori_loop(0, call.tiles[1] // block, of_block, (start, of_keys))
    d_q, q_turn, scale = _turn_back(call, seen, sums.q)
    by_sink = jnp.where(results.lse > NOTHING, jnp.exp(jnp.minimum(call.sinks[..., None] - results.lse, 0.0)), 0.0)
    ends = sums.strip.at[..., 0].add(sums.ends[0]).at[..., -1].add(sums.ends[1])
    of_heads = lambda x: x.reshape(batch, heads, *x.shape[3:])  # noqa: E731
    return Operands(
        q=d_q.reshape(batch, -1, heads, dim)[:, :tokens],
        k=of_keys.k[:, :key_tokens],
        v=of_keys.v[:, :key_tokens],
        q_turn=jax.tree.map(lambda x: x[:, :tokens], q_turn),
        k_turn=jax.tree.map(lambda x: x[:, :key_tokens], of_keys.turn),
        frequencies=sums.frequencies,
        scale=scale * settings.scale,
        slopes=of_heads(sums.slopes),
        strip=of_heads(ends),
        sinks=of_heads(-jnp.sum(by_sink * results.through_lse, axis=-1)),
    )


def _add(
    call: Call, results: Results, first: Array, near: bool, i: Array, j: Array, valid: Array, sums: Gradients
) -> Gradients:
    """Returns the gradients with those of a pair of tiles added.

    Args:
      call: the call.
      results: of its forward pass.
      first: tile of keys of the block.
      near: whether the pair's offsets may differ in their value of the strip.
      i: tile of queries.
      j: tile of keys, counted from the first of the block.
      valid: whether there is anything to add.
      sums: those before.
    """
    of_rows = functools.partial(slots, tile=i, size=call.rows)
    at = first + j
    q, k, v = call.query_tile(i, of_rows(results.seen)), call.key_tile(at), call.value_tile(at)
    d_out = by_head(of_rows(results.d_out).astype(jnp.float32) * of_rows(results.correction)[..., None])
    d_out = d_out.astype(call.dtype)
    row = lambda x: of_rows(x, axis=3)[..., None]  # noqa: E731
    ahead = (index(call.keys.last, at) > index(call.queries.first, i))[:, None, None]
    s, slope = capped(call.logits(q, k), call.settings.soft_cap)
    if near:
        bias = call.bias(i, at)
    else:
        end = jnp.where(ahead, call.strip[..., 0], call.strip[..., -1])
        bias = dataclasses.replace(call, strip=end[..., None]).bias(i, at)
    p = jnp.where(call.mask(i, at) & valid, jnp.exp(s + bias - row(results.lse)), 0.0)
    d_logits = p * (call.logits(d_out, v) - row(results.through_lse))
    d_raw = d_logits if slope is None else d_logits * slope
    flat_p, flat = (x.astype(call.dtype).reshape(*q.shape[:3], call.columns) for x in (p, d_raw))
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_q = by_token(product("bkrc,bkcd->bkrd", flat, k), call.rows)
    d_k = by_token(product("bkrc,bkrd->bkcd", flat, q), call.columns)[:, :, :, 0]
    d_v = by_token(product("bkrc,bkre->bkce", flat_p, d_out), call.columns)[:, :, :, 0]
    away = call.each_sequence(distance, i, at)[:, None, None]
    far = index(call.queries.positions, i) - midpoint(index(call.keys.first, at), index(call.keys.last, at))[:, None]
    pairs = sums.frequencies.shape[-1]
    moments = phase_moments(by_token(q, call.rows), d_q, far.astype(jnp.float32), pairs, call.layout)
    of_keys = functools.partial(slots, tile=j, size=call.columns)
    put_keys = functools.partial(with_slots, tile=j, size=call.columns)
    sums = sums._replace(
        k=put_keys(sums.k, of_keys(sums.k) + d_k),
        v=put_keys(sums.v, of_keys(sums.v) + d_v),
        q=with_slots(sums.q, of_rows(sums.q) + d_q, i, call.rows),
        slopes=sums.slopes - (d_logits * away).sum(axis=-1).sum(axis=-1),
        frequencies=sums.frequencies + moments,
    )
    if near:
        return sums._replace(strip=sums.strip + _strip_gradient(call, d_logits, i, at))
    total = d_logits.sum(axis=-1).sum(axis=-1)
    return sums._replace(ends=sums.ends + jnp.where(jnp.stack([ahead, ~ahead]), total, 0.0))


def _strip_gradient(call: Call, d_logits: Array, i: Array, j: Array) -> Float32[Array, "batch kv_heads groups offsets"]:
    """Returns the gradient of the strip from that of the logits of a pair of tiles."""
    groups = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])  # noqa: E731
    strip = groups(call.strip)

    def by_diagonals(d_logits):
        heads = d_logits.reshape(-1, call.rows, call.columns)
        diagonals = sum_diagonals(heads).reshape(*strip.shape[:2], -1)
        of_one = lambda rows, columns, x, strip: strip_of_diagonals(x, strip, rows, columns)  # noqa: E731
        return call.each_sequence(of_one, i, j, diagonals, strip)

    def by_offset(d_logits):
        of_one = lambda rows, columns, x, strip: offset_gradient(x, strip, rows, columns)  # noqa: E731
        return call.each_sequence(of_one, i, j, groups(d_logits), strip)

    contiguous = (index(call.queries.contiguous, i) & index(call.keys.contiguous, j)).all()
    return jax.lax.cond(contiguous, by_diagonals, by_offset, d_logits).reshape(call.strip.shape)


def _turn_back(
    call: Call, seen: Array, d_q: Float32[Array, "batch N kv_heads groups dim"]
) -> tuple[Array, tuple[Array, Array], Float32[Array, " batch"]]:
    """Returns the gradients of the queries as they came, of their turns and of the scale, one tile after another."""

    def of_tile(i: Array, state):
        of_q, of_turn, of_scale = state
        take = functools.partial(slots, tile=i, size=call.rows)
        put = functools.partial(with_slots, tile=i, size=call.rows)
        q = jnp.where(take(seen)[..., None], take(call.q), 0)
        turned, back = jax.vjp(call.turned, q, jax.tree.map(take, call.q_turn))
        gradient = take(d_q)
        of_scale = of_scale + jnp.sum(gradient * turned, axis=(1, 2, 3, 4))
        of_x, of_tables = back(gradient * call.scale[:, None, None, None, None])
        return put(of_q, of_x), jax.tree.map(put, of_turn, of_tables), of_scale

    start = call.buffer(d_q, call.q.dtype), jax.tree.map(call.buffer, call.q_turn), call.zeros(call.q.shape[0])
    return jax.lax.fori_loop(0, call.tiles[0], of_tile, start)


def phase_moments(
    turned: Float[Array, "batch tokens kv_heads groups dim"],
    d_turned: Float32[Array, "batch tokens kv_heads groups dim"],
    distances: Float32[Array, "batch tokens"],
    pairs: int,
    layout: rotation.Layout,
) -> Float32[Array, "batch pairs"]:
    """Returns what `blockwise_backward.phase_moments` does, for all heads, and summed without a product of matrices.

    Off the CPU a product may round float32 to ten bits.
    """
    places = (slice(0, pairs), slice(pairs, 2 * pairs))
    if layout == "interleaved":
        places = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
    first, second = (turned[..., at].astype(jnp.float32) for at in places)
    d_first, d_second = (d_turned[..., at] for at in places)
    by_token = (first * d_second - second * d_first).sum(axis=(2, 3))
    return (by_token * distances[..., None]).sum(axis=1)


def index_distance(call: Call, b: Array, block: int) -> Float32[Array, "batch tokens"]:
    """Returns how far the keys of a block are from the middle of their tile."""
    of_block = lambda x: jax.lax.dynamic_slice_in_dim(x, b * block, block, 1)  # noqa: E731
    here = midpoint(of_block(call.keys.first), of_block(call.keys.last))
    far = of_block(call.keys.positions) - here[..., None]
    return far.reshape(far.shape[0], -1).astype(jnp.float32)


def _without_effect(call: Call, lse: Array, largest_out: Array) -> Bool[Array, "q_tiles k_tiles"]:
    """Returns which pairs of tiles cannot change any gradient of any head beyond rounding."""
    k_norms = call.key_norms()
    low_lse, low_out = call.lowest(lse), call.lowest(lse + jnp.log(largest_out))
    of_sequence = jax.vmap(functools.partial(without_effect, columns=call.columns), (0, 0, 0, 0, 0, None, None))
    arrays = call.bounds(k_norms), k_norms, call.value_sizes(), low_lse, low_out, call.keys.some, call.pairs.farthest
    return (jax.vmap(of_sequence)(*arrays).all(axis=(1,)) | ~call.pairs.sees).all(axis=0)
