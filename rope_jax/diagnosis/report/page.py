"""The parts of a self-contained HTML page: style, tables, figures, estimates; no script, no network, light and dark."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6066; --paper: #ffffff; --line: #d9dce0;
  --good: 0, 140, 100; --bad: 213, 94, 0; --warn: 200, 150, 0; --info: 45, 120, 200; --calm: 120, 128, 138; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ec; --soft: #a3a9b0; --paper: #15171a; --line: #363a40; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1.2rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; margin: .3rem 0 .6rem; }
h2 { font-size: 1.2rem; margin-top: 2.4rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li, dd { overflow-wrap: anywhere; }
p, li { max-width: 52rem; }
p.note, figcaption, .soft { color: var(--soft); font-size: .9rem; max-width: 52rem; }
ul { padding-left: 1.2rem; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .42rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
th.left, td.left { text-align: left; } th.group, td.answer { text-align: center; }
td.starts, th.starts, th.group { border-left: 1px solid var(--line); }
tr.starts td { border-top: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
td.wrap { white-space: normal; overflow-wrap: anywhere; text-align: left; min-width: 14rem; }
tr.chosen td { border-bottom: 2px solid rgb(var(--good)); }
td .ci { color: var(--soft); font-size: .78rem; }
code { overflow-wrap: anywhere; font-size: .85rem; }
summary { cursor: pointer; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .9rem; }
.card { border: 1px solid rgba(var(--tone), .5); border-left: 6px solid rgb(var(--tone)); border-radius: 6px;
  background: rgba(var(--tone), .09); padding: .8rem 1rem; max-width: 56rem; }
.card h3 { margin: .1rem 0 .4rem; font-size: 1.1rem; line-height: 1.3; overflow-wrap: anywhere; }
.card p { margin: .35rem 0; } .card dl { margin: .6rem 0 0; font-size: .92rem; }
.card dt { color: var(--soft); font-size: .8rem; margin-top: .4rem; } .card dd { margin: 0; }
.badge { display: inline-block; border-radius: 99px; padding: .05rem .6rem; font-size: .8rem; font-weight: 600;
  background: rgba(var(--tone), .25); }
.good { --tone: var(--good); } .bad { --tone: var(--bad); } .warn { --tone: var(--warn); }
.info { --tone: var(--info); } .calm { --tone: var(--calm); }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """Returns the whole page.

    Args:
      title: plain text.
      parts: of the body, as HTML; empty ones are left out.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def figure(svg: str, caption: str) -> str:
    """Returns a picture that shrinks no further than its text is legible, and scrolls by itself; "" for none."""
    if not svg:
        return ""
    natural = re.search(r'width="([\d.]+)pt"', svg)
    assert natural is not None
    width = float(natural[1])
    sized = svg.replace("<svg", f'<svg style="min-width: {width:.0f}px; max-width: {1.3 * width:.0f}px"', 1)
    return f"<figure><div class=scroll>{sized}</div><figcaption>{html.escape(caption)}</figcaption></figure>"


def table(rows: Iterable[str], *, head: str = "") -> str:
    """Returns a table of `<tr>` elements that scrolls by itself."""
    top = f"<thead>{head}</thead>" if head else ""
    return f"<div class=scroll><table>{top}<tbody>{''.join(rows)}</tbody></table></div>"


def bullets(lines: Iterable[str]) -> str:
    """Returns a list of lines of plain text; "" for none."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def is_estimate(value: Any) -> bool:
    """Returns whether a value of a record is an estimate."""
    return isinstance(value, Mapping) and value.keys() == {"mean", "low", "high"}


def negated(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an estimate of the opposite: a gain of what was a loss."""
    low, high = value["low"], value["high"]
    # From 0, so that no -0 comes out.
    return {
        "mean": 0 - value["mean"],
        "low": None if high is None else 0 - high,
        "high": None if low is None else 0 - low,
    }


def with_interval(value: Mapping[str, float | None] | None, *, digits: int = 2, sign: bool = True) -> str:
    """Returns an estimate as HTML, its interval in small print below."""
    if value is None or value["mean"] is None:
        return "-"
    plus = "+" if sign else ""
    shown = f"{value['mean']:{plus}.{digits}f}"
    if value["low"] is None or value["high"] is None:
        return shown
    return f"{shown}<br><span class=ci>{value['low']:.{digits}f} to {value['high']:.{digits}f}</span>"


def anything(value: Any) -> str:
    """Returns any part of a record as HTML: objects and lists of objects as tables, estimates with their intervals."""
    if is_estimate(value):
        return with_interval(value, digits=3)
    if isinstance(value, Mapping):
        if value and all(isinstance(row, Mapping) and not is_estimate(row) for row in value.values()):
            return _records([{"": name, **row} for name, row in value.items()])
        return table(
            f"<tr><td>{html.escape(str(name))}</td><td class=wrap>{anything(entry)}</td></tr>"
            for name, entry in value.items()
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        if value and all(isinstance(row, Mapping) and not is_estimate(row) for row in value):
            return _records(value)
        return ", ".join(anything(entry) for entry in value) or "-"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _records(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    words = {name for name in names if any(isinstance(row.get(name), str) for row in rows)}
    head = "".join(
        f"<th{' class=left' if name in words else ''}>{html.escape(name.replace('_', ' '))}</th>" for name in names
    )
    body = []
    for row in rows:
        cells = []
        for name in names:
            value = row.get(name)
            kind = " class=left" if name in words else ""
            kind = " class=wrap" if isinstance(value, str) and len(value) > 80 else kind
            cells.append(f"<td{kind}>{anything(value)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return table(body, head=f"<tr>{head}</tr>")
