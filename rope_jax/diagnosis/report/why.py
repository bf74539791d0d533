"""From the scheme to what was seen: what scaling, bias and another angle can do, and the choice that follows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rope_jax.biases import bucket_starts
from rope_jax.diagnosis.report import labels
from rope_jax.diagnosis.report.advice import change_of, leading
from rope_jax.diagnosis.report.record import plain
from rope_jax.diagnosis.report.wording import capital, estimate, listed, named, probability, significant, tokens
from rope_jax.diagnosis.result import Condition
from rope_jax.diagnosis.theory import resolution
from rope_jax.diagnosis.verdict.answers import Verdict

__all__ = ["links"]

Record = Mapping[str, Any]

HIDDEN = math.log(1e4)
"""Nats by which a bias hides a key: only odds of 10,000 to 1 by content outweigh it."""
_SEEN = 1.0  # nats that hide nothing: the odds of a key change by less than a factor of e
_FLAT = 0.1


def links(
    deployed: Condition,
    original: Condition,
    verdict: Verdict,
    trained_length: int,
    target_length: int,
    *,
    rescaled: Condition | None = None,
    max_distance: int | None = None,
) -> dict[str, str]:
    r"""Returns the three links and the choice, as paragraphs by heading.

    .. math:: \|R(d+1) - R(d)\|_F^2 = 8 \sum_i \sin^2(\theta_i / 2)

    does not contain the distance `d`: rotation distinguishes neighbours equally well near and far.

    Args:
      deployed: the deployed configuration.
      original: the unchanged model.
      verdict: on the deployed configuration.
      trained_length: `L`, tokens.
      target_length: `L'`, tokens.
      rescaled: the configuration after the best change of option 3, where one was run.
      max_distance: tokens that the buckets of a bucketed bias cover; its edges are not spoken of where None.
    """
    judged = plain(verdict)
    trained, scaled = (np.asarray(one.inverse_frequencies, np.float64) for one in (original, deployed))
    lengths = (trained_length, target_length)
    name = _scaling_name(deployed, original)
    other = None if rescaled is None else (_scaling_name(rescaled, original), np.asarray(rescaled.inverse_frequencies))
    return {
        "(i) the scaling alone": _paragraph(_scaling(trained, scaled, name, lengths), _share(judged, "scaling")),
        "(ii) the bias alone": _paragraph(_bias(deployed, target_length, max_distance), _share(judged, "bias")),
        "(iii) another angle": _paragraph(_angle(trained, scaled, name, lengths, other), _gain_of_rescaling(judged)),
        "the choice": _paragraph(_choice(judged, deployed, trained, lengths), []),
    }


def _paragraph(said: Sequence[str], measured: Sequence[str]) -> str:
    """Returns sentences, the first of each kind together as the gist."""
    gist = "; ".join([*said[:1], *measured[:1]])
    return " ".join(capital(one) for one in (gist, *said[1:], *measured[1:]) if one)


def _scaling_name(one: Condition, original: Condition) -> str:
    before, after = ({"inverse_frequencies": each.inverse_frequencies} for each in (original, one))
    factor = labels.base_factor(before, after)
    return f"base scaling x{factor:.3g}" if factor is not None else labels.label(one.scaling)


def _step(frequencies: np.ndarray) -> float:
    return math.sqrt(8 * float((np.sin(frequencies / 2) ** 2).sum()))


def _scaling(trained: np.ndarray, scaled: np.ndarray, name: str, lengths: tuple[int, int]) -> list[str]:
    if not len(trained):
        return ["nothing rotates in this model, so there is nothing to scale: the bias and causality tell positions"]
    length, target = lengths
    even = "rotation distinguishes neighbours equally well at every distance d, as ||R(d+1) - R(d)|| does not contain d"
    share = resolution.out_of_distribution_share(trained, scaled, original_length=length, target_length=target)
    new = f"{share * 100:.1f} % of the angles (pair by offset) up to {tokens(target)} were never trained"
    new = new if share else f"no angle up to {tokens(target)} is new"
    if np.allclose(trained, scaled, rtol=1e-9, atol=0):
        return [even, "nothing is scaled here", new]
    kept = _step(scaled) / _step(trained)
    return [
        f"{even}, and {name} keeps {kept * 100:.0f} % of it",
        f"{name} {_slowing(trained, scaled, trained > 0, 'the pairs')}",
        _moved(trained, scaled, lengths),
        new,
    ]


def _moved(trained: np.ndarray, scaled: np.ndarray, lengths: tuple[int, int]) -> str:
    """Returns where a relation of an eighth of the trained length lands, in words."""
    length, target = lengths
    star = max(2 ** round(math.log2(max(length / 8, 1))), 1)
    if star >= length:
        return ""
    reach = min(target, max(round(4 * star * target / length), star + 2))
    curve = resolution.coherence_curves(trained, scaled, resolution.uniform_weights(len(trained)), [star], reach)[0]
    at, height = resolution.peak(curve)
    if at == star and height > 0.95:
        return f"a head tuned to {star} tokens in training keeps its place and {height * 100:.0f} % of its height"
    return (
        f"what moves is the trained relation: a head tuned to {star} tokens (all pairs weighed alike) now peaks at "
        f"{at} with {height * 100:.0f} % of its height"
    )


def _bias(deployed: Condition, target: int, max_distance: int | None) -> list[str]:
    if deployed.slopes is not None:
        return _line(np.abs(np.asarray(deployed.slopes, np.float64)), target)
    if deployed.table is not None:
        return _buckets(np.asarray(deployed.table, np.float64), max_distance)
    if deployed.bias == "none":
        return ["no bias is added"]
    return [f"what {labels.label(deployed.bias)} takes at a distance is not known from slopes or buckets"]


def _line(slopes: np.ndarray, target: int) -> list[str]:
    low, high = float(slopes.min()), float(slopes.max())
    if high == 0:
        return ["all slopes are 0: the bias does nothing"]
    steps = f"{low:.2g} to {high:.2g}" if low < high else f"{low:.2g}"
    far, where = slopes * target, tokens(target)
    step = f"the step between neighbours is {steps} nats, near and far"
    hides = f"at {where} it takes {far.min():.2g} to {far.max():.3g} nats"
    line = "a line adds the same small step at every distance, so its relative resolution falls as 1/distance"
    if far.max() < _SEEN:
        return [f"{line}, and at {where} it hides nothing", step, f"{hides}, less than {_SEEN:g} in every head"]
    if far.min() >= HIDDEN:
        beyond = f"beyond {HIDDEN / low:,.0f} tokens only odds of 10,000 to 1 by content outweigh it in any head"
        return [f"{line}, and at {where} it hides what is far in every head", step, f"{hides}; {beyond}"]
    hidden, light = int((far >= HIDDEN).sum()), int((far < _SEEN).sum())
    return [
        f"{line}, and at {where} it hides what is far in {hidden} of {len(far)} heads",
        step,
        f"{hides}; hidden is what only odds of 10,000 to 1 by content outweigh; it takes less than {_SEEN:g} nat in "
        f"{light} of them",
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
    step = float(np.abs(np.diff(table, axis=1)).max()) if table.shape[1] > 1 else 0.0
    if reach < _FLAT:
        return [*said, f"between any two buckets of a head lie at most {reach:.2g} nats: it is nearly flat"]
    return [*said, f"it steps by up to {step:.2g} nats from bucket to bucket, and by {reach:.2g} over all of them"]


def _share(verdict: Record, part: str) -> list[str]:
    """Returns what the 2 x 2 gives a part, and which tasks that does or does not explain."""
    shares = {task: parts[part] for task, parts in verdict["cause"]["by_task"].items() if part in parts}
    if not shares:
        return []
    unit = "nats" if any(task in shares for task in ("retrieval", "binding", "order")) else "nats a token"
    costs = [named(task) for task, share in shares.items() if significant(share) > 0 and task != "together"]
    exact = [task for task in costs if task in ("event order", "binding")]
    if not costs:
        judged = "measured, it costs none of the tasks significantly"
    elif "retrieval" in costs and exact:
        judged = f"measured, it costs {listed(exact)} and retrieval too: alone it is no loss of place only"
    elif "retrieval" in costs:
        judged = "measured, it costs retrieval and not significantly place"
    elif exact and "retrieval" in shares:
        judged = f"measured, it costs {listed(exact)} and not significantly retrieval, as in the regression described"
    else:
        judged = f"measured, it costs {listed(costs)} significantly"
    parts = ", ".join(f"{named(task)} {estimate(share)}" for task, share in shares.items())
    return [judged, f"its share of what is lost: {parts} {unit}"]


def _angle(
    trained: np.ndarray,
    scaled: np.ndarray,
    name: str,
    lengths: tuple[int, int],
    other: tuple[str, np.ndarray] | None,
) -> list[str]:
    if not len(trained):
        return ["no angle can be transformed where nothing rotates"]
    length, target = lengths
    said = [
        "a scaled RoPE is the original RoPE with a transformed angle, theta -> theta'; option 3 is another such map"
    ]
    known = ~resolution.never_turns_fully(trained, length) & (trained > 0)
    partial = ~known & (trained > 0)
    fast, slow = int(known.sum()), int(partial.sum())
    if fast:
        does = "nothing slows them" if name == labels.label("none") else f"{name} {_slowing(trained, scaled, known)}"
        said.append(
            f"{fast} of {len(trained)} pairs turned fully in {tokens(length)} tokens: no angle of theirs is new"
        )
        said[-1] += f", and {does}"
    if slow:
        said.append(f"slowing the other {slow} by a factor of {target / length:.3g} keeps them in trained angles")
    if other is not None and len(other[1]) == len(trained):
        parts = {f"the {fast} fast pairs": known, f"the {slow} others": partial}
        slowed = [_slowing(trained, other[1], pairs, whom) for whom, pairs in parts.items() if pairs.any()]
        said.append(f"option 3 by {other[0]} {' and '.join(slowed)}")
    return said


def _slowing(trained: np.ndarray, scaled: np.ndarray, pairs: np.ndarray, whom: str = "them") -> str:
    moving = pairs & (scaled > 0)
    if not moving.any():
        return f"stops {whom}"
    slower = trained[moving] / scaled[moving]
    if slower.max() < 1.01 and slower.min() > 0.99:
        return f"leaves {whom} as trained"
    if slower.max() - slower.min() < 0.01:
        return f"slows {whom} by a factor of {slower.max():.2f}"
    return f"slows {whom} by factors from {slower.min():.2f} to {slower.max():.2f}"


def _place(verdict: Record, option: str) -> Record | None:
    ranking = leading(verdict)
    return next((place for place in ranking["places"] if place["option"] == option), None) if ranking else None


def _unit(verdict: Record) -> str:
    ranking = leading(verdict)
    return "nats a token" if ranking and "loss" in ranking["by"] else "nats"


def _gain_of_rescaling(verdict: Record) -> list[str]:
    place = _place(verdict, "3")
    if place is None:
        return ["no change of option 3 was measured"]
    return [f"measured, {_words(verdict, place)} gains {estimate(place['gain'])} {_unit(verdict)}"]


def _words(verdict: Record, place: Record) -> str:
    change = change_of(verdict, place)
    return f'"{place["change"] if change is None else change["words"]}"'


def _choice(verdict: Record, deployed: Condition, trained: np.ndarray, lengths: tuple[int, int]) -> list[str]:
    """Returns how the links and the measurement lead to what is tried first."""
    ranking, regression = leading(verdict), verdict["regression"]
    said = []
    if verdict["first"] == "repair":
        said.append("repair first: what runs is not what is meant to run, and its exact run gains more than the margin")
    if regression["kept"] and not (regression["lost"] or regression["open"]):
        said.append("no task fell by more than its margin, so there is little for a change to win back")
    if ranking is None or not ranking["places"]:
        return [*said, "none of the three changes applies to this configuration"]
    best, *others = ranking["places"]
    then = "after it" if verdict["first"] == "repair" else "so"
    first = f"{then} {best['option']} first: {_words(verdict, best)} gains {estimate(best['gain'])} {_unit(verdict)}"
    if others:
        first += f" (P(first) {probability(best['probability_first'])}), against "
        first += " and ".join(f"{estimate(place['gain'])} for {place['option']}" for place in others)
    said.append(first)
    if significant(best["gain"]) <= 0:
        said.append("that gain is not significant: it is the best of what was tried, and may win back nothing")
    said += _reconciled(verdict["cause"], best["option"], [place["option"] for place in others])
    said += _undone(verdict, best, trained, lengths)
    said += _flat(verdict, best, deployed, lengths[1])
    return said


def _reconciled(cause: Record, first: str, others: Sequence[str]) -> list[str]:
    """Returns how the cause of the 2 x 2 and the ranking fit together."""
    acts_on = {"1": "bias", "2": "scaling", "3": "scaling"}.get(first)
    part = cause["part"]
    if acts_on is None:
        return []
    if cause["ahead"] is None:
        return []  # no whole 2 x 2 to agree or disagree with
    if part in ("scaling", "bias"):
        if part == acts_on:
            return [f"the 2 x 2 agrees: the {part} costs most, and {first} acts on it"]
        if not any(option in others for option in ("1", "2", "3")):
            return [f"the 2 x 2 puts most of the cost on the {part}, which no change that was measured acts on"]
        return [
            f"the 2 x 2 puts most of the cost on the {part}, and still {first} wins back most: the 2 x 2 takes each "
            "part away whole, the ranking counts what one change of what is deployed wins back"
        ]
    return {
        "both": [f"by the 2 x 2 both parts cost: {first} acts on the {acts_on} alone, and some loss may stay"],
        "neither": ["by the 2 x 2 neither part costs much by itself: length alone may be what is left of the loss"],
        "not resolved": ["which part costs most is not resolved; the ranking rests on the measured gains alone"],
    }[part]


def _undone(verdict: Record, best: Record, trained: np.ndarray, lengths: tuple[int, int]) -> list[str]:
    """Returns why undoing the scaling is no way out, where it loses retrieval and meets angles never trained."""
    undone = next((one for one in verdict["changes"] if one["option"] == "2"), None)
    if undone is None or best["option"] == "2" or undone["retrieval_lost"] != "yes" or not len(trained):
        return []
    length, target = lengths
    share = resolution.out_of_distribution_share(trained, trained, original_length=length, target_length=target)
    why = (
        f", as {share * 100:.1f} % of the angles up to {tokens(target)} were never trained without it" if share else ""
    )
    return [f"undoing the scaling loses retrieval{why}"]


def _flat(verdict: Record, best: Record, deployed: Condition, target: int) -> list[str]:
    """Returns that dropping a bias that hides nothing wins nothing, where both are so."""
    dropped = _place(verdict, "1")
    if dropped is None or best["option"] == "1" or significant(dropped["gain"]) > 0:
        return []
    if deployed.slopes is not None and np.abs(deployed.slopes).max() * target < _SEEN:
        return ["a line this flat can cost little, and dropping it gains nothing significant"]
    if deployed.table is not None:
        return ["dropping the buckets gains nothing significant; within a bucket they leave the odds as they are"]
    return []
