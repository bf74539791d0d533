"""Asking on until a verdict is settled: haystacks in doublings, the level divided over all looks at them.

What is asked after each look depends on what was seen, so that each look may err only by its share of the level, which
is the share of the items that are new in it: a look at few of them decides what is plain, and half of the level is left
for the last, which sees twice what the one before saw. An option that is surely out is not asked on; later looks are at
narrower intervals of the same values, so that it never comes back.

Source: Lan and DeMets, Biometrika 70 (1983) 659; the level is spent in proportion to what is seen, and the errors of
looks are added up as if they never fell together.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

from rope_jax.diagnosis.evaluation.cell_runs import Scores, joined
from rope_jax.diagnosis.evaluation.cells import Option
from rope_jax.diagnosis.verdict.attribution import Symptom, Used
from rope_jax.diagnosis.verdict.verdict import Margins, Verdict, attribution, decide
from rope_jax.statistics.multiplicity import shared_confidence


@dataclasses.dataclass(frozen=True, eq=False)
class Answered:
    """What a verdict is drawn from, each a list with one entry a model.

    Attributes:
      status_quo: scores of what is deployed.
      unchanged: scores of the models as trained.
      changed: scores after each option; of the first haystacks only where it was not asked on.
    """

    status_quo: Sequence[Scores]
    unchanged: Sequence[Scores]
    changed: Mapping[Option, Sequence[Scores]]


More = Callable[[int, Collection[Option]], Answered]
"""From the number of a part of the items, 1 or more, and the options still open, to what is answered to that part."""


@dataclasses.dataclass(frozen=True, eq=False)
class Decided:
    """A verdict and what it took.

    Attributes:
      verdict: at the last look.
      symptom: of the status quo on all that it was asked; None where nothing was learned.
      parts: of the items that the status quo was asked.
      confidence: of the last look's intervals.
    """

    verdict: Verdict
    symptom: Symptom | None
    parts: int
    confidence: float


def number_of_looks(first: int, most: int) -> int:
    """Returns how many looks there are when haystacks double from `first` up to `most`, which is no less.

    >>> number_of_looks(20, 160), number_of_looks(20, 79)
    (4, 2)
    """
    return (most // first).bit_length()


def share_of_level(parts: int, looks: int) -> float:
    r"""Returns the share of the level that the look at so many parts may spend: that of what is new in it.

    .. math:: s_1 = 2^{1-K}, \qquad s_k = 2^{k-1-K} \quad (k > 1), \qquad \sum_k s_k = 1

    Args:
      parts: that the look is at, a power of two.
      looks: in all, `K`; the last is at `2^{K-1}` parts.

    >>> [share_of_level(parts, 4) for parts in (1, 2, 4, 8)]
    [0.125, 0.125, 0.25, 0.5]
    """
    return max(1, parts // 2) / 2 ** (looks - 1)


def ask_on(first: Answered, more: More, used: Used, *, margins: Margins, looks: int = 1) -> Decided:
    """Returns the verdict at the first look that settles it, or at the last.

    Args:
      first: what is answered to the first part of the items, by every option.
      more: answers further parts, each as large as the first.
      used: probes that passed their gate on the first part.
      margins: what is too little to matter.
      looks: 1 for the first part only; each further one doubles the parts.
    """
    seen, parts = first, 1
    verdict, symptom = one_look(seen, used, margins=margins, share=share_of_level(parts, looks))
    while not verdict.settled and 2 * parts <= 2 ** (looks - 1):
        for part in range(parts, 2 * parts):
            seen = _with(seen, more(part, verdict.open))
        parts *= 2
        verdict, symptom = one_look(seen, used, margins=margins, share=share_of_level(parts, looks))
    return Decided(verdict, symptom, parts, shared_confidence(share_of_level(parts, looks)))


def one_look(seen: Answered, used: Used, *, margins: Margins, share: float = 1.0) -> tuple[Verdict, Symptom | None]:
    """Returns the verdict of one look, and the symptom, None where nothing was learned.

    Args:
      seen: what was answered.
      used: probes that passed their gate.
      margins: what is too little to matter.
      share: of the level that this look may spend.
    """
    learned = bool(used.precision) and used.retrieval
    symptom = attribution.symptom(seen.status_quo, seen.unchanged, used, share=share) if learned else None
    confidence = shared_confidence(share)
    return decide(seen.status_quo, seen.changed, symptom, used, margins=margins, confidence=confidence), symptom


def _with(seen: Answered, more: Answered) -> Answered:
    """Returns what was answered so far together with what is answered to one more part."""

    def both(before: Sequence[Scores], after: Sequence[Scores]) -> list[Scores]:
        return [joined(pair) for pair in zip(before, after, strict=True)]

    # Rows are paired by their order: whoever is asked on has been asked all that the status quo has.
    asked = len(seen.status_quo[0].losses)
    assert all(len(seen.changed[option][0].losses) == asked for option in more.changed)
    asked_on = {option: both(seen.changed[option], scores) for option, scores in more.changed.items()}
    return Answered(
        both(seen.status_quo, more.status_quo), both(seen.unchanged, more.unchanged), {**seen.changed, **asked_on}
    )
