"""Time of a step of decoding over a long cache of rotated keys: by the Hopper kernel, and by the loop in JAX."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax_contenders import scheme_of

from accelerator_parts import on_jax
from accelerator_parts.jobs import Found, Job
from accelerator_parts.on_jax import card, check
from rope_jax.attention import decode, machine, mosaic_gpu_decode
from rope_jax.attention.call import Settings, Tokens

__all__ = ["card", "check", "jobs"]

_KERNEL, _LOOP = "decode, Hopper kernel", "decode, loop"


def jobs(*, quick: bool) -> Iterator[Job]:
    """Yields a job for each batch, bias and way."""
    slots, heads, kv_heads, dim = (256, 4, 2, 64) if quick else (32768, 32, 8, 128)
    for batch in (1,) if quick else (1, 8):
        for bias in ("alibi",) if quick else ("none", "alibi", "t5"):
            shape = batch, slots, heads, kv_heads, dim
            case: dict[str, str | int] = {"batch": batch, "slots": slots, "heads": heads, "bias": bias}
            for way in (_KERNEL, _LOOP):
                prepare = functools.partial(_program, way, shape, bias)
                yield Job(case, way, functools.partial(_measured, shape, bias), prepare)


def _step(shape: tuple[int, ...], bias: str) -> Callable[..., Any]:
    """Returns the outputs of one query a sequence, of a cache that is full."""
    _, slots, heads, _, dim = shape

    def step(q, keys, values, parameter):
        batch = q.shape[0]
        scheme = scheme_of(bias, parameter, heads=heads, dim=dim, rotation=True)
        positions = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (batch, slots))
        here = Tokens(jnp.full((batch, 1), slots - 1, jnp.int32))
        settings = Settings(dim**-0.5)
        return decode.over_cache(q, keys, values, scheme, None, here, Tokens(positions), settings, turn=None)[0]

    return step


def _arguments(shape: tuple[int, ...], bias: str, seed: int) -> tuple[jax.Array, ...]:
    batch, slots, heads, kv_heads, dim = shape
    return (
        on_jax.normal((batch, 1, heads, dim), 3 * seed),
        on_jax.normal((batch, kv_heads, dim, slots), 3 * seed + 1),
        on_jax.normal((batch, kv_heads, slots, dim), 3 * seed + 2),
        on_jax.parameter_of(bias, heads),
    )


def _program(way: str, shape: tuple[int, ...], bias: str) -> Any:
    """Returns the compiled step."""
    lacks = machine.hopper_lacks()
    if way == _KERNEL and lacks:
        raise NotImplementedError(f"the Hopper kernels {lacks}")
    without = mock.patch.object(mosaic_gpu_decode, "kernel_for", return_value=None)
    with on_jax.TRACING, without if way == _LOOP else contextlib.nullcontext():
        lowered = jax.jit(_step(shape, bias)).lower(*_arguments(shape, bias, 0))
    return lowered.compile()


def _measured(shape: tuple[int, ...], bias: str, program: Any) -> Iterator[Found]:
    batch, slots, _, kv_heads, dim = shape
    time = on_jax.milliseconds(program, [_arguments(shape, bias, seed) for seed in range(2)])
    yield Found("time", time, "ms")
    yield Found("of the cache read", 4 * batch * slots * kv_heads * dim / time / 1e6, "GB/s")
    yield on_jax.beside(program)
