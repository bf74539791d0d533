"""Everything that is run on one part of the items, as evidence for the verdicts: changes, faults, what is deployed."""

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from rope_jax.diagnosis.evaluation import observed as observing
from rope_jax.diagnosis.evaluation.configurations import ORIGINAL
from rope_jax.diagnosis.evaluation.faults import Fault, FaultRequest, exempting, fault_of
from rope_jax.diagnosis.evaluation.panel import Evidence, Option, Panel
from rope_jax.diagnosis.evaluation.plan import ModelPlan
from rope_jax.diagnosis.evaluation.runs import Runs, Scores, panel_of
from rope_jax.diagnosis.tasks.contexts import first_asked
from rope_jax.diagnosis.tasks.subject import Reach, Subject

EXACT = "exact"


class Cases:
    """The runs of several models of one kind on one part of their items.

    Args:
      subjects: the models and the part of the items.
      plans: their configurations, one a model, of the same names.
      folds: the fold of each row of text, the same for all models.
      store: directory of finished results; None for none.
      faults: whose cost is measured, by name.
      faulty: the fault that the deployment is known to have, or "exact".
      exempt_first: first keys that a further option exempts from the bias; 0 for no such option.
      observed: logits that the deployment itself gave to these items, for one model.

    Attributes:
      subjects: as given.
      runs: of every model without a fault.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        plans: Sequence[ModelPlan],
        *,
        folds: Sequence[int] | None = None,
        store: Path | None = None,
        faults: Sequence[str] = (),
        faulty: str = EXACT,
        exempt_first: int = 0,
        observed: Mapping[Reach, np.ndarray] | None = None,
    ) -> None:
        self.subjects, self._plans, self._faulty, self._observed = subjects, plans, faulty, observed
        self._exempt_first = exempt_first
        self.runs = [Runs(subject, folds=folds, store=store) for subject in subjects]
        self._faults = {
            name: [
                fault_of(name, FaultRequest(one.target_length, plan.schemes(ORIGINAL)[0], _fresh_tokens(one)))
                for plan, one in zip(plans, subjects, strict=True)
            ]
            for name in dict.fromkeys((*faults, *({faulty} - {EXACT})))
        }
        # An option, which is run as a fault is.
        self._exempt = Fault(f"exempts {exempt_first} keys", "", attention=exempting(exempt_first))

    def on(self, subjects: Sequence[Subject]) -> "Cases":
        """Returns the same on another part of the items, by the same programs; nothing of it was observed."""
        other = copy.copy(self)
        other.subjects, other._observed = subjects, None
        other.runs = [run.on(subject) for run, subject in zip(self.runs, subjects, strict=True)]
        return other

    def scores(self, name: str, faults: Sequence[Fault] | None = None) -> list[Scores]:
        """Returns the scores of a configuration run exactly, or with a fault of each model, one a model."""
        runs = self.runs
        if faults is not None:
            runs = [run.with_fault(fault) for run, fault in zip(runs, faults, strict=True)]
        return [run(plan.schemes(name)) for run, plan in zip(runs, self._plans, strict=True)]

    def panel(self, scores: Sequence[Scores]) -> Panel:
        """Returns scores of these items as a verdict reads them."""
        return panel_of(scores, self.subjects[0].items, self.subjects[0].trained_length)

    def options(self, deployed: str) -> tuple[Option, ...]:
        """Returns what may be changed in a deployed configuration."""
        found = list(self._plans[0].options[deployed])
        if self._exempt_first and self._plans[0].retrofits[deployed][0].bias is not None:
            words = f"exempt the first {self._exempt_first} tokens from the bias"
            found.append(Option("", words, f"{deployed}, first {self._exempt_first} exempt"))
        return tuple(found)

    def evidence(self, deployed: str, asked: Collection[str], used: tuple[str, ...]) -> Evidence:
        """Returns what a verdict on a deployed configuration reads.

        Args:
          deployed: its name.
          asked: configurations of the options that are asked.
          used: tasks that decide.
        """
        exact = self.scores(deployed)
        as_deployed, nearest = exact, {}
        if self._observed is not None:
            # Losses of text are those of the exact run, since none were observed.
            as_deployed = [self.runs[0].scores(self._observed, exact[0].losses)]
            nearest = self._nearest(self._observed, deployed)
        elif self._faulty != EXACT:
            as_deployed = self.scores(deployed, self._faults[self._faulty])
        options = [one for one in self.options(deployed) if one.configuration in asked]
        return Evidence(
            deployed=deployed,
            as_deployed=self.panel(as_deployed),
            exact=None if as_deployed is exact else self.panel(exact),
            original=self.panel(self.scores(ORIGINAL)),
            options=tuple(options),
            changed={one.configuration: self.panel(self._after(one, deployed)) for one in options},
            corners={parts: self.panel(self.scores(name)) for parts, name in self._plans[0].corners[deployed].items()},
            used=used,
            faults={
                name: (faults[0].description, self.panel(self.scores(deployed, faults)))
                for name, faults in self._faults.items()
            },
            nearest=nearest,
        )

    def _after(self, option: Option, deployed: str) -> list[Scores]:
        if option.configuration in self._plans[0].retrofits:
            return self.scores(option.configuration)
        return self.scores(deployed, [self._exempt] * len(self.runs))

    def _nearest(self, observed: Mapping[Reach, np.ndarray], deployed: str) -> dict[str, float]:
        scheme, exact = self._plans[0].schemes(deployed)[0], self.runs[0]
        logits = {name: exact.with_fault(faults[0]).logits(scheme) for name, faults in self._faults.items()}
        return observing.nearest(observed, {EXACT: exact.logits(scheme), **logits}, self.subjects[0])


def _fresh_tokens(subject: Subject) -> int:
    """Returns how many tokens of any row came from its first question on: a stale cache holds the rest."""
    long = subject.items.long
    return subject.target_length - (subject.trained_length if long is None else int(first_asked(long).min()))
