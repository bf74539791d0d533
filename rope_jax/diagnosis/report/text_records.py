"""A measurement as plain records: one JSON object, one CSV row a cell and bin, one table for a terminal."""

import csv
import dataclasses
import io
from collections.abc import Mapping
from typing import Any

from rope_jax.diagnosis.evaluation.arms import declared_rotary
from rope_jax.diagnosis.evaluation.factorial import Cell
from rope_jax.diagnosis.evaluation.folds import Fold
from rope_jax.diagnosis.evaluation.measurement import Measurement
from rope_jax.statistics.intervals import Estimate

KEYS = {
    "status": '"measured": these numbers come from running the model',
    "model": "checkpoint: origin, model_type, sha256 of the weight files, layout of rotary pairs, parameters",
    "text": "evaluated text: origin, rows, tokens of a row",
    "settings": "phase, margin (nats a token), fit_steps, seed",
    "target_length": "tokens of an evaluated row",
    "trained_length": "L: tokens the model was trained on",
    "factor": "s: target_length / trained_length",
    "position_values": "every value used that positions depend on: value and the config key it came from",
    "findings": "what looks wrong or risky, one line each",
    "scalings": "each scaling arm: hyperparameters, and cos_sin_factor and inverse_frequencies of changed layers, "
    "after the config's own rule",
    "omitted_scalings": "scaling arms that have no meaning on top of the config's own rule, and why",
    "biases": "each bias arm: what it is; fitted ones list their folds (rows, source, chunks, and what was fitted)",
    "intervals": "how the 95 % intervals (low, high) were made",
    "units": "of every loss, cost, gain and effect",
    "bins": "half-open [from, to) ranges of the predicting position, for cells[].loss",
    "curve_bins": "the same for cells[].curve",
    "cells": "each scaling x bias: loss by bin and by curve bin, short and long loss, short_cost, long_gain; "
    "each with mean, low, high",
    "effects": "short and long: main effects of each scaling and bias, interaction of each pair; positive is worse",
    "layout_check": "mean loss under both layouts of the rotary pairs, and which one the text supports, or why none",
    "compilations": "programs compiled for all cells together",
    "seconds": "wall time by stage",
    "versions": "of what ran",
}


def json_record(measured: Measurement) -> dict[str, Any]:
    """Returns the whole measurement, numbers unrounded, under the keys that `KEYS` documents."""
    checkpoint, settings = measured.checkpoint, measured.settings
    changed = checkpoint.positions.main_group
    record: dict[str, Any] = {
        "status": "measured",
        "model": {
            "origin": checkpoint.origin,
            "model_type": checkpoint.positions.model_type,
            "sha256": checkpoint.sha256,
            "layout": settings.layout or checkpoint.layout,
            "parameters": checkpoint.config.num_parameters,
        },
        "text": {
            "origin": measured.text.origin,
            "rows": len(measured.text.rows),
            "tokens_per_row": settings.target_length,
        },
        "settings": {name: getattr(settings, name) for name in ("phase", "margin", "fit_steps", "seed")},
        "target_length": settings.target_length,
        "trained_length": measured.trained_length,
        "factor": measured.factor,
        "position_values": {
            name: {"value": _plain(value.value), "source": value.source}
            for name, value in checkpoint.positions.values.items()
        },
        "findings": list(measured.findings),
        "scalings": {},
        "omitted_scalings": dict(measured.omitted),
        "biases": bias_records(measured),
        "intervals": measured.interval_method,
        "units": "nats a token",
        "bins": [list(pair) for pair in measured.bins],
        "curve_bins": [list(pair) for pair in measured.curve_bins],
        "cells": [_cell_record(measured, cell) for cell in measured.cells],
        "effects": {
            reach: {
                "scaling": {name: dataclasses.asdict(value) for name, value in effects.scaling.items()},
                "bias": {name: dataclasses.asdict(value) for name, value in effects.bias.items()},
                "interaction": [
                    {"scaling": s, "bias": b, **dataclasses.asdict(value)}
                    for (s, b), value in effects.interaction.items()
                ],
            }
            for reach, effects in measured.effects.items()
        },
        "layout_check": {
            "half": measured.layout.half,
            "interleaved": measured.layout.interleaved,
            "favours": measured.layout.favours,
            "undecided": measured.layout.undecided,
        },
        "compilations": measured.compilations,
        "seconds": dict(measured.seconds),
        "versions": dict(measured.versions),
    }
    for name, rule in measured.rules.items():
        given = {key: _plain(value) for key, value in rule.hyperparameters.items()}
        scaled: dict[str, Any] = {"hyperparameters": given}
        if changed.rotary is not None:
            after = rule(declared_rotary(changed, changed.rotary, length=settings.target_length))
            scaled["cos_sin_factor"] = after.cos_sin_factor
            scaled["inverse_frequencies"] = after.inverse_frequencies.tolist()
        record["scalings"][name] = scaled
    return record


def bias_records(measured: Measurement) -> dict[str, Any]:
    """Returns what each bias arm was, fitted values included."""
    settings = measured.settings
    biases: dict[str, Any] = {"none": {"kind": "no bias"}}
    if "alibi" in settings.biases:
        biases["alibi"] = {"kind": "ALiBi, the paper's slopes"}
    if "alibi_star" in settings.biases:
        biases["alibi_star"] = {
            "kind": "ALiBi, the paper's slopes times the largest multiplier within the margin",
            "margin": settings.margin,
            "folds": [_fold(fold) | _multiplier(fold) for fold in measured.folds],
        }
    if "t5" in settings.biases:
        biases["t5"] = {
            "kind": "T5 buckets",
            "max_distance": settings.max_distance,
            "num_buckets": settings.num_buckets if settings.t5_table is None else settings.t5_table.shape[1],
        }
        if settings.t5_table is not None:
            biases["t5"] |= {"given_table": settings.t5_table.tolist()}
        else:
            biases["t5"] |= {"folds": [_fold(fold) | _table(fold) for fold in measured.folds]}
    return biases


def csv_text(measured: Measurement) -> str:
    """Returns one line for each cell and measure: scaling, bias, measure, from, to, mean, low, high."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["scaling", "bias", "measure", "from", "to", "mean", "low", "high"])
    length, trained = measured.settings.target_length - 1, measured.trained_length
    for (scaling, bias), cell in measured.cells.items():
        parts = [("loss", low, high, value) for (low, high), value in zip(measured.bins, cell.by_bin, strict=True)]
        parts += [
            ("short_loss", 0, trained, cell.short),
            ("long_loss", trained, length, cell.long),
            ("short_cost", 0, trained, cell.short_cost),
            ("long_gain", trained, length, cell.long_gain),
        ]
        for measure, low, high, value in parts:
            writer.writerow([scaling, bias, measure, low, high, value.mean, value.low, value.high])
    return out.getvalue()


def table_text(measured: Measurement) -> str:
    """Returns the tables a person reads in a terminal, numbers rounded."""
    bins = [f"{low}-{high}" for low, high in measured.bins]
    lines = [
        f"{measured.checkpoint.origin}: trained at {measured.trained_length} tokens, "
        f"evaluated at {measured.settings.target_length} (x{measured.factor:g})",
        f"{len(measured.text.rows)} rows of {measured.text.origin}",
        f"95 % intervals: {measured.interval_method}",
        "",
        "Mean loss by position (nats a token); short cost and long gain against the unchanged model, paired by row",
        "",
        "".join(
            [f"{'scaling':<10}{'bias':<12}", *(f"{name:>11}" for name in bins), f"{'short cost':>26}{'long gain':>26}"]
        ),
    ]
    for (scaling, bias), cell in measured.cells.items():
        losses = "".join(f"{value.mean:>11.3f}" for value in cell.by_bin)
        lines.append(f"{scaling:<10}{bias:<12}{losses}{_brief(cell.short_cost):>26}{_brief(cell.long_gain):>26}")
    for reach, effects in measured.effects.items():
        where = "up to the trained length" if reach == "short" else "beyond the trained length"
        lines += ["", f"Effects on the loss {where} (positive is worse)"]
        named = {f"scaling {name}": value for name, value in effects.scaling.items()}
        named |= {f"bias {name}": value for name, value in effects.bias.items()}
        named |= {f"{scaling} x {bias}": value for (scaling, bias), value in effects.interaction.items()}
        lines += [f"  {name:<24}{_brief(value):>26}" for name, value in named.items()]
    lines += ["", *_fitted_lines(measured)]
    lines += [f"omitted: {name}: {why}" for name, why in measured.omitted.items()]
    lines += [f"finding: {finding}" for finding in measured.findings]
    return "\n".join(lines).rstrip() + "\n"


def _fitted_lines(measured: Measurement) -> list[str]:
    lines = []
    for fold in measured.folds:
        rows = f"rows {fold.rows[0]}-{fold.rows[-1]}"
        if fold.multiplier is not None:
            lines.append(
                f"A* for {rows}: paper slopes x {fold.multiplier.value:.4g} "
                f"(short cost {fold.multiplier.cost:.4f} on {fold.source})"
            )
        if fold.table is not None:
            lines.append(
                f"T5 for {rows}: fitted on {fold.chunks} chunks, {fold.source}; "
                f"loss there {fold.table.before:.4f} -> {fold.table.after:.4f}"
            )
    return lines


def _cell_record(measured: Measurement, cell: Cell) -> dict[str, Any]:
    result = measured.cells[cell]
    return {
        "scaling": cell[0],
        "bias": cell[1],
        "loss": [dataclasses.asdict(value) for value in result.by_bin],
        "curve": [dataclasses.asdict(value) for value in measured.curves[cell]],
        "short": dataclasses.asdict(result.short),
        "long": dataclasses.asdict(result.long),
        "short_cost": dataclasses.asdict(result.short_cost),
        "long_gain": dataclasses.asdict(result.long_gain),
    }


def _fold(fold: Fold) -> dict[str, Any]:
    return {"rows": list(fold.rows), "source": fold.source, "chunks": fold.chunks}


def _multiplier(fold: Fold) -> dict[str, Any]:
    assert fold.multiplier is not None
    return {
        "multiplier": fold.multiplier.value,
        "cost": fold.multiplier.cost,
        "tried": [list(pair) for pair in fold.multiplier.evaluations],
    }


def _table(fold: Fold) -> dict[str, Any]:
    assert fold.table is not None
    return {
        "table": fold.table.table.tolist(),
        "buckets_reached": fold.table.reached,
        "loss_before": fold.table.before,
        "loss_after": fold.table.after,
    }


def _brief(value: Estimate) -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:+.3f}"
    return f"{value.mean:+.3f} [{value.low:+.3f},{value.high:+.3f}]"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
