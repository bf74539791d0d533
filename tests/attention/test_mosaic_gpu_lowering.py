"""That the Hopper kernels lower for CUDA, on a machine without a GPU, and where they are refused.

Nothing here says how the kernels do on a GPU: `experiments/benchmarks/accelerator.py` does, where there is one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_mosaic_gpu import HEADS, KV_HEADS, SINKS, counted, drawn, make_scheme

from rope_jax.attention import attention, machine, mosaic_gpu
from rope_jax.attention.call import Settings, Tokens
from rope_jax.attention.mosaic_gpu_tile import TILE

LOWERS = machine.unwritten() is None


@pytest.mark.skipif(not LOWERS, reason="the kernels are of another version of jax")
@pytest.mark.parametrize("columns", [64, 128])
def test_a_strip_is_read_where_a_thread_holds_its_entries(columns):
    """`strip_of` counts on the second half of registers being row 8, and on the others going by 8 columns."""
    from jax.experimental.mosaic.gpu.fragmented_array import WGMMA_LAYOUT

    shape = WGMMA_LAYOUT.registers_shape((64, columns))
    strides = WGMMA_LAYOUT.tiling.tile_strides((1000, 1))  # a thousand a row
    found = [sum(np.multiply(at, strides)) for at in np.ndindex(*shape)]
    assert found == [at % 2 * 8000 + at // 2 * 8 for at in range(columns // 4)]


def test_not_on_this_backend():
    q, k, v = drawn(128, 128)
    with pytest.raises(NotImplementedError, match="need a GPU, the default backend is cpu"):
        attention(
            q, k, v, make_scheme(), q_positions=counted(128), kv_positions=counted(128), implementation="mosaic_gpu"
        )


def test_another_version_is_refused_by_name():
    if LOWERS:
        assert mosaic_gpu._hopper().forward
    else:
        with pytest.raises(NotImplementedError, match=r"need jax 0.11 or 0.12, this is"):
            mosaic_gpu._hopper()


@pytest.mark.skipif(not LOWERS, reason="the kernels are of another version of jax")
@pytest.mark.parametrize("tokens", [128, 1000, 4096, 131072])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_kernels_lower_for_cuda(dim, tokens):
    scheme = make_scheme("t5", dim=dim, rotary_dim=dim)
    settings = Settings(scale=dim**-0.5, window=500, soft_cap=30.0)

    leaves, structure = jax.tree.flatten(scheme)

    def run(q, k, v, leaves, sinks, positions, segments):
        at, scheme = Tokens(positions, segments), jax.tree.unflatten(structure, leaves)
        out, lse = mosaic_gpu.attend_with(q, k, v, scheme, sinks, at, at, settings)
        return out.astype(jnp.float32).sum() + lse.sum()

    shaped = jax.ShapeDtypeStruct
    q, k = (shaped((1, tokens, heads, dim), jnp.bfloat16) for heads in (HEADS, KV_HEADS))
    at = shaped((1, tokens), jnp.int32)
    program = jax.jit(jax.grad(run, argnums=(0, 1, 2, 3, 4)))
    lowered = program.trace(q, k, k, leaves, SINKS, at, at).lower(lowering_platforms=("cuda",)).as_text()
    for name in ("forward", "backward_queries", "backward_kv" if dim <= TILE else "backward_v", "backward_strip"):
        assert f"rope_jax_{name}" in lowered, name
