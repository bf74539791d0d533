"""Per-pair factors out of a file that a user, or `rope-jax search`, has written."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from rope_jax.checkpoints import strict_json
from rope_jax.errors import InputError
from rope_jax.regular_files import read_regular

KEYS = (
    "factors", "attention_factor", "model", "lengths", "settings", "bias", "tasks", "unchanged", "winner", "named",
    "gain", "interval_method", "omitted", "history", "compilations", "versions",
)  # fmt: skip
"""Those of an object of factors: all that `search.json` has."""


def read_factors(path: pathlib.Path) -> tuple[list[float], float]:
    """Returns the factors of a file, one a rotary pair, and its attention factor (1 where it has none).

    Args:
      path: a JSON list, or an object with the list as `factors` and perhaps a number `attention_factor`, as `rope-jax
        search` writes it beside what it found out.

    Raises:
      ConfigError: if it is an object and `strict_json.parse` refuses it.
      InputError: if it cannot be read, a factor is no finite number above zero, a key is not known, or the factors go
        with a bias.
    """
    content = read_regular(path, "factors", limit=strict_json.MAX_BYTES)
    if content[:64].lstrip()[:1] == b"[":
        try:
            found: Mapping[str, Any] = {"factors": json.loads(content)}
        except (ValueError, RecursionError) as error:
            raise InputError(f"--factors={path}: not JSON: {error}") from None
    else:
        found = strict_json.parse(content, origin=str(path))
    for key in found:
        if key not in KEYS:
            raise InputError(f"--factors={path}: unknown key {strict_json.show(key)}; there are {', '.join(KEYS)}")
    bias = found.get("bias", {"name": "none"})
    name = bias.get("name") if isinstance(bias, Mapping) else bias
    if name != "none":
        raise InputError(
            f"--factors={path}: the factors were found with the bias {strict_json.show(name)}, which no exported "
            "config can hold; search with --bias=none"
        )
    factors, attention_factor = found.get("factors"), found.get("attention_factor", 1.0)
    if not isinstance(factors, list) or not factors:
        raise InputError(f"--factors={path}: factors must be a list of numbers, got {strict_json.show(factors)}")
    for key, value in [
        *((f"factors[{i}]", factor) for i, factor in enumerate(factors)),
        ("attention_factor", attention_factor),
    ]:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 < value <= 1e9):
            raise InputError(
                f"--factors={path}: {key} must be a number above 0, up to 1e9, got {strict_json.show(value)}"
            )
    return [float(factor) for factor in factors], float(attention_factor)
