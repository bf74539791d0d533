"""The context extension that is inspected: how far, by which scaling in place of what, beside which bias, and why."""

import dataclasses
import numbers

from rope_jax import scaling as rules
from rope_jax.biases.host import Bias
from rope_jax.biases.registry import BiasRecord
from rope_jax.checkpoints.extending import extension_rule, length_before, trained_rotary
from rope_jax.checkpoints.extending import trained_length as declared_trained_length
from rope_jax.checkpoints.positions import LayerGroup, PositionConfig
from rope_jax.diagnosis.theory.bias_facts import DeployedBias, deployed_bias
from rope_jax.diagnosis.theory.resolution import check_pairs
from rope_jax.errors import InputError, named
from rope_jax.frequencies import Rotary
from rope_jax.length_rules import LengthRule
from rope_jax.rules import Rule
from rope_jax.scaling.registry import Scaling, made, scaling_rule

LARGEST_TARGET = 2**24
LARGEST_AMPLITUDE = 2**24  # nats
AnyScaling = str | Rule | LengthRule | Scaling
_STRETCHED = ("linear", "by_parts", "yarn", "llama3", "proportional")
"""Rules of configs that serve a longer context with another factor and nothing else changed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Extension:
    """A model, the length it is asked to serve, and the configuration deployed there.

    Attributes:
      config: what the model's config says.
      original_length: tokens before any extension.
      trained_length: `L`, tokens, a declared scaling counted in.
      target_length: `L'`, tokens.
      scaling: as it was asked for, or chosen.
      scaling_source: why that.
      compose: whether a scaling comes on top of a declared one, rather than in its place.
      amplitude: `A`, nats.
      bias: the bias of the main group.
    """

    config: PositionConfig
    original_length: int
    trained_length: int
    target_length: int
    scaling: AnyScaling
    scaling_source: str
    compose: bool
    amplitude: float
    bias: DeployedBias

    @property
    def main(self) -> LayerGroup:
        """The layers that see the whole context."""
        return self.config.main_group

    @property
    def extended(self) -> bool:
        """Whether any query meets more offsets than in training."""
        return any(self.reach(group) > self.seen(group) for group in self.config.groups)

    @property
    def length_before(self) -> int:
        """Tokens that the factor of a scaling is taken against."""
        return length_before(self.config, trained=self.trained_length, compose=self.compose)

    @property
    def factor(self) -> float:
        """`s`, the factor of a scaling."""
        return self.target_length / self.length_before

    def reach(self, group: LayerGroup) -> int:
        """Returns how many offsets a query of `group` meets: the target length, or its window."""
        return min(self.target_length, group.window or self.target_length)

    def seen(self, group: LayerGroup) -> int:
        """Returns how many offsets a query of `group` met in training: the trained length, or its window."""
        return min(self.trained_length, group.window or self.trained_length)

    def trained(self, group: LayerGroup) -> Rotary | None:
        """Returns the rotary embedding that the weights of `group` were trained with."""
        return trained_rotary(group, length=self.trained_length, compose=self.compose)

    def rule(self, group: LayerGroup, scaling: AnyScaling | None = None) -> Rule:
        """Returns a scaling, the deployed one by default, as a rule on `trained(group)`.

        Layers with a window keep what they were trained with where others have none.
        """
        wanted = self.scaling if scaling is None else scaling
        if group.rotary is None or (group is not self.main and group.window is not None):
            return rules.none()
        if isinstance(wanted, Scaling):
            wanted = made(wanted, factor=self.factor, original_length=self.length_before)
        lengths = {"trained": self.trained_length, "target": self.target_length}
        return extension_rule(wanted, self.config, **lengths, compose=self.compose)


def extension(
    config: PositionConfig,
    *,
    target_length: int,
    scaling: AnyScaling | None = None,
    bias: str | Bias | BiasRecord | None = None,
    trained_length: int | None = None,
    trained_base: float | None = None,
    compose: bool = False,
    amplitude: float = 20.0,
) -> Extension:
    """Returns the extension that is asked for, filled up by what the config declares; arguments as of `inspect`."""
    for name, value, kind in (
        ("target length", target_length, numbers.Integral),
        ("trained length", 2 if trained_length is None else trained_length, numbers.Integral),
        ("trained base", 1.0 if trained_base is None else trained_base, numbers.Real),
        ("amplitude", amplitude, numbers.Real),
    ):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{name} must be a {'whole ' if kind is numbers.Integral else ''}number, got {value!r}")
    if scaling is not None and not isinstance(scaling, AnyScaling):
        raise InputError(f"scaling: {scaling!r} is neither a name, a rule nor a record")
    if not 0 < amplitude <= LARGEST_AMPLITUDE:
        raise InputError(
            f"amplitude must be a finite positive number of nats, at most {LARGEST_AMPLITUDE}, got {amplitude}: "
            "larger logits in float32 are more than 1 nat apart"
        )
    for name, length in (("target length", target_length), ("trained length", trained_length)):
        if length is not None and not 2 <= length <= LARGEST_TARGET:
            raise InputError(f"{name} must lie in 2 ... {LARGEST_TARGET}, got {length}")
    if trained_base is not None:
        config = _with_base(config, trained_base)
    for group in config.groups:
        if group.rotary is not None:
            check_pairs(group.rotary.dim // 2, min(target_length, group.window or target_length), origin=config.origin)
    length = declared_trained_length(config) if trained_length is None else trained_length
    plain = config.main_group.rule.name == "none"
    with named("bias"):
        asked_bias = deployed_bias(bias, config.main_group, trained_length=length, target_length=target_length)
    found = Extension(
        config=config,
        original_length=length if plain else config.original_length,
        trained_length=length,
        target_length=target_length,
        scaling="none",
        scaling_source="",
        compose=compose,
        amplitude=amplitude,
        bias=asked_bias,
    )
    with named("scaling"):
        wanted, source = _default(found) if scaling is None else _asked(found, scaling)
        found = dataclasses.replace(found, scaling=wanted, scaling_source=source)
        trained = found.trained(found.main)
        if trained is not None:
            found.rule(found.main)(trained)  # that it has a meaning on this model
    return found


def _with_base(config: PositionConfig, base: float) -> PositionConfig:
    if config.main_group.rotary is None:
        raise InputError(f"trained_base: {base:g} has no use: {config.origin} has no rotary embedding")
    with named("trained_base"):
        anew = rules.explicit_base(base=base).transform
    groups = [
        group if group.rotary is None or group.window else dataclasses.replace(group, rotary=anew(group.rotary))
        for group in config.groups
    ]
    return dataclasses.replace(config, groups=tuple(groups))


def _default(found: Extension) -> tuple[AnyScaling, str]:
    declared = found.main.rule
    if found.main.rotary is None:
        return "none", "nothing rotates in the layers that see the whole context"
    if found.reach(found.main) <= found.seen(found.main):
        return "none", "nothing is extended"
    if declared.name == "none":
        return "ntk", "by default: none is declared"
    if found.compose:
        raise InputError("compose: name the scaling that comes on top of the declared one, such as --scaling=linear")
    if isinstance(declared, LengthRule):
        return declared, "declared: it follows the length"
    if declared.name in _STRETCHED:
        covered = declared.hyperparameters["factor"]
        if covered >= found.factor:
            return "none", f"the declared {declared.name} covers it by its factor {covered:g}"
        stretched = {**declared.hyperparameters, "factor": found.factor}
        return getattr(rules, declared.name)(**stretched), f"by default: its factor was {covered:g}"
    return "ntk", "by default"


def _asked(found: Extension, scaling: AnyScaling) -> tuple[AnyScaling, str]:
    name = scaling if isinstance(scaling, str) else scaling.name
    if found.main.rotary is None and name != "none":
        raise InputError(f"{name} has nothing to scale: {found.config.origin} has no rotary embedding")
    takes_factor = name not in ("none", "no_rotation") and not name.startswith("explicit_base")
    if isinstance(scaling, str) and takes_factor and found.factor <= 1:
        scaling_rule(name, factor=1.0, original_length=found.length_before)  # refuses an unknown name
        return "none", f"nothing is extended, so {name} has nothing to do"
    return scaling, "asked for"
