"""`rope_jax.inspect`: what a config alone predicts about serving a model at a longer context, without weights or JAX.

The record behind it is a tree of dicts, lists, strings and unrounded numbers, ready for JSON; `keys.KEYS` says what
each key means. Everything in it is predicted, not measured.
"""

import dataclasses
import html
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rope_jax.biases.host import Bias
from rope_jax.biases.registry import BiasRecord
from rope_jax.checkpoints.dialects import positions_of, read_positions
from rope_jax.checkpoints.positions import PositionConfig
from rope_jax.checkpoints.presets import PRESETS, preset
from rope_jax.diagnosis.theory.details import details_text
from rope_jax.diagnosis.theory.extension import AnyScaling, Extension, extension
from rope_jax.diagnosis.theory.facts import UNRANKED, group_record, name_of, option_records, threshold_record
from rope_jax.diagnosis.theory.faults import faults_of
from rope_jax.diagnosis.theory.keys import STATUS
from rope_jax.diagnosis.theory.summary import next_command, options_text, summary_of, summary_text
from rope_jax.errors import InputError

Model = PositionConfig | Mapping[str, Any] | str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """What was predicted, and how to show it.

    Attributes:
      record: see `keys.KEYS`.
    """

    record: Mapping[str, Any]

    def table(self, *, details: bool = False, width: int = 80) -> str:
        """Returns text: what is asked, changed, at risk and to be run next; with `details` every number too.

        Args:
          details: whether values, pairs, curves and possible faults follow.
          width: characters a line; details take up to 100.
        """
        text = summary_text(self.record, width=width) + options_text(self.record, width=width)
        return text + details_text(self.record) if details else text

    def to_json(self) -> str:
        """Returns the record as one JSON object."""
        return json.dumps(self.record, allow_nan=False)

    def plot(self, *, kind: str = "svg") -> bytes:
        """Returns wavelengths and coherence as a picture, "svg" or "png"."""
        from rope_jax.diagnosis.theory.plot import draw

        return draw(self.record, kind=kind)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.table())}</pre>"


def inspect(
    model: Model,
    *,
    target_length: int,
    scaling: AnyScaling | None = None,
    bias: str | Bias | BiasRecord | None = None,
    trained_length: int | None = None,
    trained_base: float | None = None,
    compose: bool = False,
    amplitude: float = 20.0,
) -> Inspection:
    """Returns what a model's config alone predicts about serving `target_length` tokens.

    Args:
      model: a preset's name, the path of a config or its directory, a config's content, or its positions.
      target_length: `L'`, tokens; up to the trained length nothing is extended, and the values are shown.
      scaling: a name, "explicit_base:B", a rule or a record; by default the declared scaling with the factor that the
        target takes, else "ntk". It replaces a declared one.
      bias: a name or a multiple (`alibi*16`), a bias or a record; by default what the config declares, if anything.
      trained_length: `L`, tokens, in place of what the config says.
      trained_base: `b`, in place of what the config says, of layers without a window.
      compose: whether `scaling` comes on top of a declared one instead.
      amplitude: `A`, nats: how far the rotary logit of a matching head can rise; for bias horizons.

    Raises:
      InputError: if an argument is out of range, names nothing, or does not apply to the model.
      ConfigError: if the config cannot be understood.
      ScalingError: if the scaling does not apply to the model.

    >>> found = inspect("llama-2-7b", target_length=32768)
    >>> round(found.record["thresholds"]["period_match"]["base"])
    82685
    """
    asked = extension(
        positions(model),
        target_length=target_length,
        scaling=scaling,
        bias=bias,
        trained_length=trained_length,
        trained_base=trained_base,
        compose=compose,
        amplitude=amplitude,
    )
    origin = os.fspath(model) if isinstance(model, str | os.PathLike) and os.fspath(model) not in PRESETS else None
    return Inspection(_record(asked, path=origin, base_given=trained_base, length_given=trained_length))


def positions(model: Model) -> PositionConfig:
    """Returns what a config says about positions; a directory stands for its `config.json`.

    Raises:
      InputError: if there is no such preset or file.
      ConfigError: if the config cannot be understood.
    """
    if isinstance(model, PositionConfig):
        return model
    if isinstance(model, Mapping):
        return positions_of(model, origin="the given config")
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"a model is a preset's name, a path, a config or its positions, got {model!r}")
    path = os.fspath(model)
    if path in PRESETS:
        return positions_of(preset(path), origin=f"preset {path}")
    if not os.path.exists(path):
        raise InputError(f"no such config file: {path}; presets: {', '.join(PRESETS)}")
    return read_positions(path)


def _record(
    asked: Extension, *, path: str | None, base_given: float | None, length_given: int | None
) -> dict[str, Any]:
    config, main = asked.config, asked.main
    thresholds = threshold_record(asked)
    options, not_applicable = option_records(asked, thresholds)
    declared, given = main.rule, getattr(main.rule, "hyperparameters", {})
    record = plain(
        {
            "status": STATUS,
            "plot": None,
            "summary": None,
            "next": None,
            "model": {
                "origin": config.origin,
                "path": path,
                "model_type": config.model_type,
                "dtype": config.dtype,
                "original_length": asked.original_length,
                "trained_length": asked.trained_length,
                "trained_length_given": length_given is not None,
                "trained_base_given": base_given,
                "declared_length": config.declared_length,
                "declared_scaling": declared.name,
                "declared_factor": getattr(declared, "factor", None) or given.get("factor"),
                "target_length": asked.target_length,
                "ratio": asked.target_length / asked.trained_length,
                "extended": asked.extended,
            },
            "deployed": {
                "scaling": name_of(asked.scaling),
                "scaling_source": asked.scaling_source,
                "compose": asked.compose,
                "factor": asked.factor,
                "bias": asked.bias.name,
                "amplitude": asked.amplitude,
                "pair_weights": "uniform",
            },
            "entropy_cost": max(math.log(asked.reach(main) / asked.seen(main)), 0.0),
            "thresholds": thresholds,
            "bias": asked.bias.record(
                amplitude=asked.amplitude, trained_length=asked.seen(main), target_length=asked.reach(main)
            ),
            "options": options,
            "unranked": UNRANKED,
            "not_applicable": not_applicable,
            "faults": faults_of(asked),
            "main_group": config.groups.index(main),
            "layer_groups": [group_record(asked, group) for group in config.groups],
            "values": {key: {"value": item.value, "source": item.source} for key, item in config.values.items()},
            "without_effect": config.without_effect,
            "findings": config.findings,
        }
    )
    record["next"] = next_command(record)
    return {**record, "summary": summary_of(record)}


def plain(value: Any) -> Any:
    """Returns `value` as JSON can hold it: numbers unrounded, what is not finite as None, anything else as text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    return str(value)
