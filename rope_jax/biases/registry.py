"""Every bias by name: how it is made or fitted for a model, and how reports show it. Starts without JAX.

A bias of your own is one record: `register(BiasRecord("mine", make=lambda request: MyBias(...), ...))`; a `Bias` object
itself is taken wherever a name is. A multiple of a bias with slopes is written `alibi*16`.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from rope_jax import named_records
from rope_jax.biases.host import Bias
from rope_jax.errors import InputError


@runtime_checkable  # tests check annotations
class Fitter(Protocol):
    """What can be fitted with the weights frozen, on text that is not evaluated."""

    def largest_safe(self, at: Callable[[float], Bias]) -> float:
        """Returns the largest multiplier of a bias whose short loss rises by no more than the margin."""

    def table(self) -> Bias:
        """Returns the bucketed bias that lowers the loss of the deployed scaling at the target length most."""


@dataclasses.dataclass(frozen=True)
class BiasRequest:
    """What a bias is made for.

    Attributes:
      num_heads: query heads.
      trained_length: `L`, tokens.
      target_length: `L'`, tokens.
      fitter: fits on the model; None where there are no weights.
    """

    num_heads: int
    trained_length: int
    target_length: int
    fitter: Fitter | None = None


@dataclasses.dataclass(frozen=True)
class BiasRecord:
    """One bias, and how it is shown.

    Attributes:
      name: as flags and reports have it.
      make: from a request to the bias, or to None for none.
      label: for plots and tables.
      color: for plots, `#rrggbb`.
      explanation: one line, for help and reports.
      fitted: whether it needs a model's weights.
    """

    name: str
    make: Callable[[BiasRequest], Bias | None]
    label: str
    color: str
    explanation: str
    fitted: bool = False


BIASES: dict[str, BiasRecord] = {}


def register(record: BiasRecord) -> BiasRecord:
    """Adds a bias under its name and returns it.

    Raises:
      InputError: if the name is taken, or is no word.
    """
    return named_records.add(BIASES, record.name, record, kind="bias")


def _alibi(request: BiasRequest, multiplier: float = 1.0) -> Bias:
    from rope_jax.biases.functions import alibi_paper

    return alibi_paper(request.num_heads, multiplier=multiplier)


def _alibi_star(request: BiasRequest) -> Bias:
    assert request.fitter is not None
    return _alibi(request, request.fitter.largest_safe(lambda multiplier: _alibi(request, multiplier)))


def _t5(request: BiasRequest) -> Bias:
    assert request.fitter is not None
    return request.fitter.table()


for _record in (
    BiasRecord("none", lambda request: None, "no bias", "#6b7280", "nothing is added to the logits"),
    BiasRecord("alibi", _alibi, "ALiBi", "#b45309", "ALiBi with the paper's slopes"),
    BiasRecord(
        "alibi_star", _alibi_star, "largest safe ALiBi", "#2563eb",
        "ALiBi with the largest multiple of the paper's slopes that does no harm at the trained length", fitted=True,
    ),
    BiasRecord(
        "t5", _t5, "T5 buckets", "#15803d",
        "T5 buckets up to the target length, their table fitted under the deployed scaling", fitted=True,
    ),
):  # fmt: skip
    register(_record)


def parse_bias(name: str) -> tuple[BiasRecord, float | None]:
    """Returns the record of a bias and the multiplier that its name gives, or None.

    Raises:
      InputError: if there is no such bias, or no multiple of it.

    >>> parse_bias("alibi*16")[1]
    16.0
    """
    base, times, multiplier = name.partition("*")
    if base not in BIASES:
        raise InputError(f"unknown bias {name!r}; there are: {', '.join(BIASES)}, and multiples such as alibi*16")
    if not times:
        return BIASES[base], None
    try:
        value = float(multiplier)
    except ValueError:
        value = -1.0
    if base != "alibi" or not 0 < value < float("inf"):
        raise InputError(f"bias {name!r}: only alibi has multiples, by a positive number, such as alibi*16")
    return BIASES[base], value


def bias_of(bias: str | BiasRecord, request: BiasRequest) -> Bias | None:
    """Returns the bias of a name or a record, made for a model.

    Raises:
      InputError: if there is no such bias, it has to be fitted and there are no weights, or one of your own fails.
    """
    record, multiplier = parse_bias(bias) if isinstance(bias, str) else (bias, None)
    if record.fitted and request.fitter is None:
        raise InputError(f"bias {record.name!r} is fitted to a model's weights, and there are none")
    if multiplier is not None:
        return _alibi(request, multiplier)
    # A `Bias` is a protocol: that it is one is checked where the model's heads are known.
    return named_records.made(record.make, request, kind="bias", name=record.name, expected=object)
