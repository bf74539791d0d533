"""Answer 4: which part costs how much, from the 2 x 2 of scaling and bias, with the runner-up tested.

The parts are compared with the unchanged model at the same length. What three tried transforms did not win back says
nothing of the cause, and nothing is said of it here.
"""

from collections.abc import Mapping

from rope_jax.diagnosis.evaluation.panel import Evidence, Panel
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import Cause, Margins, Part
from rope_jax.diagnosis.verdict.contrasts import Contrasts, Paired, above
from rope_jax.statistics.intervals import Estimate

__all__ = ["cause", "shapley"]

_PARTS: tuple[Part, Part] = ("scaling", "bias")


def shapley(corners: Mapping[frozenset[str], Panel], by: str, contrasts: Contrasts) -> dict[str, Paired]:
    r"""Returns how what scaling and bias cost together divides between them, nats lost, one a model and context.

    .. math:: \phi_s = \tfrac12\big[v(\emptyset) - v(s)\big] + \tfrac12\big[v(b) - v(s, b)\big]

    with `v` the log-odds at the target length; `interaction` is `v(s) + v(b) - v(s, b) - v(∅)`: above zero, the two
    together cost more than each by itself.

    Args:
      corners: the 2 x 2, by which parts are in place.
      by: a task, "together", or the loss of text.
      contrasts: makes the contrasts.
    """
    none, scaling, bias, both = (corners[frozenset(parts)] for parts in ((), ("scaling",), ("bias",), _PARTS))
    lost = [
        contrasts.gain(better, worse, by)
        for better, worse in ((none, scaling), (none, bias), (bias, both), (scaling, both))
    ]
    unseen = max(one.unseen for one in lost)
    rows = min(one.units for one in lost)
    s_alone, b_alone, s_last, b_last = (one.values[:, :rows] for one in lost)
    return {
        "scaling": Paired((s_alone + s_last) / 2, unseen),
        "bias": Paired((b_alone + b_last) / 2, unseen),
        "interaction": Paired(s_last - s_alone, unseen),
    }


def cause(evidence: Evidence, contrasts: Contrasts, margins: Margins) -> Cause:
    """Returns which part costs more, if that is resolved.

    Args:
      evidence: of one deployed configuration.
      contrasts: makes the contrasts.
      margins: what is too little to matter.
    """
    decisive = contrasts.decisive
    margin, unit = margins.of(decisive), wording.unit(decisive)
    if not evidence.corners:
        return _only_part(evidence, contrasts, margin)
    paired = {by: shapley(evidence.corners, by, contrasts) for by in (*contrasts.used, decisive)}
    by_task = {by: {part: contrasts.estimate(values) for part, values in of.items()} for by, of in paired.items()}
    costs, values = by_task[decisive], paired[decisive]
    larger, smaller = sorted(_PARTS, key=lambda part: -costs[part].mean)
    ahead = contrasts.estimate(Paired(values[larger].values - values[smaller].values, values[larger].unseen))
    part = _part(costs, larger, smaller, ahead, margin)
    measured = (
        f"against the unchanged model at the same length, {_said(larger, costs[larger])} and "
        f"{_said(smaller, costs[smaller])} {unit}"
    )
    apart = f"the difference is {wording.interval(ahead)}"
    sentence = {
        "both": f"Both cost more than the margin of {margin:g}: {measured}; which more is not resolved: {apart}.",
        "neither": f"Neither costs more than the margin of {margin:g}: {measured}.",
        "not resolved": f"Which part costs more is not resolved: {measured}; {apart}.",
    }.get(part, f"The {part} costs more: {measured}; {apart}.")
    return Cause(by_task, part, ahead, sentence)


def _part(costs: Mapping[str, Estimate], larger: Part, smaller: Part, ahead: Estimate, margin: float) -> Part:
    answers = (above(costs[larger], margin), above(costs[smaller], margin))
    if answers == ("no", "no"):
        return "neither"
    if answers[0] == "yes" and above(ahead, 0.0) == "yes":
        return larger
    return "both" if answers == ("yes", "yes") else "not resolved"


def _only_part(evidence: Evidence, contrasts: Contrasts, margin: float) -> Cause:
    """Returns the cost of the only part in place, which the options tell; nothing where both or neither are."""
    changed = {option.number for option in evidence.options} & {"1", "2"}
    if len(changed) != 1:
        return Cause({}, "not resolved", None, "The 2 x 2 of scaling and bias was not measured.")
    only: Part = "bias" if changed == {"1"} else "scaling"
    lost = contrasts.estimate(contrasts.together(evidence.original, evidence.base))
    answers: Mapping[str, Part] = {"yes": only, "no": "neither", "not resolved": "not resolved"}
    return Cause(
        {contrasts.decisive: {only: lost}},
        answers[above(lost, margin)],
        None,
        f"Only one part is in place: against the unchanged model at the same length, {_said(only, lost)} "
        f"{wording.unit(contrasts.decisive)}.",
    )


def _said(part: str, cost: Estimate) -> str:
    return f"the {part} {wording.signed(cost, 'costs', 'wins')}"
