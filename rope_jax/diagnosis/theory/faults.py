"""Faults of an implementation that would look like a fault of the scheme, for one model at one length."""

import numpy as np

from rope_jax.diagnosis.theory import precision
from rope_jax.diagnosis.theory.extension import Extension
from rope_jax.length_rules import LengthRule


def faults_of(asked: Extension) -> list[dict[str, str]]:
    """Returns the faults to rule out before blaming the scheme, each as {fault, message}."""
    found = [
        *_low_precision_bias(asked),
        *_phases(asked),
        *_stale_cache(asked),
        *_shorter_rule(asked),
        *_bias_on_old_weights(asked),
    ]
    return [{"fault": fault, "message": message} for fault, message in found]


def _dtype(asked: Extension) -> tuple[str, str]:
    """Returns the dtype to check and how sure that is; an undeclared one is taken for the usual bfloat16."""
    dtype = asked.config.dtype
    if dtype in precision.SIGNIFICAND_BITS:
        return dtype, f"the weights are {dtype}"
    return "bfloat16", "the config declares no dtype; bfloat16 is usual"


def _low_precision_bias(asked: Extension) -> list[tuple[str, str]]:
    dtype, why = _dtype(asked)
    steps = precision.bias_steps(dtype, target_length=asked.reach(asked.main))
    if asked.bias.slopes is None or steps is None:
        return []
    offset, tokens = steps
    return [
        (
            "bias tensor in low precision",
            f"an ALiBi tensor kept in {dtype} has steps of {tokens} tokens beyond offset {offset:,}: near and far "
            f"mix, order inside a step is lost ({why})",
        )
    ]


def _phases(asked: Extension) -> list[tuple[str, str]]:
    before = asked.trained(asked.main)
    if before is None:
        return []
    dtype, why = _dtype(asked)
    found = []
    exact = precision.largest_exact_position(dtype)
    if exact < asked.target_length and dtype != "float32":
        found.append(
            ("low-precision phases", f"{dtype} holds no odd position beyond {exact:,}: phases need float32 ({why})")
        )
    frequencies = asked.rule(asked.main)(before).inverse_frequencies
    error = precision.float32_phase_error(frequencies, length=asked.target_length)
    found.append(
        (
            "float32 phases",
            f"position times frequency in float32 puts cos and sin off by up to {error:.1e} at position "
            f"{asked.target_length - 1:,}",
        )
    )
    return found


def _stale_cache(asked: Extension) -> list[tuple[str, str]]:
    if not (isinstance(asked.scaling, LengthRule) or asked.scaling == "dynamic_ntk"):
        return []
    return [
        (
            "stale rotated cache",
            "every frequency changes with the length: keys cached rotated under an earlier length no longer match; "
            "cache them unrotated",
        )
    ]


def _shorter_rule(asked: Extension) -> list[tuple[str, str]]:
    rule = asked.rule(asked.main)
    factor = rule.hyperparameters.get("factor")
    if factor is None or rule.name == "dynamic_ntk" or factor * asked.length_before >= asked.target_length:
        return []
    return [
        (
            "scaling for a shorter context",
            f"{rule.name} with factor {factor:g} covers {factor * asked.length_before:,.0f} tokens, not "
            f"{asked.target_length:,}",
        )
    ]


def _bias_on_old_weights(asked: Extension) -> list[tuple[str, str]]:
    bias, found = asked.bias, []
    ends = np.array([0, asked.seen(asked.main) - 1, asked.reach(asked.main) - 1])
    start, short, last = bias.weakest(ends)
    if start - short > 0 and not bias.declared:
        found.append(
            (
                "bias on weights trained without it",
                f"even the head with the weakest bias loses {start - short:.1f} nats at {ends[1]:,} tokens: short "
                "evaluations fail too unless the weights were fine-tuned",
            )
        )
    if start - last > asked.amplitude:
        found.append(
            (
                "starved first-token sink",
                f"at the last position the first token is {start - last:.0f} nats down in the head with the weakest "
                "bias: heads that rest on it must spread their mass elsewhere",
            )
        )
    return found
