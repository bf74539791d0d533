"""The study at 4k -> 32k: hands over to `long_study.py`, which works out what follows from answers that were kept."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

from accelerator_parts.jobs import Found, Job
from accelerator_parts.on_jax import card, check

__all__ = ["card", "check", "jobs"]

_SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "long_study.py"


def jobs(*, quick: bool) -> Iterator[Job]:
    """Yields the one job."""
    yield Job({"study": _SCRIPT.name}, "kept answers", _run)


def _run() -> Iterator[Found]:
    """Yields how long the script took and how many verdicts it printed; it takes no arguments and keeps nothing."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(_SCRIPT)], capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1])
    yield Found("verdicts", done.stdout.count("try first:"), "printed")
    yield Found("time", time.perf_counter() - begun, "s")
