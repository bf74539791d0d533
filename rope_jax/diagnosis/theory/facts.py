"""What one scaling does to the pairs of one layer group: phases never trained, sharpness, wavelengths, thresholds."""

from collections.abc import Mapping
from typing import Any

from rope_jax.checkpoints.positions import LayerGroup
from rope_jax.diagnosis.theory import resolution, thresholds
from rope_jax.diagnosis.theory.extension import Extension
from rope_jax.frequencies import Rotary, base_multiplier, critical_dimension, period_growth, turns, wavelengths
from rope_jax.rules import Rule


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
    columns = zip(
        wavelengths(trained), wavelengths(scaled), turns(trained, seen), period_growth(trained, scaled), classes,
        strict=True,
    )  # fmt: skip
    keys = ("wavelength", "scaled_wavelength", "turns_seen", "growth", "class")
    return {
        **record,
        "rotary_dim": before.dim,
        "scaling": rule.name,
        "hyperparameters": hyperparameters(rule),
        "cos_sin_factor": after.cos_sin_factor,
        **scaling_facts(before, after, seen=seen, reach=reach),
        "critical_dimension": critical_dimension(before.dim, base=before.base, length=seen),
        "classes": {name: classes.count(name) for name in resolution.CLASSES if name in classes},
        "pairs": [{"pair": pair, **dict(zip(keys, values, strict=True))} for pair, values in enumerate(columns)],
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
