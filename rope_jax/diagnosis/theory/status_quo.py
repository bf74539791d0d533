"""The retrofit that an inspection starts from: which scaling, which bias, how far, and why those."""

import dataclasses

import numpy as np

from rope_jax import scaling
from rope_jax.biases.slopes import paper_slopes
from rope_jax.checkpoints.positions import BiasSpec, LayerGroup, PositionConfig
from rope_jax.diagnosis.evaluation.scalings import scaling_rule
from rope_jax.diagnosis.theory.offset_samples import check_pairs
from rope_jax.errors import InputError
from rope_jax.length_rules import LengthRule, at_length
from rope_jax.rules import Rule

BIASES = ("none", "alibi", "t5")
LARGEST_TARGET = 2**24
LARGEST_AMPLITUDE = 2**24  # nats


@dataclasses.dataclass(frozen=True, eq=False)
class StatusQuo:
    """A model, the length it is asked to serve, and the retrofit in place.

    Attributes:
      config: what the model's config says.
      target_length: `L'`, tokens.
      amplitude: `A`, nats.
      rule: the scaling of the main group.
      scaling_source: why that rule.
      bias: the bias of the main group, or None.
      bias_source: why that bias.
    """

    config: PositionConfig
    target_length: int
    amplitude: float
    rule: Rule | LengthRule
    scaling_source: str
    bias: BiasSpec | None
    bias_source: str

    @property
    def original_length(self) -> int:
        """`L`, tokens."""
        return self.config.original_length

    @property
    def factor(self) -> float:
        """`s = L'/L`."""
        return self.target_length / self.config.original_length

    @property
    def main(self) -> LayerGroup:
        """The layers that see the whole context."""
        return self.config.main_group

    @property
    def amplitudes(self) -> tuple[float, float, float]:
        """The amplitudes that predictions are shown for."""
        return self.amplitude / 2, self.amplitude, self.amplitude * 2

    @property
    def bias_kind(self) -> str:
        """`none`, `alibi` or `t5`."""
        return "none" if self.bias is None else self.bias.kind

    @property
    def slopes(self) -> np.ndarray | None:
        """ALiBi's slopes in the main group, nats per token, `[heads]`, or None."""
        if self.bias is None or self.bias.kind != "alibi":
            return None
        return paper_slopes(self.main.num_heads) * self.bias.slopes_scale

    @property
    def gentlest_slope(self) -> float:
        """The smallest slope, nats per token; 0 without a line."""
        return 0.0 if self.slopes is None else float(self.slopes.min())

    def reach(self, group: LayerGroup) -> int:
        """Returns how many offsets a query of `group` meets: the target length, or its window."""
        return min(self.target_length, group.window or self.target_length)

    def seen(self, group: LayerGroup) -> int:
        """Returns how many offsets a query of `group` met in training: the trained length, or its window."""
        return min(self.original_length, group.window or self.original_length)

    def rule_of(self, group: LayerGroup) -> Rule:
        """Returns the rule of `group` at the target length; windowed layers beside full ones keep the config's."""
        own = group is not self.main and group.window is not None
        return at_length(group.rule if own else self.rule, self.target_length)


def status_quo(
    config: PositionConfig,
    *,
    target_length: int,
    scaling_name: str | None = None,
    bias_name: str | None = None,
    amplitude: float = 20.0,
) -> StatusQuo:
    """Returns the retrofit that is asked for, or else the one the config declares, or else base scaling and ALiBi.

    Args:
      config: what the model's config says.
      target_length: `L'`, tokens; at least the original length.
      scaling_name: one of `scalings.BY_NAME`, "config" for what the config declares, or None for what it declares if it
        declares one, else "ntk".
      bias_name: one of `BIASES`, "config", or None for the config's own if it has one, else "alibi" where something
        rotates (a bias added in the retrofit).
      amplitude: `A`, nats: how far the rotary logit of a matching head can rise.

    Raises:
      InputError: if an argument is out of range, names nothing, or does not apply to the model.
    """
    if not 0 < amplitude <= LARGEST_AMPLITUDE:
        raise InputError(
            f"amplitude must be a finite positive number of nats, at most {LARGEST_AMPLITUDE}, got {amplitude}: "
            "larger logits in float32 are more than 1 nat apart"
        )
    if target_length < config.original_length:
        raise InputError(
            f"target length {target_length} is below the {config.original_length} tokens that {config.origin} was "
            "trained on: nothing is extended"
        )
    if not 2 <= target_length <= LARGEST_TARGET:
        raise InputError(f"target length must lie in 2 ... {LARGEST_TARGET}, got {target_length}")
    for group in config.groups:
        if group.rotary is not None:
            check_pairs(group.rotary.dim // 2, min(target_length, group.window or target_length), origin=config.origin)
    rule, scaling_source = _scaling(config, scaling_name, target_length / config.original_length)
    bias, bias_source = _bias(config, bias_name)
    return StatusQuo(config, target_length, amplitude, rule, scaling_source, bias, bias_source)


def _scaling(config: PositionConfig, name: str | None, factor: float) -> tuple[Rule | LengthRule, str]:
    main = config.main_group
    if main.rotary is None:
        if name not in (None, "config", "none"):
            raise InputError(f"scaling {name} has nothing to scale: {config.origin} has no rotary embedding")
        return scaling.none(), "the model has no rotary embedding"
    if name == "config" or (name is None and main.rule.name != "none"):
        return main.rule, "declared by the config"
    source = "default, since the config declares none" if name is None else "asked for"
    return scaling_rule(name or "ntk", factor=factor, original_length=config.original_length), source


def _bias(config: PositionConfig, name: str | None) -> tuple[BiasSpec | None, str]:
    main = config.main_group
    if main.bias is not None and name in (None, "config", main.bias.kind):
        return main.bias, "declared by the config"
    if name == "config" or (name is None and main.rotary is None):
        return None, "the config declares none"
    source = "default: added in the retrofit, since the config declares none" if name is None else "asked for"
    match name or "alibi":
        case "none":
            return None, source
        case "alibi":
            return BiasSpec("alibi"), f"{source}; paper slopes"
        case "t5":
            return BiasSpec("t5", num_buckets=32, max_distance=128), f"{source}; 32 buckets up to distance 128"
    raise InputError(f"unknown bias {name!r}; there are: config, {', '.join(BIASES)}")
