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


@dataclasses.dataclass(frozen=True)
class Rule:
    """A named map on `Rotary` records; call it to apply it.

    Attributes:
      name: the rule's name; "none" changes nothing.
      transform: the map itself.
      hyperparameters: the values the rule was made with, for reports.
      stage: what the rule reads; without it, it works alone and composes with no other.
    """

    name: str
    transform: Callable[[Rotary], Rotary] = dataclasses.field(compare=False)
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stage: Stage | None = None

    def __call__(self, rotary: Rotary) -> Rotary:
        if self.name == "none":
            return rotary
        self._check_may_follow(rotary)
        try:
            with np.errstate(all="ignore"):  # the record that comes out refuses what is not finite
                transformed = self.transform(rotary)
        except ScalingError as error:
            raise error if self.name in str(error) else ScalingError(f"{self.name}: {error}") from None
        except Exception as error:
            if (getattr(self.transform, "__module__", None) or "").partition(".")[0] == __package__:
                raise  # a bug of ours
            raise ScalingError(f"{self.name}: {type(error).__name__}: {error}") from error
        if not isinstance(transformed, Rotary):
            raise ScalingError(f"{self.name}: its transform gives {type(transformed).__name__}, not Rotary")
        rules, stages = (*rotary.rules, self.name), (*rotary.stages, self.stage)
        return dataclasses.replace(transformed, rules=rules, stages=stages)

    def _check_may_follow(self, rotary: Rotary) -> None:
        for earlier, before in zip(rotary.rules, rotary.stages, strict=True):
            for name, stage in ((earlier, before), (self.name, self.stage)):
                if stage is None:
                    raise ScalingError(
                        f"rule {name!r} composes with no other: what it reads is not known; give its Rule a stage"
                    )
            if self.stage and before not in _MAY_FOLLOW[self.stage]:
                raise ScalingError(
                    f"{self.name} after {earlier} has no single meaning: {self.name} reads what {earlier} has already "
                    "changed"
                )


def compose(*rules: Rule) -> Callable[[Rotary], Rotary]:
    """Returns the map that applies `rules` from left to right, each seeing the record the one before it left."""

    def apply(rotary: Rotary) -> Rotary:
        for rule in rules:
            rotary = rule(rotary)
        return rotary

    return apply
