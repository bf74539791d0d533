"""The arms of a comparison by name, and each scaling with its published hyperparameters; starts without JAX."""

from rope_jax import scaling
from rope_jax.errors import InputError
from rope_jax.length_rules import LengthRule, dynamic_ntk
from rope_jax.rules import Rule

BIAS_ARMS = ("none", "alibi", "alibi_star", "t5")
ARMS = ("none", "linear", "ntk", "by_parts", "yarn", "llama3")
BY_NAME = (*ARMS, "ntk4", "dynamic_ntk")
TRANSFORMS = ("by_parts", "yarn", "llama3", "linear", "ntk4")
"""What option 3 may put in the place of base scaling by the period match."""
FAULTS = ("bf16_bias", "bf16_frequencies", "bf16_positions", "float32_phases", "stale_cache", "wrong_layout")
"""Ways of running a scheme wrongly; `faults.py` has them."""


def scaling_rule(name: str, *, factor: float, original_length: int) -> Rule | LengthRule:
    """Returns the rule called `name` with its published defaults, for a context `factor` times as long.

    `llama3` takes (low_freq_factor, high_freq_factor) = (1, 4); `ntk4` is base scaling by four times the lambda of the
    period match; `dynamic_ntk` takes factor 1, so that it grows with
    the current length over the trained one.

    Raises:
      InputError: if there is no such rule.
    """
    match name:
        case "none":
            return scaling.none()
        case "linear":
            return scaling.linear(factor=factor)
        case "ntk":
            return scaling.ntk(factor=factor)
        case "ntk4":
            matched, wider = scaling.ntk(factor=factor), scaling.ntk(multiplier=4.0)
            return Rule(
                "ntk", lambda rotary: wider.transform(matched.transform(rotary)), {"factor": factor, "times": 4.0}
            )
        case "by_parts":
            return scaling.by_parts(factor=factor, original_length=original_length)
        case "yarn":
            return scaling.yarn(factor=factor, original_length=original_length)
        case "llama3":
            return scaling.llama3(
                factor=factor, original_length=original_length, low_freq_factor=1.0, high_freq_factor=4.0
            )
        case "dynamic_ntk":
            return dynamic_ntk(factor=1.0, original_length=original_length)
    raise InputError(f"unknown scaling {name!r}; there are: config, {', '.join(BY_NAME)}")
