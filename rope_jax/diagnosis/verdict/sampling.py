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
from typing import Any

import numpy as np

from rope_jax.diagnosis.evaluation.panel import Evidence, Panel
from rope_jax.diagnosis.verdict.answers import Margins, Verdict
from rope_jax.diagnosis.verdict.decide import decide
from rope_jax.statistics.intervals import CONFIDENCE

__all__ = ["More", "ask_on", "joined", "number_of_looks", "share_of_level"]

More = Callable[[int, Collection[str]], Evidence]
"""From the number of a part of the contexts, 1 or more, and the configurations still open, to what that part says."""


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

    while True:
        level = 1 - share_of_level(parts, looks) * (1 - confidence)
        verdict = decide(seen, margins=margins, confidence=level, seed=seed)
        asked = {one.configuration for one in verdict.changes if one.contexts == verdict.contexts}
        open_ = sorted(asked.intersection(verdict.open))
        if 2 * parts > 2 ** (looks - 1) or not (open_ or (growing and _deployed_open(verdict))):
            return verdict
        before = _size(seen.as_deployed)
        for part in range(parts, 2 * parts):
            seen = joined(seen, more(part, open_))
        growing = _size(seen.as_deployed) > before
        parts *= 2


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
    return dataclasses.replace(
        first,
        as_deployed=first.as_deployed if observed else _joined(first.as_deployed, more.as_deployed),
        exact=None if first.exact is None else _joined(first.exact, more.as_deployed if observed else more.exact),
        original=_joined(first.original, more.original),
        changed=_joined(first.changed, more.changed),
        corners=_joined(first.corners, more.corners),
        faults={
            name: (words, _joined(panel, more.faults[name][1]) if name in more.faults else panel)
            for name, (words, panel) in first.faults.items()
        },
    )


def _joined(first: Any, more: Any) -> Any:
    """Returns panels, or mappings of them, on the contexts of both; what further ones lack stays as it is."""
    if isinstance(first, Panel):
        return Panel(*(_joined(getattr(first, kind), getattr(more, kind)) for kind in ("log_odds", "accuracy", "loss")))
    if isinstance(first, Mapping):
        return {key: _joined(value, more[key]) if key in more else value for key, value in first.items()}
    return np.concatenate([first, more], axis=1)


def _size(panel: Panel) -> int:
    """Returns how many contexts and rows of text a panel holds."""
    asked = [values for of_task in panel.log_odds.values() for values in of_task.values()]
    return sum(values.shape[1] for values in (*asked, *panel.loss.values()))
