"""From what was run to judgements: which tasks decide, and a verdict for each deployed configuration."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from rope_jax.diagnosis.evaluation.cases import Cases
from rope_jax.diagnosis.evaluation.configurations import ORIGINAL
from rope_jax.diagnosis.evaluation.panel import Evidence, Panel
from rope_jax.diagnosis.evaluation.plan import ModelPlan
from rope_jax.diagnosis.report.why import links
from rope_jax.diagnosis.result import Condition, Judgement, Tasks
from rope_jax.diagnosis.tasks.contexts import PROBES, chance
from rope_jax.diagnosis.tasks.subject import Reach, Subject
from rope_jax.diagnosis.verdict import agreement, pattern, sampling
from rope_jax.diagnosis.verdict.answers import Margins, Verdict
from rope_jax.statistics.multiplicity import simultaneous_confidence

CLUSTERED = 5
"""From so many models on they are judged together, each as one that was drawn; below, each by itself."""


def tasks_of(original: Panel, subject: Subject, *, learned: float) -> Tasks:
    """Returns the tasks that the original models have learned: accuracy of at least `learned` at the trained length."""
    accuracy = {name: float(values.mean()) for name, values in original.accuracy.get("short", {}).items()}
    accuracy = {name: accuracy[name] for name in PROBES if name in accuracy}
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


def judgements_of(
    deployed: Sequence[str],
    cases: Cases,
    plan: ModelPlan,
    conditions: Mapping[str, Condition],
    tasks: Tasks,
    *,
    margins: Margins,
    looks: int,
    part: Callable[[int], Cases],
    seed: int,
) -> tuple[Judgement, ...]:
    """Returns a judgement of every deployed configuration.

    Args:
      deployed: their names.
      cases: the runs on the items that all configurations were asked.
      plan: configurations of the first model.
      conditions: what was measured, by name.
      tasks: which decide.
      margins: what is too little to matter.
      looks: interim analyses, each of which doubles the contexts, until a verdict is settled.
      part: the runs on a further part of the items.
      seed: of the resampling.
    """
    confidence = simultaneous_confidence(max(1, len(deployed)))
    models = len(cases.subjects)
    judged = []
    for name in deployed:
        every = [option.configuration for option in cases.options(name)]

        def more(number: int, asked: Collection[str], name: str = name) -> Evidence:
            return part(number).evidence(name, asked, tasks.used)

        first = cases.evidence(name, every, tasks.used)
        judge = functools.partial(sampling.ask_on, margins=margins, looks=looks, confidence=confidence, seed=seed)
        alone: tuple[Verdict, ...] = ()
        if 1 < models < CLUSTERED:
            alone = tuple(
                judge(_of_model(first, k), lambda number, asked, k=k: _of_model(more(number, asked), k))  # type: ignore[misc]
                for k in range(models)
            )
        verdict = alone[0] if alone else judge(first, more)
        judged.append(
            Judgement(
                deployed=name,
                verdict=verdict,
                by_model=alone,
                agreement=agreement.agreement(alone) if alone else "",
                pattern=_pattern(cases, conditions[name], tasks),
                links=links(
                    conditions[name],
                    conditions[ORIGINAL],
                    verdict,
                    cases.subjects[0].trained_length,
                    cases.subjects[0].target_length,
                    rescaled=_rescaled(verdict, conditions),
                    max_distance=conditions[name].max_distance,
                ),
            )
        )
    return tuple(judged)


def _pattern(cases: Cases, condition: Condition, tasks: Tasks) -> str:
    items = cases.subjects[0].items.long
    if items is None or not tasks.used:
        return ""
    table = None if condition.table is None else np.asarray(condition.table)
    return pattern.pattern(
        condition.answers["long"], items, tasks.used, table=table, max_distance=condition.max_distance
    )


def _rescaled(verdict: Verdict, conditions: Mapping[str, Condition]) -> Condition | None:
    """Returns the configuration after the best change of option 3, where one was run."""
    for ranking in verdict.rankings.values():
        best = next((place.change for place in ranking.places if place.option == "3"), None)
        found = next((one.configuration for one in verdict.changes if one.words == best), None)
        if found is not None:
            return conditions[found]
    return None


def _of_model(evidence: Evidence, model: int) -> Evidence:
    """Returns the evidence of one of several models."""
    return dataclasses.replace(
        evidence,
        as_deployed=_panel_of_model(evidence.as_deployed, model),
        exact=None if evidence.exact is None else _panel_of_model(evidence.exact, model),
        original=_panel_of_model(evidence.original, model),
        changed={name: _panel_of_model(panel, model) for name, panel in evidence.changed.items()},
        corners={parts: _panel_of_model(panel, model) for parts, panel in evidence.corners.items()},
        faults={name: (words, _panel_of_model(panel, model)) for name, (words, panel) in evidence.faults.items()},
    )


def _panel_of_model(panel: Panel, model: int) -> Panel:
    part = slice(model, model + 1)

    def of(values: Mapping[Reach, Mapping[str, np.ndarray]]) -> dict[Reach, dict[str, np.ndarray]]:
        return {reach: {task: value[part] for task, value in tasks.items()} for reach, tasks in values.items()}

    return Panel(of(panel.log_odds), of(panel.accuracy), {reach: value[part] for reach, value in panel.loss.items()})
