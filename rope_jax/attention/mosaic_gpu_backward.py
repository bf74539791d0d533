"""The backward Hopper kernels of queries, and of keys and values, each sum in one fixed order.

    dS = P * (dO V^T - D),  D = rowsum(dO * O) - d(lse),  dV = P^T dO,  dK = dS^T Q,  dQ = dS K

`of_queries` goes along the keys of each tile of queries, `of_keys` along the queries of each tile of keys.

Source: Dao et al., arXiv 2205.14135, appendix B.2; the cotangent of the log-sum-exp added.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from rope_jax.attention.mosaic_gpu_memory import (
    BY_COLUMN,
    BY_ROW,
    SQUARE,
    backward_arguments,
    block,
    compiler,
    index,
    row_of,
    same_segment,
    smem,
    strip_of,
    turned_rows,
)
from rope_jax.attention.mosaic_gpu_tile import (
    HALF,
    TILE,
    Cotangents,
    Inputs,
    Place,
    Plan,
    Slots,
    Turn,
    by_column,
    by_row,
    capped,
    gradient,
    logits,
    slope_gradient,
    written,
)


def _warpgroups(dim: int) -> int:
    return 1 if dim > TILE else 2  # of larger heads, shared memory holds the tiles of one


def of_queries(
    plan: Plan,
    inputs: Inputs,
    slots: Slots,
    back: Cotangents,
    spans: Array,
    turn: Turn | None = None,
    *,
    slopes: bool,
) -> tuple[Array, Array]:
    """Returns the gradient of the queries, and each query's part of the slopes' `[B, H, N]`; zeros unless `slopes`.

    `spans` are those of the forward kernel. With a `turn` the gradient is turned back by it.
    """
    batch, tokens, heads, dim = inputs.q.shape
    wgs = _warpgroups(dim)
    last = tokens // (wgs * HALF) - 1

    def kernel(
        q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, slopes_ref, strip_ref, inside_ref, base_ref,
        q_segments_ref, k_segments_ref, spans_ref, *rest,
    ):  # fmt: skip
        turn_refs, rest = rest[: len(turn or ())], rest[len(turn or ()) :]
        d_q_ref, d_slope_ref, q_smems, d_out_smems, d_slope_smems, here = rest
        row, head, wg = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("wg")
        kv_head = lax.div(head, plan.groups)
        together = (last - lax.axis_index("tiles")) * (wgs * HALF)  # the warpgroup that loads must find the same tile
        start, tile = together + wg * HALF, lax.div(together, TILE)
        first, plain_first, plain_end, end = (spans_ref[row, head, tile, i] * (TILE // HALF) for i in range(4))
        position, inside = base_ref[row] + tile * TILE, start - tile * TILE
        slope, strip = slopes_ref[row, head], strip_of(strip_ref, plan, heads, row, head)
        q_smem, d_out_smem, d_slope_smem = q_smems.at[wg], d_out_smems.at[wg], d_slope_smems.at[wg]

        def compute(pipeline):
            tokens_at, numbers_at = (row, pl.ds(start, HALF), head), (row, head, pl.ds(start, HALF))
            plgpu.copy_gmem_to_smem(q_ref.at[tokens_at], q_smem, here.at[wg])
            plgpu.copy_gmem_to_smem(d_out_ref.at[tokens_at], d_out_smem, here.at[wg])
            lse, delta = row_of(lse_ref, *numbers_at), row_of(delta_ref, *numbers_at)
            in_tile = row_of(inside_ref, pl.ds(start, HALF))
            none = plgpu.layout_cast(jnp.zeros((HALF,), jnp.float32), BY_ROW)
            plgpu.barrier_wait(here.at[wg])

            def run(sums):
                *_, d_slope = pipeline((sums, lse, delta, in_tile, none))
                return sums[...], d_slope

            d_q, d_slope = pl.run_scoped(run, plgpu.ACC((HALF, dim), jnp.float32))
            if turn is not None:
                d_q = turned_rows(d_q, turn_refs, row, start, back=True)
            q_smem[...] = d_q.astype(d_q_ref.dtype)
            d_slope_smem[...] = d_slope
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_smem, d_q_ref.at[tokens_at])
            plgpu.copy_smem_to_gmem(d_slope_smem, d_slope_ref.at[numbers_at])
            plgpu.wait_smem_to_gmem(0)

        def step(at, v_smem, k_smem, v_free, k_free, carry):
            sums, lse, delta, in_tile, d_slope = carry
            number = first + at[0]
            start_k = number * HALF

            def products(d_weights, s):
                plgpu.wgmma(d_weights, d_out_smem, v_smem.transpose((1, 0)))
                plgpu.wgmma(s, q_smem, k_smem.transpose((1, 0)))
                plgpu.wgmma_wait(1)
                plgpu.barrier_arrive(v_free)
                return d_weights[...], s[...]

            d_weights, s = pl.run_scoped(products, SQUARE, SQUARE)
            s, bend = capped(plan, s)
            shape, key = s.shape, index(s.shape, 1)
            place = Place(start_k - position, inside, plan.keys - start_k)
            t = logits(s, slope, key, place)

            def general():
                same = same_segment(plan, q_segments_ref, k_segments_ref, row, start, start_k, shape)
                return written(plan, t, index(shape, 0), key, place, same, strip, HALF)

            t = lax.cond((number >= plain_first) & (number < plain_end), lambda: t, general)
            _, d_logits = gradient(t, by_row(lse, shape), d_weights, by_row(delta, shape))
            if slopes:
                d_slope += slope_gradient(d_logits, key, place, in_tile)
            if bend is not None:
                d_logits *= bend
            plgpu.wgmma(sums, d_logits.astype(jnp.bfloat16), k_smem)
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(k_free)
            return sums, lse, delta, in_tile, d_slope

        side = block((HALF, dim), lambda i: (first + i, 0))
        plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(end - first,),
            max_concurrent_steps=plan.sizes.backward_stages,
            num_compute_wgs=wgs,
            memory_registers=40,
            wg_axis="wg",
            manual_consumed_barriers=True,
            compute_context=compute,
            in_specs=[side, side],
        )(v_ref.at[row, :, kv_head], k_ref.at[row, :, kv_head])

    run = plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct(inputs.q.shape, inputs.q.dtype),
            jax.ShapeDtypeStruct((batch, heads, tokens), jnp.float32),
        ),
        scratch_types=[
            smem(wgs, HALF, dim),
            smem(wgs, HALF, dim),
            plgpu.SMEM((wgs, HALF), jnp.float32),
            plgpu.Barrier(num_barriers=wgs, num_arrivals=2),
        ],
        grid=(heads, last + 1, batch),
        grid_names=("heads", "tiles", "batch"),
        num_threads=wgs + 1,
        thread_name="wg",
        compiler_params=compiler(),
        kernel_name="rope_jax_backward_queries",
    )
    in_tile = (jnp.arange(tokens) % TILE).astype(jnp.float32)
    return run(*backward_arguments(plan, inputs, back), in_tile, *slots, spans, *(turn or ()))


def of_keys(
    plan: Plan, inputs: Inputs, slots: Slots, back: Cotangents, spans: Array, turn: Turn | None = None
) -> tuple[Array, Array]:
    """Returns the gradients of keys and of values.

    `spans` are `[B, K, tiles of keys, 4]`, of tiles of queries. With a `turn` gradients of keys are turned back by it.
    Heads of more than 128 do not leave room for the sums of both, and are gone through twice.
    """
    if inputs.q.shape[-1] > TILE:
        (d_k,), (d_v,) = (_of_keys(plan, inputs, slots, back, spans, turn, side) for side in "kv")
    else:
        d_k, d_v = _of_keys(plan, inputs, slots, back, spans, turn, "kv")
    return d_k, d_v


def _of_keys(
    plan: Plan, inputs: Inputs, slots: Slots, back: Cotangents, spans: Array, turn: Turn | None, wanted: str
) -> tuple[Array, ...]:
    batch, _, heads, dim = inputs.q.shape
    _, keys, kv_heads, _ = inputs.k.shape
    wgs = _warpgroups(dim)

    def kernel(
        q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, slopes_ref, strip_ref, base_ref, q_segments_ref,
        k_segments_ref, spans_ref, *rest,
    ):  # fmt: skip
        turn_refs, rest = rest[: len(turn or ())], rest[len(turn or ()) :]
        outs, (k_smems, v_smems, here) = rest[: len(wanted)], rest[len(wanted) :]
        row, kv_head, wg = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("wg")
        together = lax.axis_index("tiles") * (wgs * HALF)
        start_k, tile = together + wg * HALF, lax.div(together, TILE)
        first, plain_first, plain_end, end = (spans_ref[row, kv_head, tile, i] * (TILE // HALF) for i in range(4))
        base = base_ref[row]
        own = {"k": k_smems.at[wg], "v": v_smems.at[wg]}

        def compute(pipeline):
            tokens_at = (row, pl.ds(start_k, HALF), kv_head)
            plgpu.copy_gmem_to_smem(k_ref.at[tokens_at], own["k"], here.at[wg])
            plgpu.copy_gmem_to_smem(v_ref.at[tokens_at], own["v"], here.at[wg])
            plgpu.barrier_wait(here.at[wg])

            def run(*sums):
                pipeline(sums)
                return tuple(x[...] for x in sums)

            found = pl.run_scoped(run, *(plgpu.ACC((HALF, dim), jnp.float32) for _ in wanted))
            for side, x in zip(wanted, found, strict=True):
                if side == "k" and turn is not None:
                    x = turned_rows(x, turn_refs, row, start_k, back=True)
                own[side][...] = x.astype(jnp.bfloat16)
            plgpu.commit_smem()
            for side, out in zip(wanted, outs, strict=True):
                plgpu.copy_smem_to_gmem(own[side], out.at[tokens_at])
            plgpu.wait_smem_to_gmem(0)

        def step(at, lse_smem, delta_smem, d_out_smem, q_smem, lse_free, delta_free, d_out_free, q_free, carry):
            sums = dict(zip(wanted, carry, strict=True))
            number, head = first + at[0], kv_head * plan.groups + at[1]
            start = number * HALF
            tile = lax.div(start, TILE)
            place = Place(start_k - (base + tile * TILE), start - tile * TILE, plan.keys - start_k)
            slope = slopes_ref[row, head]

            def product(s):
                plgpu.wgmma(s, own["k"], q_smem.transpose((1, 0)))
                lse = plgpu.load(lse_smem, layout=BY_COLUMN)
                delta = plgpu.load(delta_smem, layout=BY_COLUMN)
                return s[...], lse, delta

            s, lse, delta = pl.run_scoped(product, SQUARE)
            s, bend = capped(plan, s)
            shape, key = s.shape, index(s.shape, 0)
            t = logits(s, slope, key, place)

            def general():
                same = same_segment(plan, q_segments_ref, k_segments_ref, row, start, start_k, shape, across=True)
                strip = strip_of(strip_ref, plan, heads, row, head, across=True)
                return written(plan, t, index(shape, 1), key, place, same, strip, HALF)

            t = lax.cond((number >= plain_first) & (number < plain_end), lambda: t, general)
            lse, delta = by_column(lse, shape), by_column(delta, shape)
            weights = jnp.exp2(t - lse)
            if "k" not in wanted:
                plgpu.wgmma(sums["v"], weights.astype(jnp.bfloat16), d_out_smem)
                for one in (q_free, lse_free, delta_free):
                    plgpu.barrier_arrive(one)
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(d_out_free)
                return carry

            def of_weights(d_weights):
                plgpu.wgmma(d_weights, own["v"], d_out_smem.transpose((1, 0)))
                if "v" not in wanted:
                    return d_weights[...]
                plgpu.wgmma(sums["v"], weights.astype(jnp.bfloat16), d_out_smem)
                return plgpu.wgmma_accumulator_load(d_weights, wait_n=1)  # the sum of values goes on meanwhile

            d_logits = weights * (pl.run_scoped(of_weights, SQUARE) - delta)
            if bend is not None:
                d_logits *= bend
            plgpu.wgmma(sums["k"], d_logits.astype(jnp.bfloat16), q_smem)
            # Not before: a load may be put off beyond an arrival, but not beyond a product that needs what it loads.
            plgpu.barrier_arrive(lse_free)
            plgpu.barrier_arrive(delta_free)
            plgpu.wgmma_wait(1)
            plgpu.barrier_arrive(d_out_free)
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(q_free)
            return carry

        numbers = plgpu.BlockSpec((None, HALF), lambda i, j: (kv_head * plan.groups + j, first + i))
        side = block((HALF, None, dim), lambda i, j: (first + i, kv_head * plan.groups + j, 0))
        plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(end - first, plan.groups),
            max_concurrent_steps=plan.sizes.backward_stages,
            num_compute_wgs=wgs,
            memory_registers=40,
            wg_axis="wg",
            manual_consumed_barriers=True,
            compute_context=compute,
            in_specs=[numbers, numbers, side, side],
        )(lse_ref.at[row], delta_ref.at[row], d_out_ref.at[row], q_ref.at[row])

    run = plgpu.kernel(
        kernel,
        out_type=[jax.ShapeDtypeStruct(inputs.k.shape, inputs.k.dtype) for _ in wanted],
        scratch_types=[
            smem(wgs, HALF, dim),
            smem(wgs, HALF, dim),
            plgpu.Barrier(num_barriers=wgs, num_arrivals=2),
        ],
        grid=(kv_heads, keys // (wgs * HALF), batch),
        grid_names=("heads", "tiles", "batch"),
        num_threads=wgs + 1,
        thread_name="wg",
        compiler_params=compiler(),
        kernel_name=f"rope_jax_backward_{wanted}",
    )
    return tuple(run(*backward_arguments(plan, inputs, back), *slots, spans, *(turn or ())))
