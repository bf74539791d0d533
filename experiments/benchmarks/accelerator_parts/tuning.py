"""Times of the GPU kernel by size of its tiles, where it lets them be chosen."""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from jax_contenders import scheme_of

from accelerator_parts import table
from accelerator_parts.jobs import Found, Job
from accelerator_parts.on_jax import card, check
from accelerator_parts.shapes import Shape
from rope_jax.attention.call import Tokens, checked

__all__ = ["card", "check", "jobs"]

_MODULE = "rope_jax.attention.mosaic_gpu"


def jobs(*, quick: bool) -> Iterator[Job]:
    """Yields a job for each shape, bias and candidate; one that says why not where there are none."""
    module = importlib.import_module(_MODULE) if importlib.util.find_spec(_MODULE) else None
    for shape in (Shape(64, 2, 256),) if quick else (Shape(128, 8, 16384), Shape(64, 8, 16384)):
        candidates = candidates_of(module, shape.dim)
        if module is None or not candidates:
            reason = f"{_MODULE} offers no tiles for heads of {shape.dim}" if module else f"there is no {_MODULE}"
            yield Job(shape.case("none"), "mosaic_gpu", functools.partial(_refuse, reason))
            continue
        for bias in ("none", "alibi", "t5"):
            for tiles in candidates:
                attend_of = functools.partial(_attend_of, module, shape, bias, tiles)
                yield table.job(shape, shape.case(bias), str(tiles), attend_of, bias)


def candidates_of(module: Any, dim: int) -> list[Any]:
    """Returns a module's sizes of tiles to try: of its `candidates(dim)`, or its `TUNING` by chip and dimension."""
    if hasattr(module, "candidates"):
        return list(module.candidates(dim))
    of_chips = getattr(module, "TUNING", {})
    return list(dict.fromkeys(tiles for (_, of), found in of_chips.items() if of == dim for tiles in found))


def _refuse(reason: str) -> Iterable[Found]:
    raise NotImplementedError(reason)


def _attend_of(module: ModuleType, shape: Shape, bias: str, tiles: Any) -> Callable[..., Any]:
    def attend(q, k, v, parameter, positions):
        scheme = scheme_of(bias, parameter, heads=shape.heads, dim=shape.dim, rotation=True)
        at = Tokens(positions[None])
        return module.attend_with(q, k, v, scheme, None, at, at, checked(q, k, v, scheme), tiles=tiles)[0]

    return attend
