"""The tiny models of `logit_cases` as GGUF files, written as llama.cpp's converter writes them.

Source: convert_hf_to_gguf.py of the llama.cpp that llama-cpp-python 0.3.36 carries, for names, the order of rows in
queries and keys, the norms of Gemma and the factors of frequencies.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
_BLOCK = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"self_attn.{x}_norm.weight": f"attn_{x}_norm.weight" for x in "qk"},
    **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(
    path: pathlib.Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    kind: str = "F32",
    change: Any = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> pathlib.Path:
    """Writes a GGUF file of a Hugging Face model; `change(writer, prefix)` may add keys of its own."""
    model_type = config["model_type"]
    architecture = ARCHITECTURES.get(model_type, model_type)
    writer = gguf.GGUFWriter(path, architecture)
    heads = config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"] or heads
    head_dim = config["head_dim"] or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if architecture == "llama":
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(head_dim)
    if config.get("sliding_window") and config.get("use_sliding_window") is not False:
        writer.add_sliding_window(config["sliding_window"])
        if config.get("layer_types"):
            writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    for key, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if config.get(key):
            add(config[key])
    more = _rope(writer, config, head_dim)
    if change is not None:
        change(writer, architecture)
    for name, value in {**more, **(extra or {})}.items():
        writer.add_tensor(name, value.astype(np.float32))
    for name, value in tensors.items():
        stored = _as_stored(name, value, architecture, heads, kv_heads)
        if kind == "F32" or stored.ndim == 1:
            writer.add_tensor(stored_name(name, model_type), stored)
        else:
            wanted = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(stored_name(name, model_type), gguf.quantize(stored, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_name(name: str, model_type: str) -> str:
    """Returns the name of a Hugging Face tensor in a GGUF file."""
    if name in _TOP:
        return _TOP[name]
    _, _, layer, rest = name.split(".", 3)
    if rest == "post_attention_layernorm.weight" and model_type in ("gemma2", "gemma3_text"):
        return f"blk.{layer}.post_attention_norm.weight"
    stem, _, last = rest.rpartition(".")
    return f"blk.{layer}.{_BLOCK[rest] if rest in _BLOCK else f'{_BLOCK[stem]}.{last}'}"


def _as_stored(name: str, value: np.ndarray, architecture: str, heads: int, kv_heads: int) -> np.ndarray:
    if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
        count = heads if "q_proj" in name else kv_heads
        return np.ascontiguousarray(value.reshape(count, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape))
    if architecture.startswith("gemma") and "norm" in name:
        return value + np.float32(1)
    return value


def _rope(writer: gguf.GGUFWriter, config: Mapping[str, Any], head_dim: int) -> dict[str, np.ndarray]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {"rope_type": "default"}
    local = rope.get("sliding_attention")
    rope = rope.get("full_attention", rope)
    base = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    writer.add_rope_freq_base(base)
    if local is not None:
        writer.add_rope_freq_base_swa(local["rope_theta"])
    elif "rope_local_base_freq" in config:
        writer.add_rope_freq_base_swa(config["rope_local_base_freq"])
    kind, length = rope["rope_type"], rope.get("original_max_position_embeddings")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(length)
        for key, add in (
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if key in rope:
                add(rope[key])
    if kind == "llama3":
        theta = base ** (-np.arange(0, head_dim, 2) / head_dim)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        share = np.clip((length * theta / (2 * math.pi) - low) / (high - low), 0, 1)
        return {"rope_freqs.weight": 1 / ((1 - share) / rope["factor"] + share)}
    if kind == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(length)
        factor = rope["factor"]
        attention = rope.get("attention_factor", math.sqrt(1 + math.log(factor) / math.log(length)))
        writer.add_rope_scaling_attn_factors(attention)
        return {f"rope_factors_{x}.weight": np.array(rope[f"{x}_factor"]) for x in ("long", "short")}
    return {}
