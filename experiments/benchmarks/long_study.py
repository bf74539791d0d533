"""The case at 4k -> 32k on a decoder of 63 million parameters, from the answers that were kept of a run on a GPU.

Weights of that size do not ship; what the model answered to every question does, so that whoever doubts a number of the
study can work it out again, on any machine:

    python experiments/benchmarks/long_study.py

Event order was asked one way only, which came first, so that a pull toward near events and lost order are one number.
YaRN was run with its temperature: two changes, and so outside the three.
"""

import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rope_jax.diagnosis.evaluation.panel import Evidence, Option, Panel, Reach
from rope_jax.diagnosis.verdict.answers import Place, Ranking, Verdict
from rope_jax.diagnosis.verdict.decide import decide
from rope_jax.statistics import intervals
from rope_jax.statistics.intervals import Estimate
from rope_jax.statistics.multiplicity import simultaneous_confidence

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"
KEPT, QUESTIONS = RESULTS / "study-4k-32k.json", RESULTS / "study-4k-32k-questions.json"
TASKS = {"r": "retrieval", "b": "binding", "o": "order"}
ORIGINAL = "none + none"
_GAPS = (256, 512, 1024, 2049)  # strata of order, tokens between its two events
_REACHES: tuple[Reach, Reach] = ("short", "long")

Asked = Mapping[str, Any]
"""What was asked at one length: `asked` a letter of `TASKS` a question, `choices` and `gap` of each."""


def read() -> tuple[dict[str, Any], dict[Reach, Asked]]:
    """Returns the kept answers, and what each question asked."""
    record, asked = json.loads(KEPT.read_text()), json.loads(QUESTIONS.read_text())
    return record, {reach: asked[reach] for reach in _REACHES}


def name_of(scaling: str, bias: str, temperature: bool) -> str:
    """Returns the name of a configuration.

    >>> name_of("yarn", "alibi", True), name_of("ntk", "alibi", True)
    ('yarn + alibi', 'ntk + alibi + temperature')
    """
    return f"{scaling} + {bias}{' + temperature' if temperature and scaling != 'yarn' else ''}"


def panel_of(kept: Mapping[str, Any], questions: Mapping[Reach, Asked]) -> Panel:
    """Returns what one configuration did, a number a context."""

    def by_task(reach: Reach, values: np.ndarray) -> dict[str, np.ndarray]:
        letters = np.array([list(row) for row in questions[reach]["asked"]])
        return {
            task: np.array([[row[of == letter].mean() for row, of in zip(values, letters, strict=True)]])
            for letter, task in TASKS.items()
        }

    return Panel(
        {reach: by_task(reach, np.asarray(kept[reach]["log_odds"], np.float64)) for reach in _REACHES},
        {reach: by_task(reach, (np.asarray(kept[reach]["picked"]) == 0).astype(np.float64)) for reach in _REACHES},
        {reach: np.asarray([kept["loss"][reach]]) for reach in _REACHES},
    )


def evidence_of(scaling: str, bias: str, panels: Mapping[str, Panel]) -> Evidence:
    """Returns what a verdict on a deployed scaling with a bias reads; changes that were not run are left out."""
    deployed = f"{scaling} + {bias}"
    options = [
        Option("1", "drop the bias", f"{scaling} + none"),
        Option("2", "undo the scaling", f"none + {bias}"),
        *(Option("3", f"scale by {rule} instead", f"{rule} + {bias}") for rule in ("llama3", "by_parts")),
        Option("", "scale by yarn, its temperature with it", f"yarn + {bias}"),
        Option("", "sharpen the logits", f"{deployed} + temperature"),
        Option("", "undo both", ORIGINAL),
    ]
    known = tuple(option for option in options if option.configuration in panels)
    return Evidence(
        deployed=deployed,
        as_deployed=panels[deployed],
        exact=None,
        original=panels[ORIGINAL],
        options=known,
        changed={option.configuration: panels[option.configuration] for option in known},
        corners={
            frozenset(): panels[ORIGINAL],
            frozenset({"scaling"}): panels[f"{scaling} + none"],
            frozenset({"bias"}): panels[f"none + {bias}"],
            frozenset({"scaling", "bias"}): panels[deployed],
        },
        used=tuple(TASKS.values()),
        faults={},
        nearest={},
    )


def verdicts(record: Mapping[str, Any], panels: Mapping[str, Panel]) -> tuple[Verdict, ...]:
    """Returns the verdicts on what is deployed, whose intervals hold together."""
    evidences = [evidence_of(scaling, bias, panels) for scaling, bias, _ in record["status_quos"]]
    confidence = simultaneous_confidence(len(evidences))
    return tuple(decide(one, confidence=confidence) for one in evidences)


def panels_of(record: Mapping[str, Any], questions: Mapping[Reach, Asked]) -> dict[str, Panel]:
    """Returns every configuration's panel by name."""
    return {
        name_of(one["scaling"], one["bias"], one["temperature"]): panel_of(one, questions) for one in record["cells"]
    }


def training_of(record: Mapping[str, Any]) -> list[str]:
    """Returns how the training went: where all that was asked in 128 tokens was known, and what was known at last."""
    curve, names = record["training"]["curve"], {"ret": "retrieval", "bind": "binding", "ord": "order", "copy": "copy"}
    learned = next(row for row in curve if min(row.get(name, [0, 0])[1] for name in ("bind", "ord")) > 0.9)
    return [
        f"step {row['step']:,}, {row['seconds']} s: right in "
        + ", ".join(f"{words} {row[name][1]:.3f}" for name, words in names.items() if name in row)
        for row in (learned, curve[-1])
    ]


def table_of(panels: Mapping[str, Panel]) -> list[str]:
    """Returns the accuracy and the loss of every configuration, at 4k and at 32k."""
    lines = [f"| configuration | {' | '.join(TASKS.values())} | loss of text |", "|---" * (2 + len(TASKS)) + "|"]
    for name, panel in panels.items():
        right = {reach: panel.accuracy[reach] for reach in _REACHES}
        shown = [f"{right['short'][task].mean():.2f} → {right['long'][task].mean():.2f}" for task in TASKS.values()]
        shown.append(f"{panel.loss['short'].mean():.2f} → {panel.loss['long'].mean():.2f}")
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def order_by_gap(record: Mapping[str, Any], questions: Mapping[Reach, Asked], names: Sequence[str]) -> list[str]:
    """Returns how often the order of two events is known, by the tokens between them."""
    spans = [f"{low}-{high - 1}" for low, high in itertools.pairwise(_GAPS)]
    lines = [f"| order, right | {' | '.join(spans)} |", "|---" * (1 + len(spans)) + "|"]
    kept = {name_of(one["scaling"], one["bias"], one["temperature"]): one for one in record["cells"]}
    shown: list[tuple[str, Reach]] = [(ORIGINAL, "short"), *((name, "long") for name in names)]
    for name, reach in shown:
        right, gap = np.asarray(kept[name][reach]["picked"]) == 0, np.asarray(questions[reach]["gap"])
        of_span = [right[(gap >= low) & (gap < high)] for low, high in itertools.pairwise(_GAPS)]
        lines.append(f"| {name}, {reach} | " + " | ".join(f"{one.mean():.2f} ({one.size})" for one in of_span) + " |")
    return lines


def judged(verdict: Verdict) -> Iterator[str]:
    """Yields a verdict's six answers in words, a line each."""
    yield f"- {verdict.deployed}: try first: **{verdict.first}**, P {_probability(verdict.probability_first)}"
    yield f"  - is it the regression: {verdict.regression.sentence}"
    for ranking in verdict.rankings.values():
        yield f"  - by {ranking.by}: " + "; ".join(_places(ranking))
    yield f"  - cause: {verdict.cause.sentence}"
    yield f"  - enough to ship: {verdict.shipping.sentence}"
    yield f"  - next: {verdict.next[0]}"


def _places(ranking: Ranking) -> Iterator[str]:
    for place in ranking.places:
        behind = f", behind: {place.demoted}" if place.demoted else ""
        yield f"{place.option}: {place.change} {_gain(place)}, P(first) {_probability(place.probability_first)}{behind}"
    for place in ranking.outside[:1]:
        yield f"outside: {place.change} {_gain(place)}, P(better) {_probability(place.probability_first)}"


def _gain(place: Place) -> str:
    return _interval(place.gain)


def _interval(value: Estimate) -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:+.2f}"
    return f"{value.mean:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"


def _probability(value: float) -> str:
    bound: Literal["", "> .99", "< .01"] = "> .99" if value > 0.99 else "< .01" if value < 0.01 else ""
    return bound or f"{value:.2f}"


def main() -> None:
    """Prints the study."""
    if sys.argv[1:]:
        sys.exit(f"long_study.py takes no arguments, got {sys.argv[1:]}")
    record, questions = read()
    panels = panels_of(record, questions)
    print(f"{record['model']}\n{record['note']}\n")
    print("\n".join(training_of(record)) + "\n")
    print(f"intervals: {intervals.method(record['items']['rows'])}\n")
    print("\n".join(table_of(panels)) + "\n")
    deployed = [f"{scaling} + {bias}" for scaling, bias, _ in record["status_quos"]]
    alone = dict.fromkeys(f"{scaling} + none" for scaling, _, _ in record["status_quos"])
    print("\n".join(order_by_gap(record, questions, [*alone, *deployed])) + "\n")
    for verdict in verdicts(record, panels):
        print("\n".join(judged(verdict)))


if __name__ == "__main__":
    main()
