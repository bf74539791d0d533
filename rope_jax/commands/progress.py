"""Progress on standard error: a bar on a terminal, plain lines elsewhere, from the first second to the last."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_FIRST = 0.5  # seconds before anything is said, so that input refused at once is one line
_SHORTEST, _LONGEST = 1.0, 60.0  # seconds between two lines
_SHARE = 20  # of the time so far that passes between two lines: a day is a few hundred lines


class Progress:
    """Says what is being done; what is said last is said again as time passes, since one step may take minutes.

    Args:
      who: what the lines begin with.
      clock: seconds, as `time.monotonic`.
    """

    def __init__(self, who: str = "rope-jax", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._who, self._clock = who, clock
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._bar: Any = None
        self._state: tuple[str, int, int] | None = None
        self._shown: tuple[str, int, int] | None = None
        self._start = self._last = 0.0

    def __enter__(self) -> "Progress":
        self._start = self._clock()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Takes note that `done` of `total` parts are done, and that `stage` is at work."""
        with self._lock:
            self._state = (stage, done, total)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._close_bar()

    def _watch(self) -> None:
        # A stream that was closed or is full ends the reports, never the run.
        with contextlib.suppress(OSError, ValueError):
            while not self._stop.wait(_FIRST):
                self.show()

    def show(self) -> None:
        """Says what is being done, if it is time to."""
        with self._lock:
            state = self._state
        if state is None or sys.stderr is None:
            return
        if sys.stderr.isatty():
            self._draw(*state)
        elif self._is_due(state):
            seconds = self._clock() - self._start
            print(f"{self._who}: {_line(*state)} [{_duration(seconds)}]", file=sys.stderr, flush=True)
            self._shown, self._last = state, self._clock()

    def _is_due(self, state: tuple[str, int, int]) -> bool:
        now = self._clock()
        if self._shown is None:
            return True
        pause = min(max((now - self._start) / _SHARE, _SHORTEST), _LONGEST)
        return now - self._last >= (pause if state != self._shown else _LONGEST)

    def _draw(self, stage: str, done: int, total: int) -> None:
        import tqdm

        if self._bar is None or self._bar.total != total or done < self._bar.n:
            self._close_bar()
            self._bar = tqdm.tqdm(total=total, initial=done, file=sys.stderr, leave=False)
        self._bar.set_description(stage, refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()

    def _close_bar(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.close()
            self._bar = None


def _line(stage: str, done: int, total: int) -> str:
    return stage if total <= 1 else f"{stage} ({done} of {total} done)"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
