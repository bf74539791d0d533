"""Faults of an implementation that would look like a fault of the scheme, for one model at one length."""

from collections.abc import Iterator

import numpy as np

from rope_jax.diagnosis.theory import precision
from rope_jax.diagnosis.theory.extension import Extension
from rope_jax.length_rules import LengthRule


def faults_of(asked: Extension) -> list[dict[str, str]]:
    """Returns the faults to rule out before blaming the scheme, each as {fault, message}."""
    found = [*_rounding(asked), *_scaling(asked), *_bias(asked)]
    return [{"fault": fault, "message": message} for fault, message in found]


def _rounding(asked: Extension) -> Iterator[tuple[str, str]]:
    dtype, why = asked.config.dtype, f"the weights are {asked.config.dtype}"
    if dtype not in precision.SIGNIFICAND_BITS:
        dtype, why = "bfloat16", "the config declares no dtype; bfloat16 is usual"
    steps = precision.bias_steps(dtype, target_length=asked.reach(asked.main))
    if asked.bias.slopes is not None and steps is not None:
        yield (
            "bias tensor in low precision",
            f"an ALiBi tensor kept in {dtype} has steps of {steps[1]} tokens beyond offset {steps[0]:,}: near and far "
            f"mix, order inside a step is lost ({why})",
        )
    before = asked.trained(asked.main)
    if before is None:
        return
    exact = precision.largest_exact_position(dtype)
    if exact < asked.target_length and dtype != "float32":
        yield "low-precision phases", f"{dtype} holds no odd position beyond {exact:,}: phases need float32 ({why})"
    frequencies = asked.rule(asked.main)(before).inverse_frequencies
    error = precision.float32_phase_error(frequencies, length=asked.target_length)
    yield (
        "float32 phases",
        f"position times frequency in float32 puts cos and sin off by up to {error:.1e} at position "
        f"{asked.target_length - 1:,}",
    )


def _scaling(asked: Extension) -> Iterator[tuple[str, str]]:
    if isinstance(asked.scaling, LengthRule) or asked.scaling == "dynamic_ntk":
        yield (
            "stale rotated cache",
            "every frequency changes with the length: keys cached rotated under an earlier length no longer match; "
            "cache them unrotated",
        )
        return
    rule = asked.rule(asked.main)
    covered = rule.hyperparameters.get("factor", np.inf) * asked.length_before
    if covered < asked.target_length:
        yield "scaling for a shorter context", f"{rule.name} covers {covered:,.0f} tokens, not {asked.target_length:,}"


def _bias(asked: Extension) -> Iterator[tuple[str, str]]:
    ends = np.array([0, asked.seen(asked.main) - 1, asked.reach(asked.main) - 1])
    start, short, last = asked.bias.weakest(ends)
    if start > short and not asked.bias.declared:
        yield (
            "bias on weights trained without it",
            f"even the head with the weakest bias loses {start - short:.1f} nats at {ends[1]:,} tokens: short "
            "evaluations fail too unless the weights were fine-tuned",
        )
    if start - last > asked.amplitude:
        yield (
            "starved first-token sink",
            f"at the last position the first token is {start - last:.0f} nats down in the head with the weakest bias: "
            "heads that rest on it must spread their mass elsewhere",
        )
