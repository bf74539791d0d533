"""How the Hopper kernels hold and read arrays: layouts of registers and shared memory, segments, and the strip."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu.fragmented_array import FragmentedArray
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, memref, vector
from jaxtyping import Array

from rope_jax.attention.mosaic_gpu_tile import (
    HALF,
    LOG2E,
    MARGIN,
    Cotangents,
    Inputs,
    Plan,
    by_column,
    by_row,
    turned,
    wide_strip,
)

ENTRIES = plgpu.Layout.WGMMA  # of a tile, as the tensor cores hold it
BY_ROW, BY_COLUMN = ENTRIES.reduce(1), ENTRIES.reduce(0)
SQUARE = plgpu.ACC((HALF, HALF), jnp.float32)  # logits of a tile, or their gradient
_TRANSFORMS = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))


def compiler() -> plgpu.CompilerParams:
    """Returns how kernels are compiled: what they mean is pinned, and a row's reductions need no shared memory."""
    return plgpu.CompilerParams(
        approx_math=True, reduction_scratch_bytes=0, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
    )


def smem(*shape: int) -> Any:
    """Returns shared memory for tiles of bfloat16 that the tensor cores read."""
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=_TRANSFORMS)


def block(shape: tuple[int | None, ...], place: Callable[..., tuple]) -> Any:
    """Returns how a pipeline brings tiles of bfloat16 that the tensor cores read."""
    return plgpu.BlockSpec(shape, place, transforms=_TRANSFORMS)


def index(shape: tuple[int, ...], dimension: int) -> Array:
    """Returns each entry's row or column."""
    return plgpu.broadcasted_iota(jnp.int32, shape, dimension, layout=ENTRIES)


def row_of(ref, *at) -> Array:
    """Returns one number a row, read from global memory."""
    return plgpu.load(ref.at[at], layout=BY_ROW, optimized=False)  # type: ignore[call-arg]


def turned_rows(x: Array, turn_refs, row, start, *, back: bool = False) -> Array:
    """Returns one side's tokens from `start` on turned, in float32; the other way round with `back`.

    Args:
      x: tokens `[rows, dim]`.
      turn_refs: a `Turn` in global memory.
      row: sequence.
      start: first token.
      back: for the gradient of turned tokens.
    """
    cos_ref, sin_ref, factor_ref = turn_refs
    at = (row, pl.ds(start, x.shape[0]))
    cos, sin = (plgpu.load(ref.at[at], layout=ENTRIES, optimized=False) for ref in (cos_ref, sin_ref))  # type: ignore[call-arg]
    return turned(x.astype(jnp.float32), cos, -sin if back else sin, factor_ref[row])


def same_segment(plan: Plan, q_ref, k_ref, row, query, key, shape, *, across: bool = False) -> Array | None:
    """Returns whether queries and keys of a tile are of one segment; None where there are no segments.

    Args:
      plan: of the call.
      q_ref: segments of queries, in global memory.
      k_ref: the same of keys.
      row: sequence.
      query: first query.
      key: first key.
      shape: of the tile.
      across: whether keys are the rows.
    """
    if not plan.segmented:
        return None
    sides = (k_ref, key), (q_ref, query)
    (rows, first_row), (columns, first_column) = sides if across else sides[::-1]
    own = plgpu.load(rows.at[row, pl.ds(first_row, shape[0])], layout=BY_ROW, optimized=False)  # type: ignore[call-arg]
    other = plgpu.load(columns.at[row, pl.ds(first_column, shape[1])], layout=BY_COLUMN, optimized=False)  # type: ignore[call-arg]
    return by_row(own, shape) == by_column(other, shape)


def strip_of(ref, plan: Plan, heads: int, row, head, *, across: bool = False) -> Callable[[Array], Array] | None:
    """Returns what reads `wide_strip` of a head at each entry's offset, from the cache; None where it is constant.

    Args:
      ref: the strips of all heads, in global memory.
      plan: of the call.
      heads: query heads.
      row: sequence.
      head: query head.
      across: whether keys are the rows, so that offsets grow along them the other way.
    """
    if plan.reach == 0:
        return None
    start = (row * heads + head) * (plan.reach + 2 * MARGIN) + MARGIN
    sign = -1 if across else 1

    def read(offset: Array) -> Array:
        result = plgpu.ShapeDtypeStruct(offset.shape, jnp.float32, layout=ENTRIES)

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), ENTRIES), return_type=result)
        def gather(_, strip, where):
            integer, number = ir.IntegerType.get_signless(32), ir.F32Type.get()
            first = vector.extract(where.registers.flat[0], [], [0])

            @functools.cache
            def entry(ahead: int):
                at = arith.addi(first, arith.constant(integer, ahead))  # type: ignore[call-arg,arg-type]
                return memref.load(strip, [arith.index_cast(ir.IndexType.get(), at)])

            # Of a thread's entries, what the first one's offset is ahead by is known: one address serves all of them,
            # and half of them lie on diagonals of others. It holds columns 8 j and 8 j + 1 of rows 0 and 8.
            pair = ir.VectorType.get((2,), number)
            found = np.empty(where.registers.size, object)
            for at in range(found.size):
                column, below = at // 2 * 8, at % 2 * 8
                found[at] = vector.from_elements(pair, [entry(sign * (below - column - i)) for i in (0, 1)])
            return FragmentedArray(
                _registers=found.reshape(where.registers.shape), _layout=where.layout, _is_signed=None
            )

        return gather(ref, offset + start)

    return read


def backward_arguments(plan: Plan, inputs: Inputs, back: Cotangents) -> tuple[Array, ...]:
    """Returns the arrays that every backward kernel reads, in their order; slopes and strip in units of ln 2."""
    numbers = inputs.slopes * LOG2E, wide_strip(plan, inputs.strip).reshape(-1) * LOG2E
    return inputs.q, inputs.k, inputs.v, back.out, back.lse, back.delta, *numbers
