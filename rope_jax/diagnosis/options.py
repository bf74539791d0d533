"""Everything that a diagnosis can be asked for, beside the model."""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Integer

from rope_jax.biases import Bias
from rope_jax.diagnosis.evaluation.configurations import TRANSFORMS, ScalingLike, Wanted, wanted
from rope_jax.diagnosis.ranges import LARGEST_RATIO, RANGES
from rope_jax.diagnosis.tasks.subject import Reach
from rope_jax.diagnosis.verdict.answers import Margins
from rope_jax.errors import InputError
from rope_jax.phases import Phase
from rope_jax.rotation import Layout
from rope_jax.scheme import Retrofit

DEPLOYED = ("ntk+alibi_star", "ntk+t5")
"""What is judged by default: base scaling with an ALiBi-like bias (A) and with a T5-like one (B)."""

Deployed = str | Retrofit | Wanted | tuple[ScalingLike, str | Bias | None]
AnyRows = Integer[np.ndarray, "_ _"]
"""Rows of token ids, integers of any width."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
      deployed: configurations to judge, each "SCALING+BIAS" (names of the registries), a pair of names or objects (a
        `Rule`, a `Bias`), or a `Retrofit`.
      transforms: what option 3 may scale by, names or rules.
      target_length: `L'`, tokens; None for one and a half times the trained length of a bundled test model.
      trained_length: `L`, tokens; what the config says where None.
      text: a text file or `.npy` of token rows, or rows; needed for a checkpoint of your own.
      fit_text: other text to fit biases on, alike; None for what is left over, or for cross-fitting.
      text_rows: rows of text judged; by default 64 that are made, or 8 of your own.
      separator: between documents of a text.
      contexts: with questions, at each length; by default 100, or 20 of your own checkpoint.
      most_contexts: asks on, in doublings up to so many, where the first leave open what to try first; None for not.
      margins: what is too little to matter.
      faults: whose cost is measured, by name.
      faulty: the fault that the deployment is known to have, or "exact".
      observed: the deployment's own logits, a file or arrays by reach; see `evaluation.observed`.
      exempt_first: also tries a bias that exempts so many first keys; 0 for not.
      ratios: other ratios of target to trained length that are asked too.
      adapt_steps: judges everything again after so many steps of training; 0 for not.
      full: every scaling with every bias, every bundled model, and every fault.
      predict: whether short contexts predict long ones beside the measurement.
      num_buckets: of the T5 table.
      fit_steps: of the T5 table.
      layout: of the rotary pairs; the checkpoint's own where None.
      phase: "exact" or "float32".
      compose: whether a scaling comes on top of a declared one, rather than in its place.
      seed: of everything random.

    Raises:
      InputError: if an option is of another kind, or out of range.
    """

    deployed: Deployed | Sequence[Deployed] = DEPLOYED
    transforms: Sequence[ScalingLike] = TRANSFORMS
    target_length: int | None = None
    trained_length: int | None = None
    text: str | Path | AnyRows | None = None
    fit_text: str | Path | AnyRows | None = None
    text_rows: int | None = None
    separator: str = "<|endoftext|>"
    contexts: int | None = None
    most_contexts: int | None = None
    margins: Margins = dataclasses.field(default_factory=Margins)
    faults: Sequence[str] = ()
    faulty: str = "exact"
    observed: Path | Mapping[Reach, np.ndarray] | None = None
    exempt_first: int = 0
    ratios: Sequence[float] = ()
    adapt_steps: int = 0
    full: bool = False
    predict: bool = True
    num_buckets: int = 32
    fit_steps: int = 60
    layout: Layout | None = None
    phase: Phase = "exact"
    compose: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def every_deployed(self) -> tuple[Deployed, ...]:
        """The configurations to judge, one or several."""
        given: Any = self.deployed
        return (given,) if isinstance(given, str | Retrofit) else tuple(given)

    def plain(self) -> dict[str, Any]:
        """Returns them as plain values, for the record."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["deployed"] = [one if isinstance(one, str) else wanted(one).name for one in self.every_deployed]
        values["transforms"] = [one if isinstance(one, str) else one.name for one in self.transforms]
        for name in ("text", "fit_text", "observed"):
            given = values[name]
            if given is not None:
                values[name] = str(given) if isinstance(given, str | Path) else "given as arrays"
        return values


_WHOLE = ("exempt_first", "adapt_steps", "num_buckets", "fit_steps", "seed")  # the other numbers may be None
_LISTS: Mapping[str, Any] = {"transforms": ScalingLike, "faults": str, "ratios": numbers.Real}
_ONE_OF: Mapping[str, tuple[str | None, ...]] = {"phase": get_args(Phase), "layout": (None, *get_args(Layout))}


def _check(options: Options) -> None:
    """Raises `InputError` where an option is of another kind than it says, or out of range."""
    for name, (least, most) in RANGES.items():
        value = getattr(options, name, None)
        if value is None and name not in _WHOLE:
            continue
        lowest = 0 if name == "contexts" else least  # a checkpoint of one's own may be asked no questions
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not lowest <= int(value) <= most:
            raise InputError(f"{name} must be a whole number from {lowest} to {most}, got {value!r}")
    for name, kind in _LISTS.items():
        given = getattr(options, name)
        if not isinstance(given, Sequence) or isinstance(given, str | bytes):
            raise InputError(f"{name} must be a list, got {given!r}")
        if wrong := [one for one in given if not isinstance(one, kind)]:
            raise InputError(f"{name} cannot hold {wrong[0]!r}")
    for ratio in options.ratios:
        if not 0 < ratio <= LARGEST_RATIO:
            raise InputError(f"ratios must be numbers up to {LARGEST_RATIO}, got {ratio!r}")
    for name, known in _ONE_OF.items():
        if getattr(options, name) not in known:
            raise InputError(f"{name} must be one of {', '.join(map(str, known))}, got {getattr(options, name)!r}")
    if not isinstance(options.margins, Margins):
        raise InputError(f"margins must be Margins(...), got {options.margins!r}")
    for name, margin in dataclasses.asdict(options.margins).items():
        if not isinstance(margin, numbers.Real) or not 0 <= float(margin) < math.inf:
            raise InputError(f"margins: {name} must be a number of at least 0, got {margin!r}")
    if not isinstance(options.deployed, str | Retrofit | Sequence) or isinstance(options.deployed, bytes):
        raise InputError(f"deployed: {options.deployed!r} is neither 'SCALING+BIAS' nor a list of configurations")
    if not isinstance(options.observed, str | Path | Mapping | None):
        raise InputError(f"observed must be a file, or arrays by reach, got {options.observed!r}")
