"""A config while it is read: every value is taken with its path, and what is left over at the end is an error."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rope_jax.checkpoints.positional_keys import looks_positional, other_part
from rope_jax.checkpoints.positions import Sourced
from rope_jax.checkpoints.strict_json import one_line, show
from rope_jax.errors import ConfigError
from rope_jax.regular_files import shown_path

MAX_DEPTH = 64

# Whatever stands in one of these sections is about positions.
_ROPE_SECTION = re.compile(r"(^|\.)(rope_scaling|rope_parameters)\.")

Check = Callable[[Any], Any]


class Wrong(Exception):  # noqa: N818 - internal: never leaves this package
    """What a check has against a value; the ledger adds the path and the value."""


@functools.lru_cache(maxsize=512)
def integer(low: int, high: int) -> Check:
    """Returns the check for a whole number in `[low, high]`; 4096.0 is one."""

    def check(value: Any) -> int:
        number = not isinstance(value, bool) and isinstance(value, (int, float))
        if not (number and low <= value <= high and value == int(value)):
            raise Wrong(f"must be a whole number from {low} to {high}")
        return int(value)

    return check


@functools.lru_cache(maxsize=512)
def number(low: float, high: float, *, above: bool = False) -> Check:
    """Returns the check for a finite number in `[low, high]`, or in `(low, high]` with `above`."""

    def check(value: Any) -> float:
        given = not isinstance(value, bool) and isinstance(value, (int, float))
        if not (given and low <= value <= high and not (above and value == low)):
            raise Wrong(
                f"must be a number {'above' if above else 'from'} {low:g}{', up to' if above else ' to'} {high:g}"
            )
        return float(value)

    return check


def boolean(value: Any) -> bool:
    """The check for true or false."""
    if not isinstance(value, bool):
        raise Wrong("must be true or false")
    return value


def text(value: Any) -> str:
    """The check for a string that says something."""
    if not isinstance(value, str) or not value or len(value) > 200:
        raise Wrong("must be a string of 1 to 200 characters")
    return value


@functools.lru_cache(maxsize=512)
def list_of(check: Check, length: int | None = None) -> Check:
    """Returns the check for a list of `length` values that each pass `check`."""

    def check_list(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise Wrong("must be a list")
        if length is not None and len(value) != length:
            raise Wrong(f"must be a list of {length} values, has {len(value)}")
        try:
            return tuple(check(entry) for entry in value)
        except Wrong as wrong:
            raise Wrong(f"every entry {wrong}") from None

    return check_list


def is_off(value: Any) -> bool:
    """Returns whether a value switches off what its key is about: null, false, 0 or nothing.

    >>> is_off(0), is_off(False), is_off([]), is_off("0")
    (True, True, True, False)
    """
    return value is None or value is False or (isinstance(value, (int, float, list, tuple, dict, str)) and not value)


class Ledger:
    """What was used, what has no effect and what looks wrong, while one config is read.

    Attributes:
      origin: the config's name in error messages, on one line.
      defaults_of: the model type whose published defaults stand in for absent keys.
      defaults: those defaults, by key.
      values: every value used, by a short name.
      without_effect: keys that change nothing, by path, with the reason.
      findings: what looks wrong or risky, one line each.
    """

    def __init__(self, config: Mapping[str, Any], origin: str):
        self.origin = shown_path(origin)
        self.defaults_of = ""
        self.defaults: Mapping[str, Any] = {}
        self.values: dict[str, Sourced] = {}
        self.without_effect: dict[str, str] = {}
        self.findings: list[str] = []
        self._accounted: set[str] = set()
        self._root = config
        for _ in self._walk():  # checks names and depth before anything else looks inside
            pass

    def error(self, path: str, what: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
        """Returns the one-line error about the key at `path`."""
        return kind(f"{self.origin}: {one_line(path)[:200]}: {what}")

    def find(self, finding: str) -> None:
        """Adds a finding, once."""
        if finding not in self.findings:
            self.findings.append(one_line(finding))

    def use(self, name: str, value: Any, source: str) -> None:
        """Records a value that was used and where it came from."""
        self.values[name] = Sourced(value, one_line(source))

    def void(self, name: str, reason: str) -> None:
        """Withdraws a value that was read and then turned out to change nothing."""
        sourced = self.values.pop(name, None)
        if sourced is not None and sourced.source in self._accounted:
            self.account(sourced.source, reason)

    def account(self, path: str, reason: str | None = None) -> None:
        """Marks the key at `path` as understood; with a reason, as one that changes nothing."""
        self._accounted.add(path)
        if reason is not None:
            self.without_effect[one_line(path)] = reason

    def accounted(self, path: str) -> bool:
        """Returns whether the key at `path` has been understood."""
        return path in self._accounted

    def entries(self) -> Iterator[tuple[str, str, Any]]:
        """Yields path, key and value of every key of the model, those of other parts apart."""
        return self._walk()

    def leftovers(self) -> Iterator[tuple[str, str, Any]]:
        """Yields path, key and value of every key about positions that nothing has accounted for."""
        for path, key, value in self._walk():
            if path not in self._accounted and (looks_positional(key) or _ROPE_SECTION.search(path)):
                yield path, key, value

    def _walk(self) -> Iterator[tuple[str, str, Any]]:
        """Yields path, key and value of every key, except inside `OTHER_PARTS`."""
        waiting: list[tuple[str, Any, int]] = [("", self._root, 0)]
        while waiting:
            prefix, node, depth = waiting.pop()
            if depth > MAX_DEPTH:
                raise self.error(prefix.rstrip("."), f"nests more than {MAX_DEPTH} deep")
            if isinstance(node, Mapping):
                for key, value in node.items():
                    if not isinstance(key, str):
                        raise self.error(prefix + show(key), "keys must be strings")
                    path = prefix + key
                    yield path, key, value
                    part = other_part(key)
                    if part is not None and isinstance(value, (Mapping, list)):
                        if path not in self._accounted and any(looks_positional(k) for k in _keys(value)):
                            self.account(path, part)
                    elif isinstance(value, (Mapping, list, tuple)):
                        waiting.append((f"{path}.", value, depth + 1))
            else:
                children = (child for child in node if isinstance(child, (Mapping, list, tuple)))
                waiting.extend((prefix, child, depth + 1) for child in children)


def _keys(value: Any) -> Iterator[str]:
    return (key for key in value if isinstance(key, str)) if isinstance(value, Mapping) else iter(())


@dataclasses.dataclass(frozen=True)
class Section:
    """One object of the config: the top level, `text_config.`, `rope_scaling.`

    Attributes:
      ledger: where readings are recorded.
      content: the object.
      prefix: its path with a dot at the end, or "".
      published: whether it is no part of the config but a default of the model type.
    """

    ledger: Ledger
    content: Mapping[str, Any]
    prefix: str = ""
    published: bool = False

    def holds(self, key: str) -> bool:
        """Returns whether `key` is there and not null."""
        return self.content.get(key) is not None

    def error(self, key: str, what: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
        """Returns the one-line error about `key`, with the value it has."""
        got = f", got {show(self.content[key])}" if key in self.content else ""
        return self.ledger.error(self.prefix + key, what + got, kind)

    def ignore(self, key: str, reason: str) -> None:
        """Records that `key`, if it is there, changes nothing, nor does anything inside it."""
        if f"_{key}" in self.content:
            self.ignore(f"_{key}", reason)
        if key not in self.content:
            return
        self.ledger.account(self.prefix + key, reason)
        waiting = [(f"{self.prefix}{key}.", self.content[key])]
        while waiting:
            prefix, node = waiting.pop()
            if isinstance(node, Mapping):
                for inner, value in node.items():
                    self.ledger.account(prefix + inner)
                    waiting.append((f"{prefix}{inner}.", value))
            elif isinstance(node, (list, tuple)):
                waiting.extend((prefix, value) for value in node)

    def pass_over(self, key: str, why: str) -> None:
        """Records that `key` changes nothing, as `ignore`, and finds that it says something all the same."""
        if self.holds(key):
            self.ledger.find(f"{self.prefix}{key} {show(self.content[key])} has no effect: {why}")
        self.ignore(key, why if self.holds(key) else "null: not set")

    def section(self, key: str) -> "Section | None":
        """Returns the object at `key`, or None where the key is absent, null, false, 0 or empty."""
        if is_off(self.content.get(key)) and not isinstance(self.content.get(key), Mapping):
            if self.holds(key):
                self.ledger.account(self.prefix + key, f"{show(self.content[key])}: off")
            return None
        if not isinstance(self.content[key], Mapping):
            raise self.error(key, "must be an object or null")
        self.ledger.account(self.prefix + key)
        return Section(self.ledger, self.content[key], f"{self.prefix}{key}.", self.published)

    def read(self, *keys: str, check: Check, name: str | None = None, default: bool = True, off: bool = False) -> Any:
        """Returns the value of the first of `keys` that is there, None for null or no value; see `read_places`."""
        places = [(self, key) for key in keys]
        return read_places(places, check=check, name=name or keys[0], default=default, off=off)

    def need(self, *keys: str, check: Check, name: str | None = None) -> Any:
        """Returns what `read` does, and raises where that is None."""
        value = self.read(*keys, check=check, name=name)
        if value is None:
            raise self.error(keys[0], "missing" if keys[0] not in self.content else "must not be null")
        return value


def read_places(
    places: Sequence[tuple[Section, str]], *, check: Check, name: str, default: bool = True, off: bool = False
) -> Any:
    """Returns one value that may stand in several places, and records where it stood.

    Args:
      places: sections and keys, the one to name as the source first. All that are there must agree, and those with an
        underscore before the name, which libraries write for what they keep to themselves, with them.
      check: returns the value in its own type, or raises `Wrong`.
      name: the short name to record it by.
      default: whether the model type's default counts where no place has the key; an explicit null means "none".
      off: whether 0, false and an empty value mean "none" too.

    Raises:
      ConfigError: if a value fails the check or two places disagree.
    """
    ledger = places[0][0].ledger
    found: tuple[str, Any] | None = None
    null = False
    for section, key in ((section, name) for section, stem in places for name in (stem, f"_{stem}")):
        path = section.prefix + key
        if key not in section.content:
            continue
        if section.content[key] is None or (off and is_off(section.content[key])):
            null = True
            said = "null: not set" if section.content[key] is None else f"{show(section.content[key])}: off"
            ledger.account(path, said)
            continue
        try:
            value = check(section.content[key])
        except Wrong as wrong:
            raise section.error(key, str(wrong)) from None
        if found is None:
            found = path, value
            ledger.account(path)
        elif value == found[1]:
            ledger.account(path, f"repeats {one_line(found[0])}" if looks_positional(key) else None)
        else:
            raise section.error(key, f"contradicts {one_line(found[0])} ({show(found[1])})")
    if found is not None:
        ledger.use(name, found[1], found[0])
        return found[1]
    if default and not null:
        for _, key in places:
            if key in ledger.defaults:
                ledger.use(name, ledger.defaults[key], f"default of {ledger.defaults_of}")
                return ledger.defaults[key]
    return None


def close(a: float, b: float) -> bool:
    """Returns whether two numbers of a config mean the same."""
    return math.isclose(a, b, rel_tol=1e-6)
