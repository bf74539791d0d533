"""How far an extension goes: deployed configurations, with and without their bias, at one ratio after another.

Retrieval kept and order lost may show at a small ratio where a large one has destroyed everything.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rope_jax.diagnosis.evaluation.cases import Cases
from rope_jax.diagnosis.evaluation.configurations import ORIGINAL
from rope_jax.diagnosis.evaluation.plan import PlanSettings, Progress, plan_of
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.verdict.answers import Margins
from rope_jax.diagnosis.verdict.contrasts import Contrasts
from rope_jax.diagnosis.verdict.regression import regression
from rope_jax.errors import InputError
from rope_jax.statistics.intervals import CONFIDENCE


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
            raise InputError(f"ratio {ratio:g}: {ratio:g} times {trained_length} tokens is no longer context")
    return lengths


def ratios_of(
    at_length: Callable[[int], Sequence[Subject]],
    lengths: Sequence[int],
    settings: PlanSettings,
    used: tuple[str, ...],
    *,
    margins: Margins,
    store: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> list[dict[str, Any]]:
    """Returns every deployed configuration, and the same without its bias, at every length; biases are fitted anew.

    Args:
      at_length: the models with items of a target length, tokens.
      lengths: `L'`, tokens, each above the trained one.
      settings: whose deployed configurations are run.
      used: tasks that decide, at least one.
      margins: what is too little to matter.
      store: directory of finished results; None for none.
      progress: called as work proceeds.

    Returns:
      plain values: the configuration, its ratio and target, and whether it is the regression described, with the fall
      of every task.
    """
    contrasts = Contrasts(used, CONFIDENCE, 0)
    found = []
    for number, length in enumerate(lengths, 1):
        progress("other ratios", number, len(lengths))
        subjects = list(at_length(length))
        plans = [plan_of([subject], settings, store=store, progress=progress) for subject in subjects]
        cases = Cases(subjects, plans, store=store)
        original = cases.panel(cases.scores(ORIGINAL))
        names = dict.fromkeys(
            name
            for one in plans[0].deployed
            for name in (one, *(o.configuration for o in plans[0].options[one] if o.number == "1"))
        )
        for name in names:
            symptom = regression(cases.panel(cases.scores(name)), original, contrasts, margins)
            found.append(
                {
                    "configuration": name,
                    "ratio": subjects[0].factor,
                    "target": length,
                    **dataclasses.asdict(symptom),
                }
            )
    return found
