"""One process of a benchmark: makes its inputs, compiles, warms up, and runs once each time it is asked.

    python experiments/benchmarks/worker.py module:function

is started by `interleaved.py`, which asks on standard input, one line of JSON a question, and reads the answers.
"""

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

SAMPLES = 256  # numbers of each output that are compared between contenders


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a factory returns: inputs made, nothing run.

    Attributes:
      run: does the work once and returns its outputs, complete; what it returns is let go before the next run.
      compile: done once, before the first run and outside its time and memory; None where nothing compiles.
      to_numpy: maps what `run` returned to a mapping from names to arrays, named and laid out alike for every
        contender, so that their numbers can be compared; None to compare nothing.
      input_bytes: of the inputs.
      output_bytes: of what `run` returns.
      notes: JSON values to report, such as versions.
    """

    run: Callable[[], Any]
    compile: Callable[[], Any] | None = None
    to_numpy: Callable[[Any], Mapping[str, np.ndarray]] | None = None
    input_bytes: int = 0
    output_bytes: int = 0
    notes: Callable[[], Mapping[str, Any]] | None = None


def serve(factory: str) -> None:
    """Answers until its input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    state = _Served(factory)
    for line in sys.stdin:
        command, arguments = json.loads(line)
        try:
            reply = getattr(state, command)(**arguments)
        except Exception as error:
            traceback.print_exc()
            state.forget()
            text = str(error).strip() or "no message"
            reply = {"error": f"{type(error).__name__}: {text.splitlines()[0][:200]}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


class _Served:
    """What a worker can be asked."""

    def __init__(self, factory: str) -> None:
        self._factory = factory
        self._prepared: Prepared | None = None

    def prepare(self, **arguments: Any) -> dict[str, Any]:
        self.forget()
        module, function = self._factory.split(":")
        prepared = self._prepared = getattr(importlib.import_module(module), function)(**arguments)
        with_inputs = _settled()
        start = time.perf_counter()
        if prepared.compile is not None:
            prepared.compile()
        compile_peak = _resident("VmHWM")
        compiled = _settled()
        outputs = prepared.run()
        peak = _resident("VmHWM")
        first = time.perf_counter() - start
        sample = {} if prepared.to_numpy is None else _sample(prepared.to_numpy(outputs))
        del outputs
        return {
            "first": first,
            "sample": sample,
            "notes": {} if prepared.notes is None else dict(prepared.notes()),
            "memory": {
                "inputs": prepared.input_bytes,
                "outputs": prepared.output_bytes,
                "peak": max(peak, compile_peak) - with_inputs,
                "running": peak - compiled,
            },
        }

    def run(self) -> dict[str, float]:
        assert self._prepared is not None
        start = time.perf_counter()
        outputs = self._prepared.run()
        seconds = time.perf_counter() - start
        del outputs
        return {"seconds": seconds}

    def forget(self) -> dict[str, Any]:
        """Lets inputs and programs go, so that waiting contenders do not fill the machine."""
        self._prepared = None
        _settled()
        return {}


def _settled() -> int:
    """Returns resident bytes after free memory went back to the system; the mark of the peak starts anew there."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    return _resident("VmRSS")


def _resident(key: str) -> int:
    """Returns a line of /proc/self/status in bytes; 0 where there is no such file."""
    try:
        with open("/proc/self/status") as file:
            found = re.search(rf"{key}:\s+(\d+) kB", file.read())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def _sample(outputs: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    places = np.random.default_rng(0)
    picked = {}
    for name, values in sorted(outputs.items()):
        flat = np.asarray(values).reshape(-1)
        picked[name] = flat[places.integers(0, flat.size, SAMPLES)].astype(float).tolist()
    return picked


if __name__ == "__main__":
    # As `__main__` this file would define its classes a second time beside those that factories import.
    importlib.import_module("worker").serve(sys.argv[1])
