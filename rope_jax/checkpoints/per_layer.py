"""Configs that write layers out one by one: `per_layer_config`, from a layer's number to the keys it has of its own."""

import re
from collections.abc import Mapping

from rope_jax.checkpoints.ledger import Section, looks_positional

PER_LAYER = "per_layer_config"
_READ = ("head_dim", "num_attention_heads")
# Of one layer: shapes of keys and values, which stand at the same positions whatever they are.
_NO_POSITIONS = ("num_key_value_heads", "v_head_dim", "intermediate_size")


def own_sections(top: Section, kinds: tuple[str, ...]) -> Mapping[str, Section]:
    """Returns, by layer type, what all layers of the type have of their own: `head_dim`, `num_attention_heads`.

    Args:
      top: the model's section.
      kinds: the type of every layer.

    Raises:
      ConfigError: if a layer is named twice or does not exist, a key about positions is not understood, or layers of
        one type differ.
    """
    outer = top.section(PER_LAYER)
    if outer is None:
        return {}
    by_layer: dict[int, Section] = {}
    for name in outer.content:
        if not re.fullmatch(r"[0-9]{1,6}", name) or int(name) >= len(kinds):
            raise outer.error(name, f"must be the number of a layer, 0 to {len(kinds) - 1}")
        if int(name) in by_layer:
            raise outer.error(name, "the layer is there twice")
        section = outer.section(name)
        if section is not None:
            by_layer[int(name)] = section
    first: dict[str, Section] = {}
    for layer, section in by_layer.items():
        for key in section.content:
            if key in _READ:
                top.ledger.account(section.prefix + key)
            elif key not in _NO_POSITIONS and looks_positional(key):
                raise section.error(key, "a layer's own value of this key is not understood")
        first.setdefault(kinds[layer], section)
    for layer, kind in enumerate(kinds):
        if kind not in first:
            continue
        own = by_layer.get(layer)
        for key in _READ:
            if first[kind].content.get(key) != (None if own is None else own.content.get(key)):
                raise outer.error(f"{layer:02}", f"layers of type {kind} differ in their own {key}")
    return {kind: section for kind, section in first.items() if any(section.holds(key) for key in _READ)}
