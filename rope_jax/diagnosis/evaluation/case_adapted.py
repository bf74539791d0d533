"""The same judgement after adaptation: every arm gets its own few steps of training before it is asked."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from rope_jax.diagnosis.evaluation.adaptation import adapted
from rope_jax.diagnosis.evaluation.case import Judgement
from rope_jax.diagnosis.evaluation.case_setup import Settings
from rope_jax.diagnosis.evaluation.cell_runs import CellRuns, Scores
from rope_jax.diagnosis.evaluation.cells import Cell, CellSchemes, Option, options
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.verdict.attribution import Used
from rope_jax.diagnosis.verdict.looks import Answered, one_look
from rope_jax.statistics.intervals import CONFIDENCE


def judge_adapted(
    status_quo: Cell,
    subjects: Sequence[Subject],
    makers: Sequence[CellSchemes],
    unchanged: Sequence[Scores],
    used: Used,
    settings: Settings,
    *,
    store: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Judgement:
    """Returns the judgement of a status quo and of the three options, all adapted alike.

    Args:
      status_quo: the retrofit.
      subjects: the models as trained.
      makers: schemes of their cells.
      unchanged: scores of the models as trained, without any retrofit.
      used: probes that passed their gate on those.
      settings: `adapt_steps`, transforms and margins.
      store: directory of finished cells and weights.
      progress: called as work proceeds.
    """

    def scores(cell: Cell) -> list[Scores]:
        result = []
        for subject, maker in zip(subjects, makers, strict=True):
            arm = adapted(
                subject,
                maker(cell),
                name=str(cell),
                steps=settings.adapt_steps,
                seed=settings.seed,
                store=store,
                on_step=lambda step: progress(f"adapting {cell}", step, settings.adapt_steps),
            )
            result.append(CellRuns(arm, store=store)(maker(cell)))
        return result

    kept, _ = makers[0].arms.meaningful()
    before = scores(status_quo)
    changed: dict[Option, Sequence[Scores]] = {
        option: scores(option.cell)
        for option in options(status_quo, transforms=settings.transforms)
        if option.number != "0" and option.cell.scaling in kept
    }
    verdict, symptom = one_look(Answered(before, unchanged, changed), used, margins=settings.margins)
    if verdict.kind == "outside these options":
        verdict = dataclasses.replace(verdict, would_change=("more steps of adaptation",))
    return Judgement(status_quo, before, symptom, verdict, None, subjects[0].num_contexts, CONFIDENCE)
