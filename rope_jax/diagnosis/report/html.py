"""A diagnosis as one self-contained HTML page, made from its record alone: what to try first, then all it rests on.

No script, no network, light and dark.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources

from rope_jax.diagnosis.report import plots, scheme_figures, screen
from rope_jax.diagnosis.report.details import Section, Table, details
from rope_jax.diagnosis.report.reading import Reading, Record, readings
from rope_jax.diagnosis.report.wording import capital, model_name

__all__ = ["page"]

_TONES = {"TRY FIRST": "good", "THEN": "info", "NOT": "bad", "OUTSIDE": "calm"}
_FIGURES = {
    # section: its pictures and what is said below them
    "configurations": (
        (
            scheme_figures.wavelengths,
            "Tokens of a turn of each rotary pair, as trained and under every scaling that was run.",
        ),
        (scheme_figures.biases, "What each bias takes at each offset, a line a head."),
        (
            scheme_figures.coherence,
            "What scaling makes of a relation trained at one offset, all pairs weighed alike: how much is left at the "
            "trained offset, and where the peak goes.",
        ),
    ),
    "changes": (
        (
            plots.changes,
            "Each change with its intervals, against 0 (solid) and the margin (dashed). Green: significantly on the "
            "right side of the margin; orange: on the wrong side; grey: not resolved, or not enough to matter.",
        ),
        (plots.loss_by_position, "Loss of text by position; the lower the better."),
    ),
    "cause": ((plots.cause, "The shares of scaling and bias in what is lost, with their intervals."),),
    "regression": (
        (
            plots.by_distance,
            "Each task by the distance from what is asked about to the question, at the target length.",
        ),
        (plots.binding_errors, "Where wrong answers to binding lie: places beside the item asked for."),
    ),
}


def page(record: Record, *, command: str = "", costs: Sequence[Record] = ()) -> str:
    """Returns the page, which asks nothing of the network and reads well wide and narrow, light and dark.

    Args:
      record: from `record.record_of`.
      command: the command line that made it; "" where none did.
      costs: from `costs_record`, where they were measured.
    """
    parts = ["<h1>Which part of the context extension broke what, and what to try first</h1>"]
    parts += [_card(one) for one in readings(record, costs)]
    if record["shared"]:
        parts.append(f"<p><b>Shared.</b> {_escaped(capital(record['shared']))}</p>")
    for section in details(Reading(record, costs)):
        parts += [_section(section), *_figures(section)]
    parts.append(_provenance(record, command))
    style = (resources.files("rope_jax.diagnosis.report") / "page.css").read_text("utf-8")
    title = html.escape(f"Diagnosis of {model_name(record['models'])}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>\n{style}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _card(one: Reading) -> str:
    steps = "".join(f"<li>{_escaped(capital(step))}</li>" for step in screen.steps(one))
    why = _paragraphs(f"{heading}: {text}" for heading, text in screen.gist(one.judgement["links"]).items())
    left = "".join(_advice(advice, first=not at) for at, advice in enumerate(screen.advice(one)))
    left += f"<h3>ENOUGH TO SHIP?</h3><p>{_escaped(screen.ship(one))}</p>"
    left += f"<h3>NEXT</h3><ul>{steps}</ul>" if steps else ""
    right = f"{_table(screen.table(one))}<p class=soft>{_escaped(' '.join(screen.said(one)))}</p>"
    right += f"<h3>WHY</h3>{why}" if why else ""
    return (
        f'<section class="card {screen.tone(one)}"><h2>{_escaped(screen.title(one))}</h2>'
        f"<div class=finding>{_escaped(screen.finding(one))}</div>"
        f"<p class=soft>{_escaped(' '.join(screen.notes(one)))}</p>"
        f"<div class=columns><div>{left}</div><div>{right}</div></div></section>"
    )


def _advice(advice: screen.Advice, *, first: bool) -> str:
    lines = "".join(f"<li>{_escaped(line)}</li>" for line in advice.lines)
    beside = f" <span class=soft>{_escaped(advice.beside)}</span>" if advice.beside else ""
    what = f"<span{' class=first' if first else ''}>{_escaped(advice.what)}</span>"
    return (
        f'<div class="advice {_TONES[advice.verb]}"><b>{advice.verb}</b>{what}{beside}'
        f"{f'<ul>{lines}</ul>' if lines else ''}</div>"
    )


def _section(section: Section) -> str:
    tables = "".join(_table(one) for one in section.tables)
    return (
        f"<h2>{_escaped(section.title)}</h2>{_paragraphs(section.texts)}"
        f"{f'<div class=tables>{tables}</div>' if tables else ''}"
    )


def _figures(section: Section) -> Iterator[str]:
    """Yields the pictures that belong to a section, no smaller than their text is legible; wider ones scroll."""
    for drawn, caption in _FIGURES.get(section.key, ()):
        if not (svg := drawn(section.reading)):
            continue
        natural = re.search(r'width="([\d.]+)pt"', svg)
        assert natural is not None
        width = float(natural[1])
        sized = svg.replace("<svg", f'<svg style="min-width: {width:.0f}px; max-width: {1.3 * width:.0f}px"', 1)
        yield f"<figure><div class=scroll>{sized}</div><figcaption>{html.escape(caption)}</figcaption></figure>"


def _provenance(record: Record, command: str) -> str:
    models = "".join(
        f"<li>{_escaped(str(model['origin']))}: {model['parameters']:,} parameters, sha256 "
        f"<code>{_escaped(model['sha256'])}</code></li>"
        for model in record["models"]
    )
    made = f"<p><code>{_escaped(command)}</code></p>" if command else ""
    settings = _escaped(json.dumps(record["settings"], indent=1, ensure_ascii=False))
    return (
        f"<h2>Where it comes from</h2>{made}<ul>{models}</ul><details><summary>Settings</summary>"
        f"<div class=scroll><pre>{settings}</pre></div></details>"
    )


def _escaped(text: str) -> str:
    """Returns plain text as HTML, arrows and multiples set as such."""
    return html.escape(re.sub(r"\bx(?=\d)", "\u00d7", text.replace("->", "\u2192")), quote=False)


def _table(one: Table) -> str:
    """Returns a table that scrolls by itself, its note above it; intervals stand in small print."""
    head = "".join(f"<th>{_escaped(name)}</th>" for name in one.head)
    rows = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in one.rows)
    note = f"<p class=soft>{_escaped(one.note)}</p>" if one.note else ""
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f"<div>{note}<div class=scroll><table>{body}</table></div></div>"


def _cell(text: str) -> str:
    indent = "&emsp;" if text.startswith("  ") else ""
    return indent + re.sub(r"\[[^]]*\]", lambda found: f"<span class=ci>{found[0]}</span>", _escaped(text.strip()))


def _paragraphs(texts: Iterable[str]) -> str:
    """Returns paragraphs of plain text; a heading before a colon stands out where it begins as one of the links."""
    return "".join(f"<p>{_headed(text)}</p>" for text in texts if text)


def _headed(text: str) -> str:
    found = re.match(r"(\([iv]+\) [^:]+|the choice): ", text)
    return f"<b>{_escaped(capital(found[1]))}</b> {_escaped(text[found.end() :])}" if found else _escaped(text)
