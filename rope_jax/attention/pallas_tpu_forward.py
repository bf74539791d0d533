"""The forward TPU kernel: a tile of queries goes through the tiles of keys with an online softmax."""

import functools

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
    Bias,
    Layout,
    Operands,
    Plan,
    Specs,
    Tile,
    capped,
    mask,
    outer,
    parameters,
    product,
    turn,
)


def forward(plan: Plan, operands: Operands, layout: Layout) -> tuple[Array, Array]:
    """Returns outputs `[B, H, N, e]` and log-sum-exps `[B, H, 1, N]`."""
    q, v = operands.q, operands.v
    batch, heads, count, dim = q.shape
    tiles = count // plan.queries
    specs = Specs(plan, operands, by_keys=False)
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4,
        grid=(batch, tiles, heads, layout.q_steps),
        in_specs=[
            specs.own(dim),
            specs.other(dim),
            specs.other(v.shape[-1]),
            specs.own_turn(),
            specs.other_turn(),
            specs.own_marks(),
            specs.other_marks(),
            specs.table(),
        ],
        out_specs=[specs.own(v.shape[-1]), specs.own_row()],
        scratch_shapes=[
            pltpu.VMEM((plan.queries, dim), q.dtype),
            pltpu.VMEM((plan.queries, 1), jnp.int32),
            pltpu.VMEM((plan.queries, 1), jnp.int32),
            pltpu.VMEM((plan.queries, LANES), jnp.float32),
            pltpu.VMEM((plan.queries, LANES), jnp.float32),
            pltpu.VMEM((plan.queries, v.shape[-1]), jnp.float32),
            *specs.near(),
        ],
    )
    out, lse = pl.pallas_call(
        functools.partial(_forward_kernel, plan),
        grid_spec=grid_spec,
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, count, v.shape[-1]), v.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, count), jnp.float32),
        ],
        compiler_params=parameters("parallel", "parallel", "arbitrary", "arbitrary"),
        interpret=plan.interpret,
        name="rope_jax_forward",
    )(
        *(layout.q_info, layout.k_info, layout.q_span, layout.aligned),
        *(operands.q, operands.k, operands.v, operands.q_turn, operands.k_turn),
        *(layout.q_marks, layout.k_marks, operands.table),
    )
    return out, lse


def _forward_kernel(
    plan: Plan,
    own_info, other_info, span, aligned,
    q_ref, k_ref, v_ref, q_turn, k_turn, q_marks, k_marks, table,
    out_ref, lse_ref,
    turned, q_position, q_segment, top, total, mixed, *near,
):  # fmt: skip
    step = pl.program_id(3)
    tile = Tile(plan, own_info, other_info, span, aligned, by_keys=False)
    bias = Bias(plan, tile, table, near)

    @pl.when(step == 0)
    def _():
        scaled = turn(q_ref[0, 0], q_turn, plan.pairs) * bias.number(SCALE)
        turned[...] = scaled.astype(turned.dtype)
        q_position[...] = jnp.transpose(q_marks[0, 0:1])
        q_segment[...] = jnp.transpose(q_marks[0, 1:2])
        # A sink is a logit that has been seen before any key and adds no value.
        sink = bias.number(SINK)
        top[...] = jnp.broadcast_to(sink, top.shape)
        total[...] = jnp.broadcast_to((sink > NOTHING).astype(jnp.float32), total.shape)
        mixed[...] = jnp.zeros_like(mixed)

    def accumulate(plain: bool):
        k = turn(k_ref[0, 0], k_turn, plan.pairs).astype(turned.dtype)
        own, other = (q_position[...], q_segment[...]), (k_marks[0, 0:1], k_marks[0, 1:2])
        logits, _ = capped(outer(turned[...], k), plan.settings)
        logits = logits + (bias.separated(own[0], other[0])[0] if plain else bias.written(own[0], other[0])[0])
        if not plain:
            logits = jnp.where(mask(own, other, plan.settings, by_keys=False), logits, HIDDEN)
        before = top[...]
        now = jnp.maximum(before, jnp.max(logits, axis=1, keepdims=True))
        weights = jnp.exp(logits - now[:, :1])
        kept = jnp.exp(before - now)
        top[...] = now
        total[...] = kept * total[...] + jnp.sum(weights, axis=1, keepdims=True)
        mixed[...] = kept[:, :1] * mixed[...] + product(weights.astype(v_ref.dtype), v_ref[0, 0])

    bias.write_near(lambda: (q_position[...], k_marks[0, 0:1]))
    pl.when(tile.sees & tile.meeting.plain)(lambda: accumulate(True))
    pl.when(tile.sees & ~tile.meeting.plain)(lambda: accumulate(False))

    @pl.when(tile.last_step)
    def _():
        some = total[...] > 0
        whole = jnp.where(some, total[...], 1.0)
        out_ref[0, 0] = (mixed[...] / whole[:, :1]).astype(out_ref.dtype)
        lse = jnp.where(some, top[...] + jnp.log(whole), NOTHING)
        lse_ref[0, 0] = jnp.transpose(lse[:, :1])
