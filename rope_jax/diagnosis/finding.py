"""Runs a diagnosis: from a model and what is asked of it to everything that was found."""

import functools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rope_jax import __version__
from rope_jax.biases import Alibi
from rope_jax.diagnosis.adapted import adapted_judgements
from rope_jax.diagnosis.evaluation import costs as costing
from rope_jax.diagnosis.evaluation.cases import EXACT, Cases
from rope_jax.diagnosis.evaluation.configurations import ORIGINAL, wanted
from rope_jax.diagnosis.evaluation.faults import FAULTS
from rope_jax.diagnosis.evaluation.fitter import FitSettings
from rope_jax.diagnosis.evaluation.observed import checked, read_observed
from rope_jax.diagnosis.evaluation.own_model import OwnSettings
from rope_jax.diagnosis.evaluation.panel import Panel
from rope_jax.diagnosis.evaluation.plan import ModelPlan, PlanSettings, plan_of
from rope_jax.diagnosis.evaluation.runs import Scores
from rope_jax.diagnosis.judging import judgements_of, tasks_of
from rope_jax.diagnosis.models import Asked, Model, Request, asked_of, check_copies
from rope_jax.diagnosis.options import Options
from rope_jax.diagnosis.prediction.agreement import prediction_of
from rope_jax.diagnosis.ratios import ratios_of, target_lengths
from rope_jax.diagnosis.result import Condition, Findings, Judgement
from rope_jax.diagnosis.tasks.context_sizes import check_size
from rope_jax.diagnosis.tasks.subject import Reach, Subject
from rope_jax.diagnosis.verdict import agreement
from rope_jax.diagnosis.verdict.sampling import number_of_looks
from rope_jax.errors import InputError

Progress = Callable[[str, int, int], None]
_OWN_CONTEXTS = 20


def findings_of(
    model: Model | Sequence[Model] | None, options: Options, *, store: Path | None, progress: Progress
) -> Findings:
    """Returns everything that a diagnosis finds; arguments and errors as in `diagnose`."""
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    settings = _plan_settings(options)
    asked = asked_of(model, _request(options), full=options.full, progress=progress)
    subjects = asked.subjects
    observed = _observed(options, subjects)
    looks = _looks(options, subjects[0].num_contexts, asked.further is not None)
    lengths = _ratio_lengths(options, asked)
    plans = [plan_of(folds, settings, store=store, progress=progress) for folds in asked.folds]
    seconds["models and biases"] = time.perf_counter() - started
    started = time.perf_counter()
    cases = Cases(
        subjects,
        plans,
        folds=asked.fold_of_row,
        store=store,
        faults=tuple(FAULTS) if options.full and not options.faults else tuple(options.faults),
        faulty=options.faulty,
        exempt_first=options.exempt_first,
        observed=observed,
    )
    conditions = _conditions(cases, plans[0], progress)
    original = conditions[ORIGINAL].panel
    tasks = tasks_of(original, subjects[0], learned=options.margins.learned)

    @functools.cache
    def part(number: int) -> Cases:
        progress("asking more contexts", number, 2 ** (looks - 1) - 1)
        assert asked.further is not None
        return cases.on(asked.further(number))

    judgements = judgements_of(
        plans[0].deployed,
        cases,
        plans[0],
        conditions,
        tasks,
        margins=options.margins,
        looks=looks,
        part=part,
        seed=options.seed,
    )
    seconds["configurations"] = time.perf_counter() - started
    started = time.perf_counter()
    adapted: tuple[Judgement, ...] = ()
    adapted_panels: dict[str, Panel] = {}
    if options.adapt_steps and tasks.used:
        adapted, adapted_panels = adapted_judgements(
            plans[0].deployed,
            subjects,
            plans,
            original,
            tasks,
            steps=options.adapt_steps,
            margins=options.margins,
            seed=options.seed,
            store=store,
            progress=progress,
        )
    ratios: list[dict[str, Any]] = []
    if lengths and asked.at_length is not None and tasks.used:
        ratios = ratios_of(
            asked.at_length,
            lengths,
            settings,
            tasks.used,
            margins=options.margins,
            store=store,
            progress=progress,
        )
    prediction = _prediction(subjects, plans, conditions, tasks.used) if options.predict and tasks.used else None
    costs = costing.costs_record(
        subjects[0], {name: plans[0].schemes(name)[0] for name in _judged(judgements) if name in conditions}
    )
    seconds["beside them"] = time.perf_counter() - started
    return Findings(
        subjects=subjects,
        settings=options.plain(),
        margins=options.margins,
        tasks=tasks,
        conditions=conditions,
        judgements=judgements,
        shared=agreement.shared_suspect([one.verdict for one in judgements]),
        adapted=adapted,
        adapted_panels=adapted_panels,
        prediction=prediction,
        ratios=ratios,
        costs=costs,
        findings=asked.findings,
        omitted=plans[0].omitted,
        seconds=seconds,
        versions={"rope_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
    )


def subjects_of(model: Model | Sequence[Model] | None, options: Options) -> list[Subject]:
    """Returns the models and their items without running any; errors as in `diagnose`."""
    return asked_of(model, _request(options), full=options.full).subjects


def _request(options: Options) -> Request:
    return Request(
        target_length=options.target_length,
        contexts=options.contexts,
        text=options.text,
        fit_text=options.fit_text,
        text_rows=options.text_rows,
        separator=options.separator,
        asked_on=options.most_contexts is not None,
        own=OwnSettings(
            trained_length=options.trained_length,
            contexts=_OWN_CONTEXTS if options.contexts is None else options.contexts,
            learned=options.margins.learned,
            layout=options.layout,
            phase=options.phase,
            compose=options.compose,
            seed=options.seed,
        ),
        seed=options.seed,
    )


def _plan_settings(options: Options) -> PlanSettings:
    if not options.every_deployed:
        raise InputError("no deployed configuration is named")
    for fault in (*options.faults, options.faulty):
        if fault not in (*FAULTS, EXACT):
            raise InputError(f"unknown fault {fault!r}; there are: {', '.join(FAULTS)}")
    return PlanSettings(
        deployed=tuple(wanted(one) for one in options.every_deployed),
        transforms=tuple(options.transforms),
        every=options.full,
        fit=FitSettings(options.margins.short_loss, options.num_buckets, options.fit_steps, options.seed),
        layout=options.layout,
        phase=options.phase,
        compose=options.compose,
    )


def _observed(options: Options, subjects: Sequence[Subject]) -> Mapping[Reach, np.ndarray] | None:
    if options.observed is None:
        return None
    if len(subjects) > 1:
        raise InputError("what was observed is of one model, and several are asked")
    given = options.observed
    if isinstance(given, str | Path):
        return read_observed(Path(given), subjects[0])
    return checked(given, subjects[0], origin="observed")


def _looks(options: Options, contexts: int, further: bool) -> int:
    if options.most_contexts is None:
        return 1
    if not further:
        raise InputError("a checkpoint of your own cannot be asked more contexts: leave most_contexts out")
    return number_of_looks(contexts, options.most_contexts)


def _ratio_lengths(options: Options, asked: Asked) -> list[int]:
    """Returns the other target lengths that are asked for, before any work is done."""
    if asked.at_length is None:
        for name in ("ratios", "adapt_steps"):
            if getattr(options, name):
                raise InputError(
                    f"{name}: only a bundled test model can be asked this, whose contexts can be made anew"
                )
    first = asked.subjects[0]
    lengths = target_lengths(options.ratios, first.trained_length)
    for length in lengths:
        check_size(rows=first.num_contexts, lengths=[first.trained_length, length], text_rows=len(first.items.text))
        check_copies(first.trained_length, length)
    return lengths


def _conditions(cases: Cases, plan: ModelPlan, progress: Progress) -> dict[str, Condition]:
    found: dict[str, Condition] = {}
    total = len(plan.retrofits)
    for name in plan.retrofits:
        for run in cases.runs:
            run.tell = functools.partial(_tell, progress, name, len(found), total)
        progress(name, len(found), total)
        found[name] = _condition(name, cases.scores(name), cases, plan)
    return found


def _tell(progress: Progress, name: str, done: int, total: int, what: str) -> None:
    progress(f"{name}, {what}", done, total)


def _condition(name: str, scores: Sequence[Scores], cases: Cases, plan: ModelPlan) -> Condition:
    retrofit = plan.retrofits[name][0]
    scaled = plan.maker.scaled(retrofit)
    slopes = retrofit.bias.slopes if isinstance(retrofit.bias, Alibi) else None
    table = getattr(retrofit.bias, "table", None)
    return Condition(
        name=name,
        scaling=retrofit.scaling,
        bias=retrofit.bias_label,
        temperature=retrofit.temperature * scaled.cos_sin_factor**2 * scaled.logit_scale,
        panel=cases.panel(scores),
        answers={reach: [one.answers[reach] for one in scores] for reach in scores[0].answers},
        losses=[one.losses for one in scores],
        inverse_frequencies=scaled.inverse_frequencies.tolist(),
        slopes=None if slopes is None else np.asarray(slopes).tolist(),
        table=None if table is None else np.asarray(table).tolist(),
        max_distance=getattr(retrofit.bias, "max_distance", None),
        fitted=plan.found.get(retrofit.bias_label, ""),
    )


def _judged(judgements: Sequence[Judgement]) -> list[str]:
    """Returns the configurations that judgements are about, the original and every deployed one among them."""
    names = [ORIGINAL]
    for one in judgements:
        names += [one.deployed, *(change.configuration for change in one.verdict.changes)]
    return list(dict.fromkeys(names))


def _prediction(
    subjects: Sequence[Subject], plans: Sequence[ModelPlan], conditions: Mapping[str, Condition], used: tuple[str, ...]
) -> dict[str, Any] | None:
    schemes = {name: [plan.schemes(name)[0] for plan in plans] for name in conditions}
    answers = {name: one.answers.get("long", ()) for name, one in conditions.items()}
    return prediction_of(subjects, schemes, answers, used)
