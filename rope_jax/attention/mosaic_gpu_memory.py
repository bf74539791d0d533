"""How the Hopper kernels hold and read arrays: layouts of registers and shared memory, segments, and the strip."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, memref
from jaxtyping import Array

from rope_jax.attention.mosaic_gpu_tile import MARGIN, Plan, by_column, by_row

ENTRIES = plgpu.Layout.WGMMA  # of a tile, as the tensor cores hold it
BY_ROW, BY_COLUMN = ENTRIES.reduce(1), ENTRIES.reduce(0)
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


def strip_of(ref, plan: Plan, heads: int, row, head) -> Callable[[Array], Array] | None:
    """Returns what reads `wide_strip` of a head at each entry's offset, from the cache; None where it is constant."""
    if plan.reach == 0:
        return None
    start = (row * heads + head) * (plan.reach + 2 * MARGIN) + MARGIN

    def read(offset: Array) -> Array:
        result = plgpu.ShapeDtypeStruct(offset.shape, jnp.float32, layout=ENTRIES)

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), ENTRIES), return_type=result)
        def gather(_, strip, where):
            def entry(value, _):
                return memref.load(strip, [arith.index_cast(ir.IndexType.get(), value)])

            return where.foreach(entry, create_array=True)

        return gather(ref, offset + start)

    return read
