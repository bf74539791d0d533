"""The Hopper kernel of `mosaic_gpu_decode`: one warpgroup goes along a run of tiles of the cache, another one loads."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, memref
from jaxtyping import Array

from rope_jax.attention.call import NOTHING
from rope_jax.attention.mosaic_gpu_decode import COLUMNS, ROWS, Plan, Rows, Slots, logits
from rope_jax.attention.mosaic_gpu_memory import BY_COLUMN, BY_ROW, ENTRIES, SQUARE, block, compiler, smem
from rope_jax.attention.mosaic_gpu_tile import by_column, by_row, finish, meet_keys

_BYTES = 128 * 1024  # of tiles on their way


def parts(
    plan: Plan, q: Array, keys: Array, values: Array, rows: Rows, slots: Slots, strip: Array
) -> tuple[Array, Array]:
    """Returns, of each part of the slots, outputs `[B, K, splits, R, e]` and log-sum-exps `[B, K, splits, ROWS]`.

    Args:
      plan: of the call.
      q: turned, scaled queries `[B, K, ROWS, d]`.
      keys: turned keys `[B, K, d, S]`.
      values: `[B, K, S, e]`.
      rows: where queries stand, and their biases.
      slots: where keys stand, and which tiles each part has.
      strip: `[B * H * (reach + 1)]`, from offset 0 on, less the last value, in units of ln 2.
    """
    batch, kv_heads, _, dim = q.shape
    v_dim = values.shape[-1]
    stages = min(max(_BYTES // (2 * COLUMNS * (dim + v_dim)), 2), 4)

    def kernel(
        q_ref, k_ref, v_ref, positions_ref, segments_ref, slopes_ref, head_ref, k_positions_ref, k_segments_ref,
        holes_ref, near_ref, spans_ref, strip_ref, out_ref, lse_ref, q_smem, out_smem, lse_smem, here,
    ):  # fmt: skip
        kv_head, split, row = lax.axis_index("heads"), lax.axis_index("splits"), lax.axis_index("batch")
        first, end = (spans_ref[row, split, i] for i in range(2))

        def of_rows(ref, *at):
            return plgpu.load(ref.at[at] if at else ref, layout=BY_ROW, optimized=False)

        def compute(pipeline):
            plgpu.copy_gmem_to_smem(q_ref.at[row, kv_head], q_smem, here)
            first_strip = (row * kv_heads + kv_head) * plan.groups * (plan.reach + 1)
            known = (
                of_rows(positions_ref, row),
                of_rows(segments_ref, row),
                of_rows(slopes_ref, row, kv_head),
                of_rows(head_ref) * (plan.reach + 1) + first_strip,
            )
            top = plgpu.layout_cast(jnp.full((ROWS,), NOTHING, jnp.float32), BY_ROW)
            total = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), BY_ROW)
            mixed = plgpu.layout_cast(jnp.zeros((ROWS, v_dim), jnp.float32), ENTRIES)
            plgpu.barrier_wait(here)
            *_, mixed, top, total = pipeline((*known, mixed, top, total))
            factor, lse = finish(top, total)
            out_smem[...] = mixed * by_row(factor, mixed.shape)
            lse_smem[...] = lse
            plgpu.commit_smem()
            at = row, kv_head, split
            plgpu.copy_smem_to_gmem(out_smem.at[pl.ds(0, plan.rows)], out_ref.at[at])
            plgpu.copy_smem_to_gmem(lse_smem, lse_ref.at[at])
            plgpu.wait_smem_to_gmem(0)

        def step(at, k_smem, v_smem, k_free, v_free, carry):
            positions, segments, slopes, strips, mixed, top, total = carry
            tile = first + at[0]
            start = tile * COLUMNS

            def product(s):
                plgpu.wgmma(s, q_smem, k_smem)
                return s[...]

            s = pl.run_scoped(product, SQUARE)
            plgpu.barrier_arrive(k_free)
            own, ids = (
                plgpu.load(ref.at[row, pl.ds(start, COLUMNS)], layout=BY_COLUMN, optimized=False)
                for ref in (k_positions_ref, k_segments_ref)
            )
            offset = by_row(positions, s.shape) - by_column(own, s.shape)
            same = by_row(segments, s.shape) == by_column(ids, s.shape)
            read = (lambda at: _read(strip_ref, at + by_row(strips, s.shape))) if plan.reach else None
            t = logits(plan, s, offset, same, by_row(slopes, s.shape), near_ref[row, tile] > 0, read)
            weights, kept, top, total = meet_keys(t, top, total)

            def clear():  # zero times NaN is NaN
                held = of_rows(k_segments_ref, row, pl.ds(start, COLUMNS)) >= 0
                found = v_smem[...].astype(jnp.float32)
                v_smem[...] = jnp.where(by_row(held, found.shape), found, 0.0).astype(v_smem.dtype)
                plgpu.commit_smem()

            pl.when(holes_ref[row, tile] > 0)(clear)

            def mix(ref):
                plgpu.wgmma(ref, weights.astype(values.dtype), v_smem)

            mixed = pl.run_state(mix)(plgpu.ACC.init(mixed * by_row(kept, mixed.shape)))
            plgpu.barrier_arrive(v_free)
            return positions, segments, slopes, strips, mixed, top, total + weights.sum(axis=1)

        plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(end - first,),
            max_concurrent_steps=stages,
            num_compute_wgs=1,
            memory_registers=40,
            wg_axis="wg",
            manual_consumed_barriers=True,
            compute_context=compute,
            in_specs=[
                block((dim, COLUMNS), lambda i: (0, first + i)),
                block((COLUMNS, v_dim), lambda i: (first + i, 0)),
            ],
        )(k_ref.at[row, kv_head], v_ref.at[row, kv_head])

    run = plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct((batch, kv_heads, plan.splits, plan.rows, v_dim), jnp.float32),
            jax.ShapeDtypeStruct((batch, kv_heads, plan.splits, ROWS), jnp.float32),
        ),
        scratch_types=[
            smem(ROWS, dim),
            plgpu.SMEM((ROWS, v_dim), jnp.float32),
            plgpu.SMEM((ROWS,), jnp.float32),
            plgpu.Barrier(),
        ],
        grid=(kv_heads, plan.splits, batch),
        grid_names=("heads", "splits", "batch"),
        num_threads=2,
        thread_name="wg",
        compiler_params=compiler(),
        kernel_name="rope_jax_decode",
    )
    return run(q, keys, values, *rows, *slots, strip)


def _read(ref, index: Array) -> Array:
    """Returns `ref[index]`, read from the cache of global memory."""
    result = plgpu.ShapeDtypeStruct(index.shape, jnp.float32, layout=ENTRIES)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), ENTRIES), return_type=result)
    def gather(_, numbers, where):
        def entry(value, _):
            return memref.load(numbers, [arith.index_cast(ir.IndexType.get(), value)])

        return where.foreach(entry, create_array=True)

    return gather(ref, index)
