"""From the scheme to what was seen: what scaling, bias and another angle can do, and the choice that follows."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rope_jax.biases import bucket_starts
from rope_jax.diagnosis.evaluation.configurations import ORIGINAL
from rope_jax.diagnosis.report import labels
from rope_jax.diagnosis.report.reading import Record, all_kept, change_of, leading
from rope_jax.diagnosis.report.record import plain
from rope_jax.diagnosis.report.wording import capital, estimate, negated, probability, significant, tokens
from rope_jax.diagnosis.result import Condition
from rope_jax.diagnosis.theory import resolution
from rope_jax.diagnosis.verdict.answers import Verdict
from rope_jax.diagnosis.verdict.wording import listed, named

__all__ = ["links"]

HIDDEN = math.log(1e4)
"""Nats by which a bias hides a key: only odds of 10,000 to 1 by content outweigh it."""
_SEEN = 1.0  # nats that hide nothing: the odds of a key change by less than a factor of e
_FLAT = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class _Scaled:
    """What a scaling makes of the trained frequencies, from length `L` to `target`."""

    name: str
    trained: np.ndarray
    scaled: np.ndarray
    length: int
    target: int

    def share_out(self, scaled: np.ndarray) -> float:
        """Returns the share of angles up to the target length that were never trained."""
        return resolution.out_of_distribution_share(
            self.trained, scaled, original_length=self.length, target_length=self.target
        )


def links(
    deployed: Condition,
    conditions: Mapping[str, Condition],
    verdict: Verdict,
    trained_length: int,
    target_length: int,
) -> dict[str, str]:
    r"""Returns the three links and the choice, as paragraphs by heading.

    .. math:: \|R(d+1) - R(d)\|_F^2 = 8 \sum_i \sin^2(\theta_i / 2)

    does not contain the distance `d`: rotation distinguishes neighbours equally well near and far.

    Args:
      deployed: the deployed configuration.
      conditions: what was run, by name, the unchanged model among it.
      verdict: on the deployed configuration.
      trained_length: `L`, tokens.
      target_length: `L'`, tokens.
    """
    trained, judged = conditions[ORIGINAL].inverse_frequencies, plain(verdict)

    def by(one: Condition) -> _Scaled:
        name = labels.scaling(one.scaling, trained, one.inverse_frequencies)
        return _Scaled(name, np.asarray(trained), np.asarray(one.inverse_frequencies), trained_length, target_length)

    one, change, asked = by(deployed), change_of(judged, "3"), bool(deployed.answers)
    other = None if change is None else conditions.get(change["configuration"])
    paragraphs = {
        "(i) the scaling alone": (_scaling(one), _share(judged, "scaling", asked)),
        "(ii) the bias alone": (_bias(deployed, target_length), _share(judged, "bias", asked)),
        "(iii) another angle": (_angle(one, None if other is None else by(other)), _gain_of_rescaling(judged)),
        "the choice": (_choice(judged, deployed, one), ()),
    }
    return {heading: _paragraph(list(said), list(measured)) for heading, (said, measured) in paragraphs.items()}


def _paragraph(said: Sequence[str], measured: Sequence[str]) -> str:
    """Returns sentences, the first of each kind together as the gist."""
    gist = "; ".join([*said[:1], *measured[:1]])
    return " ".join(capital(one) for one in (gist, *said[1:], *measured[1:]))


def _step(frequencies: np.ndarray) -> float:
    return math.sqrt(8 * float((np.sin(frequencies / 2) ** 2).sum()))


def _scaling(one: _Scaled) -> Iterator[str]:
    if not len(one.trained):
        yield "nothing rotates in this model, so there is nothing to scale: the bias and causality tell positions"
        return
    even = "rotation distinguishes neighbours equally well at every distance d, as ||R(d+1) - R(d)|| does not contain d"
    if np.allclose(one.trained, one.scaled, rtol=1e-9, atol=0):
        yield from (even, "nothing is scaled here")
    else:
        yield f"{even}, and {one.name} keeps {_step(one.scaled) / _step(one.trained) * 100:.0f} % of it"
        yield f"{one.name} {_slowing(one, one.trained > 0, 'the pairs')}"
        yield from _moved(one)
    share, target = one.share_out(one.scaled), tokens(one.target)
    if share:
        yield f"{share * 100:.1f} % of the angles (pair by offset) up to {target} were never trained"
    else:
        yield f"no angle up to {target} is new"


def _moved(one: _Scaled) -> Iterator[str]:
    """Yields where a relation of an eighth of the trained length lands, in words."""
    star = max(2 ** round(math.log2(max(one.length / 8, 1))), 1)
    if star >= one.length:
        return
    reach = min(one.target, max(round(4 * star * one.target / one.length), star + 2))
    weights = resolution.uniform_weights(len(one.trained))
    at, height = resolution.peak(resolution.coherence_curves(one.trained, one.scaled, weights, [star], reach)[0])
    if at == star and height > 0.95:
        yield f"a head tuned to {star} tokens in training keeps its place and {height * 100:.0f} % of its height"
    else:
        yield (
            f"what moves is the trained relation: a head tuned to {star} tokens (all pairs weighed alike) now peaks at "
            f"{at} with {height * 100:.0f} % of its height"
        )


def _bias(deployed: Condition, target: int) -> list[str]:
    if deployed.slopes is not None:
        return _line(np.abs(np.asarray(deployed.slopes)), target)
    if deployed.table is not None:
        return _buckets(np.asarray(deployed.table), deployed.max_distance)
    if deployed.bias == "none":
        return ["no bias is added"]
    return [f"what {labels.label(deployed.bias)} takes at a distance is not known from slopes or buckets"]


def _line(slopes: np.ndarray, target: int) -> list[str]:
    low, high = float(slopes.min()), float(slopes.max())
    if high == 0:
        return ["all slopes are 0: the bias does nothing"]
    steps = f"{low:.2g} to {high:.2g}" if low < high else f"{low:.2g}"
    far, where = slopes * target, tokens(target)
    hidden, light = int((far >= HIDDEN).sum()), int((far < _SEEN).sum())
    if light == len(far):
        hides, more = "nothing", f", less than {_SEEN:g} in every head"
    elif hidden == len(far):
        hides = "what is far in every head"
        more = f"; beyond {HIDDEN / low:,.0f} tokens only odds of 10,000 to 1 by content outweigh it in any head"
    else:
        hides = f"what is far in {hidden} of {len(far)} heads"
        more = (
            f"; hidden is what only odds of 10,000 to 1 by content outweigh; it takes less than {_SEEN:g} nat in "
            f"{light} of them"
        )
    return [
        "a line adds the same small step at every distance, so its relative resolution falls as 1/distance, and at "
        f"{where} it hides {hides}",
        f"the step between neighbours is {steps} nats, near and far",
        f"at {where} it takes {far.min():.2g} to {far.max():.3g} nats{more}",
    ]


def _buckets(table: np.ndarray, max_distance: int | None) -> list[str]:
    reach = float((table.max(axis=1) - table.min(axis=1)).max())
    said = ["inside one bucket the bias is one constant and leaves the odds of two keys unchanged"]
    if max_distance is not None and max_distance > table.shape[1] // 2:
        starts = bucket_starts(table.shape[1], max_distance)
        said.append(
            f"the last of its {table.shape[1]} buckets begins at {starts[-1]:,} tokens, and the one before is "
            f"{starts[-1] - starts[-2]:,} wide"
        )
    if reach < _FLAT:
        return [*said, f"between any two buckets of a head lie at most {reach:.2g} nats: it is nearly flat"]
    step = float(np.abs(np.diff(table, axis=1)).max())
    return [*said, f"it steps by up to {step:.2g} nats from bucket to bucket, and by {reach:.2g} over all of them"]


def _share(verdict: Record, part: str, asked: bool) -> Iterator[str]:
    """Yields what the 2 x 2 gives a part, and which tasks, if any were asked and learned, that does or not explain."""
    shares = {task: parts[part] for task, parts in verdict["cause"]["by_task"].items() if part in parts}
    if not shares:
        return
    learned = [task for task in shares if task in ("retrieval", "binding", "order")]
    costs, wins = ([named(task) for task in learned if significant(shares[task]) == way] for way in (1, -1))
    exact = listed([task for task in costs if task != "retrieval"])
    if not learned:
        (share,) = shares.values()
        does = {1: "raises", -1: "lowers", 0: "does not significantly change"}[significant(share)]
        why = "the model has learned none of the tasks" if asked else "no questions were asked"
        yield f"{why}; measured, it {does} the loss of text beyond the trained length"
        yield f"its share in that loss: {estimate(share)} nats a token"
        return
    if not costs:
        said = "none of the learned tasks significantly"
    elif "retrieval" in costs and exact:
        said = f"{exact} and retrieval too: alone it is no loss of place only"
    elif "retrieval" in costs:
        said = "retrieval and not significantly place" if len(learned) > 1 else "retrieval significantly"
    elif exact and "retrieval" in shares:
        said = f"{exact} and not significantly retrieval, as in the regression described"
    else:
        said = f"{listed(costs)} significantly"
    yield f"measured, it costs {said}" + (f", and wins {listed(wins)}" if wins else "")
    parts = ", ".join(f"{named(task)} {estimate(share)}" for task, share in shares.items())
    yield f"its share of what is lost (below 0 it wins): {parts} nats"


def _angle(one: _Scaled, other: _Scaled | None) -> Iterator[str]:
    if not len(one.trained):
        yield "no angle can be transformed where nothing rotates"
        return
    yield "a scaled RoPE is the original RoPE with a transformed angle, theta -> theta'; option 3 is another such map"
    turning = one.trained > 0
    known = ~resolution.never_turns_fully(one.trained, one.length) & turning
    partial = ~known & turning
    fast, slow = int(known.sum()), int(partial.sum())
    if fast:
        does = "nothing slows them" if one.name == labels.label("none") else f"{one.name} {_slowing(one, known)}"
        yield (
            f"{fast} of {len(known)} pairs turned fully in {tokens(one.length)} tokens: no angle of theirs is new, and "
            f"{does}"
        )
    if slow:
        yield f"slowing the other {slow} by a factor of {one.target / one.length:.3g} keeps them in trained angles"
    if other is not None and len(other.scaled) == len(one.trained):
        parts = {f"the {fast} fast pairs": known, f"the {slow} others": partial}
        slowed = [_slowing(other, pairs, whom) for whom, pairs in parts.items() if pairs.any()]
        yield f"option 3 by {other.name} {' and '.join(slowed)}"


def _slowing(one: _Scaled, pairs: np.ndarray, whom: str = "them") -> str:
    moving = pairs & (one.scaled > 0)
    if not moving.any():
        return f"stops {whom}"
    slower = one.trained[moving] / one.scaled[moving]
    if slower.max() < 1.01 and slower.min() > 0.99:
        return f"leaves {whom} as trained"
    if slower.max() - slower.min() < 0.01:
        return f"slows {whom} by a factor of {slower.max():.2f}"
    return f"slows {whom} by factors from {slower.min():.2f} to {slower.max():.2f}"


def _place(verdict: Record, option: str) -> Record | None:
    return next((place for place in leading(verdict)["places"] if place["option"] == option), None)


def _gained(verdict: Record, place: Record) -> str:
    unit = "nats a token" if "loss" in leading(verdict)["by"] else "nats"
    loses = place["gain"]["mean"] is not None and place["gain"]["mean"] < 0
    amount = f"loses {estimate(negated(place['gain']), sign=False)}" if loses else f"gains {estimate(place['gain'])}"
    return f'"{place["change"]}" {amount} {unit}'


def _gain_of_rescaling(verdict: Record) -> list[str]:
    place = _place(verdict, "3")
    return ["no change of option 3 was measured" if place is None else f"measured, {_gained(verdict, place)}"]


def _choice(verdict: Record, deployed: Condition, one: _Scaled) -> Iterator[str]:
    """Yields how the links and the measurement lead to what is tried first."""
    repair = verdict["first"] == "repair"
    if repair:
        yield "repair first: what runs is not what is meant to run, and its exact run gains more than the margin"
    if kept := all_kept(verdict):
        yield f"{kept}, so there is little for a change to win back"
    if not leading(verdict)["places"]:
        yield "none of the three changes applies to this configuration"
        return
    best, *others = leading(verdict)["places"]
    against = " and ".join(f"{estimate(place['gain'])} for {place['option']}" for place in others)
    against = against and f" (P(first) {probability(best['probability_first'])}), against {against}"
    yield f"{'after it' if repair else 'so'} {best['option']} first: {_gained(verdict, best)}{against}"
    if significant(best["gain"]) < 0:
        yield "that is a loss: what is deployed is better"
    elif not significant(best["gain"]):
        yield "that gain is not significant: it is the best of what was tried, and may win back nothing"
    yield from _reconciled(verdict["cause"], best["option"], [place["option"] for place in others])
    yield from _undone(verdict, best, one)
    yield from _flat(verdict, best, deployed, one.target)


def _reconciled(cause: Record, first: str, others: Sequence[str]) -> Iterator[str]:
    """Yields how the cause of the 2 x 2 and the ranking fit together."""
    acts_on = {"1": "bias", "2": "scaling", "3": "scaling"}.get(first)
    part = cause["part"]
    if acts_on is None or cause["ahead"] is None:
        return  # no whole 2 x 2 to agree or disagree with
    if part == "both":
        yield f"by the 2 x 2 both parts cost: {first} acts on the {acts_on} alone, and some loss may stay"
    elif part == "neither":
        yield "by the 2 x 2 neither part costs much by itself: length alone may be what is left of the loss"
    elif part == "not resolved":
        yield "which part costs most is not resolved; the ranking rests on the measured gains alone"
    elif part == acts_on:
        yield f"the 2 x 2 agrees: the {part} costs most, and {first} acts on it"
    elif not {"1", "2", "3"} & set(others):
        yield f"the 2 x 2 puts most of the cost on the {part}, which no change that was measured acts on"
    else:
        yield (
            f"the 2 x 2 puts most of the cost on the {part}, and still {first} wins back most: the 2 x 2 takes each "
            "part away whole, the ranking counts what one change of what is deployed wins back"
        )


def _undone(verdict: Record, best: Record, one: _Scaled) -> Iterator[str]:
    """Yields why undoing the scaling is no way out, where it loses retrieval and meets angles never trained."""
    undone = next((change for change in verdict["changes"] if change["option"] == "2"), None)
    if undone is None or best["option"] == "2" or undone["retrieval_lost"] != "yes" or not len(one.trained):
        return
    share, why = one.share_out(one.trained), ""
    if share:
        why = f", as {share * 100:.1f} % of the angles up to {tokens(one.target)} were never trained without it"
    yield f"undoing the scaling loses retrieval{why}"


def _flat(verdict: Record, best: Record, deployed: Condition, target: int) -> Iterator[str]:
    """Yields that dropping a bias that hides nothing wins nothing, where both are so."""
    dropped = _place(verdict, "1")
    if dropped is None or best["option"] == "1" or significant(dropped["gain"]) > 0:
        return
    if deployed.slopes is not None and np.abs(deployed.slopes).max() * target < _SEEN:
        yield "a line this flat can cost little, and dropping it gains nothing significant"
    elif deployed.table is not None:
        yield "dropping the buckets gains nothing significant; within a bucket they leave the odds as they are"
