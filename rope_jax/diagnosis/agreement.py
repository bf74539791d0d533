"""Prediction beside measurement: do the model's own heads, on paper, order the cells as the model does?"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from rope_jax.diagnosis import predictions
from rope_jax.diagnosis.attribution import Table
from rope_jax.diagnosis.cells import UNCHANGED, Cell, CellSchemes
from rope_jax.diagnosis.predictions import OwnHeads, Prediction
from rope_jax.scheme import Scheme
from rope_jax.statistics import ranks
from rope_jax.statistics.ranks import RankAgreement
from rope_jax.subjects.haystacks import GROUP, PROBES, Haystacks
from rope_jax.subjects.subject import Subject

_ROWS = 12  # haystacks that queries and keys are taken from
TRUSTED = 0.8


@dataclasses.dataclass(frozen=True, eq=False)
class Agreement:
    """Predicted and measured errors of `bind`, by cell and asked offset.

    Attributes:
      ranks: Spearman's correlation across cells within each offset, averaged over the offsets.
      predicted: what each cell is predicted to do, one a model.
      measured: error of `bind` at each asked offset 1 ... 8, by cell, mean over models.
      heads: the two heads of each model that carry the relation.
    """

    ranks: RankAgreement
    predicted: Mapping[Cell, Sequence[Prediction]]
    measured: Mapping[Cell, Float64[np.ndarray, " offsets"]]
    heads: Sequence[OwnHeads]

    @property
    def text(self) -> str:
        """What the correlation says about the analytic attribution."""
        found = self.ranks.correlation
        if found is None:
            return "no offset has an order on both sides: nothing is known of the prediction"
        low = f", interval [{found.low:.2f}, {found.high:.2f}]" if found.low is not None else ""
        verdict = "may be read" if found.mean >= TRUSTED else "cannot be trusted for this model"
        return f"within-offset rank correlation {found.mean:.2f}{low}: the analytic attribution {verdict}"


def agreement(subjects: Sequence[Subject], makers: Sequence[CellSchemes], cells: Table) -> Agreement | None:
    """Returns how predictions agree with what was measured; None where a model has no haystacks or layers differ.

    Args:
      subjects: the models.
      makers: schemes of their cells.
      cells: scores of every cell, one a model.
    """
    first = subjects[0]
    if first.items.long is None or first.fit_items is None or not isinstance(makers[0](UNCHANGED), Scheme):
        return None
    heads, predicted = [], {cell: [] for cell in cells}  # type: ignore[var-annotated]
    for subject, maker in zip(subjects, makers, strict=True):
        assert subject.fit_items is not None
        rows = Haystacks(*(column[:_ROWS] for column in subject.fit_items))
        own = predictions.own_heads(subject.checkpoint.model, _single(maker, UNCHANGED), rows)
        heads.append(own)
        for cell in cells:
            predicted[cell].append(
                predictions.predict(
                    own, _single(maker, cell), factor=subject.factor, target_length=subject.target_length
                )
            )
    errors = {cell: _errors(scores, first.items.long) for cell, scores in cells.items()}
    measured = np.stack(list(errors.values()), axis=1)
    means = np.stack([np.mean([one.error for one in predicted[cell]], axis=0) for cell in cells])
    return Agreement(
        ranks.within_group_spearman(means, measured),
        predicted,
        {cell: value.mean(axis=0) for cell, value in errors.items()},
        heads,
    )


def _single(maker: CellSchemes, cell: Cell) -> Scheme:
    scheme = maker(cell)
    assert isinstance(scheme, Scheme)
    return scheme


def _errors(scores, items: Haystacks) -> Float64[np.ndarray, "haystacks offsets"]:
    """Returns, for every haystack, how often each asked offset was answered wrongly, mean over models."""
    asked = items.probe == PROBES.index("bind")
    result = np.zeros((len(items.tokens), GROUP))
    for offset in range(GROUP):
        here = asked & (items.asked == offset + 1)
        wrong = np.mean([~one.answers["long"].right for one in scores], axis=0)
        result[:, offset] = np.where(here, wrong, 0).sum(axis=1) / np.maximum(here.sum(axis=1), 1)
    return result
