"""Attention tile by tile with an online softmax: pure JAX, any platform, memory of a tile beside inputs and outputs.

The exponentials of a row are taken against a reference: the row's maximum so far, or an older one while a bound shows
that nothing can overflow. Most tiles then need neither a maximum nor a rescaled sum.

Axes: B batch, N queries, S keys, K key heads, G query heads to a key head, R = G * (queries of a tile) rows,
C keys of a tile, d head dimension, e value dimension, P rotary pairs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from rope_jax import rotation
from rope_jax.attention import blockwise_backward
from rope_jax.attention.call import NOTHING, Settings, Tokens, without_padding
from rope_jax.attention.heads import Results, each_head
from rope_jax.attention.logits import Side, separated_line, tile_mask, written_bias
from rope_jax.attention.operands import (
    ROUNDING,
    Operands,
    Row,
    at,
    from_tiles,
    in_tiles,
    logit_bounds,
    prepare,
    turned_tiles,
    vary_together,
)
from rope_jax.scheme import Scheme

MARGIN = 30.0  # nats that a logit may lie above its row's reference before the reference is renewed


class Sums(NamedTuple):
    """A tile of queries on its way along the keys."""

    reference: Array  # [R], nats
    weight: Array  # [R], sum of exp(logit - reference)
    mixed: Array  # [R, e], the same sum over values


def attend(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    sinks: Float[Array, " heads"] | None,
    queries: Tokens,
    keys: Tokens,
    settings: Settings,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns outputs and log-sum-exps; arguments as in `rope_jax.attention.attention`."""
    operands = Operands.of(
        without_padding(q, queries),
        without_padding(k, keys),
        without_padding(v, keys),
        scheme,
        sinks,
        scheme.cos_sin(queries.positions),
        scheme.cos_sin(keys.positions),
    )
    operands = vary_together(operands, queries, keys)
    out, lse = differentiable(operands, queries, keys, settings, scheme.layout)
    return out.astype(v.dtype), lse


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def differentiable(
    operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, layout: rotation.Layout
) -> tuple[Float32[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns what `forward` does, with a backward pass of the same memory."""
    return forward(operands, queries, keys, settings, layout)


def _forward_rule(operands, queries, keys, settings, layout):
    out, lse, correction = _with_correction(operands, queries, keys, settings, layout)
    return (out, lse), (operands, queries, keys, out, lse, correction)


def _backward_rule(settings, layout, residuals, cotangents):
    operands, queries, keys, out, lse, correction = residuals
    d_out, d_lse = cotangents
    # Every gradient is linear in weight * cotangent, row by row.
    d_out, d_lse = d_out * correction[..., None], d_lse * correction
    gradients = blockwise_backward.backward(operands, queries, keys, out, lse, d_out, d_lse, settings, layout)
    return gradients, None, None


differentiable.defvjp(_forward_rule, _backward_rule)


def forward(
    operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, layout: rotation.Layout
) -> tuple[Float32[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns float32 outputs and log-sum-exps."""
    out, lse, _ = _with_correction(operands, queries, keys, settings, layout)
    return out, lse


def _with_correction(
    operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, layout: rotation.Layout
) -> tuple[
    Float32[Array, "batch queries heads v_dim"],
    Float32[Array, "batch queries heads"],
    Float32[Array, "batch queries heads"],
]:
    """Returns outputs, log-sum-exps, and what weights taken from these must be multiplied by.

    A log-sum-exp of 10 is rounded to 5e-7, and every weight of its row would be off by as much.
    """
    by_token, by_head, row, size, together = prepare(operands, queries, keys, settings)

    of_head = functools.partial(_forward_head, settings=settings, layout=layout, size=size, wide=not together)
    shape = by_token[0].shape[:-1]  # [B, N, K, G]
    zeros = Results(by_token=(row.zeros(*shape, operands.v.shape[-1]), row.zeros(*shape), row.zeros(*shape)))
    out, lse, correction = each_head(of_head, by_token, by_head, row, zeros, together=together).by_token
    heads = operands.q.shape[:3]
    return out.reshape(*heads, -1), lse.reshape(heads), correction.reshape(heads)


def _forward_head(by_token, by_head, row: Row, *, settings: Settings, layout, size, wide: bool) -> Results:
    """Returns outputs `[N, G, e]`, log-sum-exps and corrections `[N, G]` of one key head."""
    (q, k, v), (slopes, strip, sinks) = by_token, by_head
    tokens, groups, _ = q.shape
    dtype = jnp.float32 if wide else q.dtype
    q_tiles = turned_tiles(q.astype(jnp.float32) * row.scale, row.q_turn, layout, size[0]).astype(dtype)
    k_tiles = jnp.swapaxes(turned_tiles(k[:, None], row.k_turn, layout, size[1]).astype(dtype), 1, 2)
    v_tiles = in_tiles(v[:, None], size[1]).astype(dtype)
    bounds = logit_bounds(q_tiles, jnp.swapaxes(k_tiles, 1, 2), slopes, strip, row.pairs, settings)
    v_sizes = jnp.abs(v_tiles.astype(jnp.float32)).max(axis=(1, 2))
    # XLA's CPU backend shares the outermost dimension out among the cores, so a single group has no axis of its own.
    shape = size if groups == 1 else (groups, *size)

    def of_tile(tile):
        q, positions, segments, contiguous, pairs, bounds = tile  # bounds [G, tiles of keys]
        order = jnp.argsort(jnp.where(pairs.sees, pairs.nearest, jnp.iinfo(jnp.int32).max), stable=True)
        count = pairs.sees.sum(dtype=jnp.int32)
        of_query, of_key, side = separated_line(slopes, strip, positions, row.keys.positions)

        def logits(j):
            s = jnp.dot(q, at(k_tiles, j), preferred_element_type=jnp.float32).reshape(shape)
            return s if settings.soft_cap is None else settings.soft_cap * jnp.tanh(s / settings.soft_cap)

        def mix(p, j):
            p = p.reshape(-1, size[1]).astype(dtype)
            return jnp.dot(p, at(v_tiles, j), preferred_element_type=jnp.float32)

        def general(j, sums: Sums) -> Sums:
            rows, columns = Side(positions, segments, contiguous, 1), row.side_of_keys(j)
            mask = jnp.broadcast_to(tile_mask(rows, columns, settings), shape)
            s = jnp.where(mask, logits(j) + written_bias(slopes, strip, rows, columns).reshape(shape), NOTHING)
            reference = jnp.maximum(sums.reference, s.max(axis=-1).reshape(-1))
            p = jnp.where(mask, jnp.exp(s - reference.reshape(*shape[:-1], 1)), 0.0)
            kept = jnp.exp(sums.reference - reference)
            weight = kept * sums.weight + p.sum(axis=-1).reshape(-1)
            return Sums(reference, weight, kept[:, None] * sums.mixed + mix(p, j))

        def plain(j, sums: Sums, shifts) -> Sums:
            shift = shifts[0] if settings.causal else at(shifts, at(side, j))
            column = at(of_key, j)
            column = column if groups == 1 else column[:, None, :]
            p = jnp.exp(logits(j) + column - shift.reshape(*shape[:-1], 1))
            return Sums(sums.reference, sums.weight + p.sum(axis=-1).reshape(-1), sums.mixed + mix(p, j))

        void_below = _void_below(bounds, v_sizes, order, count, size[1]) if settings.skip_tiles else None

        def stretch(state):
            """A general tile, and all plain ones that follow it."""
            # Loops in place of a conditional, in whose branches XLA's CPU backend uses one core only.
            n, _, sums = state
            sums = general(at(order, n), sums)
            lowest = _lowest(sums.reference, segments, groups)
            steady = (pairs.plain & (bounds - lowest[:, None] <= MARGIN).all(axis=0))[order]
            void = jnp.zeros(steady.shape, bool) if void_below is None else void_below(sums, segments)
            steps = jnp.arange(order.shape[0])
            end = jnp.min(steps, where=(steps > n) & (void | ~steady), initial=order.shape[0])
            end = jnp.minimum(end, count).astype(jnp.int32)
            shifts = sums.reference[None, :] - of_query.reshape(2, -1)  # references stay while the stretch lasts
            sums = jax.lax.fori_loop(n + 1, end, lambda n, sums: plain(at(order, n), sums, shifts), sums)
            return end, (void & (steps == end)).any(), sums

        reference = jnp.broadcast_to(sinks[:, None], (groups, size[0])).reshape(-1)
        start = Sums(
            reference,
            jnp.where(reference > NOTHING, 1.0, 0.0),
            row.zeros(groups * size[0], v.shape[-1]),
        )
        if order.shape[0] == 1:
            sums = general(jnp.int32(0), start)
        else:
            begin = (row.origin.astype(jnp.int32), row.origin > 0, start)
            _, _, sums = jax.lax.while_loop(lambda state: (state[0] < count) & ~state[1], stretch, begin)
        some = sums.weight > 0
        weight = jnp.where(some, sums.weight, 1.0)
        lse = jnp.where(some, sums.reference + jnp.log(weight), NOTHING)
        correction = jnp.where(some, jnp.exp(jnp.minimum(lse - sums.reference, MARGIN)) / weight, 1.0)
        return sums.mixed / weight[:, None], lse, correction

    tiles = row.queries
    results = jax.lax.map(
        of_tile, (q_tiles, tiles.positions, tiles.segments, tiles.contiguous, row.pairs, jnp.moveaxis(bounds, 0, 1))
    )
    return Results(by_token=tuple(from_tiles(x, groups, tokens) for x in results))


def _void_below(bounds, v_sizes, order, count, columns):
    """Returns a function that says from which tile on, in order, nothing can change beyond rounding.

    What all remaining tiles could add is at most (keys left) * exp(largest bound left), and that times the largest
    value left. It must vanish beside each row's own sum and beside each row's own output.
    """
    steps = jnp.arange(order.shape[0])
    in_order = jnp.where(steps[None, :] < count, bounds[:, order], NOTHING)
    rest = jax.lax.cummax(in_order, axis=1, reverse=True)
    rest_values = jnp.log(jax.lax.cummax(v_sizes[order], reverse=True))[None, :]
    keys_left = jnp.maximum(count - steps, 1).astype(jnp.float32) * columns
    excess = rest + jnp.log(keys_left / ROUNDING)[None, :]

    def void(sums: Sums, segments):
        groups = bounds.shape[0]
        lse = jnp.where(sums.weight > 0, sums.reference + jnp.log(sums.weight), NOTHING)
        of_output = sums.reference + jnp.log(jnp.abs(sums.mixed).max(axis=1))
        of_sum = _lowest(lse, segments, groups)[:, None]
        return (excess <= jnp.minimum(of_sum, _lowest(of_output, segments, groups)[:, None] - rest_values)).all(axis=0)

    return void


def _lowest(x: Float32[Array, " rows"], segments, groups: int) -> Float32[Array, " groups"]:
    """Returns the smallest of each group's rows, those of empty slots apart."""
    counts = jnp.broadcast_to(segments >= 0, (groups, segments.shape[0]))
    return jnp.min(x.reshape(groups, -1), axis=1, where=counts, initial=-NOTHING)
