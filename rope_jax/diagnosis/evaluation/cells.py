"""The cells of the verdict: a scaling, a bias and a temperature on the same weights; and the options among them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rope_jax.biases import Bias
from rope_jax.decoder import Schemes, each_scheme
from rope_jax.diagnosis.evaluation.arms import Arms
from rope_jax.diagnosis.evaluation.scalings import TRANSFORMS
from rope_jax.scaling import yarn_mscale
from rope_jax.scheme import Scheme


class Cell(NamedTuple):
    """One retrofit: names of its scaling and its bias, and whether logits are sharpened for the longer context."""

    scaling: str
    bias: str
    temperature: bool = False

    def __str__(self) -> str:
        return f"{self.scaling} + {self.bias}{' + temperature' if self.temperature else ''}"


UNCHANGED = Cell("none", "none")
"""The model as trained."""


class Option(NamedTuple):
    """A change of one thing in the status quo.

    Attributes:
      number: "1" drops the bias, "2" undoes the scaling, "3" scales by another transform; "0" lies outside the three.
      change: in words.
      cell: what the model runs after it.
    """

    number: str
    change: str
    cell: Cell


def options(status_quo: Cell, *, transforms: Sequence[str] = TRANSFORMS) -> tuple[Option, ...]:
    """Returns what may be changed in a status quo, the three options first and what lies outside them after.

    >>> [option.number for option in options(Cell("ntk", "alibi"), transforms=("llama3",))]
    ['1', '2', '3', '0', '0']
    """
    scaling, bias, _ = status_quo
    result = []
    if bias != "none":
        result.append(Option("1", "drop the bias", status_quo._replace(bias="none")))
    if scaling != "none":
        result.append(Option("2", "undo the scaling", status_quo._replace(scaling="none")))
    for name in transforms:
        if name != scaling:
            change = f"scale by {name} instead"
            # YaRN is a ramp and a temperature together.
            temperature = True if name == "yarn" else status_quo.temperature
            result.append(Option("3", change, Cell(name, bias, temperature)))
    result.append(Option("0", "sharpen the logits", status_quo._replace(temperature=not status_quo.temperature)))
    if bias != "none" and scaling != "none":
        result.append(Option("0", "take back the whole retrofit", UNCHANGED))
    return tuple(result)


def corners(status_quo: Cell) -> dict[frozenset[str], Cell]:
    """Returns the 2 x 2 of the status quo, by which of its two parts are in place."""
    scaling, bias, temperature = status_quo
    return {
        frozenset(): Cell("none", "none", temperature),
        frozenset({"scaling"}): Cell(scaling, "none", temperature),
        frozenset({"bias"}): Cell("none", bias, temperature),
        frozenset({"scaling", "bias"}): status_quo,
    }


@dataclasses.dataclass(frozen=True)
class CellSchemes:
    """Builds the scheme of any cell, all of one shape for one compiled program.

    Attributes:
      arms: scalings as schemes.
      biases: the bias of each name; None for none.
      factor: `s`, target over trained length, which sets the temperature: YaRN's `(0.1 ln s + 1)^2` on the logits.
    """

    arms: Arms
    biases: Mapping[str, Bias | None]
    factor: float

    def __call__(self, cell: Cell) -> Schemes:
        """Returns the scheme of a cell, one for each layer type where there are several."""
        schemes = self.arms.schemes(cell.scaling, self.biases[cell.bias])
        sharper = yarn_mscale(self.factor) ** 2 if cell.temperature else 1.0
        return each_scheme(lambda scheme: _sharpened(scheme, sharper), schemes)


def _sharpened(scheme: Scheme, factor: float) -> Scheme:
    return dataclasses.replace(scheme, logit_scale=scheme.logit_scale * factor)
