"""The deployed configuration and what may be put in its place, side by side as facts; nothing is ranked.

Option 1 drops the bias, option 2 undoes the scaling, option 3 keeps the bias and changes the scaling.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rope_jax.diagnosis.theory import offset_samples, resolution
from rope_jax.diagnosis.theory.extension import AnyScaling, Extension
from rope_jax.diagnosis.theory.facts import hyperparameters, scaling_facts
from rope_jax.errors import ScalingError
from rope_jax.frequencies import Rotary, period_growth
from rope_jax.scaling.registry import SCALINGS

UNRANKED = (
    "Not ranked: the best predictor tried (attention kept in place) has a mean rank correlation of 0.19 with nine "
    "published tables (0.47 and -0.01 at half and twice the amplitude); below 0.6 none is used. Measure (NEXT)."
)


def stars(seen: int, reach: int) -> list[int]:
    """Returns the trained offsets `Delta*` that curves are given for: powers of 4 from 16, from 1 for tiny models.

    Args:
      seen: offsets met in training.
      reach: offsets met at the target length.
    """
    start = 16 if seen > 256 else 1
    return [4**k for k in range(13) if start <= 4**k < min(seen, reach)] or [max(min(seen, reach) // 2, 1)]


def option_records(
    asked: Extension, thresholds: Mapping[str, Any] | None
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Returns every configuration to compare, the deployed one first, and those that do not apply with the reason.

    Args:
      asked: what is deployed.
      thresholds: `thresholds` of the record, whose larger bases are compared too.

    Raises:
      ScalingError: if the deployed scaling does not apply to the model.
    """
    before = asked.trained(asked.main)
    if before is None:
        return [], [{"name": "every scaling", "reason": "nothing rotates in the layers that see the whole context"}]
    seen, reach = asked.seen(asked.main), asked.reach(asked.main)
    deployed: Rotary | None = None
    records, skipped = [], []
    for scaling in [asked.scaling, *_others(asked, thresholds)]:
        name = name_of(scaling)
        try:
            rule = asked.rule(asked.main, scaling)
            after = rule(before)
        except ScalingError as error:
            if deployed is None:
                raise
            skipped.append({"name": name, "reason": str(error)})
            continue
        if deployed is not None and _alike(after, deployed):
            skipped.append({"name": name, "reason": "the same as what is deployed"})
            continue
        facts = scaling_facts(before, after, seen=seen, reach=reach)
        curve = _curve(before, after, stars(seen, reach), reach)
        for bias in dict.fromkeys((asked.bias.name, "none")):
            records.append(
                {
                    "change": _change(name, first=deployed is None, dropped=bias != asked.bias.name),
                    "name": f"{name} + {bias}",
                    "scaling": name,
                    "hyperparameters": hyperparameters(rule),
                    "bias": bias,
                    **facts,
                    "curve": curve,
                }
            )
        deployed = deployed or after
    return records, skipped


def name_of(scaling: AnyScaling) -> str:
    """Returns a scaling as a flag has it."""
    return scaling if isinstance(scaling, str) else scaling.name


def _others(asked: Extension, thresholds: Mapping[str, Any] | None) -> list[str]:
    """Returns what else may be put in the place of the deployed scaling."""
    names = ["none"]
    if asked.extended:
        names += [name for name, record in SCALINGS.items() if record.kind in ("base", "map", "map and temperature")]
        for key in ("no_pair_out_of_distribution", "content_never_negative"):
            base = None if thresholds is None else thresholds[key]["base"]
            names += [] if base is None or base > 1e18 else [f"explicit_base:{math.ceil(base)}"]
    return [name for name in names if name != name_of(asked.scaling)]


def _alike(one: Rotary, other: Rotary) -> bool:
    factors = [(rotary.cos_sin_factor, rotary.logit_scale) for rotary in (one, other)]
    return factors[0] == factors[1] and np.allclose(one.inverse_frequencies, other.inverse_frequencies, 1e-9, 0)


def _change(scaling: str, *, first: bool, dropped: bool) -> str:
    """Returns what a configuration changes of the deployed one, in words."""
    if first:
        return "1 drop bias" if dropped else "deployed"
    if scaling == "none":
        return "1+2 revert all" if dropped else "2 undo scaling"
    return "1+3 both" if dropped else "3 change scaling"


def _curve(before: Rotary, after: Rotary, offsets: Sequence[int], reach: int) -> list[dict[str, Any]]:
    """Returns `options[].curve[]` of `keys.KEYS`."""
    theta, scaled = before.inverse_frequencies, after.inverse_frequencies
    # A trained relation is sharpest in its place, or where the slowest pairs take it, or between the two.
    growth = period_growth(theta, scaled)
    likely = [
        star * factor for star in offsets for factor in (1.0, float(growth[np.isfinite(growth)].max(initial=1.0)))
    ]
    most = offset_samples.most_offsets(len(theta))
    blocks, tried = offset_samples.evenly(reach, most=most, also=likely)
    weights = resolution.uniform_weights(len(theta))
    curves = resolution.coherence_curves(theta, scaled, weights, offsets, reach, blocks=blocks)
    points = []
    for star, curve in zip(offsets, curves, strict=True):
        top, height = resolution.peak(curve)
        inplace = float(np.cos(star * (scaled - theta)).mean())
        points.append({"offset": star, "coherence": inplace, "peak_offset": tried[top], "peak_coherence": height})
    return points
