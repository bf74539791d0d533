"""Relative biases: each a pytree that gives every head's bias at an offset `i - j`, in nats.

`host` and `registry` start without JAX; `functions` is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING

from rope_jax.biases.host import Bias, bucket_starts, geometric_slopes, paper_slopes, textbook_buckets

if TYPE_CHECKING:
    from rope_jax.biases.functions import *  # noqa: F403

_BIASES = ("Alibi", "KerpleLogarithmic", "KerplePower", "PerOffset", "T5")
_MADE = ("alibi_geometric", "alibi_inside_scale", "alibi_paper", "bucket", "t5_bias")
__all__ = ["Bias", "bucket_starts", "geometric_slopes", "paper_slopes", "textbook_buckets", *_BIASES, *_MADE]


def __getattr__(name: str):
    if name in (*_BIASES, *_MADE):
        return getattr(importlib.import_module("rope_jax.biases.functions"), name)
    raise AttributeError(f"module 'rope_jax.biases' has no attribute {name!r}")
