"""Positions for RoPE language models whose context is extended: exact math, one pytree, and what each part costs.

Submodules and functions are imported on first use, so that what needs no JAX (frequencies, scaling, reading a config)
starts fast.
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
    "statistics",
    "testing",
)

_FUNCTIONS = {"diagnose": "rope_jax.diagnosis.api", "inspect": "rope_jax.diagnosis.theory.inspection"}
"""Functions that stand at the top, and where each lives."""

if TYPE_CHECKING:
    from rope_jax.diagnosis.api import diagnose
    from rope_jax.diagnosis.theory.inspection import inspect


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"rope_jax.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'rope_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]


__all__ = ["__version__", *_SUBMODULES, *_FUNCTIONS]
