"""Files that are opened only where they are regular, and read with every failure as one line.

A FIFO waits for a writer for ever, a device may never end, and a disk or a network may fail in the middle.
"""

import io
import os
import stat
from typing import Any

from rope_jax.errors import InputError, RopeJaxError

__all__ = ["check_regular", "irregular_kind", "open_regular", "read_regular", "shown_path"]

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class _NamedFile(io.FileIO):
    """A file whose failures while it is read, also by a library that is handed it, name it in one line."""

    def __init__(self, descriptor: int, path: str | os.PathLike[str], what: str, error: type[RopeJaxError]):
        super().__init__(descriptor, "rb")
        self._path, self._what, self._error = path, what, error

    def readinto(self, buffer: Any, /) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as reason:
            raise self._failure(reason) from None

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as reason:
            raise self._failure(reason) from None

    def _failure(self, reason: OSError) -> RopeJaxError:
        return self._error(_unreadable(self._path, self._what, reason))


def open_regular(
    path: str | os.PathLike[str], what: str, *, error: type[RopeJaxError] = InputError
) -> io.BufferedReader:
    """Returns a regular file, or a link to one, opened for reading bytes; never waits.

    What fails later, while the file is read, raises the same error.

    Args:
      path: the file.
      what: what it is read as ("weights", "factors"), for the message.
      error: the class to raise.

    Raises:
      RopeJaxError: of class `error`, in one line with the path and the reason, if the file is missing, unreadable, or
        no regular file.
    """
    check_regular(path, what, error=error)
    # Between the two calls the name can come to mean another file: what was opened is looked at, and not waited for.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        file: io.BufferedReader = io.BufferedReader(_NamedFile(os.open(path, flags), path, what, error))
    except OSError as reason:
        raise error(_unreadable(path, what, reason)) from None
    try:
        _check_kind(path, what, os.fstat(file.fileno()).st_mode, error)
    except RopeJaxError:
        file.close()
        raise
    return file


def read_regular(
    path: str | os.PathLike[str], what: str, *, limit: int | None = None, error: type[RopeJaxError] = InputError
) -> bytes:
    """Returns the content of a regular file, or of a link to one.

    Args:
      path: the file.
      what: what it is read as, for the message.
      limit: most bytes it may have, in whole MiB; any number where None.
      error: the class to raise.

    Raises:
      RopeJaxError: of class `error`, as `open_regular`, or if the file is larger.
    """
    with open_regular(path, what, error=error) as file:
        # One byte more than the limit is asked for, since a file can grow after its size is known.
        content = file.read(-1 if limit is None else limit + 1)
    if limit is not None and len(content) > limit:
        raise error(f"{shown_path(path)}: cannot be read as {what}: it is larger than {limit // 2**20} MiB")
    return content


def check_regular(path: str | os.PathLike[str], what: str, *, error: type[RopeJaxError] = InputError) -> os.stat_result:
    """Returns the status of a regular file that a library will open by its name; otherwise as `open_regular`."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as reason:
        raise error(_unreadable(path, what, reason)) from None
    _check_kind(path, what, status.st_mode, error)
    return status


def irregular_kind(mode: int) -> str | None:
    """Returns what a file of this status mode is called if it is no regular one, else None."""
    if stat.S_ISREG(mode):
        return None
    return next((name for test, name in _KINDS if test(mode)), "no file with content")


def _check_kind(path: str | os.PathLike[str], what: str, mode: int, error: type[RopeJaxError]) -> None:
    kind = irregular_kind(mode)
    if kind is not None:
        raise error(f"{shown_path(path)}: cannot be read as {what}: it is {kind}, not a regular file")


def _unreadable(path: str | os.PathLike[str], what: str, reason: OSError | ValueError) -> str:
    why = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return f"{shown_path(path)}: cannot be read as {what}: {why}"


def shown_path(path: str | os.PathLike[str]) -> str:
    """Returns the path on one line, and shortened in its middle where it is longer than any file's name can be."""
    name = os.fsdecode(path)
    name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return name if len(name) <= 400 else f"{name[:120]}...{name[-60:]}"
