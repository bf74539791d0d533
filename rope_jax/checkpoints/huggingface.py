"""Hugging Face directories of Llama, Mistral, Qwen2, Qwen3: every config key understood, every tensor accounted for."""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from rope_jax.checkpoints import strict_json, weights
from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.checkpoints.dialects import positions_of, read_config
from rope_jax.checkpoints.positions import LayerGroup, PositionConfig
from rope_jax.checkpoints.weights import Shape
from rope_jax.decoder import DecoderConfig
from rope_jax.decoder.config import SLIDING
from rope_jax.errors import CheckpointError, ConfigError, UnsupportedError
from rope_jax.scaling import Rule

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

# Keys that shape the forward pass, by what reads them: `_decoder_config` and `positions_of`.
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
_UNDERSTOOD = {
    "llama": _SHAPES | _POSITIONS | {"attention_bias", "mlp_bias"},
    "mistral": _SHAPES | _POSITIONS | {"sliding_window"},
    "qwen2": _SHAPES | _POSITIONS | _WINDOWS,
    "qwen3": _SHAPES | _POSITIONS | _WINDOWS | {"attention_bias"},
}
# Keys that change nothing in a forward pass, whatever their value.
_NO_EFFECT = {
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",  # checked by `_check_keys`
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
    "mlp_bias": (False,),
    "quantization_config": (None,),
    "rope_interleaved": (False,),
    "sliding_window": (None,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
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
    model_type = _check_keys(raw, config_file)
    _check_config_fits(raw, model_type, config_file, max_bytes)
    positions = positions_of(raw, origin=str(config_file))
    config = _decoder_config(raw, model_type, positions, config_file)
    graph, state = weights.abstract_decoder(config)
    paths = {_published_name(path): path for path in weights.published_shapes(state)}
    expected = {name: weights.published_shapes(state)[path] for name, path in paths.items()}
    with contextlib.ExitStack() as stack:
        shards = {file: stack.enter_context(_opened(file)) for file in _weight_files(directory)}
        tensors = _tensors(directory, shards)
        extras = _check_tensors(tensors, expected, config, directory)
        stored = sum(tensor.bytes for tensor in tensors.values())
        weights.check_fits(stored, max_bytes, str(directory))
        for name in extras:
            _check_extra(name, tensors, positions)
        names = {path: name for name, path in paths.items()}
        model = weights.assemble(graph, state, lambda path: tensors[names[path]].read())
    tokenizer = directory / "tokenizer.json"
    return Checkpoint(
        config=config,
        model=model,
        positions=positions,
        layout="half",
        tokenizer_file=tokenizer if tokenizer.is_file() else None,
        sha256=_hash_of(sorted(shards)),
        origin=str(directory),
    )


def _published_name(path: str) -> str:
    if path.startswith("blocks."):
        _, layer, rest = path.split(".", 2)
        return f"model.layers.{layer}.{_NAMES[rest]}"
    return _NAMES[path]


# The config.


def _check_keys(raw: Mapping[str, Any], file: Path) -> str:
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
        if key in _UNDERSTOOD[model_type] or key in _NO_EFFECT:
            continue
        if key not in _ONLY:
            raise ConfigError(f"{file}: key {key!r} is not understood for model_type {model_type!r}")
        if not any(value is allowed for allowed in _ONLY[key]):
            raise UnsupportedError(f"{file}: {key} {strict_json.show(value)} is not supported in a {model_type} model")
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedError(f"{file}: hidden_act {strict_json.show(activation)} is not supported, only 'silu'")
    return model_type


def _whole(raw: Mapping[str, Any], key: str, file: Path, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        if default is None:
            raise ConfigError(f"{file}: {key} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ConfigError(f"{file}: {key} must be a positive whole number below 2^31, got {strict_json.show(value)}")
    return value


def _switch(raw: Mapping[str, Any], key: str, file: Path) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{file}: {key} must be true or false, got {strict_json.show(value)}")
    return value


def _one_layer(raw: Mapping[str, Any], model_type: str, file: Path) -> DecoderConfig:
    """Returns the decoder's config cut to one layer: its size says how large the whole is, at no cost."""
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
        qk_norm=model_type == "qwen3",
    )


def _check_config_fits(raw: Mapping[str, Any], model_type: str, file: Path, max_bytes: int | None) -> None:
    # Two bytes a weight is the least that is read; the files' own headers are added up later.
    count = weights.parameters_of(_one_layer(raw, model_type, file), _whole(raw, "num_hidden_layers", file))
    weights.check_fits(2 * count, max_bytes, str(file))


def _decoder_config(raw: Mapping[str, Any], model_type: str, positions: PositionConfig, file: Path) -> DecoderConfig:
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
        windows=_windows(raw, model_type, layers, file),
    )


def _windows(raw: Mapping[str, Any], model_type: str, layers: int, file: Path) -> tuple[int | None, ...]:
    """Returns the window of each layer, also one wider than the declared length: the model may be run beyond it."""
    stated = None if raw.get("sliding_window", 0) is None else _whole(raw, "sliding_window", file, 4096)
    if model_type == "llama":
        return (None,) * layers
    if model_type == "mistral":
        return (stated,) * layers
    window = stated if _switch(raw, "use_sliding_window", file) else None
    types = raw.get("layer_types")
    if types is None:
        first = raw.get("max_window_layers", 28)
        return tuple(window if layer >= first else None for layer in range(layers))
    if window is None and SLIDING in types:
        raise ConfigError(f"{file}: layer_types has {SLIDING!r}, but sliding_window is off")
    return tuple(window if kind == SLIDING else None for kind in types)


# The weights.


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
            raise CheckpointError(f"{self.file}: tensor {self.name!r} cannot be read ({_one_line(error)})") from error
        weights.check_finite(value, self.name, self.file)
        return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
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
            raise CheckpointError(f"{index}: names the file {name!r}, which is not a plain .safetensors file name")
        if not (directory / name).is_file():
            raise CheckpointError(f"{index}: names the file {name!r}, which is not in the directory")
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
                raise CheckpointError(f"{file}: tensor {name!r} is also in {found[name].file.name}")
            view = handle.get_slice(name)
            found[name] = _Tensor(name, tuple(view.get_shape()), view.get_dtype(), file, handle)
    index = directory / INDEX
    if directory / WEIGHTS not in shards:
        where = _weight_map(index)
        for name, file_name in where.items():
            if name not in found or found[name].file.name != file_name:
                raise CheckpointError(f"{index}: tensor {name!r} is not in {file_name}, where the index has it")
        for name, tensor in found.items():
            if name not in where:
                raise CheckpointError(f"{tensor.file}: tensor {name!r} is not in {INDEX}")
    return found


def _check_tensors(
    tensors: Mapping[str, _Tensor], expected: Mapping[str, Shape], config: DecoderConfig, directory: Path
) -> list[str]:
    """Returns the names beside the expected ones that an older checkpoint may hold."""
    for name in expected:
        if name not in tensors:
            raise CheckpointError(f"{directory}: tensor {name!r} is missing from its weights")
    extras = []
    for name, tensor in tensors.items():
        if name not in expected:
            buffer = name.startswith("model.") and name.endswith("rotary_emb.inv_freq")
            if not (buffer or (name == "lm_head.weight" and config.tie_embeddings)):
                raise CheckpointError(f"{tensor.file}: tensor {name!r} belongs to nothing in the config's model")
            extras.append(name)
        elif tensor.shape != expected[name]:
            want = list(expected[name])
            raise CheckpointError(f"{tensor.file}: tensor {name!r} is {list(tensor.shape)}, the config makes it {want}")
        if tensor.dtype not in _BYTES:
            allowed = ", ".join(_BYTES)
            raise CheckpointError(f"{tensor.file}: tensor {name!r} is stored as {tensor.dtype}; {allowed} are read")
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
    raise CheckpointError(f"{tensor.file}: the frequencies in {name!r} are not those of the config")


def _hash_of(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
