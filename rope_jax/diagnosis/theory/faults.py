"""Faults of an implementation that would look like a fault of the scheme, for one model at one length."""

import math
from collections.abc import Iterator

import numpy as np

from rope_jax.diagnosis.theory.extension import Extension
from rope_jax.frequencies import Frequencies
from rope_jax.length_rules import LengthRule

SIGNIFICAND_BITS = {"bfloat16": 8, "float16": 11, "float32": 24}
"""By dtype: up to `2^bits` it holds every whole number."""


def faults_of(asked: Extension) -> list[dict[str, str]]:
    """Returns the faults to rule out before blaming the scheme, each as {fault, message}."""
    found = [*_rounding(asked), *_scaling(asked), *_bias(asked)]
    return [{"fault": fault, "message": message} for fault, message in found]


def _rounding(asked: Extension) -> Iterator[tuple[str, str]]:
    dtype, why = asked.config.dtype, f"the weights are {asked.config.dtype}"
    if dtype not in SIGNIFICAND_BITS:
        dtype, why = "bfloat16", "the config declares no dtype; bfloat16 is usual"
    steps = bias_steps(dtype, target_length=asked.reach(asked.main))
    if asked.bias.slopes is not None and steps is not None:
        yield (
            "bias tensor in low precision",
            f"an ALiBi tensor kept in {dtype} has steps of {steps[1]} tokens beyond offset {steps[0]:,}: near and far "
            f"mix, order inside a step is lost ({why})",
        )
    before = asked.trained(asked.main)
    if before is None:
        return
    exact = 2 ** SIGNIFICAND_BITS[dtype]
    if exact < asked.target_length and dtype != "float32":
        yield "low-precision phases", f"{dtype} holds no odd position beyond {exact:,}: phases need float32 ({why})"
    frequencies = asked.rule(asked.main)(before).inverse_frequencies
    error = float32_phase_error(frequencies, length=asked.target_length)
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


def bias_steps(dtype: str, *, target_length: int) -> tuple[int, int] | None:
    r"""Returns where a linear bias kept in `dtype` is coarsest, as (first offset, tokens that share one value).

    A value in `[2^k, 2^{k+1})` is rounded to a multiple of `2^{k-p+1}`, so offsets from `2^k` on, times a slope that
    is a power of two, fall into steps of `2^{k-p+1}` tokens; other slopes shift the edges by less than a factor of 2.

    Args:
      dtype: a key of `SIGNIFICAND_BITS`.
      target_length: `L'`, tokens.

    Returns:
      None when even the largest offset is told from its neighbours.

    >>> bias_steps("bfloat16", target_length=32768)
    (16384, 128)
    """
    if target_length < 2:
        return None
    exponent = int(math.log2(target_length - 1))
    step = 2 ** max(exponent - SIGNIFICAND_BITS[dtype] + 1, 0)
    return (2**exponent, step) if step > 1 else None


def float32_phase_error(inverse_frequencies: Frequencies, *, length: int, positions: int = 4096) -> float:
    """Returns the largest error of cos and sin when `position * theta` is computed in float32, near the end.

    Args:
      inverse_frequencies: `theta`, float64, `[pairs]`.
      length: tokens; the last `positions` of them are tried.
      positions: how many.
    """
    at = np.arange(max(length - positions, 0), length)
    exact = at[:, None] * inverse_frequencies
    rounded = (at.astype(np.float32)[:, None] * inverse_frequencies.astype(np.float32)).astype(np.float64)
    return float(np.maximum(np.abs(np.cos(exact) - np.cos(rounded)), np.abs(np.sin(exact) - np.sin(rounded))).max())
