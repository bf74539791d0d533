"""From what was run to judgements: which tasks decide, and a verdict for each deployed configuration."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from rope_jax.diagnosis.evaluation.cases import Cases
from rope_jax.diagnosis.evaluation.panel import Evidence, Panel
from rope_jax.diagnosis.options import Options
from rope_jax.diagnosis.report.why import links
from rope_jax.diagnosis.result import Condition, Judgement, Tasks
from rope_jax.diagnosis.tasks.contexts import PROBES, chance
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.verdict import agreement, pattern, sampling
from rope_jax.diagnosis.verdict.answers import Verdict
from rope_jax.diagnosis.verdict.contrasts import MODELS


def tasks_of(original: Panel, subject: Subject, *, learned: float) -> Tasks:
    """Returns the tasks that the original models have learned: accuracy of at least `learned` at the trained length."""
    measured = original.accuracy.get("short", {})
    accuracy = {name: float(measured[name].mean()) for name in PROBES if name in measured}
    short = subject.items.short
    return Tasks(
        used=tuple(name for name, value in accuracy.items() if value >= learned),
        refused={
            name: f"not learned: right in {value:.1%} at the trained length, {learned:.0%} needed"
            for name, value in accuracy.items()
            if value < learned
        },
        accuracy=accuracy,
        chance={} if short is None else {name: chance(short, name) for name in accuracy},
    )


def judgement_of(
    deployed: str,
    cases: Cases,
    conditions: Mapping[str, Condition],
    tasks: Tasks,
    options: Options,
    *,
    confidence: float,
    looks: int,
    part: Callable[[int], Cases],
) -> Judgement:
    """Returns the judgement of a deployed configuration.

    Args:
      deployed: its name.
      cases: the runs on the items that all configurations were asked.
      conditions: what was measured, by name.
      tasks: which decide.
      options: what is asked for.
      confidence: of its intervals.
      looks: interim analyses, each of which doubles the contexts, until the verdict is settled.
      part: the runs on a further part of the items, from 1.
    """
    subject, condition, used = cases.subjects[0], conditions[deployed], tasks.used
    first = cases.evidence(deployed, [option.configuration for option in cases.options(deployed)], used)

    def judge(of: Callable[[Evidence], Evidence]) -> Verdict:
        def more(number: int, asked: Collection[str]) -> Evidence:
            return of(part(number).evidence(deployed, asked, used))

        return sampling.ask_on(
            of(first), more, margins=options.margins, looks=looks, confidence=confidence, seed=options.seed
        )

    models = len(cases.subjects)
    alone: tuple[Verdict, ...] = ()
    if 1 < models < MODELS:
        alone = tuple(judge(lambda evidence, k=k: _of_model(evidence, k)) for k in range(models))  # type: ignore[misc]
    verdict = alone[0] if alone else judge(lambda evidence: evidence)
    return Judgement(
        deployed,
        verdict,
        by_model=alone,
        agreement=agreement.agreement(alone),
        pattern=_pattern(subject, condition, used),
        links=links(condition, conditions, verdict, subject.trained_length, subject.target_length),
    )


def _pattern(subject: Subject, condition: Condition, used: tuple[str, ...]) -> str:
    items = subject.items.long
    if items is None or not used:
        return ""
    table = None if condition.table is None else np.asarray(condition.table)
    return pattern.pattern(condition.answers["long"], items, used, table=table, max_distance=condition.max_distance)


def _of_model(value: Any, model: int) -> Any:
    """Returns evidence of one of several models: the first axis of every array in it is that of the models."""
    if isinstance(value, np.ndarray):
        return value[model : model + 1]
    if isinstance(value, Mapping):
        return {key: _of_model(one, model) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_of_model(one, model) for one in value)
    if isinstance(value, Evidence | Panel):
        parts = {field.name: _of_model(getattr(value, field.name), model) for field in dataclasses.fields(value)}
        return type(value)(**parts)
    return value
