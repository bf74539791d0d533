"""A decoder written as a Hugging Face Llama directory, which `load_checkpoint` and transformers read back."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save

from rope_jax.checkpoints import weights
from rope_jax.checkpoints.huggingface import published_name
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.errors import CheckpointError


def llama_config(model: Decoder, *, base: float, trained_length: int) -> dict[str, Any]:
    """Returns the `config.json` of a plain Llama decoder with one rotary embedding for all layers.

    Args:
      model: without windows, biases or norms of queries and keys.
      base: of the rotary embedding.
      trained_length: `L`, tokens.

    Raises:
      CheckpointError: if the decoder has a switch that a Llama config cannot say.
    """
    config = model.config
    plain = DecoderConfig(
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.num_layers,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.rms_norm_eps,
        config.tie_embeddings,
        layer_types=config.layer_types,
    )
    if config != plain:
        raise CheckpointError(
            "only plain Llama decoders are written: no windows, biases, query and key norms, norms after attention or "
            "MLP, scales or caps"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": trained_length,
        "rope_theta": base,
        "tie_word_embeddings": config.tie_embeddings,
    }


def save_llama(
    directory: str | Path,
    model: Decoder,
    config: Mapping[str, Any],
    *,
    dtype: str = "float32",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes `config.json` and `model.safetensors`; each appears only once it is whole.

    Args:
      directory: made if it is missing.
      model: the decoder.
      config: as from `llama_config`.
      dtype: of the stored weights, "float32" or "float16".
      metadata: text kept in the header of the weights, for provenance.

    Raises:
      CheckpointError: if a weight is not finite, or not in `dtype`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = nnx.state(model)
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    shapes = weights.published_shapes(state)
    tensors = {}
    for keys, leaf in leaves:
        path = weights.path_of(keys)
        with np.errstate(over="ignore"):
            value = np.asarray(leaf, dtype)
        weights.check_finite(value, path, directory)
        if path.endswith(".kernel"):
            outputs, inputs = shapes[path]
            value = value.reshape(inputs, outputs).T
        tensors[published_name(path, model.config)] = np.ascontiguousarray(value)
    _replace(directory / "model.safetensors", save(tensors, metadata={"format": "pt", **(metadata or {})}))
    _replace(directory / "config.json", (json.dumps(dict(config), indent=2) + "\n").encode())


def _replace(file: Path, content: bytes) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, file)
