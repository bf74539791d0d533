"""The same question once more: after a few steps of training in every configuration, and at other target lengths."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rope_jax.diagnosis.evaluation.adaptation import adapted
from rope_jax.diagnosis.evaluation.cases import Cases
from rope_jax.diagnosis.evaluation.configurations import ORIGINAL
from rope_jax.diagnosis.evaluation.panel import Evidence, Panel
from rope_jax.diagnosis.evaluation.plan import ModelPlan, PlanSettings, Progress, plan_of
from rope_jax.diagnosis.evaluation.runs import Runs, panel_of
from rope_jax.diagnosis.options import Options
from rope_jax.diagnosis.result import Judgement
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.verdict.contrasts import Contrasts
from rope_jax.diagnosis.verdict.decide import decide
from rope_jax.diagnosis.verdict.regression import regression
from rope_jax.errors import InputError
from rope_jax.statistics.intervals import CONFIDENCE


def adapted_judgements(
    subjects: Sequence[Subject],
    plans: Sequence[ModelPlan],
    original: Panel,
    used: tuple[str, ...],
    options: Options,
    *,
    store: Path | None,
    progress: Progress,
) -> tuple[tuple[Judgement, ...], dict[str, Panel]]:
    """Returns the judgement of each deployed configuration and of the three options, all adapted alike; and all panels.

    Args:
      subjects: the models as trained.
      plans: their configurations, one a model.
      original: outcomes of the original models.
      used: tasks that decide, at least one.
      options: what is asked for, the steps of training at the target length among it.
      store: directory of finished results and weights; None for none.
      progress: called as work proceeds.
    """
    steps, seed = options.adapt_steps, options.seed

    @functools.cache
    def panel(name: str) -> Panel:
        scores = []
        for subject, plan in zip(subjects, plans, strict=True):
            schemes = plan.schemes(name)
            after = adapted(
                subject,
                schemes[0],
                name=name,
                steps=steps,
                seed=seed,
                store=store,
                on_step=lambda step: progress(f"adapting {name}", step, steps),
            )
            scores.append(Runs(after, store=store)(schemes))
        return panel_of(scores, subjects[0].items, subjects[0].trained_length)

    judged, panels = [], dict[str, Panel]()
    for name in plans[0].deployed:
        changes = tuple(one for one in plans[0].options[name] if one.number)
        panels |= {one: panel(one) for one in (name, *(change.configuration for change in changes))}
        evidence = Evidence(
            deployed=name,
            as_deployed=panels[name],
            exact=None,
            original=original,
            options=changes,
            changed={change.configuration: panels[change.configuration] for change in changes},
            corners={},
            used=used,
            faults={},
            nearest={},
        )
        verdict = decide(evidence, margins=options.margins, seed=seed)
        judged.append(Judgement(name, dataclasses.replace(verdict, settled=True, open=())))
    return tuple(judged), panels


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
            raise InputError(f"ratios: {ratio:g} times {trained_length} tokens is no longer context")
    return lengths


def at_lengths(
    lengths: Sequence[int],
    at_length: Callable[[int], Sequence[Subject]],
    settings: PlanSettings,
    used: tuple[str, ...],
    options: Options,
    *,
    store: Path | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Returns every deployed configuration, and the same without its bias, at every length; biases are fitted anew.

    Retrieval kept and order lost may show at a small ratio where a large one has destroyed everything.

    Args:
      lengths: `L'`, tokens, each above the trained one.
      at_length: the models with items of a target length, tokens.
      settings: whose deployed configurations are run.
      used: tasks that decide, at least one.
      options: what is asked for, the margins among it.
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
        names: dict[str, None] = {}
        for one in plans[0].deployed:
            names |= dict.fromkeys((one, *(o.configuration for o in plans[0].options[one] if o.number == "1")))
        for name in names:
            symptom = regression(cases.panel(cases.scores(name)), original, contrasts, options.margins)
            of = {"configuration": name, "ratio": subjects[0].factor, "target": length}
            found.append(of | dataclasses.asdict(symptom))
    return found
