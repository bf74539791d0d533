"""The backward Hopper kernel of the strip: a strip is read at near tiles alone, and those of one offset are added up.

Their diagonals are summed outside, in one fixed order.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from rope_jax.attention.mosaic_gpu_memory import (
    ENTRIES,
    SQUARE,
    backward_arguments,
    block,
    compiler,
    index,
    row_of,
    same_segment,
    strip_of,
)
from rope_jax.attention.mosaic_gpu_tile import (
    HALF,
    TILE,
    Cotangents,
    Inputs,
    Place,
    Plan,
    Slots,
    by_row,
    capped,
    gradient,
    logits,
    near_tiles,
    written,
)

_PARTS = 8  # of a sequence, in each of which the near tiles of one offset are added up apart


def of_strip(plan: Plan, inputs: Inputs, slots: Slots, back: Cotangents) -> Array:
    """Returns the gradient of the logits of near tiles, summed over tiles of one offset.

    `[B, H, near_tiles, TILE, TILE]`: tiles of queries whose first position is `base % TILE + TILE (n - 1)` after that
    of the tile of keys, for every `n`.
    """
    batch, tokens, heads, dim = inputs.q.shape
    tiles, k_tiles, near = tokens // TILE, inputs.k.shape[1] // TILE, near_tiles(plan)
    parts = max(1, min(_PARTS, 4 * _PARTS // near))  # fewer of a long strip: what they leave is held at once
    part_size = -(-tiles // parts)
    whole, rest = jnp.divmod(slots.base, TILE)

    def kernel(
        q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, slopes_ref, strip_ref, whole_ref, rest_ref,
        q_segments_ref, k_segments_ref, out_ref, out_smem,
    ):  # fmt: skip
        head, quarter, part = lax.axis_index("heads"), lax.axis_index("quarters"), lax.axis_index("parts")
        row, part_of_row = lax.div(part, parts), lax.rem(part, parts)
        number = lax.div(quarter, 4)
        half_q, half_k = lax.div(lax.rem(quarter, 4), 2) * HALF, lax.rem(quarter, 2) * HALF
        kv_head = lax.div(head, plan.groups)
        slope, strip = slopes_ref[row, head], strip_of(strip_ref, plan, heads, row, head)
        ahead = whole_ref[row] - (number - 1)  # tile i of queries meets tile i + ahead of keys
        distance = half_k - rest_ref[row] - (number - 1) * TILE
        first = jnp.maximum(part_of_row * part_size, -ahead)
        end = jnp.minimum(jnp.minimum((part_of_row + 1) * part_size, tiles), k_tiles - ahead)

        def compute(pipeline):
            (found,) = pipeline((plgpu.layout_cast(jnp.zeros((HALF, HALF), jnp.float32), ENTRIES),))
            out_smem[...] = found
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_smem, out_ref.at[head, quarter, part])
            plgpu.wait_smem_to_gmem(0)

        def step(at, q_smem, d_out_smem, k_smem, v_smem, *rest):
            *free, (total,) = rest
            tile = first + at[0]
            start, start_k = tile * TILE + half_q, (tile + ahead) * TILE + half_k

            def products(s, d_weights):
                plgpu.wgmma(s, q_smem, k_smem.transpose((1, 0)))
                plgpu.wgmma(d_weights, d_out_smem, v_smem.transpose((1, 0)))
                return s[...], d_weights[...]

            s, d_weights = pl.run_scoped(products, SQUARE, SQUARE)
            for one in free:
                plgpu.barrier_arrive(one)
            lse, delta = (row_of(ref, row, head, pl.ds(start, HALF)) for ref in (lse_ref, delta_ref))
            shape, key = s.shape, index(s.shape, 1)
            place = Place(distance, half_q, plan.keys - start_k)
            same = same_segment(plan, q_segments_ref, k_segments_ref, row, start, start_k, shape)
            t = logits(capped(plan, s)[0], slope, key, place)
            t = written(plan, t, index(shape, 0), key, place, same, strip, HALF)
            return (total + gradient(t, by_row(lse, shape), d_weights, by_row(delta, shape))[1],)

        q_side = block((HALF, dim), lambda i: (2 * (first + i) + lax.div(half_q, HALF), 0))
        k_side = block((HALF, dim), lambda i: (2 * (first + i + ahead) + lax.div(half_k, HALF), 0))
        plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(jnp.maximum(end - first, 0),),
            max_concurrent_steps=1 if dim > TILE else 2,
            num_compute_wgs=1,
            memory_registers=40,
            wg_axis="wg",
            manual_consumed_barriers=True,
            compute_context=compute,
            in_specs=[q_side, q_side, k_side, k_side],
        )(
            q_ref.at[row, :, head],
            d_out_ref.at[row, :, head],
            k_ref.at[row, :, kv_head],
            v_ref.at[row, :, kv_head],
        )

    run = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((heads, 4 * near, batch * parts, HALF, HALF), jnp.float32),
        scratch_types=[plgpu.SMEM((HALF, HALF), jnp.float32)],
        grid=(heads, 4 * near, batch * parts),
        grid_names=("heads", "quarters", "parts"),
        num_threads=2,
        thread_name="wg",
        compiler_params=compiler(),
        kernel_name="rope_jax_backward_strip",
    )
    sums = run(*backward_arguments(plan, inputs, back), whole, rest, slots.q_segments, slots.k_segments)
    sums = sums.reshape(heads, near, 2, 2, batch, parts, HALF, HALF).sum(axis=5)
    return sums.transpose(4, 0, 1, 2, 5, 3, 6).reshape(batch, heads, near, TILE, TILE)
