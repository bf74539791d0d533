"""A published model, ready to run: weights in the decoder, and what its config says about positions."""

import dataclasses
from pathlib import Path

from jaxtyping import Array, Int

from rope_jax.biases import Bias
from rope_jax.checkpoints.positions import BiasSpec, LayerGroup, PositionConfig
from rope_jax.checkpoints.runnable import check_runs
from rope_jax.decoder import Decoder, DecoderConfig, Schemes
from rope_jax.errors import ConfigError, UnsupportedError
from rope_jax.length_rules import LengthRule
from rope_jax.phases import Phase
from rope_jax.rotation import Layout
from rope_jax.scheme import Retrofit, per_length, scheme_of


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model read from disk.

    Attributes:
      config: shapes and switches of the decoder.
      model: the decoder, each weight in the dtype it was stored in.
      positions: what the config says about positions, value by value.
      layout: how the query and key weights pair their dimensions: "half" for Hugging Face and GGUF (where a Llama's are
        put back), "interleaved" for llama2.c.
      tokenizer_file: the `tokenizer.json` beside the weights, the GGUF file that holds a tokenizer, or None.
      sha256: hash of the weight files' bytes, one after another by name.
      origin: the directory or file it was read from.
    """

    config: DecoderConfig
    model: Decoder
    positions: PositionConfig
    layout: Layout
    tokenizer_file: Path | None
    sha256: str
    origin: str


def schemes_of(
    source: Checkpoint | PositionConfig,
    *,
    layout: Layout | None = None,
    phase: Phase = "exact",
    max_offset: int | None = None,
    length: int | None = None,
) -> Schemes:
    """Returns the positional scheme that the config itself declares.

    Args:
      source: a checkpoint, or the positions read from a config.
      layout: pairing of the dimensions; the checkpoint's own where None ("half" for positions alone).
      phase: "exact", or "float32" to compare with libraries that form the angle in float32.
      max_offset: offsets the bias strip tells apart; see `scheme.build`.
      length: tokens of the sequence, for a rule that depends on it. As in transformers, the largest position + 1.

    Returns:
      one scheme where all layers are alike, otherwise one by the layer type's name.

    Raises:
      ConfigError: if a rule depends on the length and none is given.
      UnsupportedError: if the bias is a table that the weights would have to give (T5), or `check_runs` refuses.
    """
    layout = _layout_of(source, layout)
    check_runs(_positions_of(source))
    groups = _groups_of(source)
    for group in groups:
        if isinstance(group.rule, LengthRule) and length is None:
            raise ConfigError(f"{group.rule.name} depends on the sequence's length: pass length, or use schemes_at")
    return _single_or_by_name(
        {
            group.name: scheme_of(retrofit_of(group), length=length, **_arguments(group, layout, phase, max_offset))
            for group in groups
        }
    )


def schemes_at(
    source: Checkpoint | PositionConfig,
    lengths: Int[Array, " batch"],
    *,
    layout: Layout | None = None,
    phase: Phase = "exact",
    max_offset: int | None = None,
) -> Schemes:
    """Returns the declared scheme of every sequence, for traced `lengths`; other arguments as in `schemes_of`.

    Each scheme of a rule by length has a leading batch axis; one of a static rule is shared by all sequences.
    """
    layout = _layout_of(source, layout)
    check_runs(_positions_of(source))
    return _single_or_by_name(
        {
            group.name: per_length(retrofit_of(group), **_arguments(group, layout, phase, max_offset))(lengths)
            for group in _groups_of(source)
        }
    )


def retrofit_of(group: LayerGroup) -> Retrofit:
    """Returns what the config did to these layers: the trained rotary embedding, its scaling and its bias.

    Raises:
      UnsupportedError: if nothing turns in these layers, or the bias is a table that only the weights give.
    """
    if group.rotary is None:
        raise UnsupportedError(f"layers of type {group.name!r} have no rotary embedding: build their scheme directly")
    return Retrofit(group.rotary, group.rule, _bias_of(group.bias, group.num_heads))


def _bias_of(spec: BiasSpec | None, num_heads: int) -> Bias | None:
    from rope_jax.biases import alibi_paper

    if spec is None:
        return None
    if spec.kind == "alibi":
        return alibi_paper(num_heads, multiplier=spec.slopes_scale)
    raise UnsupportedError(f"a {spec.kind} bias is a learned table, which a config alone does not give")


def _positions_of(source: Checkpoint | PositionConfig) -> PositionConfig:
    return source.positions if isinstance(source, Checkpoint) else source


def _groups_of(source: Checkpoint | PositionConfig) -> tuple[LayerGroup, ...]:
    return _positions_of(source).groups


def _layout_of(source: Checkpoint | PositionConfig, layout: Layout | None) -> Layout:
    if layout is not None:
        return layout
    return source.layout if isinstance(source, Checkpoint) else "half"


def _arguments(group: LayerGroup, layout: Layout, phase: Phase, max_offset: int | None) -> dict:
    return {
        "num_heads": group.num_heads,
        "head_dim": group.head_dim,
        "layout": layout,
        "phase": phase,
        "max_offset": max_offset,
    }


def _single_or_by_name(schemes: dict) -> Schemes:
    return next(iter(schemes.values())) if len(schemes) == 1 else schemes
