"""Standard output and error that never raise into a command: what cannot be written is remembered, not thrown."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any


class GuardedStream:
    """A text stream whose failures are remembered: a command runs on to its result and its exit status.

    Attributes:
      failure: what the first write that failed raised, or None; what is written after it is dropped.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        """Writes `text` if that is still possible."""
        if text and self.failure is None:
            if self._stream is None:  # closed before the process began
                self.failure = OSError(errno.EBADF, os.strerror(errno.EBADF))
            else:
                self._attempt(self._stream.write, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes all lines."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Hands on what was written."""
        if self._stream is not None and self.failure is None:
            self._attempt(self._stream.flush)

    def isatty(self) -> bool:
        """Returns whether a terminal reads along."""
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, action: Any, *arguments: str) -> None:
        try:
            action(*arguments)
        except (OSError, ValueError) as error:
            self.failure = error
            # What is still held back must not fail again when the interpreter flushes at exit.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def guarded() -> Iterator[tuple[GuardedStream, GuardedStream]]:
    """Stands in for `sys.stdout` and `sys.stderr` while a command runs; yields both."""
    before = sys.stdout, sys.stderr
    if None in before:
        _occupy_closed()
    # A path can hold bytes that are no text, and a terminal lack a letter: neither is worth losing a result for.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    output, errors = GuardedStream(sys.stdout), GuardedStream(sys.stderr)
    sys.stdout, sys.stderr = output, errors  # type: ignore[assignment]
    try:
        yield output, errors
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before


def _occupy_closed() -> None:
    """Opens the null device as every standard stream that is closed, so that no file of the command gets its place."""
    for standard in (0, 1, 2):
        try:
            os.fstat(standard)
        except OSError:
            # The lowest free number is taken; for reading, so that a write fails.
            os.open(os.devnull, os.O_RDONLY)
