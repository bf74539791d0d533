"""What a file of records says, as Markdown: a table for each part, card and set of versions."""

import collections
from collections.abc import Iterable, Iterator, Sequence

from accelerator_parts.records import LEFT, RATIO, Record

_PEER = "jax.nn (cuDNN)"
_TITLES = {
    "correct": "Distance from float64, over the norm; of the worst token, over a typical token's norm",
    "table": "Attention, bfloat16, causal, batch 1",
    "cache": "A step of decoding over a cache of rotated keys, bfloat16",
    "tune": "Sizes of tiles",
    "model": "A decoder, bfloat16, batch 1",
    "study": "The study at 4k -> 32k, from its kept answers",
}
_WORDS = 160  # characters of an error


def report(records: Iterable[Record], parts: Sequence[str]) -> str:
    """Returns the tables of the parts, in this order; of each number the last one that was measured."""
    machines: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        machines[record.machine].append(record)
    return "\n\n".join(text for found in machines.values() for text in _machine(found, parts)) or "nothing was measured"


def _machine(records: Sequence[Record], parts: Sequence[str]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in records[0].versions.items())
    told = [text for part in parts if (of := [x for x in records if x.part == part]) for text in _part(part, of)]
    if told:
        yield f"## {records[0].card or 'no card was reached'}{f' ({versions})' if versions else ''}"
        yield from told


def _part(part: str, records: Sequence[Record]) -> Iterator[str]:
    yield f"### {_TITLES[part]}"
    rows: dict[str, dict[str, Record]] = collections.defaultdict(dict)
    errors: dict[str, Record] = {}
    for one in records:
        if one.measure == LEFT:
            continue
        if one.value is None:
            errors[one.job + one.measure] = one
            continue
        errors.pop(one.job, None)
        errors.pop(one.job + one.measure, None)
        rows[one.job][one.measure] = one
    if rows:
        yield _table(list(rows.values()), relative=part == "table")
    if errors:
        yield _errors(list(errors.values()))
    for one in {one.implementation: one for one in records if one.measure == LEFT}.values():
        if one.value:
            yield f"Left for lack of time: {one.value:.0f} {one.unit}: {one.error[:_WORDS]}"


def _table(rows: Sequence[dict[str, Record]], *, relative: bool) -> str:
    """Returns the rows with a column for each thing measured; where `relative`, beside cuDNN's time too."""
    sizes = [_size(next(iter(row.values()))) for row in rows]
    rows = sorted(rows, key=lambda row: sizes.index(_size(next(iter(row.values())))))  # of several runs and processes
    columns = {name: one.unit for row in rows for name, one in row.items()}
    first = [next(iter(row.values())) for row in rows]
    keys = list(first[0].case)
    peers = {_size(one): row for one, row in zip(first, rows, strict=True) if one.implementation == _PEER}
    against = [name for name in ("forward", "backward") if relative and peers and name in columns]
    head = [*keys, "implementation", *(f"{name}, {unit}".removesuffix(f", {RATIO}") for name, unit in columns.items())]
    lines = [[*head, *(f"{name}, times cuDNN's without a bias" for name in against)]]
    for one, row in zip(first, rows, strict=True):
        cells = [_text(one.case.get(key, "")) for key in keys]
        cells += [one.implementation, *(_number(row[name].value) if name in row else "-" for name in columns)]
        cells += [_ratio(row, peers.get(_size(one), {}), name) for name in against]
        lines.append(cells)
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _size(one: Record) -> tuple[str | int, ...]:
    return tuple(value for key, value in one.case.items() if key != "bias")


def _ratio(row: dict[str, Record], peer: dict[str, Record], name: str) -> str:
    mine, theirs = (x[name].value if name in x else None for x in (row, peer))
    return f"{mine / theirs:.2f}" if mine and theirs else "-"


def _errors(records: Sequence[Record]) -> str:
    """Returns what has no number, and why; the same reason once."""
    reasons: dict[tuple[str, str], list[Record]] = collections.defaultdict(list)
    for one in records:
        reasons[one.implementation, one.error[:_WORDS]].append(one)
    lines = ["Not measured:", ""]
    for (implementation, error), of in reasons.items():
        which = ", ".join(map(_text, (*of[0].case.values(), *filter(None, [of[0].measure]))))
        more = f" and {len(of) - 1} more" if len(of) > 1 else ""
        lines.append(f"- {implementation or 'the part'} ({which}{more}): {error}")
    return "\n".join(lines)


def _text(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def _number(value: float | None) -> str:
    """Returns three digits, of large numbers all before the point.

    >>> _number(0.000123), _number(2.345), _number(123456.7)
    ('1.2e-04', '2.35', '123,457')
    """
    if value is None:
        return "-"
    if 0 < abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
