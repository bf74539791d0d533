"""Which layers of a model share positions, and what each of them reads from the config."""

import collections
import dataclasses
from collections.abc import Mapping

from rope_jax import scaling
from rope_jax.checkpoints.layer_kinds import WITHOUT_POSITIONS, layer_types_of
from rope_jax.checkpoints.ledger import Section, Wrong, read_places
from rope_jax.checkpoints.per_layer import Own, own_of_layers
from rope_jax.checkpoints.positions import LayerGroup
from rope_jax.checkpoints.rope_sections import RopeSections, rope_sections
from rope_jax.checkpoints.rope_types import THETA, Scaled, rope_type_of, scaled
from rope_jax.checkpoints.shapes import SHARES, heads_of, shape_of
from rope_jax.checkpoints.temperatures import temperature_of
from rope_jax.checkpoints.turning import turning_layers
from rope_jax.checkpoints.type_record import CHUNKED, FULL, REFUSED, SLIDING, ModelType
from rope_jax.checkpoints.unread_keys import read_published
from rope_jax.checkpoints.windows import chunk_of, window_of
from rope_jax.errors import UnsupportedError

__all__ = ["rope_groups"]

BASES = ("rope_theta", "rotary_emb_base")
_NOPE = "_nope"  # suffix of the group of layers that do not turn


@dataclasses.dataclass(frozen=True)
class _Variant:
    """What layers share: their type, whether they turn, and what they have of their own."""

    kind: str
    turns: bool
    own: Own


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens the model was trained on before any extension, and tokens it is meant to serve."""

    original: int
    served: int


@dataclasses.dataclass(frozen=True)
class _Reader:
    """What all layers are read from."""

    top: Section
    sections: RopeSections
    spec: ModelType
    latent: bool
    declared: int

    def heads(self, variant: _Variant, label: str) -> tuple[int, int]:
        return heads_of(self.top, self.spec, variant.own, kind=variant.kind, latent=self.latent, label=label)

    def rope(self, variant: _Variant, label: str) -> tuple[int, int, Scaled]:
        """Returns heads, their width, and the scaled rotary embedding of layers that turn."""
        rope, around = self._section(variant.kind)
        rope_type = rope_type_of(rope, label=label)
        shape = shape_of(
            self.top,
            rope,
            self.spec,
            variant.own,
            kind=variant.kind,
            rope_type=rope_type,
            latent=self.latent,
            label=label,
        )
        result = scaled(
            rope,
            rope_type,
            top=around,
            base=_base(self.top, rope, self.spec, variant.own, kind=variant.kind, label=label),
            dim=shape.rotary_dim,
            partial=shape.partial,
            declared=self.declared,
            label=label,
            scale_logits=self.latent and self.spec.scales_softmax,
            fixed_alpha=self.spec.fixed_alpha,
        )
        return shape.num_heads, shape.head_dim, result

    def _section(self, kind: str) -> tuple[Section, Section]:
        """Returns the rope section of a layer type, and the one around it that may hold an original length."""
        sections, spec, top = self.sections, self.spec, self.top
        if sections.by_type:
            if kind in sections.nested:
                return sections.nested[kind], top
            if "rope_theta" in spec.own_keys.get(kind, {}):  # the layer type's own default stands
                return Section(top.ledger, {}, sections.flat.prefix), Section(top.ledger, {})
            raise top.error("rope_parameters", f"has no section for {kind} layers")
        rope = sections.flat
        if spec.rope is not None and SLIDING in spec.rope and rope.content:
            raise top.error("rope_parameters", "must hold one section a layer type for this model type")
        if spec.local_unscaled and kind == SLIDING:
            # Of a section for all layers, these take the base at most, and the original length is not theirs.
            keep = () if "rope_theta" in spec.own_keys.get(kind, {}) else ("rope_theta",)
            kept = {key: rope.content[key] for key in keep if key in rope.content}
            return Section(rope.ledger, kept, rope.prefix), Section(top.ledger, {})
        return rope, top


def rope_groups(
    top: Section, spec: ModelType, *, layers: int, declared: int, known: bool
) -> tuple[tuple[LayerGroup, ...], Lengths]:
    """Returns the groups of layers with positions, in order of first layer, and the model's lengths.

    Args:
      top: the model's section.
      spec: the model type.
      layers: how many layers there are.
      declared: `max_position_embeddings`.
      known: whether the model type is known here.

    Raises:
      ConfigError: if anything about positions is missing, contradictory or not understood.
      UnsupportedError: if no layer has positions, or a mechanism is refused.
    """
    ledger = top.ledger
    chunk = chunk_of(top) if spec.layers == "still chunked" else None
    window = window_of(top, spec, known=known)
    kinds = layer_types_of(top, spec, layers=layers, window=window, chunk=chunk, known=known)
    if CHUNKED in kinds and chunk is None:
        chunk = chunk_of(top)
    turning = turning_layers(top, spec, kinds, window, known=known)
    if window is None and not ledger.accounted(f"{top.prefix}max_window_layers"):
        top.ignore("max_window_layers", "no layer has a window")
    own = own_of_layers(top, kinds)
    _find_without_positions(top, kinds)
    sections = rope_sections(top, spec)
    top = _without_lists(top)
    latent = spec.latent or all(top.holds(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim"))
    reader = _Reader(top, sections, spec, latent, declared)
    variants: dict[_Variant, list[int]] = {}
    for layer, (kind, turns) in enumerate(zip(kinds, turning, strict=True)):
        if kind not in WITHOUT_POSITIONS:
            # A null section means no rotation, unless the layer type has a base of its own to fall back on.
            null = kind in sections.still and "rope_theta" not in spec.own_keys.get(kind, {})
            turns = turns and not null and own[layer].get("rope_theta") != 0
            turns = turns and own[layer].get(SHARES[0]) != 0
            variants.setdefault(_Variant(kind, turns, own[layer]), []).append(layer)
    named = _names(variants)
    temperatures = {
        turns: temperature_of(top, sections, spec, turns=turns) for turns in {variant.turns for variant in variants}
    }
    read = _read(reader, variants, named)
    _settle_shares(top, sections, spec, kinds)
    main = next((result for _, _, result in read.values() if result is not None), None)
    lengths = Lengths(declared, declared) if main is None else Lengths(main.original_length, main.served_length)
    if not any(variant.turns for variant in variants):
        ledger.find("no layer turns: attention has no positions at all, beside the order that causality gives")
        for key in (*BASES, *SHARES, "rope_scaling", "rope_parameters"):
            top.ignore(key, "no layer turns")
    alike = spec.layers == "alike" and not top.holds("layer_types")
    window = _effective_window(top, spec, window, kinds, served=lengths.served)
    if CHUNKED in kinds and chunk is None:
        raise top.error("attention_chunk_size", f"missing, although layers are of type {CHUNKED}")
    groups = []
    for variant, members in variants.items():
        num_heads, head_dim, result = read[variant]
        rotary = None if result is None else result.rotary
        scales = main if result is None else result
        rule = scaling.none() if scales is None else scales.rule
        if result is not None and rotary is not None and rule.name == "none":  # trained as long as those beside it
            rotary = dataclasses.replace(rotary, original_length=lengths.original)
        mine = window if variant.kind == SLIDING or alike else None
        cut = variant.kind == CHUNKED and chunk is not None and chunk < lengths.served
        name = named[variant]
        if mine is not None and name == FULL:  # layers that all have a window are sliding ones
            name = SLIDING
        groups.append(
            LayerGroup(
                name=name,
                layers=tuple(members),
                rotary=rotary,
                rule=rule,
                bias=None,
                window=chunk if cut else mine,
                num_heads=num_heads,
                head_dim=head_dim,
                chunked=cut,
                temperature=temperatures[variant.turns],
            )
        )
    if any(group.chunked for group in groups):
        ledger.find(
            f"{CHUNKED}: tokens see their own chunk of {chunk} tokens only; offsets within it are read as those of a "
            "window"
        )
    return tuple(groups), lengths


def _without_lists(top: Section) -> Section:
    """Returns the section without the keys that held an entry a layer."""
    shared = {k: v for k, v in top.content.items() if not (k in (*BASES, *SHARES, "head_dim") and isinstance(v, list))}
    return dataclasses.replace(top, content=shared)


def _find_without_positions(top: Section, kinds: tuple[str, ...]) -> None:
    """Finds the layers that are in no group, by type."""
    counted = collections.Counter(kind for kind in kinds if kind in WITHOUT_POSITIONS)
    for kind, count in counted.items():
        top.ledger.find(f"{count} of {len(kinds)} layers are {kind}: they have no positions and are in no group")
    if sum(counted.values()) == len(kinds):
        raise top.error("layer_types", f"no positions: {REFUSED['no positions']}", UnsupportedError)


def _names(variants: Mapping[_Variant, list[int]]) -> dict[_Variant, str]:
    """Returns the name of each variant: its layer type's; beside others of that type with what tells it from them."""
    named: dict[_Variant, str] = {}
    taken: collections.Counter[str] = collections.Counter()
    ordered = sorted(variants, key=lambda variant: not variant.turns)
    for variant in ordered:
        beside = any(other.kind == variant.kind and other.turns for other in variants)
        name = variant.kind if variant.turns or not beside else variant.kind + _NOPE
        taken[name] += 1
        named[variant] = name if taken[name] == 1 else f"{name}_{taken[name]}"
    return named


def _read(
    reader: _Reader, variants: Mapping[_Variant, list[int]], named: Mapping[_Variant, str]
) -> dict[_Variant, tuple[int, int, Scaled | None]]:
    """Returns heads, their width and the scaled rotary embedding of every variant."""
    spec = reader.spec
    read: dict[_Variant, tuple[int, int, Scaled | None]] = {}
    # What sees the whole context comes first, so that it owns the short names without a prefix.
    order = sorted(variants, key=lambda variant: (not variant.turns, variant.kind != FULL))
    plain = not reader.sections.by_type and not spec.local_unscaled and not spec.own_keys
    for variant in order:
        same = next((done for done in read if done.own == variant.own and done.turns), None)
        if plain and same is not None:
            read[variant] = read[same] if variant.turns else (*read[same][:2], None)
            continue
        label = f"{named[variant]}." if read else ""
        if variant.turns:
            read[variant] = reader.rope(variant, label)
        else:
            read[variant] = (*reader.heads(variant, label), None)
    return read


def _settle_shares(top: Section, sections: RopeSections, spec: ModelType, kinds: tuple[str, ...]) -> None:
    """Accounts for keys that no layer of the config reads."""
    if spec.whole_by_default:
        for key in SHARES:
            if key in top.content and not top.ledger.accounted(top.prefix + key):
                top.pass_over(key, f"rope type default turns whole heads in {top.ledger.defaults_of}'s published code")
    for kind, section in sections.nested.items():
        if kind not in kinds:
            top.ledger.account(section.prefix.rstrip("."), "no layer has this type")
            for key in section.content:
                section.ignore(key, "no layer has this type")
    for kind, own in spec.own_keys.items():
        if kind not in kinds:
            for key in own.values():
                top.ignore(key, "no layer has this type")


def _base(top: Section, rope: Section, spec: ModelType, layer: Own, *, kind: str, label: str) -> float:
    mine: float | None = layer.get("rope_theta")
    if mine is not None:
        try:
            base: float | None = THETA(mine)
        except Wrong:
            raise top.ledger.error(layer.sources["rope_theta"], f"must be a number above 1, got {mine:g}") from None
        for section in (rope, top):
            section.ignore("rope_theta", "layers have bases of their own")
        assert base is not None
        top.ledger.use(f"{label}rope_theta", base, layer.sources["rope_theta"])
        return base
    own = spec.own_keys.get(kind, {}).get("rope_theta")
    if own is not None:
        # Without any statement the own key's default counts, not that of the layers beside these.
        stated: float | None = read_places(
            [(rope, "rope_theta"), (top, own)], check=THETA, name=f"{label}rope_theta", default=False
        )
        if stated is not None:
            return stated
        places = [(top, own)]
    elif label and rope.holds("rope_theta"):
        places = [(rope, "rope_theta")]  # the top level's base is then the other layers'
    else:
        places = [(rope, "rope_theta"), *((top, key) for key in BASES)]
        attention = top.section("attn_config")
        if attention is not None:
            places.append((attention, "rope_theta"))
    named = spec.own_names.get("rope_theta")
    unread = [] if named is None else [place for place in places if place[0] is top and place[1] != named]
    base = read_published(places, unread, check=THETA, name=f"{label}rope_theta")
    if base is None:
        raise top.error(own or "rope_theta", "missing, and the model type has no published default")
    source = top.ledger.values[f"{label}rope_theta"].source
    if source.startswith("default of") and ":" not in source:
        top.ledger.find(f"{label}rope_theta is not stated: {base:g} is the {source}")
    return base


def _effective_window(
    top: Section, spec: ModelType, window: int | None, kinds: tuple[str, ...], *, served: int
) -> int | None:
    """Returns the window if it cuts anything off."""
    ledger = top.ledger
    if window is None:
        if SLIDING in kinds:
            use = ledger.values.get("use_sliding_window")
            why = "missing" if use is None or use.value else "off (use_sliding_window is false)"
            raise top.error("sliding_window", f"{why}, although layers are of type sliding_attention")
        return None
    if window >= served:
        ledger.void("sliding_window", f"not shorter than the context of {served} tokens")
        return None
    if SLIDING not in kinds and (spec.layers != "alike" or top.holds("layer_types")):
        listed = any(top.holds(key) for key in ("layer_types", "hybrid_layer_pattern", "layers_block_type"))
        if spec.layers == "listed" and spec.kinds is None and not listed:
            raise top.error("sliding_window", "which layers have it is not stated, and not known for this model type")
        ledger.void("sliding_window", "no layer is of type sliding_attention")
        return None
    return window
