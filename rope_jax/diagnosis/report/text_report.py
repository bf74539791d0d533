"""The measurement as one self-contained HTML page: no script, no network, light and dark, wide and narrow."""

import html
import json

from rope_jax.diagnosis.evaluation.measurement import Measurement
from rope_jax.diagnosis.report import text_plots
from rope_jax.diagnosis.report.text_records import bias_records
from rope_jax.statistics.intervals import Estimate

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6066; --paper: #ffffff; --line: #d9dce0;
  --good: 0, 140, 100; --bad: 213, 94, 0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ec; --soft: #a3a9b0; --paper: #15171a; --line: #363a40; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.2rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p.note, figcaption, .soft { color: var(--soft); font-size: .9rem; }
figure { margin: 1rem 0; }
figure svg { width: 100%; min-width: 34rem; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th.left, td.left { text-align: left; }
td.wrap { white-space: normal; overflow-wrap: anywhere; text-align: left; }
td .ci { color: var(--soft); font-size: .78rem; }
ul { padding-left: 1.2rem; }
code { overflow-wrap: anywhere; font-size: .85rem; }
"""


def html_page(measured: Measurement, *, command: str) -> str:
    """Returns the page.

    Args:
      measured: the result.
      command: the command line that made it, for the provenance.
    """
    name = html.escape(measured.checkpoint.origin)
    body = [
        f"<h1>What each retrofit does to {name}</h1>",
        f"<p>Trained at {measured.trained_length:,} tokens, evaluated at {measured.settings.target_length:,} "
        f"(&times;{measured.factor:g}) on {len(measured.text.rows)} rows of the same text, "
        "with the same weights in every cell. "
        "Measured, in nats a token.</p>",
        _summary(measured),
        "<h2>Cost up to the trained length, gain beyond it</h2>",
        "<p class=note>Against the unchanged model, paired by row: mean and 95 % interval "
        f"({html.escape(measured.interval_method)}). A cost above zero and a gain below zero are bad.</p>",
        _cells_table(measured),
        _figure(text_plots.cost_and_gain(measured), "Every cell: up and to the left is better."),
        "<h2>Loss by position</h2>",
        _figure(text_plots.loss_by_position(measured), "Shaded: 95 % intervals over rows."),
        _bins_table(measured),
        "<h2>What is due to the scaling, the bias, and the two together</h2>",
        "<p class=note>Main effects are averaged over the other factor's arms; an interaction is what is left of a "
        "pair after its two separate effects. Positive is worse.</p>",
        _figure(text_plots.effect_sizes(measured), "Blue: main effects. Green: interactions."),
        "<h2>The biases</h2>",
        _figure(text_plots.bias_curves(measured), "Fitted biases: those of the first group of rows."),
        _biases_list(measured),
        "<h2>Where the numbers come from</h2>",
        _provenance(measured, command),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>rope-jax diagnose: {name}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _summary(measured: Measurement) -> str:
    margin = measured.settings.margin
    cells = dict(measured.cells)
    best = max(cells, key=lambda cell: cells[cell].long_gain.mean)
    changed = [cell for cell in cells if cell != ("none", "none")]
    judged = "upper end of the interval" if len(measured.text.rows) > 1 else "one row, so without an interval"
    harmless = [cell for cell in changed if _upper(cells[cell].short_cost) <= margin]
    lines = [
        f"Largest long-context gain of {len(cells)} cells: {_cell_name(best)}, {_text(cells[best].long_gain)} nats, "
        f"at a short-context cost of {_text(cells[best].short_cost)} (picked "
        "from all cells, which its interval does not know)."
    ]
    if harmless:
        safe = max(harmless, key=lambda cell: cells[cell].long_gain.mean)
        lines.append(
            f"Among changes whose short-context cost stays within {margin:g} nats ({judged}), "
            f"the largest gain: {_cell_name(safe)}, {_text(cells[safe].long_gain)} nats."
        )
    else:
        lines.append(f"No change has a short-context cost within {margin:g} nats ({judged}).")
    for reach, effects in measured.effects.items():
        parts = {**{f"scaling {k}": v for k, v in effects.scaling.items()}}
        parts |= {f"bias {k}": v for k, v in effects.bias.items()}
        worst = max(parts, key=lambda name: parts[name].mean, default=None)
        if worst is not None and parts[worst].mean > 0:
            where = "up to" if reach == "short" else "beyond"
            lines.append(f"Most harmful single change {where} the trained length: {worst}, {_text(parts[worst])}.")
    lines += [f"Note: {finding}" for finding in measured.findings]
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _cells_table(measured: Measurement) -> str:
    biases = list(dict.fromkeys(bias for _, bias in measured.cells))
    largest = {
        "short_cost": max(abs(cell.short_cost.mean) for cell in measured.cells.values()) or 1.0,
        "long_gain": max(abs(cell.long_gain.mean) for cell in measured.cells.values()) or 1.0,
    }
    head = "".join(f"<th colspan=2>{html.escape(text_plots.BIAS_TITLES[bias])}</th>" for bias in biases)
    rows = [f"<tr><th></th>{head}</tr>", "<tr><th>scaling</th>" + "<th>cost</th><th>gain</th>" * len(biases) + "</tr>"]
    for scaling in measured.rules:
        line = [f"<td>{scaling}</td>"]
        for bias in biases:
            cell = measured.cells[scaling, bias]
            line.append(_shaded(cell.short_cost, good=-1, largest=largest["short_cost"]))
            line.append(_shaded(cell.long_gain, good=+1, largest=largest["long_gain"]))
        rows.append("<tr>" + "".join(line) + "</tr>")
    return f"<div class=scroll><table>{''.join(rows)}</table></div>"


def _bins_table(measured: Measurement) -> str:
    head = "".join(f"<th>{low}-{high}</th>" for low, high in measured.bins)
    rows = [f"<tr><th>scaling</th><th class=left>bias</th>{head}</tr>"]
    for (scaling, bias), cell in measured.cells.items():
        values = "".join(f"<td>{_with_interval(value)}</td>" for value in cell.by_bin)
        rows.append(
            f"<tr><td>{scaling}</td><td class=left>{html.escape(text_plots.BIAS_TITLES[bias])}</td>{values}</tr>"
        )
    return f"<div class=scroll><table>{''.join(rows)}</table></div>"


def _biases_list(measured: Measurement) -> str:
    lines = []
    for name, bias in bias_records(measured).items():
        text = f"{name}: {bias['kind']}"
        for fold in bias.get("folds", ()):
            text += f"; rows {fold['rows'][0]}-{fold['rows'][-1]} from {fold['source']}"
            if "multiplier" in fold:
                text += f": multiplier {fold['multiplier']:.4g}, short cost there {fold['cost']:.4f}"
            if "table" in fold:
                text += (
                    f": {fold['buckets_reached']} buckets reached, "
                    f"loss there {fold['loss_before']:.4f} to {fold['loss_after']:.4f}"
                )
        lines.append(f"<li>{html.escape(text)}</li>")
    return f"<ul>{''.join(lines)}</ul>"


def _provenance(measured: Measurement, command: str) -> str:
    checkpoint = measured.checkpoint
    rows = [
        ("command", command),
        ("weights, sha256", checkpoint.sha256),
        ("text", measured.text.origin),
        ("layout of rotary pairs", f"{measured.settings.layout or checkpoint.layout}; mean loss half "
         f"{measured.layout.half:.3f}, interleaved {measured.layout.interleaved:.3f}"),
        ("phases, seed", f"{measured.settings.phase}, {measured.settings.seed}"),
        ("programs compiled for all cells", str(measured.compilations)),
        ("seconds", ", ".join(f"{stage} {value:.1f}" for stage, value in measured.seconds.items())),
        ("versions", ", ".join(f"{name} {version}" for name, version in measured.versions.items())),
        *((f"scaling {name}", json.dumps(dict(rule.hyperparameters))) for name, rule in measured.rules.items()),
        *((f"omitted {name}", why) for name, why in measured.omitted.items()),
        *((name, f"{value.value}  ({value.source})") for name, value in checkpoint.positions.values.items()),
    ]  # fmt: skip
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=wrap><code>{html.escape(str(value))}</code></td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def _figure(svg: str, caption: str) -> str:
    return (
        f"<figure><div class=scroll>{svg}</div><figcaption>{html.escape(caption)}</figcaption></figure>" if svg else ""
    )


def _shaded(value: Estimate, *, good: int, largest: float) -> str:
    tone = "good" if value.mean * good > 0 else "bad"
    strength = min(abs(value.mean) / largest, 1.0) ** 0.5 * 0.45
    return f'<td style="background: rgba(var(--{tone}), {strength:.2f})">{_with_interval(value, sign=True)}</td>'


def _with_interval(value: Estimate, *, sign: bool = False) -> str:
    shown = f"{value.mean:+.3f}" if sign else f"{value.mean:.3f}"
    if value.low is None or value.high is None:
        return shown
    return f"{shown}<br><span class=ci>{value.low:.3f} to {value.high:.3f}</span>"


def _text(value: Estimate) -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:+.3f}"
    return f"{value.mean:+.3f} ({value.low:+.3f} to {value.high:+.3f})"


def _upper(value: Estimate) -> float:
    return value.mean if value.high is None else value.high


def _cell_name(cell: tuple[str, str]) -> str:
    scaling, bias = cell
    return f"scaling {scaling} with {text_plots.BIAS_TITLES[bias]}"
