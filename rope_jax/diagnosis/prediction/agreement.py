"""Prediction beside measurement: do foreshortened contexts order the cells as long ones do, and what do they blame?"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell, CellSchemes
from rope_jax.diagnosis.evaluation.probes import Answers
from rope_jax.diagnosis.prediction import own_heads
from rope_jax.diagnosis.prediction.bands import Bands, far_bands
from rope_jax.diagnosis.prediction.foreshortened import PARTS, ForeshortenedProgram, Part, foreshortened
from rope_jax.diagnosis.prediction.own_heads import HeadFigures, OwnHeads
from rope_jax.diagnosis.tasks.contexts import GROUP, Contexts
from rope_jax.diagnosis.tasks.registry import index_of
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.verdict.attribution import Table, Used
from rope_jax.diagnosis.verdict.verdict import above, attribution
from rope_jax.errors import InputError
from rope_jax.scheme import Scheme
from rope_jax.statistics import intervals, ranks
from rope_jax.statistics.intervals import Estimate
from rope_jax.statistics.ranks import RankAgreement

_HEAD_ROWS = 12  # contexts that queries and keys are taken from

TRUSTED = 0.8
"""Rank correlation from which a prediction may be read for a model."""


@dataclasses.dataclass(frozen=True, eq=False)
class Agreement:
    """Predicted and measured errors, by cell.

    Attributes:
      ranks: Spearman's correlation across cells within each asked offset of `binding`, averaged over the offsets. Its
        interval speaks of other measured contexts; the short ones that predict are held fixed.
      ceiling: what a perfect prediction would reach against a measurement as noisy as this one, from the correlation of
        its two halves (Spearman-Brown); None where there are too few contexts, or the halves disagree.
      by_probe: Spearman's correlation across cells of the mean error of every probe used.
      predicted: error of `binding` at each asked offset 1 ... 8, by cell, mean over models.
      measured: the same on the contexts of the target length.
      blame: precision lost to each of `PARTS` in turn, nats, by retrofit: the status quos, their scalings without the
        bias, and the unchanged model; empty where no probe of precision was learned.
      figures: what each cell does to the heads that carry `binding`, one a model.
      heads: those heads of each model.
      bands: logits of the far one of the first model, band by band, by the retrofits of `blame`.
    """

    ranks: RankAgreement
    ceiling: float | None
    by_probe: Mapping[str, RankAgreement]
    predicted: Mapping[Cell, Float64[np.ndarray, " offsets"]]
    measured: Mapping[Cell, Float64[np.ndarray, " offsets"]]
    blame: Mapping[Cell, Mapping[Part, Estimate]]
    figures: Mapping[Cell, Sequence[HeadFigures]]
    heads: Sequence[OwnHeads]
    bands: Mapping[Cell, Bands]

    @property
    def text(self) -> str:
        """What the correlation says about the prediction."""
        found = self.ranks.correlation
        if found is None:
            return "no offset of binding has an order on both sides: nothing is known of the prediction"
        shown = f"{found.mean:.2f}"
        if found.low is not None:
            shown += f", interval [{found.low:.2f}, {found.high:.2f}]"
        if self.ceiling is not None:
            shown += f", where about {self.ceiling:.2f} is the most that so noisy a measurement allows"
        answer = {
            "yes": "the prediction may be read",
            "no": "the prediction cannot be trusted for this model",
            "unclear": f"whether it reaches {TRUSTED:g}, from where it may be read, is open",
        }[above(found, TRUSTED)]
        return f"rank correlation within offsets of binding {shown}: {answer}"


class _Foretold:
    """What one model answers to foreshortened contexts of its own, which nothing is fitted to nor judged by."""

    def __init__(self, subject: Subject, maker: CellSchemes) -> None:
        assert subject.unseen_items is not None
        self.items = subject.unseen_items
        self._program = ForeshortenedProgram(subject.checkpoint.model)
        self._maker, self._target = maker, subject.target_length
        self._known: dict[tuple[Cell, Part], Answers] = {}

    def __call__(self, cell: Cell, *, upto: Part = "filler") -> Answers:
        if (cell, upto) not in self._known:
            seen = foreshortened(self.items, self._target, upto=upto)
            logits = self._program(_single(self._maker, cell), self.items, seen)
            self._known[cell, upto] = probes.answers(logits, self.items)
        return self._known[cell, upto]


def _predictable(subject: Subject, maker: CellSchemes) -> bool:
    items, scheme = subject.unseen_items, maker(UNCHANGED)
    if subject.items.long is None or items is None or not isinstance(scheme, Scheme) or not scheme.rotary_dim:
        return False
    try:
        foreshortened(items, subject.target_length)
    except InputError:  # a context full of facts
        return False
    return "binding" in probes.asked_probes(items)


def agreement(
    subjects: Sequence[Subject],
    makers: Sequence[CellSchemes],
    cells: Table,
    used: Used,
    status_quos: Sequence[Cell],
) -> Agreement | None:
    """Returns how predictions agree with what was measured.

    None where nothing is predicted: a model without contexts, without rotation, with several schemes, not asked
    `binding`, or whose contexts hold no filler.

    Args:
      subjects: the models.
      makers: schemes of their cells.
      cells: scores of every cell, one a model.
      used: probes that passed their gate.
      status_quos: retrofits whose loss is divided.
    """
    if not all(map(_predictable, subjects, makers)):
        return None
    long = subjects[0].items.long
    assert long is not None
    foretold = [_Foretold(subject, maker) for subject, maker in zip(subjects, makers, strict=True)]
    answered = {cell: [one(cell) for one in foretold] for cell in cells}
    items = foretold[0].items  # the same of every model
    predicted = {cell: _errors(answers, items).mean(axis=0) for cell, answers in answered.items()}
    errors = {cell: _errors([one.answers["long"] for one in scores], long) for cell, scores in cells.items()}
    measured = np.stack(list(errors.values()), axis=1)
    heads = [_heads(subject, maker) for subject, maker in zip(subjects, makers, strict=True)]
    divided = _divided(status_quos)
    return Agreement(
        ranks=ranks.within_group_spearman(np.stack(list(predicted.values())), measured),
        ceiling=_ceiling(measured),
        by_probe={name: _of_probe(name, answered, items, cells) for name in used.names},
        predicted=predicted,
        measured={cell: value.mean(axis=0) for cell, value in errors.items()},
        blame={cell: _blame(cell, foretold, used) for cell in divided} if used.precision else {},
        figures={
            cell: [
                own_heads.head_figures(own, _single(maker, cell), target_length=subjects[0].target_length)
                for own, maker in zip(heads, makers, strict=True)
            ]
            for cell in cells
        },
        heads=heads,
        bands={
            cell: far_bands(heads[0], _single(makers[0], cell), target_length=subjects[0].target_length)
            for cell in divided
        },
    )


def _single(maker: CellSchemes, cell: Cell) -> Scheme:
    scheme = maker(cell)
    assert isinstance(scheme, Scheme)
    return scheme


def _heads(subject: Subject, maker: CellSchemes) -> OwnHeads:
    assert subject.unseen_items is not None
    rows = Contexts(*(column[:_HEAD_ROWS] for column in subject.unseen_items))
    return own_heads.own_heads(subject.checkpoint.model, _single(maker, UNCHANGED), rows)


def _errors(given: Sequence[Answers], items: Contexts) -> Float64[np.ndarray, "contexts offsets"]:
    """Returns, for every context, how often each asked offset was answered wrongly, mean over models.

    Where not every context asks an offset, those that do count more, so that the mean is the share of wrong answers.
    """
    asked = items.probe == index_of("binding")
    wrong = np.mean([~one.right for one in given], axis=0)
    result = np.zeros((len(items.tokens), GROUP))
    for offset in range(GROUP):
        here = asked & (items.asked == offset + 1)
        mistakes = np.where(here, wrong, 0).sum(axis=1) / np.maximum(here.sum(axis=1), 1)
        result[:, offset] = mistakes * len(here) / max(here.any(axis=1).sum(), 1)
    return result


def _ceiling(measured: Float64[np.ndarray, "contexts cells offsets"]) -> float | None:
    if len(measured) < 4:
        return None
    one = measured[::2].mean(axis=0)
    found = ranks.within_group_spearman(one, measured[1::2].mean(axis=0, keepdims=True)).correlation
    if found is None or found.mean <= 0:
        return None
    return float(np.sqrt(2 * found.mean / (1 + found.mean)))


def _of_probe(name: str, answered: Mapping[Cell, Sequence[Answers]], items: Contexts, cells: Table) -> RankAgreement:
    right = [np.mean([probes.by_row(one.right, items, name) for one in answers]) for answers in answered.values()]
    measured = [attribution.outcome(scores, "long", [name], accuracy=True).mean(axis=0) for scores in cells.values()]
    return ranks.within_group_spearman(np.array(right)[:, None], np.stack(measured, axis=1)[..., None])


def _divided(status_quos: Sequence[Cell]) -> list[Cell]:
    alone = [cell._replace(bias="none") for cell in status_quos]
    return list(dict.fromkeys([*status_quos, *alone, UNCHANGED]))


def _blame(cell: Cell, foretold: Sequence[_Foretold], used: Used) -> dict[Part, Estimate]:
    """Returns the precision lost when each part is added to those before it, nats."""

    def precision(cell: Cell, upto: Part) -> Float64[np.ndarray, "models contexts"]:
        answers = [(one(cell, upto=upto), one.items) for one in foretold]
        return np.stack(
            [
                np.mean([probes.by_row(given.log_odds, items, name) for name in used.precision], axis=0)
                for given, items in answers
            ]
        )

    levels = [precision(UNCHANGED, "scheme"), *(precision(cell, part) for part in PARTS)]
    losses = [before - after for before, after in itertools.pairwise(levels)]
    return {part: intervals.clustered(loss) for part, loss in zip(PARTS, losses, strict=True)}
