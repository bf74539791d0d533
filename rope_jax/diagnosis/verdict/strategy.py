"""A retrofit still to be chosen: the best cell that a budget of training, time and memory allows."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rope_jax.diagnosis.evaluation.cell_runs import Scores
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell
from rope_jax.diagnosis.verdict.attribution import Table, Used
from rope_jax.diagnosis.verdict.verdict import Margins, above, attribution
from rope_jax.errors import InputError
from rope_jax.statistics import intervals
from rope_jax.statistics.intervals import Estimate


@dataclasses.dataclass(frozen=True)
class Budget:
    """What may be spent.

    Attributes:
      steps: training steps; with 0 only hot-swapped cells count.
      latency: time to read one row, times that of the unchanged model.
      memory: temporary memory of reading one row, MiB.
    """

    steps: int = 0
    latency: float = math.inf
    memory: float = math.inf


def parse(text: str) -> Budget:
    """Returns the budget of `steps=N,latency=RATIO,memory=MIB`, each of them optional.

    Raises:
      InputError: if a part is not one of these, or out of range.

    >>> parse("steps=100,latency=1.5")
    Budget(steps=100, latency=1.5, memory=inf)
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(steps|latency|memory)\s*=\s*(\d+(?:\.\d*)?)\s*", part)
        if match is None or match[1] in values:
            raise InputError(f"--budget: {part.strip()!r} is not one of steps=N, latency=RATIO, memory=MIB, each once")
        if match[1] == "steps" and "." in match[2]:
            raise InputError(f"--budget: steps must be a whole number, got {match[2]}")
        values[match[1]] = float(match[2])
    return Budget(int(values.get("steps", 0)), values.get("latency", math.inf), values.get("memory", math.inf))


@dataclasses.dataclass(frozen=True)
class Strategy:
    """What to do within a budget.

    Attributes:
      cell: the retrofit, or None where nothing qualifies.
      adapted: whether it is to be trained for a few steps.
      gain: of all probes used at the target length over the unchanged model, nats.
      ahead: of the runner-up, nats; None without one.
      refused: why the other cells that would gain more are not chosen, by name.
      reason: why nothing can be chosen at all, or None.
    """

    cell: Cell | None
    adapted: bool
    gain: Estimate | None
    ahead: Estimate | None
    refused: Mapping[str, str]
    reason: str | None = None


def choose(
    cells: Table,
    adapted: Table,
    used: Used,
    budget: Budget,
    costs: Sequence[Mapping[str, Any]],
    *,
    margins: Margins,
) -> Strategy:
    """Returns the strategy that wins most at the target length and loses nothing at the trained one.

    Args:
      cells: hot-swapped scores of every cell, the unchanged model among them.
      adapted: scores of the cells that were adapted.
      used: probes that passed their gate.
      budget: what may be spent.
      costs: of the cells, from `costs.costs_record`; a cell without a measured cost counts as free.
      margins: what may be lost at the trained length.
    """
    if not used.names:
        reason = "the model has learned no probe, so nothing tells what a cell would gain"
        return Strategy(None, False, None, None, {}, reason)
    before = cells[UNCHANGED]
    of_cell = {Cell(one["scaling"], one["bias"], one["temperature"]): one for one in costs}
    unchanged = of_cell.get(UNCHANGED)
    candidates = [(cell, False, scores) for cell, scores in cells.items()]
    candidates += [(cell, True, scores) for cell, scores in adapted.items() if budget.steps]
    gains = sorted(
        ((_gain(scores, before, used), cell, trained, scores) for cell, trained, scores in candidates),
        key=lambda one: -one[0].mean,
    )
    refused: dict[str, str] = {}
    for place, (gain, cell, trained, scores) in enumerate(gains):
        if cell == UNCHANGED and not trained:
            why = None  # it loses nothing against itself, with or without an interval
        else:
            why = _refusal(scores, before, used, margins) or _too_dear(of_cell.get(cell), unchanged, budget)
        if why is None:
            behind = gains[place + 1 :]
            ahead = _gain(scores, behind[0][3], used) if behind else None
            return Strategy(cell, trained, gain, ahead, refused)
        refused[f"{cell}{' adapted' if trained else ''}"] = why
    return Strategy(None, False, None, None, refused)


def strategy_record(strategy: Strategy) -> dict[str, Any]:
    """Returns the strategy as plain values."""
    cell = strategy.cell
    return {
        "cell": None if cell is None else cell._asdict(),
        "adapted": strategy.adapted,
        "gain": None if strategy.gain is None else dataclasses.asdict(strategy.gain),
        "ahead": None if strategy.ahead is None else dataclasses.asdict(strategy.ahead),
        "refused": dict(strategy.refused),
        "reason": strategy.reason,
    }


def strategy_lines(strategy: Strategy) -> list[str]:
    """Returns the strategy for a terminal."""
    if strategy.reason is not None:
        lines = [f"STRATEGY: none: {strategy.reason}"]
    elif strategy.cell is None or strategy.gain is None:
        lines = ["STRATEGY: no cell that was run stays within the budget and the margins"]
    else:
        how = "after adapting it" if strategy.adapted else "as it is"
        lines = [
            f"STRATEGY: {strategy.cell}, {how}: gains {strategy.gain.mean:+.2f} nats at the target length over the "
            "unchanged model"
        ]
        if strategy.ahead is not None:
            lines.append(f"  ahead of the runner-up by {strategy.ahead.mean:+.2f} nats")
    return lines + [f"  not {name}: {why}" for name, why in strategy.refused.items()]


def _gain(changed: Sequence[Scores], before: Sequence[Scores], used: Used) -> Estimate:
    return intervals.clustered(
        attribution.outcome(changed, "long", used.names) - attribution.outcome(before, "long", used.names)
    )


def _refusal(changed: Sequence[Scores], before: Sequence[Scores], used: Used, margins: Margins) -> str | None:
    effect = attribution.effect(changed, before, used, confidence=0.95)
    for what, loss, margin in (
        ("short accuracy", effect.short_loss, margins.short_accuracy),
        ("short loss of text", effect.short_cost, margins.short_cost),
    ):
        if above(loss, margin) != "no":
            return f"{what}: {loss.mean:.3f} lost, at most {margin:g} may be"
    return None


def _too_dear(cost: Mapping[str, Any] | None, unchanged: Mapping[str, Any] | None, budget: Budget) -> str | None:
    if cost is None or unchanged is None:
        return None
    ratio = cost["milliseconds"] / unchanged["milliseconds"]
    if ratio > budget.latency:
        return f"latency: {ratio:.2f} times the unchanged model's, at most {budget.latency:g} may be"
    if cost["mib"] > budget.memory:
        return f"memory: {cost['mib']:.0f} MiB, at most {budget.memory:g} may be"
    return None
