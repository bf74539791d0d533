"""The backward pass of blockwise attention: tile by tile again, from the log-sum-exps, in the memory of a tile.

    dS = P * (dO V^T - D),  D = rowsum(dO * O) - d(lse),  dV = P^T dO,  dK = dS^T Q,  dQ = dS K

A tile has keys as its rows: then three of its five products need no operand transposed, and the fourth and fifth take
operands that were transposed once.

Axes as in `blockwise`. Source: Dao et al., arXiv 2205.14135, appendix B.2; the cotangent of the log-sum-exp added.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from rope_jax import rotation
from rope_jax.attention import blockwise_wide_backward, machine
from rope_jax.attention.call import NOTHING, Settings, Tokens, without_padding
from rope_jax.attention.heads import Results, each_head
from rope_jax.attention.logits import capped, distance, separated_line, strip_gradient, tile_mask, written_bias
from rope_jax.attention.operands import (
    ALL,
    Asked,
    Operands,
    Plan,
    Row,
    at,
    from_tiles,
    in_tiles,
    logit_bounds,
    prepare,
    turned_tiles,
    without_effect,
)
from rope_jax.attention.tiles import midpoint


class Gradients(NamedTuple):
    """Of one tile of keys, and of all queries so far."""

    k: Array  # [C, d], of the turned keys
    v: Array  # [C, e]
    q: Array  # [tiles, d, R], of the turned and scaled queries
    slopes: Array  # [G]
    strip: Array  # [G, 2M + 1]
    frequencies: Array  # [P]


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
    *,
    correction: Float32[Array, "batch queries heads"] | None = None,
    asked: Asked = ALL,
) -> Operands:
    """Returns the gradient of every operand; `out` and `lse` may be of more keys than these, as in a ring.

    Weights taken from `lse` are off by its rounding; `correction` says by which factor. What is not `asked` for may be
    zeros.
    """
    correction = jnp.ones_like(lse) if correction is None else correction
    if machine.heads_at_once():
        return blockwise_wide_backward.backward(
            operands,
            queries,
            keys,
            out,
            lse,
            without_padding(d_out, queries),
            d_lse,
            settings,
            layout,
            correction,
            asked,
        )
    by_token, by_head, row, plan = prepare(operands, queries, keys, settings)
    batch, tokens, kv_heads, groups, _ = by_token[0].shape
    of_heads = lambda x: x.reshape(batch, tokens, kv_heads, groups, *x.shape[3:])  # noqa: E731
    by_token = (*by_token, *(of_heads(x) for x in (out, lse, d_out, d_lse, correction)))

    pairs = operands.frequencies.shape[-1]
    of_head = functools.partial(_backward_head, settings=settings, layout=layout, plan=plan, turning=pairs)
    zeros = Results(
        by_token=tuple(row.zeros(*x.shape).astype(x.dtype) for x in by_token[:3]),
        by_row=jax.tree.map(
            lambda x: row.zeros(*x.shape),
            (operands.q_turn, operands.k_turn, operands.frequencies, operands.scale),
        ),
    )
    results = each_head(of_head, by_token, by_head, row, zeros)
    (q, k, v), (slopes, strip, sinks), (q_turn, k_turn, frequencies, scale) = results
    return Operands(
        q=q.reshape(operands.q.shape),
        k=k,
        v=v,
        q_turn=q_turn,
        k_turn=k_turn,
        frequencies=frequencies,
        scale=scale * settings.scale,
        slopes=slopes.reshape(operands.slopes.shape),
        strip=strip.reshape(operands.strip.shape),
        sinks=sinks.reshape(operands.sinks.shape),
    )


def _backward_head(by_token, by_head, row: Row, *, settings: Settings, layout, plan: Plan, turning: int) -> Results:
    """Returns the gradients of one key head, and what it adds to those that heads share.

    Args:
      by_token: arrays of one key head.
      by_head: the same.
      row: what the heads of the sequence share.
      settings: of the call.
      layout: of the rotary pairs.
      plan: tiles.
      turning: rotary pairs whose frequencies get a gradient here.
    """
    (q, k, v, out, lse, d_out, d_lse, correction), (slopes, strip, sinks) = by_token, by_head
    # A query that saw nothing has zero gradients, whatever it holds: zero times NaN would reach the phases.
    q = jnp.where(lse[..., None] > NOTHING, q, 0)
    # Every gradient is linear in weight * cotangent, row by row.
    d_out, d_lse = d_out * correction[..., None], d_lse * correction
    groups = q.shape[1]
    swap = lambda x: jnp.swapaxes(x, 1, 2)  # noqa: E731
    turned_q, turn_back_q = jax.vjp(lambda x, turn: turned_tiles(x, turn, layout, plan.rows), q, row.q_turn)
    turned_k, turn_back_k = jax.vjp(lambda x, turn: turned_tiles(x[:, None], turn, layout, plan.columns), k, row.k_turn)
    q_tiles = turned_q * row.scale
    k_tiles, v_tiles = turned_k, in_tiles(v[:, None], plan.columns).astype(jnp.float32)
    # Where a slot holds nothing a cotangent of the output may be NaN, and with a sink its query has a log-sum-exp.
    held = row.queries.segments >= 0
    delta = jnp.where(held.reshape(-1)[: q.shape[0], None], jnp.sum(d_out * out, axis=-1), 0)  # [N, G]
    through_lse = delta - d_lse
    do_tiles, lse_tiles, delta_tiles = (in_tiles(x, plan.rows) for x in (d_out, lse, through_lse))
    do_tiles = jnp.where(jnp.tile(held, (1, groups))[..., None], do_tiles, 0)
    bounds = logit_bounds(q_tiles, k_tiles, slopes, strip, row.pairs, settings)
    wanted = row.pairs.sees
    if settings.skip_tiles:
        wanted &= ~_void(bounds, k_tiles, v_tiles, out, lse, row, plan)
    q_across, do_across, k_across = swap(q_tiles), swap(do_tiles), swap(k_tiles)
    # Queries are the columns here; a single group has no axis of its own, as in the forward pass.
    shape = (plan.columns, plan.rows) if groups == 1 else (plan.columns, groups, plan.rows)

    def of_tile(state, tile):
        q_gradient, slopes_gradient, strip_gradients, frequencies_gradient = state
        k, k_across, v, j, wanted, is_plain = tile
        rows = row.side_of_keys(j)
        # Every pair of a query and a key adds nothing to the sum of all phases' gradients: the tile's own place is 0.
        here = midpoint(at(row.keys.first, j), at(row.keys.last, j))
        is_plain &= is_plain.shape[0] > 1  # for a single tile only the general form is compiled
        order = jnp.argsort(jnp.where(wanted, is_plain, 2), stable=True)  # what needs the general form comes first
        general_ones, all_ones = (x.sum(dtype=jnp.int32) for x in (wanted & ~is_plain, wanted))

        def products(i):
            """Returns `dS` of what the soft cap made, from the weights; and how to add it."""
            raw = jnp.dot(k, at(q_across, i), preferred_element_type=jnp.float32).reshape(shape)
            return capped(raw, settings.soft_cap)

        def add(i, p, slope, sums: Gradients):
            d_weights = jnp.dot(v, at(do_across, i), preferred_element_type=jnp.float32).reshape(shape)
            d_logits = p * (d_weights - at(delta_tiles, i).reshape(1, *shape[1:]))
            d_raw = d_logits if slope is None else d_logits * slope
            flat_p, flat = p.reshape(plan.columns, -1), d_raw.reshape(plan.columns, -1)
            d_q = jnp.dot(k_across, flat, preferred_element_type=jnp.float32)
            far = jnp.tile((at(row.queries.positions, i) - here).astype(jnp.float32), groups)
            moments = phase_moments(at(q_across, i), d_q, far, turning, layout)
            return d_logits, sums._replace(
                k=sums.k + jnp.dot(flat, at(q_tiles, i), preferred_element_type=jnp.float32),
                v=sums.v + jnp.dot(flat_p, at(do_tiles, i), preferred_element_type=jnp.float32),
                q=jax.lax.dynamic_update_index_in_dim(sums.q, at(sums.q, i) + d_q, i, 0),
                frequencies=sums.frequencies + moments,
            )

        def general(n, sums: Gradients) -> Gradients:
            i = at(order, n)
            columns = row.side_of_queries(i)
            mask, bias = tile_mask(rows, columns, settings), written_bias(slopes, strip, rows, columns)
            if groups > 1:
                mask, bias = mask[:, None, :], jnp.swapaxes(bias, 0, 1)
            else:
                bias = bias[0]
            s, slope = products(i)
            shifted = s + bias - at(lse_tiles, i).reshape(1, *shape[1:])
            p = jnp.where(mask, jnp.exp(shifted), 0.0)
            d_logits, sums = add(i, p, slope, sums)
            by_group = d_logits[None] if groups == 1 else jnp.swapaxes(d_logits, 0, 1)
            line = jnp.sum(by_group * distance(rows, columns)[None], axis=(1, 2))
            return sums._replace(
                slopes=sums.slopes - line, strip=sums.strip + strip_gradient(by_group, strip, rows, columns)
            )

        def plain(n, sums: Gradients) -> Gradients:
            i = at(order, n)
            positions = at(row.queries.positions, i)
            of_query, of_key, side = separated_line(slopes, strip, positions, rows.positions[None])
            shift = at(lse_tiles, i).reshape(groups, -1) - at(of_query, side[0])
            column = of_key[0].T.reshape(plan.columns, *shape[1:-1], 1)
            s, slope = products(i)
            p = jnp.exp(s + column - shift.reshape(1, *shape[1:]))
            d_logits, sums = add(i, p, slope, sums)
            # sum of dS |i - j| = sum of dS (i - a) + sum of dS (a - j), for keys behind; the negative of it ahead
            anchor = jnp.where(side[0] == 1, positions.max(), positions.min())
            total = d_logits.sum(axis=-1).reshape(plan.columns, groups)
            ahead_of_anchor = (positions - anchor).astype(jnp.float32).reshape(*(1,) * (len(shape) - 1), -1)
            moment = (d_logits * ahead_of_anchor).sum(axis=-1).reshape(plan.columns, groups)
            line = moment + total * (anchor - rows.positions).astype(jnp.float32)[:, None]
            end = jnp.where(side[0] == 1, 0, strip.shape[1] - 1)
            return sums._replace(
                slopes=sums.slopes - jnp.where(side[0] == 1, -1.0, 1.0) * line.sum(axis=0),
                strip=sums.strip.at[:, end].add(total.sum(axis=0)),
            )

        gradients = q_gradient, slopes_gradient, strip_gradients, frequencies_gradient
        start = Gradients(row.zeros(*k.shape), row.zeros(*v.shape), *gradients)
        sums = jax.lax.fori_loop(0, general_ones, general, start)
        if order.shape[0] > 1:
            sums = jax.lax.fori_loop(general_ones, all_ones, plain, sums)
        far = (rows.positions - here).astype(jnp.float32)
        moments = phase_moments(k_across, sums.k.T, far, turning, layout)
        return (sums.q, sums.slopes, sums.strip, sums.frequencies + moments), (sums.k, sums.v)

    start = tuple(row.zeros(*shape) for shape in (q_across.shape, slopes.shape, strip.shape, (turning,)))
    tiles = (
        k_tiles,
        k_across,
        v_tiles,
        jnp.arange(k_tiles.shape[0], dtype=jnp.int32),
        wanted.T,
        row.pairs.plain.T,
    )
    (q_across_gradient, d_slopes, d_strip, d_frequencies), (d_k, d_v) = jax.lax.scan(of_tile, start, tiles)
    d_q = swap(q_across_gradient)
    d_scale = jnp.sum(d_q * turned_q)
    (d_q, d_q_turn), (d_k, d_k_turn) = turn_back_q(d_q * row.scale), turn_back_k(d_k)
    by_sink = jnp.where(lse > NOTHING, jnp.exp(jnp.minimum(sinks[None, :] - lse, 0.0)), 0.0)
    d_sinks = -jnp.sum(by_sink * through_lse, axis=0)
    d_v = from_tiles(d_v, 1, v.shape[0])[:, 0]
    return Results(
        by_token=(d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)),
        by_head=(d_slopes, d_strip, d_sinks),
        by_row=(d_q_turn, d_k_turn, d_frequencies, d_scale),
    )


def phase_moments(
    turned: Float[Array, "dim tokens"],
    d_turned: Float32[Array, "dim tokens"],
    distances: Float32[Array, " tokens"],
    pairs: int,
    layout: rotation.Layout,
) -> Float32[Array, " pairs"]:
    """Returns the gradient of the first pairs' frequencies from that of turned vectors, counted from any position.

    A pair's phase `a` turns `(x, y)`, so its gradient is `x dy - y dx`; and `a` grows by the frequency a position.
    """
    if layout == "half":
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    else:
        first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    turned = turned.astype(jnp.float32)
    return (turned[first] * d_turned[second] - turned[second] * d_turned[first]) @ distances


def _void(bounds, k_tiles, v_tiles, out, lse, row: Row, plan: Plan):
    """Returns which tiles cannot change any gradient beyond rounding, `[query tiles, key tiles]`."""
    groups = lse.shape[1]
    rows_of = lambda x: in_tiles(x, plan.rows).reshape(-1, groups, plan.rows)  # noqa: E731
    counts = jnp.broadcast_to(
        (row.queries.segments >= 0)[:, None, :], (row.queries.segments.shape[0], groups, plan.rows)
    )
    lowest = lambda x: jnp.min(rows_of(x), axis=2, where=counts, initial=-NOTHING).T  # noqa: E731
    of_output = lse + jnp.log(jnp.abs(out).max(axis=-1))
    k_sizes, v_sizes = (jnp.abs(x.astype(jnp.float32)).max(axis=(1, 2)) for x in (k_tiles, v_tiles))
    return without_effect(
        bounds, k_sizes, v_sizes, lowest(lse), lowest(of_output), row.keys.some, row.pairs.farthest, plan.columns
    )
