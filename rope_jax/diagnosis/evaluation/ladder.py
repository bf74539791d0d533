"""How far a retrofit goes: the probes at one ratio after another.

The case's symptom, retrieval kept and precision lost, may show at a small ratio where a large one has destroyed all.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rope_jax.diagnosis.evaluation.case_setup import Settings, fitted_schemes
from rope_jax.diagnosis.evaluation.cell_runs import CellRuns
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell
from rope_jax.diagnosis.evaluation.probes import ProbeProgram
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.verdict.attribution import Symptom, Used
from rope_jax.diagnosis.verdict.verdict import Answer, Margins, above, attribution
from rope_jax.errors import InputError

_OPPOSITE: Mapping[Answer, Answer] = {"yes": "no", "no": "yes", "unclear": "unclear"}


@dataclasses.dataclass(frozen=True)
class Rung:
    """One retrofit at one ratio.

    Attributes:
      cell: the retrofit, scaled for this ratio.
      target_length: tokens.
      ratio: target over trained length.
      symptom: how far it falls behind the unchanged model at the trained length.
      retrieves: whether retrieval is kept within its margin.
      imprecise: whether precision is lost by more than its margin.
    """

    cell: Cell
    target_length: int
    ratio: float
    symptom: Symptom
    retrieves: Answer
    imprecise: Answer


def target_lengths(ratios: Sequence[float], trained_length: int) -> list[int]:
    """Returns the lengths of ratios, tokens.

    Raises:
      InputError: if a ratio adds no token to the trained length.

    >>> target_lengths([1.25, 8], 256)
    [320, 2048]
    """
    lengths = [round(ratio * trained_length) for ratio in ratios]
    for ratio, length in zip(ratios, lengths, strict=True):
        if length <= trained_length:
            raise InputError(f"--ratios: {ratio:g} times {trained_length} tokens is no longer context")
    return lengths


def ladder(
    subjects_at: Callable[[int], Sequence[Subject]],
    lengths: Sequence[int],
    settings: Settings,
    used: Used,
    *,
    store: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[Rung]:
    """Returns every status quo, and its scaling without the bias, at every length; biases are fitted for each anew.

    Args:
      subjects_at: the models with items of a target length, tokens.
      lengths: `L'`, tokens, each above the trained one.
      settings: whose status quos are run; what it says of options and faults is not looked at.
      used: probes that passed their gate, retrieval and one of precision among them.
      store: directory of finished cells; None for none.
      progress: called as work proceeds.
    """
    asked = dict.fromkeys(cell for one in settings.status_quos for cell in (one._replace(bias="none"), one))
    programs: list[ProbeProgram] | None = None
    rungs = []
    for number, length in enumerate(lengths, 1):
        progress("other ratios", number, len(lengths))
        subjects = subjects_at(length)
        programs = programs or [ProbeProgram(subject.checkpoint.model) for subject in subjects]
        makers, runs = [], []
        for subject, program in zip(subjects, programs, strict=True):
            makers.append(fitted_schemes(subject, settings, asked)[1])
            runs.append(CellRuns(subject, store=store, program=program))
        unchanged = [run(maker(UNCHANGED)) for run, maker in zip(runs, makers, strict=True)]
        kept, _ = makers[0].arms.meaningful()
        for cell in (cell for cell in asked if cell.scaling in kept):
            scores = [run(maker(cell)) for run, maker in zip(runs, makers, strict=True)]
            seen = attribution.symptom(scores, unchanged, used)
            rungs.append(_rung(cell, subjects[0], seen, settings.margins))
    return rungs


def _rung(cell: Cell, subject: Subject, seen: Symptom, margins: Margins) -> Rung:
    kept = _OPPOSITE[above(seen.retrieval_drop, margins.retrieval)]
    lost = above(seen.precision_drop, margins.gain)
    return Rung(cell, subject.target_length, subject.factor, seen, kept, lost)


def farthest(rungs: Sequence[Rung]) -> dict[Cell, float | None]:
    """Returns the largest ratio at which each retrofit surely keeps retrieval there and at every smaller one asked."""
    result: dict[Cell, float | None] = {rung.cell: None for rung in rungs}
    for cell in result:
        for rung in sorted((rung for rung in rungs if rung.cell == cell), key=lambda rung: rung.ratio):
            if rung.retrieves != "yes":
                break
            result[cell] = rung.ratio
    return result
