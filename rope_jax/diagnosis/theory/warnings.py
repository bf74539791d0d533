"""Faults of an implementation that would look like a fault of the scheme, for one model at one length."""

from rope_jax.diagnosis.theory import precision
from rope_jax.diagnosis.theory.status_quo import StatusQuo
from rope_jax.rules import Rule


def warnings_for(status: StatusQuo) -> list[dict[str, str]]:
    """Returns the faults to rule out before blaming the scheme, each as {fault, message}."""
    found = [
        *_low_precision_bias(status),
        *_phases(status),
        *_stale_cache(status),
        *_shorter_rule(status),
        *_adapted_weights(status),
        *_bias_on_old_weights(status),
    ]
    return [{"fault": fault, "message": message} for fault, message in found]


def _dtype(status: StatusQuo) -> tuple[str, str]:
    """Returns the dtype to check and how sure that is; an undeclared one is taken for the usual bfloat16."""
    dtype = status.config.dtype
    if dtype in precision.SIGNIFICAND_BITS:
        return dtype, f"the weights are {dtype}"
    return "bfloat16", "the config declares no dtype; bfloat16 is usual"


def _low_precision_bias(status: StatusQuo) -> list[tuple[str, str]]:
    dtype, why = _dtype(status)
    steps = precision.bias_steps(dtype, target_length=status.reach(status.main))
    if status.slopes is None or steps is None:
        return []
    offset, tokens = steps
    return [
        (
            "bias tensor in low precision",
            f"an ALiBi tensor kept in {dtype} has steps of {tokens} tokens beyond offset {offset:,}: near and far "
            f"mix, order inside a step is lost ({why})",
        )
    ]


def _phases(status: StatusQuo) -> list[tuple[str, str]]:
    rotary = status.main.rotary
    if rotary is None:
        return []
    dtype, why = _dtype(status)
    found = []
    exact = precision.largest_exact_position(dtype)
    if exact < status.target_length and dtype != "float32":
        found.append(
            ("low-precision phases", f"{dtype} holds no odd position beyond {exact:,}: phases need float32 ({why})")
        )
    frequencies = status.rule_of(status.main)(rotary).inverse_frequencies
    error = precision.float32_phase_error(frequencies, length=status.target_length)
    found.append(
        (
            "float32 phases",
            f"position times frequency in float32 puts cos and sin off by up to {error:.1e} at position "
            f"{status.target_length - 1:,}",
        )
    )
    return found


def _stale_cache(status: StatusQuo) -> list[tuple[str, str]]:
    if isinstance(status.rule, Rule):
        return []
    return [
        (
            "stale rotated cache",
            f"{status.rule.name} changes every frequency with the length: keys cached rotated under an earlier length "
            "no longer match; cache them unrotated",
        )
    ]


def _shorter_rule(status: StatusQuo) -> list[tuple[str, str]]:
    if not isinstance(status.rule, Rule):
        return []
    factor = status.rule.hyperparameters.get("factor")
    if factor is None or factor * status.original_length >= status.target_length:
        return []
    return [
        (
            "scaling for a shorter context",
            f"{status.rule.name} with factor {factor:g} covers {factor * status.original_length:,.0f} tokens, not "
            f"{status.target_length:,}",
        )
    ]


def _adapted_weights(status: StatusQuo) -> list[tuple[str, str]]:
    if status.main.rotary is None or status.main.rule.name == "none":
        return []
    return [
        (
            "weights perhaps adapted",
            f"the config declares {status.main.rule.name}: if the weights were trained with it, no relation was "
            "hot-swapped and the coherences here are pessimistic",
        )
    ]


def _bias_on_old_weights(status: StatusQuo) -> list[tuple[str, str]]:
    slope, found = status.gentlest_slope, []
    if slope and status.main.bias is None:
        cost = slope * (status.original_length - 1)
        found.append(
            (
                "bias on weights trained without it",
                f"even the gentlest slope takes {cost:.1f} nats off at {status.original_length - 1:,} tokens: short "
                "evaluations fail too unless the weights were adapted",
            )
        )
    last = slope * (status.reach(status.main) - 1)
    if last > status.amplitude:
        found.append(
            (
                "starved first-token sink",
                f"at the last position the first token is {last:.0f} nats down in the gentlest head: heads that rest "
                "on it must spread their mass elsewhere",
            )
        )
    return found
