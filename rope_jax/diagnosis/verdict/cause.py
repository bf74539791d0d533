"""Answer 4: which part costs how much, from the 2 x 2 of scaling and bias, with the runner-up tested.

The parts are compared with the unchanged model at the same length. What three tried transforms did not win back says
nothing of the cause, and nothing is said of it here.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from rope_jax.diagnosis.evaluation.panel import Evidence, Panel
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import Cause, Margins
from rope_jax.diagnosis.verdict.contrasts import TEXT, Contrasts, Paired, above
from rope_jax.diagnosis.verdict.ranking import TOGETHER
from rope_jax.diagnosis.verdict.regression import margin_of
from rope_jax.statistics.intervals import Estimate

__all__ = ["cause", "shapley"]

Part = Literal["scaling", "bias", "both", "neither", "not resolved"]
PARTS = ("scaling", "bias")


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

    def lost(without: Sequence[str], with_: Sequence[str]) -> Paired:
        better, worse = corners[frozenset(without)], corners[frozenset(with_)]
        return contrasts.task(better, worse, by) if by in contrasts.used else contrasts.together(better, worse)

    s_alone, b_alone = lost((), ("scaling",)), lost((), ("bias",))
    s_last, b_last = lost(("bias",), PARTS), lost(("scaling",), PARTS)
    unseen = max(one.unseen for one in (s_alone, b_alone, s_last, b_last))
    rows = min(one.units for one in (s_alone, b_alone, s_last, b_last))
    s1, b1, s2, b2 = (one.values[:, :rows] for one in (s_alone, b_alone, s_last, b_last))
    return {
        "scaling": Paired((s1 + s2) / 2, unseen),
        "bias": Paired((b1 + b2) / 2, unseen),
        "interaction": Paired(s2 - s1, unseen),
    }


def cause(evidence: Evidence, base: Panel, contrasts: Contrasts, margins: Margins) -> Cause:
    """Returns which part costs more, if that is resolved.

    Args:
      evidence: of one deployed configuration.
      base: the deployed configuration, run exactly.
      contrasts: makes the contrasts.
      margins: what is too little to matter.
    """
    decisive = TOGETHER if contrasts.weights else TEXT
    margin = margin_of(decisive, margins)
    names = [*contrasts.used, decisive] if contrasts.used else [decisive]
    if not evidence.corners:
        return _one_part(evidence, base, contrasts, decisive, margin)
    paired = {name: shapley(evidence.corners, name, contrasts) for name in names}
    by_task = {name: {part: contrasts.estimate(values) for part, values in of.items()} for name, of in paired.items()}
    costs = by_task[decisive]
    larger, smaller = sorted(PARTS, key=lambda part: -costs[part].mean)
    values = paired[decisive]
    ahead = contrasts.estimate(Paired(values[larger].values - values[smaller].values, values[larger].unseen))
    part = _part(costs, larger, smaller, ahead, margin)
    return Cause(by_task, part, ahead, _sentence(part, costs, larger, smaller, ahead, margin, decisive))


def _part(costs: Mapping[str, Estimate], larger: str, smaller: str, ahead: Estimate, margin: float) -> Part:
    answers = {part: above(costs[part], margin) for part in PARTS}
    if answers[larger] == "no" and answers[smaller] == "no":
        return "neither"
    if answers[larger] == "yes" and above(ahead, 0.0) == "yes":
        return "scaling" if larger == "scaling" else "bias"
    return "both" if answers[larger] == "yes" and answers[smaller] == "yes" else "not resolved"


def _sentence(
    part: Part,
    costs: Mapping[str, Estimate],
    larger: str,
    smaller: str,
    ahead: Estimate,
    margin: float,
    decisive: str,
) -> str:
    measured = (
        f"against the unchanged model at the same length, {_said(larger, costs[larger])} and "
        f"{_said(smaller, costs[smaller])} {_unit(decisive)}"
    )
    apart = f"the difference is {wording.interval(ahead)}"
    return {
        "scaling": f"The scaling costs more: {measured}; {apart}.",
        "bias": f"The bias costs more: {measured}; {apart}.",
        "both": f"Both cost more than the margin of {margin:g}: {measured}; which more is not resolved: {apart}.",
        "neither": f"Neither costs more than the margin of {margin:g}: {measured}.",
        "not resolved": f"Which part costs more is not resolved: {measured}; {apart}.",
    }[part]


def _one_part(evidence: Evidence, base: Panel, contrasts: Contrasts, decisive: str, margin: float) -> Cause:
    """Returns the cost of the only part in place, which the options tell; nothing where both or neither are."""
    numbers = {option.number for option in evidence.options}
    in_place = [part for part, of in (("bias", {"1"}), ("scaling", {"2"})) if numbers & of]
    if len(in_place) != 1:
        return Cause({}, "not resolved", None, "The 2 x 2 of scaling and bias was not measured.")
    only = in_place[0]
    lost = contrasts.estimate(contrasts.together(evidence.original, base))
    answer = above(lost, margin)
    part: Part = "neither" if answer == "no" else "not resolved"
    if answer == "yes":
        part = "scaling" if only == "scaling" else "bias"
    return Cause(
        {decisive: {only: lost}},
        part,
        None,
        f"Only one part is in place: against the unchanged model at the same length, {_said(only, lost)} "
        f"{_unit(decisive)}.",
    )


def _said(part: str, cost: Estimate) -> str:
    """Returns what a part costs, or wins where it is known to."""
    if cost.high is not None and cost.high < 0:
        return f"the {part} wins {wording.interval(-cost)}"
    return f"the {part} costs {wording.interval(cost)}"


def _unit(decisive: str) -> str:
    return "nats a token of the long loss of text" if decisive == TEXT else "nats of order and binding"
