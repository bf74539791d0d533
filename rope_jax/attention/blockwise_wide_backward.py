"""The backward pass of blockwise attention with all heads in a tile: on GPUs, and wherever else is no CPU.

    dS = P * (dO V^T - D),  D = rowsum(dO * O) - d(lse),  dV = P^T dO,  dK = dS^T Q,  dQ = dS K

Blocks of keys are met one after another, each by all queries that see any of it: what a block's keys gather is held in
float32 and written out once; so is what the queries gather, at the end. A plain pair of tiles has no mask, and needs
only the sum of dS for the strip; any other sums its diagonals. What nobody asks the gradient of is not summed.

Axes as in `wide_tiles`. Source: Dao et al., arXiv 2205.14135, appendix B.2; the cotangent of the log-sum-exp added.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from rope_jax import rotation
from rope_jax.attention.call import NOTHING, Settings, Tokens
from rope_jax.attention.logits import capped, distance, offset_gradient, strip_of_diagonals, sum_diagonals
from rope_jax.attention.operands import ALL, Asked, Operands, at, without_effect
from rope_jax.attention.tiles import midpoint
from rope_jax.attention.wide_loops import RUN, over_runs
from rope_jax.attention.wide_tiles import (
    Block,
    Call,
    add_at,
    by_head,
    by_token,
    index,
    padded,
    slots,
    with_index,
    with_slots,
)

LOGITS = 2**22  # of a tile, over all heads: two of them are held, and both again as weights
RUN_OF_OTHERS = 2  # tiles of keys, not plain, that a tile of queries meets in a row
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

    k: Array  # [block, B, K, C, d], of the turned keys
    v: Array  # [block, B, K, C, e]
    q: Array  # [I, B, K, R, d], of the turned and scaled queries
    slopes: Array  # [B, K, G]
    ends: Array  # [2, B, K, G], of the strip's first and last value, from plain pairs of tiles
    strip: Array  # [B, K, G, 2M + 1], from the others
    frequencies: Array  # [B, P]


class Rows(NamedTuple):
    """A tile of queries."""

    i: Array  # []
    q: Array  # [B, K, R, d], turned and scaled
    d_out: Array  # [B, K, R, e]
    lse: Array  # [B, K, G, rows]
    through_lse: Array  # [B, K, G, rows]
    shifts: Array  # [1 or 2, B, K, G, rows], part of the query in a plain pair's logits, less the log-sum-exp


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
    asked: Asked = ALL,
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
    # A sequence that sees nothing of a tile takes no part in it, and may be left out of a plain pair.
    plain = wanted & (call.pairs.plain | ~call.pairs.sees).all(axis=0)
    if plain.size == 1:  # of a single pair only the general form is compiled
        plain = jnp.zeros_like(plain)
    pairs = operands.frequencies.shape[-1]

    def of_block(b: Array, state: tuple[Gradients, OfKeys]) -> tuple[Gradients, OfKeys]:
        sums, of_keys = state
        of_b = call.key_block(b)
        sums = sums._replace(k=call.zeros(*of_b.k.shape), v=call.zeros(*of_b.v.shape))
        run = functools.partial(_add, call, results, asked, of_b)
        sums = over_runs(functools.partial(run, False), call.of_block(b, wanted & ~plain), sums, length=RUN_OF_OTHERS)
        if plain.size > 1:
            sums = over_runs(functools.partial(run, True), call.of_block(b, plain), sums, length=RUN)
        take = functools.partial(slots, tile=b, size=in_block)
        put = functools.partial(with_slots, tile=b, size=in_block)
        turned, back = jax.vjp(call.turned, take(call.k), jax.tree.map(take, call.k_turn))
        gradient = call.from_tiles(sums.k)
        d_k, d_turn = back(gradient)
        if asked.frequencies:
            far = index_distance(call, b, block)
            moments = phase_moments(turned[:, :, :, None], gradient[:, :, :, None], far, pairs, layout)
            sums = sums._replace(frequencies=sums.frequencies + moments)
        of_keys = OfKeys(
            put(of_keys.k, d_k), put(of_keys.v, call.from_tiles(sums.v)), jax.tree.map(put, of_keys.turn, d_turn)
        )
        return sums, of_keys

    zeros = lambda x: call.zeros(*x.shape)  # noqa: E731
    start = Gradients(
        k=call.zeros(block, batch, kv_heads, call.columns, dim),
        v=call.zeros(block, batch, kv_heads, call.columns, v_dim),
        q=call.buffer(call.q).reshape(call.tiles[0], batch, kv_heads, -1, dim),
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
    call: Call,
    results: Results,
    asked: Asked,
    block: Block,
    plain: bool,
    i: Array,
    meet_all: Callable,
    sums: Gradients,
) -> Gradients:
    """Returns the gradients with those of a run of pairs of tiles added.

    Args:
      call: the call.
      results: of its forward pass.
      asked: gradients that are asked for.
      block: of keys.
      plain: whether every pair of the run is.
      i: tile of queries.
      meet_all: see `over_runs`.
      sums: those before.
    """
    of_rows = functools.partial(slots, tile=i, size=call.rows)
    q = call.query_tile(i, of_rows(results.seen))
    d_out = by_head(of_rows(results.d_out).astype(jnp.float32) * of_rows(results.correction)[..., None])
    lse, through_lse = (of_rows(x, axis=3) for x in (results.lse, results.through_lse))
    rows = Rows(i, q, d_out.astype(call.dtype), lse, through_lse, call.row_parts(i) - lse[None])

    def pair(j: Array, valid: Array, state: tuple[Array, Gradients]) -> tuple[Array, Gradients]:
        d_q, sums = state
        added, sums = _pair(call, rows, asked, block, plain, j, valid, sums)
        return d_q + added, sums

    d_q, sums = meet_all(pair, (at(sums.q, i), sums))
    return sums._replace(q=with_index(sums.q, d_q, i))


def _pair(
    call: Call,
    rows: Rows,
    asked: Asked,
    block: Block,
    plain: bool,
    j: Array,
    valid: Array,
    sums: Gradients,
) -> tuple[Float32[Array, "batch kv_heads rows dim"], Gradients]:
    """Returns the gradient that one pair of tiles adds to its queries, and the sums with all others added."""
    i, q, d_out, lse, through_lse, shifts = rows
    here, k, v = block.first + j, at(block.k, j), at(block.v, j)
    s, slope = capped(call.logits(q, k), call.settings.soft_cap)
    if plain:
        shift, of_column = call.plain_bias(shifts, i, here, valid)
        p = jnp.exp(s + of_column[..., None, :] + shift[..., None])
    else:
        p = jnp.exp(s + call.bias(i, here) - lse[..., None])
        p = jnp.where(call.mask(i, here) & valid, p, 0.0)
    d_logits = p * (call.logits(d_out, v) - through_lse[..., None])
    d_raw = d_logits if slope is None else d_logits * slope
    flat_p, flat = (x.astype(call.dtype).reshape(*q.shape[:3], call.columns) for x in (p, d_raw))
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_q = product("bkrc,bkcd->bkrd", flat, k)
    sums = sums._replace(k=add_at(sums.k, product("bkrc,bkrd->bkcd", flat, q), j))
    sums = sums._replace(v=add_at(sums.v, product("bkrc,bkre->bkce", flat_p, d_out), j))
    if asked.slopes:
        away = call.each_sequence(distance, i, here)[:, None, None]
        sums = sums._replace(slopes=sums.slopes - (d_logits * away).sum(axis=-1).sum(axis=-1))
    if asked.frequencies:
        middle = midpoint(index(call.keys.first, here), index(call.keys.last, here))
        far = (index(call.queries.positions, i) - middle[:, None]).astype(jnp.float32)
        pairs = sums.frequencies.shape[-1]
        moments = phase_moments(by_token(q, call.rows), by_token(d_q, call.rows), far, pairs, call.layout)
        sums = sums._replace(frequencies=sums.frequencies + moments)
    if not asked.strip:
        return d_q, sums
    if plain or call.strip.shape[-1] == 1:
        total = d_logits.sum(axis=-1).sum(axis=-1)
        ahead = (index(call.keys.last, here) > index(call.queries.first, i))[:, None, None]
        return d_q, sums._replace(ends=sums.ends + jnp.where(jnp.stack([ahead, ~ahead]), total, 0.0))
    return d_q, sums._replace(strip=sums.strip + _strip_gradient(call, d_logits, i, here))


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
    call: Call, seen: Array, d_q: Float32[Array, "q_tiles batch kv_heads rows dim"]
) -> tuple[Array, tuple[Array, Array], Float32[Array, " batch"]]:
    """Returns the gradients of the queries as they came, of their turns and of the scale, one tile after another."""

    def of_tile(i: Array, state):
        of_q, of_turn, of_scale = state
        take = functools.partial(slots, tile=i, size=call.rows)
        put = functools.partial(with_slots, tile=i, size=call.rows)
        q = jnp.where(take(seen)[..., None], take(call.q), 0)
        turned, back = jax.vjp(call.turned, q, jax.tree.map(take, call.q_turn))
        gradient = by_token(at(d_q, i), call.rows)
        of_scale = of_scale + jnp.sum(gradient * turned, axis=(1, 2, 3, 4))
        of_x, of_tables = back(gradient * call.scale[:, None, None, None, None])
        return put(of_q, of_x), jax.tree.map(put, of_turn, of_tables), of_scale

    start = call.buffer(call.q, call.q.dtype), jax.tree.map(call.buffer, call.q_turn), call.zeros(call.q.shape[0])
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
