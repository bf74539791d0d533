"""The config's rope section, in either schema, for all layers or for each layer type."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rope_jax.checkpoints.layer_kinds import WITHOUT_POSITIONS, canonical_kind
from rope_jax.checkpoints.ledger import Section, is_off
from rope_jax.checkpoints.type_record import CHUNKED, FULL, SLIDING, ModelType

__all__ = ["RopeSections", "rope_sections"]

_SPARSE = ("indexed_attention", "minimax_m3_sparse", "sparse_attention")


@dataclasses.dataclass(frozen=True)
class RopeSections:
    """The rope section, however it is spelled.

    Attributes:
      flat: one section for all layers, or the empty one.
      nested: one section a layer type; empty unless the config nests them.
      still: layer types whose section is null: they do not turn.
    """

    flat: Section
    nested: Mapping[str, Section]
    still: tuple[str, ...] = ()

    @property
    def by_type(self) -> bool:
        """Whether the config nests a section a layer type."""
        return bool(self.nested or self.still)


def rope_sections(top: Section, spec: ModelType) -> RopeSections:
    """Returns the rope section of either schema, `rope_scaling` (v4) or `rope_parameters` (v5).

    Raises:
      ConfigError: if both are there and disagree, or a section is no object.
    """
    if spec.rope_scaling_unread:
        top.pass_over("rope_scaling", f"{top.ledger.defaults_of}'s published code reads rope_parameters alone")
    old = None if spec.rope_scaling_unread else top.section("rope_scaling")
    new = top.section("rope_parameters")
    for key in ("rope_scaling", "rope_parameters"):
        if key in top.content and top.content[key] is None:
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
    kinds = {key: _kind(key) for key in section.content}
    nests = [key for key, kind in kinds.items() if kind is not None]
    if not nests and not any(isinstance(value, Mapping) for value in section.content.values()):
        return RopeSections(section, {})
    nested: dict[str, Section] = {}
    still: list[str] = []
    for key, kind in kinds.items():
        if kind is None:
            if is_off(section.content[key]):
                section.ignore(key, "off")
                continue
            raise section.error(key, "not a layer type, in a section that nests them")
        inner = section.section(key)
        if inner is not None and kind in nested and nested[kind].content != inner.content:
            raise section.error(key, f"contradicts another section for {kind} layers")
        if inner is None:
            section.ignore(key, "null: layers of this type do not turn")
            still.append(kind)
        else:
            nested[kind] = inner
    return RopeSections(Section(top.ledger, {}, section.prefix), nested, tuple(still))


def _kind(key: str) -> str | None:
    kind = FULL if key in _SPARSE else canonical_kind(key)
    return kind if kind in (FULL, SLIDING, CHUNKED) or kind in WITHOUT_POSITIONS else None


def _check_equal(top: Section, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    elsewhere = ("rope_theta", "partial_rotary_factor")  # may stand at the top level in the old schema
    was, now = (
        {("rope_type" if key == "type" else key): value for key, value in content.items() if key not in elsewhere}
        for content in (old, new)
    )
    if was != now or any(key in old and key in new and old[key] != new[key] for key in elsewhere):
        raise top.error("rope_scaling", f"contradicts {top.prefix}rope_parameters")
