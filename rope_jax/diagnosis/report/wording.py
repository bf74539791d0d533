"""Numbers of a record as words: estimates with their intervals, shares as percent, lengths, probabilities."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

Estimate = Mapping[str, float | None]

TASKS = {
    "retrieval": "retrieval",
    "binding": "binding (n-th)",
    "order": "event order",
    "order, first asked": "  first asked",
    "order, last asked": "  last asked",
}
"""Tasks as a reader meets them, in the order in which they are shown."""


def estimate(value: Estimate | None, *, digits: int = 2, sign: bool = True) -> str:
    """Returns an estimate with its interval in brackets; three figures where it is large.

    >>> estimate({"mean": 0.333, "low": 0.2, "high": 0.456}), estimate({"mean": 12.34, "low": None, "high": None})
    ('+0.33 [0.20, 0.46]', '+12.3')
    """
    if value is not None and value["mean"] is not None and abs(value["mean"]) >= 10:
        digits = min(digits, 1)
    return _shown(value, digits, sign)


def percent(value: Estimate | None) -> str:
    """Returns a share.

    >>> percent({"mean": 0.97, "low": 0.948, "high": 0.99})
    '97 % [95, 99]'
    """
    return _shown(value, 0, False, 100, lambda number: " %")


def points(value: Estimate | None, *, digits: int = 0) -> str:
    """Returns a difference of two shares.

    >>> points({"mean": 0.05, "low": -0.01, "high": 0.11})
    '+5 points [-1, 11]'
    """
    return _shown(value, digits, True, 100, lambda number: " point" + "s" * (number not in ("+1", "-1")))


def _shown(
    value: Estimate | None, digits: int, sign: bool, scale: int = 1, unit: Callable[[str], str] = lambda number: ""
) -> str:
    if value is None or value["mean"] is None:
        return "-"
    mean = _number(scale * value["mean"], digits, sign)
    low, high = value["low"], value["high"]
    if low is None or high is None:
        return mean + unit(mean)
    return f"{mean}{unit(mean)} [{_number(scale * low, digits, False)}, {_number(scale * high, digits, False)}]"


def _number(value: float, digits: int, sign: bool) -> str:
    rounded = round(value, digits) + 0.0  # so that no -0 comes out
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}"


def negated(value: Estimate | None) -> Estimate | None:
    """Returns the opposite: a gain of what was a fall."""
    if value is None:
        return None
    mean, low, high = (None if end is None else 0 - end for end in (value["mean"], value["low"], value["high"]))
    return {"mean": mean, "low": high, "high": low}


def significant(value: Estimate | None) -> int:
    """Returns 1 where the whole interval is above 0, -1 where it is below, else 0; 0 without an interval."""
    if value is None or value["low"] is None or value["high"] is None:
        return 0
    return 1 if value["low"] > 0 else -1 if value["high"] < 0 else 0


def probability(value: float) -> str:
    """Returns a probability, never as certain as a sample cannot say.

    >>> probability(0.999), probability(0.87), probability(0.001)
    ('> .99', '.87', '< .01')
    """
    if value > 0.99:
        return "> .99"
    return "< .01" if value < 0.01 else f"{value:.2f}".removeprefix("0")


def tokens(length: int) -> str:
    """Returns a length in short.

    >>> tokens(32768), tokens(256), tokens(100000)
    ('32k', '256', '100,000')
    """
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else f"{length:,}"


def capital(text: str) -> str:
    """Returns a text with its first letter large and a full stop at its end; "" stays."""
    text = text.strip()
    return text and text[0].upper() + text[1:] + ("" if text[-1] in ".!?:" else ".")


def answered(sentence: str) -> str:
    """Returns a sentence that begins with its answer, the answer in capitals.

    >>> answered("No: order stays low.")
    'NO. Order stays low.'
    """
    answer, _, reason = sentence.partition(": ")
    return f"{answer.upper()}. {capital(reason)}"


def numbered(option: str, words: str) -> str:
    """Returns a change with its number before it where it is one of the three.

    >>> numbered("1", "drop the bias"), numbered("", "undo both"), numbered("undo both", "undo both")
    ('1: drop the bias', 'undo both', 'undo both')
    """
    return words if option in ("", words) else f"{option}: {words}"


def model_name(models: Sequence[Mapping[str, Any]]) -> str:
    """Returns what the models are called: the end of the path or address that they came from."""
    names = [PurePath(str(model["origin"])).name or str(model["origin"]) for model in models]
    return names[0] if len(names) == 1 else f"{len(names)} models ({names[0]} to {names[-1]})"
