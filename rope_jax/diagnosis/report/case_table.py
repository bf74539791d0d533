"""The case for a terminal: verdicts first, then what every cell did."""

from collections.abc import Mapping, Sequence
from typing import Any

PARTS = {"scheme": "the scheme itself", "distance": "longer distances", "filler": "more filler"}
"""What a predicted loss is divided between, in words."""


def table_text(record: Mapping[str, Any]) -> str:
    """Returns the text of a record from `case_record.json_record`."""
    lengths, items = record["lengths"], record["items"]
    models = len(record["models"])
    lines = [
        f"{models} model{'s' * (models > 1)}, trained at {lengths['trained']:,} tokens, asked at "
        f"{lengths['target']:,} (x{lengths['factor']:g}); {items['haystacks']} haystacks at each length, "
        f"{items['text_rows']} rows of text",
        f"probes: {', '.join(record['probes']['used']) or 'none'}",
        *(f"left out: {name}, {why}" for name, why in record["probes"]["refused"].items()),
        *(f"left out: scaling {name}, {why}" for name, why in record["omitted"].items()),
        "",
    ]
    for judgement in record["judgements"]:
        lines += [*_judgement(judgement), *asked_on(record, judgement), ""]
    lines += _cells(record)
    lines += adapted_lines(record)
    lines += _ratios(record)
    lines += _prediction(record)
    lines += ["", f"intervals: {record['interval_method']}"]
    return "\n".join(lines) + "\n"


def _judgement(judgement: Mapping[str, Any]) -> list[str]:
    verdict, symptom = judgement["verdict"], judgement["symptom"]
    lines = [f"STATUS QUO {cell_name(judgement['status_quo'])}: {verdict['kind'].upper()}", f"  {verdict['reason']}"]
    if symptom is not None:
        lines.append(
            f"  symptom: precision falls by {in_words(symptom['precision_drop'])} nats from short to long, "
            f"retrieval by {in_words(symptom['retrieval_drop'])}"
        )
    if verdict["cause"] is not None:
        lines.append(
            f"  cause: {verdict['cause']}, {in_words(verdict['cause_gain'])} nats of precision with it replaced"
        )
    if judgement["shapley"] is not None:
        parts = ", ".join(f"{name} {in_words(value)}" for name, value in judgement["shapley"].items())
        lines.append(f"  change of long precision due to each (Shapley, 2 x 2): {parts}")
    rows = [
        [
            "option",
            "change",
            "precision",
            "accuracy",
            "retrieval lost",
            "short lost",
            "short cost",
            "helps",
            "qualifies",
        ]
    ]
    for one in judgement["options"]:
        rows.append(
            [
                one["option"]["number"],
                one["option"]["change"],
                in_words(one["gain_simultaneous"]),
                in_words(one["precision_accuracy"]),
                in_words(one["retrieval_loss"]),
                in_words(one["short_loss"], digits=3),
                in_words(one["short_cost"], digits=3),
                one["helps"],
                one["qualifies"],
            ]
        )
    lines += [f"  {line}" for line in aligned(rows)]
    return lines + [f"  would change it: {what}" for what in verdict["would_change"]]


def asked_on(record: Mapping[str, Any], judgement: Mapping[str, Any]) -> list[str]:
    """Returns on how many haystacks a verdict rests, where it might have been more than those of the cells."""
    looks, first = record["settings"]["looks"], record["items"]["haystacks"]
    if looks == 1 or judgement["symptom"] is None:
        return []
    taken = (judgement["haystacks"] // first).bit_length()
    return [
        f"  decided on {judgement['haystacks']} haystacks, look {taken} of {looks} at most; its intervals are of "
        f"{judgement['confidence']:.2%}, which allows for every look"
    ]


def _cells(record: Mapping[str, Any]) -> list[str]:
    used = record["probes"]["used"]
    head = ["scaling", "bias", "T"]
    head += [f"{name} {reach}" for reach in ("short", "long") for name in used]
    rows = [[*head, "loss short", "loss long"]]
    for cell in record["cells"]:
        row = [cell["scaling"], cell["bias"], "on" if cell["temperature"] else ""]
        row += [f"{cell['accuracy'][reach][name]['mean']:.2f}" for reach in ("short", "long") for name in used]
        rows.append([*row, f"{cell['loss']['short']['mean']:.3f}", f"{cell['loss']['long']['mean']:.3f}"])
    return ["accuracy of every cell:", *aligned(rows)]


def adapted_lines(record: Mapping[str, Any]) -> list[str]:
    """Returns the judgements after adaptation; none where no arm was adapted."""
    lines = []
    for judgement in record["adapted"]:
        lines += [
            "",
            f"every arm after {record['settings']['adapt_steps']} steps of adaptation:",
            *_judgement(judgement),
        ]
        if judgement["symptom"] is not None:
            short, long = (judgement["symptom"]["accuracy"][reach] for reach in ("short", "long"))
            shown = (f"{name} {short[name]['mean']:.2f} -> {long[name]['mean']:.2f}" for name in long)
            lines.append(f"  right answers of the status quo, short -> long: {', '.join(shown)}")
    return lines


def _ratios(record: Mapping[str, Any]) -> list[str]:
    if not record["ratios"]:
        return []
    used = record["probes"]["used"]
    head = ["ratio", "tokens", "scaling + bias", *(f"{name} right" for name in used)]
    rows = [[*head, "retrieval lost", "precision lost", "retrieves", "imprecise"]]
    for rung in record["ratios"]:
        seen = rung["symptom"]
        row = [f"{rung['ratio']:g}", f"{rung['target']:,}", cell_name(rung)]
        row += [f"{seen['accuracy']['long'][name]['mean']:.2f}" for name in used]
        row += [in_words(seen[key]) for key in ("retrieval_drop", "precision_drop")]
        rows.append([*row, rung["retrieves"], rung["imprecise"]])
    return ["", "other ratios of target to trained length:", *aligned(rows), *farthest_lines(record)]


def _prediction(record: Mapping[str, Any]) -> list[str]:
    predicted = record["prediction"]
    if predicted is None:
        return []
    others = ", ".join(f"{name} {in_words(value)}" for name, value in predicted["by_probe"].items() if value)
    lines = ["", f"predicted from foreshortened haystacks of the trained length: {predicted['text']}"]
    lines += [f"rank correlation across cells by probe: {others}"] if others else []
    if predicted["blame"]:
        rows = [["precision lost, predicted, to", *PARTS.values()]]
        rows += [[cell_name(one), *(in_words(one[part]) for part in PARTS)] for one in predicted["blame"]]
        lines += aligned(rows)
    return lines


def farthest_lines(record: Mapping[str, Any]) -> list[str]:
    """Returns how far each retrofit keeps retrieval, and where the case's symptom shows, a line each."""
    lines = [
        f"{cell_name(one)}: "
        + (f"keeps retrieval up to ratio {one['ratio']:g}" if one["ratio"] else "keeps retrieval at none of them")
        for one in record["farthest"]
    ]
    shown = [rung for rung in record["ratios"] if rung["retrieves"] == rung["imprecise"] == "yes"]
    places = ", ".join(f"{cell_name(rung)} at {rung['ratio']:g}" for rung in shown) or "nowhere"
    return [*lines, f"retrieval kept and precision lost: {places}"]


def cell_name(cell: Mapping[str, Any]) -> str:
    """Returns a cell in words."""
    return f"{cell['scaling']} + {cell['bias']}" + (" + temperature" if cell["temperature"] else "")


def in_words(value: Mapping[str, float | None] | None, *, digits: int = 2, sign: bool = True) -> str:
    """Returns an estimate as plain text, its interval in brackets."""
    if value is None or value["mean"] is None:
        return "-"
    plus = "+" if sign else ""
    shown = f"{value['mean']:{plus}.{digits}f}"
    if value["low"] is None or value["high"] is None:
        return shown
    return f"{shown} [{value['low']:{plus}.{digits}f}, {value['high']:{plus}.{digits}f}]"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
