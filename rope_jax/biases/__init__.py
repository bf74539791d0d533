"""Relative biases: each a pytree that gives every head's bias at an offset `i - j`, in nats.

`slopes` and `buckets` are plain host numbers; the rest needs JAX and is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING

from rope_jax.biases.buckets import bucket_starts, textbook_buckets
from rope_jax.biases.protocol import Bias
from rope_jax.biases.slopes import geometric_slopes, paper_slopes

if TYPE_CHECKING:
    from rope_jax.biases.alibi import Alibi, alibi_geometric, alibi_inside_scale, alibi_paper
    from rope_jax.biases.kerple import KerpleLogarithmic, KerplePower
    from rope_jax.biases.per_offset import PerOffset
    from rope_jax.biases.t5 import T5, bucket, t5_bias

_HOMES = {
    "Alibi": "alibi",
    "alibi_paper": "alibi",
    "alibi_geometric": "alibi",
    "alibi_inside_scale": "alibi",
    "KerpleLogarithmic": "kerple",
    "KerplePower": "kerple",
    "PerOffset": "per_offset",
    "T5": "t5",
    "bucket": "t5",
    "t5_bias": "t5",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"rope_jax.biases.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'rope_jax.biases' has no attribute {name!r}")


__all__ = ["Bias", "bucket_starts", "geometric_slopes", "paper_slopes", "textbook_buckets", *_HOMES]
