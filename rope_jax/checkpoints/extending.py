"""How long a model was trained to read, and what a new scaling does to one that its config declares.

For every command the same: up to the length of a declared scaling counts as trained; a new scaling *replaces* a
declared one, with its factor taken against the length before any extension, unless composition is asked for. Which
pairs rotate at all (`proportional`) is no scaling, and stays.
"""

import dataclasses

from rope_jax.checkpoints.positions import LayerGroup, PositionConfig
from rope_jax.frequencies import Rotary
from rope_jax.length_rules import LengthRule, at_length
from rope_jax.rules import Rule
from rope_jax.scaling import proportional
from rope_jax.scaling.registry import scaling_rule


def trained_length(positions: PositionConfig) -> int:
    """Returns `L`, tokens: what weights were trained, or at least tuned, to read, with the scaling they ship with."""
    return positions.declared_length if declares_scaling(positions) else positions.original_length


def trained_rotary(group: LayerGroup, *, length: int, compose: bool = False) -> Rotary | None:
    """Returns the rotary embedding that a group's weights were trained with: after the config's own rule.

    Args:
      group: of layers.
      length: tokens, for a declared rule that depends on it.
      compose: whether rules are to come on top of the declared one, so that they must have a meaning there; else its
        history is forgotten, and any rule of `extension_rule` may follow.
    """
    rotary = group.scaled_at(length)
    if rotary is None or compose or not _scales(group.rule):
        return rotary
    return dataclasses.replace(rotary, rules=(), stages=(), unscaled=_unscaled(group))


def length_before(positions: PositionConfig, *, trained: int, compose: bool = False) -> int:
    """Returns the tokens that the factor of a new scaling is taken against.

    Those before a declared scaling that it replaces; without one, or composed with it, the trained length.

    Args:
      positions: of the model.
      trained: `L`, tokens.
      compose: whether it comes on top of a declared scaling, rather than in its place.
    """
    return trained if compose or not declares_scaling(positions) else positions.original_length


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
    before = length_before(positions, trained=trained, compose=compose)
    rule = at_length(scaling_rule(scaling, factor=target / before, original_length=before), target)
    if rule.name == "none" or compose or not declares_scaling(positions):
        return rule

    def replacing(rotary: Rotary) -> Rotary:
        return rule.transform(rotary if rotary.unscaled is None else rotary.unscaled)

    return dataclasses.replace(rule, transform=replacing)


def declares_scaling(positions: PositionConfig) -> bool:
    """Returns whether the layers that see the whole context are scaled by the config itself."""
    return _scales(positions.main_group.rule)


def _scales(rule: Rule | LengthRule) -> bool:
    if isinstance(rule, Rule) and rule.name == "proportional":
        return rule.hyperparameters["factor"] != 1
    return rule.name != "none"


def _unscaled(group: LayerGroup) -> Rotary:
    """Returns the rotary embedding before a declared scaling, with the pairs that rotate."""
    assert group.rotary is not None
    if isinstance(group.rule, Rule) and group.rule.name == "proportional":
        return proportional(proportion=group.rule.hyperparameters["proportion"])(group.rotary)
    return group.rotary
