"""The options of a retrofit side by side, ranked by one predicted number.

Option 1 drops the bias, option 2 undoes the scaling, option 3 keeps the bias and scales by another transform.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from rope_jax import scaling
from rope_jax.diagnosis.evaluation.scalings import ARMS, scaling_rule
from rope_jax.diagnosis.theory import offset_samples, resolution
from rope_jax.diagnosis.theory.offset_samples import OffsetSamples
from rope_jax.diagnosis.theory.status_quo import StatusQuo
from rope_jax.errors import ScalingError
from rope_jax.frequencies import Rotary
from rope_jax.length_rules import at_length
from rope_jax.rules import Rule

SCORE = (
    "softmax mass kept within max(1, Delta*/4) tokens of Delta* in the head with the gentlest slope; half of it the "
    "mean over Delta* that were trained (hot-swapped), half over new Delta* (heads tuned anew); cells out of "
    "distribution count as their worst case; 1 is best"
)
NOISE = 1.0
TRANSFORMS = tuple(name for name in ARMS if name != "none")

Curves = Float64[np.ndarray, "stars offsets"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Shapes:
    """What one rule does whatever the bias and the amplitude; the curves are `[stars, offsets]`.

    `hot_swapped` has the stars that were trained only; they come first.
    """

    scaled: Rotary
    share: float
    fisher_ratio: float
    kernel: Curves
    hot_swapped: Float64[np.ndarray, "trained offsets"]
    shown: Curves
    out: Float64[np.ndarray, " offsets"]


@dataclasses.dataclass(frozen=True)
class _Plan:
    option: str
    scaling: str
    rule: Rule
    bias: str

    @property
    def name(self) -> str:
        return f"{self.scaling} + {'no bias' if self.bias == 'none' else self.bias}"


def stars(seen: int, reach: int) -> list[int]:
    """Returns the offsets `Delta*` that are looked at, at least one of them new where the context grows.

    Powers of 4 from 16 (from 1 for tiny models); where none lies in `seen ... reach - 1`, the geometric middle of that.

    Args:
      seen: offsets met in training.
      reach: offsets met at the target length.
    """
    start = 16 if seen > 256 else 1
    offsets = [4**k for k in range(13) if start <= 4**k < reach]
    if seen < reach and not (offsets and offsets[-1] >= seen):
        offsets.append(math.isqrt(seen * reach))
    return offsets or [max(reach // 2, 1)]


def ranked_options(
    status: StatusQuo, larger_multipliers: Mapping[str, float | None]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Returns every option, best score first, and those that do not apply with the reason.

    Args:
      status: the retrofit in place.
      larger_multipliers: the lambda that base scaling is also tried with, by a name; None and those not above the
        period match are left out.

    Raises:
      ScalingError: if the status-quo rule does not apply to the model.
    """
    main = status.main
    if main.rotary is None:
        reason = "nothing rotates in this model: only the bias and its horizon apply"
        titles = ("option 1: drop the bias", "option 2: undo the scaling", "option 3: another transform")
        return [], [{"name": title, "reason": reason} for title in titles]
    plans, skipped = _plans(status, larger_multipliers)
    offsets = stars(status.seen(main), status.reach(main))
    samples = looked_at(status)
    shapes: _Shapes | None = None
    records = []
    for before, plan in zip([None, *plans], plans, strict=False):
        try:
            # Plans of one scaling stand side by side; the curves of all scalings at once would be many.
            if shapes is None or before is None or before.scaling != plan.scaling:
                shapes = None
                shapes = _shapes(status, main.rotary, plan.rule, offsets, samples)
        except ScalingError as error:
            if plan.option == "status quo":
                raise
            skipped.append({"name": f"option {plan.option}: {plan.scaling}", "reason": str(error)})
            continue
        records.append(_record(status, main.rotary, plan, shapes, offsets, samples))
    records.sort(key=lambda record: -record["score"])
    return [{"rank": rank, **record} for rank, record in enumerate(records, 1)], skipped


def looked_at(status: StatusQuo) -> OffsetSamples:
    """Returns the offsets of the main group at which curves are worked out: every one unless there are very many."""
    main = status.main
    assert main.rotary is not None
    centres = stars(status.seen(main), status.reach(main))
    return offset_samples.around(centres, status.reach(main), pairs=main.rotary.dim // 2)


def _plans(
    status: StatusQuo, larger_multipliers: Mapping[str, float | None]
) -> tuple[list[_Plan], list[dict[str, str]]]:
    rule, bias = status.rule_of(status.main), status.bias_kind
    plans = [_Plan("status quo", rule.name, rule, bias)]
    skipped: list[dict[str, str]] = []
    if bias == "none":
        skipped.append({"name": "option 1: drop the bias", "reason": "the status quo has none"})
    else:
        plans.append(_Plan("1", rule.name, rule, "none"))
    if rule.name == "none":
        skipped.append({"name": "option 2: undo the scaling", "reason": "the status quo scales nothing"})
    else:
        plans.append(_Plan("2", "none", scaling.none(), bias))
    for name in TRANSFORMS:
        if name == rule.name:
            skipped.append({"name": f"option 3: {name}", "reason": "it is the status quo"})
            continue
        other = scaling_rule(name, factor=status.factor, original_length=status.original_length)
        plans.append(_Plan("3", name, at_length(other, status.target_length), bias))
    matched = larger_multipliers.get("period_match")
    for multiplier in larger_multipliers.values():
        if multiplier is not None and matched is not None and multiplier > matched * 1.001:
            plans.append(_Plan("3", f"ntk, lambda {multiplier:.4g}", scaling.ntk(multiplier=multiplier), bias))
    return plans, skipped


def _shapes(status: StatusQuo, rotary: Rotary, rule: Rule, offsets: list[int], samples: OffsetSamples) -> _Shapes:
    scaled = rule(rotary)
    length, reach = status.seen(status.main), status.reach(status.main)
    before, after = rotary.inverse_frequencies, scaled.inverse_frequencies
    weights = resolution.uniform_weights(len(before))
    first_out, blocks = resolution.first_offset_out(before, after, length), samples.blocks
    near = [star for star in offsets if star < length]
    far = [star for star in offsets if star >= length]
    shown = [
        resolution.coherence_curves(before, after, weights, near, reach, first_out=first_out, blocks=blocks),
        resolution.coherence_curves(after, after, weights, far, reach, first_out=first_out, blocks=blocks),
    ]
    return _Shapes(
        scaled=scaled,
        share=resolution.out_of_distribution_share(before, after, original_length=length, target_length=reach),
        fisher_ratio=resolution.fisher_ratio(before, after, weights),
        kernel=resolution.kernel_curves(after, weights, offsets, reach, blocks=blocks),
        hot_swapped=resolution.coherence_curves(before, after, weights, near, reach, blocks=blocks),
        shown=np.concatenate(shown),
        out=resolution.weight_out(weights, first_out, samples.offsets),
    )


def _record(
    status: StatusQuo, rotary: Rotary, plan: _Plan, shapes: _Shapes, offsets: list[int], samples: OffsetSamples
) -> dict[str, Any]:
    slope = 0.0 if plan.bias == "none" else status.gentlest_slope
    bias = -slope * samples.offsets
    gain = shapes.scaled.cos_sin_factor**2 * shapes.scaled.logit_scale
    curve = [_at_star(status, shapes, samples, bias, gain, n, star) for n, star in enumerate(offsets)]
    scores = [{"amplitude": amplitude, **_score(curve, k)} for k, amplitude in enumerate(status.amplitudes)]
    amplitude = status.amplitude * gain
    weights = resolution.uniform_weights(rotary.dim // 2)
    information = resolution.information(
        shapes.scaled.inverse_frequencies, weights, amplitude=amplitude, bias_slope=slope, noise=NOISE
    )
    jnd = resolution.just_noticeable_difference(information)
    return {
        "option": plan.option,
        "name": plan.name,
        "scaling": plan.scaling,
        "hyperparameters": hyperparameters(plan.rule),
        "bias": plan.bias,
        **{key: value for key, value in scores[1].items() if key != "amplitude"},
        "scores": scores,
        "effective_amplitude": amplitude,
        "out_of_distribution_share": shapes.share,
        "fisher_ratio": shapes.fisher_ratio,
        "just_noticeable_difference": jnd if math.isfinite(jnd) else None,
        "curve": curve,
    }


def _score(curve: list[dict[str, Any]], k: int) -> dict[str, float | None]:
    """Returns the score at the `k`-th amplitude and its halves; a half without an offset is None and does not count."""
    halves = {}
    for key, trained in (("score_trained", True), ("score_new", False)):
        kept = [point["by_amplitude"][k]["retained_mass"] for point in curve if point["trained"] == trained]
        halves[key] = float(np.mean(kept)) if kept else None
    return {"score": float(np.mean([half for half in halves.values() if half is not None])), **halves}


def _at_star(
    status: StatusQuo, shapes: _Shapes, samples: OffsetSamples, bias: np.ndarray, gain: float, n: int, star: int
) -> dict[str, Any]:
    edges = samples.edges
    trained = star < status.seen(status.main)
    hot = shapes.hot_swapped[n] if trained else None
    top, height = resolution.peak(hot) if hot is not None else (None, None)
    by_amplitude = []
    for amplitude in status.amplitudes:
        raised = amplitude * gain
        retained = resolution.retained_mass(
            shapes.shown[n],
            shapes.out,
            bias,
            star=star,
            tolerance=max(1, star // 4),
            amplitude=raised,
            edges=edges,
        )
        by_amplitude.append(
            {
                "amplitude": amplitude,
                "g50": resolution.g50(raised * shapes.kernel[n] + bias, star, edges=edges),
                "g50_hot_swapped": None if hot is None else resolution.g50(raised * hot + bias, star, edges=edges),
                "retained_mass": retained,
            }
        )
    middle = {key: value for key, value in by_amplitude[1].items() if key != "amplitude"}
    return {
        "offset": star,
        "trained": trained,
        "coherence": None if hot is None else float(hot[samples.index(star)]),
        "peak_offset": None if top is None else int(samples.offsets[top]),
        "peak_coherence": height,
        **middle,
        "by_amplitude": by_amplitude,
    }


def hyperparameters(rule: Rule) -> dict[str, Any]:
    """Returns the values a rule was made with, without those left open."""
    return {
        key: list(value) if isinstance(value, tuple | list) else value
        for key, value in rule.hyperparameters.items()
        if value is not None
    }
