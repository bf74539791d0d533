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
    content = found["content_never_negative"]
    again = content["fails_again_at"]
    dips = f" (not monotone: fails again at base {again:,.0f})" if again is not None else ""
    reach = record["layer_groups"][record["main_group"]]["reach"]
    sampled = content["offsets"] < reach
    bound = [f"            a lower bound: tried {content['offsets']:,} m only"] if sampled else []
    return [
        *_title("Three thresholds for lambda, the factor on the base (main layers)"),
        f"  {_number(found['period_match']['multiplier'], 5):>8}  longest period grows as the context does",
        f"  {_number(found['no_pair_out_of_distribution']['multiplier'], 5):>8}  no pair out of distribution any more",
        *_wrapped(
            f"{_number(content['multiplier'], 5):>8}  sum of cos(m theta) >= 0 for all m <= target{dips}",
            "  ",
            " " * 12,
        ),
        *bound,
    ]


def _bias(record: Mapping[str, Any]) -> list[str]:
    bias = record["bias"]
    if bias["name"] == "none":
        return []
    lines = [*_title(f"Bias {bias['name']}"), *_wrapped(bias["source"])]
    if bias["slopes"]:
        lines.append(f"  slopes {_number(max(bias['slopes']))} ... {_number(min(bias['slopes']))} nats a token")
    if bias["horizons"]:
        known = sorted(value for value in bias["horizons"] if value is not None)
        beyond = len(bias["horizons"]) - len(known)
        spread = f"{tokens(known[0])} ... {tokens(known[-1])} tokens" if known else ""
        lines.append(
            f"  horizon at A = {_number(record['deployed']['amplitude'])} nats: "
            + "; ".join([*([spread] if spread else []), *([f"none in {beyond} heads"] if beyond else [])])
        )
    if bias["num_buckets"]:
        widths = bias["bucket_widths"]
        lines.append(
            f"  {bias['num_buckets']} buckets, {min(widths)} ... {max(widths)} tokens wide; all offsets from "
            f"{bias['last_bucket_start']:,} on share the last one"
        )
    return [*lines, *(_wrapped(bias["note"]) if bias["note"] else [])]


def _curves(record: Mapping[str, Any]) -> list[str]:
    options, deployed = record["options"], record["deployed"]
    if not options:
        return []
    reach = record["layer_groups"][record["main_group"]]["reach"]
    estimate = f"; estimates from {deployed['offsets']:,} of {reach:,} offsets" if deployed["offsets"] < reach else ""
    lines = [
        *_title(f"By offset Delta* of a relation ({record['status']})"),
        *_wrapped(
            "coherence: how sharp a trained relation still is in its place, 1 is untouched; sharpest at: where it lands; "
            f"g50: tokens that hold half of attention at A = {', '.join(map(_number, deployed['amplitudes']))} nats; "
            f"'-' where nothing was trained at that offset{estimate}"
        ),
    ]
    for option in options:
        curve = option["curve"]
        lines.append(_row(f"{option['name'][:26]}", (tokens(point["offset"]) for point in curve)))
        lines.append(_row("   coherence", (_fixed(point["coherence"]) for point in curve)))
        lines.append(_row("   sharpest at", (tokens(point["peak_offset"]) for point in curve)))
        for k, amplitude in enumerate(deployed["amplitudes"]):
            lines.append(_row(f"   g50, A = {_number(amplitude)}", (tokens(point["g50"][k]) for point in curve)))
    return lines


def _fixed(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _row(label: str, entries: Iterable[str]) -> str:
    return f"  {label:<27}" + "".join(f"{entry:>7}" for entry in entries)
