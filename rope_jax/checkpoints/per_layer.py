"""What single layers have of their own: `per_layer_config`, and lists with an entry a layer."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rope_jax.checkpoints.ledger import Check, Section, Wrong, integer, list_of, number
from rope_jax.checkpoints.positional_keys import looks_positional
from rope_jax.checkpoints.type_record import SLIDING

__all__ = ["NO_OWN", "PER_LAYER", "Own", "own_of_layers"]

PER_LAYER = "per_layer_config"
_WIDTH = integer(1, 1_000_000)
_READ: Mapping[str, Check] = {
    "head_dim": _WIDTH,
    "num_attention_heads": integer(1, 100_000),
    "qk_nope_head_dim": _WIDTH,
    "qk_rope_head_dim": _WIDTH,
}
# Of one layer: shapes of keys and values, which stand at the same positions whatever they are.
_NO_POSITIONS = ("num_key_value_heads", "v_head_dim", "intermediate_size", "kv_lora_rank", "q_lora_rank")
# Lists with an entry a layer, and the key that an entry stands for. A base of 0 is no rotation.
_LISTS: Mapping[str, tuple[str, Check]] = {
    "layer_rope_theta": ("rope_theta", number(0.0, 1e15)),
    "rope_theta": ("rope_theta", number(0.0, 1e15)),
    "partial_rotary_factors": ("partial_rotary_factor", number(0.0, 1.0)),
    "partial_rotary_factor": ("partial_rotary_factor", number(0.0, 1.0)),
    "num_attention_heads_per_layer": ("num_attention_heads", integer(1, 100_000)),
    "head_dim": ("head_dim", _WIDTH),
}
_OTHER_SETTING = "attention_other_setting"


@dataclasses.dataclass(frozen=True)
class Own:
    """What one layer has of its own.

    Attributes:
      values: by key, in order of the key.
      sources: by key, the path in the config. Not compared: layers with the same values are alike.
    """

    values: tuple[tuple[str, Any], ...] = ()
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    def get(self, key: str) -> Any:
        """Returns the layer's own value, or None."""
        return dict(self.values).get(key)


NO_OWN = Own()


def own_of_layers(top: Section, kinds: tuple[str, ...]) -> tuple[Own, ...]:
    """Returns what every layer has of its own: heads, their shape, base, share of the head that turns.

    Args:
      top: the model's section.
      kinds: the type of every layer.

    Raises:
      ConfigError: if a layer is named twice or does not exist, a key about positions is not understood, a list has the
        wrong length, or two places disagree.
    """
    values: list[dict[str, tuple[Any, str]]] = [{} for _ in kinds]

    def put(layer: int, key: str, value: Any, path: str) -> None:
        before = values[layer].get(key)
        if before is not None and before[0] != value:
            raise top.ledger.error(path, f"contradicts {before[1]} in layer {layer}")
        values[layer].setdefault(key, (value, path))

    _from_sections(top, len(kinds), put)
    for name, (key, check) in _LISTS.items():
        if isinstance(top.content.get(name), (list, tuple)):
            listed = top.need(name, check=list_of(check, _length(top.content[name], top, len(kinds))))
            top.ledger.void(name, "every layer has its own")
            for layer, value in enumerate(listed[: len(kinds)]):
                put(layer, key, value, top.prefix + name)
    other = top.section(_OTHER_SETTING)
    if other is not None:
        other.ignore("attention_type", f"these are the {SLIDING} layers")
        other.ignore("num_attention_groups", "a shape of keys or values, not their positions")
        for key in ("num_attention_heads", "head_dim"):
            value = other.read(key, check=_READ[key], name=f"{_OTHER_SETTING}.{key}")
            for layer, kind in enumerate(kinds):
                if value is not None and kind == SLIDING:
                    put(layer, key, value, other.prefix + key)
    return tuple(_own(own) if own else NO_OWN for own in values)


def _own(found: Mapping[str, tuple[Any, str]]) -> Own:
    values = tuple(sorted((key, value) for key, (value, _) in found.items()))
    return Own(values, {key: path for key, (_, path) in found.items()})


def _length(entries: Sequence[Any], top: Section, layers: int) -> int:
    """Returns how long a list with an entry a layer is, layers that draft at its end among them."""
    drafts = top.content.get("num_nextn_predict_layers")
    extra = drafts if isinstance(drafts, int) and not isinstance(drafts, bool) and 0 < drafts < 100 else 0
    return layers + extra if extra and len(entries) == layers + extra else layers


def _from_sections(top: Section, layers: int, put: Any) -> None:
    outer = top.section(PER_LAYER)
    if outer is None:
        return
    seen: set[int] = set()
    for name in outer.content:
        if not re.fullmatch(r"[0-9]{1,6}", name) or int(name) >= layers:
            raise outer.error(name, f"must be the number of a layer, 0 to {layers - 1}")
        if int(name) in seen:
            raise outer.error(name, "the layer is there twice")
        seen.add(int(name))
        section = outer.section(name)
        for key in () if section is None else section.content:
            assert section is not None
            if key in _READ:
                top.ledger.account(section.prefix + key)
                if section.holds(key):
                    try:
                        put(int(name), key, _READ[key](section.content[key]), section.prefix + key)
                    except Wrong as wrong:
                        raise section.error(key, str(wrong)) from None
            elif key not in _NO_POSITIONS and looks_positional(key):
                raise section.error(key, "a layer's own value of this key is not understood")
