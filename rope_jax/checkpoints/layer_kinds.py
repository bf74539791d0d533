"""The type of every layer, as a config states it in any of the published ways, or as its model type has it."""

import re
from collections.abc import Mapping
from typing import Any

from rope_jax.checkpoints.ledger import Check, Section, Wrong, integer, is_off, list_of, text
from rope_jax.checkpoints.mechanisms import SPARSE
from rope_jax.checkpoints.turning import listed_turning
from rope_jax.checkpoints.type_record import CHUNKED, CROSS, FULL, LINEAR, SLIDING, ModelType, refusal
from rope_jax.errors import UnsupportedError

__all__ = ["COUNT", "WITHOUT_POSITIONS", "canonical_kind", "layer_types_of"]

COUNT = integer(1, 100_000)
_LISTS = ("layer_types", "layers_block_type")
_PATTERNS = ("sliding_window_pattern", "global_attn_every_n_layers")
_INDICES = ("full_attn_idxs", "attn_layer_indices", "attn_layer_idx", "hybrid_layer_ids")
_INTERVALS = ("full_attention_interval", "layer_group_size")
_SPARSE_KINDS = ("indexed_attention", "minimax_m3_sparse", "sparse_attention")
_COMPRESSED = ("compressed_sparse_attention", "heavily_compressed_attention")
_LETTERS = {"M": "mamba", "*": FULL, "-": "mlp", "E": "moe"}
# Layers that no position enters.
WITHOUT_POSITIONS = frozenset(
    (LINEAR, "linear", "conv", "short_conv", "mamba", "mamba2", "recurrent", "ssm", "gated_deltanet", "kda")
) | {"mlp", "moe", CROSS, "cross"}
_NAMES: Mapping[str, str] = {
    **dict.fromkeys((FULL, "attention", "full", "global", "global_attention", "hybrid"), FULL),
    **dict.fromkeys(
        (SLIDING, "sliding", "local", "local_attention", "sliding_window", "swa", "hybrid_sliding"), SLIDING
    ),
    **dict.fromkeys((CHUNKED, "chunked"), CHUNKED),
    "linear": LINEAR,
    "cross": CROSS,
}
_SOME = "attention of some type"
_NONE = "no attention"


def canonical_kind(name: str) -> str:
    """Returns the name that a published layer type goes by here.

    >>> canonical_kind("local_attention"), canonical_kind("conv")
    ('sliding_attention', 'conv')
    """
    return _NAMES.get(name, name)


def layer_types_of(
    top: Section, spec: ModelType, *, layers: int, window: int | None, chunk: int | None, known: bool
) -> tuple[str, ...]:
    """Returns the type of every layer, as stated or as the model type's pattern gives it.

    Where the published code makes the last layer a full one whatever is stated, it is one here, with a finding.

    Args:
      top: the model's section.
      spec: the model type.
      layers: how many there are.
      window: the stated window, or None.
      chunk: the stated chunk, or None.
      known: whether the model type is; a pattern of one that is not is read as most mean it.

    Raises:
      ConfigError: if a list has the wrong length or an unknown type, or two statements disagree.
      UnsupportedError: if a type is known and not read.
    """
    kinds = _settled(top, spec, layers, window, chunk, known)
    if spec.last_full and kinds[-1] == SLIDING:
        top.ledger.find(f"the last layer is read as {FULL}, as {top.ledger.defaults_of}'s published code has it")
        kinds = (*kinds[:-1], FULL)
    return kinds


def _settled(
    top: Section, spec: ModelType, layers: int, window: int | None, chunk: int | None, known: bool
) -> tuple[str, ...]:
    lists = _list_statements(top, spec, layers)
    others = _other_statements(top, spec, layers, known, listed=bool(lists))
    stated = {**lists, **others}
    if not stated:
        return _by_default(top, spec, layers, window, chunk)
    first = next(iter(stated))
    kinds = stated[first]
    if spec.full_every and _patterned(spec):
        _settle_pattern(top, spec, layers, kinds)
    for key, other in stated.items():
        for mine, theirs in zip(kinds, other, strict=True):
            if not _agree(mine, theirs):
                raise top.error(key, f"contradicts {first}")
    # What the first statement leaves open another may say; else a layer with attention is a full one.
    filled = tuple(_sharpest(entries) for entries in zip(*stated.values(), strict=True))
    if first in _PATTERNS:
        return filled
    for name in (*_PATTERNS, *_INTERVALS, "max_window_layers", "no_rope_layer_interval"):
        if name not in others and not (name == "no_rope_layer_interval" and spec.rotation == "listed"):
            top.ledger.void(name, f"{first} names every layer")
    if "max_window_layers" in top.content and not top.ledger.accounted(f"{top.prefix}max_window_layers"):
        top.ignore("max_window_layers", f"{first} names every layer")
    return filled


def _agree(a: str, b: str) -> bool:
    without_a, without_b = (kind == _NONE or kind in WITHOUT_POSITIONS for kind in (a, b))
    if without_a or without_b:
        return without_a and without_b
    return a == b or _SOME in (a, b)


def _sharpest(entries: tuple[str, ...]) -> str:
    for entry in entries:
        if entry not in (_SOME, _NONE):
            return entry
    return LINEAR if entries[0] == _NONE else FULL


def _list_statements(top: Section, spec: ModelType, layers: int) -> dict[str, tuple[str, ...]]:
    """Returns what keys that name every layer say, by key."""
    found: dict[str, tuple[str, ...]] = {}
    drafts = top.content.get("num_nextn_predict_layers")
    extra = drafts if isinstance(drafts, int) and not isinstance(drafts, bool) and 0 < drafts < 100 else 0
    for key in _LISTS:
        length = layers
        if isinstance(top.content.get(key), (list, tuple)) and extra and len(top.content[key]) == layers + extra:
            length = layers + extra
        listed = top.read(key, check=list_of(text, length), off=True)
        if listed is not None:
            if length > layers:
                top.ledger.find(f"the last {extra} of {top.prefix}{key} are layers that draft, not the model's own")
            found[key] = tuple(_kind_of(top, spec, key, name) for name in listed[:layers])
    cycle = top.read("block_types", check=list_of(text), off=True)
    if cycle:
        names = tuple(_kind_of(top, spec, "block_types", name) for name in cycle)
        found["block_types"] = tuple(names[i % len(names)] for i in range(layers))
    hybrid = top.read("hybrid_layer_pattern", check=list_of(integer(0, 1), layers), off=True)
    if hybrid is not None:
        found["hybrid_layer_pattern"] = tuple(SLIDING if entry else FULL for entry in hybrid)
    types = top.read("attn_type_list", check=list_of(integer(0, 1), layers), off=True)
    if types is not None:
        found["attn_type_list"] = tuple(_SOME if entry else LINEAR for entry in types)
    letters = top.read("hybrid_override_pattern", check=_override(layers), off=True)
    if letters is not None:
        found["hybrid_override_pattern"] = tuple(_LETTERS[letter] for letter in letters)
    return found


def _other_statements(
    top: Section, spec: ModelType, layers: int, known: bool, *, listed: bool
) -> dict[str, tuple[str, ...]]:
    """Returns what indices, intervals and patterns say, by key."""
    found: dict[str, tuple[str, ...]] = {}
    index = integer(0, layers - 1)
    for key in _INDICES:
        indices = top.read(key, check=list_of(index))
        if indices is not None:
            found[key] = tuple(_SOME if i in indices else _NONE for i in range(layers))
    crossing = top.read("cross_attention_layers", check=list_of(index), off=True)
    if crossing is not None:
        found["cross_attention_layers"] = tuple(CROSS if i in crossing else _SOME for i in range(layers))
    own = top.section("linear_attn_config") if spec.latent else None
    if own is not None:
        numbers = own.read("full_attn_layers", check=list_of(integer(1, layers)), off=True)  # counted from 1
        own.ignore("kda_layers", "all layers that full_attn_layers does not name")
        own.ignore("head_dim", "a shape of linear attention")
        if numbers is not None:
            found["full_attn_layers"] = tuple(FULL if i + 1 in numbers else LINEAR for i in range(layers))
    for key in _INTERVALS:
        every = top.read(key, check=COUNT, default=not listed, off=True)
        if every is not None:
            found[key] = tuple(LINEAR if (i + 1) % every else FULL for i in range(layers))
    period = top.read("attn_layer_period", check=COUNT, default=not listed, off=True)
    offset = top.read("attn_layer_offset", check=integer(0, 100_000), default=not listed)
    if listed and period is not None:
        for key in ("attn_layer_period", "attn_layer_offset"):
            top.ledger.void(key, "every layer is named")
    elif period is not None and spec.rotation == "none" and "n_mamba_heads" in top.content:
        # Zamba counts from its fourth layer, after one block of its own.
        rest = [_SOME if i % period == (offset or 0) else _NONE for i in range(layers - 3)]
        found["attn_layer_period"] = tuple([_NONE, _NONE, _SOME, *rest][:layers])
    elif period is not None:
        found["attn_layer_period"] = tuple(_SOME if i % period == (offset or 0) else _NONE for i in range(layers))
    pattern = _pattern_statement(top, spec, layers, known) if listed or not _patterned(spec) else None
    return found if pattern is None else {**found, pattern[0]: pattern[1]}


def _patterned(spec: ModelType) -> bool:
    return spec.layers in ("every nth full", "first and every nth full")


def _pattern_statement(top: Section, spec: ModelType, layers: int, known: bool) -> tuple[str, tuple[str, ...]] | None:
    """Returns what a stated sliding pattern says beside a list, or for a model type that is not known."""
    key = next((key for key in _PATTERNS for name in (key, f"_{key}") if not is_off(top.content.get(name))), None)
    if key is None or spec.full_every or (known and not _patterned(spec) and not top.holds("layer_types")):
        return None
    return key, _by_pattern(top, spec, key, layers)


def _by_pattern(top: Section, spec: ModelType, key: str, layers: int) -> tuple[str, ...]:
    value = top.need(*_PATTERNS, check=_letters_or_count, name="sliding_window_pattern")
    if isinstance(value, str):
        kinds = [SLIDING if value[i % len(value)] == "L" else FULL for i in range(layers)]
        return (*kinds[:-1], FULL)  # whatever the letters say, as documented where they are
    first = spec.layers == "first and every nth full"
    if spec.first_of_n_full:
        return tuple(SLIDING if i % value else FULL for i in range(layers))
    return tuple(FULL if (i + 1) % value == 0 or (first and i == 0) else SLIDING for i in range(layers))


def _kind_of(top: Section, spec: ModelType, key: str, name: str) -> str:
    if name in _SPARSE_KINDS:
        if not spec.sparse:
            raise top.error(key, SPARSE, UnsupportedError)
        return FULL
    if name in _COMPRESSED:
        raise refusal(top, key, "compressed attention")
    kind = canonical_kind(name)
    if kind not in (FULL, SLIDING, CHUNKED) and kind not in WITHOUT_POSITIONS:
        raise top.error(key, f"unknown layer type {name!r:.60}")
    return kind


def _by_default(top: Section, spec: ModelType, layers: int, window: int | None, chunk: int | None) -> tuple[str, ...]:
    if spec.refused:
        raise refusal(top, "layer_types", spec.refused)
    if spec.rotation == "no full beside windows" and window is None:
        top.ignore("sliding_window_pattern", "no layer has a window")
        return (FULL,) * layers
    if _patterned(spec):
        if spec.full_every:
            every = _fixed_pattern(top, spec, layers)
            first = spec.layers == "first and every nth full"
            return tuple(FULL if (i + 1) % every == 0 or (first and i == 0) else SLIDING for i in range(layers))
        return _by_pattern(top, spec, "sliding_window_pattern", layers)
    if spec.layers in ("upper sliding", "lower alternate sliding"):
        bound = top.read("max_window_layers", check=integer(0, 100_000))
        if window is None or bound is None:
            top.ledger.void("max_window_layers", "no layer has a window")
            return (FULL,) * layers
        if spec.layers == "upper sliding":
            return tuple(SLIDING if i >= bound else FULL for i in range(layers))
        return tuple(SLIDING if i % 2 == 0 and i < bound else FULL for i in range(layers))
    if spec.layers == "still sliding" and window is not None:
        return tuple(FULL if turns else SLIDING for turns in listed_turning(top, layers))
    if spec.layers == "still chunked" and chunk is not None:
        return tuple(CHUNKED if turns else FULL for turns in listed_turning(top, layers))
    if spec.layers == "alike" and spec.window_switch:
        if window is None:
            top.ignore("max_window_layers", "no layer has a window")
        else:
            top.pass_over(
                "max_window_layers", f"{top.ledger.defaults_of}'s published code has one window in all layers"
            )
    if spec.kinds is not None:
        return tuple(spec.kinds(i, layers) for i in range(layers))
    return (FULL,) * layers


def _fixed_pattern(top: Section, spec: ModelType, layers: int) -> int:
    """Returns the distance of full layers that the published code has, whatever the config says of it."""
    every, name = spec.full_every, top.ledger.defaults_of
    _settle_pattern(top, spec, layers, None)
    top.ledger.use("sliding_window_pattern", every, f"default of {name}")
    return every


def _settle_pattern(top: Section, spec: ModelType, layers: int, listed: tuple[str, ...] | None) -> None:
    """Accounts for a pattern that the published code does not read; it is found unless it says what is done anyway."""
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        stated = top.content.get(key)
        counted = stated if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0 else None
        if counted and listed == tuple(SLIDING if (i + 1) % counted else FULL for i in range(layers)):
            top.ignore(key, "repeats layer_types")
        elif counted == spec.full_every and listed is None:
            top.ignore(key, "says what is done anyway")
        else:
            why = f"{top.ledger.defaults_of}'s published code does not read it; unless listed, "
            top.pass_over(key, f"{why}one layer in {spec.full_every} is full")


def _override(layers: int) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) != layers or not set(value) <= set(_LETTERS):
            raise Wrong(f"must be {layers} letters of {''.join(_LETTERS)}, one a layer")
        return value

    return check


def _letters_or_count(value: Any) -> Any:
    """The check for a pattern: every how many layers, or letters of local (L) and global (G) layers."""
    if isinstance(value, str):
        if not re.fullmatch("[LG]{1,200}", value):
            raise Wrong("must be a whole number, or letters L (sliding) and G (full)")
        return value
    try:
        return COUNT(value)
    except Wrong:
        raise Wrong("must be a whole number, or letters L (sliding) and G (full)") from None
