"""Prediction beside measurement: do stretched short contexts order the configurations as long ones do?"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from rope_jax.decoder import Schemes
from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.configurations import ORIGINAL
from rope_jax.diagnosis.evaluation.probes import Answers
from rope_jax.diagnosis.prediction import own_heads
from rope_jax.diagnosis.prediction.own_heads import OwnHeads
from rope_jax.diagnosis.prediction.stretched import StretchedProgram, stretched
from rope_jax.diagnosis.tasks.contexts import GROUP, Contexts
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.verdict.contrasts import above
from rope_jax.errors import InputError
from rope_jax.scheme import Scheme
from rope_jax.statistics import ranks
from rope_jax.statistics.ranks import RankAgreement

_HEAD_ROWS = 12  # contexts that queries and keys are taken from

TRUSTED = 0.8
"""Rank correlation from which a prediction may be read for a model."""

SchemesOf = Mapping[str, Sequence[Schemes]]
"""The scheme of every configuration, one a model."""


def prediction_of(
    subjects: Sequence[Subject], schemes: SchemesOf, answers: Mapping[str, Sequence[Answers]], used: tuple[str, ...]
) -> dict[str, Any] | None:
    """Returns how predictions from stretched positions agree with what was measured, as plain values.

    None where nothing is predicted: a model without questions, without rotation, with several schemes, not asked
    `binding`, or whose contexts hold no filler.

    Args:
      subjects: the models.
      schemes: of every configuration, the original among them.
      answers: to the long contexts, by configuration, one a model.
      used: tasks that decide.

    Returns:
      `spearman`, an estimate or None: across configurations within each asked place of `binding`, averaged over the
      places; its interval speaks of other measured contexts. `ceiling`: what a perfect prediction would reach against
      a measurement as noisy as this one, from its two halves (Spearman-Brown). `by_task`: Spearman's correlation of
      the mean accuracy. `text`: what that says. `configurations`: predicted and measured error at each place, and what
      the heads that carry `binding` are left with. `heads`: those heads of each model.
    """
    of_model = [{name: several[number] for name, several in schemes.items()} for number in range(len(subjects))]
    if not all(map(_predictable, subjects, of_model)):
        return None
    long = subjects[0].items.long
    assert long is not None
    items = subjects[0].unseen_items  # the same of every model
    assert items is not None
    seen = stretched(items, subjects[0].target_length)
    programs = [StretchedProgram(subject.checkpoint.model) for subject in subjects]
    foretold = {
        name: [
            probes.answers(program(_single(one[name]), items, seen), items)
            for program, one in zip(programs, of_model, strict=True)
        ]
        for name in answers
    }
    predicted = {name: _errors(given, items).mean(axis=0) for name, given in foretold.items()}
    errors = {name: _errors(given, long) for name, given in answers.items()}
    measured = np.stack(list(errors.values()), axis=1)
    found = ranks.within_group_spearman(np.stack(list(predicted.values())), measured)
    ceiling = _ceiling(measured)
    heads = [_heads(subject, one) for subject, one in zip(subjects, of_model, strict=True)]
    by_task = {name: _of_task(name, foretold, items, answers, long) for name in used}
    return {
        "spearman": None if found.correlation is None else dataclasses.asdict(found.correlation),
        "ceiling": ceiling,
        "by_task": {
            name: None if one.correlation is None else dataclasses.asdict(one.correlation)
            for name, one in by_task.items()
        },
        "text": _text(found, ceiling),
        "heads": [
            {name: dataclasses.asdict(relation) for name, relation in (("local", own.local), ("far", own.far))}
            for own in heads
        ],
        "configurations": [
            {
                "name": name,
                "predicted": predicted[name].tolist(),
                "measured": errors[name].mean(axis=0).tolist(),
                **_figures(heads[0], of_model[0][name], subjects[0].target_length),
            }
            for name in answers
        ],
    }


def _text(found: RankAgreement, ceiling: float | None) -> str:
    """Returns what the correlation says about the prediction."""
    value = found.correlation
    if value is None:
        return "no place of the n-th item has an order on both sides: nothing is known of the prediction"
    shown = f"{value.mean:.2f}"
    if value.low is not None:
        shown += f", interval [{value.low:.2f}, {value.high:.2f}]"
    if ceiling is not None:
        shown += f", where about {ceiling:.2f} is the most that so noisy a measurement allows"
    answer = {
        "yes": "the prediction may be read",
        "no": "the prediction cannot be trusted for this model",
        "not resolved": f"whether it reaches {TRUSTED:g}, from where it may be read, is open",
    }[above(value, TRUSTED)]
    return f"rank correlation within places of the n-th item {shown}: {answer}"


def _predictable(subject: Subject, schemes: Mapping[str, Schemes]) -> bool:
    items, scheme = subject.unseen_items, schemes[ORIGINAL]
    if subject.items.long is None or items is None or not isinstance(scheme, Scheme) or not scheme.rotary_dim:
        return False
    try:
        stretched(items, subject.target_length)
    except InputError:  # a context full of facts
        return False
    return "binding" in probes.asked_probes(items)


def _heads(subject: Subject, schemes: Mapping[str, Schemes]) -> OwnHeads:
    assert subject.unseen_items is not None
    rows = Contexts(*(column[:_HEAD_ROWS] for column in subject.unseen_items))
    trained = schemes[ORIGINAL]
    assert isinstance(trained, Scheme)
    return own_heads.own_heads(subject.checkpoint.model, trained, rows)


def _single(scheme: Schemes) -> Scheme:
    assert isinstance(scheme, Scheme)
    return scheme


def _figures(own: OwnHeads, scheme: Schemes, target_length: int) -> dict[str, Any]:
    assert isinstance(scheme, Scheme)
    one = own_heads.head_figures(own, scheme, target_length=target_length)
    return {
        "coherence": one.coherence.tolist(),
        "g50": list(one.g50),
        "just_noticeable": one.just_noticeable if math.isfinite(one.just_noticeable) else None,
        "horizon": one.horizon if math.isfinite(one.horizon) else None,
        "step": one.step,
    }


def _errors(given: Sequence[Answers], items: Contexts) -> Float64[np.ndarray, "contexts places"]:
    """Returns, for every context, how often each asked place was answered wrongly, mean over models.

    Where not every context asks a place, those that do count more, so that the mean is the share of wrong answers.
    """
    asked = items.probe == probes.index_of("binding")
    wrong = np.mean([~one.right for one in given], axis=0)
    result = np.zeros((len(items.tokens), GROUP))
    for place in range(GROUP):
        here = asked & (items.asked == place + 1)
        mistakes = np.where(here, wrong, 0).sum(axis=1) / np.maximum(here.sum(axis=1), 1)
        result[:, place] = mistakes * len(here) / max(here.any(axis=1).sum(), 1)
    return result


def _ceiling(measured: Float64[np.ndarray, "contexts configurations places"]) -> float | None:
    if len(measured) < 4:
        return None
    one = measured[::2].mean(axis=0)
    found = ranks.within_group_spearman(one, measured[1::2].mean(axis=0, keepdims=True)).correlation
    if found is None or found.mean <= 0:
        return None
    return float(np.sqrt(2 * found.mean / (1 + found.mean)))


def _of_task(
    name: str,
    foretold: Mapping[str, Sequence[Answers]],
    items: Contexts,
    answers: Mapping[str, Sequence[Answers]],
    long: Contexts,
) -> RankAgreement:
    right = [np.mean([probes.by_row(one.right, items, name) for one in given]) for given in foretold.values()]
    measured = [np.mean([probes.by_row(one.right, long, name) for one in given], axis=0) for given in answers.values()]
    return ranks.within_group_spearman(np.array(right)[:, None], np.stack(measured, axis=1)[..., None])
