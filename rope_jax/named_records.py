"""What all registries share: a record is added once, under a name that flags can spell. Starts without JAX."""

import re
from typing import TypeVar

from rope_jax.errors import InputError

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
