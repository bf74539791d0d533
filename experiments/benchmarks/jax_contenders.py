"""JAX's side of the attention benchmarks: this library's engine, and `jax.nn` with the bias written out."""

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from problem import MAX_DISTANCE, Problem, problem
from worker import Prepared

from rope_jax.attention import attention
from rope_jax.biases import Alibi, t5_bias
from rope_jax.frequencies import rotary
from rope_jax.scheme import Scheme, build

VERSIONS = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}


def ours(
    *,
    length: int,
    dim: int,
    seed: int,
    bias: str = "none",
    skip_tiles: bool = True,
    backward: bool = False,
    rotation: bool = False,
    saved: str | None = None,
) -> Prepared:
    """Returns this library's attention; with `rotation` it turns queries and keys too."""
    given = problem(length=length, dim=dim, seed=seed, saved=saved)
    positions = jnp.arange(length, dtype=jnp.int32)[None]

    def attend(q, k, v, parameter, positions):
        scheme = scheme_of(bias, parameter, heads=q.shape[2], dim=dim, rotation=rotation)
        return attention(q, k, v, scheme, q_positions=positions, kv_positions=positions, skip_tiles=skip_tiles)

    return _prepared(attend, given, bias, backward, positions)


def jax_nn(*, length: int, dim: int, seed: int, bias: str, backward: bool = False) -> Prepared:
    """Returns `jax.nn.dot_product_attention` with the bias as an array of queries times keys.

    For the forward pass the array is there before the clock starts; with a backward pass it must be made of the slopes
    or the table, as gradients go to them.
    """
    given = problem(length=length, dim=dim, seed=seed)
    positions = jnp.arange(length, dtype=jnp.int32)[None]

    def written(parameter, positions):
        scheme = scheme_of(bias, parameter, heads=given.q.shape[2], dim=dim, rotation=False)
        return scheme.bias(positions[:, :, None] - positions[:, None, :])

    def attend(q, k, v, parameter, extra):
        ready = written(parameter, extra) if backward else extra
        return jax.nn.dot_product_attention(q, k, v, bias=ready, is_causal=True)

    if backward:
        return _prepared(attend, given, bias, backward, positions)
    ready = jax.block_until_ready(jax.jit(written)(given.parameter(bias), positions))
    return _prepared(attend, given, bias, backward, ready)


def scheme_of(bias: str, parameter: jax.Array, *, heads: int, dim: int, rotation: bool) -> Scheme:
    """Returns the scheme of a bias by name; its slopes or table may be traced."""
    turned = rotary(dim, base=10000.0, original_length=4096) if rotation else None
    added = {"none": lambda _: None, "alibi": Alibi, "t5": lambda x: t5_bias(x, max_distance=MAX_DISTANCE)}
    return build(turned, added[bias](parameter), num_heads=heads, head_dim=dim)


def _prepared(attend, given: Problem, bias: str, backward: bool, extra: jax.Array) -> Prepared:
    arrays = [jnp.asarray(x) for x in (given.q, given.k, given.v, given.parameter(bias))]
    inputs = (*arrays, extra)
    if backward:
        inputs = (*inputs, jnp.asarray(given.d_out))

    def forward(*inputs):
        return (attend(*inputs),)

    def forward_and_backward(q, k, v, parameter, extra, d_out):
        out, pull = jax.vjp(lambda q, k, v, parameter: attend(q, k, v, parameter, extra), q, k, v, parameter)
        return out, *pull(d_out)

    program = {}

    def compile_it() -> None:
        program["run"] = jax.jit(forward_and_backward if backward else forward).lower(*inputs).compile()

    def to_numpy(outputs) -> dict[str, np.ndarray]:
        names = ("out", "d_q", "d_k", "d_v", "d_bias")
        return {name: np.asarray(x) for name, x in zip(names, outputs, strict=False) if x.size}

    return Prepared(
        run=lambda: jax.block_until_ready(program["run"](*inputs)),
        compile=compile_it,
        to_numpy=to_numpy,
        input_bytes=sum(x.nbytes for x in inputs),
        output_bytes=given.array_bytes * (4 if backward else 1),
        notes=lambda: {"versions": VERSIONS},
    )
