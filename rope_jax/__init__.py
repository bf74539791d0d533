"""Positions for RoPE language models whose context is extended: exact math, one pytree, and what each part costs.

Submodules are imported on first use, so that what needs no JAX (frequencies, scaling, reading a config) starts fast.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_SUBMODULES = (
    "attention",
    "biases",
    "checkpoints",
    "decoder",
    "diagnosis",
    "dynamic",
    "errors",
    "frequencies",
    "length_rules",
    "phases",
    "rotation",
    "rules",
    "scaling",
    "scheme",
    "testing",
)

if TYPE_CHECKING:
    from rope_jax import (
        biases,
        dynamic,
        errors,
        frequencies,
        length_rules,
        phases,
        rotation,
        rules,
        scaling,
        scheme,
        testing,
    )


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"rope_jax.{name}")
    raise AttributeError(f"module 'rope_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_SUBMODULES]
