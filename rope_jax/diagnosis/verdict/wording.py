"""Numbers in words: log-odds in nats with accuracy beside them, each with its interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rope_jax.diagnosis import ranges
from rope_jax.diagnosis.evaluation.panel import Panel, Reach
from rope_jax.diagnosis.verdict.answers import TEXT, Shift
from rope_jax.diagnosis.verdict.contrasts import MOST
from rope_jax.statistics.intervals import Estimate

__all__ = [
    "accuracy_change",
    "interval",
    "is_practical",
    "listed",
    "milliseconds",
    "named",
    "number",
    "shift",
    "signed",
    "unit",
]


def named(task: str) -> str:
    """Returns a task, or another measure, as words in a sentence.

    >>> named("order"), named("binding"), named("long loss of text")
    ('event order', 'binding', 'long loss of text')
    """
    return "event order" if task == "order" else task


def interval(value: Estimate, *, sign: bool = False, digits: int = 2) -> str:
    """Returns a mean with its interval.

    >>> interval(Estimate(0.331, 0.2, 0.452), sign=True), interval(Estimate(0.5, None, None))
    ('+0.33 [+0.20, +0.45]', '0.50')
    """

    def shown(number: float) -> str:
        return f"{round(number, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # so that no -0 comes out

    if math.isnan(value.mean):
        return "not measured"
    if value.low is None or value.high is None:
        return shown(value.mean)
    return f"{shown(value.mean)} [{shown(value.low)}, {shown(value.high)}]"


def signed(value: Estimate, above: str, below: str, *, digits: int = 2) -> str:
    """Returns a value after the word for its direction, so that no word is contradicted by a minus.

    >>> signed(Estimate(-1.82, -2.0, -1.64), "costs", "wins"), signed(Estimate(0.1, -0.1, 0.3), "costs", "wins")
    ('wins 1.82 [1.64, 2.00]', 'costs 0.10 [-0.10, 0.30]')
    """
    return (
        f"{below} {interval(-value, digits=digits)}" if value.mean < 0 else f"{above} {interval(value, digits=digits)}"
    )


def shift(name: str, value: Shift) -> str:
    """Returns the gain of a task in both units.

    >>> shift("order", Shift(Estimate(0.33, 0.2, 0.45), Estimate(0.05, 0.0, 0.1)))
    'event order +0.33 [+0.20, +0.45] nats (+5 points)'
    """
    if name == TEXT:
        return f"{name} {interval(-value.log_odds, sign=True)} nats a token"
    beside = ""
    if value.accuracy is not None and not math.isnan(value.accuracy.mean):
        points = round(100 * value.accuracy.mean)
        beside = f" ({points:+d} point{'' if abs(points) == 1 else 's'})"
    return f"{named(name)} {interval(value.log_odds, sign=True)} nats{beside}"


def milliseconds(cost: Mapping[str, Any]) -> str:
    """Returns the time of a row, from `costs_record`: the median with the fastest and the slowest; "" of one alone.

    >>> milliseconds({"milliseconds": 12.04, "fastest": 11.4, "slowest": 13.1})
    '12 ms [11.4, 13.1]'
    """
    if cost["fastest"] is None:
        return ""
    return f"{cost['milliseconds']:.3g} ms [{cost['fastest']:.3g}, {cost['slowest']:.3g}]"


def accuracy_change(original: Panel, deployed: Panel, task: str) -> str:
    """Returns the accuracy of a task in the original at `L` and in what is deployed at `L'`: "96 % → 67 %"."""

    def percent(panel: Panel, reach: Reach) -> str:
        values = panel.accuracy.get(reach, {}).get(task)
        return "?" if values is None or not values.size else f"{100 * float(np.mean(values)):.0f} %"

    return f"{percent(original, 'short')} → {percent(deployed, 'long')}"


def unit(by: str) -> str:
    """Returns what costs and gains are counted in, together or by text."""
    return "nats a token of the long loss of text" if by == TEXT else "nats of event order and binding"


def number(count: int, counted: str) -> str:
    """Returns a number to two digits, upward, and what is counted; more than can be asked for is called impractical.

    >>> number(7, "contexts"), number(183, "contexts"), number(4021, "rows of text")
    ('7 contexts', '190 contexts', '4,100 rows of text')
    >>> number(66_543, "contexts"), number(MOST + 1, "rows")
    ('more contexts than is practical (about 67,000)', 'more rows than is practical (more than 100,000)')
    """
    step = 10 ** max(0, len(str(count)) - 2)
    upward = f"{math.ceil(count / step) * step:,}"
    if count > ranges.MOST:
        return f"more {counted} than is practical ({f'more than {MOST:,}' if count > MOST else f'about {upward}'})"
    return f"{upward} {counted}"


def is_practical(numbers: str) -> bool:
    """Returns whether all of the numbers that `number` gave, in words, can be asked for."""
    return "than is practical" not in numbers


def listed(parts: Sequence[str]) -> str:
    """Returns several parts as one.

    >>> listed(["order"]), listed(["order", "binding"]), listed(["a", "b", "c"])
    ('order', 'order and binding', 'a, b and c')
    """
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)
