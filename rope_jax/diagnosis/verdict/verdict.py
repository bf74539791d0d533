"""The verdict: which change to ship first, or why none; decided by intervals and by margins fixed before any run.

What counts as the cause is the part whose replacement gains most long-context precision. What qualifies as a fix must
also keep long retrieval, short accuracy and the short loss of text. The two are different questions: the part that
broke precision may be one that cannot be given up.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from rope_jax.diagnosis.evaluation.cell_runs import Scores
from rope_jax.diagnosis.evaluation.cells import Option
from rope_jax.diagnosis.verdict import attribution
from rope_jax.diagnosis.verdict.attribution import Effect, Symptom, Used
from rope_jax.statistics import intervals
from rope_jax.statistics.intervals import Estimate
from rope_jax.statistics.multiplicity import joint_confidence

Kind = Literal[
    "option 1", "option 2", "option 3", "implementation", "outside these options", "no fault found", "undetermined"
]
Answer = Literal["yes", "no", "unclear"]
IMPLEMENTATION = "implementation"


@dataclasses.dataclass(frozen=True)
class Margins:
    """What is too little to matter, fixed before any run.

    Attributes:
      gain: long precision that a fix must win back, nats of log-odds.
      retrieval: long retrieval that it may cost, nats of log-odds.
      short_accuracy: accuracy at the trained length that it may cost.
      short_cost: loss of text below the trained length that it may cost, nats a token.
      gate: accuracy at the trained length from which a probe counts as learned.
    """

    gain: float = 0.3
    retrieval: float = 0.3
    short_accuracy: float = 0.02
    short_cost: float = 0.02
    gate: float = 0.9


@dataclasses.dataclass(frozen=True)
class Judged:
    """One option, judged.

    Attributes:
      option: what is changed.
      effect: each interval taken by itself.
      gain: of long precision, with an interval that holds for all options together.
      haystacks: it was judged on.
      helps: whether the gain is above the margin.
      qualifies: whether nothing is lost by more than its margin.
      lost: the measures that are, or may be, lost, with their answer.
    """

    option: Option
    effect: Effect
    gain: Estimate
    haystacks: int
    helps: Answer
    qualifies: Answer
    lost: Mapping[str, Answer]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What to do first.

    Attributes:
      kind: the verdict.
      chosen: the option to ship, where there is one.
      reason: one sentence.
      cause: the part whose replacement gains most precision ("bias", "scaling", "implementation"), or None where none
        gains more than the margin.
      cause_gain: that gain.
      judged: every option, in the order given.
      ties: options that also help and qualify and whose gain overlaps the chosen one's.
      would_change: what would change the verdict.
      settled: whether more haystacks could name no option that wins back more than the chosen one by the margin.
      open: where it is not, all options that are not surely out, to be asked on beside the status quo itself.
    """

    kind: Kind
    chosen: Option | None
    reason: str
    cause: str | None
    cause_gain: Estimate | None
    judged: tuple[Judged, ...]
    ties: tuple[Option, ...]
    would_change: tuple[str, ...]
    settled: bool = True
    open: tuple[Option, ...] = ()


def above(value: Estimate, margin: float) -> Answer:
    """Returns whether a value lies above a margin: yes or no only where its whole interval says so."""
    if value.low is None or value.high is None:
        return "unclear"
    return "yes" if value.low > margin else "no" if value.high <= margin else "unclear"


def decide(
    status_quo: Sequence[Scores],
    changed: Mapping[Option, Sequence[Scores]],
    symptom: Symptom | None,
    used: Used,
    *,
    margins: Margins,
    confidence: float = intervals.CONFIDENCE,
) -> Verdict:
    """Returns the verdict.

    Args:
      status_quo: scores of what is deployed, one a model.
      changed: scores after each option, on the same items, or on the first of them where more would decide nothing. An
        option whose number is `IMPLEMENTATION` runs the status quo's own scheme exactly, where the deployed one may
        have a fault.
      symptom: what is wrong with the status quo, its intervals of the same confidence; None where nothing can be
        decided.
      used: probes that passed their gate; with no precision probe or no retrieval nothing can be decided.
      margins: what is too little to matter.
      confidence: of the intervals it is decided by; for gains, that all of them hold.
    """
    if symptom is None or not used.precision or not used.retrieval:
        missing = "retrieval" if used.precision else "any probe of precision"
        return Verdict("undetermined", None, f"the model has not learned {missing}", None, None, (), (), ())
    before = {option: [one.first(after[0]) for one in status_quo] for option, after in changed.items()}
    gains = {option: attribution.precision_gain(changed[option], before[option], used) for option in changed}
    fewest = min((values.shape[1] for values in gains.values()), default=0)
    together = confidence
    if gains:
        together = joint_confidence([values[:, :fewest] for values in gains.values()], confidence=confidence)
    judged = tuple(
        _judge(
            option,
            attribution.effect(changed[option], before[option], used, confidence=confidence),
            intervals.clustered(values, confidence=together),
            values.shape[1],
            margins,
        )
        for option, values in gains.items()
    )
    cause, cause_gain = _cause(judged, margins)

    def may_beat(one: Judged, best: Judged) -> bool:
        """Returns whether one option may win back more than another by the margin."""
        rows = min(one.haystacks, best.haystacks)
        ahead = gains[one.option][:, :rows] - gains[best.option][:, :rows]
        return above(intervals.clustered(ahead, confidence=confidence), margins.gain) != "no"

    return _verdict(judged, symptom, margins, cause, cause_gain, may_beat)


def _judge(option: Option, effect: Effect, gain: Estimate, haystacks: int, margins: Margins) -> Judged:
    helps = above(gain, margins.gain)
    if helps == "yes" and effect.precision_accuracy.mean < 0:
        helps = "unclear"  # log-odds and accuracy disagree
    losses = {
        "long retrieval": above(effect.retrieval_loss, margins.retrieval),
        "short accuracy": above(effect.short_loss, margins.short_accuracy),
        "short loss of text": above(effect.short_cost, margins.short_cost),
    }
    qualifies: Answer = "no" if "yes" in losses.values() else "unclear" if "unclear" in losses.values() else "yes"
    lost = {name: answer for name, answer in losses.items() if answer != "no"}
    return Judged(option, effect, gain, haystacks, helps, qualifies, lost)


_PARTS = {"1": "bias", "2": "scaling", "3": "scaling", IMPLEMENTATION: "implementation"}


def _cause(judged: Sequence[Judged], margins: Margins) -> tuple[str | None, Estimate | None]:
    inside = [one for one in judged if one.option.number in _PARTS]
    # Every other option was run exactly too: what an exact run wins back by itself is not theirs.
    exact = {one.option: one.gain.mean for one in inside if one.option.number == IMPLEMENTATION and one.helps == "yes"}
    repaired = max(exact.values(), default=0.0)
    best = max(inside, key=lambda one: one.gain.mean - (0 if one.option in exact else repaired), default=None)
    if best is None or above(best.gain, margins.gain) != "yes":
        return None, None
    return _PARTS[best.option.number], best.gain


def _verdict(
    judged: Sequence[Judged],
    symptom: Symptom,
    margins: Margins,
    cause: str | None,
    cause_gain: Estimate | None,
    may_beat: Callable[[Judged, Judged], bool],
) -> Verdict:
    inside = [one for one in judged if one.option.number in _PARTS]
    outside = [one for one in judged if one.option.number not in _PARTS]

    def verdict(
        kind: Kind, reason: str, chosen: Judged | None = None, *, ties=(), would_change=(), settled=True, open=()
    ) -> Verdict:
        return Verdict(
            kind,
            None if chosen is None else chosen.option,
            reason,
            cause,
            cause_gain,
            tuple(judged),
            tuple(ties),
            tuple(would_change),
            settled,
            tuple(one.option for one in open),
        )

    fixes = [one for one in inside if one.helps == "yes" and one.qualifies == "yes"]
    open_cases = [one for one in inside if one.helps != "no" and one.qualifies != "no"]
    if fixes:
        # A repair comes first: every other option was run exactly too, so that its gain presupposes it.
        best = max(fixes, key=lambda one: (one.option.number == IMPLEMENTATION, one.gain.mean))
        ahead = [one for one in fixes if _surely_better(one, best)]  # of a repair
        ties = [one.option for one in fixes if one is not best and one not in ahead and not _surely_better(best, one)]
        kind = "implementation" if best.option.number == IMPLEMENTATION else f"option {best.option.number}"
        doubt = [
            f"{one.option.change}: its gain of {one.gain.mean:.2f} nats is larger, and "
            f"{_lost(one)} is not yet known to be kept; more haystacks would tell"
            for one in inside
            if one.qualifies == "unclear" and one.gain.mean > best.gain.mean
        ]
        reason = (
            f"{best.option.change}: wins back {_interval(best.gain)} nats of long-context precision and loses neither "
            "retrieval nor short context beyond the margins"
        )
        beyond = [
            f"once it runs exactly, to {one.option.change}: that wins back {_interval(one.gain)}, surely more"
            for one in ahead
        ]
        rivals = [one for one in open_cases if _may_come_first(one, best, may_beat)]
        return verdict(
            kind,  # type: ignore[arg-type]
            reason,
            best,
            ties=ties,
            would_change=[*beyond, *doubt, *_ties_text(ties)],
            settled=not rivals,
            open=open_cases if rivals else [],
        )
    if open_cases:
        best = max(open_cases, key=lambda one: one.gain.mean)
        what = (
            f"whether its gain of {_interval(best.gain)} nats exceeds {margins.gain:g}"
            if best.helps == "unclear"
            else f"whether {_lost(best)} is kept"
        )
        return verdict(
            "undetermined",
            f"the most promising change is to {best.option.change}; open is {what}",
            would_change=[f"more haystacks: the interval of '{best.option.change}' is too wide to decide"],
            settled=False,
            open=open_cases,
        )
    broken = above(symptom.precision_drop, margins.gain)
    if broken == "no":
        return verdict("no fault found", "the status quo loses no precision beyond the margin")
    if broken == "unclear":
        return verdict(
            "undetermined",
            "whether precision is lost at all is not resolved",
            would_change=["more haystacks"],
            settled=False,
        )
    refused = [one for one in inside if one.helps == "yes"]
    helpful = [one for one in outside if one.helps == "yes"]
    reason = "precision is lost, and " + (
        f"the changes that win it back ({', '.join(one.option.change for one in refused)}) lose more than they may "
        f"({'; '.join(_lost(one) for one in refused)})"
        if refused
        else "none of the three options wins it back: bias and scaling are not what broke it, or not alone"
    )
    if helpful:
        reason += f"; outside of them helps: {', '.join(one.option.change for one in helpful)}"
    return verdict(
        "outside these options", reason, would_change=["adapting the model to its new length by fine-tuning"]
    )


def _may_come_first(one: Judged, best: Judged, may_beat: Callable[[Judged, Judged], bool]) -> bool:
    """Returns whether more haystacks could put another option before the best of those that are known to be fixes."""
    if one is best or best.option.number == IMPLEMENTATION:
        return False
    return one.option.number == IMPLEMENTATION or may_beat(one, best)


def _surely_better(one: Judged, other: Judged) -> bool:
    assert one.gain.low is not None
    assert other.gain.high is not None
    return one.gain.low > other.gain.high


def _interval(value: Estimate) -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _lost(one: Judged) -> str:
    return " and ".join(one.lost)


def _ties_text(ties: Sequence[Option]) -> list[str]:
    return [
        f"'{option.change}' also qualifies, and its gain is not told apart from the chosen one's" for option in ties
    ]
