"""Files that are opened only where they are regular: a FIFO waits for a writer for ever, a device may never end."""

import io
import os
import stat

from rope_jax.errors import InputError, RopeJaxError

__all__ = ["check_regular", "irregular_kind", "open_regular"]

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def open_regular(
    path: str | os.PathLike[str], what: str, *, error: type[RopeJaxError] = InputError
) -> io.BufferedReader:
    """Returns a regular file, or a link to one, opened for reading bytes; never waits.

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
        file = os.fdopen(os.open(path, flags), "rb")
    except OSError as reason:
        raise error(_unreadable(path, what, reason)) from None
    try:
        _check_kind(path, what, os.fstat(file.fileno()).st_mode, error)
    except RopeJaxError:
        file.close()
        raise
    return file


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
        raise error(f"{_shown(path)}: cannot be read as {what}: it is {kind}, not a regular file")


def _unreadable(path: str | os.PathLike[str], what: str, reason: OSError | ValueError) -> str:
    why = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return f"{_shown(path)}: cannot be read as {what}: {why}"


def _shown(path: str | os.PathLike[str]) -> str:
    """Returns the path on one line, and shortened in its middle where it is longer than any file's name can be."""
    name = os.fsdecode(path)
    name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return name if len(name) <= 400 else f"{name[:120]}...{name[-60:]}"
