"""The configurations of one model: what is deployed, its 2 x 2, its options, each bias made or fitted for it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rope_jax.biases import Bias
from rope_jax.biases.registry import BiasRequest, bias_of, parse_bias
from rope_jax.decoder import Schemes
from rope_jax.diagnosis.evaluation.configurations import (
    ORIGINAL,
    BiasLike,
    ScalingLike,
    Wanted,
    bias_name,
    corners_of,
    options_of,
    scaling_name,
    temperature_of,
)
from rope_jax.diagnosis.evaluation.fitter import FitSettings, ModelFitter
from rope_jax.diagnosis.evaluation.panel import Option
from rope_jax.diagnosis.evaluation.schemes import SchemeMaker, offsets_of
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.errors import InputError, ScalingError
from rope_jax.named_records import made
from rope_jax.phases import Phase
from rope_jax.rotation import Layout
from rope_jax.rules import Rule
from rope_jax.scheme import Retrofit

Progress = Callable[[str, int, int], None]
"""Told of a stage, of what is done of it, and of how much there is."""

_OFFSETS = 64  # at which a bias is looked at before anything runs


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """What the configurations are made of.

    Attributes:
      deployed: what is deployed, one a judgement.
      transforms: scalings that option 3 may put in the place of the deployed one.
      every: whether every pair of a scaling and a bias, with and without a temperature, is run too.
      fit: how biases are fitted.
      layout: of the rotary pairs; the checkpoint's own where None.
      phase: "exact" or "float32".
      compose: whether a scaling comes on top of a declared one, rather than in its place.
    """

    deployed: tuple[Wanted, ...]
    transforms: tuple[ScalingLike, ...]
    every: bool = False
    fit: FitSettings = dataclasses.field(default_factory=FitSettings)
    layout: Layout | None = None
    phase: Phase = "exact"
    compose: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class ModelPlan:
    """The configurations of one model, by name.

    Attributes:
      maker: of its schemes.
      retrofits: each configuration, one a fold of the text where biases are fitted for each fold; the original first.
      deployed: names of what is deployed, in the order asked for, without those that have no meaning.
      options: what may be changed in each of them.
      corners: the 2 x 2 of each, by which of "scaling" and "bias" are in place.
      found: how each fitted bias was found, by the bias' name.
      omitted: what could not be made, and why.
    """

    maker: SchemeMaker
    retrofits: Mapping[str, tuple[Retrofit, ...]]
    deployed: tuple[str, ...]
    options: Mapping[str, tuple[Option, ...]]
    corners: Mapping[str, Mapping[frozenset[str], str]]
    found: Mapping[str, str]
    omitted: Mapping[str, str]

    def schemes(self, name: str) -> list[Schemes]:
        """Returns the schemes of a configuration, one a fold."""
        return [self.maker(retrofit) for retrofit in self.retrofits[name]]


def plan_of(
    folds: Sequence[Subject],
    settings: PlanSettings,
    *,
    store: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ModelPlan:
    """Returns the configurations of one model.

    Args:
      folds: the model, once for each fold of its text, with the text that its biases are fitted on.
      settings: see `PlanSettings`.
      store: directory of finished fits; None for none.
      progress: called as work proceeds.

    Raises:
      InputError: if a name is unknown or stands for two deployed configurations, or the model has nothing to scale.
      ScalingError: if no deployed configuration has a meaning.
    """
    subject = folds[0]
    maker = SchemeMaker(
        positions=subject.checkpoint.positions,
        layout=settings.layout or subject.checkpoint.layout,
        phase=settings.phase,
        trained_length=subject.trained_length,
        target_length=subject.target_length,
        compose=settings.compose,
    )
    made = [_Made(fold, maker, settings, store, progress) for fold in folds]
    found: dict[str, tuple[Retrofit, ...]] = {ORIGINAL: tuple(one.original for one in made)}
    transforms, omitted = _meaningful(maker, settings.transforms)
    temperature = temperature_of(maker.factor)
    deployed: dict[str, Wanted] = {}
    options, corners = {}, {}
    for asked in settings.deployed:
        try:
            of_folds = [one.retrofit(asked) for one in made]
            maker(dataclasses.replace(of_folds[0], bias=None))
        except ScalingError as error:
            omitted[asked.name] = str(error)
            continue
        name = of_folds[0].name
        if name in deployed:
            if not (asked.named and deployed[name].named and asked == deployed[name]):
                raise InputError(f"deployed: two configurations are called {name!r}: a Retrofit can name its bias")
            continue
        deployed[name] = asked
        changed = [
            options_of(one, transforms=transforms, temperature=temperature, length=subject.target_length)
            for one in of_folds
        ]
        squares = [corners_of(one) for one in of_folds]
        options[name] = tuple(option for option, _ in changed[0])
        corners[name] = {parts: one.name for parts, one in squares[0].items()}
        every = [
            [one, *(after for _, after in several), *square.values()]
            for one, several, square in zip(of_folds, changed, squares, strict=True)
        ]
        found |= {several[0].name: several for several in zip(*every, strict=True)}
    if not deployed:
        raise ScalingError("deployed: " + "; ".join(f"{name}: {why}" for name, why in omitted.items()))
    if settings.every:
        found |= {
            name: several for name, several in _every(found, deployed, transforms, temperature) if name not in found
        }
    offset = max(offsets_of(one.bias, subject.target_length) for several in found.values() for one in several)
    return ModelPlan(
        dataclasses.replace(maker, max_offset=offset),
        found,
        tuple(deployed),
        options,
        corners,
        {name: words for one in made for name, words in one.found.items()},
        omitted,
    )


class _Made:
    """What is made, and fitted once, for one fold."""

    def __init__(
        self, subject: Subject, maker: SchemeMaker, settings: PlanSettings, store: Path | None, progress: Progress
    ) -> None:
        self._subject, self._maker, self._heads = subject, maker, subject.checkpoint.config.num_heads
        self._fitter = functools.partial(
            ModelFitter, subject, maker, settings=settings.fit, store=store, progress=progress
        )
        self.original = maker.original()
        self.found: dict[str, str] = {}
        self._biases: dict[tuple[str, str], Bias | None] = {}
        # The same name under several scalings is several biases.
        self._several = len({scaling_name(one.scaling) for one in settings.deployed if one.bias == "t5"}) > 1

    def retrofit(self, asked: Wanted) -> Retrofit:
        """Returns a configuration as this model has it."""
        scaled = dataclasses.replace(self.original, rule=self._maker.rule(asked.scaling))
        bias, name = self._bias(asked.bias, scaled)
        temperature = temperature_of(self._maker.factor) if asked.sharpened else 1.0
        if (given := asked.given) is not None:
            trained = self.original.rotary.inverse_frequencies
            if not np.array_equal(given.rotary.inverse_frequencies, trained):
                raise InputError(f"{given.name}: its rotary embedding is not the one that the model was trained with")
            name, temperature = given.bias_name or name, given.temperature
        return dataclasses.replace(scaled, bias=bias, bias_name=name, temperature=temperature)

    def _bias(self, wanted: BiasLike, scaled: Retrofit) -> tuple[Bias | None, str | None]:
        if wanted is None or wanted == "none":
            return None, None
        if not isinstance(wanted, str):
            return self._checked(wanted, bias_name(wanted)), bias_name(wanted)
        name = f"{wanted} under {scaled.scaling}" if wanted == "t5" and self._several else wanted
        key = (name, scaled.scaling if parse_bias(wanted)[0].fitted and wanted != "alibi_star" else "")
        if key not in self._biases:
            fitter, subject = self._fitter(scaled), self._subject
            request = BiasRequest(self._heads, subject.trained_length, subject.target_length, fitter)
            found = bias_of(wanted, request)
            self._biases[key] = None if found is None else self._checked(found, name)
            if fitter.found:
                self.found[name] = fitter.found
        return self._biases[key], name

    def _checked(self, bias: Any, name: str) -> Bias:
        """Returns a bias if it is one: a number for every head of the model, near and far."""
        if not callable(bias) or not hasattr(bias, "num_heads"):
            raise InputError(f"bias {name} is {type(bias).__name__}, not a Bias")
        if bias.num_heads != self._heads:
            raise InputError(f"bias {name} has {bias.num_heads} heads, the model {self._heads}")
        offsets = np.unique(np.geomspace(1, self._subject.target_length, _OFFSETS).astype(np.int32)) - 1
        values = np.asarray(made(bias, jnp.asarray(offsets), kind="bias", name=name, expected=object))
        if values.shape != (self._heads, len(offsets)):
            raise InputError(f"bias {name} gives {values.shape} for {len(offsets)} offsets, not one a head and offset")
        wrong = np.argwhere(np.isnan(values) | (values == np.inf))
        if len(wrong):
            head, at = wrong[0]
            raise InputError(f"bias {name} is {values[head, at]} for head {head} at offset {offsets[at]}")
        return bias


def _meaningful(maker: SchemeMaker, scalings: Sequence[ScalingLike]) -> tuple[list[Rule], dict[str, str]]:
    """Returns the rules that have a meaning on this model, and why the others do not."""
    kept, refused = [], {}
    for scaling in scalings:
        rule = maker.rule(scaling)
        try:
            maker(dataclasses.replace(maker.original(), rule=rule))
            kept.append(rule)
        except ScalingError as error:
            refused[scaling_name(scaling)] = str(error)
    return kept, refused


def _every(
    found: Mapping[str, tuple[Retrofit, ...]],
    deployed: Mapping[str, Wanted],
    transforms: Sequence[Rule],
    temperature: float,
) -> Iterator[tuple[str, tuple[Retrofit, ...]]]:
    """Yields every scaling with every bias of the deployed configurations, as these were fitted, and sharpened too."""
    original = found[ORIGINAL]
    of_deployed = [found[name] for name in deployed]
    rules = {rule.name: rule for rule in (original[0].rule, *(one[0].rule for one in of_deployed), *transforms)}
    for rule in rules.values():
        for biased in (original, *of_deployed):
            for sharper in (1.0, temperature):
                several = tuple(dataclasses.replace(one, rule=rule, temperature=sharper) for one in biased)
                yield several[0].name, several
