"""The case at 4k -> 32k on a decoder of 63 million parameters, from the answers that were kept of a run on a GPU.

Weights of that size do not ship; what the model answered to every question does, so that whoever doubts a number of the
study can work it out again, on any machine:

    python experiments/benchmarks/long_study.py
"""

import itertools
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.cell_runs import Scores, outcomes_of
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell, corners, options
from rope_jax.diagnosis.report.case_table import in_words
from rope_jax.diagnosis.tasks.contexts import PROBES, Counts
from rope_jax.diagnosis.tasks.subject import REACHES, Items, Reach, synthetic_items
from rope_jax.diagnosis.verdict import attribution, looks
from rope_jax.diagnosis.verdict.attribution import Used
from rope_jax.diagnosis.verdict.looks import Answered
from rope_jax.diagnosis.verdict.signature import signature
from rope_jax.diagnosis.verdict.verdict import Margins
from rope_jax.statistics import intervals
from rope_jax.statistics.intervals import Estimate

KEPT = pathlib.Path(__file__).resolve().parents[1] / "results" / "study-4k-32k.json"
TRANSFORMS = ("llama3", "yarn", "by_parts")
_GAPS = (256, 512, 1024, 2049)  # strata of `ord`, tokens between its two events


def items_of(record: Mapping[str, Any]) -> Items:
    """Returns the questions of the study, made anew from their seed."""
    return synthetic_items(Counts(**record["counts"]), **record["items"])


def scores_of(cell: Mapping[str, Any], items: Items) -> Scores:
    """Returns the scores of a cell from the answers that were kept."""
    answers = {}
    for reach in items.asked:
        odds, picked = (np.asarray(cell[reach][name]) for name in ("log_odds", "picked"))
        answers[reach] = probes.Answers(odds.astype(np.float64), picked == 0, picked.astype(np.int32))
    loss = {reach: np.asarray(cell["loss"][reach]) for reach in REACHES}
    return Scores(*outcomes_of(answers, items.asked), loss, np.zeros((len(loss["short"]), 0)))


def training_of(record: Mapping[str, Any]) -> list[str]:
    """Returns how the training went: where all that was asked in 128 tokens was known, and what was known at last."""
    curve = record["training"]["curve"]
    learned = next(row for row in curve if min(row.get(name, [0, 0])[1] for name in ("bind", "ord")) > 0.9)
    return [
        f"step {row['step']:,}, {row['seconds']} s: right in "
        + ", ".join(f"{name} {row[name][1]:.3f}" for name in (*PROBES, "copy") if name in row)
        for row in (learned, curve[-1])
    ]


def table_of(cells: Mapping[Cell, Scores], used: Used) -> list[str]:
    """Returns the accuracy and the loss of every cell."""
    lines = ["| scaling | bias | " + " | ".join(used.names) + " | loss of text |", "|---" * (3 + len(used.names)) + "|"]
    for cell, scores in cells.items():
        right = scores.accuracy
        shown = [f"{right['short'][name].mean():.2f} → {right['long'][name].mean():.2f}" for name in used.names]
        shown.append(f"{scores.loss['short'].mean():.2f} → {scores.loss['long'].mean():.2f}")
        scaling = cell.scaling + (" + temperature" if cell.temperature else "")
        lines.append(f"| {scaling} | {cell.bias} | " + " | ".join(shown) + " |")
    return lines


def order_by_gap(cells: Mapping[Cell, Scores], items: Items, asked: Sequence[Cell]) -> list[str]:
    """Returns how often the order of two events is told, by the tokens between them."""
    spans = [f"{low}-{high - 1}" for low, high in itertools.pairwise(_GAPS)]
    lines = ["| ord, right | " + " | ".join(spans) + " |", "|---" * (1 + len(spans)) + "|"]
    shown: list[tuple[Cell, Reach]] = [(UNCHANGED, "short"), *((cell, "long") for cell in asked)]
    for cell, reach in shown:
        right = cells[cell].answers[reach].right.astype(np.float64)
        strata = probes.strata(right, items.asked[reach], "ord", "gap", _GAPS)
        lines.append(f"| {cell}, {reach} | " + " | ".join(f"{mean:.2f} ({count})" for mean, count in strata) + " |")
    return lines


def judged(status_quo: Cell, cells: Mapping[Cell, Scores], items: Items, used: Used) -> list[str]:
    """Returns the verdict on one retrofit in words."""
    known = [option for option in options(status_quo, transforms=TRANSFORMS) if option.cell in cells]
    answered = Answered([cells[status_quo]], [cells[UNCHANGED]], {one: [cells[one.cell]] for one in known})
    verdict, symptom = looks.one_look(answered, used, margins=Margins())
    if symptom is None or items.long is None:
        return [f"- {status_quo}: {verdict.reason}"]
    lines = [
        f"- {status_quo}: **{verdict.kind}**; {verdict.reason}. Precision falls by {_words(symptom.precision_drop)} "
        "nats from short to long; by probe: "
        + ", ".join(f"{name} {_words(value)}" for name, value in symptom.by_probe.items())
    ]
    square = {parts: [cells[cell]] for parts, cell in corners(status_quo).items() if cell in cells}
    if len(square) == 4:
        shares = attribution.shapley(square, used)
        lines.append(
            "  - long precision, by the 2 x 2: " + ", ".join(f"{name} {_words(v)}" for name, v in shares.items())
        )
    for one in verdict.judged:
        lost = f"; may lose {', '.join(one.lost)}" if one.lost else ""
        by_probe = ", ".join(f"{name} {value.mean:+.2f}" for name, value in one.effect.by_probe.items())
        lines.append(f"  - {one.option.change}: {_words(one.gain)} ({by_probe}){lost}")
    seen = signature([cells[status_quo]], items.long, used, bias=status_quo.bias, num_buckets=32, max_distance=128)
    lines.append(
        f"  - signature: {seen.name}; " + ", ".join(f"{name} {_words(v)}" for name, v in seen.evidence.items())
    )
    missing = [one.change for one in options(status_quo, transforms=TRANSFORMS) if one.cell not in cells]
    return [*lines, f"  - not run: {', '.join(missing)}"] if missing else lines


def _words(value: Estimate) -> str:
    return in_words({"mean": value.mean, "low": value.low, "high": value.high}, sign=False)


def main() -> None:
    """Prints the study."""
    if sys.argv[1:]:
        sys.exit(f"long_study.py takes no arguments, got {sys.argv[1:]}")
    record = json.loads(KEPT.read_text())
    items = items_of(record)
    cells = {Cell(one["scaling"], one["bias"], one["temperature"]): scores_of(one, items) for one in record["cells"]}
    used = attribution.gated([cells[UNCHANGED]], gate=Margins().gate)
    print(f"{record['model']}\n{record['note']}\n")
    print("\n".join(training_of(record)) + "\n")
    print(f"intervals: {intervals.method(record['items']['rows'])}\n")
    print("\n".join(table_of(cells, used)) + "\n")
    status_quos = [Cell(*one) for one in record["status_quos"]]
    alone = dict.fromkeys(one._replace(bias="none") for one in status_quos)
    print("\n".join(order_by_gap(cells, items, [*alone, *status_quos])) + "\n")
    for status_quo in status_quos:
        print("\n".join(judged(status_quo, cells, items, used)))


if __name__ == "__main__":
    main()
