"""Contenders timed in turn, each in a process of its own, so that no two thread pools ever run at once.

A contender is named by a factory, `"module:function"`, importable from this folder. Its process stays alive: it makes
the inputs, compiles, warms up, and then runs once each time it is asked. The parent never imports what it times.

    with Race([Contender("ours", "ours:attend"), Contender("torch", "peers:sdpa")]) as race:
        results = race.run({"length": 4096, "seed": 7}, rounds=7)
    print(results["ours"].seconds, ratio(results, "torch", "ours"))

A factory takes the merged keyword arguments and returns a `worker.Prepared`. One that cannot serve raises; the
contender is then skipped with the reason, and the others go on. `peak_memory` runs one contender in a fresh process.
"""

import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

_WORKER = Path(__file__).with_name("worker.py")
_PAUSE = 0.1  # seconds between two runs: thread pools spin for a moment after their work


@dataclasses.dataclass(frozen=True)
class Contender:
    """What runs in one process.

    Attributes:
      name: unique in its race.
      factory: "module:function".
      arguments: keyword arguments of the factory, JSON values; those of `Race.run` are added.
    """

    name: str
    factory: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one contender in a fresh process.

    Attributes:
      inputs: of the inputs.
      outputs: of the outputs.
      peak: most resident while compiling and running for the first time, above what was resident with the inputs made.
      running: the same for the first run alone, above what was resident when it began; compilation is left out.
    """

    inputs: int
    outputs: int
    peak: int
    running: int

    @property
    def beside(self) -> int:
        """Bytes at the peak that are neither inputs nor outputs."""
        return self.peak - self.outputs


@dataclasses.dataclass(frozen=True)
class Result:
    """What one contender did in a race.

    Attributes:
      times: seconds of each round; empty where skipped.
      first: seconds to compile and run for the first time.
      sample: numbers picked from each output at the same random places for every contender.
      notes: what the factory reported.
      memory: of its first run; after other lengths in the same process, so `peak_memory` is the cleaner figure.
      skipped: why it did not run, in one line, or None.
    """

    times: tuple[float, ...] = ()
    first: float = 0.0
    sample: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    memory: Memory | None = None
    skipped: str | None = None

    @property
    def seconds(self) -> float:
        """Median of the rounds; NaN where skipped."""
        return statistics.median(self.times) if self.times else float("nan")


class Race:
    """Keeps one process a contender and runs them in turn; a context manager."""

    def __init__(self, contenders: Sequence[Contender]) -> None:
        if len({contender.name for contender in contenders}) < len(contenders):
            raise ValueError("contenders of one race need different names")
        self._workers = {contender.name: _Worker(contender) for contender in contenders}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        for worker in self._workers.values():
            worker.close()

    def run(
        self,
        arguments: Mapping[str, Any],
        *,
        rounds: int,
        names: Sequence[str] | None = None,
        verbose: bool = True,
    ) -> dict[str, Result]:
        """Returns the results of `rounds` rounds, in each of which every contender runs once.

        Args:
          arguments: for every factory, beside its contender's own; a seed for the inputs belongs here.
          rounds: timed runs of each, after one that is not timed.
          names: the contenders that take part; all where None.
          verbose: whether to tell on stderr what goes on.
        """
        running, results = {}, {}
        names = list(self._workers) if names is None else names
        for name in names:
            _tell(verbose, f"  preparing {name}")
            reply = self._workers[name].ask("prepare", arguments)
            if "error" in reply:
                results[name] = Result(skipped=reply["error"])
                _tell(verbose, f"  skipped {name}: {reply['error']}")
            else:
                running[name] = reply
        times: dict[str, list[float]] = {name: [] for name in running}
        # In another order each round: what one leaves behind (a warm core, memory to give back) meets all alike.
        shuffle = random.Random(0)
        for _ in range(rounds):
            for name in shuffle.sample(list(running), len(running)):
                time.sleep(_PAUSE)
                reply = self._workers[name].ask("run", {})
                if "error" in reply:
                    results[name] = Result(skipped=reply["error"])
                    del running[name]
                else:
                    times[name].append(reply["seconds"])
        for name, reply in running.items():
            memory = Memory(**reply["memory"])
            results[name] = Result(tuple(times[name]), reply["first"], reply["sample"], reply["notes"], memory)
            self._workers[name].ask("forget", {})
        _tell(verbose, "  " + ", ".join(f"{name} {1000 * results[name].seconds:.0f} ms" for name in running))
        return {name: results[name] for name in names}


def ratio(results: Mapping[str, Result], over: str, under: str) -> float:
    """Returns the median over the rounds of one contender's time over another's; NaN where either was skipped."""
    pairs = list(zip(results[over].times, results[under].times, strict=False))
    return statistics.median(a / b for a, b in pairs) if pairs else float("nan")


def difference(results: Mapping[str, Result], one: str, other: str) -> dict[str, float]:
    """Returns for each output of both how far their samples differ, as a part of the largest number sampled."""
    mine, theirs = results[one].sample, results[other].sample
    found = {}
    for name in mine.keys() & theirs.keys():
        a, b = np.asarray(mine[name]), np.asarray(theirs[name])
        found[name] = float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
    return found


def peak_memory(contender: Contender, arguments: Mapping[str, Any]) -> Memory | str:
    """Returns what one contender takes at its peak, in a fresh process; or why it does not run."""
    worker = _Worker(contender)
    try:
        reply = worker.ask("prepare", arguments)
        return reply["error"] if "error" in reply else Memory(**reply["memory"])
    finally:
        worker.close()


def versions(results: Sequence[Mapping[str, Result]]) -> dict[str, str]:
    """Returns the versions that the contenders reported under the note "versions", and the number of cores."""
    found: dict[str, str] = {"python": sys.version.split()[0], "cores": str(cores())}
    for of_race in results:
        for result in of_race.values():
            found.update(result.notes.get("versions", {}))
    return found


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fresh_seed() -> int:
    """Returns a seed that no earlier run had."""
    return int(np.random.SeedSequence().generate_state(1)[0])


def _tell(verbose: bool, text: str) -> None:
    if verbose:
        print(text, file=sys.stderr, flush=True)


class _Worker:
    """The parent's end of one process: one line of JSON each way."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        self._process: subprocess.Popen | None = None

    def ask(self, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(_WORKER), self._contender.factory],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        own = self._contender.arguments if command == "prepare" else {}
        questions, answers = self._process.stdin, self._process.stdout
        assert questions is not None
        assert answers is not None
        try:
            questions.write(json.dumps([command, {**own, **arguments}]) + "\n")
            questions.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._process = None  # a later question starts a new one
        return {"error": f"its process ended with code {code}" + self._last_words()}

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return f": {lines[-1][:200]}" if lines else ""

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._log.close()
