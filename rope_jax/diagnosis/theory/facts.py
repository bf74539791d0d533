"""What scalings do: the deployed one to every pair, and what may be put in its place, side by side as facts.

Nothing is ranked. Option 1 drops the bias, 2 undoes the scaling, 3 keeps the bias and changes the scaling.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rope_jax.checkpoints.positions import LayerGroup
from rope_jax.diagnosis.theory import resolution, thresholds
from rope_jax.diagnosis.theory.extension import AnyScaling, Extension
from rope_jax.errors import ScalingError
from rope_jax.frequencies import Rotary, base_multiplier, critical_dimension, period_growth, turns, wavelengths
from rope_jax.rules import Rule
from rope_jax.scaling.registry import SCALINGS

UNRANKED = (
    "Not ranked: the best predictor tried (attention kept in place) has a mean rank correlation of 0.19 with nine "
    "published tables (0.47 and -0.01 at half and twice the amplitude); below 0.6 none is used. Measure (NEXT)."
)


def scaling_facts(before: Rotary, after: Rotary, *, seen: int, reach: int) -> dict[str, Any]:
    """Returns what a scaling does, in numbers: the keys that `layer_groups[]` and `options[]` of `keys.KEYS` share.

    Args:
      before: as trained.
      after: as deployed.
      seen: offsets met in training.
      reach: offsets met at the target length.
    """
    trained, scaled = before.inverse_frequencies, after.inverse_frequencies
    classes = resolution.classify_pairs(trained, scaled, original_length=seen, target_length=reach)
    growth = period_growth(trained, scaled)
    weights = resolution.uniform_weights(len(trained))
    return {
        "base_before": before.base,
        "base_after": after.base,
        "pairs_unchanged": int((abs(growth - 1) < 1e-9).sum()),
        "least_growth": growth.min(),
        "largest_growth": growth.max(),
        "logit_factor": (after.cos_sin_factor / before.cos_sin_factor) ** 2 * after.logit_scale / before.logit_scale,
        "pairs_out": classes.count("out of distribution"),
        "out_of_distribution_share": resolution.out_of_distribution_share(
            trained, scaled, original_length=seen, target_length=reach
        ),
        "fisher_ratio": resolution.fisher_ratio(trained, scaled, weights),
    }


def group_record(asked: Extension, group: LayerGroup) -> dict[str, Any]:
    """Returns one layer group as deployed, with every pair: `layer_groups[].*` of `keys.KEYS`."""
    seen, reach = asked.seen(group), asked.reach(group)
    record: dict[str, Any] = {
        "name": group.name,
        "layers": group.layers,
        "window": group.window,
        "seen": seen,
        "reach": reach,
        "num_heads": group.num_heads,
        "head_dim": group.head_dim,
    }
    before = asked.trained(group)
    if before is None:
        return {**record, "rotary_dim": 0, "scaling": "none", "hyperparameters": {}, "classes": {}, "pairs": []}
    rule = asked.rule(group)
    after = rule(before)
    trained, scaled = before.inverse_frequencies, after.inverse_frequencies
    classes = resolution.classify_pairs(trained, scaled, original_length=seen, target_length=reach)
    columns = {
        "pair": range(len(classes)),
        "wavelength": wavelengths(trained),
        "scaled_wavelength": wavelengths(scaled),
        "turns_seen": turns(trained, seen),
        "growth": period_growth(trained, scaled),
        "class": classes,
    }
    return {
        **record,
        "rotary_dim": before.dim,
        "scaling": rule.name,
        "hyperparameters": hyperparameters(rule),
        "cos_sin_factor": after.cos_sin_factor,
        **scaling_facts(before, after, seen=seen, reach=reach),
        "critical_dimension": critical_dimension(before.dim, base=before.base, length=seen),
        "classes": {name: classes.count(name) for name in resolution.CLASSES if name in classes},
        "pairs": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
    }


def threshold_record(asked: Extension) -> dict[str, Any] | None:
    """Returns the three bases to set in place of any scaling, `thresholds.*` of `keys.KEYS`; None: nothing to extend.

    The main layers decide, whose base multiplied by `lambda` gives each.
    """
    group = asked.main
    trained = asked.trained(group)
    if group.rotary is None or trained is None or asked.reach(group) <= asked.seen(group):
        return None
    base, theta, reach = group.rotary.base, group.rotary.inverse_frequencies, asked.reach(group)
    content = thresholds.non_negative_multiplier(theta, target_length=reach)
    matched = None
    if group.rotary.dim > 2:
        matched = base_multiplier(group.rotary.dim, factor=asked.target_length / asked.original_length)
    inside = thresholds.in_distribution_multiplier(
        theta, trained=trained.inverse_frequencies, original_length=asked.seen(group), target_length=reach
    )

    def threshold(multiplier: float | None) -> dict[str, float | None]:
        return {"multiplier": multiplier, "base": None if multiplier is None else multiplier * base}

    return {
        "period_match": threshold(matched),
        "no_pair_out_of_distribution": threshold(inside),
        "content_never_negative": {
            **threshold(content.multiplier),
            "fails_again_at": threshold(content.fails_again_at)["base"],
            "scan_step": content.step,
            "offsets": content.offsets,
        },
    }


def hyperparameters(rule: Rule) -> Mapping[str, Any]:
    """Returns the values a rule was made with, without those left open."""
    return {
        key: list(value) if isinstance(value, tuple | list) else value
        for key, value in rule.hyperparameters.items()
        if value is not None
    }


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
    most = resolution.most_offsets(len(theta))
    blocks, tried = resolution.evenly(reach, most=most, also=likely)
    weights = resolution.uniform_weights(len(theta))
    curves = resolution.coherence_curves(theta, scaled, weights, offsets, reach, blocks=blocks)
    points = []
    for star, curve in zip(offsets, curves, strict=True):
        top, height = resolution.peak(curve)
        inplace = float(np.cos(star * (scaled - theta)).mean())
        points.append({"offset": star, "coherence": inplace, "peak_offset": tried[top], "peak_coherence": height})
    return points
