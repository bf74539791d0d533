"""Numbers in words: log-odds in nats with accuracy beside them, each with its interval."""

import math
from collections.abc import Sequence

import numpy as np

from rope_jax.diagnosis.evaluation.panel import Panel, Reach
from rope_jax.diagnosis.verdict.answers import Shift
from rope_jax.diagnosis.verdict.contrasts import TEXT
from rope_jax.statistics.intervals import Estimate

__all__ = ["accuracy_change", "interval", "listed", "percent", "points", "shift"]


def interval(value: Estimate, *, sign: bool = False, digits: int = 2) -> str:
    """Returns a mean with its interval.

    >>> interval(Estimate(0.331, 0.2, 0.452), sign=True), interval(Estimate(0.5, None, None))
    ('+0.33 [+0.20, +0.45]', '0.50')
    """
    form = f"{'+' if sign else ''}.{digits}f"
    if math.isnan(value.mean):
        return "not measured"
    if value.low is None or value.high is None:
        return f"{value.mean:{form}}"
    return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"


def points(value: Estimate | None) -> str:
    """Returns a change of accuracy in points of a hundred, "" without one.

    >>> points(Estimate(0.051, 0.0, 0.1)), points(Estimate(-0.01, None, None)), points(None)
    ('+5 points', '-1 point', '')
    """
    if value is None or math.isnan(value.mean):
        return ""
    whole = round(100 * value.mean)
    return f"{whole:+d} point{'' if abs(whole) == 1 else 's'}"


def shift(name: str, value: Shift) -> str:
    """Returns the gain of a task in both units.

    >>> shift("order", Shift(Estimate(0.33, 0.2, 0.45), Estimate(0.05, 0.0, 0.1)))
    'order +0.33 [+0.20, +0.45] nats (+5 points)'
    """
    if name == TEXT:
        return f"{name} {interval(-value.log_odds, sign=True)} nats a token"
    beside = points(value.accuracy)
    return f"{name} {interval(value.log_odds, sign=True)} nats" + (f" ({beside})" if beside else "")


def percent(panel: Panel, reach: Reach, task: str) -> str:
    """Returns the accuracy of a task as a percentage, or "?" where it was not measured."""
    values = panel.accuracy.get(reach, {}).get(task)
    return "?" if values is None or not values.size else f"{100 * float(np.mean(values)):.0f} %"


def accuracy_change(before: Panel, was: Reach, after: Panel, task: str) -> str:
    """Returns the accuracy of a task in one configuration and, at the target length, in another: "96 % → 67 %"."""
    return f"{percent(before, was, task)} → {percent(after, 'long', task)}"


def listed(parts: Sequence[str]) -> str:
    """Returns several parts as one.

    >>> listed(["order"]), listed(["order", "binding"]), listed(["a", "b", "c"])
    ('order', 'order and binding', 'a, b and c')
    """
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)
