"""The same judgement after adaptation: every configuration gets its own few steps of training before it is asked."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from rope_jax.diagnosis.evaluation.adaptation import adapted
from rope_jax.diagnosis.evaluation.panel import Evidence, Panel
from rope_jax.diagnosis.evaluation.plan import ModelPlan, Progress
from rope_jax.diagnosis.evaluation.runs import Runs, Scores, panel_of
from rope_jax.diagnosis.result import Judgement, Tasks
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.verdict.answers import Margins
from rope_jax.diagnosis.verdict.decide import decide


def adapted_judgements(
    deployed: Sequence[str],
    subjects: Sequence[Subject],
    plans: Sequence[ModelPlan],
    original: Panel,
    tasks: Tasks,
    *,
    steps: int,
    margins: Margins,
    seed: int,
    store: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[tuple[Judgement, ...], dict[str, Panel]]:
    """Returns the judgement of each deployed configuration and of the three options, all adapted alike; and all panels.

    Args:
      deployed: their names.
      subjects: the models as trained.
      plans: their configurations, one a model.
      original: outcomes of the original models.
      tasks: which decide.
      steps: of training at the target length.
      margins: what is too little to matter.
      seed: of the rows that are trained on.
      store: directory of finished results and weights; None for none.
      progress: called as work proceeds.
    """
    items, trained = subjects[0].items, subjects[0].trained_length

    @functools.cache
    def panel(name: str) -> Panel:
        scores: list[Scores] = []
        for subject, plan in zip(subjects, plans, strict=True):
            schemes = plan.schemes(name)
            after = adapted(
                subject,
                schemes[0],
                name=name,
                steps=steps,
                seed=seed,
                store=store,
                on_step=lambda step, name=name: progress(f"adapting {name}", step, steps),  # type: ignore[misc]
            )
            scores.append(Runs(after, store=store)(schemes))
        return panel_of(scores, items, trained)

    judged = []
    for name in deployed:
        options = tuple(one for one in plans[0].options[name] if one.number)
        evidence = Evidence(
            deployed=name,
            as_deployed=panel(name),
            exact=None,
            original=original,
            options=options,
            changed={one.configuration: panel(one.configuration) for one in options},
            corners={},
            used=tasks.used,
            faults={},
            nearest={},
        )
        verdict = dataclasses.replace(decide(evidence, margins=margins, seed=seed), settled=True, open=())
        judged.append(Judgement(name, verdict, (), "", "", {}))
    names = dict.fromkeys(
        x for one in deployed for x in (one, *(o.configuration for o in plans[0].options[one] if o.number))
    )
    return tuple(judged), {name: panel(name) for name in names}
