"""GGUF metadata as the config.json of the same model, so that one reader decides what positions are.

Every key about positions is turned into the key that a `config.json` has for it, is known to change nothing, or is an
error. Defaults that llama.cpp takes are written out, with that source.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from rope_jax.checkpoints.dialects import positions_of
from rope_jax.checkpoints.gguf_file import GgufFile, read_gguf
from rope_jax.checkpoints.gguf_keys import DEFAULT, Keys
from rope_jax.checkpoints.gguf_layouts import ARCHITECTURES, Architecture, pair_layout
from rope_jax.checkpoints.gguf_scaling import put_scaling
from rope_jax.checkpoints.ledger import Wrong, boolean, close, integer, list_of, number
from rope_jax.checkpoints.model_types import FULL, MODEL_TYPES, SLIDING
from rope_jax.checkpoints.positional_keys import looks_positional
from rope_jax.checkpoints.positions import PositionConfig, Sourced
from rope_jax.checkpoints.rope_types import LENGTH, THETA
from rope_jax.checkpoints.strict_json import one_line
from rope_jax.errors import ConfigError, UnsupportedError
from rope_jax.regular_files import shown_path

__all__ = ["Translation", "gguf_positions", "read_gguf_positions", "translate"]

_COUNT, _WIDTH, _LAYERS = integer(1, 2**31 - 1), integer(1, 1_000_000), integer(1, 100_000)
_MOST_LISTED = 100_000
# What stands beside the keys that are read and says nothing about positions.
_HARMLESS = ("vocab_size", "tensor_data_layout", "use_parallel_residual")


@dataclasses.dataclass(frozen=True)
class Translation:
    """What a GGUF file says, in the words of a config.json.

    Attributes:
      file: what was translated.
      config: what a `config.json` of the same model would hold.
      sources: by a value's path in `config`, the key or tensor it came from.
      findings: what looks wrong or risky, one line each.
      unread: keys of the architecture that are not about positions and were not understood; only positions can be read
        where there are any.
    """

    file: GgufFile
    config: Mapping[str, Any]
    sources: Mapping[str, str]
    findings: tuple[str, ...]
    unread: tuple[str, ...]


def read_gguf_positions(path: str | os.PathLike[str]) -> PositionConfig:
    """Returns what a GGUF file says about positions; errors as of `read_gguf`, `translate` and `gguf_positions`."""
    return gguf_positions(translate(read_gguf(path)))


def gguf_positions(translation: Translation) -> PositionConfig:
    """Returns what a translated file says about positions, each value with the GGUF key or tensor it came from.

    Raises:
      ConfigError: as `dialects.positions_of`, naming the GGUF key too.
    """
    origin, sources = os.fspath(translation.file.path), translation.sources
    try:
        read = positions_of(translation.config, origin=origin)
    except ConfigError as error:
        raise _in_gguf_words(error, translation) from None
    return dataclasses.replace(
        read,
        values={name: Sourced(one.value, sources.get(one.source, one.source)) for name, one in read.values.items()},
        without_effect={sources.get(path, path): why for path, why in read.without_effect.items()},
        findings=(*translation.findings, *read.findings),
    )


def _in_gguf_words(error: ConfigError, translation: Translation) -> ConfigError:
    """Returns the error with the name of the key in the file before the one in the config."""
    message, begin = str(error), f"{shown_path(os.fspath(translation.file.path))}: "
    for path, source in translation.sources.items():
        if source != DEFAULT and message.startswith(f"{begin}{path}: "):
            return type(error)(f"{begin}{one_line(source)}, read as {message[len(begin) :]}")
    return error


def translate(file: GgufFile) -> Translation:
    """Returns the file's metadata in the words of a config.json.

    Raises:
      UnsupportedError: for an architecture, or a mechanism, that no config read here can say.
      ConfigError: if a key about positions is missing, unknown, contradictory, of the wrong type or out of range.
      CheckpointError: if a tensor of frequencies is damaged.
    """
    name = file.architecture
    if file.metadata.get("general.type", "model") != "model":
        raise file.error("general.type", "only models are read, no adapters or parts of one", UnsupportedError)
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise file.error("general.architecture", f"{name!r:.70} is not read; {known} are", UnsupportedError)
    architecture, keys = ARCHITECTURES[name], Keys(file)
    keys.put("model_type", architecture.model_type, "general.architecture")
    layers = keys.need("block_count", _LAYERS)
    keys.put("num_hidden_layers", layers, "block_count")
    length = keys.need("context_length", LENGTH)
    keys.put("max_position_embeddings", length, "context_length")
    heads, head_dim = _put_shapes(keys, layers)
    _put_embedding(keys, file)
    _put_windows(keys, architecture, layers)
    if architecture.alibi != "no":
        _put_alibi(keys, architecture)
    elif pair_layout(name) is None:
        _put_t5(keys)
    else:
        _put_rope(keys, architecture, head_dim=head_dim, length=length)
    _put_logits(keys, architecture, layers=layers, heads=heads, head_dim=head_dim)
    _put_biases(keys, file)
    unread = []
    for key in keys.left():
        if key.startswith(("rope.", "attention.")) or looks_positional(key):
            raise keys.error(key, f"is about positions and not understood for architecture {name!r}")
        if key not in _HARMLESS:
            unread.append(keys.full(key))
    return Translation(file, keys.config, keys.sources, tuple(keys.findings), tuple(unread))


def _put_shapes(keys: Keys, layers: int) -> tuple[int, int]:
    """Puts widths and heads; returns the number of query heads and their dimensions."""
    hidden = keys.need("embedding_length", _WIDTH)
    keys.put("hidden_size", hidden, "embedding_length")
    inner = keys.take("feed_forward_length", _alike(layers))
    if inner is not None:
        keys.put("intermediate_size", inner, "feed_forward_length")
    heads = keys.take("attention.head_count", _alike(layers))
    if heads is None:
        raise keys.error("attention.head_count", "missing")
    keys.put("num_attention_heads", heads, "attention.head_count")
    kv_heads = keys.take("attention.head_count_kv", _alike(layers))
    keys.put("num_key_value_heads", kv_heads or heads, "attention.head_count_kv")
    head_dim = keys.take("attention.key_length", _WIDTH)
    if head_dim is None:
        if hidden % heads:
            raise keys.error("attention.key_length", f"missing, and {hidden} is not a multiple of {heads} heads")
        keys.put("head_dim", hidden // heads, "derived: embedding_length / attention.head_count")
        head_dim = hidden // heads
    else:
        keys.put("head_dim", head_dim, "attention.key_length")
    differs = "differs from the dimensions of a key, which is not read"
    for name in ("value_length", "key_length_swa", "value_length_swa"):
        keys.only(f"attention.{name}", _WIDTH, head_dim, why=differs)
    for name in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        eps = keys.take(f"attention.{name}", number(0.0, 1.0))
        if eps is not None:
            keys.put("rms_norm_eps" if "rms" in name else "layer_norm_eps", eps, f"attention.{name}")
    experts = keys.take("expert_count", integer(0, 100_000))
    if experts:
        keys.put("num_local_experts", experts, "expert_count")
        if keys.config["model_type"] == "llama":
            keys.put("model_type", "mixtral", "expert_count")
    keys.take("expert_used_count", integer(0, 100_000))
    return heads, head_dim


def _alike(layers: int):
    """Returns the check for a count, or a list of the same one for every layer."""

    def check(value: Any) -> int:
        if not isinstance(value, list):
            return _COUNT(value)
        if len(value) > _MOST_LISTED:
            raise Wrong("is a list longer than any model")
        listed = list_of(_COUNT, layers)(value)
        if len(set(listed)) > 1:
            raise Wrong("differs from layer to layer, which is not read")
        return listed[0]

    return check


def _put_embedding(keys: Keys, file: GgufFile) -> None:
    stated = keys.take("vocab_size", _COUNT)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None:
        rows = embedding.shape[0]
        if stated is not None and stated != rows:
            raise keys.error("vocab_size", f"contradicts the {rows:,} rows of the tensor 'token_embd.weight'")
        keys.put("vocab_size", rows, "tensor token_embd.weight")
        keys.put("tie_word_embeddings", "output.weight" not in file.tensors, "tensor output.weight")
    elif stated is not None:
        keys.put("vocab_size", stated, "vocab_size")


def _put_windows(keys: Keys, architecture: Architecture, layers: int) -> None:
    window = keys.take("attention.sliding_window", integer(0, 2**31 - 1))
    source: str | None = "attention.sliding_window"
    if window is None and architecture.model_type == "gemma2":
        window, source = 4096, None
    pattern = keys.take("attention.sliding_window_pattern", _pattern)
    if not window:
        if isinstance(architecture.windows, int) and architecture.windowed_type is None:
            keys.put("sliding_window", None, source)
            keys.put("layer_types", [FULL] * layers, source)
        return
    if architecture.windowed_type is not None and "num_local_experts" not in keys.config:
        keys.put("model_type", architecture.windowed_type, source)
    keys.put("sliding_window", window, source)
    if not architecture.window_run:
        keys.findings.append(
            f"{keys.full('attention.sliding_window')} {window}: llama.cpp sees all tokens all the same"
        )
    listed = "attention.sliding_window_pattern"
    if isinstance(pattern, tuple):
        if len(pattern) != layers:
            raise keys.error(listed, f"must name {layers} layers, names {len(pattern)}")
        sliding = [bool(entry) for entry in pattern]
    elif pattern is None and architecture.windows == "unknown":
        raise keys.error("attention.sliding_window", "which layers have it is not stated", UnsupportedError)
    elif pattern is None and architecture.windows == "all":
        return
    else:
        every = architecture.windows if pattern is None else pattern
        assert isinstance(every, int)
        sliding = [every == 0 or (layer + 1) % every != 0 for layer in range(layers)]
    kinds = [SLIDING if entry else FULL for entry in sliding]
    keys.put("layer_types", kinds, listed)


def _pattern(value: Any) -> int | tuple[Any, ...]:
    """The check for one entry a layer, or the distance of layers without a window."""
    if isinstance(value, list):
        return list_of(_truth)(value)
    return integer(0, 100_000)(value)


def _truth(value: Any) -> bool:
    return value if isinstance(value, bool) else integer(0, 1)(value) == 1


def _put_rope(keys: Keys, architecture: Architecture, *, head_dim: int, length: int) -> None:
    spec = MODEL_TYPES[keys.config["model_type"]]
    base = keys.take("rope.freq_base", THETA)
    base_key = spec.own_names.get("rope_theta", "rope_theta")
    keys.put(base_key, base or 10000.0, "rope.freq_base")
    base = base or 10000.0
    local = keys.take("rope.freq_base_swa", THETA)
    if architecture.local_base:
        keys.put("rope_local_base_freq", local or 10000.0, "rope.freq_base_swa")
    elif local is not None and local != base:
        raise keys.error(
            "rope.freq_base_swa", f"not read for architecture {keys.file.architecture!r}", UnsupportedError
        )
    dim = keys.take("rope.dimension_count", integer(2, head_dim), head_dim)
    if dim % 2:
        raise keys.error("rope.dimension_count", "must be an even number")
    if architecture.partial:
        share_key = spec.own_names.get("partial_rotary_factor", "partial_rotary_factor")
        share = next(x for x in (dim / head_dim, (dim + 0.5) / head_dim) if int(head_dim * x) == dim)
        keys.put(share_key, share, "rope.dimension_count")
    elif dim != head_dim:
        raise keys.error("rope.dimension_count", f"must be the {head_dim} dimensions of a head in this architecture")
    keys.only("rope.dimension_count_swa", integer(0, head_dim), dim, why="differs from rope.dimension_count")
    sections = keys.take("rope.dimension_sections", list_of(integer(0, 10**6)))
    if sections is not None and any(sections):
        raise keys.error("rope.dimension_sections", "positions of several axes, which this architecture has not")
    put_scaling(keys, architecture, dim=dim, base=base, length=length)
    keys.only("attention.max_alibi_bias", number(0.0, 1e4), 0.0, why="ALiBi beside rotary embeddings")


def _put_alibi(keys: Keys, architecture: Architecture) -> None:
    steepest = keys.take("attention.max_alibi_bias", number(0.0, 1e4))
    if architecture.alibi == "fixed":
        if steepest not in (None, 8.0):
            raise keys.error("attention.max_alibi_bias", "is 8 in this architecture")
        return
    keys.put("attn_config.alibi", bool(steepest), "attention.max_alibi_bias")
    if steepest:
        keys.put("attn_config.alibi_bias_max", steepest, "attention.max_alibi_bias")


def _put_t5(keys: Keys) -> None:
    buckets = keys.need("attention.relative_buckets_count", integer(2, 4096))
    keys.put("relative_attention_num_buckets", buckets, "attention.relative_buckets_count")
    keys.put("relative_attention_max_distance", 128)
    decoder = keys.take("decoder_block_count", _LAYERS)
    keys.put("num_decoder_layers", decoder or keys.config["num_hidden_layers"], "decoder_block_count")
    del keys.config["num_hidden_layers"]
    keys.findings.append("the bias table is in the tensors attn_rel_b; 128 is the distance that llama.cpp has built in")


def _put_logits(keys: Keys, architecture: Architecture, *, layers: int, heads: int, head_dim: int) -> None:
    """Puts what makes attention's logits beside positions: its scale, caps, temperature and mask."""
    positive = number(0.0, 1e9)
    scale = keys.take("attention.scale", positive)
    if architecture.scale_of_layers is not None:
        scalar = keys.config["hidden_size"] // heads if layers == architecture.scale_of_layers else head_dim
        keys.put("query_pre_attn_scalar", scalar)
    if scale and not close(scale * head_dim**0.5, 1):
        raise keys.error("attention.scale", "another scale than 1/sqrt(head_dim)", UnsupportedError)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        cap = keys.take(name, positive)
        if cap is not None:
            keys.put(name, cap or None, name)
    if keys.take("attention.temperature_scale", positive):
        keys.put("attn_temperature_tuning", True, "attention.temperature_scale")
    keys.take("attention.temperature_length", positive)
    causal = keys.take("attention.causal", boolean)
    if causal is not None:
        keys.put("is_causal", causal, "attention.causal")


def _put_biases(keys: Keys, file: GgufFile) -> None:
    """Puts which projections of a Llama have biases: no key says so, the tensors do."""
    if keys.config["model_type"] not in ("llama",):
        return
    has = {name: f"blk.0.{name}.bias" in file.tensors for name in ("attn_q", "attn_output", "ffn_up")}
    if has["attn_q"] != has["attn_output"]:
        raise UnsupportedError(
            f"{shown_path(file.path)}: of the tensors 'blk.0.attn_q.bias' and 'blk.0.attn_output.bias' one is missing"
        )
    keys.put("attention_bias", has["attn_q"], "tensor blk.0.attn_q.bias")
    keys.put("mlp_bias", has["ffn_up"], "tensor blk.0.ffn_up.bias")
