"""The first lines of an inspection: what is asked, natively served, changed, at risk, to be set and to be run next."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rope_jax.checkpoints.gguf_file import is_gguf

_LABELS = 9  # characters
CHECKPOINT = "CHECKPOINT"


def summary_text(record: Mapping[str, Any], *, width: int) -> str:
    """Returns the summary as lines of at most `width` characters, ending in a newline."""
    model = record["model"]
    lines = textwrap.wrap(
        f"{model['origin']} ({model['model_type']}): {record['status']}, from its config alone", width
    )
    for item in record["summary"]:
        heading, hanging = f"{item['heading']:<{_LABELS}}", " " * _LABELS
        if item["heading"] == "NEXT":
            lines += _command(item["text"], width, heading)
        else:
            lines += textwrap.wrap(
                item["text"], width, initial_indent=heading, subsequent_indent=hanging, break_on_hyphens=False
            )
    return "\n".join(lines) + "\n"


def _command(text: str, width: int, heading: str) -> list[str]:
    """Returns a command whose lines can be copied to a shell as they stand."""
    lines = textwrap.wrap(text, width - len(heading) - 2, break_on_hyphens=False, break_long_words=False)
    lines = [text] if len(heading + text) <= width else lines
    return [
        (heading if n == 0 else " " * (len(heading) + 2)) + line + (" \\" if n + 1 < len(lines) else "")
        for n, line in enumerate(lines)
    ]


def summary_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the summary of an inspection as headings and texts: `summary` of `keys.KEYS`."""
    model = record["model"]
    trained = f"{_times(model['ratio'])} times the {model['trained_length']:,} trained"
    lines = [
        ("ASKED", f"serve {model['target_length']:,} tokens, {trained}"),
        ("NATIVE", _native(record)),
        ("CHANGES", _changes(record)),
        *(("AT RISK" if n == 0 else "", text) for n, text in enumerate(_risks(record))),
        *(("BASE" if n == 0 else "", text) for n, text in enumerate(_bases(record))),
        ("NEXT", record["next"]),
    ]
    return [{"heading": heading, "text": text} for heading, text in lines]


def next_command(record: Mapping[str, Any]) -> str:
    """Returns the command that measures what was predicted."""
    model, deployed = record["model"], record["deployed"]
    if not model["extended"]:
        return "nothing to measure: serve it as it is"
    path = model["path"]
    whole = path is not None and (os.path.isdir(path) or is_gguf(path))
    checkpoint = CHECKPOINT if path is None else path if whole else os.path.dirname(path) or "."
    given = f" --trained_length={model['trained_length']}" if model["trained_length_given"] else ""
    return (
        f"rope-jax diagnose {checkpoint} --text=FILE --target_length={model['target_length']} "
        f"--deployed={deployed['scaling']}+{deployed['bias']}{given}{' --compose' if deployed['compose'] else ''}"
    )


def _main(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record["layer_groups"][record["main_group"]]


def _times(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _native(record: Mapping[str, Any]) -> str:
    model, bias = record["model"], record["bias"]
    text = f"{model['trained_length']:,} tokens ({'given' if model['trained_length_given'] else 'config'})"
    if model["trained_base_given"]:
        text += f", base {model['trained_base_given']:,.0f} (given)"
    no_bias = not bias["declared"]
    if model["declared_scaling"] == "none":
        text += "; no scaling" + (" and no bias declared" if no_bias else " declared")
    else:
        factor = f", factor {_times(model['declared_factor'])}" if model["declared_factor"] else ""
        text += f": {model['original_length']:,} extended by the declared {model['declared_scaling']}{factor}"
        text += "; no bias declared" if no_bias else ""
    text += "" if no_bias else f"; declared bias {bias['name']}"
    windowed = [group for group in record["layer_groups"] if group["window"]]
    if windowed:
        count, layers = (sum(len(g["layers"]) for g in groups) for groups in (windowed, record["layer_groups"]))
        text += f"; {count} of {layers} layers see at most {windowed[0]['window']:,} tokens back"
    return text


def _changes(record: Mapping[str, Any]) -> str:
    model, deployed, main = record["model"], record["deployed"], _main(record)
    declared, bias = model["declared_scaling"] != "none", record["bias"]
    added = "" if bias["declared"] or bias["name"] == "none" else f"; bias {bias['name']} added"
    if deployed["scaling"] == "none":
        return f"no new scaling: {deployed['scaling_source']}{added}"
    place = "" if not declared else " on top of the declared" if deployed["compose"] else " in place of the declared"
    given = main["hyperparameters"].get("factor")
    factor = "" if given is None else f", factor {_times(given)}"
    before, after = main["base_before"], main["base_after"]
    base = f"base {before:,.0f} -> {after:,.0f}" if before != after else f"base {before:,.0f} kept"
    logits = f"; logits times {main['logit_factor']:.2f}" if abs(main["logit_factor"] - 1) > 1e-9 else ""
    source = deployed["scaling_source"]
    return f"{deployed['scaling']}{factor}{place} ({source}): {base}; {_growth(main)}{logits}{added}"


def _growth(main: Mapping[str, Any]) -> str:
    """Returns which pairs rotate how much slower or faster, in words."""
    pairs = main["pairs"]
    if all(pair["scaled_wavelength"] is None for pair in pairs):
        return "no pair rotates any more"
    said = []
    for word, factors in (
        ("slower", {pair["pair"]: pair["growth"] for pair in pairs if (pair["growth"] or 1) > 1 + 1e-9}),
        ("faster", {pair["pair"]: 1 / pair["growth"] for pair in pairs if 0 < (pair["growth"] or 1) < 1 - 1e-9}),
    ):
        if factors:
            span = dict.fromkeys(_times(edge(factors.values())) for edge in (min, max))
            said.append(f"pairs {runs(list(factors))} of {len(pairs)} rotate {' to '.join(span)} times {word}")
    return ", ".join(said) or f"all {len(pairs)} pairs rotate as trained"


def runs(numbers: Sequence[int]) -> str:
    """Returns rising whole numbers as runs: `0-3, 5`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in found)


def _risks(record: Mapping[str, Any]) -> list[str]:
    main, risks = _main(record), []
    new = record["model"]["extended"] or record["deployed"]["scaling"] != "none"
    if main["rotary_dim"] and new:
        out, share = main["pairs_out"], 100 * main["out_of_distribution_share"]
        risks.append(
            f"angles never trained: in {out} of {len(main['pairs'])} pairs, {share:.2g} % of pairs x offsets"
            if out
            else "angles never trained: in no pair"
        )
        sharpness = main["fisher_ratio"]
        times = "" if abs(sharpness - 1) < 5e-3 else f"{sharpness:.2g} x "
        risks.append(
            f"neighbours: distinguished at any distance, {times}as sharply as trained"
            if sharpness
            else "neighbours: no rotation is left to distinguish them"
        )
    if record["entropy_cost"] > 0:
        risks.append(
            f"dilution: {_times(main['reach'] / main['seen'])} times the keys; one needs {record['entropy_cost']:.2f} "
            "nats more to keep its share"
        )
    bias = record["bias"]
    if bias["horizons"] is not None:
        risks.append(
            f"bias {bias['name']}: {bias['taken_at_trained']:.3g} nats off at {main['seen'] - 1:,} tokens, "
            f"{bias['taken_at_target']:.3g} at {main['reach'] - 1:,} in its weakest head; horizon beyond "
            f"{main['reach']:,} tokens in {bias['heads_that_reach_target']} of {len(bias['horizons'])} heads "
            f"(A = {record['deployed']['amplitude']:g} nats)"
        )
    elif bias["num_buckets"] is not None:
        risks.append(
            f"bias {bias['name']}: all offsets from {bias['last_bucket_start']:,} on share a bucket; table unknown"
        )
    return risks or ["nothing: no query meets a distance that training did not show"]


def _bases(record: Mapping[str, Any]) -> list[str]:
    found, main, model = record["thresholds"], _main(record), record["model"]
    if found is None:
        return [f"{main['base_before']:,.0f} as trained, {main['rotary_dim']} dimensions"] if main["rotary_dim"] else []
    growth = _times(model["target_length"] / model["original_length"])
    meanings = (
        ("period_match", f"the longest wavelength grows {growth} times"),
        ("no_pair_out_of_distribution", "no pair reaches an angle never trained"),
        ("content_never_negative", "equal content never scores below random content"),
    )
    bases = [(found[key]["base"], meaning) for key, meaning in meanings]
    return [
        f"no base is such that {said}" if base is None else f"set {base:,.0f} so that {said}" for base, said in bases
    ]


def options_text(record: Mapping[str, Any], *, width: int) -> str:
    """Returns the configurations to compare as a table, one scaling a row; "" where there is nothing to compare."""
    if len(record["options"]) < 2:
        return ""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for option in record["options"]:
        rows.setdefault(_label(option["scaling"]), []).append(option)
    bias, column = record["deployed"]["bias"], max(18, *(len(label) + 1 for label in rows))
    without = "" if bias == "none" else f"{'without bias':<15}"
    heading = "change" if bias == "none" else f"with {bias}"
    title = (
        "Options as facts (angles: pairs that reach some never trained, share of pairs x offsets; sharp: how sharply "
        "neighbours are distinguished, 1 is as trained; logits: times what the rule multiplies them by)"
    )
    lines = textwrap.wrap(title, width)
    lines.append(
        f"  {'scaling':<{column}}{heading[:16]:<17}{without}{'angles':>6}{'share':>8}{'sharp':>7}{'logits':>7}"
    )
    for label, (first, *rest) in rows.items():
        changes = f"{first['change']:<17}" + "".join(f"{option['change']:<15}" for option in rest)
        lines.append(
            f"  {label:<{column}}{changes}{first['pairs_out']:>6}{_share(first['out_of_distribution_share']):>8}"
            f"{_sharp(first['fisher_ratio']):>7}{_logits(first['logit_factor']):>7}"
        )
    lines += textwrap.wrap(record["unranked"], width, break_on_hyphens=False)
    return "\n".join(["", *lines]) + "\n"


def _label(scaling: str) -> str:
    kind, _, base = scaling.partition(":")
    return "none (as trained)" if scaling == "none" else f"base {float(base):,.0f}" if base else kind


def _share(value: float) -> str:
    return "0 %" if value == 0 else "<0.01 %" if value < 1e-4 else f"{100 * value:.2f} %"


def _sharp(ratio: float) -> str:
    return "0" if ratio == 0 else "<0.01" if ratio < 0.01 else f"{ratio:.2f}"


def _logits(factor: float) -> str:
    return "x1" if abs(factor - 1) < 1e-9 else f"x{factor:.2f}"
