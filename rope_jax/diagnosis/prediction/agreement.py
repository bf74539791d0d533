"""Prediction beside measurement: do stretched short contexts order the configurations as long ones do?"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from rope_jax.decoder import Schemes
from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.configurations import ORIGINAL
from rope_jax.diagnosis.evaluation.probes import Answers
from rope_jax.diagnosis.prediction import own_heads
from rope_jax.diagnosis.prediction.stretched import StretchedProgram, stretched
from rope_jax.diagnosis.tasks.contexts import GROUP, Contexts
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.verdict.contrasts import above
from rope_jax.errors import InputError
from rope_jax.scheme import Scheme
from rope_jax.statistics import ranks
from rope_jax.statistics.intervals import Estimate

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
    target = subjects[0].target_length
    items, long = subjects[0].unseen_items, subjects[0].items.long  # the same of every model
    if long is None or items is None or "binding" not in probes.asked_probes(items):
        return None
    trained = [scheme for scheme in schemes[ORIGINAL] if isinstance(scheme, Scheme) and scheme.rotary_dim]
    if len(trained) < len(subjects):
        return None
    try:
        seen = stretched(items, target)
    except InputError:  # a context full of facts
        return None
    programs = [StretchedProgram(subject.checkpoint.model) for subject in subjects]
    foretold = {
        name: [
            probes.answers(program(scheme, items, *seen), items)
            for program, scheme in zip(programs, schemes[name], strict=True)
        ]
        for name in answers
    }
    predicted = {name: _errors(given, items).mean(axis=0) for name, given in foretold.items()}
    errors = {name: _errors(given, long) for name, given in answers.items()}
    measured = np.stack(list(errors.values()), axis=1)
    found = ranks.within_group_spearman(np.stack(list(predicted.values())), measured).correlation
    ceiling = _ceiling(measured)
    some = Contexts(*(column[:_HEAD_ROWS] for column in items))
    heads = [
        own_heads.own_heads(subject.checkpoint.model, scheme, some)
        for subject, scheme in zip(subjects, trained, strict=True)
    ]
    return {
        "spearman": _plain(found),
        "ceiling": ceiling,
        "by_task": {name: _plain(_of_task(name, foretold, items, answers, long)) for name in used},
        "text": _text(found, ceiling),
        "heads": [{"local": dataclasses.asdict(own.local), "far": dataclasses.asdict(own.far)} for own in heads],
        "configurations": [
            {
                "name": name,
                "predicted": predicted[name].tolist(),
                "measured": errors[name].mean(axis=0).tolist(),
                **own_heads.head_figures(heads[0], schemes[name][0], target_length=target),  # type: ignore[arg-type]
            }
            for name in answers
        ],
    }


def _plain(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else dataclasses.asdict(found)


def _text(value: Estimate | None, ceiling: float | None) -> str:
    """Returns what the correlation says about the prediction."""
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


def _errors(given: Sequence[Answers], items: Contexts) -> Float64[np.ndarray, "contexts places"]:
    """Returns, for every context, how often each asked place was answered wrongly, mean over models.

    Where not every context asks a place, those that do count more, so that the mean is the share of wrong answers.
    """
    wrong = np.mean([~one.right for one in given], axis=0)
    result = np.zeros((len(items.tokens), GROUP))
    for place in range(GROUP):
        here = probes.asks(items, "binding", place + 1)
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
) -> Estimate | None:
    right = [np.mean([probes.by_row(one.right, items, name) for one in given]) for given in foretold.values()]
    measured = [np.mean([probes.by_row(one.right, long, name) for one in given], axis=0) for given in answers.values()]
    return ranks.within_group_spearman(np.array(right)[:, None], np.stack(measured, axis=1)[..., None]).correlation
