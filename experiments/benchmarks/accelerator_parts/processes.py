"""One process a part: keeps what it finds, ends it when it hangs, and starts another behind what broke it."""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from accelerator_parts import records
from accelerator_parts.records import LEFT, Record

_FOLDER = Path(__file__).resolve().parents[1]
_LONGEST = 300  # characters of what is left
_GRACE = 15.0  # seconds that a part may end late


@dataclasses.dataclass(frozen=True)
class Task:
    """What a process is asked to do.

    Attributes:
      part: what records call it.
      module: of its jobs.
      out: file that the parent writes records to and the process reads them from.
      run: name of the command's run.
      quick: whether jobs are the miniature ones.
      only: implementations that are measured; all where empty.
      patience: seconds for one job, its compilation included.
    """

    part: str
    module: str
    out: Path
    run: str
    quick: bool = False
    only: tuple[str, ...] = ()
    patience: float = 150.0

    def argument(self, seconds: float) -> str:
        """Returns the process's argument."""
        asked = {**dataclasses.asdict(self), "out": str(self.out), "seconds": seconds}
        del asked["patience"]
        return json.dumps(asked)


@dataclasses.dataclass
class _Progress:
    """Where a process stands: its part's record without a case, what waits, and what is under way."""

    nothing: Record | None = None
    waiting: list[Record] = dataclasses.field(default_factory=list)
    under_way: Record | None = None


def run(task: Task, seconds: float) -> None:
    """Runs a part for so long at most, and keeps and prints what was found and what was left.

    A process that breaks or hangs is ended, and another goes on behind the job that was under way.
    """
    end, more, progress = time.monotonic() + seconds, True, _Progress()
    if seconds <= 0:
        print(f"{task.part}, {task.module}: no time left", file=sys.stderr, flush=True)
    while more and time.monotonic() < end:
        progress = _Progress()
        more = _once(task, end, progress)
    if progress.nothing is not None:
        left = [f"{', '.join(map(str, one.case.values()))}: {one.implementation}" for one in progress.waiting]
        count = dataclasses.replace(progress.nothing, implementation=task.module, measure=LEFT, unit="jobs")
        _keep(task, [dataclasses.replace(count, value=len(left), error="; ".join(left)[:_LONGEST])])


def _once(task: Task, end: float, progress: _Progress) -> bool:
    """Runs one process until it ends or is ended; returns whether another should go on."""
    lines: queue.Queue[str] = queue.Queue()
    with tempfile.TemporaryFile("w+") as log:
        process = _start(task, end - time.monotonic(), log)
        reader = threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True)
        reader.start()
        told = 0  # bytes of the log that belong to earlier jobs
        try:
            while True:
                patience = max(min(task.patience, end + _GRACE - time.monotonic()), 0.1)
                line = lines.get(timeout=patience)
                if not line:
                    code = process.wait()
                    reason = f"its process ended with code {code}{_last_words(log, told)}" if code else ""
                    break
                _take(task, line, progress)
                told = os.fstat(log.fileno()).st_size
        except queue.Empty:
            reason = f"ended after {patience:.0f} s without an answer"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it started
            process.wait()
            reader.join(timeout=5)
    nothing = Record(task.part, {}, task.module, run=task.run) if progress.nothing is None else None
    failed = progress.under_way or nothing  # neither: the card broke behind a job that is on record
    if reason and failed:
        _keep(task, [dataclasses.replace(failed, error=reason)])
    return bool(reason) and progress.nothing is not None


def _take(task: Task, line: str, progress: _Progress) -> None:
    """Takes a line that a process wrote."""
    ((kind, told),) = json.loads(line).items()
    found = [Record(**one) for one in told]
    if kind == "waiting":
        progress.nothing, *progress.waiting = found
    elif kind == "begun":
        progress.under_way = found[0]
        progress.waiting = progress.waiting[1:]
    else:
        progress.under_way = None
        _keep(task, found)


def _keep(task: Task, found: list[Record]) -> None:
    """Writes records to the file, and on stderr."""
    records.append(task.out, found)
    for one in found:
        print(_text(one), file=sys.stderr, flush=True)


def _text(one: Record) -> str:
    case = ", ".join(map(str, (one.part, *one.case.values(), *filter(None, [one.implementation, one.measure]))))
    number = "" if one.value is None else f"{one.value:.4g} {one.unit}"
    return f"{case}: {'; '.join(filter(None, [number, one.error]))}"


def _start(task: Task, seconds: float, log: IO[str]) -> subprocess.Popen[str]:
    paths = [str(_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "accelerator_parts.jobs", task.argument(seconds)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
    )


def _pass_on(source: Any, lines: "queue.Queue[str]") -> None:
    with source:
        for line in source:
            lines.put(line)
    lines.put("")


def _last_words(log: IO[str], told: int) -> str:
    log.seek(told)
    lines = [line.strip() for line in log if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""
