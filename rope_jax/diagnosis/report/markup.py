"""The parts of a self-contained HTML page: style, tables, figures; no script, no network, light and dark."""

import html
import re
from collections.abc import Iterable

from rope_jax.diagnosis.report.details import Table
from rope_jax.diagnosis.report.wording import capital

__all__ = ["document", "escaped", "figure", "paragraphs", "table"]

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6066; --paper: #ffffff; --line: #d9dce0;
  --good: 0, 140, 100; --bad: 213, 94, 0; --warn: 200, 150, 0; --info: 45, 120, 200; --calm: 120, 128, 138; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ec; --soft: #a3a9b0; --paper: #15171a; --line: #363a40; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.2rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: .3rem 0 1rem; }
h2 { font-size: 1.2rem; margin-top: 2.4rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h1, h2, h3, p, li, dd { overflow-wrap: anywhere; }
p, li { max-width: 54rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; max-width: 54rem; }
.tables .soft { max-width: 36rem; }
.soft + .scroll { margin-top: -.4rem; }
ul { padding-left: 1.2rem; margin: .3rem 0; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .55rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: var(--paper); }
td .ci { color: var(--soft); font-size: .78rem; }
code { overflow-wrap: anywhere; font-size: .85rem; }
summary { cursor: pointer; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.4rem; }
.tables > div { max-width: 100%; min-width: 0; }
.card { border: 1px solid rgba(var(--tone), .5); border-left: 6px solid rgb(var(--tone)); border-radius: 6px;
  padding: .9rem 1.1rem 1.1rem; margin-bottom: 1.4rem; }
.card h2 { border: 0; margin: 0; padding: 0; font-size: 1.1rem; line-height: 1.35; }
.card h3 { font-size: .8rem; letter-spacing: .05em; color: var(--soft); margin: 1.1rem 0 .2rem; }
.card p { margin: .3rem 0; }
.finding { display: inline-block; border-radius: 6px; padding: .1rem .7rem; margin: .5rem 0 .2rem; font-weight: 600;
  background: rgba(var(--tone), .2); }
.columns { display: grid; grid-template-columns: minmax(0, 1fr); gap: 0 2.2rem; }
@media (min-width: 70rem) { .columns { grid-template-columns: minmax(0, 1fr) minmax(0, 1.3fr); } }
@media (max-width: 40rem) { .card { padding: .7rem .7rem .8rem; } .card td .ci { display: block; }
  .card th, .card td:first-child { white-space: normal; } .card th, .card td { padding: .25rem .2rem; }
  .card table { font-size: .76rem; } .card td .ci { font-size: .64rem; } }
.advice { border-left: 4px solid rgb(var(--tone)); padding: .1rem 0 .1rem .8rem; margin: .7rem 0; }
.advice b { font-size: .8rem; letter-spacing: .04em; color: rgb(var(--tone)); margin-right: .5rem; }
.advice ul { font-size: .9rem; color: var(--soft); }
.first { font-size: 1.1rem; font-weight: 600; }
.good { --tone: var(--good); } .bad { --tone: var(--bad); } .warn { --tone: var(--warn); }
.info { --tone: var(--info); } .calm { --tone: var(--calm); }
"""


def escaped(text: str) -> str:
    """Returns plain text as HTML, arrows and multiples set as such."""
    return html.escape(re.sub(r"\bx(?=\d)", "\u00d7", text.replace("->", "\u2192")), quote=False)


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


def table(one: Table) -> str:
    """Returns a table that scrolls by itself, its note above it; intervals stand in small print."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in one.head)
    rows = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in one.rows)
    note = f"<p class=soft>{escaped(one.note)}</p>" if one.note else ""
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f"<div>{note}<div class=scroll><table>{body}</table></div></div>"


def _cell(text: str) -> str:
    indent = "&emsp;" if text.startswith("  ") else ""
    return indent + re.sub(r"\[[^]]*\]", lambda found: f"<span class=ci>{found[0]}</span>", escaped(text.strip()))


def paragraphs(texts: Iterable[str]) -> str:
    """Returns paragraphs of plain text; a heading before a colon stands out where it begins as one of the links."""
    return "".join(f"<p>{_headed(text)}</p>" for text in texts if text)


def _headed(text: str) -> str:
    found = re.match(r"(\([iv]+\) [^:]+|the choice): ", text)
    return f"<b>{escaped(capital(found[1]))}</b> {escaped(text[found.end() :])}" if found else escaped(text)
