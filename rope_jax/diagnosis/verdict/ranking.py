"""Answer 3: which of the three changes to try first, by one joint bootstrap of all of them.

Order, binding and both together are ranked on the same resamples of the same contexts. A family of several changes,
such as the transforms of option 3, is worth what its best change is worth where it was not chosen: chosen on one half
of a resample, it is valued on the other. Only retrieval that is significantly lost puts a change behind others.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from rope_jax.diagnosis.verdict.answers import Answer, Place, Ranking
from rope_jax.diagnosis.verdict.contrasts import MODELS, TEXT, Contrasts, Paired
from rope_jax.diagnosis.verdict.panel import RETRIEVAL, Evidence, Option, Panel
from rope_jax.statistics.intervals import Estimate
from rope_jax.statistics.joint_resamples import JointResamples, joint_resamples

__all__ = ["NUMBERS", "TOGETHER", "Contest", "contest"]

NUMBERS = ("1", "2", "3")
TOGETHER = "together"
_LOST = "retrieval is significantly lost"


@dataclasses.dataclass(frozen=True, eq=False)
class Contest:
    """What the joint resamples say of all options.

    Attributes:
      rankings: as a verdict has them.
      decisive: the name of the ranking that decides.
      may_lead: probability that a change is the best of all that were tried among the three, by configuration.
      may_lose_retrieval: probability that it costs more long retrieval than the margin, by configuration.
    """

    rankings: Mapping[str, Ranking]
    decisive: str
    may_lead: Mapping[str, float]
    may_lose_retrieval: Mapping[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class _Family:
    option: str
    members: tuple[Option, ...]
    demoted: bool


def contest(
    evidence: Evidence, base: Panel, lost: Mapping[str, Answer], contrasts: Contrasts, *, retrieval_margin: float
) -> Contest:
    """Returns the rankings of the three options, and of changes outside them, by order, binding and both together.

    Args:
      evidence: of one deployed configuration.
      base: what gains are over.
      lost: whether long retrieval is significantly lost, by configuration.
      contrasts: makes the contrasts.
      retrieval_margin: long retrieval that a change may cost, nats.
    """
    weights = contrasts.weights
    tasks = {task: {task: 1.0} for task in weights}
    decisive = TOGETHER if weights else TEXT
    gains: dict[str, dict[str, Paired]] = {name: {} for name in (*tasks, decisive)}
    for option in evidence.options:
        panel = evidence.changed[option.configuration]
        for task in tasks:
            gains[task][option.configuration] = contrasts.task(panel, base, task)
        gains[decisive][option.configuration] = contrasts.together(panel, base)
    families = _families(evidence.options, lost)
    rankings = {
        name: _ranking(name, tasks.get(name, weights or {TEXT: 1.0}), families, of, contrasts)
        for name, of in gains.items()
    }
    falls = {
        option.configuration: contrasts.task(base, evidence.changed[option.configuration], RETRIEVAL)
        for option in evidence.options
        if RETRIEVAL in contrasts.used
    }
    return Contest(
        rankings,
        decisive,
        _leads([family for family in families if family.option in NUMBERS], gains[decisive], contrasts.seed),
        {name: _share_above(fall, retrieval_margin, contrasts.seed) for name, fall in falls.items()},
    )


def _families(options: Sequence[Option], lost: Mapping[str, Answer]) -> list[_Family]:
    """Returns the options, each with the changes that may stand for it: those that keep retrieval, where any do."""
    grouped: dict[str, list[Option]] = {}
    for option in options:
        grouped.setdefault(option.number if option.number in NUMBERS else option.words, []).append(option)
    result = []
    for name, members in grouped.items():
        keeping = [one for one in members if lost.get(one.configuration) != "yes"]
        result.append(_Family(name, tuple(keeping or members), not keeping))
    return result


def _ranking(
    by: str,
    weights: Mapping[str, float],
    families: Sequence[_Family],
    gains: Mapping[str, Paired],
    contrasts: Contrasts,
) -> Ranking:
    values, resampled = _values(families, gains, contrasts.seed)
    inside = [place for place, family in enumerate(families) if family.option in NUMBERS]
    running = [place for place in inside if not families[place].demoted] or inside
    first = np.zeros(len(families))
    if resampled is None:
        first[running] = 1 / max(1, len(running))  # one context tells no spread
    else:
        first[running] = _shares_first(resampled[:, running])
    for place, family in enumerate(families):
        if place in inside or family.demoted:
            continue
        if resampled is None:
            first[place] = 1 / (1 + len(running))
        elif running:
            first[place] = float((resampled[:, place] > resampled[:, running].max(axis=1)).mean())
        else:
            first[place] = 1.0

    def place_of(index: int) -> Place:
        family = families[index]
        best = max(family.members, key=lambda one: gains[one.configuration].values.mean())
        if len(family.members) == 1:
            gain = contrasts.estimate(gains[best.configuration])
        else:
            gain = _spread(values[index], None if resampled is None else resampled[:, index], contrasts.confidence)
        return Place(family.option, best.words, float(first[index]), gain, _LOST if family.demoted else "")

    def ordered(indices: Sequence[int]) -> tuple[Place, ...]:
        places = [place_of(index) for index in indices]
        return tuple(sorted(places, key=lambda one: (bool(one.demoted), -one.probability_first, -one.gain.mean)))

    outside = [place for place in range(len(families)) if place not in inside]
    return Ranking(by, weights, ordered(inside), ordered(outside))


def _values(
    families: Sequence[_Family], gains: Mapping[str, Paired], seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the expected gain of every family, and its gain in every resample; None where nothing varies."""
    names = [one.configuration for family in families for one in family.members]
    averages = np.array([gains[name].values.mean() for name in names])
    resamples = _resamples([gains[name] for name in names], seed)
    columns = np.split(np.arange(len(names)), np.cumsum([len(family.members) for family in families])[:-1])
    if resamples is None:
        return np.array([averages[part].max() for part in columns]), None
    halves = [_columns(resamples, [gains[name] for name in names], half) for half in (0, 1)]
    drawn = []
    for part in columns:
        first, second = (half[:, part] for half in halves)
        rows = np.arange(len(first))
        drawn.append(
            resamples.sizes[1] * second[rows, first.argmax(axis=1)]
            + resamples.sizes[0] * first[rows, second.argmax(axis=1)]
        )
    values = np.array(
        [averages[part[0]] if len(part) == 1 else of.mean() for part, of in zip(columns, drawn, strict=True)]
    )
    return values, values + (np.stack(drawn, axis=1) - values) * resamples.stretch[:, None]


def _resamples(gains: Sequence[Paired], seed: int) -> JointResamples | None:
    most = max((gain.units for gain in gains), default=0)
    if min((gain.units for gain in gains), default=0) < 2:
        return None
    models = gains[0].values.shape[0]
    return joint_resamples(most, models if models >= MODELS else 1, seed=seed)


def _columns(resamples: JointResamples, gains: Sequence[Paired], half: int) -> np.ndarray:
    """Returns the mean of every gain in one half of each resample; gains on fewer contexts by those they share."""
    result = np.empty((len(resamples.stretch), len(gains)))
    for units in {gain.units for gain in gains}:
        places = [place for place, gain in enumerate(gains) if gain.units == units]
        result[:, places] = resamples.means(np.stack([gains[place].values for place in places], axis=-1))[half]
    return result


def _shares_first(resampled: np.ndarray) -> np.ndarray:
    """Returns in what share of the resamples each column is the largest; a tie counts for all that share it."""
    if not resampled.shape[1]:
        return np.zeros(0)
    best = resampled == resampled.max(axis=1, keepdims=True)
    return (best / best.sum(axis=1, keepdims=True)).mean(axis=0)


def _spread(value: float, resampled: np.ndarray | None, confidence: float) -> Estimate:
    if resampled is None:
        return Estimate(float(value), None, None)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def _leads(families: Sequence[_Family], gains: Mapping[str, Paired], seed: int) -> dict[str, float]:
    """Returns the probability that each change is the best one, by configuration."""
    names = [one.configuration for family in families if not family.demoted for one in family.members]
    each = [_Family(name, (Option("", "", name),), False) for name in names]
    if not each:
        return {}
    _, resampled = _values(each, gains, seed)
    shares = np.full(len(each), 1 / len(each)) if resampled is None else _shares_first(resampled)
    return {name: float(share) for name, share in zip(names, shares, strict=True)}


def _share_above(fall: Paired, margin: float, seed: int) -> float:
    each = [_Family("", (Option("", "", "fall"),), False)]
    _, resampled = _values(each, {"fall": fall}, seed)
    return 1.0 if resampled is None else float((resampled > margin).mean())
