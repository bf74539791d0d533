"""A diagnosis as one JSON object: all that the text and the page show, and nothing that differs between two runs.

Keys are described in `schema.json` beside this file. Numbers are not rounded. Times and memory stay outside.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Float

from rope_jax.diagnosis.evaluation.panel import Reach
from rope_jax.diagnosis.evaluation.probes import Answers, strata
from rope_jax.diagnosis.result import Condition, Findings
from rope_jax.diagnosis.tasks.contexts import Contexts
from rope_jax.diagnosis.tasks.registry import index_of
from rope_jax.statistics import intervals

__all__ = ["FORMAT", "plain", "record_of", "schema"]

FORMAT = "rope_jax diagnosis 1"
"""Says which schema a record follows; a change that breaks readers changes the number."""

TOGETHER_FROM = 5
"""Models from which a verdict is of all of them together; below, it is of the first."""

_EDGES = 7


def record_of(diagnosis: Findings) -> dict[str, Any]:
    """Returns the record of a diagnosis: plain strings, numbers, lists and objects, as `schema.json` describes them.

    An estimate is `{"mean", "low", "high"}`; `low` and `high` are null where one unit gives no interval. What is not a
    finite number is null.

    Args:
      diagnosis: the result of `diagnose`.

    Raises:
      TypeError: if `settings`, `prediction` or `ratios` hold something that JSON has no value for.
    """
    first = diagnosis.subjects[0]
    items = first.items
    return {
        "format": FORMAT,
        "models": [
            {
                "origin": subject.checkpoint.origin,
                "sha256": subject.checkpoint.sha256,
                "parameters": int(subject.checkpoint.config.num_parameters),
                "vocabulary": int(subject.checkpoint.config.vocab_size),
            }
            for subject in diagnosis.subjects
        ],
        "lengths": {
            "trained": int(first.trained_length),
            "target": int(first.target_length),
            "factor": float(first.factor),
        },
        "items": {"contexts": first.num_contexts, "text_rows": len(items.text), "language": first.language},
        "settings": plain(diagnosis.settings),
        "margins": plain(diagnosis.margins),
        "tasks": plain(diagnosis.tasks),
        "configurations": [_configuration(diagnosis, one) for one in diagnosis.conditions.values()],
        "judgements": plain(diagnosis.judgements),
        "shared": diagnosis.shared,
        "adapted": plain(diagnosis.adapted),
        "prediction": plain(diagnosis.prediction),
        "ratios": plain(diagnosis.ratios),
        "findings": list(diagnosis.findings),
        "omitted": dict(diagnosis.omitted),
        "interval_method": intervals.clustered_method(_judged(diagnosis), first.num_contexts or len(items.text)),
        "versions": dict(diagnosis.versions),
    }


def schema() -> dict[str, Any]:
    """Returns the JSON Schema of a record, as it is published in the package."""
    return json.loads((resources.files("rope_jax.diagnosis.report") / "schema.json").read_text("utf-8"))


def plain(value: Any) -> Any:
    """Returns a value as JSON knows it: dataclasses as objects, arrays as lists, what is not finite as None.

    Raises:
      TypeError: for anything else.

    >>> plain({"mean": np.float32(0.5), "high": math.inf, "used": ("order",)})
    {'mean': 0.5, 'high': None, 'used': ['order']}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Sequence):
        return [plain(entry) for entry in value]
    raise TypeError(f"a record has no place for {type(value).__name__}: {value!r}")


def _judged(diagnosis: Findings) -> int:
    """Returns how many models the verdicts, and so the numbers beside them, speak of."""
    models = len(diagnosis.subjects)
    return models if models >= TOGETHER_FROM else 1


def _configuration(diagnosis: Findings, condition: Condition) -> dict[str, Any]:
    panel, judged = condition.panel, _judged(diagnosis)

    def outcome(values: Float[np.ndarray, "models units"]) -> dict[str, float | None]:
        return plain(intervals.clustered(np.asarray(values)[:judged]))

    def by_task(of_reach: Mapping[Reach, Mapping[str, np.ndarray]]) -> dict[str, Any]:
        return {reach: {task: outcome(values) for task, values in tasks.items()} for reach, tasks in of_reach.items()}

    return {
        "name": condition.name,
        "scaling": condition.scaling,
        "bias": condition.bias,
        "temperature": float(condition.temperature),
        "accuracy": by_task(panel.accuracy),
        "log_odds": by_task(panel.log_odds),
        "loss": {reach: outcome(values) for reach, values in panel.loss.items()},
        "by_model": [_means(condition, model) for model in range(len(diagnosis.subjects))],
        "by_distance": _by_distance(diagnosis, condition, judged),
        "binding_errors": _binding_errors(diagnosis, condition, judged),
        "loss_by_position": _loss_by_position(diagnosis, condition, judged),
        "inverse_frequencies": plain(np.asarray(condition.inverse_frequencies, np.float64)),
        "slopes": None if condition.slopes is None else plain(np.asarray(condition.slopes, np.float64)),
        "table": None if condition.table is None else plain(np.asarray(condition.table, np.float64)),
        "max_distance": condition.max_distance,
        "fitted": condition.fitted,
    }


def _means(condition: Condition, model: int) -> dict[str, Any]:
    panel = condition.panel
    return {
        "accuracy": {
            reach: {task: float(values[model].mean()) for task, values in tasks.items()}
            for reach, tasks in panel.accuracy.items()
        },
        "loss": {reach: float(values[model].mean()) for reach, values in panel.loss.items()},
    }


def _edges(length: int) -> list[int]:
    """Returns edges from 0 to a length, even in the logarithm above the first."""
    first = max(length / 2 ** (_EDGES - 1), 1)
    return [0, *np.unique(np.geomspace(first, length, _EDGES).round().astype(int)).tolist()]


def _asked(diagnosis: Findings, condition: Condition, reach: Reach, judged: int) -> tuple[Contexts, list[Answers]]:
    """Returns the contexts kept with a subject, and the answers to them of the models that the verdict speaks of."""
    items = getattr(diagnosis.subjects[0].items, reach)
    given = []
    for one in condition.answers[reach][:judged]:
        rows = min(len(one.right), len(items.tokens))  # a configuration may have been asked on, or on fewer
        given.append(Answers(one.log_odds[:rows], one.right[:rows], one.picked[:rows]))
    return Contexts(*(column[: len(given[0].right)] for column in items)), given


def _by_distance(diagnosis: Findings, condition: Condition, judged: int) -> dict[str, Any]:
    """Returns outcomes of every task at the target length by the distance to what is asked about."""
    if "long" not in condition.answers:
        return {}
    items, given = _asked(diagnosis, condition, "long", judged)
    edges = _edges(diagnosis.subjects[0].target_length)
    found: dict[str, Any] = {}
    for task in diagnosis.tasks.used:
        right = [strata(one.right.astype(float), items, task, "distance", edges) for one in given]
        odds = [strata(one.log_odds, items, task, "distance", edges) for one in given]
        found[task] = {
            "edges": edges,
            "questions": [count for _, count in right[0]],
            "accuracy": [plain(float(np.mean([model[k][0] for model in right]))) for k in range(len(edges) - 1)],
            "log_odds": [plain(float(np.mean([model[k][0] for model in odds]))) for k in range(len(edges) - 1)],
        }
    return found


def _binding_errors(diagnosis: Findings, condition: Condition, judged: int) -> dict[str, dict[str, int]]:
    """Returns how often `binding` was answered with the item so many places after the one asked for; 0 is right."""
    if "binding" not in diagnosis.tasks.used:
        return {}
    found: dict[str, dict[str, int]] = {}
    for reach in condition.answers:
        items, given = _asked(diagnosis, condition, reach, judged)
        asked = items.probe == index_of("binding")
        errors = []
        for one in given:
            chosen = np.take_along_axis(items.choice_offsets, one.picked[..., None], axis=-1)[..., 0]
            errors.append((chosen - items.asked)[asked])
        values, counts = np.unique(np.concatenate(errors), return_counts=True)
        found[reach] = {str(int(value)): int(count) for value, count in zip(values, counts, strict=True)}
    return found


def _loss_by_position(diagnosis: Findings, condition: Condition, judged: int) -> dict[str, Any]:
    """Returns the loss of counted tokens of text between edges of position."""
    if not len(condition.losses):
        return {"edges": [], "loss": []}
    counted = np.asarray(diagnosis.subjects[0].items.counted, np.float64)
    losses = np.mean([np.asarray(one, np.float64) for one in condition.losses[:judged]], axis=0)
    edges = _edges(losses.shape[1])
    means: list[float | None] = []
    for low, high in itertools.pairwise(edges):
        weight = counted[:, low:high].sum()
        means.append(float((losses[:, low:high] * counted[:, low:high]).sum() / weight) if weight else None)
    return {"edges": edges, "loss": means}
