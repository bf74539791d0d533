"""What commands share in reading their flags: how flags are declared, the numbers they may be, and the model named."""

import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags as absl_flags

from rope_jax.errors import InputError


class Define:
    """Declares flags, as absl does: `define.integer(name, default, help)` is its `DEFINE_integer`.

    Attributes:
      group: what the next flags are for: their heading in `--help`, in the order in which they are declared.
    """

    def __init__(self, values: absl_flags.FlagValues) -> None:
        self._values, self.group = values, "flags"

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        define = getattr(absl_flags, f"DEFINE_{kind}")
        return functools.partial(define, flag_values=self._values, module_name=self.group)


def check_ranges(flags: absl_flags.FlagValues, ranges: Mapping[str, tuple[int, int]]) -> None:
    """Raises `InputError` unless every flag that is given lies between its smallest and largest value."""
    for name, (least, most) in ranges.items():
        value = getattr(flags, name)
        if value is not None and not least <= value <= most:
            raise InputError(f"--{name} must be from {least} to {most}, got {value}")


def by_flag(message: str, flags: absl_flags.FlagValues) -> str:
    """Returns an error with the flag that it comes from before it.

    That is where the error begins with the name of an option, as those of the library do, or with a file that is given.
    """
    for name in flags:
        option = name.replace("_", "[_ ]")
        if found := re.match(rf"{option}(?=[:=]| must | cannot | \d)", message):
            return f"--{name}{message[found.end() :]}"
        value = flags[name].value
        if isinstance(value, str) and value and message.startswith((f"{value}:", f"{pathlib.Path(value)}:")):
            return f"--{name}={message}"
    return message


def config_of(arguments: list[str], flags: absl_flags.FlagValues, *, hint: str = "") -> str | None:
    """Returns the path of the config that is named, or None where `--preset` is.

    Args:
      arguments: the positional ones.
      flags: with `preset`.
      hint: follows the error where nothing is named.
    """
    if len(arguments) > 1:
        raise InputError(f"one config file at most, got {len(arguments)}: {' '.join(arguments)}")
    if flags.preset is not None and arguments:
        raise InputError(
            f"give either --preset or a config file, not both (--preset={flags.preset} and {arguments[0]})"
        )
    if flags.preset is None and not arguments:
        raise InputError(f"name a model: --preset=NAME or the path of its config.json{hint}")
    return arguments[0] if arguments else None


def checkpoint_of(arguments: list[str], *, usage: str) -> str | None:
    """Returns the path of the checkpoint that is named, or None for the bundled test model."""
    if len(arguments) > 1:
        raise InputError(f"one checkpoint at most, got {len(arguments)}: {usage}")
    return arguments[0] if arguments else None
