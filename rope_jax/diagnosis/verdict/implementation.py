"""Answer 2: is what runs what is meant to run? A repair comes before every change, and need not pay for anything."""

import math
from collections.abc import Mapping, Sequence

from rope_jax.diagnosis.evaluation.panel import Evidence, Panel
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import TEXT, Answer, FaultEffect, Implementation, Margins, Shift, Status
from rope_jax.diagnosis.verdict.contrasts import Contrasts, above

__all__ = ["implementation", "repair_comes_first"]

_STATUS: Mapping[Answer, Status] = {
    "yes": "repair first",
    "no": "faulty, harmless",
    "not resolved": "repair may help",
}


def implementation(evidence: Evidence, contrasts: Contrasts, margins: Margins) -> Implementation:
    """Returns what an exact run wins back, and what each fault that was tried would cost.

    Args:
      evidence: of one deployed configuration.
      contrasts: makes the contrasts.
      margins: what is too little to matter.
    """

    def ahead_of(worse: Panel) -> dict[str, Shift]:
        shifts = {by: contrasts.shift(evidence.base, worse, by) for by in contrasts.used or (TEXT,)}
        return {by: shift for by, shift in shifts.items() if not math.isnan(shift.log_odds.mean)}

    repair = None if evidence.exact is None else ahead_of(evidence.as_deployed)
    costs = {name: ahead_of(panel) for name, (_, panel) in evidence.faults.items()}
    faults = tuple(
        FaultEffect(name, description, costs[name], _matters(costs[name], margins))
        for name, (description, _) in evidence.faults.items()
    )
    status = "exact" if repair is None else _STATUS[_matters(repair, margins)]
    nearest = dict(sorted(evidence.nearest.items(), key=lambda item: item[1]))
    return Implementation(status, repair, faults, nearest, _sentence(status, repair or {}, faults, nearest))


def repair_comes_first(found: Implementation, margins: Margins) -> bool:
    """Returns whether an exact run wins back more than a margin, significantly or, where that is open, on average."""
    if found.repair is None or found.status == "faulty, harmless":
        return False
    return any(shift.log_odds.mean > margins.of(by) for by, shift in found.repair.items())


def _matters(costs: Mapping[str, Shift], margins: Margins) -> Answer:
    answers = {above(shift.log_odds, margins.of(by)) for by, shift in costs.items()}
    return "yes" if "yes" in answers else "no" if answers == {"no"} else "not resolved"


def _sentence(
    status: Status, repair: Mapping[str, Shift], faults: Sequence[FaultEffect], nearest: Mapping[str, float]
) -> str:
    gains = wording.listed([wording.shift(by, gain) for by, gain in repair.items()])
    parts = [
        {
            "exact": "The deployed configuration was run exactly",
            "repair first": f"Repair first: running the same configuration exactly changes {gains}",
            "repair may help": "Running the same configuration exactly changes "
            f"{gains or 'what was not measured'}: whether that is more than the margin is not resolved",
            "faulty, harmless": "What runs differs from an exact run, by no more than the margins: that changes "
            f"{gains}",
        }[status]
    ]
    if len(nearest) > 1:
        (first, by), (second, other) = list(nearest.items())[:2]
        parts.append(
            f"the observed answers lie nearest to those of {_run(first)} ({by:.2f} nats a question; {_run(second)}: "
            f"{other:.2f})"
        )
    if costly := [fault.name for fault in faults if fault.matters == "yes"]:
        parts.append(f"of the faults tried, {wording.listed(costly)} would cost more than the margin")
    if unclear := [fault.name for fault in faults if fault.matters == "not resolved"]:
        parts.append(f"what {wording.listed(unclear)} would cost is not resolved")
    return "; ".join(parts) + "."


def _run(name: str) -> str:
    return "the exact run" if name == "exact" else f"a run with {name}"
