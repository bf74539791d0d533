"""Keys that a config states and its model type's published code does not read: they change nothing, and are found."""

from collections.abc import Sequence
from typing import Any

from rope_jax.checkpoints.ledger import Check, Section, Wrong, is_off, read_places

__all__ = ["read_published"]


def read_published(
    places: Sequence[tuple[Section, str]],
    unread: Sequence[tuple[Section, str]],
    *,
    check: Check,
    name: str,
    off: bool = False,
) -> Any:
    """Returns one value as the published code takes it from the config.

    A place that the code does not read must agree with one that it does. Where the config states the value in unread
    places only, the default stands, and each of them that says something else is a finding.

    Args:
      places: all sections and keys where the value may stand, the one to name as the source first.
      unread: those of them that the published code does not read.
      check: returns the value in its own type, or raises `Wrong`.
      name: the short name to record it by.
      off: whether 0, false and an empty value mean "none".

    Raises:
      ConfigError: if a value fails the check or two places disagree.
    """
    read = [place for place in places if place not in unread]
    if not unread or any(section.holds(key) and not section.published for section, key in read):
        return read_places(places, check=check, name=name, off=off)
    value = read_places(read, check=check, name=name, off=off)
    ledger = places[0][0].ledger
    for section, key in unread:
        if off and is_off(section.content.get(key)):
            section.ignore(key, "off")
            continue
        try:
            agrees = section.holds(key) and check(section.content[key]) == value
        except Wrong as wrong:
            raise section.error(key, str(wrong)) from None
        if agrees:
            section.ignore(key, f"repeats {ledger.values[name].source}")
        else:
            used = f", so {value} stands" if value is not None else ""
            section.pass_over(key, f"{ledger.defaults_of}'s published code does not read it here{used}")
    return value
