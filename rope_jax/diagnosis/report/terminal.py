"""A diagnosis for a terminal of 80 columns: what to try first, then everything that it rests on."""

import re
import textwrap
from collections.abc import Iterator, Sequence

from rope_jax.diagnosis.report import screen
from rope_jax.diagnosis.report.details import Section, Table, details
from rope_jax.diagnosis.report.reading import Reading, Record, readings
from rope_jax.diagnosis.report.wording import capital

__all__ = ["WIDTH", "first_screen", "table"]

WIDTH = 80
_INDENT = 11


def table(record: Record, *, costs: Sequence[Record] = ()) -> str:
    """Returns a record as text, no line wider than 80 columns.

    Args:
      record: from `record.record_of`.
      costs: from `costs_record`, where they were measured.
    """
    below = [line for section in details(Reading(record, costs)) for line in _section(section)]
    return "\n".join([first_screen(record, costs=costs), "-" * WIDTH, *below, ""])


def first_screen(record: Record, *, costs: Sequence[Record] = ()) -> str:
    """Returns what to try first for every deployed configuration, as text of at most 80 columns."""
    lines: list[str] = []
    for one in readings(record, costs):
        lines += [*_screen(one), ""]
    if record["shared"]:
        lines += [*_hanging("SHARED", capital(record["shared"])), ""]
    return "\n".join(lines)


def _screen(one: Reading) -> Iterator[str]:
    yield from _wrapped(screen.title(one))
    yield from _wrapped(screen.finding(one), "  ")
    yield from _wrapped(" ".join(screen.notes(one)), "  ")
    for advice in screen.advice(one):
        yield from _advice(advice)
    yield ""
    yield from _aligned(screen.table(one))
    yield from (line for text in screen.said(one) for line in _wrapped(text, "  "))
    yield ""
    yield from _hanging("ENOUGH TO SHIP?", screen.ship(one))
    for number, step in enumerate(screen.steps(one)[:5]):
        yield from _hanging("" if number else "NEXT", capital(step))
    for number, (heading, text) in enumerate(screen.gist(one.judgement["links"]).items()):
        yield from _hanging("" if number else "WHY", f"{heading}: {text}")


def _advice(advice: screen.Advice) -> Iterator[str]:
    first = f"{advice.verb:<{_INDENT}}{advice.what}"
    if advice.beside and len(first) + 2 + len(advice.beside) <= WIDTH:
        yield first + advice.beside.rjust(WIDTH - len(first))
    else:
        yield from _hanging(advice.verb, advice.what + (f": {advice.beside}" if advice.beside else ""))
    for line in advice.lines:
        yield from _wrapped(line, " " * _INDENT, " " * (_INDENT + 2))


def _section(section: Section) -> Iterator[str]:
    yield from _wrapped(section.title.upper() if len(section.title) < 40 else section.title)
    for text in section.texts:
        yield from _wrapped(text, "  ")
    for one in section.tables:
        yield from _wrapped(one.note, "  ")
        yield from _aligned(one)
    yield ""


def _aligned(one: Table) -> Iterator[str]:
    """Yields a table as wide columns allow: in full, its head over two lines, without intervals, a row a paragraph."""
    rows: list[Sequence[str]] = [one.head, *one.rows]
    tries: list[Sequence[Sequence[str]]] = [rows, _heads_apart(rows)]
    if not one.whole:
        shorter = [[re.sub(r" \[[^]]*\]", "", cell) for cell in row] for row in rows]
        tries += [shorter, _heads_apart(shorter)]
    for cells, gap in ((cells, gap) for cells in tries for gap in (2, 1)):
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        if 2 + sum(widths) + gap * (len(widths) - 1) <= WIDTH:
            for name, *values in cells:
                placed = [name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(values, widths[1:], strict=True))]
                yield f"  {(' ' * gap).join(placed)}".rstrip()
            return
    for row in one.rows:
        parts = [f"{name}: {cell}" for name, cell in zip(one.head[1:], row[1:], strict=True) if cell not in ("", "-")]
        yield from _wrapped(row[0], "  ", "    ")
        yield from _wrapped("; ".join(parts), "    ")


def _heads_apart(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Returns rows with the head over two lines, broken before the last word of each column."""
    broken = [name.rpartition(" ") for name in rows[0]]
    return [[start for start, _, _ in broken], [end for _, _, end in broken], *rows[1:]]


def _hanging(label: str, text: str) -> Iterator[str]:
    begin = f"{label:<{_INDENT}}" if len(label) < _INDENT else f"{label}  "
    yield from _wrapped(text, begin, " " * _INDENT)


def _wrapped(text: str, first: str = "", rest: str | None = None) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=first if rest is None else rest)
