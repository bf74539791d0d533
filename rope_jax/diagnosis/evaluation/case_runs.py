"""Everything that a case runs on one part of its items: cells, the deployment as it is, faults, spared biases."""

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from rope_jax.diagnosis.evaluation import deployment
from rope_jax.diagnosis.evaluation.case_setup import Settings
from rope_jax.diagnosis.evaluation.cell_runs import CellRuns, Scores
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell, CellSchemes, Option, options
from rope_jax.diagnosis.evaluation.deployment import EXACT, FaultRuns
from rope_jax.diagnosis.evaluation.faults import exempting
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.verdict.looks import Answered
from rope_jax.diagnosis.verdict.verdict import IMPLEMENTATION


class CaseRuns:
    """The runs of a case, for several models of one kind.

    Args:
      subjects: the models and the part of the items.
      makers: schemes of any cell, one maker a model.
      settings: faults, what is deployed, what is spared.
      store: directory of finished cells; None for none.
      observed: logits that the deployment itself gave to these items, for one model.

    Attributes:
      subjects: as given.
      exact: runs of cells as they should run, one a model.
      faulty: runs with every fault that is looked for, one a model.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        makers: Sequence[CellSchemes],
        settings: Settings,
        *,
        store: Path | None = None,
        observed: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.subjects = subjects
        self.exact = [CellRuns(subject, store=store) for subject in subjects]
        both = list(zip(self.exact, makers, strict=True))
        names = dict.fromkeys((*settings.faults, *({settings.deployed} - {EXACT})))
        self.faulty = {name: [FaultRuns(name, run, maker, store=store) for run, maker in both] for name in names}
        self._sparing: list[CellRuns] = []
        if settings.spared:
            attention, note = exempting(settings.spared), f"spares {settings.spared} keys"
            self._sparing = [CellRuns(one, store=store, attention=attention, note=note) for one in subjects]
        self._makers, self._settings, self._observed = makers, settings, observed

    def on(self, subjects: Sequence[Subject]) -> "CaseRuns":
        """Returns the same on another part of the items, by the same programs; nothing of it was observed."""
        other = copy.copy(self)
        other.subjects, other._observed = subjects, None
        other.exact = [run.on(subject) for run, subject in zip(self.exact, subjects, strict=True)]
        if self._sparing:
            other._sparing = [run.on(subject) for run, subject in zip(self._sparing, subjects, strict=True)]
        other.faulty = {
            name: [run.on(exact) for run, exact in zip(runs, other.exact, strict=True)]
            for name, runs in self.faulty.items()
        }
        return other

    def cell(self, cell: Cell) -> list[Scores]:
        """Returns the scores of a cell, one a model."""
        return [run(maker(cell)) for run, maker in zip(self.exact, self._makers, strict=True)]

    def deployed(self, status_quo: Cell) -> list[Scores]:
        """Returns the scores of a status quo as it is deployed: observed, with its known fault, or exact."""
        exact = self.cell(status_quo)
        if self._observed is not None:
            return [deployment.observed_scores(self._observed, self.subjects[0], exact[0])]
        if self._settings.deployed != EXACT:
            return [run.scores(status_quo) for run in self.faulty[self._settings.deployed]]
        return exact

    def nearest(self, status_quo: Cell) -> Mapping[str, float]:
        """Returns how far runs with each fault, and the exact one, lie from observed answers; empty without any."""
        if self._observed is None:
            return {}
        raw = {name: runs[0].raw(status_quo) for name, runs in self.faulty.items()}
        return deployment.nearest(self._observed, raw, self.subjects[0], self.cell(status_quo)[0])

    def options(self, status_quo: Cell, cells: Collection[Cell]) -> tuple[Option, ...]:
        """Returns what may be changed in a status quo, among the cells that there are."""
        settings = self._settings
        found = [one for one in options(status_quo, transforms=settings.transforms) if one.cell in cells]
        if settings.spared and status_quo.bias != "none":
            found.append(Option("0", f"spare the first {settings.spared} tokens the bias", status_quo))
        if self._observed is not None or settings.deployed != EXACT:
            found.append(Option(IMPLEMENTATION, "run the same scheme exactly", status_quo))
        return tuple(found)

    def answered(self, status_quo: Cell, asked: Collection[Option]) -> Answered:
        """Returns what a verdict reads: a status quo, the unchanged models, and some of the options."""
        return Answered(
            self.deployed(status_quo), self.cell(UNCHANGED), {one: self._after(one, status_quo) for one in asked}
        )

    def _after(self, option: Option, status_quo: Cell) -> list[Scores]:
        if option.cell == status_quo and option.number != IMPLEMENTATION:
            return [run(maker(status_quo)) for run, maker in zip(self._sparing, self._makers, strict=True)]
        return self.cell(option.cell)
