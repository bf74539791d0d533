"""What scalings, biases and whole configurations are called in a report, and which colour they are drawn in."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rope_jax.biases.registry import BIASES, BiasRecord
from rope_jax.scaling.registry import SCALINGS, Scaling

__all__ = ["base_factor", "colour", "configuration", "explanation", "label"]

Record = Mapping[str, Any]

OTHER = "#8a8f96"


def _record(name: str) -> Scaling | BiasRecord | None:
    base = name.partition("*")[0]
    return SCALINGS.get(base) or BIASES.get(base)


def label(name: str) -> str:
    """Returns what a scaling or bias is called; a multiple says so, and an unknown one is called by its name.

    >>> label("t5"), label("alibi*16"), label("mine")
    ('T5 buckets', 'ALiBi x16', 'mine')
    """
    known, multiple = _record(name), name.partition("*")[2]
    return name if known is None else known.label + (f" x{multiple}" if multiple else "")


def colour(name: str, *, ink: str) -> str:
    """Returns the colour of a scaling or bias as `#rrggbb`; `ink` for what is as trained."""
    known = _record(name)
    return ink if name == "none" else OTHER if known is None else known.color


def explanation(name: str) -> str:
    """Returns one line on a scaling or bias; "" for an unknown one."""
    known = _record(name)
    return "" if known is None else known.explanation


def base_factor(original: Record, one: Record) -> float | None:
    r"""Returns by what the base was multiplied, read off the frequencies; None where that is not what was done.

    .. math:: \theta_i / \theta'_i = \lambda^{2i/d}

    Args:
      original: configuration of the unchanged model, as in a record.
      one: another configuration.
    """
    before, after = (np.asarray(each["inverse_frequencies"], np.float64) for each in (original, one))
    if len(before) != len(after) or len(before) < 2 or not ((before > 0).all() and (after > 0).all()):
        return None
    slowed = np.log(before / after)
    step = slowed[-1] / (len(before) - 1)
    if abs(slowed[-1]) < 1e-6 or not np.allclose(slowed, step * np.arange(len(before)), atol=1e-6, rtol=1e-5):
        return None
    return float(np.exp(step * len(before)))


def configuration(original: Record, one: Record) -> str:
    """Returns a configuration in words, with the factor of its base where the base is scaled.

    Args:
      original: configuration of the unchanged model, as in a record.
      one: the configuration.
    """
    if one["name"] == original["name"]:
        return "the original model"
    factor = base_factor(original, one)
    scaling = f"base scaling x{factor:.3g}" if factor is not None else label(one["scaling"])
    parts = [scaling if one["scaling"] != "none" else "no scaling"]
    parts.append(label(one["bias"]) if one["bias"] != "none" else "no bias")
    if one["temperature"] != 1:
        parts.append(f"logits x{one['temperature']:.3g}")
    return " + ".join(parts)
