"""What was measured, one JSON line each, so that a run that was cut off goes on where it stopped."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

LEFT = "left"  # the measure of a part's last line: how many of its jobs were not begun
RATIO = "relative"  # the unit of a part of something
_PACKAGES = ("jax", "jaxlib", "torch", "tokamax", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")

Case = Mapping[str, str | int]
"""What was measured on, by name: tokens, heads, bias and the like."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One number, or why there is none.

    Attributes:
      part: of the command.
      case: what was measured on.
      implementation: what was measured.
      measure: what the number is of.
      value: the number; None where there is none.
      unit: of the number.
      error: why there is no number, in one line.
      card: the accelerator's name.
      versions: of the packages that matter, those that are installed.
      run: of the command; one for all its lines.
    """

    part: str
    case: Case
    implementation: str
    measure: str = ""
    value: float | None = None
    unit: str = ""
    error: str = ""
    card: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    run: str = ""

    @property
    def job(self) -> str:
        """What is measured at once, as text that can be compared."""
        return json.dumps([self.part, self.case, self.implementation], sort_keys=True)

    @property
    def machine(self) -> str:
        """Card and versions, as text that can be compared."""
        return json.dumps([self.card, self.versions], sort_keys=True)

    def line(self) -> str:
        """Returns the record as a line of JSON."""
        return json.dumps(dataclasses.asdict(self)) + "\n"


def read(path: Path) -> list[Record]:
    """Returns the records of a file, none where there is no file; lines that were cut off are passed over."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(Record(**json.loads(line)))
    return found


def append(path: Path, records: Iterable[Record]) -> None:
    """Writes records at the end of a file, on lines of their own."""
    before = path.read_bytes() if path.exists() else b""
    with path.open("a") as file:
        file.write("\n" if before and not before.endswith(b"\n") else "")
        file.write("".join(record.line() for record in records))


def done(records: Iterable[Record], *, machine: str, run: str) -> set[str]:
    """Returns the jobs that need not be begun: measured on this machine, or tried by this run whatever came of it."""
    return {one.job for one in records if (one.value is not None and one.machine == machine) or one.run == run}


def versions() -> dict[str, str]:
    """Returns the versions of the packages that matter, without importing any."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
