"""The benchmark of planted causes: how often the verdict names what is truly wrong with a deployment.

    python experiments/benchmarks/planted.py --models=DIR,DIR --cases=200
    python experiments/benchmarks/planted.py --report

A case is a trained model and a status quo with a planted cause of continuous strength, on no arm of the factorial (see
`planted_causes.py`). The tool sees weights, declared scheme and the deployment's answers to `--haystacks` haystacks at
each length, and asks on, in doublings, where they leave its verdict open. What is true is decided by the same rule from
effects without intervals on `--truth` times as many others as the tool saw, or on fewer where these leave no doubt (see
`planted_truth.py`). The baseline names the option with the largest mean gain on the tool's first items.

Goals: right in 90 % of the cases in which something wins back the margin, wrong in 3 % at most, and a false alarm in at
most 5 % of those in which nothing does. Every finished case is a line of `--out`; running again goes on.
"""

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import planted_causes
import planted_record
import planted_truth
from absl import app, flags, logging
from flax import nnx
from planted_runs import Bench, Programs, Settings

from rope_jax.checkpoints.saving import llama_config, save_llama
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.verdict.verdict import Margins

_MODELS = flags.DEFINE_list("models", [], "Directories of models that train.py has written.")
_CASES = flags.DEFINE_integer("cases", 200, "Cases, in turn of every family, and of every model.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all cases.")
_HAYSTACKS = flags.DEFINE_integer("haystacks", 48, "At each length, that the tool sees first.")
_LOOKS = flags.DEFINE_integer("looks", 5, "That the tool may take; each further one doubles what it sees.")
_TEXT_ROWS = flags.DEFINE_integer("text_rows", 48, "Rows of text that the tool sees first.")
_RATIO = flags.DEFINE_float("ratio", 2.0, "Target over trained length.")
_LONG_RATIO = flags.DEFINE_float("long_ratio", 4.0, "The ratio at which nothing is expected to hold; a few cases.")
_TRUTH = flags.DEFINE_integer("truth", 10, "How many times as many haystacks the truth is measured on.")
_FAMILIES = flags.DEFINE_list("families", list(planted_causes.FAMILIES), "Only these; a case's seed stays the same.")
_MINUTES = flags.DEFINE_float("minutes", float("inf"), "Stops after the case in which these are over.")
_OUT = flags.DEFINE_string("out", "planted.jsonl", "File of finished cases.")
_REPORT = flags.DEFINE_boolean("report", False, "Only prints the table of what the file holds.")
_QUICK = flags.DEFINE_boolean("quick", False, "Two cases on a tiny random model: shows that everything runs.")


def main(argv: list[str]) -> None:
    """Runs what is not finished, and prints the table."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"planted.py takes no arguments, got {argv[1:]}")
    if min(_CASES.value, _TRUTH.value, _LOOKS.value) < 1 or min(_HAYSTACKS.value, _TEXT_ROWS.value) < 2:
        sys.exit("--cases, --truth and --looks must be at least 1, --haystacks and --text_rows at least 2")
    if min(_RATIO.value, _LONG_RATIO.value) <= 1:
        sys.exit("--ratio and --long_ratio must be above 1")
    if unknown := set(_FAMILIES.value) - set(planted_causes.FAMILIES):
        sys.exit(f"unknown families {sorted(unknown)}; there are: {', '.join(planted_causes.FAMILIES)}")
    out = Path(_OUT.value)
    if _QUICK.value:
        with tempfile.TemporaryDirectory() as directory:
            tiny_model(Path(directory))
            # It has learned nothing, so every probe counts.
            settings = Settings(2, 2, 2, 2, Margins(gate=0.0))
            run([Path(directory)], settings, out, cases=2, families=["both", "implementation"])
    elif not _REPORT.value:
        if not _MODELS.value:
            sys.exit("planted.py needs --models, or --report, or --quick")
        models = [Path(directory) for directory in _MODELS.value]
        settings = Settings(_HAYSTACKS.value, _LOOKS.value, _TRUTH.value, _TEXT_ROWS.value)
        run(models, settings, out, cases=_CASES.value, families=_FAMILIES.value)
    print(planted_record.report(planted_record.read(out)))


def run(models: list[Path], settings: Settings, out: Path, *, cases: int, families: list[str]) -> None:
    """Runs the cases that the file does not hold yet, one model after the other, and adds them to it."""
    started = time.monotonic()
    given = {
        **dataclasses.asdict(settings),
        "ratio": _RATIO.value,
        "long_ratio": _LONG_RATIO.value,
        "version": planted_causes.VERSION,
        "sure": planted_truth.SURE,
    }
    settings_hash = planted_record.settings_hash(given)
    finished = {planted_record.key_of(record) for record in planted_record.read(out)}
    programs: dict[Any, Programs] = {}
    order = planted_causes.FAMILIES if not _QUICK.value else families
    for number, directory in enumerate(models):
        bench = Bench(directory, settings, programs)
        for case in range(cases):
            family = order[case % len(order)]
            seed = 1_000_000 * _SEED.value + case
            key = bench.checkpoint.sha256, seed, settings_hash
            if case // len(order) % len(models) != number or family not in families or key in finished:
                continue
            if time.monotonic() - started > 60 * _MINUTES.value:
                print(f"stopped after {_MINUTES.value:g} minutes; run again to go on")
                return
            group = bench.checkpoint.positions.main_group
            assert group.rotary is not None
            plant = planted_causes.draw(
                family,
                np.random.default_rng(np.random.SeedSequence([seed, 0])),
                rotary=group.rotary,
                num_heads=group.num_heads,
                ratio=_RATIO.value,
                long_ratio=_LONG_RATIO.value,
            )
            told: dict[str, Any] = {
                "model": directory.name,
                "model_sha": bench.checkpoint.sha256,
                "seed": seed,
                "settings": settings_hash,
                "given": given,
                "family": family,
                "kind": plant.kind,
                "small": plant.small,
                "strengths": dict(plant.strengths),
            }
            record = told | bench.judge(plant, seed)
            planted_record.append(out, record)
            small = ", small" if plant.small else ""
            print(
                f"{directory.name} case {case}, {family} ({plant.kind}{small}): said {record['verdict']}, right is "
                f"{' or '.join(record['right'])}; {sum(record['seconds'].values()):.1f} s",
                flush=True,
            )


def tiny_model(directory: Path) -> None:
    """Writes a small decoder with random weights that reads the haystacks' vocabulary."""
    config = DecoderConfig(
        contexts.VOCAB_SIZE,
        16,
        16,
        1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        tie_embeddings=True,
    )
    model = Decoder(config, rngs=nnx.Rngs(0))
    save_llama(directory, model, llama_config(model, base=200.0, trained_length=192))
    (directory / "training.json").write_text("{}\n")


if __name__ == "__main__":
    app.run(main)
