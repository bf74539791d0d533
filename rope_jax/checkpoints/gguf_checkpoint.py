"""GGUF files of the decoders that load: one file is a whole checkpoint."""

import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from rope_jax.checkpoints import decoder_keys, llama2c, weights
from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.checkpoints.gguf_file import GgufFile, read_gguf
from rope_jax.checkpoints.gguf_layouts import ARCHITECTURES, Architecture, pair_layout
from rope_jax.checkpoints.gguf_metadata import Translation, gguf_positions, translate
from rope_jax.checkpoints.gguf_tensors import read_tensor, stored_dtype, unpermuted
from rope_jax.checkpoints.runnable import check_runs
from rope_jax.checkpoints.strict_json import show
from rope_jax.checkpoints.weights import Shape
from rope_jax.errors import CheckpointError, UnsupportedError
from rope_jax.regular_files import shown_path

__all__ = ["load", "stored_name"]

_KINDS = (("kernel", "weight"), ("bias", "bias"))
_NAMES = {  # ours -> theirs, apart from the layer's number; the `gguf` package's `TENSOR_NAMES`
    "embedding": "token_embd.weight",
    "unembedding": "output.weight",
    "norm.weight": "output_norm.weight",
    "attention_norm.weight": "attn_norm.weight",
    "attention_post_norm.weight": "post_attention_norm.weight",
    "mlp_norm.weight": "ffn_norm.weight",
    "mlp_post_norm.weight": "post_ffw_norm.weight",
    **{f"attention.{x}.{ours}": f"attn_{x}.{theirs}" for x in "qkv" for ours, theirs in _KINDS},
    **{f"attention.o.{ours}": f"attn_output.{theirs}" for ours, theirs in _KINDS},
    **{f"attention.{x}_norm.weight": f"attn_{x}_norm.weight" for x in "qk"},
    **{f"mlp.{x}.{ours}": f"ffn_{x}.{theirs}" for x in ("gate", "up", "down") for ours, theirs in _KINDS},
}
# Read with the metadata, where the architecture has them.
_FREQUENCIES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def load(file: str | Path, *, max_bytes: int | None = None, dtype: str = "float32") -> Checkpoint:
    """Returns the model in a GGUF file, read tensor by tensor.

    Queries and keys have half-split pairs: the rows of a Llama, which its converter reorders, are put back. Norms are
    taken as stored: a Gemma's hold 1 + weight, by which its published code multiplies.

    Args:
      file: the file; of the architectures in `gguf_layouts.ARCHITECTURES`, those whose model type has a decoder.
      max_bytes: most bytes the weights may take; the memory available where None. Checked before anything is made.
      dtype: that quantised tensors are read in; those in float32, float16 or bfloat16 keep their own.

    Raises:
      UnsupportedError: for an architecture, a mechanism or a quantisation that is not read.
      ConfigError: if a key of the metadata is missing, not understood, or has an impossible value.
      CheckpointError: if the file is damaged, or its tensors are not exactly those that the metadata ask for.
      InputError: if the `gguf` package is not installed.

    Source: the modelling files of llama.cpp and of transformers 5.24 for what each key does.
    """
    path, wanted = Path(file), np.dtype(jnp.dtype(dtype))
    found = read_gguf(path)
    translation = translate(found)
    positions = gguf_positions(translation)
    check_runs(positions)
    raw = {**translation.config}
    model_type = decoder_keys.check_keys(raw, path)
    _check_understood(translation)
    decoder_keys.check_config_fits(raw, model_type, path, max_bytes)
    _check_layers(found, raw["num_hidden_layers"])
    config = decoder_keys.decoder_config(raw, model_type, positions, path)
    graph, state = weights.abstract_decoder(config)
    shapes = weights.published_shapes(state)
    names = {path_in_model: stored_name(path_in_model) for path_in_model in shapes}
    _check_tensors(found, {names[one]: shape for one, shape in shapes.items()})
    read = [found.tensors[name] for name in names.values()]
    needed = sum(info.size * stored_dtype(info, wanted).itemsize for info in read)
    weights.check_fits(needed, max_bytes, shown_path(path))
    architecture = ARCHITECTURES[found.architecture]
    _check_pairs(found.architecture, architecture)

    def tensor(path_in_model: str) -> np.ndarray:
        value = read_tensor(found, names[path_in_model], dtype=wanted)
        part = path_in_model.split(".")
        if architecture.permuted and len(part) == 5 and part[2] == "attention" and part[3] in ("q", "k"):
            return unpermuted(value, config.num_heads if part[3] == "q" else config.num_kv_heads)
        return value

    return Checkpoint(
        config=config,
        model=weights.assemble(graph, state, tensor),
        positions=positions,
        layout="half",
        tokenizer_file=path if "tokenizer.ggml.tokens" in found.metadata else None,
        sha256=llama2c.hash_of(path),
        origin=os.fspath(path),
    )


def stored_name(path: str) -> str:
    """Returns the name under which a GGUF file stores the parameter at `path`."""
    if path.startswith("blocks."):
        _, layer, rest = path.split(".", 2)
        return f"blk.{layer}.{_NAMES[rest]}"
    return _NAMES[path]


def _check_understood(translation: Translation) -> None:
    if translation.unread:
        key = translation.unread[0]
        value = show(translation.file.metadata[key])
        raise translation.file.error(key, f"not understood, and it may change what the model computes, got {value}")


def _check_pairs(name: str, architecture: Architecture) -> None:
    """Raises where weights would keep interleaved pairs: none of the decoder's architectures has them so."""
    if pair_layout(name) != "half" and not architecture.permuted:
        raise UnsupportedError(f"architecture {name!r} pairs neighbouring dimensions, which is not read here")


def _check_layers(file: GgufFile, layers: int) -> None:
    """Raises if a layer of the metadata has no weights: a huge number of layers costs time before it is made."""
    for layer in range(layers):
        name = stored_name(f"blocks.{layer}.attention_norm.weight")
        if name not in file.tensors:
            raise CheckpointError(f"{shown_path(file.path)}: tensor {show(name)} is missing")


def _check_tensors(file: GgufFile, expected: Mapping[str, Shape]) -> None:
    for name, shape in expected.items():
        where = f"{shown_path(file.path)}: tensor {show(name)}"
        if name not in file.tensors:
            raise CheckpointError(f"{where} is missing")
        if file.tensors[name].shape != shape:
            raise CheckpointError(f"{where} is {list(file.tensors[name].shape)}, the metadata make it {list(shape)}")
    for name in file.tensors:
        if name not in expected and name not in _FREQUENCIES:
            raise CheckpointError(
                f"{shown_path(file.path)}: tensor {show(name)} belongs to nothing in the metadata's model"
            )
