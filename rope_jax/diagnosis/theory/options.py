"""The deployed configuration and what may be put in its place, side by side as facts; nothing is ranked.

Option 1 drops the bias, option 2 undoes the scaling, option 3 keeps the bias and changes the scaling.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from rope_jax.diagnosis.theory import offset_samples, resolution
from rope_jax.diagnosis.theory.bias_facts import DeployedBias
from rope_jax.diagnosis.theory.extension import AnyScaling, Extension
from rope_jax.diagnosis.theory.facts import hyperparameters, scaling_facts
from rope_jax.diagnosis.theory.offset_samples import OffsetSamples
from rope_jax.errors import ScalingError
from rope_jax.frequencies import Rotary
from rope_jax.scaling.registry import SCALINGS

UNRANKED = (
    "Not ranked: the best predictor tried (attention kept in place) has a mean rank correlation of 0.19 with nine "
    "published tables (0.47 and -0.01 at half and twice the amplitude); below 0.6 none is used. Measure (NEXT)."
)
Curves = Float64[np.ndarray, "stars offsets"]


@dataclasses.dataclass(frozen=True)
class _Scaling:
    """One scaling of the table: how it was asked for, by a name for flags, and whether it is the deployed or none."""

    scaling: AnyScaling
    name: str
    deployed: bool = False
    undone: bool = False


def stars(seen: int, reach: int) -> list[int]:
    """Returns the offsets `Delta*` that curves are given for, at least one of them new where the context grows.

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


def name_of(asked: Extension, scaling: AnyScaling) -> str:
    """Returns a scaling as a flag has it."""
    return scaling if isinstance(scaling, str) else scaling.name


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
    main = asked.main
    before = asked.trained(main)
    if before is None:
        return [], [{"name": "every scaling", "reason": "nothing rotates in this model: only its bias matters"}]
    offsets, samples = stars(asked.seen(main), asked.reach(main)), sampled(asked)
    records, skipped, deployed = [], [], None
    for scaling in _scalings(asked, thresholds):
        try:
            rule = asked.rule(main, scaling.scaling)
            after = rule(before)
        except ScalingError as error:
            if scaling.deployed:
                raise
            skipped.append({"name": scaling.name, "reason": str(error)})
            continue
        if deployed is not None and _alike(after, deployed):
            skipped.append({"name": scaling.name, "reason": "the same as what is deployed"})
            continue
        deployed = deployed or after
        curves = _Curves.of(asked, before, after, offsets, samples)
        facts = scaling_facts(before, after, seen=asked.seen(main), reach=asked.reach(main))
        for bias in [asked.bias] if asked.bias.name == "none" else [asked.bias, DeployedBias("none", "dropped")]:
            records.append(
                {
                    "change": _change(scaling, dropped=bias is not asked.bias),
                    "name": f"{scaling.name} + {bias.name}",
                    "scaling": scaling.name,
                    "hyperparameters": hyperparameters(rule),
                    "bias": bias.name,
                    **facts,
                    "curve": curves.points(asked, bias, offsets, samples),
                }
            )
    return records, skipped


def sampled(asked: Extension) -> OffsetSamples:
    """Returns the offsets of the main group at which curves are worked out: every one unless there are very many."""
    main = asked.main
    assert main.rotary is not None
    centres = stars(asked.seen(main), asked.reach(main))
    return offset_samples.around(centres, asked.reach(main), pairs=main.rotary.dim // 2)


def _scalings(asked: Extension, thresholds: Mapping[str, Any] | None) -> list[_Scaling]:
    deployed = name_of(asked, asked.scaling)
    found = [_Scaling(asked.scaling, deployed, deployed=True, undone=deployed == "none")]
    if deployed != "none":
        found.append(_Scaling("none", "none", undone=True))
    if not asked.extended:
        return found
    names = [name for name, record in SCALINGS.items() if record.kind in ("base", "map", "map and temperature")]
    for key in ("no_pair_out_of_distribution", "content_never_negative"):
        base = None if thresholds is None else thresholds[key]["base"]
        if base is not None and base < 1e18:
            names.append(f"explicit_base:{math.ceil(base)}")
    return found + [_Scaling(name, name) for name in names if name != deployed]


def _alike(one: Rotary, other: Rotary) -> bool:
    factors = [(rotary.cos_sin_factor, rotary.logit_scale) for rotary in (one, other)]
    return factors[0] == factors[1] and np.allclose(one.inverse_frequencies, other.inverse_frequencies, 1e-9, 0)


def _change(scaling: _Scaling, *, dropped: bool) -> str:
    """Returns what a configuration changes of the deployed one, in words."""
    if scaling.deployed:
        return "1 drop bias" if dropped else "deployed"
    if scaling.undone:
        return "1+2 revert all" if dropped else "2 undo scaling"
    return "1+3 both" if dropped else "3 change scaling"


@dataclasses.dataclass(frozen=True, eq=False)
class _Curves:
    """What one scaling does whatever the bias: `[stars, offsets]`, of relations that were trained, then of new ones."""

    coherence: Float64[np.ndarray, "stars offsets"]
    trained: int
    gain: float

    @staticmethod
    def of(
        asked: Extension, before: Rotary, after: Rotary, offsets: Sequence[int], samples: OffsetSamples
    ) -> "_Curves":
        seen, reach = asked.seen(asked.main), asked.reach(asked.main)
        theta, scaled = before.inverse_frequencies, after.inverse_frequencies
        weights = resolution.uniform_weights(len(theta))
        near, far = [star for star in offsets if star < seen], [star for star in offsets if star >= seen]
        parts = [
            resolution.coherence_curves(theta, scaled, weights, near, reach, blocks=samples.blocks),
            resolution.coherence_curves(scaled, scaled, weights, far, reach, blocks=samples.blocks),
        ]
        return _Curves(np.concatenate(parts), len(near), after.cos_sin_factor**2 * after.logit_scale)

    def points(
        self, asked: Extension, bias: DeployedBias, offsets: Sequence[int], samples: OffsetSamples
    ) -> list[dict[str, Any]]:
        """Returns `options[].curve[]` of `keys.KEYS`."""
        added = bias.weakest(samples.offsets)
        points = []
        for n, (star, curve) in enumerate(zip(offsets, self.coherence, strict=True)):
            trained = n < self.trained
            top, height = resolution.peak(curve)
            points.append(
                {
                    "offset": star,
                    "trained": trained,
                    "coherence": curve[samples.index(star)] if trained else None,
                    "peak_offset": samples.offsets[top] if trained else None,
                    "peak_coherence": height if trained else None,
                    "g50": [
                        resolution.g50(amplitude * self.gain * curve + added, star, edges=samples.edges)
                        for amplitude in amplitudes(asked)
                    ],
                }
            )
        return points


def amplitudes(asked: Extension) -> tuple[float, float, float]:
    """Returns the amplitudes that g50 is given for, nats: half, once and twice the one asked for."""
    return asked.amplitude / 2, asked.amplitude, 2 * asked.amplitude
