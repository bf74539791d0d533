"""Gates for continuous integration: a configuration passes only where the whole interval says so."""

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Literal

from rope_jax.diagnosis.verdict.answers import Verdict
from rope_jax.errors import InputError
from rope_jax.statistics.intervals import Estimate

Outcome = Literal["pass", "fail", "undecided"]

UNDECIDED = 4
_STATUS: Mapping[Outcome, int] = {"pass": 0, "fail": 3, "undecided": UNDECIDED}  # 1 is a bug and 2 bad input
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_CONDITION = re.compile(rf"\s*([^\W\d]\w*)\s*(>=|<=|>|<)\s*({_NUMBER})\s*")
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclasses.dataclass(frozen=True)
class Condition:
    """What must not be: `short_loss_rise > 0.02`.

    Attributes:
      name: of the measure.
      operator: one of `>`, `>=`, `<`, `<=`.
      bound: in the measure's own unit.
    """

    name: str
    operator: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.bound:g}"


@dataclasses.dataclass(frozen=True)
class Gate:
    """All conditions, checked.

    Attributes:
      outcome: "fail" if any fails, else "undecided" if any is, else "pass".
      lines: one a condition for the terminal, and with several the outcome of all.
    """

    outcome: Outcome
    lines: tuple[str, ...]

    @property
    def status(self) -> int:
        """The exit status that says the outcome."""
        return _STATUS[self.outcome]


def parse(text: str) -> tuple[Condition, ...]:
    """Returns the conditions of `NAME OP NUMBER`, several separated by commas.

    Args:
      text: such as `short_loss_rise>0.02,long_loss_rise<0`; spaces do not matter.

    Raises:
      InputError: if a condition is malformed.

    >>> [str(condition) for condition in parse("short_loss_rise > 2e-2, long_loss_rise<0")]
    ['short_loss_rise>0.02', 'long_loss_rise<0']
    """
    conditions = []
    for part in text.split(","):
        match = _CONDITION.fullmatch(part)
        if match is None or not math.isfinite(float(match[3])):
            raise InputError(
                f"--fail_if: {part.strip()!r} is not NAME OP NUMBER, such as 'short_loss_rise>0.02'; OP is one of "
                f"{' '.join(_OPERATORS)}"
            )
        conditions.append(Condition(match[1], match[2], float(match[3])))
    return tuple(conditions)


def check(text: str, measures: Mapping[str, Estimate]) -> Gate:
    """Returns whether every condition of `text` is known not to hold.

    With `short_loss_rise>0.02` the gate passes if the upper end of the interval is at most 0.02, fails if the lower end
    is above it, and is undecided otherwise; a single row has no interval and decides nothing, nor does what was not
    measured. Each condition is checked
    at the confidence of its own interval: to pass, all must pass, which needs no correction; that any of several fails
    falsely is that much likelier.

    Args:
      text: conditions, see `parse`.
      measures: the estimates they may name.

    Raises:
      InputError: if a condition is malformed.

    >>> print(*check("short_loss_rise>0.02", {"short_loss_rise": Estimate(0.013, 0.01, 0.016)}).lines)
    pass: short_loss_rise is 0.013 [0.01, 0.016], all of it outside of short_loss_rise>0.02
    """
    conditions = parse(text)
    checks = [_check(condition, measures.get(condition.name)) for condition in conditions]
    outcome = min((of for of, _ in checks), key=("fail", "undecided", "pass").index)
    lines = [f"{of}: {said}" for of, said in checks]
    if len(checks) > 1:
        lines.append(f"gate of {len(checks)} conditions: {outcome}")
    return Gate(outcome, tuple(lines))


MEASURES = {
    "order_fall": "log-odds of event order, nats, from the original at L to the deployed at L'",
    "binding_fall": "the same of the n-th item",
    "retrieval_fall": "the same of retrieval",
    "short_accuracy_fall": "accuracy of all tasks at the trained length, against the original",
    "short_loss_rise": "loss of text below the trained length against the original, nats a token",
    "long_loss_rise": "the same beyond it",
}
"""What a gate may ask of a deployed configuration; positive is worse."""


def check_names(text: str) -> None:
    """Raises `InputError` unless every condition of `text` is well formed and names one of `MEASURES`."""
    for condition in parse(text):
        if condition.name not in MEASURES:
            raise InputError(f"--fail_if: {condition.name!r} is no measure; there are {', '.join(MEASURES)}")


def measures(verdict: Verdict) -> dict[str, Estimate]:
    """Returns the measures of a deployed configuration; those of tasks that were not learned are missing."""
    found = {f"{task}_fall": fall.log_odds for task, fall in verdict.regression.falls.items()}
    found = {name: value for name, value in found.items() if name in MEASURES}
    if verdict.price.short_accuracy is not None:
        found["short_accuracy_fall"] = verdict.price.short_accuracy
    return found | {"short_loss_rise": verdict.price.short_loss, "long_loss_rise": verdict.price.long_loss}


def _check(condition: Condition, estimate: Estimate | None) -> tuple[Outcome, str]:
    if estimate is None:
        return "undecided", f"{condition.name} was not measured: the model has not learned that task"
    low, high = estimate.low, estimate.high
    measured = f"{condition.name} is {estimate.mean:.4g}"
    if low is None or high is None:
        return "undecided", f"{measured}, one row without an interval"
    measured += f" [{low:.4g}, {high:.4g}]"
    if any(math.isnan(value) for value in (estimate.mean, low, high)):
        return "undecided", f"{measured}, not a number"
    bad = [_OPERATORS[condition.operator](end, condition.bound) for end in (low, high)]
    if all(bad):
        return "fail", f"{measured}, all of it within {condition}"
    if any(bad):
        return "undecided", f"{measured}, partly within {condition}"
    return "pass", f"{measured}, all of it outside of {condition}"
