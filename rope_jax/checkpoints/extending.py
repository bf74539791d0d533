"""How long a model was trained to read, and what a new scaling does to one that its config declares.

For every command the same: up to the length of a declared scaling counts as trained; a new scaling *replaces* a
declared one, with its factor taken against the length before any extension, unless composition is asked for.
"""

import dataclasses

from rope_jax.checkpoints.positions import LayerGroup, PositionConfig
from rope_jax.frequencies import Rotary
from rope_jax.length_rules import LengthRule, at_length
from rope_jax.rules import Rule
from rope_jax.scaling.registry import scaling_rule


def trained_length(positions: PositionConfig) -> int:
    """Returns `L`, tokens: what weights were trained, or at least tuned, to read, with the scaling they ship with."""
    return positions.declared_length if _declares(positions) else positions.original_length


def trained_rotary(group: LayerGroup, *, length: int, compose: bool = False) -> Rotary | None:
    """Returns the rotary embedding that a group's weights were trained with: after the config's own rule.

    Args:
      group: of layers.
      length: tokens, for a declared rule that depends on it.
      compose: whether rules are to come on top of the declared one, so that they must have a meaning there; else its
        history is forgotten, and any rule of `extension_rule` may follow.
    """
    if group.rotary is None:
        return None
    rotary = at_length(group.rule, length)(group.rotary)
    if compose or group.rule.name == "none":
        return rotary
    return dataclasses.replace(rotary, rules=(), unscaled=group.rotary)


def extension_rule(
    scaling: str | Rule | LengthRule,
    positions: PositionConfig,
    *,
    trained: int,
    target: int,
    compose: bool = False,
) -> Rule:
    """Returns the rule that extends a *trained* rotary embedding (`trained_rotary`) to the target length.

    Args:
      scaling: a name of the registry, or a rule; "none" keeps what was trained.
      positions: of the model; where its config declares a scaling, the rule goes back to what was there before it, and
        its factor is `target / positions.original_length`.
      trained: `L`, tokens; without a declared scaling, or composed with it, the factor is `target / trained`.
      target: `L'`, tokens.
      compose: whether it comes on top of a declared scaling, rather than in its place.

    Raises:
      InputError: if there is no such scaling.
      ScalingError: (the rule, when applied) if it has no meaning on top of the declared one.
    """
    if scaling == "none" or compose or not _declares(positions):
        return at_length(scaling_rule(scaling, factor=target / trained, original_length=trained), target)
    original = positions.original_length
    rule = at_length(scaling_rule(scaling, factor=target / original, original_length=original), target)
    if rule.name == "none":
        return rule

    def replacing(rotary: Rotary) -> Rotary:
        return rule.transform(rotary if rotary.unscaled is None else rotary.unscaled)

    return dataclasses.replace(rule, transform=replacing)


def _declares(positions: PositionConfig) -> bool:
    """Returns whether the layers that see the whole context are scaled by the config itself."""
    rule = positions.main_group.rule
    return not (isinstance(rule, Rule) and rule.name == "none")
