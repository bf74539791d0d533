"""The errors a caller can act on; each message is one line that names the key, value and file."""

import contextlib
from collections.abc import Iterator


class RopeJaxError(ValueError):
    """Base of every error that bad input can cause; the command turns it into exit status 2."""


class ConfigError(RopeJaxError):
    """A model config holds a key or value that is missing, contradictory or out of range."""


class UnsupportedError(ConfigError):
    """A config is well-formed but uses a mechanism this library refuses to approximate."""


class ScalingError(RopeJaxError):
    """A scaling rule has an impossible hyperparameter, or is composed where that has no meaning."""


class CheckpointError(RopeJaxError):
    """A checkpoint's files are damaged, incomplete, or do not match its config."""


class InputError(RopeJaxError):
    """A command's text, flag or output directory cannot be used."""


@contextlib.contextmanager
def named(option: str) -> Iterator[None]:
    """Puts the name of an option before what is wrong with its value, unless it is there.

    >>> with named("scaling"):
    ...     raise InputError("there is no 'magic'")
    Traceback (most recent call last):
    rope_jax.errors.InputError: scaling: there is no 'magic'
    """
    try:
        yield
    except RopeJaxError as error:
        words = str(error)
        raise type(error)(words if words.startswith(f"{option}: ") else f"{option}: {words}") from error
