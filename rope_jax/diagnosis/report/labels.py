"""What scalings, biases and whole configurations are called in a report, and which colour they are drawn in."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["base_factor", "colour", "configuration", "explanation", "label", "register"]

Record = Mapping[str, Any]


OTHER = "#8a8f96"
# Distinguished by colour-blind readers, and on white as on black.
_KNOWN: dict[str, tuple[str, str, str]] = {
    "none": ("none", "", "as trained"),
    "linear": ("linear interpolation", "#e08a00", "every pair slowed alike"),
    "ntk": ("base scaling", "#3b8fd1", "a larger base: the slower a pair, the more it is slowed"),
    "by_parts": ("by parts", "#009e73", "slow pairs interpolated, fast ones kept"),
    "yarn_map": ("YaRN's map", "#cc79a7", "by parts, ramped in the pair's index"),
    "yarn": ("YaRN", "#cc79a7", "by parts, ramped in the pair's index, and sharper logits"),
    "llama3": ("llama3", "#d55e00", "by parts with a narrow ramp"),
    "alibi": ("ALiBi", "#3b8fd1", "a penalty that grows with the offset, a slope a head"),
    "alibi_safe": ("largest safe ALiBi", "#8f7be0", "the largest slopes that cost nothing at the trained length"),
    "t5": ("T5 buckets", "#009e73", "one number a head and bucket of offsets"),
}
_registered: dict[str, tuple[str, str, str]] = {}


def register(records: Mapping[str, Any]) -> None:
    """Takes `label`, `color` and `explanation` of a registry's records, by name; they go before those known here."""
    for name, one in records.items():
        _registered[name] = (one.label, one.color, one.explanation)


def _found(name: str) -> tuple[str, str, str]:
    return _registered.get(name) or _KNOWN.get(name) or (name, OTHER, "")


def label(name: str) -> str:
    """Returns what a scaling or bias is called; a multiple says so, and an unknown one is called by its name.

    >>> label("ntk"), label("alibi*16"), label("mine")
    ('base scaling', 'ALiBi x16', 'mine')
    """
    multiple = re.fullmatch(r"(.+)\*([\d.e+-]+)", name)
    return f"{label(multiple[1])} x{multiple[2]}" if multiple else _found(name)[0]


def colour(name: str, *, ink: str) -> str:
    """Returns the colour of a scaling or bias as `#rrggbb`; `ink` for what is as trained."""
    return _found(name.split("*")[0])[1] or ink


def explanation(name: str) -> str:
    """Returns one line on a scaling or bias; "" for an unknown one."""
    return _found(name.split("*")[0])[2]


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
