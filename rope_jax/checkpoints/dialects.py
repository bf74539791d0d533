"""Reads what a published config says about positions, in whichever dialect it says it.

Every value that is used is reported with the key it came from; every other key about positions is either known to
change nothing, and reported with the reason, or an error. Nothing is guessed and nothing is skipped silently.
"""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from rope_jax import scaling
from rope_jax.checkpoints import strict_json
from rope_jax.checkpoints.gguf_file import is_gguf
from rope_jax.checkpoints.layer_groups import rope_groups
from rope_jax.checkpoints.layer_kinds import COUNT
from rope_jax.checkpoints.ledger import (
    Ledger,
    Section,
    boolean,
    close,
    integer,
    number,
    read_places,
    text,
)
from rope_jax.checkpoints.leftovers import settle_leftovers
from rope_jax.checkpoints.model_types import FULL, MODEL_TYPES, UNKNOWN, WRAPPERS, ModelType, refusal
from rope_jax.checkpoints.positions import BiasSpec, LayerGroup, PositionConfig
from rope_jax.checkpoints.refusals import refuse_by_key, refuse_relatives
from rope_jax.checkpoints.rope_types import LENGTH
from rope_jax.checkpoints.shapes import HEAD_DIM, HEADS, HIDDEN, WIDTH, check_head

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# Where a wrapper keeps the model that reads text, one inside the other.
TEXT_SECTIONS = (
    "text_config",
    "thinker_config",
    "language_config",
    "llm_config",
    "text_model_config",
    "language_model",
)
LENGTHS = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_sequence_length", "n_ctx")
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "rotary_emb_base", "partial_rotary_factor")


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the content of a config, read strictly.

    Args:
      path: a JSON file, a directory that holds a `config.json`, or a GGUF file, whose metadata is turned into one.

    Raises:
      ConfigError: if it cannot be read; see `strict_json.read`.
      RopeJaxError: if a GGUF file cannot be read; see `gguf_metadata.translate`.
    """
    if is_gguf(path):
        from rope_jax.checkpoints import gguf_metadata  # which reads positions by this module

        return dict(gguf_metadata.translate(gguf_metadata.read_gguf(path)).config)
    return strict_json.read(_config_file(path))


def read_positions(path: str | os.PathLike[str]) -> PositionConfig:
    """Returns what a config file says about positions; see `positions_of`.

    Args:
      path: a JSON file, a directory that holds a `config.json`, or a GGUF file.

    Raises:
      ConfigError: if it cannot be read, or anything about positions in it is not understood.
      RopeJaxError: if a GGUF file is damaged, or the package that reads it is missing.
    """
    if is_gguf(path):
        from rope_jax.checkpoints import gguf_metadata

        return gguf_metadata.read_gguf_positions(path)
    file = _config_file(path)
    return positions_of(strict_json.read(file), origin=os.fspath(file))


def _config_file(path: str | os.PathLike[str]) -> pathlib.Path:
    file = pathlib.Path(path)
    return file / "config.json" if os.path.isdir(file) else file


def positions_of(config: Mapping[str, Any], *, origin: str) -> PositionConfig:
    """Returns what a config says about positions.

    Args:
      config: the content of a `config.json`, in the v4 schema (`rope_scaling`, `rope_theta`) or the v5 one
        (`rope_parameters`). A multimodal config is read for its `text_config`.
      origin: its name, for messages and reports.

    Raises:
      UnsupportedError: if it uses a mechanism of `model_types.REFUSED` or `mechanisms.MECHANISMS`.
      ConfigError: if a key about positions is missing, unknown, contradictory, of the wrong type or out of range.
    """
    ledger = Ledger(config, origin)
    outer = Section(ledger, config)
    top = _text_of(outer)
    model_type = _model_type(outer, top)
    spec = MODEL_TYPES.get(model_type, UNKNOWN)
    ledger.defaults_of, ledger.defaults = model_type, spec.defaults
    if spec is UNKNOWN:
        refuse_relatives(outer, top, model_type)
        ledger.find(
            f"model_type {model_type!r:.60} is not known here: its keys are read as most model types mean them, and "
            "whether its published code leaves some layers without rotation is not known"
        )
    if spec.scheme == "refused":
        raise refusal(top if top.holds("model_type") else outer, "model_type", spec.refused)
    refuse_by_key(ledger, top, spec)
    layers = _layers(top, spec)
    declared = _declared(top)
    biased = {"alibi": _bloom, "mpt": _mpt, "t5": _t5, "falcon": _falcon_alibi}.get(spec.scheme)
    groups = None if biased is None else biased(top, layers)
    original, served = declared, declared
    if groups is None:
        known = spec is not UNKNOWN
        groups, lengths = rope_groups(top, spec, layers=layers, declared=declared, known=known)
        original, served = lengths.original, lengths.served
        if served != declared:
            ledger.use("served_length", served, "derived: factor * max_position_embeddings")
        _find_interleaved(ledger)
    _attention_scale(top, groups)
    dtype = _dtype(top, outer)
    settle_leftovers(ledger, top)
    return PositionConfig(
        model_type=model_type,
        origin=ledger.origin,
        groups=groups,
        original_length=original,
        declared_length=served,
        dtype=dtype,
        values=ledger.values,
        without_effect=ledger.without_effect,
        findings=tuple(ledger.findings),
    )


def _text_of(outer: Section) -> Section:
    """Returns the section of the model that reads text: the outermost, or the innermost of those that wrap it."""
    section = outer
    for _ in TEXT_SECTIONS:
        own = any(section.holds(key) for key in LAYERS)
        name = next((n for n in TEXT_SECTIONS if section.holds(n) and (n == TEXT_SECTIONS[0] or not own)), None)
        inner = None if name is None else section.section(name)
        if inner is None:
            return section
        section = inner
    return section


def _model_type(outer: Section, top: Section) -> str:
    wrapper = outer.read("model_type", check=text)
    wrapper = WRAPPERS.get(wrapper, wrapper)
    spec = MODEL_TYPES.get(wrapper, UNKNOWN)
    if top is outer and wrapper is None:
        raise refusal(outer, "model_type", "fragment")
    if top is not outer and spec.scheme == "refused":  # whatever is inside
        raise refusal(outer, "model_type", spec.refused)
    stated = top.read("model_type", check=text) or wrapper
    if stated is None:
        raise refusal(outer, "model_type", "fragment")
    name: str = WRAPPERS.get(stated, stated)
    return name


def _declared(top: Section) -> int:
    """Returns the length that the config declares."""
    if not any(top.holds(key) for key in LENGTHS) and top.holds("model_max_length"):
        declared: int = top.need("model_max_length", check=LENGTH, name="declared_length")
        return declared
    stated: int = top.need(*LENGTHS, check=LENGTH, name="declared_length")
    return stated


def _layers(top: Section, spec: ModelType) -> int:
    keys: tuple[str, ...] = LAYERS
    if spec.scheme == "t5":  # num_layers are the encoder's
        keys = ("num_decoder_layers",) if top.holds("num_decoder_layers") else ("num_layers",)
    named = next((key for key in ("layers_block_type", "layer_types") if isinstance(top.content.get(key), list)), None)
    if named is not None and not any(top.holds(key) for key in keys):
        count = len(top.content[named])
        if not count:
            raise top.error(named, "names no layer")
        top.ledger.use("num_layers", count, f"derived: entries of {top.prefix}{named}")
        return count
    return top.need(*keys, check=COUNT, name="num_layers")


def _bias_group(top: Section, layers: int, bias: BiasSpec, *, head_dim: int, num_heads: int) -> tuple[LayerGroup, ...]:
    return (
        LayerGroup(
            name=FULL,
            layers=tuple(range(layers)),
            rotary=None,
            rule=scaling.none(),
            bias=bias,
            window=None,
            num_heads=num_heads,
            head_dim=head_dim,
        ),
    )


def _heads(top: Section) -> tuple[int, int]:
    """Returns the number of heads and their dimension, for models without rotary keys."""
    num_heads = top.need(*HEADS, check=COUNT, name="num_heads")
    head_dim = top.read(*HEAD_DIM, check=WIDTH, name="head_dim")
    if head_dim is None:
        hidden = top.need(*HIDDEN, check=WIDTH, name="hidden_size")
        if hidden % num_heads:
            raise top.error(HIDDEN[0], f"{hidden} is not a multiple of {num_heads} heads")
        head_dim = hidden // num_heads
        top.ledger.use("head_dim", head_dim, "derived: hidden_size / num_attention_heads")
    check_head(top, "head_dim", head_dim)
    return num_heads, head_dim


def _bloom(top: Section, layers: int) -> tuple[LayerGroup, ...]:
    num_heads, head_dim = _heads(top)
    top.ledger.use("bias", "alibi", f"default of {top.ledger.defaults_of}")
    top.ignore("offset_alibi", "the published code does not read it; softmax cancels a constant anyway")
    for key in ROPE_KEYS:
        top.ignore(key, "ALiBi stands in its place")
    return _bias_group(top, layers, BiasSpec("alibi"), head_dim=head_dim, num_heads=num_heads)


def _mpt(top: Section, layers: int) -> tuple[LayerGroup, ...]:
    num_heads, head_dim = _heads(top)
    attention = top.section("attn_config") or Section(top.ledger, {}, f"{top.prefix}attn_config.")
    alibi = attention.read("alibi", check=boolean, default=False)
    if alibi is False:
        raise refusal(attention, "alibi", "learned positions")
    top.ledger.use("bias", "alibi", f"{attention.prefix}alibi" if alibi else f"default of {top.ledger.defaults_of}")
    steepest = attention.read("alibi_bias_max", check=number(0, 1e4, above=True))
    if steepest not in (None, 8.0):
        raise refusal(attention, "alibi_bias_max", "alibi_bias_max")
    softmax_scale = attention.read("softmax_scale", check=number(0, 1e4, above=True))
    if softmax_scale is not None and not close(softmax_scale, 1 / math.sqrt(head_dim)):
        raise refusal(attention, "softmax_scale", "softmax scale")
    if attention.content.get("prefix_lm") is True:
        raise refusal(attention, "prefix_lm", "bidirectional attention")
    attention.ignore("attn_type", "how many heads share keys, not where they stand")
    top.read("learned_pos_emb", check=boolean)
    top.ledger.void("learned_pos_emb", "the published code has no learned positions where ALiBi is on")
    return _bias_group(top, layers, BiasSpec("alibi"), head_dim=head_dim, num_heads=num_heads)


def _falcon_alibi(top: Section, layers: int) -> tuple[LayerGroup, ...] | None:
    """Returns Falcon's groups with ALiBi, or None where its `alibi` is off and it has rotary embeddings."""
    if not top.read("alibi", check=boolean):
        top.ledger.void("alibi", "false: rotary embeddings are used")
        return None
    num_heads, head_dim = _heads(top)
    for key in ROPE_KEYS:
        top.ignore(key, "ALiBi stands in its place")
    top.ledger.find(
        "Falcon adds ALiBi inside 1/sqrt(head_dim), so its slopes are the published ones divided by that root"
    )
    top.ledger.find("Falcon's published code rounds slopes to bfloat16: from offset 257 on, neighbours share a bias")
    bias = BiasSpec("alibi", slopes_scale=1 / math.sqrt(head_dim))
    return _bias_group(top, layers, bias, head_dim=head_dim, num_heads=num_heads)


def _t5(top: Section, layers: int) -> tuple[LayerGroup, ...]:
    if top.read("is_encoder_decoder", check=boolean) is False and top.content.get("is_decoder") is not True:
        raise refusal(top, "is_encoder_decoder", "bidirectional attention")
    num_heads, head_dim = _heads(top)
    num_buckets = top.need("relative_attention_num_buckets", check=integer(2, 4096), name="num_buckets")
    farthest = integer(num_buckets // 2 + 1, 2**24)
    max_distance = top.need("relative_attention_max_distance", check=farthest, name="max_distance")
    top.ledger.use("unscaled_logits", True, f"default of {top.ledger.defaults_of}")
    top.ledger.find(
        "the decoder's causal bias is reported; the encoder's is bidirectional, with half the buckets each way"
    )
    top.ledger.find("the bias table is learned: its values are in the checkpoint, not in the config")
    bias = BiasSpec("t5", num_buckets=num_buckets, max_distance=max_distance, unscaled_logits=True)
    return _bias_group(top, layers, bias, head_dim=head_dim, num_heads=num_heads)


def _find_interleaved(ledger: Ledger) -> None:
    interleave = ledger.values.get("rope_interleave")
    if interleave is not None and interleave.value:
        ledger.find("the weights pair neighbouring dimensions (interleaved layout), as published")


def _attention_scale(top: Section, groups: tuple[LayerGroup, ...]) -> None:
    """Reports keys that change attention's logits, though not positions."""
    positive = number(0, 1e9, above=True)
    scalar = top.read("query_pre_attn_scalar", check=positive, off=True)
    if scalar is not None and any(scalar != group.head_dim for group in groups):
        top.ledger.find(f"attention is scaled by 1/sqrt({scalar:g}), not by 1/sqrt(head_dim)")
    multiplier = top.read("attention_multiplier", check=positive, off=True)
    if multiplier is not None and not all(close(multiplier, 1 / math.sqrt(group.head_dim)) for group in groups):
        top.ledger.find(f"attention is scaled by {multiplier:g}, not by 1/sqrt(head_dim)")
    cap = top.read("attn_logit_softcapping", check=positive, off=True)
    keys = top.read("key_multiplier", check=positive, off=True)
    if keys not in (None, 1.0):
        top.ledger.find(f"keys, and with them attention's logits, are multiplied by {keys:g}")
    if cap is not None:
        top.ledger.find(f"attention logits are soft-capped at {cap:g}, after any bias of position")


def _dtype(top: Section, outer: Section) -> str | None:
    for section in (top, outer):
        if section.holds("dtype") or section.holds("torch_dtype"):
            places = [(section, "dtype"), (section, "torch_dtype")]
            return read_places(places, check=text, name="dtype")
    return None
