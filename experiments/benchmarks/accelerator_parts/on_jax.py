"""What the parts on JAX share: the card, the implementations, calls of attention, and time on a device that queues."""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax_contenders import scheme_of
from problem import BUCKETS

from accelerator_parts import timing
from accelerator_parts.jobs import Found
from rope_jax.attention import api
from rope_jax.biases import paper_slopes

CUDNN = "jax.nn (cuDNN)"
_MEBIBYTE = 2**20
TRACING = threading.Lock()  # functions with a derivative of their own are not traced by two threads at once


def card() -> str:
    """Returns the accelerator's name."""
    return jax.devices()[0].device_kind


def check() -> None:
    """Raises if the card does nothing any more, as after a kernel that read outside of its memory."""
    assert float(jnp.ones(8).sum()) == 8


def implementations() -> tuple[str, ...]:
    """Returns the names of all implementations, in the order in which a call tries them."""
    return tuple(api._IMPLEMENTATIONS)


def serving(q: jax.ShapeDtypeStruct, k: jax.ShapeDtypeStruct, v: jax.ShapeDtypeStruct, bias: str) -> str:
    """Returns the name of the implementation that a call of these shapes is given to where it names none."""
    for name in implementations():
        try:
            attend = attention_of(bias, implementation=name)
            jax.eval_shape(attend, q, k, v, parameter_of(bias, q.shape[2]), positions(q.shape[1]))
        except NotImplementedError:
            continue
        return name
    return "none"


def parameter_of(bias: str, heads: int) -> jax.Array:
    """Returns ALiBi's slopes, the paper's, T5's table, random normal, or nothing."""
    table = np.random.default_rng(0).normal(size=(heads, BUCKETS))
    made = {"none": np.zeros(0), "alibi": paper_slopes(heads), "t5": table}
    return jnp.asarray(made[bias], jnp.float32)


def positions(tokens: int) -> jax.Array:
    """Returns 0, 1, 2, ..."""
    return jnp.arange(tokens, dtype=jnp.int32)


def attention_of(bias: str, *, counted: bool = False, **arguments: Any) -> Callable[..., Any]:
    """Returns causal attention as a function of queries, keys, values, slopes or table, and positions.

    Args:
      bias: "none", "alibi" or "t5".
      counted: whether positions are counted up in the program, as a decoder does, whatever is given: the compiler then
        knows them.
      **arguments: of `rope_jax.attention.attention`.
    """

    def attend(q, k, v, parameter, given):
        positions = jnp.arange(q.shape[1], dtype=jnp.int32) if counted else given
        scheme = scheme_of(bias, parameter, heads=q.shape[2], dim=q.shape[3], rotation=True)
        return api.attention(q, k, v, scheme, q_positions=positions, kv_positions=positions, **arguments)

    return attend


def cudnn(*, window: int | None = None) -> Callable[..., Any]:
    """Returns causal attention by cuDNN as `jax.nn` calls it, without bias and rotation; what they need is not read.

    Raises:
      NotImplementedError: anywhere but on a GPU.
    """
    if jax.default_backend() != "gpu":
        raise NotImplementedError(f"cuDNN needs a GPU, the default backend is {jax.default_backend()}")
    near = None if window is None else (window - 1, 0)

    def attend(q, k, v, parameter, positions):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=near, implementation="cudnn")

    return attend


def with_gradients(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function from the arguments of `attend` and a cotangent to its output and all gradients."""

    def both(q, k, v, parameter, positions, d_out):
        out, pull = jax.vjp(lambda *x: attend(*x, positions), q, k, v, parameter)
        return out, *pull(d_out)

    return both


def compiled(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Returns a function compiled for arguments like these; several threads may compile at once."""
    with TRACING:
        lowered = jax.jit(function).lower(*arguments)
    return lowered.compile()


def milliseconds(program: Callable[..., Any], inputs: Sequence[Sequence[Any]]) -> float:
    """Returns the time of a call of a compiled program; `inputs` are arguments of calls, taken in turn."""
    return timing.milliseconds(program, inputs, jax.block_until_ready)


def beside(program: Any) -> Found:
    """Returns the memory that a compiled program takes beside its inputs and outputs."""
    return Found("memory beside", program.memory_analysis().temp_size_in_bytes / _MEBIBYTE, "MiB")


@functools.lru_cache(maxsize=8)
def normal(shape: tuple[int, ...], seed: int, dtype=jnp.bfloat16) -> jax.Array:
    """Returns random normal numbers, made on the device."""
    return jax.block_until_ready(jax.random.normal(jax.random.key(seed), shape, dtype))
