"""JSON read strictly: what two parsers could read differently is an error, not a guess."""

import json
import math
import os
import reprlib
from typing import Any

from rope_jax.errors import ConfigError
from rope_jax.regular_files import read_regular, shown_path

MAX_BYTES = 64 * 2**20


class _Unreadable:
    """Stands for a number that JSON or float64 has no value for, until the key it belongs to is known."""

    def __init__(self, text: str):
        self.text = text


class _Short(reprlib.Repr):
    """A `repr` of bounded length that never raises, whatever JSON value it meets."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxstring, self.maxlong = 2, 4, 4, 60, 40

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print integers of more than a few thousand digits.
        return f"an integer of {x.bit_length()} bits" if x.bit_length() > 256 else super().repr_int(x, level)


def show(value: Any) -> str:
    """Returns `value` for an error message: one short printable line."""
    text = "a deeply nested value"
    if not isinstance(value, (list, tuple, dict)) or _depth(value, limit=8) <= 8:
        text = _Short().repr(value)
    return one_line(text)[:120]


def one_line(text: str) -> str:
    """Returns `text` with everything that is not printable escaped, so that it stays on one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _depth(value: Any, *, limit: int) -> int:
    """Returns how deeply lists and objects nest in `value`, counted no further than `limit + 1`."""
    layer, depth = [value], 0
    while layer and depth <= limit:
        layer = [
            child
            for node in layer
            if isinstance(node, (list, tuple, dict))
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (list, tuple, dict))
        ]
        depth += 1
    return depth


def parse(text: str | bytes, *, origin: str) -> dict[str, Any]:
    """Returns the object that `text` holds.

    Args:
      text: JSON; bytes must be UTF-8.
      origin: the name of its source, for error messages.

    Raises:
      ConfigError: if it is not UTF-8 or not JSON, repeats a key, holds NaN, an infinity or a number beyond float64,
        nests too deeply, or is not an object.
    """
    origin = shown_path(origin)

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ConfigError(f"{origin}: {one_line(key[:200])}: the key appears twice")
            bad = _find_unreadable(value)
            if bad is not None:
                raise ConfigError(
                    f"{origin}: {one_line(key[:200])}: must be a finite number, got {show_text(bad.text)}"
                )
            result[key] = value
        return result

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        result = json.loads(
            text, object_pairs_hook=members, parse_float=_float, parse_int=_int, parse_constant=_Unreadable
        )
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{origin}: not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: nests too deeply") from None
    if not isinstance(result, dict):
        raise ConfigError(f"{origin}: must hold a JSON object, got {type(result).__name__.lstrip('_').lower()}")
    return result


def show_text(text: str) -> str:
    """Returns `text` unquoted, shortened and on one line."""
    return one_line(text if len(text) <= 40 else text[:24] + "..." + text[-8:])


def _find_unreadable(value: Any) -> _Unreadable | None:
    # Objects inside `value` were checked when they were made, so only lists are left to search.
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _Unreadable):
            return node
        if isinstance(node, list):
            waiting.extend(node)
    return None


def _float(text: str) -> float | _Unreadable:
    value = float(text)
    return value if math.isfinite(value) else _Unreadable(text)


def _int(text: str) -> int | _Unreadable:
    # 308 digits fit into a float64; Python itself stops at a few thousand.
    return int(text) if len(text) <= 308 else _Unreadable(text)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the object that a JSON file holds; see `parse`.

    Args:
      path: a regular file of at most 64 MiB.

    Raises:
      ConfigError: if the file is missing, unreadable, no regular file or too large, or `parse` refuses it.
    """
    return parse(read_regular(path, "JSON", limit=MAX_BYTES, error=ConfigError), origin=os.fspath(path))
