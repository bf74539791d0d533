"""The three links from scheme to symptom, in plain words with the numbers of the model at hand."""

import math

import numpy as np

from rope_jax.biases import bucket_starts
from rope_jax.diagnosis.evaluation.arms import declared_rotary
from rope_jax.diagnosis.evaluation.case import Case, Judgement
from rope_jax.diagnosis.evaluation.case_setup import rules_of
from rope_jax.diagnosis.evaluation.probes import LIMIT
from rope_jax.diagnosis.theory import resolution


def three_links(case: Case, judgement: Judgement) -> dict[str, str]:
    """Returns (i) how rotation encodes position, (ii) what the scaling changed, (iii) what the bias does far away."""
    subject = case.subjects[0]
    group = subject.checkpoint.positions.main_group
    if group.rotary is None:
        nothing = "Nothing rotates in this model: position is told by the bias and by causality alone."
        return {"rotation": nothing, "scaling": "There is nothing to scale.", "bias": _bias(case, judgement)}
    trained = declared_rotary(group, group.rotary, length=subject.target_length).inverse_frequencies
    return {
        "rotation": _rotation(trained, subject.trained_length),
        "scaling": _scaling(trained, case, judgement),
        "bias": _bias(case, judgement),
    }


def _rotation(trained: np.ndarray, length: int) -> str:
    waves = 2 * math.pi / trained[trained > 0]
    partial = int(resolution.never_turns_fully(trained, length).sum())
    return (
        f"Each of the {len(trained)} pairs of a head turns by its own angle a token, so a query and a key meet at an "
        f"angle that depends on their offset alone. Here one turn takes from {waves.min():.1f} to {waves.max():,.0f} "
        f"tokens: the fast pairs tell neighbours apart, the slow ones near from far. {partial} of them never "
        f"completed a turn in {length:,} tokens of training."
    )


def _scaling(trained: np.ndarray, case: Case, judgement: Judgement) -> str:
    subject, name = case.subjects[0], judgement.status_quo.scaling
    length, target = subject.trained_length, subject.target_length
    if name == "none":
        share = resolution.out_of_distribution_share(trained, trained, original_length=length, target_length=target)
        return f"Nothing is scaled; at {target:,} tokens {share:.1%} of (pair, offset) cells show angles never trained."
    group = subject.checkpoint.positions.main_group
    assert group.rotary is not None
    rule = rules_of(subject.factor, length)[name]
    scaled = rule(declared_rotary(group, group.rotary, length=target)).inverse_frequencies
    slower = trained[trained > 0] / scaled[trained > 0]
    alike = "all alike" if np.allclose(slower, slower[0]) else "not all alike"
    share = resolution.out_of_distribution_share(trained, scaled, original_length=length, target_length=target)
    weights = resolution.uniform_weights(len(trained))
    stars = [offset for offset in (8, 32, 128) if offset < length]
    curves = resolution.coherence_curves(trained, scaled, weights, stars, target)
    peaks = [resolution.peak(curve) for curve in curves]
    moved = ", ".join(
        f"{star} at {at} with {height:.0%} of its sharpness" for star, (at, height) in zip(stars, peaks, strict=True)
    )
    return (
        f"{name} slows the pairs by factors from {slower.min():.2f} (the fastest) to {slower.max():.2f} (the slowest), "
        f"{alike}. A head tuned in training to one offset now finds it elsewhere: offset {moved}. "
        f"{share:.1%} of (pair, offset) cells show angles never trained."
    )


def _bias(case: Case, judgement: Judgement) -> str:
    name, subject = judgement.status_quo.bias, case.subjects[0]
    target = subject.target_length
    if name == "none":
        return "No bias is added."
    bias = case.fitted[0].biases[name]
    if name == "t5":
        starts = bucket_starts(case.settings.num_buckets, case.settings.max_distance)
        table = np.asarray(bias.table)  # type: ignore[union-attr]
        step = float(np.abs(np.diff(table, axis=1)).max())
        wide = int(np.diff(starts).max())
        return (
            f"The {case.settings.num_buckets} buckets give near offsets one number each, far ones share one over up to "
            f"{wide} tokens, and from {starts[-1]} on all share one. Within a bucket the bias leaves the odds of two "
            f"keys as they are; the largest step between buckets is {step:.2f} nats."
        )
    slopes = np.asarray(bias.slopes)  # type: ignore[union-attr]
    gentle, steep = float(slopes.min()), float(slopes.max())
    horizon = 2 * LIMIT / gentle if gentle > 0 else math.inf
    return (
        f"The line takes {gentle:.4g} (gentlest head) to {steep:.4g} (steepest) nats a token, at {target:,} tokens "
        f"{gentle * target:.1f} nats in the gentlest head; beyond some {horizon:,.0f} tokens it outweighs odds of "
        "10,000 to 1, whatever the content. Two keys one token apart differ by the slope alone, near or far: the line "
        "adds no resolution with distance, it hides what is far."
    )
