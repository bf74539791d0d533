"""The case from model to verdict: fits the biases, runs the cells, and judges every retrofit that is asked about."""

import dataclasses
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from rope_jax import __version__
from rope_jax.diagnosis import attribution, deployment
from rope_jax.diagnosis.attribution import Symptom, Table, Used
from rope_jax.diagnosis.case_setup import FittedBiases, Settings, check, fitted_schemes, needed_cells
from rope_jax.diagnosis.cell_runs import CellRuns, Scores
from rope_jax.diagnosis.cells import UNCHANGED, Cell, CellSchemes, Option, corners, options
from rope_jax.diagnosis.deployment import EXACT, FaultEffect, FaultRuns
from rope_jax.diagnosis.faults import exempting
from rope_jax.diagnosis.signature import Signature, signature
from rope_jax.diagnosis.verdict import IMPLEMENTATION, Verdict, decide
from rope_jax.statistics import intervals
from rope_jax.statistics.intervals import Estimate
from rope_jax.subjects.subject import Reach, Subject

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """One retrofit, judged.

    Attributes:
      status_quo: what is deployed.
      scores: of it, one a model.
      symptom: what is wrong with it.
      verdict: what to do.
      shapley: how the lost precision divides between scaling and bias, or None where one of them is missing.
      signature: which way its wrong answers lean, or None where no probe was learned.
      faults: what each fault would cost it.
      nearest: how far runs with each fault, and the exact one, lie from observed answers, nearest first.
    """

    status_quo: Cell
    scores: Sequence[Scores]
    symptom: Symptom | None
    verdict: Verdict
    shapley: Mapping[str, Estimate] | None
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
    store: Path | None = None,
    observed: Mapping[str, np.ndarray] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Case:
    """Returns the case of one or several models of one kind, with the same items.

    Args:
      subjects: models that differ in their weights only.
      settings: see `Settings`.
      store: directory of finished cells, so that a run that was cut off goes on; None for none.
      observed: logits that a deployment of the status quo gave to the items (`deployment.read_observed`).
      progress: called as work proceeds.

    Raises:
      InputError: if a status quo names a scaling or bias that there is not, or the lengths contradict each other.
    """
    check(subjects, settings)
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    needed = needed_cells(settings)
    fitted, makers, runs = [], [], []
    for number, subject in enumerate(subjects, 1):
        progress("fitting biases", number, len(subjects))
        biases, maker = fitted_schemes(subject, settings, needed)
        fitted.append(biases)
        makers.append(maker)
        runs.append(CellRuns(subject, store=store))
    kept, omitted = makers[0].arms.meaningful()
    seconds["fitting"] = time.perf_counter() - started
    started = time.perf_counter()
    needed = [cell for cell in needed if cell.scaling in kept]
    cells: dict[Cell, list[Scores]] = {}
    for number, cell in enumerate(needed, 1):
        progress(str(cell), number, len(needed))
        cells[cell] = [run(maker(cell)) for run, maker in zip(runs, makers, strict=True)]
    used = attribution.gated(cells[UNCHANGED], gate=settings.margins.gate)
    faulty = {
        name: [FaultRuns(name, run, maker, store=store) for run, maker in zip(runs, makers, strict=True)]
        for name in dict.fromkeys((*settings.faults, *({settings.deployed} - {EXACT})))
    }
    judged = [status_quo for status_quo in settings.status_quos if status_quo in cells]
    spared = _spared(judged, subjects, makers, settings.spared, store)
    judgements = [
        judge(status_quo, cells, used, settings, subjects, faulty, observed, spared=spared.get(status_quo))
        for status_quo in judged
    ]
    seconds["cells"] = time.perf_counter() - started
    return Case(
        subjects=subjects,
        settings=settings,
        used=used,
        fitted=fitted,
        cells=cells,
        judgements=judgements,
        omitted=omitted,
        compilations=runs[0].compilations,
        makers=makers,
        seconds=seconds,
        versions={"rope_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
    )


def _spared(
    status_quos: Sequence[Cell],
    subjects: Sequence[Subject],
    makers: Sequence[CellSchemes],
    first: int,
    store: Path | None,
) -> dict[Cell, list[Scores]]:
    """Returns the status quos that have a bias, run with their first keys spared it; none where `first` is 0."""
    if not first:
        return {}
    runs = [CellRuns(one, store=store, attention=exempting(first), note=f"spares {first} keys") for one in subjects]
    return {
        cell: [run(maker(cell)) for run, maker in zip(runs, makers, strict=True)]
        for cell in status_quos
        if cell.bias != "none"
    }


def judge(
    status_quo: Cell,
    cells: Table,
    used: Used,
    settings: Settings,
    subjects: Sequence[Subject],
    faulty: Mapping[str, Sequence[FaultRuns]],
    observed: Mapping[str, np.ndarray] | None = None,
    *,
    spared: Sequence[Scores] | None = None,
) -> Judgement:
    """Returns the judgement of one status quo.

    Args:
      status_quo: the scheme that is meant to run.
      cells: scores of it, of the unchanged model, and of its options and corners; options not run are left out.
      used: probes that passed their gate.
      settings: margins, transforms, and the fault that the deployment has.
      subjects: the models.
      faulty: runs with every fault that is looked for, one a model.
      observed: logits that the deployment itself gave to the items, for one model.
      spared: scores of it with the bias taken off the first keys, one a model; None for no such arm.
    """
    exact = scores = cells[status_quo]
    nearest: Mapping[str, float] = {}
    if observed is not None:
        scores = [deployment.observed_scores(observed, subjects[0], exact[0])]
        nearest = deployment.nearest(
            observed, {name: runs[0].raw(status_quo) for name, runs in faulty.items()}, subjects[0], exact[0]
        )
    elif settings.deployed != EXACT:
        scores = [run.scores(status_quo) for run in faulty[settings.deployed]]
    changed: dict[Option, Sequence[Scores]] = {
        option: cells[option.cell]
        for option in options(status_quo, transforms=settings.transforms)
        if option.cell in cells
    }
    if spared is not None:
        changed[Option("0", f"spare the first {settings.spared} tokens the bias", status_quo)] = spared
    if scores is not exact:
        changed[Option(IMPLEMENTATION, "run the same scheme exactly", status_quo)] = exact
    learned = bool(used.precision) and used.retrieval
    seen = attribution.symptom(scores, cells[UNCHANGED], used) if learned else None
    decided = decide(scores, changed, seen, used, margins=settings.margins)
    if not learned:
        return Judgement(status_quo, scores, None, decided, None)
    square = {parts: cells[cell] for parts, cell in corners(status_quo).items() if cell in cells}
    whole = len(set(corners(status_quo).values())) == len(square) == 4
    items = subjects[0].items.long
    assert items is not None
    return Judgement(
        status_quo,
        scores,
        seen,
        decided,
        attribution.shapley(square, used) if whole else None,
        signature(
            scores,
            items,
            used,
            bias=status_quo.bias,
            num_buckets=settings.num_buckets,
            max_distance=settings.max_distance,
        ),
        deployment.costs_of(faulty, status_quo, exact, used),
        nearest,
    )


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
    return {
        "short_cost": change.short_cost,
        "long_cost": -change.long_gain,
        "short_loss": change.short_loss,
        "precision_drop": judgement.symptom.precision_drop,
        "retrieval_drop": judgement.symptom.retrieval_drop,
    }
