"""The arms of the factorial: every scaling and every bias as schemes of one shape, for one compiled program."""

import dataclasses
from collections.abc import Mapping

from rope_jax.biases import Bias
from rope_jax.checkpoints.positions import LayerGroup, PositionConfig
from rope_jax.decoder import Schemes
from rope_jax.errors import ScalingError
from rope_jax.frequencies import Rotary
from rope_jax.length_rules import at_length
from rope_jax.phases import Phase
from rope_jax.rotation import Layout
from rope_jax.rules import Rule
from rope_jax.scheme import Scheme, build


def declared_rotary(group: LayerGroup, rotary: Rotary, *, length: int) -> Rotary:
    """Returns `rotary`, the group's trained embedding, after the config's own rule on a row of `length` tokens."""
    return at_length(group.rule, length)(rotary)


@dataclasses.dataclass(frozen=True)
class Arms:
    """Builds the scheme of any cell of the factorial, all of one shape.

    Layers with a sliding window keep what the config declares, since they never see beyond the trained length; if
    every layer has one, all are changed.

    Attributes:
      positions: what the checkpoint's config says; its own rule, if any, is part of every arm.
      rules: the rule of each scaling arm.
      layout: of the weights' rotary pairs.
      phase: "exact" or "float32".
      length: tokens of a row, for a declared rule that depends on it.
      max_offset: offsets of the bias strip; the same in every arm.
    """

    positions: PositionConfig
    rules: Mapping[str, Rule]
    layout: Layout
    phase: Phase
    length: int
    max_offset: int

    def schemes(self, scaling_arm: str, bias: Bias | None) -> Schemes:
        """Returns the scheme of a cell, one for each layer type where there are several.

        Raises:
          ScalingError: if the config's own rule leaves the arm's rule without a meaning.
        """
        changed = [group for group in self.positions.groups if group.window is None] or list(self.positions.groups)
        by_type = {
            group.name: self._scheme(group, scaling_arm, bias)
            if group in changed
            else self._scheme(group, "none", None)
            for group in self.positions.groups
        }
        return next(iter(by_type.values())) if len(by_type) == 1 else by_type

    def meaningful(self) -> tuple[dict[str, Rule], dict[str, str]]:
        """Returns the rules that compose with the config's own, and why the others do not."""
        kept, refused = {}, {}
        for name, rule in self.rules.items():
            try:
                self.schemes(name, None)
                kept[name] = rule
            except ScalingError as error:
                refused[name] = str(error)
        return kept, refused

    def _scheme(self, group: LayerGroup, scaling_arm: str, bias: Bias | None) -> Scheme:
        rotary = group.rotary
        if rotary is not None:
            rotary = self.rules[scaling_arm](declared_rotary(group, rotary, length=self.length))
        return build(
            rotary,
            bias,
            num_heads=group.num_heads,
            head_dim=group.head_dim,
            layout=self.layout,
            phase=self.phase,
            max_offset=self.max_offset,
        )
