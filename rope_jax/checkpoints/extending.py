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
    rule = positions.main_group.rule
    plain = isinstance(rule, Rule) and rule.name == "none"
    return positions.original_length if plain else positions.declared_length


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
    return rotary if compose else dataclasses.replace(rotary, rules=())


def extension_rule(
    scaling: str | Rule | LengthRule,
    group: LayerGroup,
    *,
    original_length: int,
    trained: int,
    target: int,
    compose: bool = False,
) -> Rule:
    """Returns the rule that extends a group's *trained* rotary embedding to the target length.

    Args:
      scaling: a name of the registry, or a rule; "none" keeps what was trained.
      group: of layers.
      original_length: tokens before any extension; the factor of a replacing rule is `target / original_length`.
      trained: `L`, tokens; the factor of a composed rule is `target / trained`.
      target: `L'`, tokens.
      compose: whether it comes on top of a declared scaling, rather than in its place.

    Raises:
      InputError: if there is no such scaling.
      ScalingError: (the rule, when applied) if it has no meaning on top of the declared one.
    """
    declared = group.rule.name != "none"
    if scaling == "none" or not declared or compose:
        return at_length(scaling_rule(scaling, factor=target / trained, original_length=trained), target)
    unscaled = group.rotary
    assert unscaled is not None
    replacing = at_length(
        scaling_rule(scaling, factor=target / original_length, original_length=original_length), target
    )
    # Applied to the trained embedding, it goes back to the one before any scaling.
    return dataclasses.replace(replacing, transform=lambda rotary: replacing.transform(unscaled))
