"""What a benchmark found: rows with a goal and what was measured, as a table and as JSON."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import interleaved
from interleaved import Result


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      work: what was done.
      against: what it is compared with.
      length: tokens.
      dim: of a head.
      measured: the number; NaN where one side did not run.
      unit: "x" for a ratio, or another unit.
      at_least: the goal from below, or None.
      at_most: the goal from above, or None.
      note: what a reader must know, such as why a side did not run.
    """

    work: str
    against: str
    length: int
    dim: int
    measured: float
    unit: str = "x"
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g} {self.unit}"
        return "-" if self.at_most is None else f"<= {self.at_most:g} {self.unit}"

    @property
    def verdict(self) -> str:
        """Returns "pass", "miss", or "-" without a goal or a measurement."""
        if math.isnan(self.measured) or (self.at_least is None and self.at_most is None):
            return "-"
        met = self.measured >= self.at_least if self.at_least is not None else self.measured <= (self.at_most or 0.0)
        return "pass" if met else "miss"

    def record(self) -> dict[str, Any]:
        measured = None if math.isnan(self.measured) else self.measured
        return {**dataclasses.asdict(self), "measured": measured, "goal": self.goal, "verdict": self.verdict}


def why(results: Mapping[str, Result], *names: str) -> str:
    """Returns why any of the named contenders did not run; empty where all did."""
    reasons = ((name, results[name].skipped if name in results else "not run at this length") for name in names)
    return "; ".join(f"{name}: {reason}" for name, reason in reasons if reason)


def goals(rows: Sequence[Row]) -> str:
    """Returns the table of comparisons."""
    head = ("work", "against", "N", "d", "goal", "measured", "", "note")
    body = [
        (
            row.work,
            row.against,
            f"{row.length:,}",
            str(row.dim),
            row.goal,
            "not run" if math.isnan(row.measured) else f"{row.measured:.3g} {row.unit}",
            row.verdict,
            row.note,
        )
        for row in rows
    ]
    return _columns([head, *body])


def times(title: str, results: Mapping[str, Result], *, gigaflop: float | None = None) -> str:
    """Returns the table of one race: median, quickest and slowest round, the first run with compilation, and its peak.

    The peak is of resident memory above what the inputs left resident; outputs and compilation count.

    Args:
      title: the first line.
      results: of the race.
      gigaflop: of the work, for a column of GFLOP/s.
    """
    lines: list[tuple[str, ...]] = [
        ("contender", "median ms", "least", "most", "GFLOP/s", "first s", "peak MB", "note")
    ]
    for name, result in results.items():
        if result.skipped:
            lines.append((name, *["-"] * 6, result.skipped))
            continue
        speed = f"{gigaflop / result.seconds:.0f}" if gigaflop else "-"
        peak = f"{result.memory.peak / 1e6:.0f}" if result.memory else "-"
        spread = (1000 * x for x in (result.seconds, min(result.times), max(result.times)))
        lines.append((name, *(f"{x:.4g}" for x in spread), speed, f"{result.first:.1f}", peak, ""))
    return f"{title}\n{_columns(lines)}"


Races = Sequence[tuple[Mapping[str, Any], Mapping[str, Result]]]


def save(rows: Sequence[Row], races: Races, settings: Mapping[str, Any], *, out: str | None) -> dict[str, Any]:
    """Returns all that was found as one JSON object, and writes it to a file where one is named.

    Args:
      rows: comparisons.
      races: what each race was given, and its results.
      settings: of the run, such as the seed.
      out: the file, or None.
    """
    record = {
        **settings,
        "versions": interleaved.versions([results for _, results in races]),
        "rows": [row.record() for row in rows],
        "races": [{**given, "contenders": race_record(results)} for given, results in races],
    }
    if out:
        Path(out).write_text(json.dumps(record, indent=1) + "\n")
    return record


def finish(rows: Sequence[Row], races: Races, settings: Mapping[str, Any], *, out: str | None, as_json: bool) -> None:
    """Saves what was found and prints it: the goals and what ran them, or the one JSON object."""
    record = save(rows, races, settings, out=out)
    if as_json:
        print(json.dumps(record))
        return
    told = ", ".join(f"{name} {value}" for name, value in [*record["versions"].items(), *settings.items()])
    print(f"\n{goals(rows)}\n{told}")


def race_record(results: Mapping[str, Result]) -> dict[str, Any]:
    """Returns one race for JSON: each contender's rounds in seconds, or why it was skipped."""
    return {
        name: {"skipped": result.skipped}
        if result.skipped
        else {"seconds": list(result.times), "median": result.seconds, "first": result.first, **_memory(result)}
        for name, result in results.items()
    }


def _memory(result: Result) -> dict[str, Any]:
    return {"memory": dataclasses.asdict(result.memory)} if result.memory else {}


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join("  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in lines)
