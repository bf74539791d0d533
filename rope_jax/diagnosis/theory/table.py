"""The inspection record as text of at most 100 columns, numbers rounded for reading."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WIDTH = 100


def table_text(record: Mapping[str, Any]) -> str:
    """Returns the record of `inspect_positions` as readable text, ending in a newline."""
    lines = [
        *_head(record),
        *_values(record),
        *_notes("Findings in the config", record["findings"]),
        *_notes(
            "Rule these out first: faults of an implementation that look like a fault of the scheme",
            [f"{warning['fault']}: {warning['message']}" for warning in record["warnings"]],
        ),
    ]
    for group in record["layer_groups"]:
        lines += _group(group)
    lines += [*_thresholds(record), *_bias(record), *_ranking(record), *_curves(record)]
    lines += _notes("Does not apply", [f"{item['name']}: {item['reason']}" for item in record["not_applicable"]])
    if record["plot"]:
        lines += ["", f"plot: {record['plot']}"]
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


def _share(value: float | None) -> str:
    if value is None:
        return "-"
    return "0 %" if value == 0 else "<0.01 %" if value < 1e-4 else f"{100 * value:.2f} %"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _wrapped(text: str, indent: str = "  ", hanging: str = "    ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=hanging, break_on_hyphens=False)


def _title(text: str) -> list[str]:
    return ["", text, "-" * len(text)]


def _notes(title: str, notes: Sequence[str]) -> list[str]:
    return [*_title(title), *(line for note in notes for line in _wrapped(f"- {note}"))] if notes else []


def _head(record: Mapping[str, Any]) -> list[str]:
    model, settings = record["model"], record["settings"]
    return [
        *_wrapped(f"{model['origin']} ({model['model_type']}): {record['status']}", "", "  "),
        f"  length     {model['original_length']:,} tokens trained, {model['target_length']:,} asked for: "
        f"s = {_number(model['factor'], 5)}",
        *_wrapped(f"status quo scaling {settings['scaling']} ({settings['scaling_source']})", "  ", " " * 13),
        *_wrapped(f"bias {settings['bias']} ({settings['bias_source']})", " " * 13, " " * 15),
        *_wrapped(
            f"assumed    rotary logits of a matching head rise by A = {_number(settings['amplitude'])} nats; all pairs "
            "weigh alike",
            "  ",
            " " * 13,
        ),
        f"  entropy    holding one key's share of attention takes {record['entropy_cost']:.2f} nats more, ln s",
    ]


def _values(record: Mapping[str, Any]) -> list[str]:
    lines = _title("Values used, and where they were read")
    for name, item in record["values"].items():
        value = str(item["value"])
        value = value if len(value) <= 26 else value[:23] + "..."
        lines += _wrapped(f"{name:<24} {value:<26} {item['source']}", "  ", " " * 54)
    if record["without_effect"]:
        lines += _notes("Keys without effect", [f"{key}: {why}" for key, why in record["without_effect"].items()])
    return lines


def _runs(numbers: Sequence[int]) -> str:
    """Returns whole numbers as runs: `0-3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def _group(group: Mapping[str, Any]) -> list[str]:
    window = f", window {group['window']:,}" if group["window"] else ""
    lines = [
        *_title(f"Layers {group['name']}"),
        *_wrapped(
            f"{len(group['layers'])} layers ({_runs(group['layers'])}), {group['num_heads']} heads of "
            f"{group['head_dim']}{window}"
        ),
    ]
    if not group["rotary_dim"]:
        return [*lines, "  no rotary embedding"]
    given = ", ".join(f"{key} {_brief(value)}" for key, value in group["hyperparameters"].items())
    lines += _wrapped(f"rotary dim {group['rotary_dim']}, base {group['base']:g}; scaling {group['scaling']} {given}")
    lines += _wrapped(
        f"out of distribution: {_share(group['out_of_distribution_share'])} of (pair, offset) cells; "
        f"F/F0 {_number(group['fisher_ratio'])}; critical dimension {group['critical_dimension']}; "
        + ", ".join(f"{count} {name}" for name, count in group["classes"].items())
    )
    cells = [
        f"{pair['pair']:>4} {tokens(pair['wavelength']):>8} {_turns(pair['turns_seen']):>7} "
        f"{_number(pair['growth']):>6}  {pair['class']:<19}"
        for pair in group["pairs"]
    ]
    heading = f"{'pair':>4} {'waveln.':>8} {'turns':>7} {'growth':>6}  {'class':<19}"
    half = (len(cells) + 1) // 2
    left, right = cells[:half], [*cells[half:], ""]
    lines.append(f"{heading} {heading if len(cells) > 1 else ''}")
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
    again = found["content_fails_again_at"]
    dips = f" (not monotone: fails again at {again:.5g})" if again is not None else ""
    sampled = found["content_offsets"] < _reach(record)
    bound = [f"            a lower bound: looked at {found['content_offsets']:,} m only"] if sampled else []
    return [
        *_title("Three thresholds for lambda, the factor on the base (main layers)"),
        f"  {_number(found['period_match'], 5):>8}  longest period grows by s",
        f"  {_number(found['no_cell_out_of_distribution'], 5):>8}  no cell out of distribution any more",
        f"  {_number(found['content_never_negative'], 5):>8}  sum of cos(m theta) >= 0 for all m <= target{dips}",
        *bound,
    ]


def _reach(record: Mapping[str, Any]) -> int:
    return max(group["reach"] for group in record["layer_groups"] if group["pairs"])


def _bias(record: Mapping[str, Any]) -> list[str]:
    bias, model = record["bias"], record["model"]
    if bias["kind"] == "none":
        return []
    lines = _title(f"Bias {bias['kind']}")
    if bias["slopes"]:
        heads = len(bias["slopes"])
        horizons = sorted(bias["horizons"])
        lines += [
            f"  slopes {_number(max(bias['slopes']))} ... {_number(bias['gentlest_slope'])} nats a token over "
            f"{heads} heads",
            f"  horizon A/m {tokens(horizons[0])} ... {tokens(horizons[-1])} tokens; "
            f"{bias['heads_that_reach_target']} of {heads} heads see as far as {model['target_length']:,}",
            f"  the gentlest head pays {bias['cost_at_original']:.1f} nats at {model['original_length'] - 1:,} tokens, "
            f"{bias['cost_at_target']:.1f} at {model['target_length'] - 1:,}",
        ]
    if bias["num_buckets"]:
        widths = bias["bucket_widths"]
        lines.append(
            f"  {bias['num_buckets']} buckets, {min(widths)} ... {max(widths)} tokens wide; all offsets from "
            f"{bias['last_bucket_start']:,} on share the last one"
        )
    return [*lines, *(_wrapped(bias["note"]) if bias["note"] else [])]


def _ranking(record: Mapping[str, Any]) -> list[str]:
    options = record["options"]
    if not options:
        return []
    settings = record["settings"]
    heads = [f"A={_number(a)}" for a in settings["amplitudes"]]
    lines = [
        *_title(f"Options, best first ({record['status']})"),
        *_wrapped(f"score: {settings['score']}; at three amplitudes A, ranked by the middle one"),
        *(
            _wrapped(f"estimates from {settings['offsets']:,} of {_reach(record):,} offsets")
            if settings["offsets"] < _reach(record)
            else []
        ),
        "  trained, new: the halves of the score; OOD: cells out of distribution",
        "  JND: tokens that one logit can tell apart, with noise of 1 nat",
        f"  {'#':<3}{'option':<12}{'scaling + bias':<28}{heads[0]:>7}{heads[1]:>7}{heads[2]:>7}"
        f"{'trained':>8}{'new':>5}{'OOD':>8}{'F/F0':>6}{'JND':>6}",
    ]
    for option in options:
        scores = "".join(f"{item['score']:>7.2f}" for item in option["scores"])
        jnd = option["just_noticeable_difference"]
        lines.append(
            f"  {option['rank']:<3}{_title_of(option):<12}{option['name'][:27]:<28}{scores}"
            f"{_half(option['score_trained']):>8}{_half(option['score_new']):>5}"
            f"{_share(option['out_of_distribution_share']):>8}{option['fisher_ratio']:>6.2f}{_half(jnd):>6}"
        )
    orders = [_order(options, k) for k in range(len(settings["amplitudes"]))]
    if orders[0] != orders[1] or orders[2] != orders[1]:
        lines.append("  The order depends on A: measure before choosing (rope-jax diagnose).")
    return lines


def _half(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _order(options: Sequence[Mapping[str, Any]], k: int) -> list[str]:
    return [option["name"] for option in sorted(options, key=lambda option: -option["scores"][k]["score"])]


def _title_of(option: Mapping[str, Any]) -> str:
    return option["option"] if option["option"] == "status quo" else f"option {option['option']}"


_ROWS = (
    ("coherence", "coherence in place", "{:.2f}"),
    ("peak_offset", "sharpest at", None),
    ("g50", "g50, adapted", None),
    ("g50_hot_swapped", "g50, hot-swapped", None),
    ("retained_mass", "mass kept, worst", "{:.2f}"),
)


def _curves(record: Mapping[str, Any]) -> list[str]:
    options = record["options"]
    if not options:
        return []
    amplitude = _number(record["settings"]["amplitude"])
    lines = [
        *_title(f"By offset Delta* of the relation, A = {amplitude} ({record['status']})"),
        *_wrapped(
            "coherence in place: C(Delta* -> Delta*); sharpest at: where the trained relation lands; g50: tokens that "
            "hold half of attention; '-' where nothing was trained at that offset"
        ),
    ]
    for option in options:
        lines.append(_row(f"{option['rank']}. {option['name'][:24]}", (tokens(p["offset"]) for p in option["curve"])))
        for key, label, form in _ROWS:
            values = (point[key] for point in option["curve"])
            shown = ("-" if v is None else form.format(v) if form else tokens(v) for v in values)
            lines.append(_row(f"   {label}", shown))
    return lines


def _row(label: str, cells: Iterable[str]) -> str:
    return f"  {label:<27}" + "".join(f"{cell:>7}" for cell in cells)
