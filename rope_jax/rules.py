"""What a scaling rule is, and which rules may follow which."""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rope_jax.errors import ScalingError
from rope_jax.frequencies import Rotary


class Stage(enum.Enum):
    """What a rule reads, which decides what it may follow."""

    ANEW = "makes the frequencies anew: follows only another of its kind"
    GEOMETRY = "decides which pairs turn: follows frequencies made anew, or another of its kind"
    RAMP = "compares trained wavelengths with the trained length: follows geometry only"
    BASE = "multiplies pair i by lambda^(-2i/d): follows geometry, another base scaling, or a uniform rule"
    UNIFORM = "divides every frequency alike: follows anything but rounding"
    ROUNDING = "rounds what it is given: follows anything, and nothing follows it"


_MAY_FOLLOW = {
    Stage.ANEW: {Stage.ANEW},
    Stage.GEOMETRY: {Stage.ANEW, Stage.GEOMETRY},
    Stage.RAMP: {Stage.ANEW, Stage.GEOMETRY},
    Stage.BASE: {Stage.ANEW, Stage.GEOMETRY, Stage.BASE, Stage.UNIFORM},
    Stage.UNIFORM: set(Stage) - {Stage.ROUNDING},
    Stage.ROUNDING: set(Stage) - {Stage.ROUNDING},
}
STAGES = {
    "explicit_base": Stage.ANEW,
    "proportional": Stage.GEOMETRY,
    "by_parts": Stage.RAMP,
    "yarn": Stage.RAMP,
    "yarn_map": Stage.RAMP,
    "llama3": Stage.RAMP,
    "per_pair": Stage.RAMP,
    "dynamic_ntk": Stage.RAMP,
    "longrope": Stage.RAMP,
    "ntk": Stage.BASE,
    "ntk4": Stage.BASE,
    "linear": Stage.UNIFORM,
    "no_rotation": Stage.UNIFORM,
    "resonance": Stage.ROUNDING,
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A named map on `Rotary` records; call it to apply it.

    Attributes:
      name: the rule's name, a key of `STAGES`, or "none"; a rule of your own name composes as a ramp does.
      transform: the map itself.
      hyperparameters: the values the rule was made with, for reports.
    """

    name: str
    transform: Callable[[Rotary], Rotary] = dataclasses.field(compare=False)
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, rotary: Rotary) -> Rotary:
        if self.name == "none":
            return rotary
        check_may_follow(self.name, rotary)
        try:
            with np.errstate(all="ignore"):  # the record that comes out refuses what is not finite
                transformed = self.transform(rotary)
        except ScalingError as error:
            raise error if self.name in str(error) else ScalingError(f"{self.name}: {error}") from None
        return dataclasses.replace(transformed, rules=(*rotary.rules, self.name))


def check_may_follow(name: str, rotary: Rotary) -> None:
    """Raises `ScalingError` when rule `name` has no single meaning after the rules `rotary` has seen."""
    for earlier in rotary.rules:
        if _stage(earlier) not in _MAY_FOLLOW[_stage(name)]:
            raise ScalingError(
                f"{name} after {earlier} has no single meaning: {name} reads what {earlier} has already changed"
            )


def _stage(name: str) -> Stage:
    return STAGES.get(name, Stage.RAMP)


def compose(*rules: Rule) -> Callable[[Rotary], Rotary]:
    """Returns the map that applies `rules` from left to right, each seeing the record the one before it left."""

    def apply(rotary: Rotary) -> Rotary:
        for rule in rules:
            rotary = rule(rotary)
        return rotary

    return apply
