"""A diagnosis as one self-contained HTML page, made from its record alone: what to try first, then all it rests on."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rope_jax.diagnosis.report import plots, scheme_figures
from rope_jax.diagnosis.report.advice import Advice
from rope_jax.diagnosis.report.details import Section, Table, details
from rope_jax.diagnosis.report.markup import document, escaped, figure, paragraphs, table
from rope_jax.diagnosis.report.screen import Screen, screens
from rope_jax.diagnosis.report.wording import capital, model_name

__all__ = ["page"]

Record = Mapping[str, Any]

_TONES = {"TRY FIRST": "good", "THEN": "info", "NOT": "bad", "OUTSIDE": "calm"}


def page(record: Record, *, command: str = "", costs: Sequence[Record] = ()) -> str:
    """Returns the page, which asks nothing of the network and reads well wide and narrow, light and dark.

    Args:
      record: from `record.record_of`.
      command: the command line that made it; "" where none did.
      costs: objects with `configuration`, `milliseconds` and `mib`, where they were measured.
    """
    shown = screens(record, costs)
    parts = ["<h1>Which part of the context extension broke what, and what to try first</h1>"]
    parts += [_card(one) for one in shown]
    if record["shared"]:
        parts.append(f"<p><b>Shared.</b> {escaped(capital(record['shared']))}</p>")
    for section in details(record, costs):
        parts.append(_section(section))
        parts += _figures(record, section)
    parts += [_provenance(record, command)]
    return document(f"Diagnosis of {model_name(record['models'])}", parts)


def _card(one: Screen) -> str:
    head = (
        f"<h2>{escaped(one.title)}</h2><div class=finding>{escaped(one.finding)}</div>"
        f"<p class=soft>{escaped(' '.join(one.notes))}</p>"
    )
    said = f"<p class=soft>{escaped(' '.join(one.said))}</p>"
    steps = "".join(f"<li>{escaped(step)}</li>" for step in one.next)
    left = "".join(_advice(advice, first=not at) for at, advice in enumerate(one.advice))
    left += f"<h3>ENOUGH TO SHIP?</h3><p>{escaped(one.ship)}</p>"
    left += f"<h3>NEXT</h3><ul>{steps}</ul>" if steps else ""
    right = table(Table(one.head, one.rows)) + said
    why = paragraphs(f"{heading}: {text}" for heading, text in one.gist.items())
    right += f"<h3>WHY</h3>{why}" if why else ""
    return (
        f'<section class="card {one.tone}">{head}<div class=columns><div>{left}</div><div>{right}</div></div></section>'
    )


def _advice(advice: Advice, *, first: bool) -> str:
    lines = "".join(f"<li>{escaped(line)}</li>" for line in advice.lines)
    beside = f" <span class=soft>{escaped(advice.beside)}</span>" if advice.beside else ""
    what = f"<span{' class=first' if first else ''}>{escaped(advice.what)}</span>"
    return (
        f'<div class="advice {_TONES[advice.verb]}"><b>{advice.verb}</b>{what}{beside}'
        f"{f'<ul>{lines}</ul>' if lines else ''}</div>"
    )


def _section(section: Section) -> str:
    tables = "".join(table(one) for one in section.tables)
    return (
        f"<h2>{escaped(section.title)}</h2>{paragraphs(section.texts)}"
        f"{f'<div class=tables>{tables}</div>' if tables else ''}"
    )


def _figures(record: Record, section: Section) -> Iterator[str]:
    """Yields the pictures that belong to a section."""
    judgement = next((one for one in record["judgements"] if one["deployed"] == section.deployed), None)
    if section.key == "configurations":
        yield figure(
            scheme_figures.wavelengths(record),
            "Tokens of a turn of each rotary pair, as trained and under every scaling that was run.",
        )
        yield figure(scheme_figures.biases(record), "What each bias takes at each offset, a line a head.")
        yield figure(
            scheme_figures.coherence(record),
            "What scaling makes of a relation trained at one offset, all pairs weighed alike: how much is left at the "
            "trained offset, and where the peak goes.",
        )
    if judgement is None:
        return
    if section.key == "changes":
        yield figure(
            plots.changes(record, judgement),
            "Each change with its intervals, against 0 (solid) and the margin (dashed). Green: significantly on the "
            "right side of the margin; orange: on the wrong side; grey: not resolved, or not enough to matter.",
        )
        yield figure(plots.loss_by_position(record, judgement), "Loss of text by position; the lower the better.")
    if section.key == "cause":
        yield figure(plots.cause(judgement), "The shares of scaling and bias in what is lost, with their intervals.")
    if section.key == "regression":
        yield figure(
            plots.by_distance(record, judgement),
            "Each task by the distance from what is asked about to the question, at the target length.",
        )
        yield figure(
            plots.binding_errors(record, judgement),
            "Where wrong answers to binding lie: places beside the item asked for.",
        )


def _provenance(record: Record, command: str) -> str:
    models = "".join(
        f"<li>{escaped(str(model['origin']))}: {model['parameters']:,} parameters, sha256 "
        f"<code>{escaped(model['sha256'])}</code></li>"
        for model in record["models"]
    )
    made = f"<p><code>{escaped(command)}</code></p>" if command else ""
    settings = escaped(json.dumps(record["settings"], indent=1, ensure_ascii=False))
    return (
        f"<h2>Where it comes from</h2>{made}<ul>{models}</ul><details><summary>Settings</summary>"
        f"<div class=scroll><pre>{settings}</pre></div></details>"
    )
