"""Which configs it is known of how others read them: all else is refused by name rather than guessed."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from rope_jax.checkpoints.peer_records import Keys
from rope_jax.checkpoints.peers import MODEL_TYPES
from rope_jax.checkpoints.positions import PositionConfig
from rope_jax.checkpoints.rope_types import ORIGINAL
from rope_jax.errors import UnsupportedError

Refuse = Callable[[str], NoReturn]

_KEYS = ("partial_rotary_factor", "mrope_section", "rope_dim", "alpha", "attn_factor", "max_trained_positions")
_KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_WITH_ORIGINAL, _WITH_FACTOR = ("llama3", "yarn", "longrope"), ("linear", "dynamic", "yarn", "llama3")
_OWN_DEFAULT = ("qwen3", "gemma", "gemma2", "gemma3_text")  # head_dim is not derived
_DERIVED = ("qwen2", "mixtral")  # by some, whatever head_dim says
_LOCAL = "gemma3_text"  # the one with a base for each layer type
_FULL = "full_attention"
_GEMMA_PERIOD = 6  # every sixth layer is full


def check_config(content: Mapping[str, Any], positions: PositionConfig) -> None:
    """Raises `UnsupportedError` unless the readers' code for the config of a text model was looked at."""
    kind, refuse = positions.model_type, _refuse(positions)
    if kind not in MODEL_TYPES:
        refuse(f"model_type {kind}: how others read it was not looked at; there are: {', '.join(MODEL_TYPES)}")
    if not isinstance(content.get("max_position_embeddings"), int):
        refuse("max_position_embeddings is not stated, and each reader has a default of its own")
    for key in ("rope_theta", "rope_local_base_freq", ORIGINAL):
        if key in content and content[key] is None:
            refuse(f"{key} is null, which readers take in ways of their own")
    if kind in _OWN_DEFAULT and content.get("head_dim") is None:
        refuse("head_dim is not stated, and each reader has a default of its own")
    if kind in _DERIVED and "head_dim" in content:
        derived = content["head_dim"], content.get("num_attention_heads"), content.get("hidden_size")
        if not all(isinstance(x, int) for x in derived) or derived[0] * derived[1] != derived[2]:
            refuse(f"head_dim {content['head_dim']} is not hidden_size / num_attention_heads, which some readers take")
    for name in ("rope_scaling", "rope_parameters"):
        section = content.get(name)
        if section is None:
            continue
        if not isinstance(section, Mapping):
            refuse(f"{name} is {section!r:.40}, no section of keys")
        nested = any(isinstance(value, Mapping) for value in section.values())
        if nested != (name == "rope_parameters" and kind == _LOCAL):
            refuse(f"{name}: a section for each layer type, or one for all, is read otherwise by some")
        for inner in section.values() if nested else (section,):
            _check_section(inner, name, kind, refuse)
    if kind == _LOCAL:
        _check_layers(content, positions, refuse)


def _check_section(section: Any, name: str, kind: str, refuse: Refuse) -> None:
    if not isinstance(section, Mapping) or not section:
        refuse(f"{name}: a section that is null or empty is an error to some")
    for key, value in section.items():
        if value is None:
            refuse(f"{name}.{key} is null, which readers take in ways of their own")
        if key in _KEYS:
            refuse(f"{name}.{key} is not covered by --as")
    if "su" in (section.get("type"), section.get("rope_type")):
        refuse(f"{name}: rope type su is translated by some and an error to others; write longrope")
    if kind == _LOCAL and "rope_type" not in section:
        refuse(f"{name}: without rope_type, readers of gemma3 take it in ways of their own")


def _check_layers(content: Mapping[str, Any], positions: PositionConfig, refuse: Refuse) -> None:
    period = content.get("sliding_window_pattern", _GEMMA_PERIOD)
    for group in positions.groups:
        whole = [(layer + 1) % period == 0 for layer in group.layers]
        if not all(whole) if group.name == _FULL else any(whole):
            refuse(f"layer_types: mlx-lm takes every layer {period} for a full one, whatever they say")


def check_keys(keys: Keys, content: Mapping[str, Any], positions: PositionConfig, layer_type: str) -> None:
    """Raises `UnsupportedError` unless all readers find the same keys of one layer type."""
    kind, refuse = keys["rope_type"], _refuse(positions)
    for key in _KEYS:
        if content.get(key) is not None:
            refuse(f"{key} is not covered by --as")
    kinds = _KINDS if positions.model_type != _LOCAL else ("default", "linear") if layer_type == _FULL else ("default",)
    if kind not in kinds:
        refuse(f"rope type {kind} of {layer_type} layers of {positions.model_type} is not covered by --as")
    if kind in _WITH_FACTOR and keys.get("factor") is None:
        refuse(f"rope type {kind} without a factor is not covered by --as")
    inner, outer = keys.get(ORIGINAL), content.get(ORIGINAL)
    if outer is not None and kind in _WITH_ORIGINAL and inner != outer:
        refuse(f"{ORIGINAL} beside the rope section, and not in it as well, is read by some only")
    if kind in ("linear", "dynamic") and (inner, outer) != (None, None):
        refuse(f"{ORIGINAL} is not read for rope type {kind} by others; without it there would be no doubt")
    for key in ("mscale", "mscale_all_dim"):
        if keys.get(key) == 0:
            refuse(f"{key} 0 counts as given for some, and not for others")


def _refuse(positions: PositionConfig) -> Refuse:
    def refuse(why: str) -> NoReturn:
        raise UnsupportedError(f"{positions.origin}: {why}")

    return refuse
