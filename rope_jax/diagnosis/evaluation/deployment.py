"""What really runs against what is meant to run: faults that are no scheme, declared, observed, or only feared."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rope_jax.attention.api import attend
from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.cell_runs import CellRuns, Scores, outcomes
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell, CellSchemes
from rope_jax.diagnosis.evaluation.faults import fault
from rope_jax.diagnosis.tasks.array_files import read_float_npz
from rope_jax.diagnosis.tasks.contexts import first_asked
from rope_jax.diagnosis.tasks.subject import REACHES, Subject
from rope_jax.diagnosis.verdict import attribution
from rope_jax.diagnosis.verdict.attribution import Used
from rope_jax.errors import InputError
from rope_jax.statistics.intervals import Estimate

EXACT = "exact"


@dataclasses.dataclass(frozen=True)
class FaultEffect:
    """What a fault would cost a status quo that does not have it.

    Attributes:
      name: of the fault.
      description: what an implementation with it does.
      precision_loss: fall of long precision against the exact run, nats; positive is worse.
      retrieval_loss: the same of retrieval.
    """

    name: str
    description: str
    precision_loss: Estimate
    retrieval_loss: Estimate


class FaultRuns:
    """Runs cells of one model with one fault, through one more program where the fault needs one.

    Args:
      name: of the fault; see `scalings.FAULTS`.
      exact: runs of the same model without it.
      schemes: of its cells.
      store: directory of finished cells.

    Raises:
      InputError: if there is no such fault, or the model cannot have it.
    """

    def __init__(self, name: str, exact: CellRuns, schemes: CellSchemes, *, store: Path | None = None) -> None:
        subject = exact.subject
        self.fault = fault(name, length=subject.target_length, trained=schemes(UNCHANGED), fresh=fresh_tokens(subject))
        self._schemes = schemes
        if self.fault.attention is attend:
            self._runs = exact
        else:
            self._runs = CellRuns(subject, store=store, attention=self.fault.attention)

    def on(self, exact: CellRuns) -> "FaultRuns":
        """Returns the same fault on the items of other runs."""
        other = copy.copy(self)
        other._runs = exact if self.fault.attention is attend else self._runs.on(exact.subject)
        return other

    def raw(self, cell: Cell) -> Mapping[str, np.ndarray]:
        """Returns logits and losses of a cell, as `CellRuns.raw` does."""
        return self._runs.raw(self.fault.scheme(self._schemes(cell)), note=self.fault.name)

    def scores(self, cell: Cell) -> Scores:
        """Returns the same as outcomes."""
        return self._runs.scores(self.raw(cell))


def fresh_tokens(subject: Subject) -> int:
    """Returns how many tokens of any row came from its first question on: a stale cache holds the rest."""
    long = subject.items.long
    return subject.target_length - (subject.trained_length if long is None else int(first_asked(long).min()))


def costs_of(
    faulty: Mapping[str, Sequence[FaultRuns]], cell: Cell, exact: Sequence[Scores], used: Used
) -> tuple[FaultEffect, ...]:
    """Returns what each fault costs a cell against its exact run, paired by context.

    Args:
      faulty: for each fault its runs, one a model.
      cell: the status quo.
      exact: scores of its exact run, one a model.
      used: probes that passed their gate.
    """
    result = []
    for name, runs in faulty.items():
        change = attribution.effect(exact, [run.scores(cell) for run in runs], used, confidence=0.95)
        result.append(FaultEffect(name, runs[0].fault.description, change.precision, change.by_probe[probes.RETRIEVAL]))
    return tuple(result)


def write_items(file: Path, subject: Subject) -> None:
    """Writes the contexts as `.npz`, for a deployment to answer: tokens, positions and choices, short and long.

    What the deployment gives back is `short` and `long`, `[rows, questions, 8]`: the logit (or log probability) of each
    choice as the token after `position`; where a choice is -1 any number.
    """
    arrays: dict[str, np.ndarray] = {}
    for reach in REACHES:
        items = getattr(subject.items, reach)
        if items is None:
            raise InputError("this model answers no probes, so there are no items to write")
        arrays |= {f"{reach}_{name}": getattr(items, name) for name in ("tokens", "position", "choices")}
    with open(file, "wb") as opened:
        np.savez(opened, **arrays)  # type: ignore[arg-type]


def read_observed(file: Path, subject: Subject) -> dict[str, np.ndarray]:
    """Returns the logits that a deployment gave to the items of `write_items`.

    Raises:
      InputError: if the file is not readable, or its arrays are not what was asked for: floats of the shape of the
        choices, finite and within float32 wherever there is a choice.
    """
    choices = {reach: getattr(subject.items, reach).choices for reach in REACHES}
    given = read_float_npz(file, {reach: asked.shape for reach, asked in choices.items()})
    result: dict[str, np.ndarray] = {}
    for reach in REACHES:
        logits = np.where(choices[reach] >= 0, given[reach], 0)
        wrong = np.argwhere(~(np.abs(logits) <= np.finfo(np.float32).max))
        if len(wrong):
            at = tuple(map(int, wrong[0]))
            raise InputError(f"{file}: {reach!r} at {list(at)} is {logits[at]}: not finite, or beyond float32")
        result[reach] = logits.astype(np.float32)
    return result


def observed_scores(observed: Mapping[str, np.ndarray], subject: Subject, exact: Scores) -> Scores:
    """Returns the outcomes of observed logits; losses of text are those of the exact run, since none were observed."""
    return Scores(*outcomes(observed, subject.items.asked), exact.loss, exact.losses)


def nearest(
    observed: Mapping[str, np.ndarray], faulty: Mapping[str, Mapping[str, np.ndarray]], subject: Subject, exact: Scores
) -> dict[str, float]:
    """Returns how far each run's log-odds lie from the observed ones, mean nats a question, nearest first.

    Args:
      observed: logits `[rows, questions, 8]` of the deployment, by reach.
      faulty: the same of runs with faults, by name.
      subject: whose items they are.
      exact: outcomes of the exact run.
    """
    distances = {}
    for name, raw in [(EXACT, None), *faulty.items()]:
        parts = []
        for reach in REACHES:
            choices = getattr(subject.items, reach).choices
            run = exact.answers[reach].log_odds if raw is None else probes.log_odds(raw[reach], choices)
            parts.append(np.abs(run - probes.log_odds(observed[reach], choices)).ravel())
        distances[name] = float(np.concatenate(parts).mean())
    return dict(sorted(distances.items(), key=lambda item: item[1]))
