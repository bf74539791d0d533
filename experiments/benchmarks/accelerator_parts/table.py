"""Times of attention in bfloat16 by every implementation, beside cuDNN without a bias."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from accelerator_parts import on_jax
from accelerator_parts.jobs import Found, Job, words
from accelerator_parts.on_jax import CUDNN, card, check
from accelerator_parts.shapes import Shape, shapes, speeds

__all__ = ["card", "check", "jobs", "measured"]

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
        yield Job(shape.case("none"), CUDNN, functools.partial(_cudnn, shape))
        ways = [way for way in _WAYS if _WAYS[way][2] or shape.tokens == 4096]  # a call's own cost shows in short ones
        for way in ["alibi"] if quick else ways:
            for name in on_jax.implementations():
                yield Job(shape.case(way), name, functools.partial(_ours, shape, way, name))


def _ours(shape: Shape, way: str, implementation: str) -> Iterable[Found]:
    bias, skip_tiles, counted = _WAYS[way]
    attend = on_jax.attention_of(bias, counted=counted, skip_tiles=skip_tiles, implementation=implementation)
    return measured(attend, shape, bias)


def _cudnn(shape: Shape) -> Iterable[Found]:
    return measured(on_jax.cudnn(), shape, "none")


def measured(attend: Callable[..., Any], shape: Shape, bias: str) -> Iterator[Found]:
    """Yields times, speeds and memory, forward and with gradients to everything that has one."""
    shared = on_jax.parameter_of(bias, shape.heads), on_jax.positions(shape.tokens)
    first, second = ((*(on_jax.normal(shape.array, 4 * at + i) for i in range(3)), *shared) for at in range(2))
    cotangent = on_jax.normal(shape.array, 3)
    program = on_jax.compiled(attend, first)
    forward = on_jax.milliseconds(program, [first, second])
    yield from speeds(shape, forward)
    memory = on_jax.beside(program)
    yield dataclasses.replace(memory, measure=f"{memory.measure}, forward")
    try:
        program = on_jax.compiled(on_jax.with_gradients(attend), (*first, cotangent))
    except NotImplementedError as refusal:
        yield Found("forward + backward", None, error=words(refusal))
        return
    both = on_jax.milliseconds(program, [(*first, cotangent), (*second, cotangent)])
    yield from speeds(shape, forward, both)
    memory = on_jax.beside(program)
    yield dataclasses.replace(memory, measure=f"{memory.measure}, forward + backward")
