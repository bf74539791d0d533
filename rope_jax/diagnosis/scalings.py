"""The arms of a comparison by name, and each scaling with its published hyperparameters; starts without JAX."""

from rope_jax import scaling
from rope_jax.errors import InputError
from rope_jax.length_rules import LengthRule, dynamic_ntk
from rope_jax.rules import Rule

BIAS_ARMS = ("none", "alibi", "alibi_star", "t5")
ARMS = ("none", "linear", "ntk", "by_parts", "yarn", "llama3")
BY_NAME = (*ARMS, "dynamic_ntk")


def scaling_rule(name: str, *, factor: float, original_length: int) -> Rule | LengthRule:
    """Returns the rule called `name` with its published defaults, for a context `factor` times as long.

    `llama3` takes (low_freq_factor, high_freq_factor) = (1, 4); `dynamic_ntk` takes factor 1, so that it grows with
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
