"""The gradients of the TPU kernel: one kernel goes through the keys of each query, one through the queries of each key.

Weights are worked out anew from the log-sum-exp. Every sum is taken in an order fixed by the grid, so gradients are the
same bit for bit from run to run: those of the phases add up over heads in the kernel, those of the table (slopes,
scale, strip) leave it as partial sums, one a tile of queries.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from rope_jax.attention.call import NOTHING
from rope_jax.attention.pallas_tpu_tile import (
    HIDDEN,
    LANES,
    SCALE,
    SINK,
    SLOPE,
    STRIP,
    Bias,
    Layout,
    Operands,
    Plan,
    Specs,
    Tile,
    capped,
    diagonal_blocks,
    mask,
    outer,
    parameters,
    product,
    turn,
)

_TABLE_BYTES = 8 * 2**20  # of all heads' gradients that one kernel keeps at hand; more heads take several kernels
_PARTIAL_BYTES = 64 * 2**20  # of partial sums; more, and tiles of queries add up one after the other


def backward(
    plan: Plan, operands: Operands, layout: Layout, out: Array, lse: Array, d_out: Array, d_lse: Array
) -> Operands:
    """Returns the gradients of the operands, from the outputs and their cotangents."""
    # A row that saw nothing has zero gradients, whatever its cotangent: its weights are exp(-inf) = 0.
    empty = lse == NOTHING
    # With a sink a padded slot's row is not empty, and its cotangent may be NaN.
    padded = layout.q_marks[:, None, 1, :, None] < 0
    d_out = jnp.where(jnp.swapaxes(empty, 2, 3) | padded, 0, d_out)
    d_lse = jnp.where(empty, 0, d_lse)
    lse = jnp.where(empty, -NOTHING, lse)
    explained = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)[:, :, None]
    rows = (d_out, lse, explained - d_lse)
    d_q, d_q_turn, d_table = _of_queries(plan, operands, layout, rows)
    d_k, d_v, d_k_turn = _of_keys(plan, operands, layout, rows)
    sinks = operands.table[:, :, :, SINK : SINK + 1]
    d_sinks = -jnp.sum(jnp.exp(sinks - lse) * rows[2], axis=-1)
    d_table = d_table.at[:, :, :, SINK].set(d_sinks)
    if operands.table.shape[0] == 1:
        d_table = d_table.sum(axis=0, keepdims=True)
    return Operands(d_q, d_k, d_v, d_q_turn, d_k_turn, d_table)


def _of_queries(plan: Plan, operands: Operands, layout: Layout, rows: tuple) -> tuple[Array, Array, Array]:
    """Returns the gradients of the queries, their phases and the table, `[B, H, 1, ..]`."""
    heads = operands.q.shape[1]
    size = max(1, min(heads, _TABLE_BYTES // (4 * operands.table.shape[-1])))
    parts = [
        _of_query_heads(plan, operands, layout, rows, first, min(size, heads - first))
        for first in range(0, heads, size)
    ]
    d_q, d_turns, d_tables = zip(*parts, strict=True)
    return jnp.concatenate(d_q, axis=1), functools.reduce(jnp.add, d_turns), jnp.concatenate(d_tables, axis=1)


def _of_query_heads(plan: Plan, operands: Operands, layout: Layout, rows: tuple, first: int, heads: int):
    q, v = operands.q, operands.v
    batch, _, count, dim = q.shape
    tiles = count // plan.queries
    width = operands.table.shape[-1]
    partial = 4 * batch * tiles * heads * width <= _PARTIAL_BYTES
    specs = Specs(plan, operands, by_keys=False, first_head=first)
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4,
        grid=(batch, tiles, heads, layout.q_steps),
        in_specs=[
            *(specs.own(dim), specs.other(dim), specs.other(v.shape[-1])),
            *(specs.own_turn(), specs.other_turn(), specs.own_marks(), specs.other_marks(), specs.table()),
            *(specs.own(v.shape[-1]), specs.own_row(), specs.own_row()),
        ],
        out_specs=[
            pl.BlockSpec((1, 1, plan.queries, dim), lambda b, i, h, *_: (b, h, i, 0)),
            specs.own_turn(),
            pl.BlockSpec((1, 1, heads, 1, width), lambda b, i, *_: (b, i if partial else 0, 0, 0, 0)),
        ],
        scratch_shapes=[
            pltpu.VMEM((plan.queries, dim), q.dtype),
            pltpu.VMEM((plan.queries, 1), jnp.int32),
            pltpu.VMEM((plan.queries, 1), jnp.int32),
            pltpu.VMEM((plan.queries, 1), jnp.float32),
            pltpu.VMEM((plan.queries, 1), jnp.float32),
            pltpu.VMEM((plan.queries, dim), jnp.float32),
            pltpu.VMEM((8, plan.keys), jnp.float32),
            *specs.near(),
        ],
    )
    d_q, d_turn, d_table = pl.pallas_call(
        functools.partial(_query_kernel, plan, partial),
        grid_spec=grid_spec,
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, count, dim), q.dtype),
            jax.ShapeDtypeStruct(operands.q_turn.shape, jnp.float32),
            jax.ShapeDtypeStruct((batch, tiles if partial else 1, heads, 1, width), jnp.float32),
        ],
        # Without rotation the phases' gradient is one placeholder, written by every step.
        compiler_params=parameters(
            "parallel" if plan.pairs else "arbitrary",
            "parallel" if partial and plan.pairs else "arbitrary",
            *("arbitrary", "arbitrary"),
        ),
        interpret=plan.interpret,
        name="rope_jax_backward_queries",
    )(
        *(layout.q_info, layout.k_info, layout.q_span, layout.aligned),
        *(operands.q, operands.k, operands.v, operands.q_turn, operands.k_turn),
        *(layout.q_marks, layout.k_marks, operands.table, *rows),
    )
    return d_q, d_turn, d_table.sum(axis=1)


def _query_kernel(
    plan: Plan,
    partial: bool,
    own_info, other_info, span, aligned,
    q_ref, k_ref, v_ref, q_turn, k_turn, q_marks, k_marks, table, d_out_ref, lse_ref, explained_ref,
    d_q_ref, d_turn_ref, d_table_ref,
    turned, q_position, q_segment, lse, explained, d_turned, sums, *near,
):  # fmt: skip
    own, head, step = pl.program_id(1), pl.program_id(2), pl.program_id(3)
    tile = Tile(plan, own_info, other_info, span, aligned, by_keys=False)
    bias = Bias(plan, tile, table, near)
    first_step = (head == 0) & (step == 0)

    @pl.when(first_step)
    def _():
        d_turn_ref[...] = jnp.zeros_like(d_turn_ref)

    @pl.when(first_step if partial else first_step & (own == 0))
    def _():
        d_table_ref[...] = jnp.zeros_like(d_table_ref)

    @pl.when(step == 0)
    def _():
        scaled = turn(q_ref[0, 0], q_turn, plan.pairs) * bias.number(SCALE)
        turned[...] = scaled.astype(turned.dtype)
        q_position[...] = jnp.transpose(q_marks[0, 0:1])
        q_segment[...] = jnp.transpose(q_marks[0, 1:2])
        lse[...] = jnp.transpose(lse_ref[0, 0])
        explained[...] = jnp.transpose(explained_ref[0, 0])
        d_turned[...] = jnp.zeros_like(d_turned)
        sums[...] = jnp.zeros_like(sums)

    def accumulate(plain: bool):
        k = turn(k_ref[0, 0], k_turn, plan.pairs).astype(turned.dtype)
        row, column = (q_position[...], q_segment[...]), (k_marks[0, 0:1], k_marks[0, 1:2])
        logits, slope = capped(outer(turned[...], k), plan.settings)
        added, distance = bias.separated(row[0], column[0]) if plain else bias.written(row[0], column[0])
        logits = logits + added
        if not plain:
            logits = jnp.where(mask(row, column, plan.settings, by_keys=False), logits, HIDDEN)
        weights = jnp.exp(logits - lse[...])
        d_logits = weights * (outer(d_out_ref[0, 0], v_ref[0, 0]) - explained[...])
        sums[0:1] -= jnp.sum(d_logits * distance, axis=0, keepdims=True)
        if plain or bias.near is None:
            _add_end(sums, d_logits, bias.at_left)
        else:
            bias.near[...] = d_logits
            pl.when(tile.meeting.flat)(lambda: _add_end(sums, bias.near[...], bias.at_left))
        if slope is not None:
            d_logits = d_logits * slope
        d_turned[...] += product(d_logits.astype(k.dtype), k)

    bias.write_near(lambda: (q_position[...], k_marks[0, 0:1]))
    pl.when(tile.sees & tile.meeting.plain)(lambda: accumulate(True))
    pl.when(tile.sees & ~tile.meeting.plain)(lambda: accumulate(False))
    if plan.reach:
        near_tile = tile.sees & ~tile.meeting.flat
        pl.when(near_tile & tile.diagonal)(lambda: _add_diagonals(d_table_ref, head, bias))
        pl.when(near_tile & ~tile.diagonal)(
            lambda: _add_entries(d_table_ref, head, bias, q_position[...], k_marks[0, 0:1])
        )

    @pl.when(tile.last_step)
    def _():
        q = q_ref[0, 0].astype(jnp.float32)
        d_scale = jnp.sum(d_turned[...] * turn(q, q_turn, plan.pairs))
        d_scaled = d_turned[...] * bias.number(SCALE)
        d_q_ref[0, 0] = _turn_back(d_scaled, q_turn, plan.pairs).astype(d_q_ref.dtype)
        _add_turn(d_turn_ref, d_scaled, q, plan.pairs)
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        # A number repeated over lanes, like the end of the strip, may take its gradient in any of them.
        width = d_table_ref.shape[-1]
        for at, value in (
            (SLOPE, _folded(sums[0:1])),
            (SCALE, jnp.where(lane == 0, d_scale, 0.0)),
            (STRIP, _folded(sums[1:2])),
            (width - LANES, _folded(sums[2:3])),
        ):
            d_table_ref[0, 0, head, :, at : at + LANES] += value


def _of_keys(plan: Plan, operands: Operands, layout: Layout, rows: tuple) -> tuple[Array, Array, Array]:
    """Returns the gradients of the keys, the values and the keys' phases."""
    k, v = operands.k, operands.v
    batch, heads, count, dim = k.shape
    specs = Specs(plan, operands, by_keys=True)
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4,
        grid=(batch, count // plan.keys, heads, plan.groups, layout.k_steps),
        in_specs=[
            *(specs.other(dim), specs.own(dim), specs.own(v.shape[-1])),
            *(specs.other_turn(), specs.own_turn(), specs.other_marks(), specs.own_marks(), specs.table()),
            *(specs.other(v.shape[-1]), specs.other_row(), specs.other_row()),
        ],
        out_specs=[specs.own(dim), specs.own(v.shape[-1]), specs.own_turn()],
        scratch_shapes=[
            pltpu.VMEM((plan.keys, dim), k.dtype),
            pltpu.VMEM((plan.keys, 1), jnp.int32),
            pltpu.VMEM((plan.keys, 1), jnp.int32),
            pltpu.VMEM((plan.keys, dim), jnp.float32),
            pltpu.VMEM((plan.keys, v.shape[-1]), jnp.float32),
            *specs.near(),
        ],
    )
    semantics: Literal["parallel", "arbitrary"] = "parallel" if plan.pairs else "arbitrary"
    d_k, d_v, d_turn = pl.pallas_call(
        functools.partial(_key_kernel, plan),
        grid_spec=grid_spec,
        out_shape=[
            jax.ShapeDtypeStruct(k.shape, k.dtype),
            jax.ShapeDtypeStruct(v.shape, v.dtype),
            jax.ShapeDtypeStruct(operands.k_turn.shape, jnp.float32),
        ],
        compiler_params=parameters(semantics, semantics, "arbitrary", "arbitrary", "arbitrary"),
        interpret=plan.interpret,
        name="rope_jax_backward_keys",
    )(
        *(layout.k_info, layout.q_info, layout.k_span, layout.aligned),
        *(operands.q, k, v, operands.q_turn, operands.k_turn),
        *(layout.q_marks, layout.k_marks, _by_keys(operands.table, plan), *rows),
    )
    return d_k, d_v, d_turn


def _by_keys(table: Array, plan: Plan) -> Array:
    """Returns the table with the strip from the smallest offset to the largest."""
    strip = jnp.flip(table[..., STRIP : STRIP + 2 * plan.centre + 1], axis=-1)
    pad = [(0, 0)] * (table.ndim - 1) + [(0, LANES - 1)]
    return jnp.concatenate([table[..., :STRIP], jnp.pad(strip, pad, mode="edge")], axis=-1)


def _key_kernel(
    plan: Plan,
    own_info, other_info, span, aligned,
    q_ref, k_ref, v_ref, q_turn, k_turn, q_marks, k_marks, table, d_out_ref, lse_ref, explained_ref,
    d_k_ref, d_v_ref, d_turn_ref,
    turned, k_position, k_segment, d_turned, d_v, *near,
):  # fmt: skip
    head, group, step = pl.program_id(2), pl.program_id(3), pl.program_id(4)
    tile = Tile(plan, own_info, other_info, span, aligned, by_keys=True)
    bias = Bias(plan, tile, table, near)

    @pl.when((head == 0) & (group == 0) & (step == 0))
    def _():
        d_turn_ref[...] = jnp.zeros_like(d_turn_ref)

    @pl.when((group == 0) & (step == 0))
    def _():
        turned[...] = turn(k_ref[0, 0], k_turn, plan.pairs).astype(turned.dtype)
        k_position[...] = jnp.transpose(k_marks[0, 0:1])
        k_segment[...] = jnp.transpose(k_marks[0, 1:2])
        d_turned[...] = jnp.zeros_like(d_turned)
        d_v[...] = jnp.zeros_like(d_v)

    def accumulate(plain: bool):
        q = (turn(q_ref[0, 0], q_turn, plan.pairs) * bias.number(SCALE)).astype(turned.dtype)
        d_out = d_out_ref[0, 0]
        row, column = (k_position[...], k_segment[...]), (q_marks[0, 0:1], q_marks[0, 1:2])
        logits, slope = capped(outer(turned[...], q), plan.settings)
        logits = logits + (bias.separated(row[0], column[0]) if plain else bias.written(row[0], column[0]))[0]
        if not plain:
            logits = jnp.where(mask(row, column, plan.settings, by_keys=True), logits, HIDDEN)
        weights = jnp.exp(logits - lse_ref[0, 0])
        d_v[...] += product(weights.astype(d_out.dtype), d_out)
        d_logits = weights * (outer(v_ref[0, 0], d_out) - explained_ref[0, 0])
        if slope is not None:
            d_logits = d_logits * slope
        d_turned[...] += product(d_logits.astype(q.dtype), q)

    bias.write_near(lambda: (k_position[...], q_marks[0, 0:1]))
    pl.when(tile.sees & tile.meeting.plain)(lambda: accumulate(True))
    pl.when(tile.sees & ~tile.meeting.plain)(lambda: accumulate(False))

    @pl.when((group == plan.groups - 1) & tile.last_step)
    def _():
        d_k_ref[0, 0] = _turn_back(d_turned[...], k_turn, plan.pairs).astype(d_k_ref.dtype)
        d_v_ref[0, 0] = d_v[...].astype(d_v_ref.dtype)
        _add_turn(d_turn_ref, d_turned[...], k_ref[0, 0].astype(jnp.float32), plan.pairs)


def _turn_back(d_turned: Array, turns, pairs: int) -> Array:
    """Returns the gradient of a tile from that of the turned tile."""
    if pairs == 0:
        return d_turned
    first, second, rest = d_turned[:, :pairs], d_turned[:, pairs : 2 * pairs], d_turned[:, 2 * pairs :]
    cos, sin = turns[0, :, :pairs], turns[0, :, pairs:]
    d_tile = [first * cos + second * sin, second * cos - first * sin]
    return jnp.concatenate([*d_tile, rest] if rest.shape[1] else d_tile, axis=1)


def _add_turn(d_turn_ref, d_turned: Array, x: Array, pairs: int) -> None:
    """Adds a head's gradient of cos and sin."""
    if pairs == 0:
        return
    d_first, d_second = d_turned[:, :pairs], d_turned[:, pairs : 2 * pairs]
    first, second = x[:, :pairs], x[:, pairs : 2 * pairs]
    d_cos_sin = [d_first * first + d_second * second, d_second * first - d_first * second]
    d_turn_ref[0] += jnp.concatenate(d_cos_sin, axis=1)


def _folded(row: Array) -> Array:
    """Returns a row of sums added up into 128 lanes."""
    parts = [row[:, at : at + LANES] for at in range(0, row.shape[1], LANES)]
    return functools.reduce(jnp.add, parts)


def _add_end(sums, d_logits: Array, at_left: Array) -> None:
    part = jnp.sum(d_logits, axis=0, keepdims=True)
    sums[1:2] += jnp.where(at_left, part, 0.0)
    sums[2:3] += jnp.where(at_left, 0.0, part)


def _add_diagonals(d_table_ref, head: Array, bias: Bias) -> None:
    """Adds the sum of each diagonal of a tile to its entry of the strip."""
    start, rest = bias.window()
    rows, columns = bias.rows // LANES, bias.columns // LANES
    nothing = jnp.zeros((1, LANES), jnp.float32)
    parts = [nothing] * (rows + columns + 1)
    for diagonal in range(rows + columns - 1):
        block = functools.reduce(jnp.add, [bias.near[at] for at in diagonal_blocks(diagonal, rows, columns)])
        block = jnp.concatenate([jnp.zeros_like(block), block], axis=1)
        # Row r goes r slots to the left; halves of the rows are added until one is left.
        half = LANES
        while half > 1:
            half //= 2
            block = block[:half] + pltpu.roll(block[half:], 2 * LANES - half, 1)
        parts[diagonal] += block[:, :LANES]
        parts[diagonal + 1] += block[:, LANES:]
    added = jnp.broadcast_to(jnp.concatenate(parts, axis=1), (8, bias.window_size))
    at = (0, 0, head, slice(None), pl.ds(start, bias.window_size))
    d_table_ref[at] += pltpu.roll(added, rest, 1)[:1]


def _add_entries(d_table_ref, head: Array, bias: Bias, row: Array, column: Array) -> None:
    """Adds every entry of a tile to the strip, one number of the strip at a time: slow, for any positions."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    first, last = bias.chunks()

    def add_chunk(chunk, _):
        local = bias.entries(row, column) - chunk * LANES

        def add_number(number, chunk_sums):
            value = jnp.sum(jnp.where(local == number, bias.near[...], 0.0))
            return chunk_sums + jnp.where(lane == number, value, 0.0)

        added = jax.lax.fori_loop(0, LANES, add_number, jnp.zeros((1, LANES), jnp.float32))
        at = (0, 0, head, slice(None), pl.ds(pl.multiple_of(STRIP + chunk * LANES, LANES), LANES))
        d_table_ref[at] += added

    jax.lax.fori_loop(first, last, add_chunk, None)
