"""The case from model to verdict: fits the biases, runs the cells, and judges every retrofit that is asked about."""

import dataclasses
import functools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from rope_jax import __version__
from rope_jax.diagnosis.evaluation import deployment
from rope_jax.diagnosis.evaluation.case_runs import CaseRuns
from rope_jax.diagnosis.evaluation.case_setup import FittedBiases, Settings, check, fitted_schemes, needed_cells
from rope_jax.diagnosis.evaluation.cell_runs import Scores
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell, CellSchemes, corners
from rope_jax.diagnosis.evaluation.deployment import FaultEffect
from rope_jax.diagnosis.tasks.subject import Reach, Subject
from rope_jax.diagnosis.verdict.attribution import Symptom, Table, Used
from rope_jax.diagnosis.verdict.looks import ask_on
from rope_jax.diagnosis.verdict.signature import Signature, signature
from rope_jax.diagnosis.verdict.verdict import Verdict, attribution
from rope_jax.statistics import intervals
from rope_jax.statistics.intervals import Estimate

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """One retrofit, judged.

    Attributes:
      status_quo: what is deployed.
      scores: of it as it is deployed, one a model.
      symptom: what is wrong with it.
      verdict: what to do.
      shapley: how the lost precision divides between scaling and bias, or None where one of them is missing.
      contexts: that the status quo was asked at each length for the verdict and the symptom; all else is of the first.
      confidence: of the intervals of the verdict and the symptom.
      signature: which way its wrong answers lean, or None where no probe was learned.
      faults: what each fault would cost it.
      nearest: how far runs with each fault, and the exact one, lie from observed answers, nearest first.
    """

    status_quo: Cell
    scores: Sequence[Scores]
    symptom: Symptom | None
    verdict: Verdict
    shapley: Mapping[str, Estimate] | None
    contexts: int
    confidence: float
    signature: Signature | None = None
    faults: tuple[FaultEffect, ...] = ()
    nearest: Mapping[str, float] = dataclasses.field(default_factory=dict)


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
      compilations: programs compiled for one model's cells; none where all were finished already.
      makers: schemes of any cell, one maker a model.
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
    makers: Sequence[CellSchemes]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]


def run_case(
    subjects: Sequence[Subject],
    settings: Settings,
    *,
    further: Callable[[int], Sequence[Subject]] | None = None,
    store: Path | None = None,
    observed: Mapping[str, np.ndarray] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Case:
    """Returns the case of one or several models of one kind, with the same items.

    Args:
      subjects: models that differ in their weights only.
      settings: see `Settings`.
      further: the same models with further parts of the items, from 1; needed for more than one look.
      store: directory of finished cells, so that a run that was cut off goes on; None for none.
      observed: logits that a deployment of the status quo gave to the items (`deployment.read_observed`).
      progress: called as work proceeds.

    Raises:
      InputError: if a status quo names a scaling or bias that there is not, or the lengths contradict each other.
      ValueError: if there are to be several looks at one part of the items, or at what was observed.
    """
    check(subjects, settings)
    if settings.looks > 1 and further is None:
        raise ValueError(f"{settings.looks} looks need further items")
    if settings.looks > 1 and observed is not None:
        raise ValueError("what was observed cannot be asked on")
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    needed = needed_cells(settings)
    fitted, makers = [], []
    for number, subject in enumerate(subjects, 1):
        progress("fitting biases", number, len(subjects))
        biases, maker = fitted_schemes(subject, settings, needed)
        fitted.append(biases)
        makers.append(maker)
    kept, omitted = makers[0].arms.meaningful()
    seconds["fitting"] = time.perf_counter() - started
    started = time.perf_counter()
    runs = CaseRuns(subjects, makers, settings, store=store, observed=observed)
    cells: dict[Cell, list[Scores]] = {}
    needed = [cell for cell in needed if cell.scaling in kept]
    for number, cell in enumerate(needed, 1):
        progress(str(cell), number, len(needed))
        cells[cell] = runs.cell(cell)
    used = attribution.gated(cells[UNCHANGED], gate=settings.margins.gate)

    @functools.cache
    def part(number: int) -> CaseRuns:
        progress("asking on", number, 2 ** (settings.looks - 1) - 1)
        assert further is not None
        return runs.on(further(number))

    judgements = [judge(one, cells, used, settings, runs, part) for one in settings.status_quos if one in cells]
    seconds["cells"] = time.perf_counter() - started
    return Case(
        subjects=subjects,
        settings=settings,
        used=used,
        fitted=fitted,
        cells=cells,
        judgements=judgements,
        omitted=omitted,
        compilations=runs.exact[0].compilations,
        makers=makers,
        seconds=seconds,
        versions={"rope_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
    )


def judge(
    status_quo: Cell, cells: Table, used: Used, settings: Settings, runs: CaseRuns, part: Callable[[int], CaseRuns]
) -> Judgement:
    """Returns the judgement of one status quo.

    Args:
      status_quo: the scheme that is meant to run.
      cells: scores of it, of the unchanged model, and of its options and corners; options not run are left out.
      used: probes that passed their gate.
      settings: margins, number of looks, and how biases were made.
      runs: on the items that all cells were asked.
      part: the same on a further part of the items.
    """
    first = runs.answered(status_quo, runs.options(status_quo, cells))
    found = ask_on(
        first,
        lambda number, asked: part(number).answered(status_quo, asked),
        used,
        margins=settings.margins,
        looks=settings.looks,
    )
    asked = found.parts * runs.subjects[0].num_contexts
    scores = first.status_quo
    if found.symptom is None:
        return Judgement(status_quo, scores, None, found.verdict, None, asked, found.confidence)
    square = {parts: cells[cell] for parts, cell in corners(status_quo).items() if cell in cells}
    whole = len(set(corners(status_quo).values())) == len(square) == 4
    items = runs.subjects[0].items.long
    assert items is not None
    return Judgement(
        status_quo,
        scores,
        found.symptom,
        found.verdict,
        attribution.shapley(square, used) if whole else None,
        asked,
        found.confidence,
        signature(
            scores,
            items,
            used,
            bias=status_quo.bias,
            num_buckets=settings.num_buckets,
            max_distance=settings.max_distance,
        ),
        deployment.costs_of(runs.faulty, status_quo, cells[status_quo], used),
        runs.nearest(status_quo),
    )


def gate_measures(case: Case, judgement: Judgement) -> dict[str, Estimate]:
    """Returns what a gate may ask of a status quo: each a cost against the unchanged model, positive is worse.

    `short_cost` and `long_cost` are nats a token of text below and beyond the trained length; `short_loss` is accuracy
    at the trained length; `precision_drop` and `retrieval_drop` are nats of log-odds at the target length against the
    unchanged model at the trained one, from all contexts that were asked for the verdict; the others are from the
    first of them, which every cell was asked.
    """
    if judgement.symptom is None:
        before, after = case.cells[UNCHANGED], judgement.scores
        texts: dict[str, Reach] = {"short_cost": "short", "long_cost": "long"}
        return {
            name: intervals.clustered(attribution.text_loss(after, reach) - attribution.text_loss(before, reach))
            for name, reach in texts.items()
        }
    change = attribution.effect(judgement.scores, case.cells[UNCHANGED], case.used, confidence=0.95)
    return {
        "short_cost": change.short_cost,
        "long_cost": -change.long_gain,
        "short_loss": change.short_loss,
        "precision_drop": judgement.symptom.precision_drop,
        "retrieval_drop": judgement.symptom.retrieval_drop,
    }
