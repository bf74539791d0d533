"""`rope-jax diagnose CHECKPOINT --text=FILE`: every scaling x bias on a checkpoint and its text."""

import dataclasses
import json
import os
import pathlib
import shlex
import sys

from absl import flags as absl_flags

from rope_jax.commands import probe_case
from rope_jax.commands.output import STORE, checked_out, checked_store, write_all
from rope_jax.commands.progress import Progress
from rope_jax.diagnosis.evaluation import scalings
from rope_jax.errors import InputError

USAGE = "rope-jax diagnose CHECKPOINT --text=FILE --target_length=N --out=DIR [flags]"

FLAGS = (
    "text", "trained_length", "fit_text", "t5_table", "scalings", "biases", "phase", "layout", "separator",
)  # fmt: skip
"""Those that only this reads."""

_ROWS = 8
_FILES = ("diagnosis.json", "diagnosis.csv", "diagnosis.txt", "diagnosis.html")


def run(arguments: list[str], flags: absl_flags.FlagValues) -> int:
    """Runs the command; returns the exit status."""
    out, text_path = _checked(arguments, flags)

    with Progress("rope-jax diagnose") as progress:
        progress("starting", 0, 1)
        # JAX is imported only once the flags are known to be good.
        measured, ready = _measured(arguments[0], flags, text_path, out / STORE, progress)

    from rope_jax.diagnosis.report.text_records import csv_text, json_record, table_text
    from rope_jax.diagnosis.report.text_report import html_page

    record = json.dumps(json_record(measured), allow_nan=False)
    table = table_text(measured)
    command = shlex.join(["rope-jax", *sys.argv[1:]]) if sys.argv[1:2] == ["diagnose"] else USAGE
    page = html_page(measured, command=command)
    write_all(out, dict(zip(_FILES, (record + "\n", csv_text(measured), table, page), strict=True)))
    print(record if flags.json else table + f"\nwritten to {out}: {', '.join(_FILES)}")
    if ready.subject is not None:
        return probe_case.conclude([ready.subject], flags, out, silent=flags.json)
    if flags.fail_if is None:
        return 0
    from rope_jax.diagnosis.verdict import gates

    if not flags.json:
        print(f"undecided: --fail_if is of a status quo, and none was judged; {ready.finding}")
    return gates.UNDECIDED


def _measured(origin: str, flags: absl_flags.FlagValues, text_path: pathlib.Path, store: pathlib.Path, progress):
    """Returns the measurement, and whether the checkpoint answers probes."""
    from rope_jax.checkpoints.loading import load_checkpoint
    from rope_jax.diagnosis.evaluation.kept_files import what_is_kept
    from rope_jax.diagnosis.evaluation.language_subject import readiness
    from rope_jax.diagnosis.evaluation.measurement import Settings, measure
    from rope_jax.diagnosis.tasks.text import chunks, read_chunks, read_text, without_overlap
    from rope_jax.diagnosis.verdict.verdict import Margins

    progress(f"reading {origin}", 0, 1)
    checkpoint = load_checkpoint(origin)
    vocabulary = checkpoint.config.vocab_size
    progress(f"reading {text_path}", 0, 1)
    text = read_text(
        text_path,
        length=flags.target_length,
        vocab_size=vocabulary,
        tokenizer_file=checkpoint.tokenizer_file,
        max_rows=flags.rows or _ROWS,
        separator=flags.separator,
    )
    fit_tokens = None
    if flags.fit_text is not None:
        progress(f"reading {flags.fit_text}", 0, 1)
        fit_tokens = read_chunks(
            pathlib.Path(flags.fit_text),
            length=flags.trained_length or checkpoint.positions.original_length,
            vocab_size=vocabulary,
            tokenizer_file=checkpoint.tokenizer_file,
            max_chunks=512,
            separator=flags.separator,
        )
    settings = Settings(
        target_length=flags.target_length,
        trained_length=flags.trained_length,
        margin=flags.margin,
        num_buckets=flags.num_buckets,
        max_distance=flags.max_distance,
        fit_steps=flags.fit_steps,
        t5_table=_table(flags.t5_table, checkpoint.config.num_heads),
        scalings=flags.scalings,
        biases=flags.biases,
        phase=flags.phase,
        layout=flags.layout,
        seed=flags.seed,
    )
    kept = what_is_kept(store)
    if kept is not None:
        print(f"rope-jax diagnose: {kept}", file=sys.stderr)
    measured = measure(checkpoint, text, settings, fit_tokens=fit_tokens, store=store, progress=progress)

    progress("asking questions in English at the trained length", 0, 1)
    leftover = chunks(text.leftover if fit_tokens is None else fit_tokens, measured.trained_length)
    ready = readiness(
        checkpoint,
        text.rows,
        without_overlap(leftover, text.rows),
        trained_length=measured.trained_length,
        rows=flags.contexts,
        gate=Margins().gate,
        seed=flags.seed,
    )
    return dataclasses.replace(measured, findings=(*measured.findings, ready.finding)), ready


def _checked(arguments: list[str], flags: absl_flags.FlagValues) -> tuple[pathlib.Path, pathlib.Path]:
    if len(arguments) != 1:
        raise InputError(f"one checkpoint is needed, got {len(arguments)}: {USAGE}")
    probe_case.check_request(flags)
    for name in ("text", "target_length", "out"):
        if getattr(flags, name) in (None, ""):
            raise InputError(f"--{name} is required")
    for name in ("target_length", "trained_length", "rows", "fit_steps", "num_buckets", "max_distance"):
        value = getattr(flags, name)
        if value is not None and not 1 <= value < 2**24:
            raise InputError(f"--{name} must be from 1 to {2**24 - 1}, got {value}")
    if not 0 <= flags.margin < float("inf"):
        raise InputError(f"--margin must be a finite number, 0 or more, got {flags.margin}")
    for name, known in (("scalings", scalings.ARMS), ("biases", scalings.BIAS_ARMS)):
        for value in getattr(flags, name):
            if value not in known:
                raise InputError(f"--{name}: {value!r} is none of {', '.join(known)}")
    if not 0 <= flags.seed < 2**32:
        raise InputError(f"--seed must be from 0 to {2**32 - 1}, got {flags.seed}")
    if not flags.separator:
        raise InputError("--separator must not be empty: every letter would be a document")
    if flags.t5_table is not None and "t5" not in flags.biases:
        raise InputError(f"--t5_table={flags.t5_table}: --biases has no t5 that would use it")
    for name in ("text", "fit_text", "t5_table"):
        path = getattr(flags, name)
        if path is not None and not os.path.isfile(path):
            raise InputError(f"--{name}: {path}: {'not a regular file' if os.path.lexists(path) else 'no such file'}")
    inputs = (arguments[0], flags.text, flags.fit_text, flags.t5_table)
    out = checked_out(pathlib.Path(flags.out), _FILES, inputs=inputs)
    checked_store(out)
    return out, pathlib.Path(flags.text)


def _table(path: str | None, num_heads: int):
    if path is None:
        return None
    import numpy as np

    from rope_jax.diagnosis.tasks.array_files import read_npy

    table = read_npy(pathlib.Path(path))
    needed = f"--t5_table: {path}: needs finite floats [{num_heads} heads, buckets]"
    if table.ndim != 2 or table.shape[0] != num_heads or table.dtype.kind != "f":
        raise InputError(f"{needed}, got {table.dtype} {table.shape}")
    wrong = np.argwhere(~(abs(table) <= np.finfo(np.float32).max))
    if len(wrong):
        at = tuple(map(int, wrong[0]))
        raise InputError(f"{needed}, got {table[at]} at {list(at)}")
    return table.astype(np.float32)
