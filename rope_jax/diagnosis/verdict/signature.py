"""The signature of a failure: which way wrong answers lean, and what in a scheme leaves such a trace."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from rope_jax.biases import bucket_starts
from rope_jax.diagnosis.evaluation.cell_runs import Scores
from rope_jax.diagnosis.tasks.contexts import PROBES, Contexts
from rope_jax.diagnosis.verdict.attribution import Used
from rope_jax.diagnosis.verdict.verdict import above
from rope_jax.statistics import intervals
from rope_jax.statistics.intervals import Estimate

NAMES: Mapping[str, str] = {
    "drift": "answers shift along the coherence peak: the scaling moved where heads look",
    "pull toward near tokens": "the nearer of two is taken: a line outweighs content",
    "steps at bucket edges": "order is told across bucket edges only: the buckets carry it",
    "uniform blur": "errors go either way and grow with distance: dilution, or what all parts share",
    "none": "too few errors to name a signature",
}


@dataclasses.dataclass(frozen=True)
class Signature:
    """What was seen.

    Attributes:
      name: a key of `NAMES`.
      evidence: the numbers it rests on, each an estimate.
    """

    name: str
    evidence: Mapping[str, Estimate]

    @property
    def text(self) -> str:
        return NAMES[self.name]


def signature(
    scores: Sequence[Scores],
    items: Contexts,
    used: Used,
    *,
    bias: str,
    num_buckets: int,
    max_distance: int,
    few: float = 0.05,
) -> Signature:
    """Returns the signature of a status quo's answers at the target length.

    Args:
      scores: of the status quo, one a model.
      items: the long haystacks.
      used: probes that passed their gate.
      bias: name of the status quo's bias.
      num_buckets: of its T5 table.
      max_distance: of its T5 table, tokens.
      few: share of wrong answers below which nothing is named.
    """
    wrong = 1 - np.mean([[one.accuracy["long"][name].mean() for name in used.names] for one in scores])
    evidence: dict[str, Estimate] = {}
    if "bind" in used.precision:
        evidence["places that bind answers lie after the item asked for"] = _mean(scores, items, "bind", _offset_error)
    if "ord" in used.precision:
        evidence["share of order answers that name the nearer event"] = _mean(
            scores, items, "ord", lambda one, _: (one.answers["long"].picked != 0).astype(float)
        )
        if bias == "t5":
            starts = np.asarray(bucket_starts(num_buckets, max_distance))
            evidence["gain of order across bucket edges, nats"] = _across_edges(scores, items, starts)
    return Signature(_name(evidence, wrong, few), evidence)


def _name(evidence: Mapping[str, Estimate], wrong: float, few: float) -> str:
    if wrong < few:
        return "none"
    lean = evidence.get("share of order answers that name the nearer event")
    if lean is not None and above(lean, 0.5) == "yes":
        return "pull toward near tokens"
    step = evidence.get("gain of order across bucket edges, nats")
    if step is not None and above(step, 0.5) == "yes":
        return "steps at bucket edges"
    drift = evidence.get("places that bind answers lie after the item asked for")
    if drift is not None and ("yes" in (above(drift, 0.25), above(-drift, 0.25))):
        return "drift"
    return "uniform blur"


def _offset_error(one: Scores, items: Contexts) -> Float64[np.ndarray, "rows Q"]:
    picked = np.take_along_axis(items.choice_offsets, one.answers["long"].picked[..., None], axis=-1)[..., 0]
    return (picked - items.asked).astype(np.float64)


def _mean(scores: Sequence[Scores], items: Contexts, probe: str, value) -> Estimate:
    asked = items.probe == PROBES.index(probe)
    rows = [np.where(asked, value(one, items), 0).sum(axis=1) / asked.sum(axis=1) for one in scores]
    return intervals.clustered(np.stack(rows))


def _across_edges(scores: Sequence[Scores], items: Contexts, starts: np.ndarray) -> Estimate:
    asked = items.probe == PROBES.index("ord")
    near = np.searchsorted(starts, items.distance, side="right")
    far = np.searchsorted(starts, items.distance + items.gap, side="right")
    across, within = asked & (near != far), asked & (near == far)
    usable = across.any(axis=1) & within.any(axis=1)
    if not usable.any():
        return Estimate(0.0, None, None)
    rows = []
    for one in scores:
        odds = one.answers["long"].log_odds
        means = [np.where(part, odds, 0).sum(axis=1) / np.maximum(part.sum(axis=1), 1) for part in (across, within)]
        rows.append((means[0] - means[1])[usable])
    return intervals.clustered(np.stack(rows))
