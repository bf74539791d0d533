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
    "linear": Stage.UNIFORM,
    "no_rotation": Stage.UNIFORM,
    "resonance": Stage.ROUNDING,
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A named map on `Rotary` records; call it to apply it.

    Attributes:
      name: the rule's name, a key of `STAGES`, or "none", or one of your own.
      transform: the map itself.
      hyperparameters: the values the rule was made with, for reports.
      stage: what a rule of your own reads; without it, it works alone and composes with no other.
    """

    name: str
    transform: Callable[[Rotary], Rotary] = dataclasses.field(compare=False)
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stage: Stage | None = None

    def __call__(self, rotary: Rotary) -> Rotary:
        if self.name == "none":
            return rotary
        check_may_follow(self.name, rotary, stage=self.stage)
        try:
            with np.errstate(all="ignore"):  # the record that comes out refuses what is not finite
                transformed = self.transform(rotary)
        except ScalingError as error:
            raise error if self.name in str(error) else ScalingError(f"{self.name}: {error}") from None
        stages = dict(rotary.own_stages) if self.stage is None else {**rotary.own_stages, self.name: self.stage}
        return dataclasses.replace(transformed, rules=(*rotary.rules, self.name), own_stages=stages)


def check_may_follow(name: str, rotary: Rotary, *, stage: Stage | None = None) -> None:
    """Raises `ScalingError` when rule `name` has no single meaning after the rules `rotary` has seen.

    Args:
      name: of the rule.
      rotary: what it is to be applied to.
      stage: what the rule reads, where its name is no key of `STAGES`.
    """
    for earlier in rotary.rules:
        before, after = _stage(earlier, rotary.own_stages.get(earlier)), _stage(name, stage)
        if before not in _MAY_FOLLOW[after]:
            raise ScalingError(
                f"{name} after {earlier} has no single meaning: {name} reads what {earlier} has already changed"
            )


def _stage(name: str, own: Stage | None) -> Stage:
    stage = own or STAGES.get(name)
    if stage is None:
        raise ScalingError(f"rule {name!r} composes with no other: what it reads is not known; give its Rule a stage")
    return stage


def compose(*rules: Rule) -> Callable[[Rotary], Rotary]:
    """Returns the map that applies `rules` from left to right, each seeing the record the one before it left."""

    def apply(rotary: Rotary) -> Rotary:
        for rule in rules:
            rotary = rule(rotary)
        return rotary

    return apply
