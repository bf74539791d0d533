"""Every scaling rule by name: how it is made for a longer context, and how reports show it. Starts without JAX.

A rule of your own is one record: `register(Scaling("mine", make=lambda factor, original_length: Rule(...), ...))`. From
then on its name works wherever a name of a scaling is taken, in Python and, where a module does so on import, in the
commands. A `Rule` itself is taken wherever a name is.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

from rope_jax import named_records
from rope_jax import scaling as rules
from rope_jax.errors import InputError
from rope_jax.length_rules import LengthRule, dynamic_ntk
from rope_jax.rules import Rule, Stage

Kind = Literal["none", "base", "map", "map and temperature", "by length", "no rotation"]


@dataclasses.dataclass(frozen=True)
class Scaling:
    """One scaling rule, and how it is shown.

    Attributes:
      name: as flags and reports have it.
      make: from the factor `s` and the trained length `L`, tokens, to the rule.
      label: for plots and tables.
      color: for plots, `#rrggbb`.
      explanation: one line, for help and reports.
      kind: what it changes; option 3 may put any "map" in the place of another rule.
    """

    name: str
    make: Callable[[float, int], Rule | LengthRule]
    label: str
    color: str
    explanation: str
    kind: Kind = "map"


SCALINGS: dict[str, Scaling] = {}


def register(scaling: Scaling) -> Scaling:
    """Adds a rule under its name and returns it.

    Raises:
      InputError: if the name is taken, or is no word.
    """
    return named_records.add(SCALINGS, scaling.name, scaling, kind="scaling")


def _ntk4(factor: float, original_length: int) -> Rule:
    matched, wider = rules.ntk(factor=factor), rules.ntk(multiplier=4.0)
    hyperparameters = {"factor": factor, "times": 4.0}
    return Rule("ntk4", lambda rotary: wider.transform(matched.transform(rotary)), hyperparameters, Stage.BASE)


def _llama3(factor: float, original_length: int) -> Rule:
    return rules.llama3(factor=factor, original_length=original_length, low_freq_factor=1.0, high_freq_factor=4.0)


for _record in (
    Scaling("none", lambda s, length: rules.none(), "none", "#6b7280", "the frequencies as trained", "none"),
    Scaling("linear", lambda s, length: rules.linear(factor=s), "linear", "#b45309", "every frequency divided by s"),
    Scaling(
        "ntk", lambda s, length: rules.ntk(factor=s), "ntk", "#2563eb",
        "base scaling: the base times s^(d/(d-2)), so that the longest wavelength grows by s", "base",
    ),
    Scaling("ntk4", _ntk4, "ntk, 4x base", "#0891b2", "base scaling by four times the multiplier of ntk", "base"),
    Scaling(
        "by_parts", lambda s, length: rules.by_parts(factor=s, original_length=length), "by parts", "#7c3aed",
        "a ramp from 1 to 32 turns within L: slower pairs divided by s, faster ones left alone",
    ),
    Scaling(
        "yarn_map", lambda s, length: rules.yarn_map(factor=s, original_length=length), "yarn's map", "#db2777",
        "YaRN's ramp in the pair's index, without its temperature",
    ),
    Scaling(
        "yarn", lambda s, length: rules.yarn(factor=s, original_length=length), "yarn", "#be123c",
        "YaRN: its map and its temperature, (0.1 ln s + 1)^2 on the logits", "map and temperature",
    ),
    Scaling(
        "llama3", _llama3, "llama3", "#15803d",
        "Llama 3.1's ramp from 1 to 4 turns within L: slower pairs divided by s, faster ones left alone",
    ),
    Scaling(
        "dynamic_ntk", lambda s, length: dynamic_ntk(factor=1.0, original_length=length), "dynamic ntk", "#0d9488",
        "base scaling that grows with the length of each sequence", "by length",
    ),
    Scaling(
        "no_rotation", lambda s, length: rules.no_rotation(), "no rotation", "#a16207",
        "the rotation dropped (DroPE): only the bias, if any, knows about positions", "no rotation",
    ),
):  # fmt: skip
    register(_record)


def made(scaling: Scaling, *, factor: float, original_length: int) -> Rule | LengthRule:
    """Returns the rule of a record.

    Args:
      scaling: the record.
      factor: `s`, target over trained length.
      original_length: `L`, tokens.

    Raises:
      InputError: if a record of your own fails, or makes no rule.
    """
    expected = Rule | LengthRule
    return named_records.made(
        scaling.make, factor, original_length, kind="scaling", name=scaling.name, expected=expected
    )


def scaling_rule(scaling: str | Rule | LengthRule, *, factor: float, original_length: int) -> Rule | LengthRule:
    """Returns the rule of a name with its published defaults, for a context `factor` times as long.

    Args:
      scaling: a name of `SCALINGS`; "explicit_base:B" for frequencies made anew from base `B`; a rule is returned as
        it is.
      factor: `s`, target over trained length.
      original_length: `L`, tokens.

    Raises:
      InputError: if there is no such rule, or one of your own cannot be made.

    >>> scaling_rule("linear", factor=8.0, original_length=4096).hyperparameters
    {'factor': 8.0}
    """
    if not isinstance(scaling, str):
        return scaling
    if scaling.startswith("explicit_base:"):
        try:
            return rules.explicit_base(base=float(scaling.partition(":")[2]))
        except ValueError as error:
            raise InputError(f"scaling {scaling!r}: explicit_base:B takes a positive number B") from error
    if scaling not in SCALINGS:
        raise InputError(f"unknown scaling {scaling!r}; there are: {', '.join(SCALINGS)}, explicit_base:B")
    return made(SCALINGS[scaling], factor=factor, original_length=original_length)
