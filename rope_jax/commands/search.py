"""`rope-jax search`: looks for per-pair factors that beat every named rule on the tasks of the diagnosis.

`search.json` holds, outermost keys first; an estimate is `{"mean", "low", "high"}` with a 95 % interval:

- `factors`, `attention_factor`: the winner, as `rope-jax export --factors` reads it.
- `model`, `lengths`, `settings`, `bias`, `versions`: what was searched; `tasks`: used, and refused with the reason.
- `unchanged`, `winner`, `named`: accuracy and log-odds; `objective` on the contexts of the search, where the winner's
  is flattered by having been chosen there, and on fresh ones, as an estimate.
- `gain`: of the winner over the named rule that was best in the search, context by context on the fresh ones; what
  another search would have found is not in its interval.
- `history`: best and median objective of every generation, and how many candidates were scored in it.
- `omitted`: named rules without a meaning on this model, and why; `interval_method`; `compilations`.
"""

import dataclasses
import json
import os
import pathlib
import platform
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from rope_jax.commands.flags import Define, check_ranges, checkpoint_of
from rope_jax.commands.output import checked_out, write_all
from rope_jax.commands.progress import Progress
from rope_jax.diagnosis.tasks.contexts import TRAINING
from rope_jax.errors import InputError

if TYPE_CHECKING:
    from rope_jax.diagnosis.evaluation.panel import Panel
    from rope_jax.diagnosis.search.factor_search import FactorRuns, Judge, Population
    from rope_jax.diagnosis.tasks.subject import Subject
    from rope_jax.diagnosis.verdict.answers import Margins

SUMMARY = "search per-pair factors that beat the named rules on a bundled test model's tasks"
USAGE = "rope-jax search [CHECKPOINT] [--target_length=N] [--out=DIR] [flags]"

_RESULT, _STATE = "search.json", "search-state.json"
_DEFAULT_OUT = "rope-jax-search"
_RANGES = {
    "population": (8, 2**12),  # the named rules, and something to compare them with
    "generations": (1, 2**12),
    "contexts": (1, 2**12),
    "target_length": (1, 2**20),
    "seed": (0, 2**32 - 1),
}


def define_flags(define: Define) -> None:
    """Declares the command's flags."""
    define.integer("target_length", None, "Tokens to be served; eight times the trained length by default.")
    define.enum(
        "bias",
        "none",
        ["none", "alibi_star"],
        "Bias that every candidate runs with; alibi_star is ALiBi with the largest safe slopes.",
    )
    define.integer("population", 16, "Candidates of a generation, the named rules among the first.")
    define.integer("generations", 8, "Generations after the first.")
    define.integer(
        "contexts", 8, "Contexts at each length to search on; four times as many fresh ones judge the result."
    )
    define.integer("seed", 0, "Of the contexts and the evolution.")
    define.string(
        "out", _DEFAULT_OUT, "Directory for the result, and for the state from which a search that was cut off goes on."
    )


def kept(arguments: list[str], flags: absl_flags.FlagValues) -> str:
    """Returns what is kept of a run that was stopped."""
    file = pathlib.Path(flags.out) / _STATE
    if os.path.isfile(file):
        # The file may be another search's, of another seed or model.
        return f"what this search finished, if anything, is kept in {file}: the same command goes on after it"
    return "no generation was finished and nothing is kept: run it again"


def run(arguments: list[str], flags: absl_flags.FlagValues) -> int:
    """Runs the command; returns the exit status."""
    path = checkpoint_of(arguments, usage=USAGE)
    check_ranges(flags, _RANGES)
    out = checked_out(pathlib.Path(flags.out), (_RESULT, _STATE))

    # JAX is imported only once the flags are known to be good.
    from rope_jax.diagnosis.evaluation import kept_files
    from rope_jax.diagnosis.judging import tasks_of
    from rope_jax.diagnosis.search import factor_search
    from rope_jax.diagnosis.tasks.subject import read_bundled_model
    from rope_jax.diagnosis.verdict.answers import Margins

    margins = Margins()
    # Of the diagnosis' items only the text that a bias is fitted on is used.
    bundled = read_bundled_model(_directory(path))
    subject = bundled.asked(rows=1, target_length=flags.target_length, text_rows=1, seed=flags.seed)
    runs = factor_search.FactorRuns(subject, rows=flags.contexts)
    items = factor_search.items_of(subject, rows=flags.contexts, seed=flags.seed)
    unchanged = runs.unchanged(items[0])
    tasks = tasks_of(unchanged, subject, learned=margins.learned)
    if not tasks.used:
        raise InputError(f"{subject.checkpoint.origin}: no task is learned: right in {_shares(tasks.accuracy)}")
    bias, fitted = _bias(flags.bias, subject, runs, margins)
    searched, fresh = (
        factor_search.Judge(runs, asked, before, tasks.used, margins.short_accuracy, bias)
        for asked, before in zip(items, (unchanged, runs.unchanged(items[1])), strict=True)
    )
    settings = {
        **{name: getattr(flags, name) for name in ("bias", "population", "generations", "contexts", "seed")},
        "fresh_contexts": factor_search.FRESH * flags.contexts,
        "learned": margins.learned,
        "margin": margins.short_accuracy,
        "penalty": factor_search.PENALTY,
        "largest_factor": runs.largest,
    }
    key = _key(subject, settings, searched)
    with Progress() as progress:
        found = factor_search.evolve(
            searched.score,
            runs.named,
            population=flags.population,
            generations=flags.generations,
            largest=runs.largest,
            seed=flags.seed,
            resume=_resumed(out / _STATE, key),
            keep=lambda population: kept_files.write_json(out / _STATE, key, _state(population)),
            progress=progress,
        )
        record = {
            "factors": found.factors[0].tolist(),
            "attention_factor": 1.0,
            "model": {
                "origin": subject.checkpoint.origin,
                "sha256": subject.checkpoint.sha256,
                "parameters": subject.checkpoint.config.num_parameters,
            },
            "lengths": {"trained": subject.trained_length, "target": subject.target_length, "factor": subject.factor},
            "settings": settings,
            "bias": fitted,
            "tasks": {"used": list(tasks.used), "refused": dict(tasks.refused)},
            **_judged(found.factors[0], searched, fresh, progress),
            "omitted": dict(runs.omitted),
            "history": [dict(line) for line in found.history],
            "compilations": runs.compilations,
            "versions": _versions(),
        }
    written = json.dumps(record, allow_nan=False)
    write_all(out, {_RESULT: written + "\n"})
    print(written if flags.json else _table(record) + f"\n\nwritten to {out / _RESULT}")
    return 0


def _directory(path: str | None) -> pathlib.Path:
    from rope_jax.diagnosis.tasks.subject import bundled_models

    if path is None:
        if not bundled_models():
            raise InputError(f"no bundled test model is installed: name a checkpoint: {USAGE}")
        return bundled_models()[0]
    directory = pathlib.Path(path)
    if os.path.isdir(directory) and not os.path.isfile(directory / TRAINING):
        raise InputError(f"{directory}: no {TRAINING}: only a bundled test model knows the language of the contexts")
    return directory


def _bias(name: str, subject: "Subject", runs: "FactorRuns", margins: "Margins") -> tuple[Any, dict[str, Any]]:
    """Returns the bias and its record; it is fitted as the diagnosis fits it."""
    from rope_jax.biases.registry import BiasRequest, bias_of
    from rope_jax.diagnosis.evaluation.fitter import FitSettings, ModelFitter

    if name == "none":
        return None, {"name": name}
    fitter = ModelFitter(subject, runs.maker, runs.maker.original(), FitSettings(margins.short_loss))
    heads = subject.checkpoint.config.num_heads
    bias: Any = bias_of(name, BiasRequest(heads, subject.trained_length, subject.target_length, fitter))
    return bias, {"name": name, "fitted": fitter.found, "slopes": bias.slopes.tolist()}


def _judged(winner, searched: "Judge", fresh: "Judge", progress: Progress) -> dict[str, Any]:
    """Returns the winner beside the named rules, all on contexts that the search never saw."""
    from rope_jax.statistics import intervals

    runs, objectives, named = searched.runs, {}, {}
    total = len(runs.named) + 1
    for done, (name, factors) in enumerate(runs.named.items(), 1):
        progress("fresh contexts", done, total)
        objectives[name], outcomes = _described(factors, searched, fresh)
        named[name] = {"factors": factors.tolist(), **outcomes}
    progress("fresh contexts", total, total)
    objective, outcomes = _described(winner, searched, fresh)
    # Chosen where the winner was chosen, so that neither is flattered by the contexts that judge them.
    best = max(named, key=lambda name: named[name]["objective"]["search"])
    rule = next((name for name, factors in runs.named.items() if (factors == winner).all()), None)
    return {
        "unchanged": _outcomes(fresh.unchanged, fresh.used),
        "winner": {"rule": rule, **outcomes},
        "named": named,
        "gain": {"over": best, "objective": _estimate(objective - objectives[best])},
        "interval_method": intervals.clustered_method(1, len(objective)),
    }


def _described(factors, searched: "Judge", fresh: "Judge") -> tuple[Any, dict[str, Any]]:
    from rope_jax.diagnosis.search import factor_search

    panel = fresh.outcomes(factors)
    objective = factor_search.objective(panel, fresh.unchanged, fresh.used, margin=fresh.margin)
    return objective, {
        "objective": {"search": searched.score(factors), "fresh": _estimate(objective)},
        "short_loss": _estimate(factor_search.short_loss(panel, fresh.unchanged, fresh.used)),
        **_outcomes(panel, fresh.used),
    }


def _outcomes(panel: "Panel", used: tuple[str, ...]) -> dict[str, Any]:
    from rope_jax.diagnosis.search.factor_search import mean_of

    record: dict[str, Any] = {}
    for reach, of_task in panel.log_odds.items():
        record[reach] = {
            "accuracy": _estimate(mean_of(panel, reach, used, accuracy=True), share=True),
            "log_odds": _estimate(mean_of(panel, reach, used)),
            "by_task": {name: _estimate(of_task[name][0]) for name in used},
        }
    return record


def _estimate(rows, *, share: bool = False) -> dict[str, float | None]:
    from rope_jax.statistics import intervals

    found = intervals.clustered(rows[None])
    return dataclasses.asdict(found.within(0.0, 1.0) if share else found)


def _key(subject: "Subject", settings: Mapping[str, Any], searched: "Judge") -> str:
    """Returns a hash of all that the generations of a search depend on."""
    from rope_jax.diagnosis.evaluation import kept_files

    described = {
        **kept_files.made_with(subject.checkpoint),
        "lengths": [subject.trained_length, subject.target_length],
        "settings": dict(settings),
        "versions": _versions(),
    }
    runs = searched.runs
    unscaled = dataclasses.replace(runs.maker.original(), bias=searched.bias)
    scheme, named = runs.maker(unscaled), list(runs.named.values())
    return kept_files.digest(described, scheme, named, searched.items)


def _versions() -> dict[str, str]:
    import jax
    import numpy as np
    import scipy

    from rope_jax import __version__

    return {
        "rope_jax": __version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
    }


def _state(population: "Population") -> dict[str, Any]:
    return {
        "generation": population.generation,
        "population": population.factors.tolist(),
        "scores": population.scores.tolist(),
        "history": [dict(line) for line in population.history],
    }


def _resumed(file: pathlib.Path, key: str) -> "Population | None":
    """Returns the last finished generation of the same search, or None where none is kept."""
    import numpy as np

    from rope_jax.diagnosis.evaluation import kept_files
    from rope_jax.diagnosis.search.factor_search import Population

    state = kept_files.read_json(file, key)
    if state is None:
        return None
    print(f"rope-jax search: goes on after generation {state['generation']} of {file}", file=sys.stderr)
    factors, scores = np.asarray(state["population"], np.float64), np.asarray(state["scores"], np.float64)
    return Population(state["generation"], factors, scores, tuple(state["history"]))


def _table(record: Mapping[str, Any]) -> str:
    from rope_jax.diagnosis.verdict.wording import named

    lengths, settings, winner, gain = (record[key] for key in ("lengths", "settings", "winner", "gain"))
    lines = [
        f"{record['model']['origin']}: {lengths['trained']} -> {lengths['target']} tokens, bias {settings['bias']}, "
        f"tasks {', '.join(map(named, record['tasks']['used']))}",
        "",
        f"{'factors':<12} {'objective in nats':>44} {'log-odds':>10} {'accuracy, fresh':>17}",
        f"{'':<12} {'searched':>10} {'fresh, 95 % interval':>33} {'long':>10} {'short':>8} {'long':>8}",
    ]
    order = sorted(record["named"].items(), key=lambda item: -item[1]["objective"]["search"])
    for name, row in [("found" if winner["rule"] is None else "found *", winner), *order]:
        objective = row["objective"]
        lines.append(
            f"{name:<12} {objective['search']:>10.3f} {_shown(objective['fresh']):>33} "
            f"{row['long']['log_odds']['mean']:>10.3f} {row['short']['accuracy']['mean']:>8.1%} "
            f"{row['long']['accuracy']['mean']:>8.1%}"
        )
    lines += ["", _conclusion(winner["rule"], gain)]
    lines.append(f"factors, fastest pair first: {' '.join(f'{factor:.3g}' for factor in record['factors'])}")
    return "\n".join(lines)


def _conclusion(rule: str | None, gain: Mapping[str, Any]) -> str:
    if rule is not None:
        return f"* the named rule {rule}: nothing better was found"
    value = gain["objective"]
    low, high = value["low"], value["high"]
    answer = "better" if low > 0 else "worse" if high < 0 else "not distinguished"
    return f"on fresh contexts, found over {gain['over']}, the best named in the search: {_shown(value)} nats: {answer}"


def _shown(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _shares(accuracy: Mapping[str, float]) -> str:
    from rope_jax.diagnosis.verdict.wording import named

    return ", ".join(f"{value:.0%} of {named(name)}" for name, value in accuracy.items())
