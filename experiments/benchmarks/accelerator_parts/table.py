"""Times of attention in bfloat16 by every implementation, beside cuDNN without a bias."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from accelerator_parts import on_jax
from accelerator_parts.jobs import Found, Job, words
from accelerator_parts.on_jax import CUDNN, card, check
from accelerator_parts.records import Case
from accelerator_parts.shapes import Shape, shapes, speeds

__all__ = ["card", "check", "job", "jobs"]

_WAYS = {  # name: bias, whether tiles are skipped, whether the compiler knows the positions
    "none": ("none", True, True),
    "alibi": ("alibi", True, True),
    "t5": ("t5", True, True),
    "alibi, no skipping": ("alibi", False, True),
    "none, positions given": ("none", True, False),
}


def jobs(*, quick: bool) -> Iterator[Job]:
    """Yields a job for each shape, bias and implementation; cuDNN first, which the others are held against."""
    for shape in shapes(quick):
        yield job(shape, shape.case("none"), CUDNN, on_jax.cudnn, "none")
        ways = [way for way in _WAYS if _WAYS[way][2] or shape.tokens == 4096]  # a call's own cost shows in short ones
        for way in ["alibi"] if quick else ways:
            bias, skip_tiles, counted = _WAYS[way]
            for name in on_jax.implementations():
                attend = functools.partial(
                    on_jax.attention_of, bias, counted=counted, skip_tiles=skip_tiles, implementation=name
                )
                yield job(shape, shape.case(way), name, attend, bias)


def job(shape: Shape, case: Case, name: str, attend_of: Callable[[], Callable[..., Any]], bias: str) -> Job:
    """Returns the job of timing what `attend_of` returns."""
    prepare = functools.partial(_programs, attend_of, shape, bias)
    return Job(case, name, functools.partial(_measured, shape, bias), prepare)


def _programs(attend_of: Callable[[], Callable[..., Any]], shape: Shape, bias: str) -> tuple[Any, Any]:
    """Returns what runs forward, and with gradients to everything that has one, or the refusal of these."""
    attend, shaped = attend_of(), jax.ShapeDtypeStruct(shape.array, jnp.bfloat16)
    first = shaped, shaped, shaped, on_jax.parameter_of(bias, shape.heads), on_jax.positions(shape.tokens)
    forward = on_jax.compiled(attend, first)
    try:
        return forward, on_jax.compiled(on_jax.with_gradients(attend), (*first, shaped))
    except NotImplementedError as refusal:
        return forward, refusal


def _arguments(shape: Shape, bias: str) -> tuple[Sequence[Any], Sequence[Any], Any]:
    """Returns arguments of a call, others, and a cotangent."""
    shared = on_jax.parameter_of(bias, shape.heads), on_jax.positions(shape.tokens)
    first, second = ((*(on_jax.normal(shape.array, 4 * at + i) for i in range(3)), *shared) for at in range(2))
    return first, second, on_jax.normal(shape.array, 3)


def _measured(shape: Shape, bias: str, programs: tuple[Any, Any]) -> Iterator[Found]:
    """Yields times, speeds and memory."""
    (program, with_gradients), (first, second, cotangent) = programs, _arguments(shape, bias)
    forward = on_jax.milliseconds(program, [first, second])
    yield from speeds(shape, forward)
    memory = on_jax.beside(program)
    yield dataclasses.replace(memory, measure=f"{memory.measure}, forward")
    if isinstance(with_gradients, NotImplementedError):
        yield Found("forward + backward", None, error=words(with_gradients))
        return
    program = with_gradients
    both = on_jax.milliseconds(program, [(*first, cotangent), (*second, cotangent)])
    yield from speeds(shape, forward, both)
    memory = on_jax.beside(program)
    yield dataclasses.replace(memory, measure=f"{memory.measure}, forward + backward")
