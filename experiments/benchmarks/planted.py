"""The benchmark of planted causes: how often the verdict names what is truly wrong with a deployed context extension.

    python experiments/benchmarks/planted.py --models=DIR,DIR,DIR,DIR,DIR --cases=250
    python experiments/benchmarks/planted.py --report

A case is a trained model that does not ship and a deployed configuration with a planted cause of continuous strength
(see `planted_causes.py`). The tool sees weights, the declared scheme and the answers to `--contexts` contexts at each
length, and may ask more in interim analyses; it goes through the same functions as `rope_jax.diagnose`. The truth
removes the plant, on `--truth` other contexts (see `planted_cases.py`); what counts as right is in `planted_scores.py`.

Goals: the component named in 85 %, and most of the loss recovered by the change named first in 90 % of the cases in
which something is recoverable; wrong in 3 % at most, false alarms in 5 % of the nulls at most. Constant answers stand
beside. Every finished case is a line of `--out`; running again goes on.
"""

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import planted_causes
import planted_scores
from absl import app, flags, logging
from planted_cases import Bench, Settings, tiny_model

from rope_jax.diagnosis.verdict.answers import Margins

_MODELS = flags.DEFINE_list("models", [], "Directories of models that train.py has written; five or more.")
_CASES = flags.DEFINE_integer("cases", 250, "Cases, in turn of every family, and of every model.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all cases.")
_CONTEXTS = flags.DEFINE_integer("contexts", 24, "At each length, that the tool sees first.")
_INTERIM = flags.DEFINE_integer("interim", 3, "Analyses that the tool may make; each further one doubles its contexts.")
_TRUTH = flags.DEFINE_integer("truth", 384, "Contexts of the target length that the truth is measured on.")
_RATIO = flags.DEFINE_float("ratio", 2.0, "Target over trained length.")
_FAMILIES = flags.DEFINE_list("families", list(planted_causes.FAMILIES), "Only these; a case's seed stays the same.")
_MINUTES = flags.DEFINE_float("minutes", float("inf"), "Stops after the case in which these are over.")
_OUT = flags.DEFINE_string("out", "planted.jsonl", "File of finished cases.")
_REPORT = flags.DEFINE_boolean("report", False, "Only prints the tables of what the file holds.")
_QUICK = flags.DEFINE_boolean("quick", False, "Two cases on a tiny random model: shows that everything runs.")


def main(argv: list[str]) -> None:
    """Runs what is not finished, and prints the tables."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"planted.py takes no arguments, got {argv[1:]}")
    if min(_CASES.value, _INTERIM.value) < 1 or min(_CONTEXTS.value, _TRUTH.value) < 2 or _RATIO.value <= 1:
        sys.exit("--cases and --interim must be at least 1, --contexts and --truth at least 2, --ratio above 1")
    if unknown := set(_FAMILIES.value) - set(planted_causes.FAMILIES):
        sys.exit(f"unknown families {sorted(unknown)}; there are: {', '.join(planted_causes.FAMILIES)}")
    out = Path(_OUT.value)
    if _QUICK.value:
        with tempfile.TemporaryDirectory() as directory:
            tiny = Path(directory) / "tiny"
            tiny.mkdir()
            tiny_model(tiny)
            # It has learned nothing, so every task counts.
            settings = Settings(2, 2, 2, 2, _RATIO.value, Margins(learned=0.0))
            run([tiny], settings, out, cases=2, order=["both", "implementation"])
    elif not _REPORT.value:
        if not _MODELS.value:
            sys.exit("planted.py needs --models, or --report, or --quick")
        settings = Settings(_CONTEXTS.value, _INTERIM.value, _TRUTH.value, ratio=_RATIO.value)
        run([Path(one) for one in _MODELS.value], settings, out, cases=_CASES.value, order=planted_causes.FAMILIES)
    print(planted_scores.report(planted_scores.read(out)))


def run(models: list[Path], settings: Settings, out: Path, *, cases: int, order) -> None:
    """Runs the cases that the file does not hold yet, one model after the other, and adds them to it."""
    started = time.monotonic()
    given = {**dataclasses.asdict(settings), "version": planted_causes.VERSION}
    settings_hash = planted_scores.settings_hash(given)
    finished = {planted_scores.key_of(record) for record in planted_scores.read(out)}
    for number, directory in enumerate(models):
        bench = None
        for case in range(cases):
            family = order[case % len(order)]
            if case // len(order) % len(models) != number or family not in {*_FAMILIES.value}:
                continue
            seed = 1_000_000 * _SEED.value + case
            bench = bench or Bench(directory, settings)
            if (bench.checkpoint.sha256, seed, settings_hash) in finished:
                continue
            if time.monotonic() - started > 60 * _MINUTES.value:
                print(f"stopped after {_MINUTES.value:g} minutes; run again to go on")
                return
            plant = bench.draw(family, seed)
            told: dict[str, Any] = {
                "model": directory.name,
                "model_sha": bench.checkpoint.sha256,
                "seed": seed,
                "settings": settings_hash,
                "given": given,
                "family": family,
                "kind": plant.kind,
                "strengths": dict(plant.strengths),
            }
            record = told | bench.judge(plant, seed)
            planted_scores.append(out, record)
            removed = ", ".join(f"{part} {gain:+.2f}" for part, gain in record["removed"].items())
            print(
                f"{directory.name} case {case}, {family} ({plant.kind}): {record['first']} (P "
                f"{record['probability_first']:.2f}, cause {record['cause']}); the plant removed: {removed}; "
                f"{sum(record['seconds'].values()):.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
