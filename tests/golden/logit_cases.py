"""Tiny models of every model type and rope type, written as checkpoint directories, and how they are run."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from rope_jax.checkpoints.checkpoint import Checkpoint, schemes_of
from rope_jax.phases import Phase
from rope_jax.scheme import Scheme

L = 64  # trained length
TOKENS = np.random.RandomState(0).randint(0, 64, size=(1, 160)).astype(np.int32)
# Name of a run -> first position, tokens, and the tokens whose logits are recorded.
RUNS = {
    "short": (0, 48, (0, 20, 47)),
    "long": (0, 160, (63, 64, 159)),
    "far": (5000, 160, (64, 159)),
}

_BASE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": L,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**_BASE, "model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "mistral": {**_BASE, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
    "qwen2": {**_BASE, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    "qwen3": {**_BASE, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False},
}
_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": L}
_FACTORS = {
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
    "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0],
}
# Name -> rope parameters without the base, and the declared length.
ROPES: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({"rope_type": "default"}, L),
    "linear": ({"rope_type": "linear", "factor": 4.0}, L),
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, L),
    "yarn": (_YARN, 8 * L),
    "yarn_betas": ({**_YARN, "beta_fast": 2.0, "beta_slow": 0.1}, 8 * L),
    "yarn_untruncated": ({**_YARN, "truncate": False}, 8 * L),
    "yarn_attention_factor": ({**_YARN, "attention_factor": 0.8}, 8 * L),
    "yarn_mscale_pair": ({**_YARN, "mscale": 2.0, "mscale_all_dim": 0.5}, 8 * L),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": L,
        },
        8 * L,
    ),
    "longrope": (
        {"rope_type": "longrope", "factor": 8.0, "original_max_position_embeddings": L, **_FACTORS},
        8 * L,
    ),
    "longrope_attention_factor": (
        {
            "rope_type": "longrope",
            "factor": 8.0,
            "attention_factor": 1.3,
            "original_max_position_embeddings": L,
            **_FACTORS,
        },
        8 * L,
    ),
}


def new_schema(model: str, rope: str, base: float = 10000.0, **changes: Any) -> dict[str, Any]:
    """Returns a config.json of transformers 5: the base lies in `rope_parameters`."""
    parameters, length = ROPES[rope]
    rope_parameters = {**parameters, "rope_theta": base}
    return {**MODELS[model], "max_position_embeddings": length, "rope_parameters": rope_parameters, **changes}


def old_schema(model: str, rope: str, base: float = 10000.0, **changes: Any) -> dict[str, Any]:
    """Returns a config.json of transformers 4: `rope_theta` beside a `rope_scaling` that is null where nothing is."""
    parameters, length = ROPES[rope]
    scaling = None if rope == "default" else dict(parameters)
    config = {**MODELS[model], "max_position_embeddings": length, "rope_theta": base, "rope_scaling": scaling}
    config["torch_dtype"] = config.pop("dtype")
    return {**config, **changes}


_QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
CASES: dict[str, dict[str, Any]] = {
    **{f"{model}-{rope}": new_schema(model, rope) for model in MODELS for rope in ROPES},
    **{f"llama-{rope}-v4": old_schema("llama", rope, base=500.0) for rope in ROPES},
    "llama-biases": new_schema("llama", "yarn", attention_bias=True, mlp_bias=True),
    "llama-tied": new_schema("llama", "llama3", tie_word_embeddings=True),
    "llama-default-heads": new_schema("llama", "linear", head_dim=None, num_key_value_heads=None),
    "mistral-window": new_schema("mistral", "yarn", sliding_window=24),
    "qwen2-window": new_schema("qwen2", "yarn", **_QWEN_WINDOW),
    "qwen2-window-v4": old_schema("qwen2", "dynamic", **_QWEN_WINDOW),
    "qwen3-window": new_schema(
        "qwen3",
        "linear",
        use_sliding_window=True,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "qwen3-biases": new_schema("qwen3", "default", attention_bias=True),
}
_GEMMA: dict[str, Any] = {
    **_BASE,
    "num_hidden_layers": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
del _GEMMA["hidden_act"]
_LOCAL_GLOBAL = {"full_attention": {"rope_type": "default", "rope_theta": 1e5}}
_LOCAL_GLOBAL["sliding_attention"] = {"rope_type": "default", "rope_theta": 1e4}
GEMMAS: dict[str, dict[str, Any]] = {
    "gemma": {
        **_GEMMA,
        "model_type": "gemma",
        "architectures": ["GemmaForCausalLM"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "gemma2": {
        **_GEMMA,
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "sliding_window": 24,
        "query_pre_attn_scalar": 10,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "gemma3": {
        **_GEMMA,
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "sliding_window": 24,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": _LOCAL_GLOBAL,
    },
    "gemma3-linear": {
        **_GEMMA,
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "max_position_embeddings": 4 * L,
        "sliding_window": 24,
        "query_pre_attn_scalar": 10,
        "final_logit_softcapping": 4.0,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_theta": 1e5,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns every tensor of a config's model, by the published names."""
    D, F, V, H = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"))
    K, d = config["num_key_value_heads"] or H, config["head_dim"] or D // H
    qkv_bias = config.get("attention_bias") or config["model_type"] == "qwen2"
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (V, D)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found |= {f"{at}input_layernorm.weight": (D,), f"{at}post_attention_layernorm.weight": (D,)}
        for name, rows in (("q", H * d), ("k", K * d), ("v", K * d)):
            found[f"{at}self_attn.{name}_proj.weight"] = (rows, D)
            if qkv_bias:
                found[f"{at}self_attn.{name}_proj.bias"] = (rows,)
        found[f"{at}self_attn.o_proj.weight"] = (D, H * d)
        if config.get("attention_bias"):
            found[f"{at}self_attn.o_proj.bias"] = (D,)
        if config["model_type"] in ("gemma2", "gemma3_text"):
            found |= {f"{at}{name}_feedforward_layernorm.weight": (D,) for name in ("pre", "post")}
        if config["model_type"] in ("qwen3", "gemma3_text"):
            found |= {f"{at}self_attn.{name}_norm.weight": (d,) for name in "qk"}
        for name, shape in (("gate", (F, D)), ("up", (F, D)), ("down", (D, F))):
            found[f"{at}mlp.{name}_proj.weight"] = shape
            if config.get("mlp_bias"):
                found[f"{at}mlp.{name}_proj.bias"] = shape[:1]
    return found


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Returns weights under which positions matter: attention is sharp, and no row is like another."""
    stream = np.random.RandomState(seed)
    tensors = {}
    for name, shape in sorted(shapes(config).items()):
        value = stream.standard_normal(shape)
        if "norm" in name:
            value = 0.2 * value + (not config["model_type"].startswith("gemma"))
        elif name.endswith(".bias"):
            value = 0.3 * value
        elif "q_proj" in name or "k_proj" in name:
            value = 1.5 * value / np.sqrt(shape[-1])
        elif "embed_tokens" not in name or config["tie_word_embeddings"]:
            value = value / np.sqrt(shape[-1])
        tensors[name] = value.astype(np.float32)
    return tensors


def write(directory: pathlib.Path, config: dict[str, Any], tensors: dict[str, np.ndarray] | None = None) -> None:
    """Writes a checkpoint directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    tensors = random_weights(config) if tensors is None else tensors
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph, state, tokens, positions, scheme):
    return nnx.merge(graph, state)(tokens, scheme, positions=positions)


def our_logits(checkpoint: Checkpoint, run: str, *, phase: Phase, change: Callable[[Scheme], Scheme] | None = None):
    """Returns this library's logits for a run, float32 `[tokens, vocabulary]`; `change` is applied to each scheme.

    Every run is of all tokens, so that all share one compiled program; a shorter one is cut, which a causal model
    cannot tell, as long as the scheme is that of the short length.
    """
    first, count, _ = RUNS[run]
    scheme = schemes_of(checkpoint, phase=phase, length=first + count)
    if change is not None:
        scheme = change(scheme) if isinstance(scheme, Scheme) else {name: change(one) for name, one in scheme.items()}
    graph, state = nnx.split(checkpoint.model)
    places = jnp.arange(first, first + TOKENS.shape[1], dtype=jnp.int32)[None]
    return np.asarray(_forward(graph, state, jnp.asarray(TOKENS), places, scheme))[0, :count]
