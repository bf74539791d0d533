"""What the ablation of PROTOCOL.md shows, from its kept results alone: tables as markdown, and a figure.

python experiments/ablation/summary.py --results=experiments/results/ablation.jsonl --figure=ablation.svg
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ablation import CONFIGURATIONS, Record, read
from absl import app, flags, logging
from jaxtyping import Float64

from rope_jax.statistics import intervals, multiplicity
from rope_jax.statistics.intervals import Estimate


def define_flags() -> None:
    """Declares the flags; a function, as other scripts are imported into one process by the tests."""
    flags.DEFINE_string("results", "ablation.jsonl", "File that ablation.py has written.")
    flags.DEFINE_string("figure", None, "File of the figure, .svg or .png; none where not given.")
    flags.DEFINE_float("primary_ratio", 2.0, "The ratio of the primary outcomes; 2 by the protocol.")


OUTCOMES = ("order", "binding")
MARGIN, LEARNED, LEVEL = 0.3, 0.9, 0.05
ORIGINAL = "none+none"

Of = Callable[[str], Float64[np.ndarray, " models"]]
"""From a configuration to an outcome of every model that counts."""


@dataclasses.dataclass(frozen=True)
class Results:
    """Results by model, ratio and configuration.

    Attributes:
      models: names by hash, those with any result.
      found: one result each.
    """

    models: Mapping[str, str]
    found: Mapping[tuple[str, float, str], Record]

    @property
    def ratios(self) -> list[float]:
        return sorted({ratio for _, ratio, _ in self.found})

    def counting(self, outcome: str, ratio: float, configurations: Sequence[str]) -> list[str]:
        """Returns the models that have learned a task and ran all of some configurations at a ratio."""
        return [
            model
            for model in self.models
            if all((model, ratio, name) in self.found for name in (*configurations, ORIGINAL))
            and self.found[model, ratio, ORIGINAL]["accuracy"]["short"].get(outcome, 0.0) >= LEARNED
        ]

    def of(
        self, models: Sequence[str], ratio: float, outcome: str, *, kind: str = "log_odds", reach: str = "long"
    ) -> Of:
        """Returns what gives an outcome of these models in a configuration."""

        def values(name: str) -> np.ndarray:
            records = [self.found[model, ratio, name] for model in models]
            if outcome == "loss":
                return np.array([one["loss"][reach] for one in records])
            return np.array([one[kind][reach][outcome] for one in records])

        return values


def results_of(records: Sequence[Record]) -> Results:
    """Returns the results of a file.

    Raises:
      ValueError: if results of several settings are among them, which do not belong together.
    """
    if len({record["settings"] for record in records}) > 1:
        raise ValueError("results of several settings: keep those of one in a file of their own")
    return Results(
        {record["model_sha"]: record["model"] for record in records},
        {(record["model_sha"], record["ratio"], record["configuration"]): record for record in records},
    )


# The primary outcomes.

PRIMARY = ("ntk+none", "ntk+alibi_star", "llama3+none", "llama3+alibi_star")


def contrasts(y: Of) -> dict[str, Float64[np.ndarray, " models"]]:
    """Returns the three contrasts of the 2 x 2 of each model, nats; see PROTOCOL.md for which way each is positive."""
    ntk, ntk_biased, llama3, llama3_biased = (y(name) for name in PRIMARY)
    return {
        "scaling": (llama3 + llama3_biased - ntk - ntk_biased) / 2,
        "bias": (ntk + llama3 - ntk_biased - llama3_biased) / 2,
        "interaction": (ntk - ntk_biased) - (llama3 - llama3_biased),
    }


@dataclasses.dataclass(frozen=True)
class Test:
    """One primary test.

    Attributes:
      estimate: mean over models; the intervals of all tests hold together.
      p: adjusted by Holm.
      answer: what it counts as.
      models: how many.
    """

    estimate: Estimate
    p: float
    answer: str
    models: int


def primary(results: Results, ratio: float) -> dict[tuple[str, str], Test]:
    """Returns the primary tests, by outcome and contrast; none for an outcome that fewer than two models count for."""
    values = {}
    for outcome in OUTCOMES:
        models = results.counting(outcome, ratio, PRIMARY)
        if len(models) > 1:
            for name, of_models in contrasts(results.of(models, ratio, outcome)).items():
                values[outcome, name] = of_models
    if not values:
        return {}
    adjusted = multiplicity.holm({key: multiplicity.mean_p_value(of) for key, of in values.items()})
    confidence = multiplicity.simultaneous_confidence(len(OUTCOMES) * 3)
    found = {}
    for key, of in values.items():
        estimate = intervals.estimate(of, confidence=confidence)
        found[key] = Test(estimate, adjusted[key], answer_of(key[1], estimate, adjusted[key]), len(of))
    return found


def answer_of(contrast: str, estimate: Estimate, p: float) -> str:
    """Returns what a test counts as, by the table of PROTOCOL.md."""
    ends = [abs(end) for end in (estimate.low, estimate.high) if end is not None]
    if p <= LEVEL and abs(estimate.mean) > MARGIN:
        if contrast == "interaction":
            return "each other worse" if estimate.mean > 0 else "each other better"
        better = {"scaling": ("llama3 better", "ntk better"), "bias": ("better without it", "better with it")}
        return f"matters: {better[contrast][estimate.mean < 0]}"
    if ends and max(ends) <= MARGIN:
        return "does not matter"
    return "significant, below the margin" if p <= LEVEL else "not resolved"


def first_change(tests: Mapping[tuple[str, str], Test], outcome: str) -> str:
    """Returns which change the primary tests put first for an outcome, in words."""
    words = {"scaling": "change the scaling first", "bias": "drop the bias first"}
    means = {contrast: tests[outcome, contrast].estimate.mean for contrast in words if (outcome, contrast) in tests}
    matter = {one for one, mean in means.items() if mean > MARGIN and tests[outcome, one].p <= LEVEL}
    if len(matter) == len(words) and abs(means["scaling"] - means["bias"]) < MARGIN:
        return "either"
    best = max(means, key=means.__getitem__, default="")
    return words[best] if best in matter else "not resolved"


# Tables.


def primary_table(results: Results, ratio: float) -> list[str]:
    """Returns the primary tests as markdown, and what they put first."""
    tests = primary(results, ratio)
    if not tests:
        return [f"No primary test at the ratio of {ratio:g}: fewer than two models count."]
    lines = ["| outcome | contrast | models | nats | p (Holm) | answer |", "|---|---|---|---|---|---|"]
    for (outcome, contrast), test in tests.items():
        p = f"{test.p:.4f}" if test.p > multiplicity.SMALLEST * 6 else f"<= {multiplicity.SMALLEST * 6:g}"
        lines.append(f"| {outcome} | {contrast} | {test.models} | {_shown(test.estimate)} | {p} | {test.answer} |")
    said = [f"{outcome}: {first_change(tests, outcome)}" for outcome in OUTCOMES if (outcome, "bias") in tests]
    left_out = [
        f"{results.models[model]} ({outcome})"
        for outcome in OUTCOMES
        for model in results.models
        if model not in results.counting(outcome, ratio, PRIMARY)
    ]
    return [*lines, "", "; ".join(said), f"do not count: {', '.join(left_out) or 'none'}"]


DEPLOYED = {"ntk+alibi_star": "alibi_star", "ntk+t5": "t5"}


def options_table(results: Results) -> list[str]:
    """Returns the gains of the three options, and in how many models each is the best, as markdown."""
    lines = [
        "| deployed | ratio | outcome | 1: drop the bias | 2: undo the scaling | 3: scale by llama3 | best in |",
        "|---|---|---|---|---|---|---|",
    ]
    for deployed, bias in DEPLOYED.items():
        options = ("ntk+none", f"none+{bias}", f"llama3+{bias}")
        for ratio in results.ratios:
            for outcome in OUTCOMES:
                models = results.counting(outcome, ratio, (deployed, *options))
                if models:
                    y = results.of(models, ratio, outcome)
                    gains = np.stack([y(name) - y(deployed) for name in options])
                    best = np.bincount(gains.argmax(axis=0), minlength=3)
                    shown = [_shown(intervals.estimate(of), sign=True) for of in gains]
                    counts = ", ".join(f"{number + 1}: {count}" for number, count in enumerate(best))
                    lines.append(f"| {deployed} | {ratio:g} | {outcome} | {' | '.join(shown)} | {counts} |")
    return lines


def configurations_table(results: Results, ratio: float) -> list[str]:
    """Returns every configuration at a ratio as markdown: means over models, and 95 % intervals of the long ones."""
    lines = [
        "| configuration | order, nats | order | binding, nats | binding | retrieval | pull, nats | short accuracy | "
        "short loss | long loss |",
        "|---" * 10 + "|",
    ]
    for name in CONFIGURATIONS:
        models = [model for model in results.models if (model, ratio, name) in results.found]
        if not models:
            continue
        cells = []
        for outcome in OUTCOMES:
            counting = results.counting(outcome, ratio, (name,))
            for kind in ("log_odds", "accuracy"):
                values = results.of(counting, ratio, outcome, kind=kind)(name)
                cells.append(_shown(intervals.estimate(values), percent=kind == "accuracy") if len(values) else "-")
        cells.append(f"{results.of(models, ratio, 'retrieval', kind='accuracy')(name).mean():.0%}")
        first, last = (results.of(models, ratio, f"order, {way} asked")(name) for way in ("first", "last"))
        cells.append(_shown(intervals.estimate((last - first) / 2), sign=True))
        short = [
            results.of(models, ratio, task, kind="accuracy", reach="short")(name).mean()
            for task in ("retrieval", *OUTCOMES)
        ]
        cells.append(f"{np.mean(short):.1%}")
        cells += [f"{results.of(models, ratio, 'loss', reach=reach)(name).mean():.3f}" for reach in ("short", "long")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _shown(value: Estimate, *, sign: bool = False, percent: bool = False) -> str:
    form, value = (".0%", value.within(0, 1)) if percent else ("+.2f" if sign else ".2f", value)
    if value.low is None or value.high is None:
        return f"{value.mean:{form}}"
    return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"


def tables(results: Results, ratio: float) -> str:
    """Returns everything as markdown."""
    if not results.found:
        return "no results"
    some = next(iter(results.found.values()))
    contexts, rows = some["given"]["contexts"], some["given"]["text_rows"]
    parts = [
        f"{len(results.models)} models, {contexts} contexts, {rows} rows of text; the unit is the model.",
        f"### Primary, at {ratio:g} times the trained length",
        "\n".join(primary_table(results, ratio)),
        "### The three options",
        "\n".join(options_table(results)),
    ]
    for one in results.ratios:
        parts += [f"### Every configuration, at {one:g} times the trained length"]
        parts += ["\n".join(configurations_table(results, one))]
    return "\n\n".join(parts)


# The figure.


def figure(results: Results, file: Path) -> None:
    """Draws order and binding of every configuration by ratio, with 95 % intervals over models."""
    from matplotlib.figure import Figure

    from rope_jax.biases.registry import BIASES
    from rope_jax.scaling.registry import SCALINGS

    names = [name for name in CONFIGURATIONS if "temperature" not in name]
    biases = list(dict.fromkeys(name.split("+")[1] for name in names))
    drawn = Figure(figsize=(3.6 * len(biases), 6.4), layout="constrained")
    axes = drawn.subplots(len(OUTCOMES), len(biases), sharex=True, sharey="row", squeeze=False)
    for row, outcome in enumerate(OUTCOMES):
        for column, bias in enumerate(biases):
            ax = axes[row][column]
            ax.axhline(0, color="#9ca3af", linewidth=0.8)
            for number, name in enumerate(one for one in names if one.split("+")[1] == bias):
                scaling = SCALINGS[name.split("+")[0]]
                points = []
                for ratio in results.ratios:
                    models = results.counting(outcome, ratio, (name,))
                    if models:
                        points.append((ratio, intervals.estimate(results.of(models, ratio, outcome)(name))))
                if points:
                    # Moved apart a little, so that intervals do not cover each other.
                    x = np.array([ratio for ratio, _ in points]) * (1 + 0.012 * (number - 2.5))
                    means = np.array([value.mean for _, value in points])
                    spread = [
                        [0.0 if value.low is None else value.mean - value.low for _, value in points],
                        [0.0 if value.high is None else value.high - value.mean for _, value in points],
                    ]
                    ax.errorbar(x, means, spread, color=scaling.color, label=scaling.label, marker="o", markersize=3)
            ax.set_xscale("log", base=2)
            ax.set_xticks(results.ratios, [f"{ratio:g}" for ratio in results.ratios])
            ax.minorticks_off()
            if not row:
                ax.set_title(BIASES[bias].label)
            if not column:
                ax.set_ylabel(f"{'event order' if outcome == 'order' else 'n-th item'}, log-odds, nats")
    for ax in axes[-1]:
        ax.set_xlabel("target over trained length")
    handles, labels = axes[0][0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    drawn.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main(argv: list[str]) -> None:
    """Prints the tables, and draws the figure."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"summary.py takes no arguments, got {argv[1:]}")
    try:
        results = results_of(read(Path(flags.FLAGS.results)))
    except ValueError as error:
        sys.exit(f"{flags.FLAGS.results}: {error}")
    print(tables(results, flags.FLAGS.primary_ratio))
    if flags.FLAGS.figure and results.found:
        figure(results, Path(flags.FLAGS.figure))


if __name__ == "__main__":
    define_flags()
    app.run(main)
