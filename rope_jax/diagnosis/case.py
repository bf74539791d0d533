"""The case from model to verdict: fits the biases, runs the cells, and judges every retrofit that is asked about."""

import dataclasses
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from rope_jax import __version__, scaling
from rope_jax.biases import Bias, alibi_paper, bucket_starts
from rope_jax.diagnosis import attribution, fitting, intervals
from rope_jax.diagnosis.arms import Arms
from rope_jax.diagnosis.attribution import Symptom, Used
from rope_jax.diagnosis.cell_runs import CellRuns, Reach, Scores
from rope_jax.diagnosis.cells import UNCHANGED, Cell, CellSchemes, Option, corners, options
from rope_jax.diagnosis.intervals import Estimate
from rope_jax.diagnosis.losses import LossProgram
from rope_jax.diagnosis.scalings import TRANSFORMS, scaling_rule
from rope_jax.diagnosis.subject import Subject
from rope_jax.diagnosis.verdict import Margins, Verdict, decide
from rope_jax.errors import InputError
from rope_jax.rules import Rule

Progress = Callable[[str, int, int], None]  # stage, done, total

BIASES = ("none", "alibi", "alibi_star", "t5")
SCALINGS = ("none", "ntk", *TRANSFORMS)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked.

    Attributes:
      status_quos: the retrofits to judge.
      transforms: what option 3 may scale by.
      full: whether every scaling x bias x temperature is run, not only what the verdicts need.
      margins: what is too little to matter.
      slopes: multiplier of ALiBi's paper slopes in the bias `alibi`.
      num_buckets: T5 buckets.
      max_distance: T5's largest told-apart distance, tokens.
      fit_steps: Adam steps of the T5 table.
      seed: of the fit's order.
    """

    status_quos: tuple[Cell, ...] = (Cell("ntk", "alibi"), Cell("ntk", "alibi_star"), Cell("ntk", "t5"))
    transforms: tuple[str, ...] = TRANSFORMS
    full: bool = False
    margins: Margins = dataclasses.field(default_factory=Margins)
    slopes: float = 1.0
    num_buckets: int = 32
    max_distance: int = 128
    fit_steps: int = 60
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class FittedBiases:
    """What was fitted for one model, all on text that is not evaluated and no longer than the trained length.

    Attributes:
      biases: by name, None for none.
      star: how ALiBi's largest harmless multiplier was found, or None.
      table: T5's table, or None.
    """

    biases: Mapping[str, Bias | None]
    star: fitting.Multiplier | None
    table: fitting.FittedTable | None


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """One retrofit, judged.

    Attributes:
      status_quo: what is deployed.
      scores: of it, one a model.
      symptom: what is wrong with it.
      verdict: what to do.
      shapley: how the lost precision divides between scaling and bias, or None where one of them is missing.
    """

    status_quo: Cell
    scores: Sequence[Scores]
    symptom: Symptom | None
    verdict: Verdict
    shapley: Mapping[str, Estimate] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """The whole result.

    Attributes:
      subjects: the models and their items.
      settings: what was asked.
      used: probes that passed their gate.
      fitted: biases, one a model.
      cells: scores of every cell that was run, one a model.
      judgements: one a status quo.
      omitted: scalings that do not compose with the config's own, and why.
      compilations: programs compiled for one model's cells.
      seconds: wall time by stage.
      versions: of what ran.
    """

    subjects: Sequence[Subject]
    settings: Settings
    used: Used
    fitted: Sequence[FittedBiases]
    cells: Mapping[Cell, Sequence[Scores]]
    judgements: Sequence[Judgement]
    omitted: Mapping[str, str]
    compilations: int
    seconds: Mapping[str, float]
    versions: Mapping[str, str]


def rules_of(factor: float, trained_length: int) -> dict[str, Rule]:
    """Returns the rule of every scaling; YaRN without its temperature, which cells turn on by themselves."""
    rules: dict[str, Rule] = {}
    for name in SCALINGS:
        rule = scaling_rule(name, factor=factor, original_length=trained_length)
        assert isinstance(rule, Rule)
        rules[name] = rule
    rules["yarn"] = scaling.yarn(factor=factor, original_length=trained_length, attention_factor=1.0)
    return rules


def run_case(
    subjects: Sequence[Subject],
    settings: Settings,
    *,
    store: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Case:
    """Returns the case of one or several models of one kind, with the same items.

    Args:
      subjects: models that differ in their weights only.
      settings: see `Settings`.
      store: directory of finished cells, so that a run that was cut off goes on; None for none.
      progress: called as work proceeds.

    Raises:
      InputError: if a status quo names a scaling or bias that there is not, or the lengths contradict each other.
    """
    _check(subjects, settings)
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    needed = _needed(settings)
    fitted, makers, runs = [], [], []
    for number, subject in enumerate(subjects, 1):
        progress("fitting biases", number, len(subjects))
        arms = _arms(subject, settings)
        fitted.append(fit_biases(subject, arms, settings, {cell.bias for cell in needed}))
        makers.append(CellSchemes(arms, fitted[-1].biases, subject.factor))
        runs.append(CellRuns(subject, store=store))
    kept, omitted = makers[0].arms.meaningful()
    seconds["fitting"] = time.perf_counter() - started
    started = time.perf_counter()
    needed = [cell for cell in needed if cell.scaling in kept]
    cells: dict[Cell, list[Scores]] = {}
    for number, cell in enumerate(needed, 1):
        progress(str(cell), number, len(needed))
        cells[cell] = [run(maker(cell)) for run, maker in zip(runs, makers, strict=True)]
    seconds["cells"] = time.perf_counter() - started
    used = attribution.gated(cells[UNCHANGED], gate=settings.margins.gate)
    judgements = [
        judge(status_quo, cells, used, settings) for status_quo in settings.status_quos if status_quo in cells
    ]
    return Case(
        subjects=subjects,
        settings=settings,
        used=used,
        fitted=fitted,
        cells=cells,
        judgements=judgements,
        omitted=omitted,
        compilations=runs[0].compilations,
        seconds=seconds,
        versions={"rope_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
    )


def judge(
    status_quo: Cell,
    cells: Mapping[Cell, Sequence[Scores]],
    used: Used,
    settings: Settings,
    *,
    deployed: Sequence[Scores] | None = None,
) -> Judgement:
    """Returns the judgement of one status quo.

    Args:
      status_quo: the scheme that is meant to run.
      cells: scores of it, of the unchanged model, and of its options and corners; options not run are left out.
      used: probes that passed their gate.
      settings: margins and transforms.
      deployed: scores of what really runs, where that is not the exact implementation of the status quo.
    """
    scores = deployed or cells[status_quo]
    exact = cells[status_quo] if deployed else None
    changed: dict[Option, Sequence[Scores]] = {
        option: cells[option.cell]
        for option in options(status_quo, transforms=settings.transforms)
        if option.cell in cells
    }
    learned = bool(used.precision) and used.retrieval
    seen = attribution.symptom(scores, cells[UNCHANGED], used) if learned else None
    square = {parts: cells[cell] for parts, cell in corners(status_quo).items() if cell in cells}
    return Judgement(
        status_quo,
        scores,
        seen,
        decide(scores, changed, seen, used, margins=settings.margins, exact=exact),
        attribution.shapley(square, used)
        if learned and len({*corners(status_quo).values()}) == len(square) == 4
        else None,
    )


def fit_biases(subject: Subject, arms: Arms, settings: Settings, names: set[str]) -> FittedBiases:
    """Returns the biases called `names`, fitted where they have something to fit, for one model.

    A* is the largest multiplier that costs no more than the margin on the unscaled model; T5's table is fitted under
    the base scaling that it is to go with, from zeros, the weights frozen.
    """
    heads = subject.checkpoint.config.num_heads
    biases: dict[str, Bias | None] = {"none": None}
    star = table = None
    if "alibi" in names:
        biases["alibi"] = alibi_paper(heads, multiplier=settings.slopes)
    if "alibi_star" in names:
        star = fitting.largest_multiplier(
            LossProgram(subject.checkpoint.model),
            lambda value: arms.schemes("none", alibi_paper(heads, multiplier=value)),
            subject.fit_text,
            counted=subject.fit_counted,
            margin=settings.margins.short_cost,
        )
        biases["alibi_star"] = alibi_paper(heads, multiplier=star.value)
    if "t5" in names:
        table = fitting.fit_t5_table(
            subject.checkpoint.model,
            lambda bias: arms.schemes("ntk", bias),
            subject.fit_text,
            counted=subject.fit_counted,
            num_heads=heads,
            num_buckets=settings.num_buckets,
            max_distance=settings.max_distance,
            steps=settings.fit_steps,
            seed=settings.seed,
        )
        biases["t5"] = table.bias(max_distance=settings.max_distance)
    return FittedBiases(biases, star, table)


def _arms(subject: Subject, settings: Settings) -> Arms:
    biases = {cell.bias for cell in _needed(settings)}
    offsets = bucket_starts(settings.num_buckets, settings.max_distance)[-1] if "t5" in biases else 0
    return Arms(
        positions=subject.checkpoint.positions,
        rules=rules_of(subject.factor, subject.trained_length),
        layout=subject.checkpoint.layout,
        phase="exact",
        length=subject.target_length,
        max_offset=offsets,
    )


def _needed(settings: Settings) -> list[Cell]:
    """Returns the cells to run, the unchanged model first, in an order that does not depend on anything else."""
    cells = {UNCHANGED: None}
    for status_quo in settings.status_quos:
        cells |= dict.fromkeys([status_quo, *corners(status_quo).values()])
        cells |= dict.fromkeys(option.cell for option in options(status_quo, transforms=settings.transforms))
    if settings.full:
        biases = dict.fromkeys(["none", *(cell.bias for cell in settings.status_quos)])
        cells |= {Cell(s, b, t): None for s in SCALINGS for b in biases for t in (False, True)}
    return list(cells)


def _check(subjects: Sequence[Subject], settings: Settings) -> None:
    for cell in settings.status_quos:
        if cell.scaling not in SCALINGS or cell.bias not in BIASES:
            raise InputError(f"status quo {cell}: scalings are {', '.join(SCALINGS)}; biases are {', '.join(BIASES)}")
    for subject in subjects:
        if subject.target_length <= subject.trained_length:
            raise InputError(
                f"target length {subject.target_length} must be above the trained length {subject.trained_length}"
            )
    lengths = {(subject.trained_length, subject.target_length) for subject in subjects}
    if len(lengths) > 1:
        raise InputError(f"models of one case must share their lengths, got {sorted(lengths)}")


def gate_measures(case: Case, judgement: Judgement) -> dict[str, Estimate]:
    """Returns what a gate may ask of a status quo: each a cost against the unchanged model, positive is worse.

    `short_cost` and `long_cost` are nats a token of text below and beyond the trained length; `short_loss` is accuracy
    at the trained length; `precision_drop` and `retrieval_drop` are nats of log-odds at the target length against the
    unchanged model at the trained one.
    """
    if judgement.symptom is None:
        before, after = case.cells[UNCHANGED], judgement.scores
        texts: dict[str, Reach] = {"short_cost": "short", "long_cost": "long"}
        return {
            name: intervals.clustered(attribution.text_loss(after, reach) - attribution.text_loss(before, reach))
            for name, reach in texts.items()
        }
    change = attribution.effect(judgement.scores, case.cells[UNCHANGED], case.used, confidence=0.95)
    gain = change.long_gain
    return {
        "short_cost": change.short_cost,
        "long_cost": Estimate(-gain.mean, _minus(gain.high), _minus(gain.low)),
        "short_loss": change.short_loss,
        "precision_drop": judgement.symptom.precision_drop,
        "retrieval_drop": judgement.symptom.retrieval_drop,
    }


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
