"""Hugging Face configs of the decoders that load: every key understood, and turned into shapes and switches."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rope_jax.checkpoints import strict_json, weights
from rope_jax.checkpoints.mechanisms import OWN_CODE, mechanism_of
from rope_jax.checkpoints.model_types import SLIDING
from rope_jax.checkpoints.positions import LayerGroup, PositionConfig
from rope_jax.decoder import Activation, DecoderConfig
from rope_jax.errors import ConfigError, UnsupportedError

# Keys that shape the forward pass, by what reads them: `decoder_config` and `positions_of`.
_SHAPES = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "hidden_act",
    "tie_word_embeddings",
}
_POSITIONS = {
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
}
_WINDOWS = {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
_GEMMA = {"attention_bias", "hidden_activation"}
_GEMMA_WINDOWS = {"sliding_window", "layer_types", "sliding_window_pattern", "_sliding_window_pattern"}
_CAPS = {"query_pre_attn_scalar", "final_logit_softcapping"}
GELU = "gelu_pytorch_tanh"  # GELU in its tanh form, as transformers names it
_UNDERSTOOD = {
    "llama": _SHAPES | _POSITIONS | {"attention_bias", "mlp_bias"},
    "mistral": _SHAPES | _POSITIONS | {"sliding_window"},
    "qwen2": _SHAPES | _POSITIONS | _WINDOWS,
    "qwen3": _SHAPES | _POSITIONS | _WINDOWS | {"attention_bias"},
    "gemma": _SHAPES | _POSITIONS | _GEMMA,
    "gemma2": _SHAPES | _POSITIONS | _GEMMA | _GEMMA_WINDOWS | _CAPS | {"attn_logit_softcapping"},
    "gemma3_text": _SHAPES | _POSITIONS | _GEMMA | _GEMMA_WINDOWS | _CAPS | {"rope_local_base_freq"},
}
# What the published classes take where the config is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {"hidden_activation": GELU, "tie_word_embeddings": True, "head_dim": 256},
    "gemma2": {
        "hidden_activation": GELU,
        "tie_word_embeddings": True,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "hidden_activation": GELU,
        "tie_word_embeddings": True,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
    },
}
# Keys that change nothing in a forward pass, whatever their value.
_NO_EFFECT = {
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",  # checked by `check_keys`
    "attention_dropout",  # training only
    "bos_token_id",
    "dtype",  # each tensor keeps its own
    "eos_token_id",
    "initializer_range",
    "is_llama_config",
    "max_sequence_length",
    "model_type",
    "pad_token_id",
    "pretraining_tp",  # splits matrix products; the same sums
    "torch_dtype",
    "transformers_version",
    "unk_token_id",
    "use_cache",
}
# Keys that are understood at one value only, the one that changes nothing.
_ONLY: dict[str, tuple] = {
    "attention_bias": (False,),
    "attn_logit_softcapping": (None,),
    "mlp_bias": (False,),
    "quantization_config": (None,),
    "sliding_window": (None,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
    "use_bidirectional_attention": (False, None),
}


def check_keys(raw: Mapping[str, Any], file: Path) -> str:
    """Returns the model type, once every key of the config is known to be understood."""
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError(f"{file}: model_type must be given as text, got {strict_json.show(model_type)}")
    if model_type not in _UNDERSTOOD:
        supported = ", ".join(_UNDERSTOOD)
        raise UnsupportedError(f"{file}: model_type {model_type!r} has no decoder here; {supported} have")
    architectures = raw.get("architectures")
    if architectures and "ForCausalLM" not in str(architectures):
        raise UnsupportedError(f"{file}: architectures {strict_json.show(architectures)} are no causal language model")
    for key, value in raw.items():
        mechanism = mechanism_of(key, top=True)
        if mechanism is not None and not mechanism.off(value):
            raise UnsupportedError(f"{file}: {key}: {mechanism.says}, got {strict_json.show(value)}")
        if mechanism is not None or key == OWN_CODE:  # code of its own is a finding, where positions are read
            continue
        if key in _UNDERSTOOD[model_type] or key in _NO_EFFECT:
            continue
        if key not in _ONLY:
            raise ConfigError(f"{file}: key {key!r} is not understood for model_type {model_type!r}")
        if not any(value is allowed for allowed in _ONLY[key]):
            raise UnsupportedError(f"{file}: {key} {strict_json.show(value)} is not supported in a {model_type} model")
    _activation(raw, model_type, file)
    return model_type


def centred_norms(model_type: str) -> bool:
    """Returns whether the published code multiplies by 1 + weight where its RMS norms are applied."""
    return model_type.startswith("gemma")


def _activation(raw: Mapping[str, Any], model_type: str, file: Path) -> Activation:
    """Returns the MLP's activation, as the published code of the model type reads it."""
    # Gemma 1 reads `hidden_act` where there is no `hidden_activation`, and means the tanh form by "gelu" too.
    gemma = centred_norms(model_type)
    key = "hidden_activation" if gemma and raw.get("hidden_activation") is not None else "hidden_act"
    stated = raw.get(key)
    if gemma:
        if key == "hidden_act" and (model_type != "gemma" or stated is None):
            stated = GELU
        allowed = (GELU, "gelu") if key == "hidden_act" else (GELU,)
        if stated not in allowed:
            raise UnsupportedError(f"{file}: {key} {strict_json.show(stated)} is not supported, only {GELU!r}")
        return "gelu_tanh"
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedError(f"{file}: hidden_act {strict_json.show(stated)} is not supported, only 'silu'")
    return "silu"


def _whole(raw: Mapping[str, Any], key: str, file: Path, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        if default is None:
            raise ConfigError(f"{file}: {key} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ConfigError(f"{file}: {key} must be a positive whole number below 2^31, got {strict_json.show(value)}")
    return value


def _positive(raw: Mapping[str, Any], key: str, file: Path) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ConfigError(f"{file}: {key} must be a number above 0, below 1e9, got {strict_json.show(value)}")
    return float(value)


def _switch(raw: Mapping[str, Any], key: str, file: Path) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{file}: {key} must be true or false, got {strict_json.show(value)}")
    return value


def _one_layer(raw: Mapping[str, Any], model_type: str, file: Path) -> DecoderConfig:
    """Returns the decoder's config cut to one layer: its size says how large the whole is, at no cost."""
    raw = {**_DEFAULTS.get(model_type, {}), **raw}
    heads = _whole(raw, "num_attention_heads", file)
    hidden = _whole(raw, "hidden_size", file)
    # Only Llama's config has as many key heads as query heads by default; elsewhere a default would be a guess.
    kv_heads = _whole(raw, "num_key_value_heads", file, heads if model_type == "llama" else None)
    if heads % kv_heads:
        raise ConfigError(
            f"{file}: num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads})"
        )
    if raw.get("head_dim") is None and model_type == "qwen3":
        raise ConfigError(f"{file}: head_dim is missing, and is not hidden_size / num_attention_heads in qwen3")
    if raw.get("head_dim") is None and hidden % heads:
        raise ConfigError(f"{file}: hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads})")
    head_dim = _whole(raw, "head_dim", file, hidden // heads)
    if head_dim % 2:
        raise ConfigError(f"{file}: head_dim ({head_dim}) is odd: its dimensions do not pair")
    eps = raw.get("rms_norm_eps")
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not (math.isfinite(eps) and eps >= 0):
        raise ConfigError(f"{file}: rms_norm_eps must be a finite number, 0 or more, got {strict_json.show(eps)}")
    biased = _switch(raw, "attention_bias", file)
    gemma = centred_norms(model_type)
    scalar = _positive(raw, "query_pre_attn_scalar", file)
    return DecoderConfig(
        vocab_size=_whole(raw, "vocab_size", file),
        hidden_size=hidden,
        intermediate_size=_whole(raw, "intermediate_size", file),
        num_layers=1,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(eps),
        tie_embeddings=_switch(raw, "tie_word_embeddings", file),
        qkv_bias=biased or model_type == "qwen2",
        output_bias=biased,
        mlp_bias=_switch(raw, "mlp_bias", file),
        qk_norm=model_type in ("qwen3", "gemma3_text"),
        activation=_activation(raw, model_type, file),
        post_norms=model_type in ("gemma2", "gemma3_text"),
        embedding_scale=math.sqrt(hidden) if gemma else 1.0,
        attention_scale=None if scalar is None else scalar**-0.5,
        attention_soft_cap=_positive(raw, "attn_logit_softcapping", file),
        output_soft_cap=_positive(raw, "final_logit_softcapping", file),
    )


def check_config_fits(raw: Mapping[str, Any], model_type: str, file: Path, max_bytes: int | None) -> None:
    """Raises `CheckpointError` if weights of this size cannot fit, before any file of them is opened."""
    # Two bytes a weight is the least that is read; the files' own headers are added up later.
    count = weights.parameters_of(_one_layer(raw, model_type, file), _whole(raw, "num_hidden_layers", file))
    weights.check_fits(2 * count, max_bytes, str(file))


def decoder_config(raw: Mapping[str, Any], model_type: str, positions: PositionConfig, file: Path) -> DecoderConfig:
    """Returns the decoder's shapes and switches, layer by layer.

    Raises:
      ConfigError: if a value is missing or impossible, or the layers disagree with each other.
      UnsupportedError: if only a part of each head turns.
    """
    one = _one_layer(raw, model_type, file)
    layers = _whole(raw, "num_hidden_layers", file)
    of_layer: dict[int, LayerGroup] = {}
    for group in positions.groups:
        if (group.num_heads, group.head_dim) != (one.num_heads, one.head_dim):
            raise ConfigError(f"{file}: layers of type {group.name!r} have other heads than the model")
        if group.rotary is None or group.rotary.dim != one.head_dim:
            raise UnsupportedError(f"{file}: partial_rotary_factor: every dimension of a {model_type} head turns")
        of_layer.update(dict.fromkeys(group.layers, group))
    if sorted(of_layer) != list(range(layers)):
        raise ConfigError(f"{file}: layer_types names {len(of_layer)} layers, num_hidden_layers is {layers}")
    return dataclasses.replace(
        one,
        num_layers=layers,
        layer_types=tuple(of_layer[layer].name for layer in range(layers)),
        windows=_windows(raw, model_type, positions, layers, file),
    )


def _windows(
    raw: Mapping[str, Any], model_type: str, positions: PositionConfig, layers: int, file: Path
) -> tuple[int | None, ...]:
    """Returns the window of each layer, also one wider than the declared length: the model may be run beyond it."""
    stated = None if raw.get("sliding_window", 0) is None else _whole(raw, "sliding_window", file, 4096)
    if model_type in ("llama", "gemma"):
        return (None,) * layers
    if centred_norms(model_type):
        sliding = {layer for group in positions.groups if group.name == SLIDING for layer in group.layers}
        return tuple(stated if layer in sliding else None for layer in range(layers))
    if model_type == "mistral":
        return (stated,) * layers
    window = stated if _switch(raw, "use_sliding_window", file) else None
    types = raw.get("layer_types")
    if types is None:
        stated_first = raw.get("max_window_layers")  # null means the default, as where positions are read
        first = 28 if stated_first is None else stated_first
        return tuple(window if layer >= first else None for layer in range(layers))
    if window is None and SLIDING in types:
        raise ConfigError(f"{file}: layer_types has {SLIDING!r}, but sliding_window is off")
    return tuple(window if kind == SLIDING else None for kind in types)
