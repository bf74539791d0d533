"""The first lines of an inspection: what is asked, natively served, changed, at risk, to be set and to be run next."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

_LABELS = 9  # characters
CHECKPOINT = "CHECKPOINT"


def summary_text(record: Mapping[str, Any], *, width: int) -> str:
    """Returns the summary as lines of at most `width` characters, ending in a newline."""
    model = record["model"]
    lines = textwrap.wrap(f"{model['origin']} ({model['model_type']}): {record['status']}, from its config alone", width)
    for item in record["summary"]:
        if item["heading"] == "NEXT":  # a command stays in one piece, to be copied
            lines += [f"{'NEXT':<{_LABELS}}{item['text']}"]
            continue
        lines += textwrap.wrap(
            item["text"],
            width,
            initial_indent=f"{item['heading']:<{_LABELS}}",
            subsequent_indent=" " * _LABELS,
            break_on_hyphens=False,
        )
    return "\n".join(lines) + "\n"


def summary_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the summary of an inspection as headings and texts: `summary` of `keys.KEYS`."""
    lines = [
        ("ASKED", _asked(record)),
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
    checkpoint = CHECKPOINT if path is None else path if os.path.isdir(path) else os.path.dirname(path) or "."
    given = [f"--trained_length={model['trained_length']}"] if model["trained_length_given"] else []
    composed = ["--compose"] if deployed["compose"] else []
    configuration = f"--deployed={deployed['scaling']}+{deployed['bias']}"
    return " ".join(
        ["rope-jax diagnose", checkpoint, f"--target_length={model['target_length']}", configuration, *given, *composed]
    )


def _main(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record["layer_groups"][record["main_group"]]


def _times(value: float) -> str:
    return f"{value:.3g}"


def _asked(record: Mapping[str, Any]) -> str:
    model = record["model"]
    return f"serve {model['target_length']:,} tokens, {_times(model['ratio'])} times the {model['trained_length']:,} trained"


def _native(record: Mapping[str, Any]) -> str:
    model, bias = record["model"], record["bias"]
    said = "as told" if model["trained_length_given"] else "as its config says"
    if model["declared_scaling"] == "none":
        text = f"{model['trained_length']:,} tokens, {said}; no scaling declared"
    else:
        factor = f" (factor {_times(model['declared_factor'])})" if model["declared_factor"] else ""
        text = (
            f"{model['trained_length']:,} tokens, {said}: trained on {model['original_length']:,}, extended by the "
            f"declared {model['declared_scaling']}{factor}"
        )
    windowed = [group for group in record["layer_groups"] if group["window"]]
    if windowed:
        count, layers = sum(len(g["layers"]) for g in windowed), sum(len(g["layers"]) for g in record["layer_groups"])
        text += f"; {count} of {layers} layers see {windowed[0]['window']:,} tokens back at most"
    return text + (f"; {bias['name']} declared" if bias["declared"] else "; no bias declared")


def _changes(record: Mapping[str, Any]) -> str:
    model, deployed, main = record["model"], record["deployed"], _main(record)
    bias = "" if deployed["bias"] == "none" or record["bias"]["declared"] else f"; bias {deployed['bias']} added"
    if deployed["scaling"] == "none":
        why = deployed["scaling_source"]
        return (f"no scaling ({why})" if model["extended"] or bias else f"nothing: {why}") + bias
    place = " in place of the declared one" if model["declared_scaling"] != "none" and not deployed["compose"] else ""
    place = " on top of the declared one" if deployed["compose"] and model["declared_scaling"] != "none" else place
    factor = "" if deployed["scaling"].startswith("explicit_base") else f", factor {_times(deployed['factor'])}"
    text = f"{deployed['scaling']}{factor}{place} ({deployed['scaling_source']}); "
    before, after = main["base_before"], main["base_after"]
    text += f"base {before:,.0f} -> {after:,.0f}; " if before != after else f"base {before:,.0f} kept; "
    text += _growth(main)
    if abs(main["logit_factor"] - 1) > 1e-9:
        text += f"; logits times {main['logit_factor']:.2f}"
    return text + bias


def _growth(main: Mapping[str, Any]) -> str:
    pairs, kept = len(main["pairs"]), main["pairs_unchanged"]
    if main["largest_growth"] is None:
        return "nothing rotates any more"
    least = min((p["growth"] for p in main["pairs"] if p["growth"] and abs(p["growth"] - 1) > 1e-9), default=1.0)
    largest = main["largest_growth"]
    if kept == pairs:
        return f"all {pairs} rotary pairs keep their wavelength"
    stretched = f"{_times(largest)}" if largest - least < 1e-6 else f"{_times(least)} to {_times(largest)}"
    return f"of {pairs} rotary pairs {kept} keep their wavelength, {pairs - kept} get one {stretched} times as long"


def _risks(record: Mapping[str, Any]) -> list[str]:
    model, main, bias = record["model"], _main(record), record["bias"]
    risks = []
    if main["rotary_dim"]:
        if main["pairs_out"]:
            risks.append(
                f"{main['pairs_out']} of {len(main['pairs'])} pairs reach angles never trained: "
                f"{100 * main['out_of_distribution_share']:.2g} % of all pairs x distances"
            )
        elif model["extended"]:
            risks.append("angles: none, no pair reaches one that training never showed")
        if abs(main["fisher_ratio"] - 1) < 5e-3:
            risks.append("neighbours: as easy to distinguish as in training, at every distance")
        else:
            risks.append(
                f"neighbours: distinguished with {_times(main['fisher_ratio'])} of the trained sharpness (Fisher ratio), "
                "the same at every distance"
            )
    if record["entropy_cost"] > 0:
        risks.append(
            f"dilution: attention is shared by {_times(main['reach'] / main['seen'])} times the tokens; to keep its "
            f"share a key needs {record['entropy_cost']:.2f} nats more"
        )
    if not model["extended"] and not risks[1:]:
        risks = ["nothing new: no query meets a distance that training did not show"]
    return risks + _bias_risk(record, bias)


def _bias_risk(record: Mapping[str, Any], bias: Mapping[str, Any]) -> list[str]:
    main = _main(record)
    if bias["horizons"] is not None:
        amplitude, heads = record["deployed"]["amplitude"], len(bias["horizons"])
        return [
            f"bias {bias['name']}: takes {bias['taken_at_trained']:.3g} nats at {main['seen'] - 1:,} tokens and "
            f"{bias['taken_at_target']:.3g} at {main['reach'] - 1:,} in its weakest head; {heads - _reaching(bias)} of "
            f"{heads} heads see less far than asked, if a match is worth {amplitude:g} nats"
        ]
    if bias["num_buckets"] is not None:
        return [
            f"bias {bias['name']}: all distances from {bias['last_bucket_start']:,} on share one bucket; its table is "
            "not in the config"
        ]
    return []


def _reaching(bias: Mapping[str, Any]) -> int:
    return bias["heads_that_reach_target"]


def _bases(record: Mapping[str, Any]) -> list[str]:
    found = record["thresholds"]
    if found is None:
        return []
    meanings = (
        ("period_match", "the longest wavelength grows as the context does"),
        ("no_pair_out_of_distribution", "no pair reaches an angle never trained"),
        ("content_never_negative", "equal content never scores below random content"),
    )
    return [
        f"{'none' if found[key]['base'] is None else format(found[key]['base'], ',.0f')} to set, so that {meaning}"
        for key, meaning in meanings
    ]


def options_text(record: Mapping[str, Any], *, width: int) -> str:
    """Returns the configurations to compare as a table, one scaling a row, ending in a newline."""
    options = record["options"]
    if not options:
        return ""
    bias = record["deployed"]["bias"]
    headings = [""] if bias == "none" else [f"with {bias}", "without bias"]
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for option in options:
        rows.setdefault(option["scaling"], []).append(option)
    lines = [
        "What else there is, as facts (angles: pairs that reach some never trained)",
        f"  {'scaling':<21}" + "".join(f"{heading:<17}" for heading in headings) + f"{'angles':>6}{'share':>8}"
        f"{'sharpness':>10}{'logits':>8}",
    ]
    for name, (first, *rest) in rows.items():
        changes = "".join(f"{option['change']:<17}" for option in (first, *rest))
        lines.append(
            f"  {name[:20]:<21}{changes}{first['pairs_out']:>6}{_share(first['out_of_distribution_share']):>8}"
            f"{first['fisher_ratio']:>10.3f}{_logits(first['logit_factor']):>8}"
        )
    return "\n".join(["", *lines, *_wrapped(record["unranked"], width)]) + "\n"


def _share(value: float) -> str:
    return "0 %" if value == 0 else "<0.01 %" if value < 1e-4 else f"{100 * value:.2f} %"


def _logits(factor: float) -> str:
    return "x1" if abs(factor - 1) < 1e-9 else f"x{factor:.2f}"


def _wrapped(text: str, width: int) -> Sequence[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
