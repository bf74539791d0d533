"""`rope-jax diagnose`: runs every scaling x bias on a real checkpoint and real text, and writes what each costs."""

import functools
import json
import os
import pathlib
import shlex
import shutil
import sys
import tempfile
from typing import Any

from absl import flags as absl_flags

from rope_jax.diagnosis import scalings
from rope_jax.errors import InputError

SUMMARY = "measure on a checkpoint what every scaling and every bias costs short and gains long"
USAGE = "rope-jax diagnose CHECKPOINT --text=FILE --target_length=N --out=DIR [flags]"

_FILES = ("diagnosis.json", "diagnosis.csv", "diagnosis.txt", "diagnosis.html")


def define_flags(flag_values: absl_flags.FlagValues) -> None:
    """Declares the command's flags."""
    integer = functools.partial(absl_flags.DEFINE_integer, flag_values=flag_values)
    string = functools.partial(absl_flags.DEFINE_string, flag_values=flag_values)
    names = functools.partial(absl_flags.DEFINE_list, flag_values=flag_values)
    choice = functools.partial(absl_flags.DEFINE_enum, flag_values=flag_values)
    string("text", None, "A .npy of token rows, or UTF-8 text for the checkpoint's tokenizer.")
    integer("target_length", None, "Tokens of an evaluated row.")
    string("out", None, f"Directory for the result: {', '.join(_FILES)}.")
    integer("trained_length", None, "Tokens the model was trained on; default: the config's.")
    integer("rows", 8, "Rows evaluated at most.")
    string("fit_text", None, "Other text to fit A* and T5 on; default: what --text leaves over.")
    string("t5_table", None, "A .npy [heads, buckets] in place of a fitted T5 table.")
    integer("num_buckets", 32, "T5 buckets of a fitted table.")
    integer("max_distance", 128, "T5's largest told-apart distance, tokens.")
    integer("fit_steps", 60, "Adam steps of the T5 fit.")
    absl_flags.DEFINE_float(
        "margin", 0.02, "Short-context cost that A* may have, nats a token.", flag_values=flag_values
    )
    names("scalings", list(scalings.ARMS), "Scaling arms to run; none is always one.")
    names("biases", list(scalings.BIAS_ARMS), "Bias arms to run; none is always one.")
    choice("phase", "exact", ["exact", "float32"], "How angles are formed; float32 as peers do.")
    choice("layout", None, ["half", "interleaved"], "Layout of rotary pairs, even if the text contradicts it.")
    string("separator", "<|endoftext|>", "Between documents of a text.")
    integer("seed", 0, "Of the order in which the T5 fit sees its text.")


def run(arguments: list[str], flags: absl_flags.FlagValues) -> int:
    """Runs the command; returns the exit status."""
    out, text_path = _checked(arguments, flags)

    # JAX is imported only once the flags are known to be good.
    from rope_jax.checkpoints.loading import load_checkpoint
    from rope_jax.diagnosis.measurement import Settings, measure
    from rope_jax.diagnosis.records import csv_text, json_record, table_text
    from rope_jax.diagnosis.text import read_chunks, read_text

    checkpoint = load_checkpoint(arguments[0])
    vocabulary = checkpoint.config.vocab_size
    text = read_text(
        text_path,
        length=flags.target_length,
        vocab_size=vocabulary,
        tokenizer_file=checkpoint.tokenizer_file,
        max_rows=flags.rows,
        separator=flags.separator,
    )
    fit_tokens = None
    if flags.fit_text is not None:
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
    with _Progress() as progress:
        measured = measure(checkpoint, text, settings, fit_tokens=fit_tokens, progress=progress)

    from rope_jax.diagnosis.report import html_page

    record = json.dumps(json_record(measured), allow_nan=False)
    table = table_text(measured)
    command = shlex.join(["rope-jax", *sys.argv[1:]]) if sys.argv[1:2] == ["diagnose"] else USAGE
    page = html_page(measured, command=command)
    _write(out, dict(zip(_FILES, (record + "\n", csv_text(measured), table, page), strict=True)))
    print(record if flags.json else table + f"\nwritten to {out}: {', '.join(_FILES)}")
    return 0


def _checked(arguments: list[str], flags: absl_flags.FlagValues) -> tuple[pathlib.Path, pathlib.Path]:
    if len(arguments) != 1:
        raise InputError(f"one checkpoint is needed, got {len(arguments)}: {USAGE}")
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
            raise InputError(f"--{name}: {path}: no such file")
    return _checked_out(pathlib.Path(flags.out)), pathlib.Path(flags.text)


def _checked_out(out: pathlib.Path) -> pathlib.Path:
    """Returns `out` if files can be written into it, as far as that can be known without writing any."""
    # Unlike pathlib, os.path does not raise where a folder on the way may not be read or a name is too long.
    if os.path.lexists(out) and not os.path.isdir(out):
        raise InputError(f"--out: {out} is not a directory")
    parent = out if os.path.isdir(out) else out.absolute().parent
    if not os.path.isdir(parent):
        raise InputError(f"--out: cannot write into {parent}: no such directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"--out: cannot write into {parent}: permission denied")
    for name in _FILES:
        if os.path.isdir(out / name):
            raise InputError(f"--out: {out / name} is a directory, a file is to be written there")
    return out


def _table(path: str | None, num_heads: int):
    if path is None:
        return None
    import numpy as np

    from rope_jax.diagnosis.text import load_npy

    table = load_npy(pathlib.Path(path))
    largest = np.finfo(np.float32).max
    if table.ndim != 2 or table.shape[0] != num_heads or table.dtype.kind != "f" or not (abs(table) <= largest).all():
        raise InputError(
            f"--t5_table: {path}: needs finite floats [{num_heads} heads, buckets], got {table.dtype} {table.shape}"
        )
    return table.astype(np.float32)


class _Progress:
    """A bar on standard error, a new one whenever a stage begins."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> "_Progress":
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        import tqdm

        if self._bar is None or done == 1:
            self.__exit__()
            self._bar = tqdm.tqdm(total=total, file=sys.stderr, mininterval=0.5, leave=False)
        self._bar.set_description(stage, refresh=False)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _write(out: pathlib.Path, files: dict[str, str]) -> None:
    """Writes all files or none: they appear in `out` only once every one of them is on disk."""
    staging = None
    try:
        # Beside or inside `out`, so that a rename never crosses file systems.
        where = out if out.exists() else out.absolute().parent
        staging = pathlib.Path(tempfile.mkdtemp(prefix=".rope-jax-", dir=where))
        for name, content in files.items():
            # A path can hold bytes that are no text.
            (staging / name).write_text(content, encoding="utf-8", errors="backslashreplace")
        out.mkdir(exist_ok=True)
        for name in files:
            os.replace(staging / name, out / name)
    except OSError as error:
        raise InputError(f"--out: cannot write into {out}: {error.strerror}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
