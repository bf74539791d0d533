"""Biases fitted for rows of text, each group of rows on text that shares nothing with it."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rope_jax.biases import alibi_paper
from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.diagnosis.evaluation import fitting, kept_files
from rope_jax.diagnosis.evaluation.arms import Arms
from rope_jax.diagnosis.evaluation.kept_losses import KeptLosses
from rope_jax.diagnosis.tasks.text import Rows, Text, chunks, without_overlap
from rope_jax.errors import InputError

_CHUNKS = 64  # that A* is fitted on at most


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """What is fitted, and how.

    Attributes:
      names: biases to fit, among "alibi_star" and "t5".
      margin: short-context cost that A* may have, nats a token.
      num_buckets: T5 buckets.
      max_distance: T5's largest told-apart distance.
      steps: Adam steps of the T5 table.
      seed: of the order of the chunks.
    """

    names: Sequence[str]
    margin: float
    num_buckets: int
    max_distance: int
    steps: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Fold:
    """Rows that share fitted biases, and what those were fitted on.

    Attributes:
      rows: indices of the evaluated rows.
      source: the text that was fitted on, in words.
      chunks: chunks of that text.
      multiplier: ALiBi's A*, or None where the arm was not run.
      table: the T5 table, or None where it was given or not run.
    """

    rows: tuple[int, ...]
    source: str
    chunks: int
    multiplier: fitting.Multiplier | None
    table: fitting.FittedTable | None


def fit_texts(
    text: Text, fit_tokens: np.ndarray | None, trained_length: int
) -> list[tuple[tuple[int, ...], str, Rows]]:
    """Returns, for each group of rows, text that shares nothing with them, its name, and its chunks.

    Args:
      text: evaluated rows, and what is left over.
      fit_tokens: other text to fit on, `[tokens]`, or None.
      trained_length: tokens of a chunk.

    Raises:
      InputError: if there is no such text.
    """
    count = len(text.rows)
    every = tuple(range(count))
    if fit_tokens is not None:
        candidates = chunks(fit_tokens, trained_length)
        kept = without_overlap(candidates, text.rows)
        if not len(kept):
            raise InputError(f"the fitting text has no chunk of {trained_length} tokens that is not also evaluated")
        return [(every, f"given text, {len(candidates) - len(kept)} overlapping chunks left out", kept)]
    leftover = without_overlap(chunks(text.leftover, trained_length), text.rows)
    if len(leftover) >= 16:
        return [(every, "the rest of the text", leftover)]
    if count < 2:
        raise InputError("one row leaves no disjoint text to fit A* and T5 on: give more rows or a fitting text")
    first, second = every[: count // 2], every[count // 2 :]
    halves = []
    for judged, other in ((first, second), (second, first)):
        named = f"rows {other[0]}-{other[-1]}"
        kept = without_overlap(chunks(text.rows[list(other)], trained_length), text.rows[list(judged)])
        if not len(kept):
            raise InputError(f"{text.origin}: {named} repeat the rows that are judged: no disjoint text to fit on")
        halves.append((judged, f"{named} (cross-fitting)", kept))
    return halves


def fit(
    checkpoint: Checkpoint,
    program: KeptLosses,
    arms: Arms,
    settings: FitSettings,
    rows: tuple[int, ...],
    source: str,
    pieces: Rows,
    *,
    store: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Fold:
    """Returns what was fitted for `rows`.

    Args:
      checkpoint: the model, its weights frozen.
      program: its losses.
      arms: makes the schemes; fitted without a scaling.
      settings: what is fitted.
      rows: indices of the evaluated rows.
      source: the text that is fitted on, in words.
      pieces: its chunks.
      store: directory of finished fits; None for none.
      progress: called as work proceeds.
    """
    heads = checkpoint.config.num_heads
    multiplier = table = None
    if "alibi_star" in settings.names:

        def on_start(value: float, done: int, total: int) -> None:
            progress(f"fitting A* on {source}, multiplier {value:.4g}, chunks", done, total)

        multiplier = fitting.largest_multiplier(
            program,
            lambda value: arms.schemes("none", alibi_paper(heads, multiplier=value)),
            pieces[:_CHUNKS],
            margin=settings.margin,
            on_start=on_start,
        )
    if "t5" in settings.names:
        table = _table(checkpoint, program, arms, settings, source, pieces, store, progress)
    return Fold(rows, source, len(pieces), multiplier, table)


def _table(
    checkpoint: Checkpoint,
    program: KeptLosses,
    arms: Arms,
    settings: FitSettings,
    source: str,
    pieces: Rows,
    store: Path | None,
    progress: Callable[[str, int, int], None],
) -> fitting.FittedTable:
    told = {
        "table": kept_files.made_with(checkpoint),
        "settings": [settings.num_buckets, settings.max_distance, settings.steps, settings.seed],
    }
    scheme = arms.schemes("none", None)
    key = kept_files.digest(told, scheme, pieces)
    file = None if store is None else store / f"table-{key[:24]}.npz"
    kept = None if file is None else kept_files.read_arrays(file, key)
    if kept is not None:
        return fitting.FittedTable(kept["table"], int(kept["reached"]), float(kept["before"]), float(kept["after"]))
    unfinished = None if store is None else store / f"table-{key[:24]}-steps.npz"

    def on_step(state: fitting.FitState) -> None:
        progress(f"fitting T5 on {source}, steps", state.steps, settings.steps)
        if unfinished is not None:
            arrays = {f"leaf-{at}": leaf for at, leaf in enumerate(state.leaves)}
            kept_files.write_arrays(unfinished, key, {"steps": np.asarray(state.steps), **arrays})

    resume = None if unfinished is None else _resumed(unfinished, key)
    progress(f"fitting T5 on {source}, steps", 0 if resume is None else resume.steps, settings.steps)
    found = fitting.fit_t5_table(
        program,
        checkpoint.model,
        lambda bias: arms.schemes("none", bias),
        pieces,
        num_heads=checkpoint.config.num_heads,
        num_buckets=settings.num_buckets,
        max_distance=settings.max_distance,
        steps=settings.steps,
        seed=settings.seed,
        resume=resume,
        on_step=on_step,
    )
    if file is not None and unfinished is not None:
        kept_files.write_arrays(file, key, {name: np.asarray(x) for name, x in dataclasses.asdict(found).items()})
        unfinished.unlink(missing_ok=True)
    return found


def _resumed(file: Path, key: str) -> fitting.FitState | None:
    kept = kept_files.read_arrays(file, key)
    if kept is None:
        return None
    return fitting.FitState(int(kept["steps"]), tuple(kept[f"leaf-{at}"] for at in range(len(kept) - 1)))
