"""Sequential sampling: contexts in doublings until a verdict is settled, the level divided over interim analyses.

What is asked after each analysis depends on what was seen, so that each may err only by its share of the level, which
is the share of the contexts that are new in it: one of few contexts decides what is plain, and half of the level is
left for the last, which has twice what the one before had. A change that is out is not asked again; later analyses have
narrower intervals of the same values, so that it never comes back.

Source: Lan and DeMets, Biometrika 70 (1983) 659; the level is spent in proportion to what is seen, and the errors of
the analyses are added up as if they never fell together.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import numpy as np

from rope_jax.diagnosis.evaluation.panel import Evidence, Panel
from rope_jax.diagnosis.verdict.answers import Margins, Verdict
from rope_jax.diagnosis.verdict.decide import decide
from rope_jax.statistics import multiplicity
from rope_jax.statistics.intervals import CONFIDENCE

__all__ = ["More", "ask_on", "joined", "number_of_looks", "share_of_level", "shared_confidence"]

More = Callable[[int, Collection[str]], Evidence]
"""From the number of a part of the contexts, 1 or more, and the configurations still open, to what that part says."""
Key = TypeVar("Key")


def number_of_looks(first: int, most: int) -> int:
    """Returns how many interim analyses there are when contexts double from `first` up to `most`, which is no less.

    >>> number_of_looks(20, 160), number_of_looks(20, 79)
    (4, 2)
    """
    return (most // first).bit_length()


def share_of_level(parts: int, looks: int) -> float:
    r"""Returns the share of the level that the analysis of so many parts may spend: that of what is new in it.

    .. math:: s_1 = 2^{1-K}, \qquad s_k = 2^{k-1-K} \quad (k > 1), \qquad \sum_k s_k = 1

    Args:
      parts: that are analysed, a power of two.
      looks: analyses in all, `K`; the last is of `2^{K-1}` parts.

    >>> [share_of_level(parts, 4) for parts in (1, 2, 4, 8)]
    [0.125, 0.125, 0.25, 0.5]
    """
    return max(1, parts // 2) / 2 ** (looks - 1)


def shared_confidence(deployed: int, confidence: float = CONFIDENCE) -> float:
    """Returns the confidence of each verdict, so that those on several deployed configurations hold together.

    >>> shared_confidence(1), shared_confidence(2)
    (0.95, 0.975)
    """
    return multiplicity.simultaneous_confidence(max(1, deployed), confidence)


def ask_on(
    first: Evidence,
    more: More,
    *,
    margins: Margins | None = None,
    looks: int = 1,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Verdict:
    """Returns the verdict of the first interim analysis that settles it, or of the last.

    It is settled where more contexts would not change what is tried first, and it is known whether this is the
    regression described. Changes are asked on only while they are open, the deployed configuration and the original
    always.

    Args:
      first: of the first part of the contexts, with every change.
      more: what further parts say, each as large as the first.
      margins: what is too little to matter.
      looks: analyses at most: 1 of the first part only; each further one doubles the parts.
      confidence: with which the intervals of all analyses hold together.
      seed: of the resampling.
    """
    seen, parts, growing = first, 1, True

    def analysis() -> Verdict:
        level = multiplicity.shared_confidence(share_of_level(parts, looks), confidence)
        return decide(seen, margins=margins, confidence=level, seed=seed)

    verdict = analysis()
    while 2 * parts <= 2 ** (looks - 1):
        asked = sorted(one.configuration for one in verdict.changes if one.contexts == verdict.contexts)
        open_ = [name for name in asked if name in verdict.open]
        if not open_ and not (growing and _deployed_open(verdict)):
            break
        before = seen
        for part in range(parts, 2 * parts):
            seen = joined(seen, more(part, open_))
        growing = _size(seen.as_deployed) > _size(before.as_deployed)
        parts *= 2
        verdict = analysis()
    return verdict


def _deployed_open(verdict: Verdict) -> bool:
    """Returns whether more answers of what is deployed would tell something that is not known."""
    unknown = verdict.regression.answer == "not resolved" and bool(verdict.regression.open)
    return unknown or verdict.implementation.status == "repair may help"


def joined(first: Evidence, more: Evidence) -> Evidence:
    """Returns the evidence of so many contexts together with that of further ones.

    What was observed of a deployment is often not there for further contexts: then `more` is of exact runs, and what
    was observed stays as it is.

    Args:
      first: of the contexts so far.
      more: of further ones, with the changes that were asked on; whatever it lacks stays as it is.
    """
    observed = first.exact is not None and more.exact is None
    exact = first.exact
    if first.exact is not None:
        exact = _both(first.exact, more.as_deployed if more.exact is None else more.exact)
    return dataclasses.replace(
        first,
        as_deployed=first.as_deployed if observed else _both(first.as_deployed, more.as_deployed),
        exact=exact,
        original=_both(first.original, more.original),
        changed=_each(first.changed, more.changed),
        corners=_each(first.corners, more.corners),
        faults={
            name: (words, _both(panel, more.faults[name][1]) if name in more.faults else panel)
            for name, (words, panel) in first.faults.items()
        },
    )


def _each(first: Mapping[Key, Panel], more: Mapping[Key, Panel]) -> dict[Key, Panel]:
    return {key: _both(panel, more[key]) if key in more else panel for key, panel in first.items()}


def _both(first: Panel, more: Panel) -> Panel:
    def tasks(kind: str) -> dict:
        return {
            reach: {
                task: np.concatenate([values, getattr(more, kind)[reach][task]], axis=1)
                for task, values in of_task.items()
            }
            for reach, of_task in getattr(first, kind).items()
        }

    losses = {
        reach: np.concatenate([rows, more.loss[reach]], axis=1) if reach in more.loss else rows
        for reach, rows in first.loss.items()
    }
    return Panel(tasks("log_odds"), tasks("accuracy"), losses)


def _size(panel: Panel) -> int:
    """Returns how many contexts and rows of text a panel holds."""
    asked = [values.shape[1] for of_task in panel.log_odds.values() for values in of_task.values()]
    return sum(asked) + sum(rows.shape[1] for rows in panel.loss.values())
