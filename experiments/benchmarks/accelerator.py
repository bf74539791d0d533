"""Attention on an accelerator that is at hand for minutes: one command, in order of worth, each part bounded in time.

    python experiments/benchmarks/accelerator.py --out=FILE                       # ten minutes
    python experiments/benchmarks/accelerator.py --out=FILE --parts=table --minutes=5
    python experiments/benchmarks/accelerator.py --out=FILE --report              # the tables alone, measuring nothing
    python experiments/benchmarks/accelerator.py --quick                          # a minute on a CPU; that all runs

Parts: `correct`, distance from float64 of outputs and gradients; `table`, times beside cuDNN's in `jax.nn` and
FlexAttention's; `cache`, a step of decoding over a long cache; `tune`, sizes of tiles; `model`, a whole decoder;
`study`, the kept answers of `long_study.py`.

FILE gets a line of JSON for each number as it comes. A second run with it leaves out what was measured on the same card
with the same versions, and tries again what failed. A kernel that hangs or crashes ends its process, not the command.
"""

import sys
import tempfile
import time
import uuid
from pathlib import Path

from absl import app, flags, logging
from accelerator_parts import processes, records, report
from accelerator_parts.parts import COMPARING, PARTS, asked
from accelerator_parts.processes import Task

_PARTS = flags.DEFINE_list("parts", list(PARTS), f"What to run, of {', '.join(PARTS)}; in that order.")
_MINUTES = flags.DEFINE_float("minutes", 10.0, "For all parts together; what one leaves goes to those behind it.")
_OUT = flags.DEFINE_string("out", None, "File for the results, JSON lines; gone on with where it exists.")
_ONLY = flags.DEFINE_list(
    "implementations", [], "Of correct and table only these, and peers by the names of the report."
)
_QUICK = flags.DEFINE_boolean("quick", False, "Every part in miniature: shows that everything runs.")
_REPORT = flags.DEFINE_boolean("report", False, "Prints the tables of --out and measures nothing.")


def main(argv: list[str]) -> None:
    """Runs the parts and prints the tables of all that the file holds."""
    logging.set_verbosity(logging.WARNING)
    _check(argv)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(_OUT.value) if _OUT.value else Path(directory) / "accelerator.jsonl"
        if not _REPORT.value:
            _measure(out.absolute())
        print(report.report(records.read(out), [part for part in PARTS if part in _PARTS.value]))


def _measure(out: Path) -> None:
    """Runs the parts, each for its share of the time that is left."""
    end, run = time.monotonic() + 60 * _MINUTES.value, uuid.uuid4().hex
    shares = [
        (part, module, share)
        for part in PARTS
        if part in _PARTS.value
        for module, share in PARTS[part].items()
        if part not in COMPARING or asked(module, _ONLY.value)
    ]
    waiting = sum(share for _, _, share in shares)
    for part, module, share in shares:
        seconds = (end - time.monotonic()) * share / waiting
        waiting -= share
        print(f"{part}, {module}: {seconds:.0f} s", file=sys.stderr, flush=True)
        only = tuple(_ONLY.value) if part in COMPARING else ()
        processes.run(Task(part, f"accelerator_parts.{module}", out, run, _QUICK.value, only), seconds)


def _check(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"accelerator.py takes no arguments, got {argv[1:]}")
    unknown = set(_PARTS.value) - set(PARTS)
    if unknown:
        sys.exit(f"--parts knows {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    if not 0 < _MINUTES.value < float("inf"):
        sys.exit(f"--minutes must be positive, got {_MINUTES.value}")
    if _REPORT.value and not (_OUT.value and Path(_OUT.value).exists()):
        sys.exit("--report needs --out, a file that an earlier run wrote")


if __name__ == "__main__":
    app.run(main)
