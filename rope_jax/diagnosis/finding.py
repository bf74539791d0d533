"""Runs a diagnosis: from a model and what is asked of it to everything that was found."""

import functools
import itertools
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rope_jax import __version__
from rope_jax.biases import Alibi
from rope_jax.diagnosis.again import adapted_judgements, at_lengths, target_lengths
from rope_jax.diagnosis.evaluation import costs as costing
from rope_jax.diagnosis.evaluation.cases import EXACT, Cases
from rope_jax.diagnosis.evaluation.configurations import ORIGINAL, wanted
from rope_jax.diagnosis.evaluation.faults import FAULTS
from rope_jax.diagnosis.evaluation.fitter import FitSettings
from rope_jax.diagnosis.evaluation.observed import checked, read_observed
from rope_jax.diagnosis.evaluation.plan import ModelPlan, PlanSettings, Progress, plan_of
from rope_jax.diagnosis.judging import judgement_of, tasks_of
from rope_jax.diagnosis.models import Asked, Model, asked_of, check_copies
from rope_jax.diagnosis.options import Options
from rope_jax.diagnosis.prediction.agreement import prediction_of
from rope_jax.diagnosis.result import Condition, Findings
from rope_jax.diagnosis.tasks.context_sizes import check_size
from rope_jax.diagnosis.tasks.subject import Reach, Subject
from rope_jax.diagnosis.verdict import agreement, sampling, wording
from rope_jax.errors import InputError, named
from rope_jax.statistics.multiplicity import simultaneous_confidence

_STAGES = ("models and biases", "configurations", "beside them")


def findings_of(
    model: Model | Sequence[Model] | None, options: Options, *, store: Path | None, progress: Progress
) -> Findings:
    """Returns everything that a diagnosis finds; arguments and errors as in `diagnose`."""
    times = [time.perf_counter()]
    settings = _plan_settings(options)
    asked = asked_of(model, options, progress=progress)
    subjects = asked.subjects
    _different(subjects)
    observed = _observed(options, subjects)
    looks = _looks(options, asked)
    lengths = _other_lengths(options, asked)
    plans = [plan_of(folds, settings, store=store, progress=progress) for folds in asked.folds]
    plan = plans[0]
    times.append(time.perf_counter())
    cases = Cases(
        subjects,
        plans,
        folds=asked.fold_of_row,
        store=store,
        faults=tuple(options.faults or (FAULTS if options.full else ())),
        faulty=options.faulty,
        exempt_first=options.exempt_first,
        observed=observed,
    )
    if options.ratios or options.adapt_steps:
        progress(ORIGINAL, 0, len(plan.retrofits))
        _check_learned(cases, options)
    conditions = _conditions(cases, plan, progress)
    original = conditions[ORIGINAL].panel
    tasks = tasks_of(original, subjects[0], learned=options.margins.learned)

    @functools.cache
    def part(number: int) -> Cases:
        progress("asking more contexts", number, 2 ** (looks - 1) - 1)
        assert asked.further is not None
        return cases.on(asked.further(number))

    confidence = simultaneous_confidence(max(1, len(plan.deployed)))
    judgements = [
        judgement_of(name, cases, conditions, tasks, options, confidence=confidence, looks=looks, part=part)
        for name in plan.deployed
    ]
    times.append(time.perf_counter())
    beside: dict[str, Any] = {"adapted": (), "adapted_panels": {}, "prediction": None, "ratios": []}
    if tasks.used:
        kept: dict[str, Any] = {"store": store, "progress": progress}
        if options.adapt_steps:
            beside["adapted"], beside["adapted_panels"] = adapted_judgements(
                subjects, plans, original, tasks.used, options, **kept
            )
        if asked.at_length is not None:
            beside["ratios"] = at_lengths(lengths, asked.at_length, settings, tasks.used, options, **kept)
        if options.predict:
            beside["prediction"] = _prediction(subjects, plans, conditions, tasks.used)
    judged = [ORIGINAL]
    for one in judgements:
        judged += [one.deployed, *(change.configuration for change in one.verdict.changes)]
    timed = {name: plan.schemes(name)[0] for name in dict.fromkeys(judged) if name in conditions}
    beside["costs"] = costing.costs_record(subjects[0], timed)
    times.append(time.perf_counter())
    return Findings(
        subjects=subjects,
        settings=options.plain(),
        margins=options.margins,
        tasks=tasks,
        conditions=conditions,
        judgements=judgements,
        shared=agreement.shared_suspect([one.verdict for one in judgements]),
        findings=asked.findings,
        omitted=plan.omitted,
        seconds={stage: end - start for stage, (start, end) in zip(_STAGES, itertools.pairwise(times), strict=True)},
        versions={"rope_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
        **beside,
    )


def subjects_of(model: Model | Sequence[Model] | None, options: Options) -> list[Subject]:
    """Returns the models and their items without running any; errors as in `diagnose`."""
    return asked_of(model, options).subjects


def _plan_settings(options: Options) -> PlanSettings:
    if not options.every_deployed:
        raise InputError("no deployed configuration is named")
    for option, faults in (("faults", options.faults), ("faulty", (options.faulty,))):
        for fault in faults:
            if fault not in (*FAULTS, EXACT):
                raise InputError(f"{option}: unknown fault {fault!r}; there are: {', '.join(FAULTS)}")
    with named("transforms"):
        for one in options.transforms:
            if isinstance(one, str):
                wanted((one, None))  # that there is one
    with named("deployed"):
        deployed = tuple(wanted(one) for one in options.every_deployed)
    return PlanSettings(
        deployed=deployed,
        transforms=tuple(options.transforms),
        every=options.full,
        fit=FitSettings(options.margins.short_loss, options.num_buckets, options.fit_steps, options.seed),
        layout=options.layout,
        phase=options.phase,
        compose=options.compose,
    )


def _different(subjects: Sequence[Subject]) -> None:
    """Raises `InputError` if a model is given twice: it would count as two that agree."""
    seen: dict[str, str] = {}
    for subject in subjects:
        one = subject.checkpoint
        if one.sha256 in seen:
            raise InputError(f"model: {seen[one.sha256]} and {one.origin} hold the same weights")
        seen[one.sha256] = str(one.origin)


def _observed(options: Options, subjects: Sequence[Subject]) -> Mapping[Reach, np.ndarray] | None:
    given = options.observed
    if given is None:
        return None
    if len(subjects) > 1:
        raise InputError("observed: it is of one model, and several are asked")
    if isinstance(given, str | Path):
        return read_observed(Path(given), subjects[0])
    return checked(given, subjects[0], origin="observed")


def _looks(options: Options, asked: Asked) -> int:
    if options.most_contexts is None:
        return 1
    if asked.further is None:
        raise InputError("most_contexts: a checkpoint of your own cannot be asked more contexts")
    return sampling.number_of_looks(asked.subjects[0].num_contexts, options.most_contexts)


def _other_lengths(options: Options, asked: Asked) -> list[int]:
    """Returns the other target lengths that are asked for, checked before any work is done."""
    for name in ("ratios", "adapt_steps"):
        if asked.at_length is None and getattr(options, name):
            raise InputError(f"{name}: only a bundled test model can be asked this, whose contexts can be made anew")
    first = asked.subjects[0]
    lengths = target_lengths(options.ratios, first.trained_length)
    for length in lengths:
        check_size(rows=first.num_contexts, lengths=[first.trained_length, length], text_rows=len(first.items.text))
        check_copies(first.trained_length, length)
    return lengths


def _check_learned(cases: Cases, options: Options) -> None:
    """Raises `InputError` where a question is asked again of a model that has learned no task."""
    tasks = tasks_of(cases.panel(cases.scores(ORIGINAL)), cases.subjects[0], learned=options.margins.learned)
    if not tasks.used:
        name = "ratios" if options.ratios else "adapt_steps"
        shares = ", ".join(f"{share:.0%} of {wording.named(task)}" for task, share in tasks.accuracy.items())
        raise InputError(
            f"{name}: it needs a task that the model has learned, and there is none: right in {shares} at the trained "
            f"length, {options.margins.learned:.0%} needed"
        )


def _conditions(cases: Cases, plan: ModelPlan, progress: Progress) -> dict[str, Condition]:
    found, total = {}, len(plan.retrofits)
    for done, name in enumerate(plan.retrofits):
        for run in cases.runs:
            run.tell = functools.partial(_tell, progress, name, done, total)
        progress(name, done, total)
        found[name] = _condition(name, cases, plan)
    return found


def _tell(progress: Progress, name: str, done: int, total: int, what: str) -> None:
    progress(f"{name}, {what}", done, total)


def _condition(name: str, cases: Cases, plan: ModelPlan) -> Condition:
    scores = cases.scores(name)
    retrofit = plan.retrofits[name][0]
    scaled, bias = plan.maker.scaled(retrofit), retrofit.bias
    slopes = bias.slopes if isinstance(bias, Alibi) else None
    table = getattr(bias, "table", None)
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
        max_distance=getattr(bias, "max_distance", None),
        fitted=plan.found.get(retrofit.bias_label, ""),
    )


def _prediction(
    subjects: Sequence[Subject], plans: Sequence[ModelPlan], conditions: Mapping[str, Condition], used: tuple[str, ...]
) -> dict[str, Any] | None:
    schemes = {name: [plan.schemes(name)[0] for plan in plans] for name in conditions}
    answers = {name: one.answers.get("long", ()) for name, one in conditions.items()}
    return prediction_of(subjects, schemes, answers, used)
