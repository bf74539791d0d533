"""What a part consists of, and how its process tells `accelerator.py` what it found.

python -m accelerator_parts.jobs '{"part": "correct", "module": "accelerator_parts.correctness", "out": "FILE", ..}'

is started by `accelerator.py`. A kernel that hangs, or breaks the card's state, takes its process with it; the parent
then starts another, which goes on behind that job.
"""

import collections
import concurrent.futures
import dataclasses
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerator_parts import records
from accelerator_parts.records import Case, Record

_LONGEST = 300  # characters of an error
_TOGETHER = 12  # jobs whose programs are compiled at once, while nothing is timed


@dataclasses.dataclass(frozen=True)
class Found:
    """One number of a job.

    Attributes:
      measure: what it is of.
      value: the number, or None.
      unit: of the number.
      error: why there is none.
    """

    measure: str
    value: float | None
    unit: str = ""
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is measured at once.

    Attributes:
      case: what it is measured on.
      implementation: what is measured.
      run: measures; raises `NotImplementedError` for what cannot be served here. It is given what `prepare` returns.
      prepare: compiles, in a thread beside others; None where there is nothing to do before.
    """

    case: Case
    implementation: str
    run: Callable[..., Iterable[Found]]
    prepare: Callable[[], Any] | None = None


def words(error: BaseException) -> str:
    """Returns an error in one line."""
    text = " ".join(str(error).split()) or "no message"
    kind = "" if isinstance(error, NotImplementedError) else f"{type(error).__name__}: "
    return (kind + text)[:_LONGEST]


def work(
    answers: Any, *, part: str, module: str, out: str, run: str, seconds: float, quick: bool, only: Sequence[str]
) -> None:
    """Runs the jobs of a part that are not done, as long as another of the longest kind so far fits into the time.

    Args:
      answers: file to write to, a line of JSON each: what waits, what begins, what was found.
      part: what records call it.
      module: has the part's `jobs`, its `card` and a `check` of the card.
      out: file of what was found before.
      run: name of the command's run.
      seconds: until the part must have ended.
      quick: whether the jobs are the miniature ones.
      only: implementations that are measured; all where empty.
    """
    end, longest = time.monotonic() + seconds, 0.0
    source: Any = importlib.import_module(module)
    given = {"part": part, "run": run, "card": source.card(), "versions": records.versions()}

    def say(kind: str, told: Iterable[Record]) -> None:
        answers.write(json.dumps({kind: [dataclasses.asdict(one) for one in told]}) + "\n")
        answers.flush()

    def record_of(job: Job, **found: Any) -> Record:
        return Record(case=dict(job.case), implementation=job.implementation, **found, **given)

    nothing = Record(case={}, implementation="", **given)
    known = records.done(records.read(Path(out)), machine=nothing.machine, run=run)
    jobs: Iterable[Job] = source.jobs(quick=quick)
    wanted = (job for job in jobs if not only or job.implementation in only)
    waiting = collections.deque(job for job in wanted if record_of(job).job not in known)
    say("waiting", [nothing, *map(record_of, waiting)])
    ready: dict[int, tuple[Any, ...] | Exception] = {}
    while waiting and time.monotonic() + longest <= end:
        job, begun = waiting.popleft(), time.monotonic()
        say("begun", [record_of(job)])
        if id(job) not in ready:
            ready = _prepared([job, *waiting][:_TOGETHER])
            begun = time.monotonic()
        found = list(_found(job, ready[id(job)]))
        say("found", [record_of(job, **dataclasses.asdict(one)) for one in found])
        longest = max(longest, time.monotonic() - begun)
        if any(one.error for one in found):
            source.check()  # a kernel that broke the card's state makes everything behind it fail


def _prepared(jobs: Sequence[Job]) -> dict[int, tuple[Any, ...] | Exception]:
    """Returns what each job is run with, by its identity, or why it cannot be."""

    def of(job: Job) -> tuple[Any, ...] | Exception:
        try:
            return () if job.prepare is None else (job.prepare(),)
        except Exception as error:
            return error

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(map(id, jobs), pool.map(of, jobs), strict=True))


def _found(job: Job, given: tuple[Any, ...] | Exception) -> Iterator[Found]:
    """Yields what a job finds, and at last why it found no more."""
    try:
        if isinstance(given, Exception):
            raise given
        yield from job.run(*given)
    except Exception as error:
        if not isinstance(error, NotImplementedError):
            traceback.print_exc()
        yield Found("", None, error=words(error))


def main() -> None:
    """Runs the part that the argument says."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    work(answers, **json.loads(sys.argv[1]))


if __name__ == "__main__":
    # As `__main__` this file would define its classes a second time beside those that the parts import.
    importlib.import_module("accelerator_parts.jobs").main()
