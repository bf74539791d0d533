"""What is deployed and what may be changed in it, as configurations by name.

A configuration is a `Retrofit`: the trained rotary embedding, a rule, a bias, a temperature. Its name, such as
"ntk + alibi", is the same on every model, though what is fitted may differ.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from rope_jax.biases import Bias
from rope_jax.biases.registry import BIASES, parse_bias
from rope_jax.diagnosis.evaluation.panel import Option
from rope_jax.errors import InputError
from rope_jax.length_rules import LengthRule, at_length
from rope_jax.rules import Rule
from rope_jax.scaling import yarn_mscale
from rope_jax.scaling.registry import SCALINGS, scaling_rule
from rope_jax.scheme import (
    Retrofit,
    drop_bias,
    drop_rotation,
    keeping_temperature,
    rescale,
    sharpen,
    undo_both,
    undo_scaling,
)

ScalingLike = str | Rule | LengthRule
BiasLike = str | Bias | None


class Wanted(NamedTuple):
    """A configuration that is asked for, before a model has it.

    Attributes:
      scaling: a name or a rule.
      bias: a name, a bias, or None.
      sharpened: whether logits are multiplied by `temperature_of`, beside what the rule itself brings along.
      given: the whole of it, where a `Retrofit` was given.
    """

    scaling: ScalingLike
    bias: BiasLike
    sharpened: bool = False
    given: Retrofit | None = None

    @property
    def named(self) -> bool:
        """Whether names say all of it."""
        return isinstance(self.scaling, str) and (self.bias is None or isinstance(self.bias, str))

    @property
    def name(self) -> str:
        """What the configuration is called, before a model has it."""
        if self.given is not None:
            return self.given.name
        return f"{scaling_name(self.scaling)} + {bias_name(self.bias)}{' + temperature' if self.sharpened else ''}"


ORIGINAL = "none + none"
"""Name of the model as it was trained."""

TRANSFORMS = ("llama3", "yarn_map", "by_parts")
"""Scalings that option 3 tries by default; any map of the registry may be one."""


def wanted(given: str | Retrofit | Wanted | Sequence[ScalingLike | BiasLike]) -> Wanted:
    """Returns what "SCALING+BIAS" (or with "+temperature"), a pair of names or objects, or a `Retrofit` asks for.

    Raises:
      InputError: if a name is unknown, or what is given is none of these.

    >>> wanted("ntk+alibi*16").bias
    'alibi*16'
    """
    if isinstance(given, Wanted):
        return given
    if isinstance(given, Retrofit):
        return Wanted(given.rule, given.bias, given=given)
    if isinstance(given, str):
        match = re.fullmatch(r"([\w:.]+)\+([\w.*]+?)(\+temperature)?", given)
        if match is None:
            raise InputError(
                f"{given!r} is not SCALING+BIAS; scalings: {', '.join(SCALINGS)}, explicit_base:B; biases: "
                f"{', '.join(BIASES)}, alibi*N"
            )
        parts: Sequence[ScalingLike | BiasLike] = match.group(1, 2)
        sharpened = match[3] is not None
    else:
        parts, sharpened = given, False
    if not isinstance(parts, Sequence) or len(parts) != 2 or not isinstance(parts[0], ScalingLike):
        raise InputError(
            f"deployed: {given!r} is neither 'SCALING+BIAS', a pair of a scaling and a bias, nor a Retrofit"
        )
    scaling, bias = parts
    if isinstance(scaling, str):
        scaling_rule(scaling, factor=2.0, original_length=4096)  # that there is one
    if isinstance(bias, str):
        parse_bias(bias)
    elif bias is not None and not hasattr(bias, "num_heads"):
        raise InputError(f"deployed: {given!r}: {type(bias).__name__} is neither a name of a bias nor a Bias")
    return Wanted(scaling, bias, sharpened)  # type: ignore[arg-type]


def scaling_name(scaling: ScalingLike) -> str:
    """Returns what a scaling is called: its name, or of a rule that of the rule."""
    return scaling if isinstance(scaling, str) else scaling.name


def bias_name(bias: BiasLike) -> str:
    """Returns what a bias is called: its name, or of an object that of its type, unless the package's own has that.

    >>> bias_name("alibi*16"), bias_name(None)
    ('alibi*16', 'none')
    """
    if bias is None or isinstance(bias, str):
        return bias or "none"
    name = type(bias).__name__.lower()
    return "own" if name in BIASES else name


def temperature_of(factor: float) -> float:
    """Returns what sharpened logits are multiplied by for a context `factor` times as long: YaRN's, squared.

    >>> round(temperature_of(8.0), 3)
    1.459
    """
    return yarn_mscale(factor) ** 2


def options_of(
    deployed: Retrofit, *, transforms: Sequence[Rule], temperature: float, length: int
) -> tuple[tuple[Option, Retrofit], ...]:
    """Returns what may be changed in a deployed configuration, one thing each: 1, 2 and 3 first, others after.

    Args:
      deployed: the configuration.
      transforms: rules that option 3 may scale by; those that scale as the deployed one does are left out. Option 3
        changes the map alone: the temperature stays what it is.
      temperature: that logits are multiplied by to sharpen them.
      length: `L'`, tokens, for rules that depend on it.
    """
    found: list[tuple[str, str, Retrofit]] = []
    scaled = at_length(deployed.rule, length)(deployed.rotary)
    brought = scaled.cos_sin_factor**2 * scaled.logit_scale
    if deployed.bias is not None:
        found.append(("1", "drop the bias", drop_bias(deployed)))
    if deployed.scaling != "none":
        found.append(("2", "undo the scaling", undo_scaling(deployed)))
    for rule in transforms:
        if not (rule(deployed.rotary).inverse_frequencies == scaled.inverse_frequencies).all():
            after = keeping_temperature(deployed, rescale(deployed, rule), length=length)
            found.append(("3", f"scale by {rule.name} instead", after))
    if deployed.temperature * brought == 1:
        found.append(("", "sharpen the logits", sharpen(deployed, temperature)))
    else:
        found.append(("", "drop the temperature", sharpen(deployed, 1 / brought)))
    if deployed.bias is not None and deployed.scaling != "none":
        found.append(("", "undo both", undo_both(deployed)))
    if deployed.scaling != "no_rotation":
        found.append(("", "drop the rotation", drop_rotation(deployed)))
    return tuple((Option(number, words, retrofit.name), retrofit) for number, words, retrofit in found)


def corners_of(deployed: Retrofit) -> dict[frozenset[str], Retrofit]:
    """Returns the 2 x 2 of a deployed configuration, by which of its two parts are in place; less where one is missing.

    The temperature that a rule brings along goes with it; one of its own stays in none of the corners but the last.
    """
    if deployed.bias is None or deployed.scaling == "none":
        return {}
    return {
        frozenset(): undo_both(deployed),
        frozenset({"scaling"}): sharpen(drop_bias(deployed), 1.0),
        frozenset({"bias"}): sharpen(undo_scaling(deployed), 1.0),
        frozenset({"scaling", "bias"}): deployed,
    }
