"""Which layers of a model share positions, and what each layer type reads from the config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rope_jax.checkpoints.layer_kinds import COUNT, layer_types_of, turning_layers, window_of
from rope_jax.checkpoints.ledger import Check, Section, boolean, integer, number, read_places
from rope_jax.checkpoints.model_types import CHUNKED, FULL, LINEAR, SLIDING, ModelType
from rope_jax.checkpoints.per_layer import PER_LAYER, own_sections
from rope_jax.checkpoints.positions import LayerGroup
from rope_jax.checkpoints.rope_types import THETA, Scaled, rope_type_of, scaled
from rope_jax.checkpoints.unread_keys import read_published

WIDTH = integer(1, 1_000_000)
# The widest head published has 576 dimensions. What is computed from a config grows with this number.
MAX_HEAD = 16_384
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
HIDDEN = ("hidden_size", "d_model", "n_embed", "n_embd")
HEAD_DIM = ("head_dim", "d_kv", "kv_channels", "attention_head_dim", "attention_head_size", "d_head", "head_size")
SHARES = ("partial_rotary_factor", "rotary_pct", "rope_pct")
_NOPE = "_nope"  # suffix of the group of layers that do not turn


@dataclasses.dataclass(frozen=True)
class Shape:
    """Heads of one layer type: how many, how wide, and how many of their dimensions turn."""

    num_heads: int
    head_dim: int
    rotary_dim: int
    partial: float


@dataclasses.dataclass(frozen=True)
class RopeSections:
    """The config's rope section, however it is spelled.

    Attributes:
      flat: one section for all layers, or the empty one.
      nested: one section a layer type; empty unless the config nests them.
    """

    flat: Section
    nested: Mapping[str, Section]


def rope_sections(top: Section, spec: ModelType) -> RopeSections:
    """Returns the rope section of either schema, `rope_scaling` (v4) or `rope_parameters` (v5).

    Raises:
      ConfigError: if both are there and disagree, or a section is no object.
    """
    old, new = top.section("rope_scaling"), top.section("rope_parameters")
    for key in ("rope_scaling", "rope_parameters"):
        if key in top.content and not top.holds(key):
            top.ignore(key, "null: no scaling")
    if old is not None and new is not None:
        _check_equal(top, old.content, new.content)
        top.ignore("rope_scaling", f"repeats {top.prefix}rope_parameters")
        top.ledger.find("both rope_scaling and rope_parameters are there; they agree")
    section = new if new is not None else old
    if section is None and spec.rope is not None:
        prefix = f"default of {top.ledger.defaults_of}: rope_parameters."
        section = Section(top.ledger, spec.rope, prefix, published=True)
        top.ledger.find(f"no rope section: the published default of {top.ledger.defaults_of} is used")
    if section is None:
        return RopeSections(Section(top.ledger, {}, f"{top.prefix}rope_parameters."), {})
    if not any(isinstance(value, Mapping) for value in section.content.values()):
        return RopeSections(section, {})
    nested = {}
    for key in section.content:
        if key not in (FULL, SLIDING, CHUNKED, LINEAR):
            raise section.error(key, "not a layer type, in a section that nests them")
        inner = section.section(key)
        if inner is None:
            section.ignore(key, "null: layers of this type do not turn")
        else:
            nested[key] = inner
    return RopeSections(Section(top.ledger, {}, section.prefix), nested)


def _check_equal(top: Section, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    elsewhere = ("rope_theta", "partial_rotary_factor")  # may stand at the top level in the old schema
    was, now = (
        {("rope_type" if key == "type" else key): value for key, value in content.items() if key not in elsewhere}
        for content in (old, new)
    )
    if was != now or any(key in old and key in new and old[key] != new[key] for key in elsewhere):
        raise top.error("rope_scaling", f"contradicts {top.prefix}rope_parameters")


def shape_of(
    top: Section, rope: Section, spec: ModelType, own_layers: Section | None, *, kind: str, rope_type: str, label: str
) -> Shape:
    """Returns the heads of one layer type.

    Args:
      top: the model's section.
      rope: the layer type's rope section, which may hold `partial_rotary_factor`.
      spec: the model type.
      own_layers: what `per_layer_config` says of these layers, or None.
      kind: the layer type.
      rope_type: the rope type; "proportional" keeps still dimensions as pairs of frequency 0.
      label: prefix of short names.

    Raises:
      ConfigError: if no even number of dimensions, at most a head, would turn.
    """
    own = spec.own_keys.get(kind, {})
    num_heads = _read_own(top, own, own_layers, HEADS, COUNT, name=f"{label}num_heads")
    if num_heads is None:
        raise top.error(HEADS[0], "missing")
    if spec.latent:
        return _latent_shape(top, num_heads)
    head_dim = _read_own(top, own, own_layers, HEAD_DIM, WIDTH, name=f"{label}head_dim")
    if head_dim is None:
        hidden = top.need(*HIDDEN, check=WIDTH, name="hidden_size")
        if hidden % num_heads:
            raise top.error("head_dim", f"missing, and hidden_size {hidden} is not a multiple of {num_heads} heads")
        head_dim = hidden // num_heads
        top.ledger.use(f"{label}head_dim", head_dim, "derived: hidden_size / num_attention_heads")
    check_head(top, "head_dim", head_dim)
    partial, whole = _share_of(top, rope, spec, rope_type=rope_type, label=label), rope_type == "proportional"
    rotary_dim = head_dim if whole or partial is None else int(head_dim * partial)
    if top.holds("rotary_dim"):
        stated = top.need("rotary_dim", check=WIDTH)
        if partial is not None and stated != rotary_dim:
            raise top.error("rotary_dim", f"contradicts partial_rotary_factor, which gives {rotary_dim}")
        rotary_dim = stated
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise top.error("head_dim", f"{rotary_dim} of {head_dim} dimensions would turn; it must be an even number")
    how = "derived: head_dim" if whole or partial is None else "derived: head_dim * partial_rotary_factor"
    if not top.holds("rotary_dim"):
        top.ledger.use(f"{label}rotary_dim", rotary_dim, how)
    return Shape(num_heads, head_dim, rotary_dim, 1.0 if partial is None else partial)


def _share_of(top: Section, rope: Section, spec: ModelType, *, rope_type: str, label: str) -> float | None:
    """Returns the share of a head that turns, None where nothing says that it is not the whole one."""
    if spec.whole_by_default and rope_type == "default":
        rope.pass_over(SHARES[0], f"rope type default turns whole heads in {top.ledger.defaults_of}'s published code")
        return None
    own = spec.own_names.get(SHARES[0])
    tops = [(top, key) for key in SHARES]
    unread = (
        tops if rope.published and rope.holds(SHARES[0]) else [place for place in tops if own not in (None, place[1])]
    )
    share = number(0, 1, above=True)
    return read_published([(rope, SHARES[0]), *tops], unread, check=share, name=f"{label}partial_rotary_factor")


def check_head(top: Section, key: str, head_dim: int) -> None:
    """Raises where a head is so wide that what is computed from it would not fit, before any of it is."""
    if head_dim > MAX_HEAD:
        raise top.error(key, f"heads of {head_dim:,} dimensions are not read; at most {MAX_HEAD:,} are")


def _read_own(
    top: Section,
    own: Mapping[str, str],
    own_layers: Section | None,
    keys: tuple[str, ...],
    check: Check,
    *,
    name: str,
) -> int | None:
    """Returns what the layers' own section or a layer type's own key says, or else the key that all layers share."""
    special = own.get(keys[0])
    for key in keys:  # what other layers have, and these do not
        if top.holds(key):
            top.ledger.account(top.prefix + key)
    if own_layers is not None and own_layers.holds(keys[0]):
        places = [(own_layers, keys[0])] + ([(top, special)] if special is not None else [])
        return read_places(places, check=check, name=name, default=False)
    # A default for the layer type is written out, layer by layer, where anything is.
    written_out = top.holds(PER_LAYER)
    if special is not None and (special in top.content or (special in top.ledger.defaults and not written_out)):
        return top.read(special, check=check, name=name)
    return top.read(*keys, check=check, name=name)


def _latent_shape(top: Section, num_heads: int) -> Shape:
    """Returns the heads of multi-head latent attention: a still part and a turning one beside it."""
    still = top.need("qk_nope_head_dim", check=WIDTH)
    turning = top.need("qk_rope_head_dim", check=WIDTH)
    if turning % 2:
        raise top.error("qk_rope_head_dim", "must be an even number")
    top.read("rope_interleave", check=boolean)
    head_dim = still + turning
    check_head(top, "qk_nope_head_dim", head_dim)
    if top.holds("head_dim") and top.need("head_dim", check=WIDTH) not in (turning, head_dim):
        raise top.error("head_dim", f"is neither qk_rope_head_dim {turning} nor the whole head {head_dim}")
    if top.holds("qk_head_dim") and top.need("qk_head_dim", check=WIDTH) != head_dim:
        raise top.error("qk_head_dim", f"contradicts qk_nope_head_dim + qk_rope_head_dim, {head_dim}")
    top.ledger.use("head_dim", head_dim, "derived: qk_nope_head_dim + qk_rope_head_dim")
    top.ledger.use("rotary_dim", turning, f"{top.prefix}qk_rope_head_dim")
    return Shape(num_heads, head_dim, turning, 1.0)


def _base(top: Section, rope: Section, spec: ModelType, *, kind: str, label: str) -> float:
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
        places = [(rope, "rope_theta"), (top, "rope_theta"), (top, "rotary_emb_base")]
    named = spec.own_names.get("rope_theta")
    unread = [] if named is None else [place for place in places if place[0] is top and place[1] != named]
    base: float | None = read_published(places, unread, check=THETA, name=f"{label}rope_theta")
    if base is None:
        raise top.error(own or "rope_theta", "missing, and the model type has no published default")
    source = top.ledger.values[f"{label}rope_theta"].source
    if source.startswith("default of") and ":" not in source:
        top.ledger.find(f"{label}rope_theta is not stated: {base:g} is the {source}")
    return base


def rope_groups(top: Section, spec: ModelType, *, layers: int, declared: int) -> tuple[tuple[LayerGroup, ...], Scaled]:
    """Returns the layer groups of a rotary model, and the scaling of its main layers.

    Args:
      top: the model's section.
      spec: the model type.
      layers: how many there are.
      declared: `max_position_embeddings`.

    Raises:
      ConfigError: if anything about the layers is missing, contradictory or out of range.
    """
    ledger = top.ledger
    sections = rope_sections(top, spec)
    window = window_of(top, spec)
    kinds = layer_types_of(top, spec, layers=layers, window=window)
    turning = turning_layers(top, spec, kinds, window)
    own_layers = own_sections(top, kinds)
    if LINEAR in kinds:
        ledger.find(
            f"{kinds.count(LINEAR)} of {layers} layers are {LINEAR}: they have no positions and are in no group"
        )
        if all(kind == LINEAR for kind in kinds):
            raise top.error("layer_types", "no layer has positions")
    shared = not sections.nested and not spec.local_unscaled and not spec.own_keys and not own_layers
    names: dict[tuple[str, bool], list[int]] = {}
    for layer, (kind, turns) in enumerate(zip(kinds, turning, strict=True)):
        if kind != LINEAR:
            names.setdefault((kind, turns), []).append(layer)
    read: dict[str, tuple[Shape, Scaled]] = {}
    # The main layers come first, so that they own the names without a prefix.
    for kind in sorted({kind for kind, _ in names}, key=lambda kind: kind != FULL):
        if shared and read:
            read[kind] = next(iter(read.values()))
            continue
        label = f"{kind}." if read else ""
        read[kind] = _read_kind(top, sections, spec, own_layers.get(kind), kind=kind, label=label, declared=declared)
    if spec.whole_by_default:
        for key in SHARES:
            if key in top.content and not ledger.accounted(top.prefix + key):
                top.pass_over(key, f"rope type default turns whole heads in {ledger.defaults_of}'s published code")
    for kind, section in sections.nested.items():
        if kind not in read:
            ledger.account(section.prefix.rstrip("."), "no layer has this type")
            for key in section.content:
                section.ignore(key, "no layer has this type")
    for kind, own in spec.own_keys.items():
        if kind not in read:
            for key in own.values():
                top.ignore(key, "no layer has this type")
    main = next(iter(read.values()))[1]
    alike = spec.layers == "alike" and not top.holds("layer_types")
    window = _effective_window(top, spec, window, kinds, served=main.served_length)
    groups = []
    for (kind, turns), members in names.items():
        shape, scaling = read[kind]
        rotary = scaling.rotary
        if scaling.rule.name == "none":  # trained as long as the layers beside it
            rotary = dataclasses.replace(rotary, original_length=main.original_length)
        own_window = window if kind == SLIDING or alike else None
        # Where the config names no types, layers that all have a window are sliding ones.
        name = SLIDING if own_window is not None and kind == FULL else kind
        groups.append(
            LayerGroup(
                name=name if turns or (kind, True) not in names else name + _NOPE,
                layers=tuple(members),
                rotary=rotary if turns else None,
                rule=scaling.rule,
                bias=None,
                window=own_window,
                num_heads=shape.num_heads,
                head_dim=shape.head_dim,
            )
        )
    return tuple(groups), main


def _read_kind(
    top: Section,
    sections: RopeSections,
    spec: ModelType,
    own_layers: Section | None,
    *,
    kind: str,
    label: str,
    declared: int,
) -> tuple[Shape, Scaled]:
    rope, around = sections.flat, top
    if sections.nested:
        if kind not in sections.nested:
            raise top.error("rope_parameters", f"has no section for {kind} layers")
        rope = sections.nested[kind]
    elif spec.rope is not None and SLIDING in spec.rope and rope.content:
        raise top.error("rope_parameters", "must hold one section a layer type for this model type")
    elif spec.local_unscaled and kind == SLIDING:
        # Of a section for all layers, these take the base at most, and the original length is not theirs.
        keep = () if "rope_theta" in spec.own_keys.get(kind, {}) else ("rope_theta",)
        rope = Section(rope.ledger, {key: rope.content[key] for key in keep if key in rope.content}, rope.prefix)
        around = Section(top.ledger, {})
    rope_type = rope_type_of(rope, label=label)
    shape = shape_of(top, rope, spec, own_layers, kind=kind, rope_type=rope_type, label=label)
    base = _base(top, rope, spec, kind=kind, label=label)
    result = scaled(
        rope,
        rope_type,
        top=around,
        base=base,
        dim=shape.rotary_dim,
        partial=shape.partial,
        declared=declared,
        label=label,
        scale_logits=spec.latent,
    )
    return shape, result


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
        if spec.layers == "listed" and not top.holds("layer_types") and not top.holds("hybrid_layer_pattern"):
            raise top.error("sliding_window", "which layers have it is not stated, and not known for this model type")
        ledger.void("sliding_window", "no layer is of type sliding_attention")
        return None
    return window
