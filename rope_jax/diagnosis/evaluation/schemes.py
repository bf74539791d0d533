"""Configurations as schemes of one shape, for one compiled program: every group of layers of a model at once."""

import dataclasses
from typing import Any

from rope_jax.biases import Bias
from rope_jax.checkpoints.extending import extension_rule, trained_rotary
from rope_jax.checkpoints.positions import LayerGroup, PositionConfig
from rope_jax.decoder import Schemes
from rope_jax.errors import InputError
from rope_jax.frequencies import Rotary
from rope_jax.length_rules import LengthRule, at_length
from rope_jax.phases import Phase
from rope_jax.rotation import Layout
from rope_jax.rules import Rule
from rope_jax.scheme import Retrofit, Scheme, build, scheme_of


@dataclasses.dataclass(frozen=True)
class SchemeMaker:
    """Makes the configurations of one model, and their schemes.

    Layers with a sliding window keep what the config declares, since they never see beyond the trained length; if
    every layer has one, all are changed.

    Attributes:
      positions: what the checkpoint's config says.
      layout: of the weights' rotary pairs.
      phase: "exact" or "float32".
      trained_length: `L`, tokens.
      target_length: `L'`, tokens; rules that depend on the length are taken at it.
      max_offset: offsets of the bias strip; the same in every configuration.
      compose: whether a scaling comes on top of a declared one, rather than in its place.
    """

    positions: PositionConfig
    layout: Layout
    phase: Phase
    trained_length: int
    target_length: int
    max_offset: int = 0
    compose: bool = False

    @property
    def factor(self) -> float:
        """`s = L'/L`."""
        return self.target_length / self.trained_length

    def rule(self, scaling: str | Rule | LengthRule) -> Rule:
        """Returns the rule of a name, or the rule itself, for this model's lengths; errors as in `extension_rule`."""
        return extension_rule(
            scaling, self.positions, trained=self.trained_length, target=self.target_length, compose=self.compose
        )

    def original(self) -> Retrofit:
        """Returns the model as it was trained.

        Raises:
          InputError: if nothing rotates in the layers that see the whole context.
        """
        rotary = trained_rotary(self.positions.main_group, length=self.target_length, compose=self.compose)
        if rotary is None:
            raise InputError(
                f"{self.positions.origin}: nothing rotates in the layers that see the whole context, so there is no "
                "scaling to judge"
            )
        return Retrofit(rotary)

    def scaled(self, retrofit: Retrofit) -> Rotary:
        """Returns the rotary embedding of a configuration in the layers that see the whole context."""
        return at_length(retrofit.rule, self.target_length)(retrofit.rotary)

    def __call__(self, retrofit: Retrofit) -> Schemes:
        """Returns the scheme of a configuration, one for each layer type where there are several.

        Raises:
          ScalingError: if the config's own rule leaves the configuration's rule without a meaning.
        """
        groups = self.positions.groups
        changed = [group for group in groups if group.window is None] or list(groups)
        by_type = {group.name: self._scheme(group, retrofit if group in changed else None) for group in groups}
        return next(iter(by_type.values())) if len(by_type) == 1 else by_type

    def _scheme(self, group: LayerGroup, retrofit: Retrofit | None) -> Scheme:
        rotary = trained_rotary(group, length=self.target_length, compose=self.compose)
        shape: dict[str, Any] = {
            "num_heads": group.num_heads,
            "head_dim": group.head_dim,
            "layout": self.layout,
            "phase": self.phase,
            "max_offset": self.max_offset,
        }
        if rotary is None or retrofit is None:
            return build(rotary, None if retrofit is None else retrofit.bias, **shape)
        return scheme_of(dataclasses.replace(retrofit, rotary=rotary), length=self.target_length, **shape)


def offsets_of(bias: Bias | None, target_length: int) -> int:
    """Returns how many offsets of a bias a table has to distinguish; none for a line, which needs no table."""
    if bias is None or hasattr(bias, "slopes"):
        return 0
    flat_from = getattr(bias, "flat_from", None)
    return target_length - 1 if flat_from is None else flat_from
