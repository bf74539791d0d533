"""The metadata of one GGUF file while it is turned into a config: what was taken, what it became, and what is left."""

from typing import Any, TypeVar

from rope_jax.checkpoints.gguf_file import GgufFile
from rope_jax.checkpoints.ledger import Check, Wrong, boolean
from rope_jax.checkpoints.strict_json import show
from rope_jax.errors import ConfigError, UnsupportedError

__all__ = ["DEFAULT", "Keys"]

DEFAULT = "default of llama.cpp"
_T = TypeVar("_T")


class Keys:
    """Reads keys by their names without the architecture's prefix, and collects the config they make.

    Attributes:
      file: the GGUF file.
      config: what a `config.json` of the same model would hold.
      sources: by a value's path in `config`, the key or tensor it came from.
      findings: what looks wrong or risky, one line each.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.config: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.findings: list[str] = []
        self._taken: set[str] = set()

    def full(self, name: str) -> str:
        """Returns a key as it stands in the file."""
        return f"{self.file.architecture}.{name}"

    def holds(self, name: str) -> bool:
        """Returns whether the file has the key."""
        return self.full(name) in self.file.metadata

    def error(self, name: str, what: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
        """Returns the one-line error about a key, with its value."""
        key = self.full(name)
        got = f", got {show(self.file.metadata[key])}" if key in self.file.metadata else ""
        error = self.file.error(key, what + got, kind)
        assert isinstance(error, ConfigError)
        return error

    def take(self, name: str, check: Check, default: Any = None) -> Any:
        """Returns the value of a key in its own type, `default` where it is absent.

        Raises:
          ConfigError: if the value does not pass the check.
        """
        key = self.full(name)
        self._taken.add(key)
        if key not in self.file.metadata:
            return default
        try:
            return check(self.file.metadata[key])
        except Wrong as wrong:
            raise self.error(name, str(wrong)) from None

    def need(self, name: str, check: Check) -> Any:
        """Returns what `take` does, and raises where the key is absent."""
        value = self.take(name, check)
        if value is None:
            raise self.error(name, "missing")
        return value

    def only(self, name: str, check: Check, *allowed: Any, why: str) -> None:
        """Takes a key that is understood at some values only.

        Raises:
          UnsupportedError: if it is there with another value.
        """
        value = self.take(name, check)
        if value is not None and value not in allowed:
            raise self.error(name, why, UnsupportedError)

    def switch(self, name: str, default: bool) -> bool:
        """Returns a truth value."""
        value: bool = self.take(name, boolean, default)
        return value

    def put(self, path: str, value: Any, source: str | None = None) -> None:
        """Writes one value of the config; a dot in its path stands for an object inside.

        Args:
          path: such as "rope_scaling.factor".
          value: as JSON has it.
          source: a key, with or without the architecture's prefix, or in words where the value comes from; the default
            where None, or where the file does not have the key.
        """
        section = self.config
        *outer, last = path.split(".")
        for name in outer:
            section = section.setdefault(name, {})
        section[last] = value
        if source is None:
            self.sources[path] = DEFAULT
        elif " " in source:
            self.sources[path] = source
        else:
            keys = (key for key in (self.full(source), source) if key in self.file.metadata)
            self.sources[path] = next(keys, DEFAULT)

    def left(self) -> list[str]:
        """Returns the architecture's keys that nothing has taken, without the prefix."""
        prefix = self.full("")
        return [key[len(prefix) :] for key in self.file.metadata if key.startswith(prefix) and key not in self._taken]
