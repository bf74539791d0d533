"""Runs the diagnosis: one checkpoint, one text, every scaling x bias, and everything needed to read the result."""

import contextlib
import dataclasses
import functools
import itertools
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rope_jax import __version__
from rope_jax.biases import Bias, alibi_paper, bucket_starts, t5_bias
from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.checkpoints.layout import LayoutLoss, layout_by_loss, require_layout
from rope_jax.checkpoints.positions import PositionConfig
from rope_jax.diagnosis.evaluation import factorial
from rope_jax.diagnosis.evaluation.arms import Arms
from rope_jax.diagnosis.evaluation.folds import FitSettings, Fold, fit, fit_texts
from rope_jax.diagnosis.evaluation.kept_losses import KeptLosses
from rope_jax.diagnosis.evaluation.scalings import ARMS, BIAS_ARMS, scaling_rule
from rope_jax.diagnosis.tasks.text import Text, chunks
from rope_jax.errors import CheckpointError, InputError
from rope_jax.length_rules import at_length
from rope_jax.phases import Phase
from rope_jax.rotation import Layout
from rope_jax.rules import Rule
from rope_jax.statistics import intervals

_LAYOUT_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Attributes:
      target_length: tokens of an evaluated row.
      trained_length: `L`; where None the config's, up to which a declared scaling counts as trained.
      margin: short-context cost that A* may have, nats a token.
      num_buckets: T5 buckets.
      max_distance: T5's largest told-apart distance.
      fit_steps: Adam steps of the T5 table.
      t5_table: a given table `[heads, buckets]` in place of a fitted one.
      scalings: scaling arms to run; "none" is always one.
      biases: bias arms to run; "none" is always one.
      phase: "exact" or "float32".
      layout: overrides the checkpoint's layout of rotary pairs.
      seed: of the fit's order and the resampling.
    """

    target_length: int
    trained_length: int | None = None
    margin: float = 0.02
    num_buckets: int = 32
    max_distance: int = 128
    fit_steps: int = 60
    t5_table: np.ndarray | None = None
    scalings: Sequence[str] = ARMS
    biases: Sequence[str] = BIAS_ARMS
    phase: Phase = "exact"
    layout: Layout | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The whole result; `reports.text_records` writes it as JSON, CSV and text, `reports.text_report` as a page.

    Attributes:
      checkpoint: what was diagnosed.
      settings: what was asked for.
      text: the evaluated text.
      trained_length: `L` as used.
      factor: `s`, target over trained length.
      rules: the rule of each scaling arm that was run.
      omitted: arms that were not run, and why.
      layout: losses under both layouts of the rotary pairs.
      findings: what a reader must know beside the numbers, the config's own findings first.
      folds: what was fitted for which rows.
      bins: half-open position bins of the table.
      curve_bins: finer ones, for plots.
      cells: every cell's result in `bins`.
      curves: every cell's loss in `curve_bins`.
      effects: main effects and interactions, for "short" and "long".
      interval_method: how intervals were made, in words.
      compilations: programs compiled for all cells together.
      seconds: wall time by stage.
      versions: of what ran.
    """

    checkpoint: Checkpoint
    settings: Settings
    text: Text
    trained_length: int
    factor: float
    rules: Mapping[str, Rule]
    omitted: Mapping[str, str]
    layout: LayoutLoss
    findings: tuple[str, ...]
    folds: tuple[Fold, ...]
    bins: list[tuple[int, int]]
    curve_bins: list[tuple[int, int]]
    cells: Mapping[factorial.Cell, factorial.CellResult]
    curves: Mapping[factorial.Cell, list[intervals.Estimate]]
    effects: Mapping[str, factorial.Effects]
    interval_method: str
    compilations: int
    seconds: Mapping[str, float]
    versions: Mapping[str, str]


Progress = Callable[[str, int, int], None]  # stage, done, total


def measure(
    checkpoint: Checkpoint,
    text: Text,
    settings: Settings,
    *,
    fit_tokens: np.ndarray | None = None,
    store: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Measurement:
    """Returns the diagnosis of `checkpoint` on `text`.

    Args:
      checkpoint: the model.
      text: evaluated rows; its leftover is fitted on when there is enough of it.
      settings: see `Settings`.
      fit_tokens: other text to fit on, `[tokens]`; parts that occur in the evaluated rows are left out. Without it
        and without leftover, the rows are split in two, and each half is fitted for the other (cross-fitting).
      store: directory of finished losses and fits, so that a run that was cut off goes on; None for none.
      progress: called as work proceeds.

    Raises:
      InputError: if lengths contradict each other, or there is no disjoint text to fit on.
      CheckpointError: if the model reads this text far better under the other layout of its rotary pairs, or
        overflows float32.
    """
    seconds: dict[str, float] = {}
    positions, config = checkpoint.positions, checkpoint.config
    trained_length = settings.trained_length or _trained_length(positions)
    _check_lengths(settings.target_length, trained_length)
    max_offset = _max_offset(settings) if "t5" in settings.biases else 0
    arms = Arms(
        positions=positions,
        rules=_rules(settings, trained_length),
        layout=settings.layout or checkpoint.layout,
        phase=settings.phase,
        length=settings.target_length,
        max_offset=max_offset,
    )
    rules, omitted = arms.meaningful()

    with _timed(seconds, "layout check"):
        progress("checking the layout of the rotary pairs on text", 0, 1)
        head = chunks(text.rows, trained_length)[:_LAYOUT_ROWS]
        layout = layout_by_loss(checkpoint.model, jnp.asarray(head), arms.schemes("none", None))
        if settings.layout is None:  # who names a layout gets it, and the finding beside the numbers
            require_layout(layout, arms.layout, origin=checkpoint.origin)

    program = KeptLosses(checkpoint, store=store)
    needs_fit = [arm for arm in ("alibi_star", "t5") if arm in settings.biases]
    if settings.t5_table is not None:
        needs_fit = [arm for arm in needs_fit if arm != "t5"]
    fitted = FitSettings(
        names=needs_fit,
        margin=settings.margin,
        num_buckets=settings.num_buckets,
        max_distance=settings.max_distance,
        steps=settings.fit_steps,
        seed=settings.seed,
    )
    folds: list[Fold] = []
    with _timed(seconds, "fitting"):
        for rows, source, pieces in fit_texts(text, fit_tokens, trained_length) if needs_fit else []:
            folds.append(fit(checkpoint, program, arms, fitted, rows, source, pieces, store=store, progress=progress))

    biases = _bias_of_every_row(settings, folds, config.num_heads, len(text.rows))
    cells_program = KeptLosses(checkpoint, store=store, by_layer=True)
    total, started = len(rules) * len(biases) * len(text.rows), 0

    def on_start(what: str) -> None:
        nonlocal started
        progress(what, started, total)
        cells_program.tell = functools.partial(_told, progress, what, started, total)
        started += 1

    with _timed(seconds, "cells"):
        losses = factorial.run_cells(
            cells_program, arms, text.rows, scalings=list(rules), biases=biases, on_start=on_start
        )
        progress("all rows", total, total)
    for (scaling, bias), loss in losses.items():
        if not np.isfinite(loss).all():
            raise CheckpointError(f"{checkpoint.origin}: scaling {scaling} with bias {bias} has losses beyond float32")
    bins = factorial.position_bins(trained_length, settings.target_length)
    curve_bins = _curve_bins(settings.target_length)
    cells = factorial.cell_results(losses, trained_length=trained_length, bins=bins)
    return Measurement(
        checkpoint=checkpoint,
        settings=settings,
        text=text,
        trained_length=trained_length,
        factor=settings.target_length / trained_length,
        rules=rules,
        omitted=omitted,
        layout=layout,
        findings=_findings(checkpoint, settings, layout),
        folds=tuple(folds),
        bins=bins,
        curve_bins=curve_bins,
        cells=cells,
        curves={
            cell: [intervals.estimate(loss[:, low:high].mean(axis=1, dtype=np.float64)) for low, high in curve_bins]
            for cell, loss in losses.items()
        },
        effects=factorial.effects(losses, trained_length=trained_length),
        interval_method=intervals.method(len(text.rows)),
        compilations=cells_program.compilations,
        seconds=seconds,
        versions={"rope_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
    )


def _trained_length(positions: PositionConfig) -> int:
    """Weights shipped with a scaling were trained, or at least tuned, with it up to the length they declare."""
    rule = positions.main_group.rule
    plain = isinstance(rule, Rule) and rule.name == "none"
    return positions.original_length if plain else positions.declared_length


def _findings(checkpoint: Checkpoint, settings: Settings, layout: LayoutLoss) -> tuple[str, ...]:
    """Returns what a reader must know beside the numbers."""
    findings = list(checkpoint.positions.findings)
    rule = checkpoint.positions.main_group.rule
    if rule.name != "none":
        findings.append(f"scaling none is the model as shipped, with {rule.name}: every other arm comes on top of it")
    if settings.layout is not None and layout.favours not in (None, settings.layout):
        findings.append(
            f"WRONG LAYOUT: the text is read far better as {layout.favours} (loss {layout.half:.3f} as half, "
            f"{layout.interleaved:.3f} as interleaved) than in the layout that was asked for, {settings.layout}"
        )
    if layout.undecided:
        used = settings.layout or checkpoint.layout
        findings.append(f"LAYOUT NOT CHECKED: {layout.undecided}; the weights are taken to be {used}, as stated")
    if any(arm in settings.biases for arm in ("alibi_star", "t5")):
        findings.append("intervals take fitted biases as given: what another fitting text would change is not in them")
    return tuple(findings)


def _check_lengths(target_length: int, trained_length: int) -> None:
    if trained_length < 32:
        raise InputError(f"a trained length of {trained_length} is too short to fit biases on; at least 32 is needed")
    if target_length <= trained_length:
        raise InputError(f"target_length {target_length} must be above the trained length {trained_length}")


def _rules(settings: Settings, trained_length: int) -> dict[str, Rule]:
    """Returns the rule of every scaling arm that was asked for, and of the unchanged model."""
    factor = settings.target_length / trained_length
    return {
        name: at_length(scaling_rule(name, factor=factor, original_length=trained_length), settings.target_length)
        for name in ARMS
        if name == "none" or name in settings.scalings
    }


def _max_offset(settings: Settings) -> int:
    buckets = settings.num_buckets if settings.t5_table is None else settings.t5_table.shape[1]
    return bucket_starts(buckets, settings.max_distance)[-1]


def _bias_of_every_row(
    settings: Settings, folds: Sequence[Fold], num_heads: int, count: int
) -> dict[str, list[Bias | None]]:
    biases: dict[str, list[Bias | None]] = {"none": [None] * count}
    for name in BIAS_ARMS:
        if name not in settings.biases or name == "none":
            continue
        if name == "alibi":
            biases[name] = [alibi_paper(num_heads)] * count
        elif name == "t5" and settings.t5_table is not None:
            biases[name] = [t5_bias(settings.t5_table, max_distance=settings.max_distance)] * count
        else:
            of_row: list[Bias | None] = [None] * count
            for fold in folds:
                bias = _fitted(name, fold, num_heads, settings.max_distance)
                for row in fold.rows:
                    of_row[row] = bias
            biases[name] = of_row
    return biases


def _fitted(name: str, fold: Fold, num_heads: int, max_distance: int) -> Bias:
    if name == "alibi_star":
        assert fold.multiplier is not None
        return alibi_paper(num_heads, multiplier=fold.multiplier.value)
    assert fold.table is not None
    return fold.table.bias(max_distance=max_distance)


def _curve_bins(length: int, count: int = 20) -> list[tuple[int, int]]:
    """Bins for plots: even in the logarithm, but none so short that its mean is one story's noise."""
    edges = np.unique(np.round(np.geomspace(max(length // 128, 1), length - 1, count)).astype(int))
    return [(int(low), int(high)) for low, high in itertools.pairwise([0, *edges])]


def _told(progress: Progress, stage: str, done: int, total: int, what: str) -> None:
    progress(f"{stage}: {what}", done, total)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
