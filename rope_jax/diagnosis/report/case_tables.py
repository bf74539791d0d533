"""The tables of the case's page: every cell, every option, and where the numbers come from."""

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rope_jax.diagnosis.report.case_table import PARTS, cell_name, in_words
from rope_jax.diagnosis.report.page import anything, negated, table, with_interval

Record = Mapping[str, Any]

REACHES = ("short", "long")
_NAMES = {
    "none": "as trained",
    "ntk": "base scaling by the period match",
    "ntk4": "base scaling four times as strong",
    "by_parts": "slow pairs interpolated, fast ones kept",
    "yarn": "by parts, ramped in the pair's index",
    "llama3": "by parts with a narrow ramp",
    "linear": "every pair interpolated",
    "alibi": "a line a head",
    "alibi_star": "the steepest line that does no harm short",
    "t5": "one number a bucket of offsets",
    "T": "logits sharpened for the longer context",
}
_ROLES = {"status quo": "◆", "chosen": "★"}


def factorial(record: Record) -> str:
    """Returns accuracy, log-odds and loss of every cell, shaded."""
    probes, cells = record["probes"]["used"], record["cells"]
    precision = [name for name in probes if name != "ret"]
    head = "<tr><th rowspan=2>scaling + bias</th>"
    groups = [f"{html.escape(name)}<br>right" for name in probes]
    groups += ["precision<br>log-odds"] * bool(precision) + ["retrieval<br>log-odds"] * ("ret" in probes)
    head += _short_and_long([*groups, "text<br>loss"])
    unchanged = next((one for one in cells if cell_name(one) == "none + none"), cells[0])
    rows, scaling = [], cells[0]["scaling"]
    for cell in _grouped(cells):
        row = [f"<td>{_short_name(cell)}{_roles(record, cell)}</td>"]
        for name in probes:
            row += [_accuracy(cell["accuracy"][reach][name]) for reach in REACHES]
        for names in (precision, ["ret"] if "ret" in probes else []):
            if names:
                row += [_log_odds([cell["log_odds"][reach][name] for name in names]) for reach in REACHES]
        row += [_loss(cell["loss"][reach], unchanged["loss"][reach]) for reach in REACHES]
        rows.append(f"<tr{' class=starts' if cell['scaling'] != scaling else ''}>{''.join(row)}</tr>")
        scaling = cell["scaling"]
    used = dict.fromkeys([*(cell["scaling"] for cell in cells), *(cell["bias"] for cell in cells)])
    glossary = "; ".join(f"{name}: {_NAMES[name]}" for name in [*used, "T"] if name in _NAMES)
    return (
        f"<p class=note>{_ROLES['status quo']} a status quo, {_ROLES['chosen']} chosen for one. Accuracy: the deeper "
        "the green the better. Log-odds in nats, 0 is chance. Loss in nats a token, green below and orange above the "
        f"unchanged model. {html.escape(glossary)}.</p>" + table(rows, head=head)
    )


def _grouped(cells: Sequence[Record]) -> list[Record]:
    """Returns the cells with those of one scaling together, and of one bias within it."""
    order = {key: list(dict.fromkeys(cell[key] for cell in cells)) for key in ("scaling", "bias")}
    return sorted(cells, key=lambda cell: (*(order[key].index(cell[key]) for key in order), cell["temperature"]))


def _short_and_long(groups: Sequence[str]) -> str:
    above = "".join(f"<th class=group colspan=2>{group}</th>" for group in groups)
    return f"{above}</tr><tr>{''.join('<th class=starts>short</th><th>long</th>' for _ in groups)}</tr>"


def _short_name(cell: Record) -> str:
    # On a phone the column of names stays in view, and must leave room for another.
    return html.escape(cell_name(cell).replace(" + temperature", " + T"))


def _roles(record: Record, cell: Record) -> str:
    name, roles = cell_name(cell), []
    if any(cell_name(one["status_quo"]) == name for one in record["judgements"]):
        roles.append("status quo")
    chosen = [one["verdict"]["chosen"] for one in record["judgements"]]
    if any(one is not None and cell_name(one) == name for one in chosen):
        roles.append("chosen")
    return "".join(f' <span title="{role}">{_ROLES[role]}</span>' for role in roles)


def _shaded(text: str, tone: str, strength: float, *, title: str = "", kind: str = "") -> str:
    style = f'style="background: rgba(var(--{tone}), {min(max(strength, 0), 1) * 0.45:.2f})"'
    style += f" class={kind}" if kind else ""
    return f'<td {style} title="{html.escape(title)}">{text}</td>' if title else f"<td {style}>{text}</td>"


def _accuracy(value: Mapping[str, float | None]) -> str:
    mean = value["mean"]
    assert mean is not None
    return _shaded(f"{mean:.2f}", "good", mean**2, title=in_words(value, sign=False))


def _log_odds(values: Sequence[Mapping[str, Any]]) -> str:
    mean = sum(value["mean"] for value in values) / len(values)
    title = in_words(values[0]) if len(values) == 1 else ""
    return _shaded(f"{mean:+.2f}", "good" if mean > 0 else "bad", (abs(mean) / 4.6) ** 0.7, title=title)


def _loss(value: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    more = value["mean"] - reference["mean"]
    tone = "bad" if more > 0 else "good"
    return _shaded(f"{value['mean']:.3f}", tone, abs(more) ** 0.5, title=in_words(value, digits=3, sign=False))


def log_odds(record: Record) -> str:
    """Returns the log-odds of every probe with its interval, folded away; "" without probes."""
    probes = record["probes"]["used"]
    if not probes:
        return ""
    head = "<tr><th rowspan=2>scaling + bias</th>"
    head += _short_and_long([html.escape(name) for name in probes])
    rows = [
        f"<tr><td>{_short_name(cell)}</td>"
        + "".join(f"<td>{with_interval(cell['log_odds'][reach][name])}</td>" for name in probes for reach in REACHES)
        + "</tr>"
        for cell in _grouped(record["cells"])
    ]
    return (
        "<details><summary>Log-odds of every probe, with 95 % intervals (nats)</summary>"
        f"{table(rows, head=head)}</details>"
    )


def ratios(record: Record) -> str:
    """Returns what every status quo does at every other ratio that was asked for."""
    probes = record["probes"]["used"]
    names = ["scaling + bias", "ratio", *(f"{name} right" for name in probes)]
    names += ["retrieval lost", "precision lost", "keeps retrieval", "loses precision"]
    rows = []
    for rung in record["ratios"]:
        seen = rung["symptom"]
        row = [f"<td>{_short_name(rung)}</td><td>&times;{rung['ratio']:g}<br>{rung['target']:,}</td>"]
        row += [_accuracy(seen["accuracy"]["long"][name]) for name in probes]
        row += [f"<td>{with_interval(seen[key])}</td>" for key in ("retrieval_drop", "precision_drop")]
        row += [f"<td>{rung['retrieves']}</td><td>{rung['imprecise']}</td>"]
        rows.append(f"<tr>{''.join(row)}</tr>")
    return table(rows, head=f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in names)}</tr>")


def options(judgement: Record) -> str:
    """Returns what every option of a status quo does, whether it helps and whether it qualifies."""
    names = ["change", "long precision", "long accuracy", "long retrieval lost", "short accuracy lost"]
    names += ["short loss of text", "long loss of text", "helps", "qualifies"]
    head = "".join(
        f"<th{' class=group' if name in ('helps', 'qualifies') else ''}>{name.replace(' ', '<br>', 1)}</th>"
        for name in names
    )
    rows = []
    for one in judgement["options"]:
        option = one["option"]
        number = f"<b>{option['number']}</b> " if option["number"] in ("1", "2", "3") else ""
        mark = " class=chosen" if option == judgement["verdict"]["chosen"] else ""
        values = [
            with_interval(one["gain_simultaneous"]),
            with_interval(one["precision_accuracy"]),
            with_interval(one["retrieval_loss"]),
            with_interval(one["short_loss"], digits=3),
            with_interval(one["short_cost"], digits=3),
            with_interval(negated(one["long_gain"]), digits=3),
        ]
        rows.append(
            f"<tr{mark}><td>{number}{html.escape(option['change'])}"
            f"<br><span class=ci>{html.escape(cell_name(option))}</span></td>"
            + "".join(f"<td>{value}</td>" for value in values)
            + _judged(one["helps"])
            + _judged(one["qualifies"], one["lost"])
            + "</tr>"
        )
    return table(rows, head=f"<tr>{head}</tr>")


def _judged(answer: str, lost: Mapping[str, str] | None = None) -> str:
    tone = {"yes": "good", "no": "bad"}.get(answer, "warn")
    text = html.escape("open" if answer == "unclear" else answer)
    for what, how in (lost or {}).items():
        text += f"<br><span class=ci>{html.escape(what)} {'lost' if how == 'yes' else 'open'}</span>"
    return _shaded(text, tone, 0.7, kind="answer")


def blame(predicted: Record) -> str:
    """Returns which part of every retrofit is predicted to cost how much precision."""
    names = ["scaling + bias", *PARTS.values()]
    rows = []
    for one in predicted["blame"]:
        row = [_short_name(one), *(with_interval(one[part]) for part in PARTS)]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>")
    return table(rows, head=f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in names)}</tr>")


def predictions(predicted: Record) -> str:
    """Returns errors of `bind` and what its two heads are left with in every cell, folded away."""
    rows = [
        {
            "scaling + bias": cell_name(cell),
            "error, measured": sum(cell["measured"]) / len(cell["measured"]),
            "error, predicted": sum(cell["predicted"]) / len(cell["predicted"]),
            "coherence, nearest offset": cell["coherence"][0],
            "coherence, farthest": cell["coherence"][-1],
            "g50, farthest (tokens)": cell["g50"][-1],
            "just noticeable (tokens)": cell["just_noticeable"],
            "bias horizon (tokens)": cell["horizon"],
            "bias step (nats)": cell["step"],
        }
        for cell in predicted["cells"]
    ]
    return f"<details><summary>What is predicted of every cell</summary>{anything(rows)}</details>"


def provenance(record: Record, command: str) -> str:
    """Returns where the numbers come from: command, weights, settings, versions."""
    return table(
        f"<tr><td>{html.escape(name)}</td><td class=wrap><code>{value}</code></td></tr>"
        for name, value in _sources(record, command)
    )


def _sources(record: Record, command: str) -> Iterator[tuple[str, str]]:
    yield "command", html.escape(command)
    for model in record["models"]:
        yield (
            "weights",
            html.escape(f"{model['origin']}: sha256 {model['sha256']}, {model['parameters']:,} parameters"),
        )
        for key, value in model.get("config", {}).items():
            yield (
                key,
                html.escape(f"{value['value']}  ({value['source']})" if isinstance(value, Mapping) else str(value)),
            )
    yield "items", html.escape("; ".join(f"{key.replace('_', ' ')} {value}" for key, value in record["items"].items()))
    yield "intervals", html.escape(str(record["interval_method"]))
    accuracy = record["probes"]["accuracy"]
    yield (
        "unchanged model, right at the trained length",
        ", ".join(f"{html.escape(name)} {value:.3f}" for name, value in accuracy.items()),
    )
    for key, value in record["settings"].items():
        yield key.replace("_", " "), html.escape(json.dumps(value))
    for name, bias in (record["biases"][0] if record["biases"] else {}).items():
        facts = {key: value for key, value in bias.items() if not isinstance(value, list)}
        if facts:
            shown = ", ".join(f"{key.replace('_', ' ')} {anything(value)}" for key, value in facts.items())
            yield f"bias {name}", shown
    for name, why in record["omitted"].items():
        yield f"omitted: {name}", html.escape(why)
    yield "versions", html.escape(", ".join(f"{name} {value}" for name, value in record["versions"].items()))
