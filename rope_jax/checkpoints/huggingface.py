"""Hugging Face directories of the decoders that load: every config key understood, every tensor accounted for."""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from rope_jax.checkpoints import decoder_keys, strict_json, weights
from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.checkpoints.dialects import positions_of, read_config
from rope_jax.checkpoints.positions import PositionConfig
from rope_jax.checkpoints.runnable import check_runs
from rope_jax.checkpoints.weights import Shape
from rope_jax.decoder import DecoderConfig
from rope_jax.errors import CheckpointError, ConfigError
from rope_jax.regular_files import check_regular, open_regular
from rope_jax.rules import Rule

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

_NAMES = {  # ours -> theirs, apart from the layer number
    "embedding": "model.embed_tokens.weight",
    "unembedding": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    **{f"attention.{x}.kernel": f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"attention.{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkvo"},
    **{f"attention.{x}_norm.weight": f"self_attn.{x}_norm.weight" for x in "qk"},
    **{f"mlp.{x}.kernel": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
    **{f"mlp.{x}.bias": f"mlp.{x}_proj.bias" for x in ("gate", "up", "down")},
}
_FOUR_NORMS = {  # in a block with norms after attention and MLP too
    "attention_post_norm.weight": "post_attention_layernorm.weight",
    "mlp_norm.weight": "pre_feedforward_layernorm.weight",
    "mlp_post_norm.weight": "post_feedforward_layernorm.weight",
}


def load(directory: str | Path, *, max_bytes: int | None = None) -> Checkpoint:
    """Returns the model in a Hugging Face directory: `config.json`, and `model.safetensors` whole or in shards.

    An `lm_head.weight` beside tied embeddings is accepted where it equals the embedding bit for bit, and dropped.
    `inv_freq` buffers of old checkpoints are accepted where they agree with the config's frequencies, scaled or not.

    Args:
      directory: the model's directory.
      max_bytes: most bytes the weights may take; the memory available where None. Checked before anything is made.

    Raises:
      UnsupportedError: for a model type, or a switch of one, that this decoder does not have.
      ConfigError: if a config key is not understood, missing, or has an impossible value.
      CheckpointError: if a file is absent or damaged, or the tensors are not exactly those the config asks for,
        finite, and in float32, float16 or bfloat16.

    Source: the modelling files of transformers 5.23 for what each key does.
    """
    directory = Path(directory)
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{directory}: holds no config.json")
    raw = read_config(config_file)
    model_type = decoder_keys.check_keys(raw, config_file)
    decoder_keys.check_config_fits(raw, model_type, config_file, max_bytes)
    positions = positions_of(raw, origin=str(config_file))
    check_runs(positions)
    config = decoder_keys.decoder_config(raw, model_type, positions, config_file)
    with contextlib.ExitStack() as stack:
        shards = {file: stack.enter_context(_opened(file)) for file in _weight_files(directory)}
        tensors = _tensors(directory, shards)
        _check_layers(tensors, config, directory)
        centred = decoder_keys.centred_norms(model_type)
        graph, state = weights.abstract_decoder(config)
        shapes = weights.published_shapes(state)
        names = {path: published_name(path, config) for path in shapes}
        expected = {names[path]: shape for path, shape in shapes.items()}
        extras = _check_tensors(tensors, expected, config, directory)
        stored = sum(tensor.bytes for tensor in tensors.values())
        weights.check_fits(stored, max_bytes, str(directory))
        for name in extras:
            _check_extra(name, tensors, positions)

        def tensor(path: str) -> np.ndarray:
            value = tensors[names[path]].read()
            # In float32: 1 + w in half precision would lose most of w.
            return 1 + value.astype(np.float32) if centred and path.endswith("norm.weight") else value

        model = weights.assemble(graph, state, tensor)
    tokenizer = directory / "tokenizer.json"
    return Checkpoint(
        config=config,
        model=model,
        positions=positions,
        layout="half",
        tokenizer_file=tokenizer if tokenizer.exists() else None,
        sha256=_hash_of(sorted(shards)),
        origin=str(directory),
    )


def published_name(path: str, config: DecoderConfig) -> str:
    """Returns the name under which a checkpoint of such a decoder stores the parameter at `path`."""
    if path.startswith("blocks."):
        _, layer, rest = path.split(".", 2)
        names = {**_NAMES, **_FOUR_NORMS} if config.post_norms else _NAMES
        return f"model.layers.{layer}.{names[rest]}"
    return _NAMES[path]


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor in a file, not yet read."""

    name: str
    shape: Shape
    dtype: str
    file: Path
    handle: Any

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _BYTES.get(self.dtype, 8)

    def read(self) -> np.ndarray:
        try:
            value = self.handle.get_tensor(self.name)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.file}: tensor {strict_json.show(self.name)} cannot be read ({_one_line(error)})"
            ) from error
        weights.check_finite(value, self.name, self.file)
        return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    check_regular(file, "weights", error=CheckpointError)
    try:
        handle = safe_open(str(file), framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({_one_line(error)})") from error
    with handle as opened:
        yield opened


def _weight_files(directory: Path) -> list[Path]:
    whole, index = directory / WEIGHTS, directory / INDEX
    if whole.exists() and index.exists():
        raise CheckpointError(f"{directory}: holds both {WEIGHTS} and {INDEX}; which of them is meant is unclear")
    if whole.exists():
        return [whole]
    if not index.exists():
        raise CheckpointError(f"{directory}: holds neither {WEIGHTS} nor {INDEX}")
    files = sorted(set(_weight_map(index).values()))
    for name in files:
        if Path(name).name != name or "\\" in name or name in (".", "..") or not name.endswith(".safetensors"):
            shown = strict_json.show(name)
            raise CheckpointError(f"{index}: names the file {shown}, which is not a plain .safetensors file name")
        try:
            check_regular(directory / name, "weights", error=CheckpointError)
        except CheckpointError as error:
            raise CheckpointError(f"{index}: names a file that is not in the directory: {error}") from None
    return [directory / name for name in files]


def _weight_map(index: Path) -> dict[str, str]:
    try:
        where = strict_json.read(index).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise CheckpointError(f"{index}: weight_map must be an object from tensor names to file names")
    return where


def _tensors(directory: Path, shards: Mapping[Path, Any]) -> dict[str, _Tensor]:
    """Returns every tensor of every file, from the headers alone."""
    found: dict[str, _Tensor] = {}
    for file, handle in shards.items():
        for name in handle.keys():  # noqa: SIM118 - a handle is no mapping
            if name in found:
                raise CheckpointError(f"{file}: tensor {strict_json.show(name)} is also in {found[name].file.name}")
            view = handle.get_slice(name)
            found[name] = _Tensor(name, tuple(view.get_shape()), view.get_dtype(), file, handle)
    index = directory / INDEX
    if directory / WEIGHTS not in shards:
        where = _weight_map(index)
        for name, file_name in where.items():
            if name not in found or found[name].file.name != file_name:
                shown = strict_json.show(name), strict_json.show(file_name)
                raise CheckpointError(f"{index}: tensor {shown[0]} is not in {shown[1]}, where the index has it")
        for name, tensor in found.items():
            if name not in where:
                raise CheckpointError(f"{tensor.file}: tensor {strict_json.show(name)} is not in {INDEX}")
    return found


def _check_layers(tensors: Mapping[str, _Tensor], config: DecoderConfig, directory: Path) -> None:
    """Raises if a layer of the config has no weights: a huge number of layers costs time before it is made."""
    for layer in range(config.num_layers):
        name = published_name(f"blocks.{layer}.attention_norm.weight", config)
        if name not in tensors:
            raise CheckpointError(f"{directory}: tensor {strict_json.show(name)} is missing from its weights")


def _check_tensors(
    tensors: Mapping[str, _Tensor], expected: Mapping[str, Shape], config: DecoderConfig, directory: Path
) -> list[str]:
    """Returns the names beside the expected ones that an older checkpoint may hold."""
    for name in expected:
        if name not in tensors:
            raise CheckpointError(f"{directory}: tensor {strict_json.show(name)} is missing from its weights")
    extras = []
    for name, tensor in tensors.items():
        if name not in expected:
            buffer = name.startswith("model.") and name.endswith("rotary_emb.inv_freq")
            if not (buffer or (name == "lm_head.weight" and config.tie_embeddings)):
                raise CheckpointError(
                    f"{tensor.file}: tensor {strict_json.show(name)} belongs to nothing in the config's model"
                )
            extras.append(name)
        elif tensor.shape != expected[name]:
            want = list(expected[name])
            raise CheckpointError(
                f"{tensor.file}: tensor {strict_json.show(name)} is {list(tensor.shape)}, the config makes it {want}"
            )
        if tensor.dtype not in _BYTES:
            allowed = ", ".join(_BYTES)
            raise CheckpointError(
                f"{tensor.file}: tensor {strict_json.show(name)} is stored as {tensor.dtype}; {allowed} are read"
            )
    return extras


def _check_extra(name: str, tensors: Mapping[str, _Tensor], positions: PositionConfig) -> None:
    tensor = tensors[name]
    if name == "lm_head.weight":
        embedding = tensors["model.embed_tokens.weight"]
        same = (tensor.shape, tensor.dtype) == (embedding.shape, embedding.dtype)
        if not same or not np.array_equal(tensor.read(), embedding.read()):
            raise CheckpointError(
                f"{tensor.file}: 'lm_head.weight' is not the embedding that tie_word_embeddings means"
            )
        return
    stored = tensor.read().astype(np.float64)
    tolerance = {"F32": 1e-5, "F16": 1e-3, "BF16": 8e-3}[tensor.dtype]
    for group in positions.groups:
        assert group.rotary is not None
        known = [group.rotary] + ([group.rule(group.rotary)] if isinstance(group.rule, Rule) else [])
        for rotary in known:
            theta = rotary.inverse_frequencies
            # Half precision keeps six hundred-millionths of a small value, whatever its size.
            if stored.shape == theta.shape and np.allclose(stored, theta, rtol=tolerance, atol=6e-8):
                return
    raise CheckpointError(f"{tensor.file}: the frequencies in {strict_json.show(name)} are not those of the config")


def _hash_of(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with open_regular(file, "weights", error=CheckpointError) as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
