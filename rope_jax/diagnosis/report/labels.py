"""What scalings, biases and whole configurations are called in a report, and which colour they are drawn in."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rope_jax.biases.registry import BIASES, BiasRecord
from rope_jax.scaling.registry import SCALINGS, Scaling

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


def scaling(name: str, trained: Sequence[float], scaled: Sequence[float]) -> str:
    r"""Returns what a scaling is called, with the factor of the base where that is what the frequencies show.

    .. math:: \theta_i / \theta'_i = \lambda^{2i/d}

    Args:
      name: of its rule.
      trained: inverse frequencies of the unchanged model, radians a token.
      scaled: those that it makes of them.
    """
    before, after = np.asarray(trained, np.float64), np.asarray(scaled, np.float64)
    if len(before) != len(after) or len(before) < 2 or not ((before > 0).all() and (after > 0).all()):
        return label(name)
    slowed = np.log(before / after)
    step = slowed[-1] / (len(before) - 1)
    if abs(slowed[-1]) < 1e-6 or not np.allclose(slowed, step * np.arange(len(before)), atol=1e-6, rtol=1e-5):
        return label(name)
    return f"base scaling x{np.exp(step * len(before)):.3g}"


def configuration(original: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """Returns a configuration in words.

    Args:
      original: configuration of the unchanged model, as in a record.
      one: the configuration.
    """
    if one["name"] == original["name"]:
        return "the original model"
    parts = ["no scaling", "no bias" if one["bias"] == "none" else label(one["bias"])]
    if one["scaling"] != "none":
        parts[0] = scaling(one["scaling"], original["inverse_frequencies"], one["inverse_frequencies"])
    if one["temperature"] != 1:
        parts.append(f"logits x{one['temperature']:.3g}")
    return " + ".join(parts)
