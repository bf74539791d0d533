"""Everything else in the inspection record as text of at most 100 columns, numbers rounded for reading."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rope_jax.diagnosis.theory.summary import runs

WIDTH = 100


def details_text(record: Mapping[str, Any]) -> str:
    """Returns values, findings, possible faults, pairs, thresholds, bias and curves, ending in a newline."""
    lines = [
        *_values(record),
        *_notes("Findings in the config", record["findings"]),
        *_notes(
            "Rule these out first: faults of an implementation that look like a fault of the scheme",
            [f"{item['fault']}: {item['message']}" for item in record["faults"]],
        ),
    ]
    for group in record["layer_groups"]:
        lines += _group(group)
    lines += [*_thresholds(record), *_bias(record), *_curves(record)]
    lines += _notes("Does not apply", [f"{item['name']}: {item['reason']}" for item in record["not_applicable"]])
    return "\n".join(line.rstrip() for line in lines) + "\n"


def tokens(value: float | None) -> str:
    """Returns a number of tokens in at most 7 characters; `-` for None."""
    if value is None:
        return "-"
    if value >= 1e12:
        return f"{value:.1e}"
    for unit, name in ((1e9, "G"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _wrapped(text: str, indent: str = "  ", hanging: str = "    ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=hanging, break_on_hyphens=False)


def _title(text: str) -> list[str]:
    return ["", text, "-" * len(text)]


def _notes(title: str, notes: Sequence[str]) -> list[str]:
    return [*_title(title), *(line for note in notes for line in _wrapped(f"- {note}"))] if notes else []


def _values(record: Mapping[str, Any]) -> list[str]:
    lines = _title("Values used, and where they were read")
    for name, item in record["values"].items():
        value = str(item["value"])
        value = value if len(value) <= 26 else value[:23] + "..."
        lines += _wrapped(f"{name:<24} {value:<26} {item['source']}", "  ", " " * 54)
    if record["without_effect"]:
        lines += _notes("Keys without effect", [f"{key}: {why}" for key, why in record["without_effect"].items()])
    return lines


def _group(group: Mapping[str, Any]) -> list[str]:
    window = f", window {group['window']:,}" if group["window"] else ""
    lines = [
        *_title(f"Layers {group['name']}"),
        *_wrapped(
            f"{len(group['layers'])} layers ({runs(group['layers'])}), {group['num_heads']} heads of "
            f"{group['head_dim']}{window}"
        ),
    ]
    if not group["rotary_dim"]:
        return [*lines, "  no rotary embedding"]
    given = ", ".join(f"{key} {_brief(value)}" for key, value in group["hyperparameters"].items())
    lines += _wrapped(
        f"rotary dim {group['rotary_dim']}, base {group['base_before']:g}; scaling {group['scaling']} {given}"
    )
    lines += _wrapped(
        f"{100 * group['out_of_distribution_share']:.2f} % of pairs x offsets out of distribution; F/F0 "
        f"{_number(group['fisher_ratio'])}; critical dimension {group['critical_dimension']}; "
        + ", ".join(f"{count} {name}" for name, count in group["classes"].items())
    )
    rows = [
        f"{pair['pair']:>4} {tokens(pair['wavelength']):>8} {_turns(pair['turns_seen']):>7} "
        f"{_number(pair['growth']):>6}  {pair['class']:<19}"
        for pair in group["pairs"]
    ]
    heading = f"{'pair':>4} {'waveln.':>8} {'turns':>7} {'growth':>6}  {'class':<19}"
    half = (len(rows) + 1) // 2
    left, right = rows[:half], [*rows[half:], ""]
    lines.append(f"{heading} {heading if len(rows) > 1 else ''}")
    return lines + [f"{one} {other}" for one, other in zip(left, right, strict=False)]


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"({len(value)} values)"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _turns(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _thresholds(record: Mapping[str, Any]) -> list[str]:
    found = record["thresholds"]
    if found is None:
        return []
    content, reach = found["content_never_negative"], record["layer_groups"][record["main_group"]]["reach"]
    again = content["fails_again_at"]
    dips = "" if again is None else f"; not monotone, it fails again at {again:,.0f}"
    bound = f"; lower bounds, {content['offsets']:,} m tried" if content["offsets"] < reach else ""
    lines = [f"{key.replace('_', ' ')}: lambda {_number(item['multiplier'], 5)}" for key, item in found.items()]
    return _notes("Bases to set: lambda, the factor on the base (main layers)", [*lines[:2], lines[2] + dips + bound])


def _bias(record: Mapping[str, Any]) -> list[str]:
    bias = record["bias"]
    notes = [bias["source"], *([bias["note"]] if bias["note"] else [])]
    if bias["slopes"]:
        notes.append(f"slopes {_number(max(bias['slopes']))} ... {_number(min(bias['slopes']))} nats a token")
    known = [value for value in bias["horizons"] or () if value is not None]
    if known:
        notes.append(f"horizons {tokens(min(known))} ... {tokens(max(known))} tokens in {len(known)} heads")
    if bias["num_buckets"]:
        widths = bias["bucket_widths"]
        notes.append(f"{bias['num_buckets']} buckets, {min(widths)} ... {max(widths)} tokens wide")
    return [] if bias["name"] == "none" else _notes(f"Bias {bias['name']}", notes)


def _curves(record: Mapping[str, Any]) -> list[str]:
    curves = {option["scaling"]: option["curve"] for option in record["options"]}
    if not curves:
        return []
    lines = [
        *_title(f"What is left of a relation that was trained at offset Delta* ({record['status']})"),
        "  first its coherence in place, 1 is untouched; then the offset at which it is sharpest now",
        _row("Delta*", (tokens(point["offset"]) for point in next(iter(curves.values())))),
    ]
    for name, curve in curves.items():
        lines.append(_row(name[:26], (f"{point['coherence']:.2f}" for point in curve)))
        lines.append(_row("", (tokens(point["peak_offset"]) for point in curve)))
    return lines


def _row(label: str, entries: Iterable[str]) -> str:
    return f"  {label:<27}" + "".join(f"{entry:>7}" for entry in entries)
