"""SIGINT and SIGTERM as exceptions that are not lost: a command that is told to stop cleans up, and stops."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
"""Exit statuses, as shells report a process that a signal ended."""

_GRACE = 10.0  # seconds
_AGAIN = 0.1  # seconds until an exception that was lost is raised once more


class Terminated(BaseException):
    """The process was asked to end by SIGTERM; no `Exception`, so that nothing takes it for a fault and goes on."""


_RAISED: dict[int, type[BaseException]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
_DEFAULT: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class _Asked:
    """What the main thread and the listener tell each other.

    Attributes:
      number: the first signal that came; None for none.
      lost: set where its exception was dropped and is to be raised again.
      ended: set once the body has ended; from then on signals raise nothing.
      ours: held while a signal is sent, or its handler put back.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.lost, self.ended, self.ours = threading.Event(), threading.Event(), threading.Lock()

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.ended.is_set():
            self.number = self.number or number
            raise _RAISED[number]


@contextlib.contextmanager
def raised_on_signals(last_words: Callable[[int], object]) -> Iterator[None]:
    """Makes SIGINT raise `KeyboardInterrupt` and SIGTERM `Terminated` in the body, in place of Python's defaults only.

    Python raises between two of its own instructions. Compiled work can keep it from them for minutes: then the process
    ends without the exception, after a few seconds and `last_words`. And an exception that is raised while a finaliser
    or a callback of the garbage collector runs is dropped: then it is raised again. One that other code turns into an
    `Exception` of its own is turned back.

    Args:
      last_words: says what there is to say about a signal, given by its number; called from another thread.
    """
    # Handlers belong to the main thread; one that a caller has set is left alone.
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number, default in _DEFAULT.items() if main and signal.getsignal(number) is default]
    if not ours:
        yield
        return
    asked = _Asked()
    read, write = os.pipe()
    os.set_blocking(write, False)
    listening = threading.Thread(target=_listen, args=(read, ours, asked, last_words), daemon=True)
    before, report = signal.set_wakeup_fd(write, warn_on_full_buffer=False), sys.unraisablehook

    def dropped(unraisable: Any) -> None:  # sys.UnraisableHookArgs, which exists for type checkers only
        if unraisable.exc_type in _RAISED.values():
            asked.lost.set()  # raised right here, it would be dropped again
        else:
            report(unraisable)

    sys.unraisablehook = dropped
    for number in ours:
        signal.signal(number, asked.handle)
    listening.start()
    try:
        yield
    except Exception as error:
        if asked.number is None:
            raise
        raise _RAISED[asked.number] from error
    finally:
        asked.ended.set()
        with asked.ours:
            for number in ours:
                signal.signal(number, _DEFAULT[number])
        signal.set_wakeup_fd(before)
        sys.unraisablehook = report
        os.close(write)
        listening.join()
        os.close(read)


def _listen(read: int, ours: list[int], asked: _Asked, last_words: Callable[[int], object]) -> None:
    """Ends the process some seconds after a signal unless the body has ended by then."""
    while number := os.read(read, 1):  # the numbers of signals, and nothing once the other end is closed
        if number[0] in ours:
            _end(number[0], asked, last_words)


def _end(number: int, asked: _Asked, last_words: Callable[[int], object]) -> None:
    last = time.monotonic() + _GRACE
    while time.monotonic() < last:
        if asked.ended.wait(_AGAIN):
            return
        if asked.lost.is_set():
            asked.lost.clear()
            with asked.ours:
                if not asked.ended.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, number)
    last_words(number)
    os._exit(128 + number)
