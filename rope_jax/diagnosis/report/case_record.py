"""The case as one JSON object: everything the page shows, numbers unrounded, and nothing that differs between two runs.

Keys, outermost first; an estimate is `{"mean", "low", "high"}` with a 95 % interval, `low` and `high` null for one row:

- `models`: origin, sha256 and parameters of each.
- `lengths`: trained, target, factor; `items`: haystacks and rows of text at each, where they come from.
- `settings`: margins, seed, and how biases were made.
- `probes`: used, refused with the reason, accuracy of the unchanged model.
- `frequencies`: inverse frequencies of every scaling that was run, radians a token; empty if nothing rotates.
- `biases`: of every model: slopes, tables, what they were fitted to.
- `cells`: of every retrofit run: accuracy, log-odds and loss, short and long; errors of `bind`; outcome by distance.
- `judgements`: of every status quo: symptom, verdict, options with effects and the haystacks they were judged on (these
  intervals, and the symptom's, are of its `confidence`; p-values allow for every look), division of the loss,
  signature, cost of each fault, distance of runs with faults to observed answers, the three links.
- `adapted`: the same after a few steps of training in every arm, from one look, with 95 % intervals.
- `prediction`: from foreshortened haystacks: `spearman` within offsets of bind over `groups` of them, its `ceiling`,
  the same `by_probe`, in words as `text`; what each part of a retrofit is to `blame` for; and for every cell predicted
  and measured errors of `bind` by asked offset 1 ... 8, and what its `heads` are left with: coherence, g50, just
  noticeable difference, bias horizon, bias step; `bands`: logits of the far one of the first model by distance, bands
  of pairs divided at `turns` within the trained length. Null where nothing is predicted.
- `ratios`: every status quo, and its scaling without the bias, at every other ratio asked for: symptom, whether
  retrieval is kept and precision lost; `farthest`: the largest ratio up to which each keeps retrieval, null for none.
- `interval_method`, `omitted`, `versions`.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rope_jax.biases import Alibi
from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.arms import declared_rotary
from rope_jax.diagnosis.evaluation.case import Case, Judgement
from rope_jax.diagnosis.evaluation.case_setup import FittedBiases, rules_of
from rope_jax.diagnosis.evaluation.cell_runs import Scores
from rope_jax.diagnosis.evaluation.cells import Cell, Option
from rope_jax.diagnosis.evaluation.ladder import Rung, farthest
from rope_jax.diagnosis.prediction.agreement import Agreement
from rope_jax.diagnosis.prediction.bands import TURNS
from rope_jax.diagnosis.report import links
from rope_jax.diagnosis.tasks.subject import REACHES
from rope_jax.diagnosis.verdict.attribution import Symptom
from rope_jax.diagnosis.verdict.verdict import Judged, Verdict, attribution
from rope_jax.statistics import intervals
from rope_jax.statistics.intervals import Estimate

DISTANCE_EDGES = 7
"""Edges of the strata of distance, even in the logarithm up to the target length."""


def json_record(
    case: Case,
    *,
    adapted: Sequence[Judgement] = (),
    prediction: Agreement | None = None,
    rungs: Sequence[Rung] = (),
) -> dict[str, Any]:
    """Returns the record, of plain numbers, strings, lists and objects.

    Args:
      case: the result.
      adapted: judgements after adaptation, where arms were adapted.
      prediction: from foreshortened haystacks, beside the measurement.
      rungs: of the ladder of ratios, where one was asked for.
    """
    first = case.subjects[0]
    items = first.items
    return {
        "models": [
            {
                "origin": subject.checkpoint.origin,
                "sha256": subject.checkpoint.sha256,
                "parameters": subject.checkpoint.config.num_parameters,
            }
            for subject in case.subjects
        ],
        "lengths": {"trained": first.trained_length, "target": first.target_length, "factor": first.factor},
        "items": {
            "haystacks": first.num_contexts,
            "text_rows": len(items.text),
            "language": first.language,
        },
        "settings": {
            **{key: value for key, value in dataclasses.asdict(case.settings).items() if key != "status_quos"},
            "margins": dataclasses.asdict(case.settings.margins),
        },
        "probes": {
            "used": list(case.used.names),
            "refused": dict(case.used.refused),
            "accuracy": dict(case.used.accuracy),
        },
        "frequencies": _frequencies(case),
        "biases": [_biases(fitted) for fitted in case.fitted],
        "cells": [_cell(case, cell, scores) for cell, scores in case.cells.items()],
        "judgements": [_judgement(case, judgement) for judgement in case.judgements],
        "adapted": [_judgement(case, judgement) for judgement in adapted],
        "prediction": _prediction(prediction),
        "ratios": [_rung(rung) for rung in rungs],
        "farthest": [{**_named(cell), "ratio": ratio} for cell, ratio in farthest(rungs).items()],
        "interval_method": intervals.clustered_method(len(case.subjects), first.num_contexts),
        "omitted": dict(case.omitted),
        "versions": dict(case.versions),
    }


def _estimate(value: Estimate | None) -> dict[str, float | None] | None:
    return None if value is None else dataclasses.asdict(value)


def _named(cell: Cell) -> dict[str, Any]:
    return {"scaling": cell.scaling, "bias": cell.bias, "temperature": cell.temperature}


def _option(option: Option | None) -> dict[str, Any] | None:
    return None if option is None else {"number": option.number, "change": option.change, **_named(option.cell)}


def _frequencies(case: Case) -> dict[str, list[float]]:
    subject = case.subjects[0]
    group = subject.checkpoint.positions.main_group
    if group.rotary is None:
        return {}
    trained = declared_rotary(group, group.rotary, length=subject.target_length)
    rules = rules_of(subject.factor, subject.trained_length)
    names = dict.fromkeys(cell.scaling for cell in case.cells)
    return {name: rules[name](trained).inverse_frequencies.tolist() for name in names}


def _biases(fitted: FittedBiases) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, bias in fitted.biases.items():
        if isinstance(bias, Alibi):
            record[name] = {"slopes": np.asarray(bias.slopes).tolist()}
    if fitted.star is not None:
        record["alibi_star"] |= {"multiplier": fitted.star.value, "short_cost": fitted.star.cost}
    if fitted.table is not None:
        record["t5"] = {
            "table": fitted.table.table.tolist(),
            "buckets_reached": fitted.table.reached,
            "loss_before": fitted.table.before,
            "loss_after": fitted.table.after,
        }
    return record


def _cell(case: Case, cell: Cell, scores: Sequence[Scores]) -> dict[str, Any]:
    record: dict[str, Any] = {**_named(cell), "loss": {}, "accuracy": {}, "log_odds": {}}
    for reach in REACHES:
        record["loss"][reach] = _estimate(intervals.clustered(attribution.text_loss(scores, reach)))
        if reach in scores[0].answers:
            for key, accuracy in (("accuracy", True), ("log_odds", False)):
                record[key][reach] = {
                    name: _estimate(intervals.clustered(attribution.outcome(scores, reach, [name], accuracy=accuracy)))
                    for name in case.used.names
                }
    if "long" in scores[0].answers:
        record |= _answers(case, scores)
    record["loss_by_position"] = _loss_by_position(case, scores)
    return record


def _answers(case: Case, scores: Sequence[Scores]) -> dict[str, Any]:
    record: dict[str, Any] = {"bind_errors": {}, "bind_g50": {}, "by_distance": {}}
    for reach in REACHES:
        items = getattr(case.subjects[0].items, reach)
        if "bind" in case.used.names:
            errors: dict[int, int] = {}
            for one in scores:
                for error, count in probes.offset_errors(one.answers[reach], items).items():
                    errors[error] = errors.get(error, 0) + count
            record["bind_errors"][reach] = {str(error): errors[error] for error in sorted(errors)}
            record["bind_g50"][reach] = probes.empirical_g50(errors)
    edges = distance_edges(case)
    items = case.subjects[0].items.long
    assert items is not None
    for name in case.used.names:
        parts = {
            key: [probes.strata(values(one), items, name, "distance", edges) for one in scores]
            for key, values in (
                ("log_odds", lambda one: one.answers["long"].log_odds),
                ("accuracy", lambda one: one.answers["long"].right.astype(float)),
            )
        }
        record["by_distance"][name] = {
            "edges": edges,
            "count": [count for _, count in parts["log_odds"][0]],
            **{
                key: [
                    None if np.isnan(mean[0]) else float(np.mean(mean))
                    for mean in ([model[k][0] for model in models] for k in range(len(edges) - 1))
                ]
                for key, models in parts.items()
            },
        }
    return record


def distance_edges(case: Case) -> list[int]:
    """Returns the edges of the strata of distance, tokens."""
    target = case.subjects[0].target_length
    return [0, *(int(edge) for edge in np.unique(np.geomspace(target / 2 ** (DISTANCE_EDGES - 2), target, 6).round()))]


def _loss_by_position(case: Case, scores: Sequence[Scores]) -> dict[str, Any]:
    counted = case.subjects[0].items.counted
    edges = [0, *np.geomspace(64, counted.shape[1], 12).round().astype(int).tolist()]
    losses = np.mean([one.losses for one in scores], axis=0)
    means: list[float | None] = []
    for low, high in itertools.pairwise(edges):
        weight = counted[:, low:high].sum()
        means.append(float((losses[:, low:high] * counted[:, low:high]).sum() / weight) if weight else None)
    return {"edges": edges, "loss": means}


def _judgement(case: Case, judgement: Judgement) -> dict[str, Any]:
    return {
        "status_quo": _named(judgement.status_quo),
        "haystacks": judgement.contexts,
        "confidence": judgement.confidence,
        "symptom": _symptom(judgement.symptom),
        "verdict": _verdict(judgement.verdict),
        "options": [_judged(one) for one in judgement.verdict.judged],
        "shapley": None
        if judgement.shapley is None
        else {name: _estimate(value) for name, value in judgement.shapley.items()},
        "signature": None
        if judgement.signature is None
        else {
            "name": judgement.signature.name,
            "text": judgement.signature.text,
            "evidence": {name: _estimate(value) for name, value in judgement.signature.evidence.items()},
        },
        "faults": [
            {
                "name": one.name,
                "description": one.description,
                "precision_loss": _estimate(one.precision_loss),
                "retrieval_loss": _estimate(one.retrieval_loss),
            }
            for one in judgement.faults
        ],
        "nearest": dict(judgement.nearest),
        "links": links.three_links(case, judgement),
    }


def _prediction(prediction: Agreement | None) -> dict[str, Any] | None:
    if prediction is None:
        return None
    cells = []
    for cell, models in prediction.figures.items():
        one = models[0]
        cells.append(
            {
                **_named(cell),
                "predicted": prediction.predicted[cell].tolist(),
                "measured": prediction.measured[cell].tolist(),
                "coherence": one.coherence.tolist(),
                "g50": list(one.g50),
                "just_noticeable": one.just_noticeable if math.isfinite(one.just_noticeable) else None,
                "horizon": one.horizon if math.isfinite(one.horizon) else None,
                "step": one.step,
            }
        )
    return {
        "spearman": _estimate(prediction.ranks.correlation),
        "groups": prediction.ranks.groups,
        "ceiling": prediction.ceiling,
        "by_probe": {name: _estimate(found.correlation) for name, found in prediction.by_probe.items()},
        "text": prediction.text,
        "heads": [
            {name: dataclasses.asdict(relation) for name, relation in (("local", own.local), ("far", own.far))}
            for own in prediction.heads
        ],
        "blame": [
            {**_named(cell), **{part: _estimate(loss) for part, loss in parts.items()}}
            for cell, parts in prediction.blame.items()
        ],
        "bands": [
            {**_named(cell), **{name: value.tolist() for name, value in found._asdict().items()}}
            for cell, found in prediction.bands.items()
        ],
        "turns": list(TURNS),
        "cells": cells,
    }


def _rung(rung: Rung) -> dict[str, Any]:
    return {
        **_named(rung.cell),
        "ratio": rung.ratio,
        "target": rung.target_length,
        "symptom": _symptom(rung.symptom),
        "retrieves": rung.retrieves,
        "imprecise": rung.imprecise,
    }


def _symptom(symptom: Symptom | None) -> dict[str, Any] | None:
    if symptom is None:
        return None
    return {
        "precision_drop": _estimate(symptom.precision_drop),
        "retrieval_drop": _estimate(symptom.retrieval_drop),
        "specific": _estimate(symptom.specific),
        "by_probe": {name: _estimate(value) for name, value in symptom.by_probe.items()},
        "p_values": dict(symptom.p_values),
        "accuracy": {
            reach: {name: _estimate(value) for name, value in by_probe.items()}
            for reach, by_probe in symptom.accuracy.items()
        },
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "kind": verdict.kind,
        "chosen": _option(verdict.chosen),
        "reason": verdict.reason,
        "cause": verdict.cause,
        "cause_gain": _estimate(verdict.cause_gain),
        "ties": [_option(option) for option in verdict.ties],
        "would_change": list(verdict.would_change),
        "settled": verdict.settled,
    }


def _judged(one: Judged) -> dict[str, Any]:
    effect: Mapping[str, Any] = {
        field.name: getattr(one.effect, field.name) for field in dataclasses.fields(one.effect)
    }
    return {
        "option": _option(one.option),
        "haystacks": one.haystacks,
        "helps": one.helps,
        "qualifies": one.qualifies,
        "lost": dict(one.lost),
        "gain_simultaneous": _estimate(one.gain),
        **{name: _estimate(value) for name, value in effect.items() if name != "by_probe"},
        "by_probe": {name: _estimate(value) for name, value in one.effect.by_probe.items()},
    }
