"""The forward Hopper kernel: two warpgroups of 64 queries each go along the keys, a third one loads.

While one warpgroup works out its softmax the other has the tensor cores; `turns` makes them alternate. Keys and values
arrive by the copy engine, a few tiles ahead. Source of the schedule: Shah et al., arXiv 2407.08608, section 3.1.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from rope_jax.attention.call import NOTHING
from rope_jax.attention.mosaic_gpu_memory import (
    BY_ROW,
    ENTRIES,
    compiler,
    index,
    same_segment,
    smem,
    strip_of,
    turned_rows,
)
from rope_jax.attention.mosaic_gpu_tile import (
    HALF,
    LOG2E,
    TILE,
    Inputs,
    Place,
    Plan,
    Slots,
    Turn,
    by_row,
    capped,
    finish,
    logits,
    meet_keys,
    wide_strip,
    written,
)


def forward(plan: Plan, inputs: Inputs, slots: Slots, spans: Array, turn: Turn | None = None) -> tuple[Array, Array]:
    """Returns outputs `[B, N, H, d]` and, in the frame of each tile and in nats, log-sum-exps `[B, H, N]`.

    Args:
      plan: of the call.
      inputs: arrays.
      slots: where tokens stand.
      spans: `[B, H, tiles, 4]`: first tile of keys, where the plain ones begin and end, end; in tiles of `TILE`.
      turn: what queries are turned and scaled by; None where they are already.
    """
    batch, tokens, heads, dim = inputs.q.shape
    keys = plan.sizes.keys
    stages = min(plan.sizes.forward_stages, inputs.k.shape[1] // keys)
    last = tokens // TILE - 1

    def kernel(
        q_ref, k_ref, v_ref, slopes_ref, strip_ref, sinks_ref, base_ref, q_segments_ref, k_segments_ref, spans_ref,
        *rest,
    ):  # fmt: skip
        turn_refs, (out_ref, lse_ref, *scratch) = rest[: len(turn or ())], rest[len(turn or ()) :]
        q_smems, k_smem, v_smem, lse_smems, q_here, k_here, v_here, k_free, v_free, turns = scratch
        row, head, wg = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("wg")
        tile = last - lax.axis_index("tiles")  # the longest first
        scale = TILE // keys
        first, plain_first, plain_end, end = (spans_ref[row, head, tile, i] * scale for i in range(4))

        def slot_of(step):
            return lax.rem(step - first, stages)

        def switch():
            plgpu.barrier_arrive(turns)
            plgpu.barrier_wait(turns)

        @pl.when(wg < 2)
        def compute():
            plgpu.set_max_registers(232, action="increase")
            q_smem, lse_smem = q_smems.at[wg], lse_smems.at[wg]
            start = tile * TILE + wg * HALF
            plgpu.copy_gmem_to_smem(q_ref.at[row, pl.ds(start, HALF), head], q_smem, q_here.at[wg])
            slope, base = slopes_ref[row, head], base_ref[row]
            top = plgpu.load(sinks_ref.at[row, head, pl.ds(start, HALF)], layout=BY_ROW, optimized=False)
            total = jnp.where(top > NOTHING, 1.0, 0.0)
            mixed = plgpu.layout_cast(jnp.zeros((HALF, dim), jnp.float32), ENTRIES)
            strip = strip_of(strip_ref, plan, heads, row, head)
            plgpu.barrier_wait(q_here.at[wg])
            if turn is not None:
                q_smem[...] = turned_rows(q_smem[...], turn_refs, row, start).astype(q_smem.dtype)
                plgpu.commit_smem()
            pl.when(end > first)(lambda: plgpu.barrier_wait(k_here.at[0]))
            pl.when(wg == 1)(switch)

            def step(at, carry, *, plain: bool):
                mixed, top, total = carry
                slot, start_k = slot_of(at), at * keys

                def product(ref):
                    plgpu.wgmma(ref, q_smem, k_smem.at[slot].transpose((1, 0)))
                    switch()
                    return ref[...]

                s = pl.run_scoped(product, plgpu.ACC((HALF, keys), jnp.float32))
                plgpu.barrier_arrive(k_free.at[slot])
                key = index((HALF, keys), 1)
                place = Place(start_k - (base + tile * TILE), wg * HALF, plan.keys - start_k)
                t = logits(capped(plan, s)[0], slope, key, place)
                if not plain:
                    same = same_segment(plan, q_segments_ref, k_segments_ref, row, start, start_k, t.shape)
                    t = written(plan, t, index(t.shape, 0), key, place, same, strip, keys)
                weights, kept, top, total = meet_keys(t, top, total)
                mixed *= by_row(kept, mixed.shape)
                factors = weights.astype(inputs.v.dtype)

                def turn_over():
                    plgpu.barrier_arrive(turns)
                    plgpu.barrier_wait(v_here.at[slot])
                    plgpu.barrier_wait(turns)

                if dim <= 128:  # with larger heads the sum is left for when the tensor cores are at work
                    total += weights.sum(axis=1)
                    mixed, total, top, factors = lax.optimization_barrier((mixed, total, top, factors))
                turn_over()
                if dim > 128:
                    total += weights.sum(axis=1)

                def mix(ref):
                    plgpu.wgmma(ref, factors, v_smem.at[slot])
                    pl.when(at + 1 < end)(lambda: plgpu.barrier_wait(k_here.at[slot_of(at + 1)]))

                mixed = pl.run_state(mix)(plgpu.ACC.init(mixed))
                plgpu.barrier_arrive(v_free.at[slot])
                return mixed, top, total

            general, plain = (functools.partial(step, plain=flag) for flag in (False, True))
            carry = lax.fori_loop(first, plain_first, general, (mixed, top, total))
            carry = lax.fori_loop(plain_first, plain_end, plain, carry)
            mixed, top, total = lax.fori_loop(plain_end, end, general, carry)
            pl.when(wg == 0)(switch)
            factor, lse = finish(top, total)
            q_smem[...] = (mixed * by_row(factor, mixed.shape)).astype(out_ref.dtype)
            lse_smem[...] = lse
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_smem, out_ref.at[row, pl.ds(start, HALF), head])
            plgpu.copy_smem_to_gmem(lse_smem, lse_ref.at[row, head, pl.ds(start, HALF)])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(wg == 2)
        def load():
            plgpu.set_max_registers(40, action="decrease")
            kv_head = lax.div(head, plan.groups)

            @pl.loop(first, end)
            def _(at):
                slot = slot_of(at)
                source = (row, pl.ds(at * keys, keys), kv_head)
                again = at - first >= stages
                pl.when(again)(lambda: plgpu.barrier_wait(k_free.at[slot]))
                plgpu.copy_gmem_to_smem(k_ref.at[source], k_smem.at[slot], k_here.at[slot])
                pl.when(again)(lambda: plgpu.barrier_wait(v_free.at[slot]))
                plgpu.copy_gmem_to_smem(v_ref.at[source], v_smem.at[slot], v_here.at[slot])

    one_each, by_both = plgpu.Barrier(num_barriers=stages), plgpu.Barrier(num_arrivals=2, num_barriers=stages)
    run = plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct(inputs.q.shape, inputs.v.dtype),
            jax.ShapeDtypeStruct((batch, heads, tokens), jnp.float32),
        ),
        grid=(heads, last + 1, batch),
        grid_names=("heads", "tiles", "batch"),
        num_threads=3,
        thread_name="wg",
        scratch_types=[
            smem(2, HALF, dim),
            smem(stages, keys, dim),
            smem(stages, keys, dim),
            plgpu.SMEM((2, HALF), jnp.float32),
            plgpu.Barrier(num_barriers=2),
            one_each,
            one_each,
            by_both,
            by_both,
            plgpu.Barrier(num_arrivals=2),
        ],
        compiler_params=compiler(),
        kernel_name="rope_jax_forward",
    )
    return run(
        inputs.q,
        inputs.k,
        inputs.v,
        inputs.slopes * LOG2E,
        wide_strip(plan, inputs.strip).reshape(-1) * LOG2E,
        jnp.where(inputs.sinks > NOTHING, inputs.sinks * LOG2E, NOTHING),
        *slots,
        spans,
        *(turn or ()),
    )
