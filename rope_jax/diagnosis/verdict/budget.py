"""A context extension still to be chosen: the best configuration within limits of training, time and memory."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rope_jax.diagnosis.evaluation.configurations import ORIGINAL
from rope_jax.diagnosis.evaluation.panel import Panel
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import Margins
from rope_jax.diagnosis.verdict.contrasts import Contrasts, above
from rope_jax.errors import InputError
from rope_jax.statistics.intervals import CONFIDENCE, Estimate


@dataclasses.dataclass(frozen=True)
class Budget:
    """What may be spent.

    Attributes:
      steps: training steps; with 0 only configurations as they are count.
      latency: time to read one row, times that of the original model.
      memory: temporary memory of reading one row, MiB.
    """

    steps: int = 0
    latency: float = math.inf
    memory: float = math.inf


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The best configuration within a budget.

    Attributes:
      configuration: its name, or None where none stays within the limits.
      adapted: whether it is to be trained first.
      gain: over the original model at the target length, with its interval of 95 %.
      unit: of the gain, in words.
      tried: configurations that were compared.
      refused: why configurations that would gain more are not chosen, by name.
    """

    configuration: str | None
    adapted: bool
    gain: Estimate | None
    unit: str
    tried: int
    refused: Mapping[str, str]


def parse(text: str) -> Budget:
    """Returns the budget of `steps=N,latency=RATIO,memory=MIB`, each of them optional.

    Raises:
      InputError: if a part is not one of these, or out of range.

    >>> parse("steps=100,latency=1.5")
    Budget(steps=100, latency=1.5, memory=inf)
    """
    values: dict[str, Any] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(steps|latency|memory)\s*=\s*(\d+(?:\.\d*)?)\s*", part)
        if match is None or match[1] in values:
            raise InputError(f"--budget: {part.strip()!r} is not one of steps=N, latency=RATIO, memory=MIB, each once")
        if match[1] == "steps" and "." in match[2]:
            raise InputError(f"--budget: steps must be a whole number, got {match[2]}")
        values[match[1]] = int(match[2]) if match[1] == "steps" else float(match[2])
    return Budget(**values)


def choose(
    panels: Mapping[str, Panel],
    adapted: Mapping[str, Panel],
    original: Panel,
    costs: Sequence[Mapping[str, Any]],
    used: tuple[str, ...],
    budget: Budget,
    *,
    margins: Margins,
) -> Chosen:
    """Returns the configuration that gains most at the target length and loses nothing at the trained one.

    Args:
      panels: of every configuration as it is.
      adapted: of those that were trained first.
      original: of the unchanged model.
      costs: of reading a row, from `costs_record`; a configuration without one counts as free.
      used: tasks that decide; none where text does.
      budget: what may be spent.
      margins: what may be lost at the trained length.
    """
    contrasts = Contrasts(used, CONFIDENCE)
    of_name = {one["configuration"]: one for one in costs}
    tried = [(name, False, panel) for name, panel in panels.items()]
    tried += [(name, True, panel) for name, panel in adapted.items() if budget.steps]
    gains = [contrasts.estimate(contrasts.together(panel, original)) for *_, panel in tried]
    refused: dict[str, str] = {}
    for gain, (name, trained, panel) in sorted(zip(gains, tried, strict=True), key=lambda one: -one[0].mean):
        why = _harm(panel, original, contrasts, margins) or _too_dear(
            of_name.get(name), next(iter(costs), None), budget
        )
        if why is None:
            return Chosen(name, trained, gain, wording.unit(contrasts.decisive), len(tried), refused)
        refused[f"{name}{', adapted' if trained else ''}"] = why
    return Chosen(None, False, None, wording.unit(contrasts.decisive), len(tried), refused)


def _harm(panel: Panel, original: Panel, contrasts: Contrasts, margins: Margins) -> str | None:
    price = contrasts.price(panel, original)
    for what, loss, margin in (
        ("short accuracy", price.short_accuracy, margins.short_accuracy),
        ("short loss of text", price.short_loss, margins.short_loss),
    ):
        if loss is not None and above(loss, margin) == "yes":
            return f"{what}: {wording.interval(loss, digits=3)} lost, at most {margin:g} may be"
    return None


def _too_dear(cost: Mapping[str, Any] | None, original: Mapping[str, Any] | None, budget: Budget) -> str | None:
    if cost is None or original is None:
        return None
    ratio = cost["milliseconds"] / original["milliseconds"]
    if ratio > budget.latency:
        times = " against ".join(wording.milliseconds(one) or "a single run" for one in (cost, original))
        return f"latency: {ratio:.2f} times the original model's ({times}), at most {budget.latency:g} may be"
    if cost["mib"] > budget.memory:
        return f"memory: {cost['mib']:.0f} MiB, at most {budget.memory:g} may be"
    return None


def budget_lines(chosen: Chosen) -> list[str]:
    """Returns the choice for a terminal."""
    if chosen.configuration is None or chosen.gain is None:
        lines = ["WITHIN THE BUDGET: no configuration that was run stays within it and the margins"]
    elif chosen.configuration == ORIGINAL and not chosen.adapted:
        lines = ["WITHIN THE BUDGET: the original model as it is: of all that stays within, nothing gains over it"]
    else:
        how, gain = "after adapting it" if chosen.adapted else "as it is", chosen.gain
        lines = [
            f"WITHIN THE BUDGET: {chosen.configuration}, {how}:",
            f"  {wording.signed(gain, 'gains', 'loses')} {chosen.unit}",
            "  over the original model at the target length (95 % interval, which does not",
            f"  allow for the choice among {chosen.tried})",
        ]
        if gain.low is None or gain.high is None or gain.low <= 0 <= gain.high:
            lines.append("  that it gains at all is not resolved")
    return lines + [f"  not {name}: {why}" for name, why in chosen.refused.items()]
