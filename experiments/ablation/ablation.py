"""Runs the ablation of PROTOCOL.md: every configuration on every model, kept as one JSON line each.

    python experiments/ablation/ablation.py --models=DIR,DIR,... --out=experiments/results/ablation.jsonl
    python experiments/ablation/summary.py --results=experiments/results/ablation.jsonl

Running it again goes on with what is missing: a model at a ratio in a configuration.
"""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

from rope_jax.diagnosis.evaluation.configurations import wanted
from rope_jax.diagnosis.evaluation.fitter import FitSettings
from rope_jax.diagnosis.evaluation.panel import Panel
from rope_jax.diagnosis.evaluation.plan import PlanSettings, plan_of
from rope_jax.diagnosis.evaluation.runs import Runs, panel_of
from rope_jax.diagnosis.tasks.subject import BundledModel, read_bundled_model

SCALINGS = ("none", "ntk", "llama3", "yarn_map", "by_parts")
BIASES = ("none", "alibi_star", "t5")
CONFIGURATIONS = (
    *(f"{scaling}+{bias}" for scaling in SCALINGS for bias in BIASES),
    *(f"{scaling}+{bias}+temperature" for scaling in ("ntk", "llama3") for bias in ("none", "alibi_star")),
    *(f"no_rotation+{bias}" for bias in BIASES),
)


def define_flags() -> None:
    """Declares the flags; a function, as other scripts are imported into one process by the tests."""
    flags.DEFINE_list("models", [], "Directories of models that train.py has written.")
    flags.DEFINE_string("out", "ablation.jsonl", "File of results, a JSON line each.")
    flags.DEFINE_string("store", None, "Directory of finished fits; beside --out where none is given.")
    flags.DEFINE_list("ratios", ["1.25", "2", "4"], "Target over trained length.")
    flags.DEFINE_integer("contexts", 192, "At each length.")
    flags.DEFINE_integer("text_rows", 256, "Rows of repeated text.")
    flags.DEFINE_integer("fit_steps", 60, "Of a T5 table.")
    flags.DEFINE_list("configurations", list(CONFIGURATIONS), "Only these.")


Record = dict[str, Any]
Key = tuple[str, float, str, str]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a result depends on beside the model, the ratio and the configuration.

    Attributes:
      contexts: at each length.
      text_rows: rows of text.
      fit_steps: of a T5 table.
    """

    contexts: int = 192
    text_rows: int = 256
    fit_steps: int = 60

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def key_of(record: Record) -> Key:
    """Returns what distinguishes a result: the model's hash, the ratio, the configuration, and the settings' hash."""
    return record["model_sha"], record["ratio"], record["configuration"], record["settings"]


def read(file: Path) -> list[Record]:
    """Returns the results of a file, each once; a line that was cut off is left out."""
    found: dict[Key, Record] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut off when the run was killed: it is run again
        found[key_of(record)] = record
    return list(found.values())


def append(file: Path, record: Record) -> None:
    """Adds a result as a line of its own, also after one that was cut off."""
    whole = not file.is_file() or file.read_bytes()[-1:] in (b"", b"\n")
    with open(file, "a") as opened:
        opened.write(("" if whole else "\n") + json.dumps(record) + "\n")


def missing(
    model: BundledModel,
    ratio: float,
    settings: Settings,
    *,
    done: set[Key],
    store: Path | None,
    configurations: Sequence[str] = CONFIGURATIONS,
) -> Iterator[Record]:
    """Yields the results of one model at one ratio that are not done.

    Args:
      model: which; its contexts are drawn from a seed of its own.
      ratio: target over trained length.
      settings: see `Settings`.
      done: keys of finished results.
      store: directory of finished fits.
      configurations: "SCALING+BIAS", or with "+temperature".
    """
    sha = model.checkpoint.sha256
    asked = [name for name in configurations if (sha, ratio, name, settings.hash) not in done]
    if not asked:
        return
    trained = model.checkpoint.positions.original_length
    subject = model.asked(
        rows=settings.contexts,
        target_length=round(ratio * trained),
        text_rows=settings.text_rows,
        seed=int(sha[:8], 16),
    )
    runs = Runs(subject)
    told = {"model_sha": sha, "ratio": ratio, "trained": trained, "target": subject.target_length}
    for name in asked:
        started = time.perf_counter()
        asked_for = PlanSettings((wanted(name),), (), fit=FitSettings(steps=settings.fit_steps))
        plan = plan_of([subject], asked_for, store=store)
        panel = panel_of([runs(plan.schemes(plan.deployed[0]))], subject.items, trained)
        found = next(iter(plan.found.values()), "")
        yield {
            **told,
            "configuration": name,
            "settings": settings.hash,
            "given": dataclasses.asdict(settings),
            "fitted": found,
            **outcomes(panel),
            "seconds": round(time.perf_counter() - started, 2),
        }


def outcomes(panel: Panel) -> Record:
    """Returns the means over contexts and rows of one model's panel, and what is left to chance in the long ones."""

    def means(values: Any) -> dict[str, dict[str, float]]:
        return {reach: {task: round(float(of.mean()), 5) for task, of in by.items()} for reach, by in values.items()}

    return {
        "log_odds": means(panel.log_odds),
        "accuracy": means(panel.accuracy),
        "loss": {reach: round(float(of.mean()), 5) for reach, of in panel.loss.items()},
        "standard_error": {
            task: round(float(of.std(ddof=1) / np.sqrt(of.size)), 5) for task, of in panel.log_odds["long"].items()
        },
    }


def main(argv: list[str]) -> None:
    """Runs what is missing."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1 or not flags.FLAGS.models:
        sys.exit("ablation.py takes no arguments, and needs --models=DIR,DIR")
    if unknown := set(flags.FLAGS.configurations) - set(CONFIGURATIONS):
        sys.exit(f"unknown configurations {sorted(unknown)}; there are: {', '.join(CONFIGURATIONS)}")
    out = Path(flags.FLAGS.out)
    store = Path(flags.FLAGS.store) if flags.FLAGS.store else out.with_suffix(".fits")
    settings = Settings(flags.FLAGS.contexts, flags.FLAGS.text_rows, flags.FLAGS.fit_steps)
    done = {key_of(record) for record in read(out)}
    total = len(flags.FLAGS.models) * len(flags.FLAGS.ratios)
    for number, (directory, ratio) in enumerate(
        (one, float(r)) for one in flags.FLAGS.models for r in flags.FLAGS.ratios
    ):
        started = time.perf_counter()
        model = read_bundled_model(Path(directory))
        for record in missing(
            model, ratio, settings, done=done, store=store, configurations=flags.FLAGS.configurations
        ):
            append(out, {"model": Path(directory).name, **record})
            right = record["accuracy"]["long"]
            print(
                f"{directory} x{ratio:g} {record['configuration']}: "
                + ", ".join(f"{task} {right[task]:.0%}" for task in ("retrieval", "binding", "order") if task in right)
                + f"; {record['seconds']:.1f} s",
                flush=True,
            )
        print(f"[{number + 1}/{total}] {directory} x{ratio:g}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    define_flags()
    app.run(main)
