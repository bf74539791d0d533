"""SIGTERM as an exception, so that a command that is told to stop cleans up as one that is interrupted does."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
"""Exit statuses, as shells report a process that a signal ended."""

_GRACE = 10.0  # seconds


class Terminated(BaseException):
    """The process was asked to end by SIGTERM; no `Exception`, so that nothing takes it for a fault and goes on."""


@contextlib.contextmanager
def raised_on_sigterm(last_words: Callable[[], object]) -> Iterator[None]:
    """Makes SIGTERM raise `Terminated` in the body, where nobody else listens to it and Python allows it at all.

    Python raises between two of its own instructions, and compiled work can keep it from them for minutes. Then the
    process ends without the exception, after a few seconds and `last_words`.

    Args:
      last_words: says what there is to say; called from another thread.
    """
    # Handlers belong to the main thread; one that a caller has set is left alone.
    free = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not free:
        yield
        return
    ended = threading.Event()
    read, write = os.pipe()
    os.set_blocking(write, False)
    listening = threading.Thread(target=_listen, args=(read, ended, last_words), daemon=True)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _raise)
    listening.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(before)
        ended.set()
        os.close(write)
        listening.join()
        os.close(read)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _listen(read: int, ended: threading.Event, last_words: Callable[[], object]) -> None:
    """Ends the process some seconds after a SIGTERM unless the body has ended by then."""
    while number := os.read(read, 1):  # the numbers of signals, and nothing once the other end is closed
        if number[0] == signal.SIGTERM and not ended.wait(_GRACE):
            last_words()
            os._exit(TERMINATED)
