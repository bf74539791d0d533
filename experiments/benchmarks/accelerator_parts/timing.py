"""The time of work that a device queues."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

_CALLS, _SAMPLES = 10, 5
_SAMPLE = 0.2  # seconds; a sample of slow calls has fewer


def milliseconds(function: Callable[..., Any], inputs: Sequence[Sequence[Any]], wait: Callable[[Any], Any]) -> float:
    """Returns the time of a call: the median of samples of some calls queued behind each other and waited for once.

    Args:
      function: compiled.
      inputs: arguments of calls, taken in turn.
      wait: returns when what a call gave is there.
    """

    def sample(calls: int) -> float:
        begun = time.perf_counter()
        for number in range(calls):
            out = function(*inputs[number % len(inputs)])
        wait(out)
        return (time.perf_counter() - begun) / calls

    sample(len(inputs))  # the first calls allocate
    calls = max(1, min(_CALLS, int(_SAMPLE / sample(1))))
    return 1e3 * statistics.median(sample(calls) for _ in range(_SAMPLES))
