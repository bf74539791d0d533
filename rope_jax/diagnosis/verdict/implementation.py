"""Answer 2: is what runs what is meant to run? A repair comes before every change, and need not pay for anything."""

import math
from collections.abc import Mapping
from typing import Literal

from rope_jax.diagnosis.evaluation.panel import Evidence, Panel
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import Answer, FaultEffect, Implementation, Margins, Shift
from rope_jax.diagnosis.verdict.contrasts import TEXT, Contrasts, above
from rope_jax.diagnosis.verdict.regression import margin_of

__all__ = ["implementation", "repair_is_likely"]

Status = Literal["exact", "repair first", "repair may help", "faulty, harmless"]


def implementation(evidence: Evidence, contrasts: Contrasts, margins: Margins) -> Implementation:
    """Returns what an exact run wins back, and what each fault that was tried would cost.

    Args:
      evidence: of one deployed configuration.
      contrasts: makes the contrasts.
      margins: what is too little to matter.
    """
    exact = evidence.as_deployed if evidence.exact is None else evidence.exact
    repair = None if evidence.exact is None else _shifts(evidence.exact, evidence.as_deployed, contrasts)
    faults = tuple(
        FaultEffect(name, description, costs, _matters(costs, margins))
        for name, (description, panel) in evidence.faults.items()
        for costs in [_shifts(exact, panel, contrasts)]
    )
    status = _status(repair, margins)
    nearest = dict(sorted(evidence.nearest.items(), key=lambda item: item[1]))
    return Implementation(status, repair, faults, nearest, _sentence(status, repair, faults, nearest))


def repair_is_likely(found: Implementation, margins: Margins) -> bool:
    """Returns whether an exact run wins back more than a margin, significantly or, where that is open, on average."""
    if found.repair is None or found.status == "faulty, harmless":
        return False
    return any(shift.log_odds.mean > margin_of(task, margins) for task, shift in found.repair.items())


def _shifts(better: Panel, worse: Panel, contrasts: Contrasts) -> dict[str, Shift]:
    """Returns by how much one panel is ahead of another, by task."""
    shifts = {task: contrasts.shift(better, worse, task) for task in contrasts.used}
    if not contrasts.used:
        shifts[TEXT] = Shift(contrasts.estimate(contrasts.loss(worse, better, "long")), None)
    return {task: shift for task, shift in shifts.items() if not math.isnan(shift.log_odds.mean)}


def _matters(costs: Mapping[str, Shift], margins: Margins) -> Answer:
    answers = [above(shift.log_odds, margin_of(task, margins)) for task, shift in costs.items()]
    if "yes" in answers:
        return "yes"
    return "no" if answers and all(answer == "no" for answer in answers) else "not resolved"


def _status(repair: Mapping[str, Shift] | None, margins: Margins) -> Status:
    if repair is None:
        return "exact"
    of_answer: dict[Answer, Status] = {
        "yes": "repair first",
        "no": "faulty, harmless",
        "not resolved": "repair may help",
    }
    return of_answer[_matters(repair, margins)]


def _sentence(
    status: Status,
    repair: Mapping[str, Shift] | None,
    faults: tuple[FaultEffect, ...],
    nearest: Mapping[str, float],
) -> str:
    gains = wording.listed([wording.shift(task, gain) for task, gain in (repair or {}).items()])
    said = {
        "exact": "The deployed configuration was run exactly",
        "repair first": f"Repair first: running the same configuration exactly changes {gains}",
        "repair may help": f"Running the same configuration exactly changes {gains or 'what was not measured'}: "
        "whether that is more than the margin is not resolved",
        "faulty, harmless": f"What runs differs from an exact run, by no more than the margins: that changes {gains}",
    }[status]
    parts = [said]
    if len(nearest) > 1:
        (first, by), (second, other) = list(nearest.items())[:2]
        parts.append(
            f"the observed answers lie nearest to those of {_run(first)} ({by:.2f} nats a question; {_run(second)}: "
            f"{other:.2f})"
        )
    costly = [fault.name for fault in faults if fault.matters == "yes"]
    if costly:
        parts.append(f"of the faults tried, {wording.listed(costly)} would cost more than the margin")
    unclear = [fault.name for fault in faults if fault.matters == "not resolved"]
    if unclear:
        parts.append(f"what {wording.listed(unclear)} would cost is not resolved")
    return "; ".join(parts) + "."


def _run(name: str) -> str:
    return "the exact run" if name == "exact" else f"a run with {name}"
