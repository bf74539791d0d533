"""What the Hopper kernels do, tile by tile, in plain JAX: the same arithmetic of a tile, the same spans."""

import jax
import jax.numpy as jnp
from jax import lax

from rope_jax.attention.call import NOTHING
from rope_jax.attention.mosaic_gpu_decode import COLUMNS, ROWS
from rope_jax.attention.mosaic_gpu_decode import logits as decode_logits
from rope_jax.attention.mosaic_gpu_tile import (
    HALF,
    LOG2E,
    MARGIN,
    TILE,
    Place,
    by_column,
    by_row,
    capped,
    finish,
    gradient,
    logits,
    meet_keys,
    near_tiles,
    slope_gradient,
    turned,
    wide_strip,
    written,
)


def _product(a, b):
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _rounded(x):
    return x.astype(jnp.bfloat16)


def _cut(x, start, size):
    return lax.dynamic_slice_in_dim(x, start, size)


def _each(function, batch, *counts):
    """Returns `function(row, *indices)` for all of them, stacked."""
    for count in reversed(counts):
        function = _over(function, count)
    return jax.vmap(function)(jnp.arange(batch))


def _over(function, count):
    return lambda *at: lax.map(lambda i: function(*at, i), jnp.arange(count))


def _same(plan, slots, row, start, start_k, rows, columns, *, across=False):
    if not plan.segmented:
        return None
    q, k = _cut(slots.q_segments[row], start, rows), _cut(slots.k_segments[row], start_k, columns)
    return by_row(k, (columns, rows)) == by_column(q, (columns, rows)) if across else q[:, None] == k[None, :]


def _strip(plan, inputs, row, head):
    if plan.reach == 0:
        return None
    wide = wide_strip(plan, inputs.strip)[row, head] * LOG2E
    return lambda offset: wide.at[offset + MARGIN].get(mode="fill", wrap_negative_indices=False)  # NaN where it is none


def _turned(x, turn, row, start, *, back=False):
    if turn is None:
        return x
    cos, sin = (_cut(table[row], start, x.shape[0]) for table in turn[:2])
    return turned(x.astype(jnp.float32), cos, -sin if back else sin, turn.factor[row])


def forward(plan, inputs, slots, spans, turn=None):
    batch, tokens, heads, dim = inputs.q.shape
    keys = plan.sizes.keys

    def of_tile(row, head, number):
        tile, wg = number // 2, number % 2
        start = tile * TILE + wg * HALF
        q, strip = _cut(inputs.q[row, :, head], start, HALF), _strip(plan, inputs, row, head)
        q = _rounded(_turned(q, turn, row, start))
        sinks = _cut(inputs.sinks[row, head], start, HALF)
        top = jnp.where(sinks > NOTHING, sinks * LOG2E, NOTHING)
        first, plain_first, plain_end, end = (spans[row, head, tile, i] * (TILE // keys) for i in range(4))

        def step(at, carry):
            mixed, top, total = carry
            start_k = at * keys
            k, v = (_cut(x[row, :, head // plan.groups], start_k, keys) for x in (inputs.k, inputs.v))
            key, query = (lax.broadcasted_iota(jnp.int32, (HALF, keys), i) for i in (1, 0))
            place = Place(start_k - (slots.base[row] + tile * TILE), wg * HALF, plan.keys - start_k)
            t = logits(capped(plan, _product(q, k.T))[0], inputs.slopes[row, head] * LOG2E, key, place)
            same = _same(plan, slots, row, start, start_k, HALF, keys)
            full = written(plan, t, query, key, place, same, strip, keys)
            t = jnp.where((at >= plain_first) & (at < plain_end), t, full)
            weights, kept, top, total = meet_keys(t, top, total)
            mixed = mixed * kept[:, None] + _product(_rounded(weights), v)
            return mixed, top, total + weights.sum(axis=1)

        start_sums = jnp.zeros((HALF, dim)), top, jnp.where(top > NOTHING, 1.0, 0.0)
        mixed, top, total = lax.fori_loop(first, end, step, start_sums)
        factor, lse = finish(top, total)
        return (mixed * factor[:, None]).astype(inputs.v.dtype), lse

    out, lse = _each(of_tile, batch, heads, tokens // HALF)
    return jnp.swapaxes(out.reshape(batch, heads, tokens, dim), 1, 2), lse.reshape(batch, heads, tokens)


def of_queries(plan, inputs, slots, back, spans, turn=None, *, slopes):
    batch, tokens, heads, dim = inputs.q.shape

    def of_tile(row, head, number):
        start = number * HALF
        tile = start // TILE
        q, d_out = (_cut(x[row, :, head], start, HALF) for x in (inputs.q, back.out))
        lse, delta = (_cut(x[row, head], start, HALF) for x in (back.lse, back.delta))
        first, plain_first, plain_end, end = (spans[row, head, tile, i] * 2 for i in range(4))

        def step(at, carry):
            sums, d_slope = carry
            start_k = at * HALF
            k, v = (_cut(x[row, :, head // plan.groups], start_k, HALF) for x in (inputs.k, inputs.v))
            s, bend = capped(plan, _product(q, k.T))
            key, query = (lax.broadcasted_iota(jnp.int32, s.shape, i) for i in (1, 0))
            place = Place(start_k - (slots.base[row] + tile * TILE), start - tile * TILE, plan.keys - start_k)
            t = logits(s, inputs.slopes[row, head] * LOG2E, key, place)
            same = _same(plan, slots, row, start, start_k, HALF, HALF)
            full = written(plan, t, query, key, place, same, _strip(plan, inputs, row, head), HALF)
            t = jnp.where((at >= plain_first) & (at < plain_end), t, full)
            d_logits = gradient(t, lse[:, None], _product(d_out, v.T), delta[:, None])[1]
            if slopes:
                d_slope += slope_gradient(d_logits, key, place, (start + jnp.arange(HALF)) % TILE)
            d_logits = d_logits if bend is None else d_logits * bend
            return sums + _product(_rounded(d_logits), k), d_slope

        d_q, d_slope = lax.fori_loop(first, end, step, (jnp.zeros((HALF, dim)), jnp.zeros(HALF)))
        return _rounded(_turned(d_q, turn, row, start, back=True)), d_slope

    d_q, d_slope = _each(of_tile, batch, heads, tokens // HALF)
    return jnp.swapaxes(d_q.reshape(batch, heads, tokens, dim), 1, 2), d_slope.reshape(batch, heads, tokens)


def of_keys(plan, inputs, slots, back, spans, turn=None):
    batch, keys, kv_heads, dim = inputs.k.shape

    def of_tile(row, kv_head, number):
        start_k = number * HALF
        k, v = (_cut(x[row, :, kv_head], start_k, HALF) for x in (inputs.k, inputs.v))
        first, plain_first, plain_end, end = (spans[row, kv_head, start_k // TILE, i] * 2 for i in range(4))

        def step(at, carry):
            for group in range(plan.groups):
                carry = of_head(kv_head * plan.groups + group, at, carry)
            return carry

        def of_head(head, at, carry):
            d_k, d_v = carry
            start = at * HALF
            tile = start // TILE
            q, d_out = (_cut(x[row, :, head], start, HALF) for x in (inputs.q, back.out))
            lse, delta = (_cut(x[row, head], start, HALF)[None] for x in (back.lse, back.delta))
            s, bend = capped(plan, _product(k, q.T))
            key, query = (lax.broadcasted_iota(jnp.int32, s.shape, i) for i in (0, 1))
            place = Place(start_k - (slots.base[row] + tile * TILE), start - tile * TILE, plan.keys - start_k)
            t = logits(s, inputs.slopes[row, head] * LOG2E, key, place)
            same = _same(plan, slots, row, start, start_k, HALF, HALF, across=True)
            full = written(plan, t, query, key, place, same, _strip(plan, inputs, row, head), HALF)
            t = jnp.where((at >= plain_first) & (at < plain_end), t, full)
            weights, d_logits = gradient(t, lse, _product(v, d_out.T), delta)
            d_logits = d_logits if bend is None else d_logits * bend
            return d_k + _product(_rounded(d_logits), q), d_v + _product(_rounded(weights), d_out)

        d_k, d_v = lax.fori_loop(first, end, step, (jnp.zeros((HALF, dim)),) * 2)
        return _rounded(_turned(d_k, turn, row, start_k, back=True)), _rounded(d_v)

    found = _each(of_tile, batch, kv_heads, keys // HALF)
    return tuple(jnp.swapaxes(x.reshape(batch, kv_heads, keys, dim), 1, 2) for x in found)


def of_strip(plan, inputs, slots, back):
    batch, tokens, heads, _ = inputs.q.shape
    tiles, k_tiles = tokens // TILE, inputs.k.shape[1] // TILE

    def of_offset(row, head, number):
        whole, rest = jnp.divmod(slots.base[row], TILE)
        ahead = whole - (number - 1)

        def step(tile, total):
            start, start_k = tile * TILE, (tile + ahead) * TILE
            q, d_out = (_cut(x[row, :, head], start, TILE) for x in (inputs.q, back.out))
            lse, delta = (_cut(x[row, head], start, TILE)[:, None] for x in (back.lse, back.delta))
            k, v = (_cut(x[row, :, head // plan.groups], start_k, TILE) for x in (inputs.k, inputs.v))
            s = capped(plan, _product(q, k.T))[0]
            key, query = (lax.broadcasted_iota(jnp.int32, s.shape, i) for i in (1, 0))
            place = Place(-rest - (number - 1) * TILE, 0, plan.keys - start_k)
            t = logits(s, inputs.slopes[row, head] * LOG2E, key, place)
            same = _same(plan, slots, row, start, start_k, TILE, TILE)
            t = written(plan, t, query, key, place, same, _strip(plan, inputs, row, head), TILE)
            return total + gradient(t, lse, _product(d_out, v.T), delta)[1]

        first, end = jnp.maximum(0, -ahead), jnp.minimum(tiles, k_tiles - ahead)
        return lax.fori_loop(first, end, step, jnp.zeros((TILE, TILE)))

    return _each(of_offset, batch, heads, near_tiles(plan))


def parts(plan, q, keys, values, rows, slots, strip):
    """As `mosaic_gpu_decode_kernel.parts`."""
    batch, kv_heads, _, _ = q.shape

    def of_part(row, kv_head, split):
        first, end = slots.spans[row, split]
        start_strip = (row * kv_heads + kv_head) * plan.groups * (plan.reach + 1)
        read = None
        if plan.reach:
            at_row = (rows.head * (plan.reach + 1) + start_strip)[:, None]
            read = lambda offset: strip[offset + at_row]  # noqa: E731

        def step(tile, carry):
            mixed, top, total = carry
            cut = lambda x, axis=0: lax.dynamic_slice_in_dim(x, tile * COLUMNS, COLUMNS, axis)  # noqa: E731
            s = _product(q[row, kv_head], cut(keys[row, kv_head], 1))
            own, ids = cut(slots.positions[row]), cut(slots.segments[row])
            offset, same = rows.positions[row][:, None] - own[None], rows.segments[row][:, None] == ids[None]
            slopes = jnp.broadcast_to(rows.slopes[row, kv_head][:, None], s.shape)
            t = decode_logits(plan, s, offset, same, slopes, slots.near[row, tile] > 0, read)
            weights, kept, top, total = meet_keys(t, top, total)
            found = cut(values[row, kv_head])
            found = jnp.where((slots.holes[row, tile] > 0) & (ids < 0)[:, None], 0, found)
            mixed = mixed * kept[:, None] + _product(weights.astype(values.dtype), found)
            return mixed, top, total + weights.sum(axis=1)

        start = jnp.zeros((ROWS, values.shape[-1])), jnp.full(ROWS, NOTHING), jnp.zeros(ROWS)
        mixed, top, total = lax.fori_loop(first, end, step, start)
        factor, lse = finish(top, total)
        return (mixed * factor[:, None])[: plan.rows], lse

    return _each(of_part, batch, kv_heads, plan.splits)
