"""What all registries share: a record is added once, under a name that flags can spell. Starts without JAX."""

import re
from collections.abc import Callable
from types import UnionType
from typing import Any, TypeVar

from rope_jax.errors import InputError, RopeJaxError

Record = TypeVar("Record")


def add(records: dict[str, Record], name: str, record: Record, *, kind: str) -> Record:
    """Adds a record under its name, after those that are there, and returns it.

    Args:
      records: the registry.
      name: of the record, one word.
      record: what the name stands for.
      kind: what the registry holds, for errors.

    Raises:
      InputError: if the name is taken, or is no word.
    """
    if not re.fullmatch(r"\w+", name):
        raise InputError(f"the name of a {kind} must be one word, got {name!r}")
    if name in records:
        raise InputError(f"there is a {kind} {name!r} already")
    records[name] = record
    return record


def made(make: Callable[..., Any], *given: Any, kind: str, name: str, expected: type | UnionType) -> Any:
    """Returns what a record makes.

    Args:
      make: of the record.
      given: what it is made for.
      kind: what the registry holds, for errors.
      name: of the record.
      expected: what it has to be.

    Raises:
      InputError: if a record of one's own fails, or makes something else; a failure of the package's own is a bug, and
        stays what it is.
    """
    try:
        found = make(*given)
    except RopeJaxError:
        raise
    except Exception as error:
        if (getattr(make, "__module__", None) or "").partition(".")[0] == __package__:
            raise
        raise InputError(f"{kind} {name!r}: {type(error).__name__}: {error}") from error
    if not isinstance(found, expected):
        raise InputError(f"{kind} {name!r} makes {type(found).__name__}, not {_names(expected)}")
    return found


def _names(expected: type | UnionType) -> str:
    kinds: tuple[Any, ...] = getattr(expected, "__args__", (expected,))
    return " or ".join(kind.__name__ for kind in kinds)
