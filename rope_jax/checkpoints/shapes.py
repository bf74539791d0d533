"""The heads of a layer: how many, how wide, and how many of their dimensions turn."""

import dataclasses
from collections.abc import Mapping

from rope_jax.checkpoints.ledger import Check, Section, boolean, integer, number, read_places
from rope_jax.checkpoints.per_layer import PER_LAYER, Own
from rope_jax.checkpoints.type_record import ModelType
from rope_jax.checkpoints.unread_keys import read_published

__all__ = ["HEADS", "HEAD_DIM", "HIDDEN", "MAX_HEAD", "SHARES", "WIDTH", "Shape", "check_head", "heads_of", "shape_of"]

COUNT = integer(1, 100_000)
WIDTH = integer(1, 1_000_000)
# The widest head published has 576 dimensions. What is computed from a config grows with this number.
MAX_HEAD = 16_384
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
HIDDEN = ("hidden_size", "d_model", "n_embed", "n_embd")
HEAD_DIM = (
    "head_dim",
    "d_kv",
    "kv_channels",
    "attention_head_dim",
    "attention_head_size",
    "attn_head_dim",
    "attn_head_size",
    "d_head",
    "dim_head",
    "head_size",
    "dim_per_head",
    "size_per_head",
)
SHARES = ("partial_rotary_factor", "rotary_pct", "rope_pct")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Heads of one layer type: how many, how wide, and how many of their dimensions turn."""

    num_heads: int
    head_dim: int
    rotary_dim: int
    partial: float


def shape_of(
    top: Section, rope: Section, spec: ModelType, own: Own, *, kind: str, rope_type: str, latent: bool, label: str
) -> Shape:
    """Returns the heads of layers that turn.

    Args:
      top: the model's section.
      rope: the layer type's rope section, which may hold `partial_rotary_factor`.
      spec: the model type.
      own: what these layers have of their own.
      kind: the layer type.
      rope_type: the rope type; "proportional" keeps still dimensions as pairs of frequency 0.
      latent: whether heads are of a still and a turning part.
      label: prefix of short names.

    Raises:
      ConfigError: if no even number of dimensions, at most a head, would turn.
    """
    num_heads, head_dim = heads_of(top, spec, own, kind=kind, latent=latent, label=label)
    if latent:
        turning = top.ledger.values[f"{label}rotary_dim"].value
        rope.ignore(SHARES[0], "qk_rope_head_dim dimensions of a head turn")
        return Shape(num_heads, head_dim, turning, 1.0)
    partial, whole = _share_of(top, rope, spec, own, rope_type=rope_type, label=label), rope_type == "proportional"
    rotary_dim = head_dim if whole or partial is None else int(head_dim * partial)
    if spec.rotary_dim_unread:
        top.pass_over("rotary_dim", f"{top.ledger.defaults_of}'s published code reads partial_rotary_factor only")
    else:
        stated = top.read("rotary_dim", check=WIDTH, off=True)
        if stated is not None:
            if partial is not None and stated != rotary_dim:
                raise top.error("rotary_dim", f"contradicts partial_rotary_factor, which gives {rotary_dim}")
            rotary_dim = stated
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise top.error("head_dim", f"{rotary_dim} of {head_dim} dimensions would turn; it must be an even number")
    how = "derived: head_dim" if whole or partial is None else "derived: head_dim * partial_rotary_factor"
    if "rotary_dim" not in top.ledger.values or label:
        top.ledger.use(f"{label}rotary_dim", rotary_dim, how)
    return Shape(num_heads, head_dim, rotary_dim, 1.0 if partial is None else partial)


def heads_of(top: Section, spec: ModelType, own: Own, *, kind: str, latent: bool, label: str) -> tuple[int, int]:
    """Returns the number of heads and their dimension, whether they turn or not; arguments as in `shape_of`."""
    keys = spec.own_keys.get(kind, {})
    num_heads = _read_own(top, keys, own, HEADS, COUNT, name=f"{label}num_heads")
    if num_heads is None:
        raise top.error(HEADS[0], "missing")
    if latent:
        return num_heads, _latent_head(top, own, label=label)
    named = spec.own_names.get(HEAD_DIM[0])
    if named is not None:
        for key in HEAD_DIM:
            if key != named:
                top.ignore(key, f"{top.ledger.defaults_of}'s published code reads {named}")
    head_dim = _read_own(top, keys, own, HEAD_DIM if named is None else (named,), WIDTH, name=f"{label}head_dim")
    if head_dim is None:
        hidden = top.need(*HIDDEN, check=WIDTH, name="hidden_size")
        if hidden % num_heads:
            raise top.error("head_dim", f"missing, and hidden_size {hidden} is not a multiple of {num_heads} heads")
        head_dim = hidden // num_heads
        top.ledger.use(f"{label}head_dim", head_dim, "derived: hidden_size / num_attention_heads")
    check_head(top, "head_dim", head_dim)
    return num_heads, head_dim


def check_head(top: Section, key: str, head_dim: int) -> None:
    """Raises where a head is so wide that what is computed from it would not fit, before any of it is."""
    if head_dim > MAX_HEAD:
        raise top.error(key, f"heads of {head_dim:,} dimensions are not read; at most {MAX_HEAD:,} are")


def _share_of(top: Section, rope: Section, spec: ModelType, own: Own, *, rope_type: str, label: str) -> float | None:
    """Returns the share of a head that turns, None where nothing says that it is not the whole one."""
    mine: float | None = own.get(SHARES[0])
    if mine is not None:
        top.ledger.use(f"{label}partial_rotary_factor", mine, own.sources[SHARES[0]])
        return mine
    if spec.whole_by_default and rope_type == "default":
        rope.pass_over(SHARES[0], f"rope type default turns whole heads in {top.ledger.defaults_of}'s published code")
        return None
    named = spec.own_names.get(SHARES[0])
    tops = [(top, key) for key in SHARES]
    unread = (
        tops if rope.published and rope.holds(SHARES[0]) else [place for place in tops if named not in (None, place[1])]
    )
    share = number(0, 1, above=True)
    return read_published([(rope, SHARES[0]), *tops], unread, check=share, name=f"{label}partial_rotary_factor")


def _read_own(
    top: Section, keys_of_kind: Mapping[str, str], own: Own, keys: tuple[str, ...], check: Check, *, name: str
) -> int | None:
    """Returns what the layers have of their own, or a layer type's own key says, or else the key that all share."""
    special = keys_of_kind.get(keys[0])
    for key in keys:  # what other layers have, and these do not
        if top.holds(key):
            top.ledger.account(top.prefix + key)
    mine: int | None = own.get(keys[0])
    if mine is not None:
        if special is not None and top.holds(special):
            stated = read_places([(top, special)], check=check, name=name, default=False)
            if stated != mine:
                raise top.error(special, f"contradicts {own.sources[keys[0]]} ({mine})")
        top.ledger.use(name, mine, own.sources[keys[0]])
        return mine
    # A default for the layer type is written out, layer by layer, where anything is.
    written_out = top.holds(PER_LAYER)
    if special is not None and (special in top.content or (special in top.ledger.defaults and not written_out)):
        stated = top.read(special, check=check, name=name, off=True)
        if stated is not None or special in top.ledger.defaults:
            return stated
    value: int | None = top.read(*keys, check=check, name=name, off=True)
    return value


def _latent_head(top: Section, own: Own, *, label: str) -> int:
    """Returns the width of multi-head latent attention's heads: a still part and a turning one beside it."""
    still, turning = own.get("qk_nope_head_dim"), own.get("qk_rope_head_dim")
    shared_still = top.need("qk_nope_head_dim", check=WIDTH)
    shared_turning = top.need("qk_rope_head_dim", check=WIDTH)
    still, turning = still or shared_still, turning or shared_turning
    if turning % 2:
        raise top.error("qk_rope_head_dim", "must be an even number")
    top.read("rope_interleave", check=boolean)
    head_dim: int = still + turning
    check_head(top, "qk_nope_head_dim", head_dim)
    for key in ("head_dim", "qk_head_dim"):
        stated = top.read(key, check=WIDTH, name=f"stated {key}", default=False, off=True)
        top.ledger.values.pop(f"stated {key}", None)
        if stated is None or own.get("qk_nope_head_dim") or own.get("qk_rope_head_dim"):
            continue
        if key == "qk_head_dim" and stated != head_dim:
            raise top.error(key, f"contradicts qk_nope_head_dim + qk_rope_head_dim, {head_dim}")
        if stated not in (turning, head_dim) and key in top.content:
            top.ledger.find(f"{top.prefix}{key} {stated} is no head's width: the parts of a head decide")
    top.ledger.use(f"{label}head_dim", head_dim, "derived: qk_nope_head_dim + qk_rope_head_dim")
    top.ledger.use(f"{label}rotary_dim", turning, f"{top.prefix}qk_rope_head_dim")
    return head_dim
