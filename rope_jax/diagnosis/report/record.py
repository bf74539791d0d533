"""A diagnosis as one JSON object: all that the text and the page show, and nothing that differs between two runs.

Keys are described in `schema.json` beside this file. Numbers are not rounded. Times and memory stay outside.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from rope_jax.diagnosis.evaluation.panel import Reach
from rope_jax.diagnosis.evaluation.probes import Answers, strata
from rope_jax.diagnosis.result import Condition, Findings
from rope_jax.diagnosis.tasks.contexts import Contexts
from rope_jax.diagnosis.tasks.registry import index_of
from rope_jax.diagnosis.verdict.contrasts import MODELS
from rope_jax.statistics import intervals

__all__ = ["FORMAT", "plain", "record_of", "schema"]

FORMAT = "rope_jax diagnosis 1"
"""Says which schema a record follows; a change that breaks readers changes the number."""

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
    contexts, rows = first.num_contexts, len(first.items.text)
    values = {
        "format": FORMAT,
        "models": [
            {
                "origin": model.origin,
                "sha256": model.sha256,
                "parameters": model.config.num_parameters,
                "vocabulary": model.config.vocab_size,
            }
            for model in (subject.checkpoint for subject in diagnosis.subjects)
        ],
        "lengths": {"trained": first.trained_length, "target": first.target_length, "factor": first.factor},
        "items": {"contexts": contexts, "text_rows": rows, "language": first.language},
        "settings": diagnosis.settings,
        "margins": diagnosis.margins,
        "tasks": diagnosis.tasks,
        "configurations": [_configuration(diagnosis, one) for one in diagnosis.conditions.values()],
        "judgements": diagnosis.judgements,
        "shared": diagnosis.shared,
        "adapted": diagnosis.adapted,
        "prediction": diagnosis.prediction,
        "ratios": diagnosis.ratios,
        "findings": diagnosis.findings,
        "omitted": diagnosis.omitted,
        "interval_method": intervals.clustered_method(_judged(diagnosis), contexts or rows),
        "versions": diagnosis.versions,
    }
    return plain(values)


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
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [plain(entry) for entry in value]
    raise TypeError(f"a record has no place for {type(value).__name__}: {value!r}")


def _judged(diagnosis: Findings) -> int:
    """Returns how many models the verdicts, and so the numbers beside them, speak of."""
    return len(diagnosis.subjects) if len(diagnosis.subjects) >= MODELS else 1


def _configuration(diagnosis: Findings, condition: Condition) -> dict[str, Any]:
    panel, judged = condition.panel, _judged(diagnosis)

    def outcome(values: np.ndarray, unseen: float = 0.0) -> Any:
        return intervals.clustered(np.asarray(values)[:judged], unseen=unseen)

    def share(values: np.ndarray) -> Any:
        # Where all contexts agree, one that does not may still be among those that were not asked about.
        agree = np.ptp(np.asarray(values)[:judged]) == 0
        return outcome(values, unseen=float(agree)).within(0.0, 1.0)

    return {
        "name": condition.name,
        "scaling": condition.scaling,
        "bias": condition.bias,
        "temperature": condition.temperature,
        "accuracy": _each(share, panel.accuracy),
        "log_odds": _each(outcome, panel.log_odds),
        "loss": _each(outcome, panel.loss),
        "by_model": [
            {"accuracy": _each(mean, panel.accuracy), "loss": _each(mean, panel.loss)}
            for mean in (lambda values, k=k: values[k].mean() for k in range(len(diagnosis.subjects)))
        ],
        "by_distance": _by_distance(diagnosis, condition, judged),
        "binding_errors": _binding_errors(diagnosis, condition, judged),
        "loss_by_position": _loss_by_position(diagnosis, condition, judged),
        "inverse_frequencies": condition.inverse_frequencies,
        "slopes": condition.slopes,
        "table": condition.table,
        "max_distance": condition.max_distance,
        "fitted": condition.fitted,
    }


def _each(of: Callable[[np.ndarray], Any], values: Any) -> Any:
    """Returns what is made of every array of a panel, by reach and task."""
    return {key: _each(of, one) for key, one in values.items()} if isinstance(values, Mapping) else of(values)


def _edges(length: int) -> list[int]:
    """Returns edges from 0 to a length, even in the logarithm above the first."""
    first = max(length / 2 ** (_EDGES - 1), 1)
    return [0, *np.unique(np.geomspace(first, length, _EDGES).round().astype(int)).tolist()]


def _asked(diagnosis: Findings, condition: Condition, reach: Reach, judged: int) -> tuple[Contexts, list[Answers]]:
    """Returns the contexts kept with a subject, and the answers to them of the models that the verdict speaks of."""
    items = getattr(diagnosis.subjects[0].items, reach)
    given = condition.answers[reach][:judged]
    rows = min(len(given[0].right), len(items.tokens))  # a configuration may have been asked on, or on fewer
    cut = [Answers(one.log_odds[:rows], one.right[:rows], one.picked[:rows]) for one in given]
    return Contexts(*(column[:rows] for column in items)), cut


def _by_distance(diagnosis: Findings, condition: Condition, judged: int) -> dict[str, Any]:
    """Returns outcomes of every task at the target length by the distance to what is asked about."""
    if "long" not in condition.answers:
        return {}
    items, given = _asked(diagnosis, condition, "long", judged)
    edges = _edges(diagnosis.subjects[0].target_length)
    found: dict[str, Any] = {}
    for task in diagnosis.tasks.used:
        outcomes = {
            "accuracy": [strata(one.right.astype(float), items, task, "distance", edges) for one in given],
            "log_odds": [strata(one.log_odds, items, task, "distance", edges) for one in given],
        }
        found[task] = {"edges": edges, "questions": [count for _, count in outcomes["accuracy"][0]]}
        for name, models in outcomes.items():
            found[task][name] = [np.mean([mean for mean, _ in stratum]) for stratum in zip(*models, strict=True)]
    return found


def _binding_errors(diagnosis: Findings, condition: Condition, judged: int) -> dict[Reach, dict[int, int]]:
    """Returns how often `binding` was answered with the item so many places after the one asked for; 0 is right."""
    found = {}
    for reach in condition.answers if "binding" in diagnosis.tasks.used else ():
        items, given = _asked(diagnosis, condition, reach, judged)
        asked = items.probe == index_of("binding")
        errors = []
        for one in given:
            chosen = np.take_along_axis(items.choice_offsets, one.picked[..., None], axis=-1)[..., 0]
            errors.append((chosen - items.asked)[asked])
        values, counts = np.unique(np.concatenate(errors), return_counts=True)
        found[reach] = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return found


def _loss_by_position(diagnosis: Findings, condition: Condition, judged: int) -> dict[str, Any]:
    """Returns the loss of counted tokens of text between edges of position."""
    counted = np.asarray(diagnosis.subjects[0].items.counted, np.float64)
    losses = np.mean([np.asarray(one, np.float64) for one in condition.losses[:judged]], axis=0)
    edges = _edges(losses.shape[1])
    means: list[float | None] = []
    for low, high in itertools.pairwise(edges):
        weight = counted[:, low:high].sum()
        means.append((losses[:, low:high] * counted[:, low:high]).sum() / weight if weight else None)
    return {"edges": edges, "loss": means}
