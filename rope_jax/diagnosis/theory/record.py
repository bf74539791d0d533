"""What a config alone predicts about serving a model at a longer context: the record behind `rope-jax inspect`.

The record is a tree of dicts, lists, strings and unrounded numbers, ready for JSON; `keys.KEYS` says what
each key means. Everything in it is predicted, not measured.
"""

import itertools
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rope_jax.biases.buckets import bucket_starts
from rope_jax.checkpoints.positions import LayerGroup, PositionConfig
from rope_jax.diagnosis.theory import resolution, thresholds
from rope_jax.diagnosis.theory.keys import STATUS
from rope_jax.diagnosis.theory.options import NOISE, SCORE, hyperparameters, looked_at, ranked_options
from rope_jax.diagnosis.theory.status_quo import StatusQuo, status_quo
from rope_jax.diagnosis.theory.warnings import warnings_for
from rope_jax.errors import InputError
from rope_jax.frequencies import base_multiplier, critical_dimension, period_growth, turns, wavelengths


def read_model(*, preset: str | None = None, path: str | None = None) -> PositionConfig:
    """Returns the positions of a built-in preset or of a config file; a directory stands for its `config.json`.

    Raises:
      InputError: unless exactly one of the two is given, and it exists.
      ConfigError: if the config cannot be understood.
    """
    from rope_jax.checkpoints.dialects import positions_of, read_positions
    from rope_jax.checkpoints.presets import preset as preset_config

    if preset is not None and path is not None:
        raise InputError(f"give either --preset or a config file, not both (--preset={preset} and {path})")
    if preset is not None:
        return positions_of(preset_config(preset), origin=f"preset {preset}")
    if path is None:
        raise InputError("name a model: --preset=NAME or the path of its config.json")
    if not os.path.exists(path):
        raise InputError(f"no such config file: {path}")
    return read_positions(path)


def inspect_positions(
    config: PositionConfig,
    *,
    target_length: int,
    scaling_name: str | None = None,
    bias_name: str | None = None,
    amplitude: float = 20.0,
) -> dict[str, Any]:
    """Returns the inspection record of a model; `keys.KEYS` says what each key means.

    Args:
      config: what the model's config says about positions.
      target_length: `L'`, tokens; at least the original length.
      scaling_name: scaling of the status quo; see `status_quo`.
      bias_name: bias of the status quo; see `status_quo`.
      amplitude: `A`, nats.

    Raises:
      InputError: if an argument is out of range, names nothing, or does not apply to the model.
      ScalingError: if the status-quo rule does not apply to the model.
    """
    status = status_quo(
        config, target_length=target_length, scaling_name=scaling_name, bias_name=bias_name, amplitude=amplitude
    )
    multipliers = threshold_record(status)
    larger = {key: value for key, value in (multipliers or {}).items() if key in _OPTIONS_FROM}
    options, not_applicable = ranked_options(status, larger)
    return plain(
        {
            "status": STATUS,
            "plot": None,
            "model": {
                "origin": config.origin,
                "model_type": config.model_type,
                "dtype": config.dtype,
                "original_length": config.original_length,
                "declared_length": config.declared_length,
                "target_length": target_length,
                "factor": status.factor,
            },
            "values": {key: {"value": item.value, "source": item.source} for key, item in config.values.items()},
            "without_effect": config.without_effect,
            "findings": config.findings,
            "settings": {
                "scaling": status.rule.name,
                "scaling_source": status.scaling_source,
                "bias": status.bias_kind,
                "bias_source": status.bias_source,
                "amplitude": amplitude,
                "amplitudes": status.amplitudes,
                "noise": NOISE,
                "pair_weights": "uniform",
                "score": SCORE,
                "offsets": None if config.main_group.rotary is None else len(looked_at(status).offsets),
            },
            "layer_groups": [group_record(status, group) for group in config.groups],
            "thresholds": multipliers,
            "bias": bias_record(status),
            "entropy_cost": resolution.entropy_cost(
                original_length=config.original_length, target_length=target_length
            ),
            "warnings": warnings_for(status),
            "options": options,
            "not_applicable": not_applicable,
        }
    )


_OPTIONS_FROM = ("period_match", "no_cell_out_of_distribution", "content_never_negative")


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


def threshold_record(status: StatusQuo) -> dict[str, Any] | None:
    """Returns the three lambda of the main group under `thresholds.*` of `KEYS`, or None where nothing rotates."""
    rotary, reach = status.main.rotary, status.reach(status.main)
    if rotary is None:
        return None
    content = thresholds.non_negative_multiplier(rotary.inverse_frequencies, target_length=reach)
    return {
        "period_match": base_multiplier(rotary.dim, factor=status.factor) if rotary.dim > 2 else None,
        "no_cell_out_of_distribution": thresholds.in_distribution_multiplier(
            rotary.inverse_frequencies, original_length=status.seen(status.main), target_length=reach
        ),
        "content_never_negative": content.multiplier,
        "content_fails_again_at": content.fails_again_at,
        "content_scan_step": content.step,
        "content_offsets": content.offsets,
    }


def group_record(status: StatusQuo, group: LayerGroup) -> dict[str, Any]:
    """Returns one layer group under the status quo, with every pair: `layer_groups[].*` of `KEYS`."""
    reach, length = status.reach(group), status.seen(group)
    record: dict[str, Any] = {
        "name": group.name,
        "layers": group.layers,
        "window": group.window,
        "reach": reach,
        "seen": length,
        "num_heads": group.num_heads,
        "head_dim": group.head_dim,
    }
    if group.rotary is None:
        absent = ("base", "cos_sin_factor", "out_of_distribution_share", "fisher_ratio", "critical_dimension")
        empty = {"rotary_dim": 0, "scaling": "none", "hyperparameters": {}, "classes": {}, "pairs": []}
        return {**record, **dict.fromkeys(absent), **empty}
    rotary, rule = group.rotary, status.rule_of(group)
    scaled = rule(rotary)
    before, after = rotary.inverse_frequencies, scaled.inverse_frequencies
    classes = resolution.classify_pairs(before, after, original_length=length, target_length=reach)
    columns = zip(
        wavelengths(before), wavelengths(after), turns(before, length), period_growth(before, after), classes,
        strict=True,
    )  # fmt: skip
    return {
        **record,
        "rotary_dim": rotary.dim,
        "base": rotary.base,
        "scaling": rule.name,
        "hyperparameters": hyperparameters(rule),
        "cos_sin_factor": scaled.cos_sin_factor,
        "out_of_distribution_share": resolution.out_of_distribution_share(
            before, after, original_length=length, target_length=reach
        ),
        "fisher_ratio": resolution.fisher_ratio(before, after, resolution.uniform_weights(len(before))),
        "critical_dimension": critical_dimension(rotary.dim, base=rotary.base, length=length),
        "classes": {name: classes.count(name) for name in resolution.CLASSES if name in classes},
        "pairs": [
            {
                "pair": pair,
                "wavelength": wavelength,
                "scaled_wavelength": scaled_wavelength,
                "turns_seen": seen,
                "growth": growth,
                "class": name,
            }
            for pair, (wavelength, scaled_wavelength, seen, growth, name) in enumerate(columns)
        ],
    }


def bias_record(status: StatusQuo) -> dict[str, Any]:
    """Returns the status-quo bias of the main group: `bias.*` of `KEYS`."""
    spec, slopes, slope = status.bias, status.slopes, status.gentlest_slope
    record: dict[str, Any] = {"kind": status.bias_kind}
    lines = ("slopes", "gentlest_slope", "horizons", "heads_that_reach_target", "cost_at_original", "cost_at_target")
    buckets = ("num_buckets", "max_distance", "last_bucket_start", "bucket_widths", "note")
    record.update(dict.fromkeys(lines + buckets))
    if slopes is not None:
        horizons = resolution.bias_horizon(slopes, amplitude=status.amplitude)
        record.update(
            slopes=slopes,
            gentlest_slope=slope,
            horizons=horizons,
            heads_that_reach_target=int((horizons >= status.target_length).sum()),
            cost_at_original=slope * (status.original_length - 1),
            cost_at_target=slope * (status.target_length - 1),
        )
    elif spec is not None and spec.num_buckets is not None and spec.max_distance is not None:
        starts = bucket_starts(spec.num_buckets // 2 if spec.bidirectional else spec.num_buckets, spec.max_distance)
        record.update(
            num_buckets=spec.num_buckets,
            max_distance=spec.max_distance,
            last_bucket_start=starts[-1],
            bucket_widths=[after - before for before, after in itertools.pairwise(starts)],
            note="a config does not hold the learned table: zeros are assumed, only the bucket edges are known",
        )
    return record
