"""The six answers of a verdict, as plain records: what `decide` fills in and what reports read.

Each number is an estimate with an interval. Gains are positive where things get better, prices where they get worse.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from rope_jax.diagnosis.evaluation.panel import RETRIEVAL
from rope_jax.statistics.intervals import Estimate

Answer = Literal["yes", "no", "not resolved"]
Status = Literal["exact", "repair first", "repair may help", "faulty, harmless"]
Part = Literal["scaling", "bias", "both", "neither", "not resolved"]

TOGETHER = "together"
TEXT = "long loss of text"
"""What decides beside the tasks: order and binding by their weights or, where neither was learned, text."""


@dataclasses.dataclass(frozen=True)
class Margins:
    """What is too little to matter, fixed before any run.

    Attributes:
      gain: long order and binding that a change must win back, nats of log-odds.
      retrieval: long retrieval that it may cost, nats of log-odds.
      short_accuracy: accuracy at the trained length that it may cost.
      short_loss: loss of text below the trained length that it may cost, nats a token.
      long_loss: loss of text beyond it that it may cost, nats a token.
      learned: accuracy at the trained length from which a task counts as learned.
    """

    gain: float = 0.3
    retrieval: float = 0.3
    short_accuracy: float = 0.02
    short_loss: float = 0.02
    long_loss: float = 0.02
    learned: float = 0.9

    def of(self, measure: str) -> float:
        """Returns by how much a task, or text beyond the trained length, may change unheeded, in its own unit."""
        return {RETRIEVAL: self.retrieval, TEXT: self.long_loss}.get(measure, self.gain)


@dataclasses.dataclass(frozen=True)
class Shift:
    """One change of one task's outcome.

    Attributes:
      log_odds: nats.
      accuracy: share of right answers; for loss of text None.
    """

    log_odds: Estimate
    accuracy: Estimate | None

    def __neg__(self) -> "Shift":
        """The same of the opposite: a fall from a rise."""
        return Shift(-self.log_odds, None if self.accuracy is None else -self.accuracy)


@dataclasses.dataclass(frozen=True)
class Regression:
    """Answer 1: is it the regression described, retrieval kept and order or binding lost?

    Attributes:
      answer: yes, no, or not resolved.
      lost: tasks that significantly fell by more than their margin, from the original at `L` to the deployed at `L'`.
      kept: tasks that significantly did not.
      open: the others.
      falls: the fall of each task, positive is worse.
      pull: of event order, log-odds toward the nearer event whichever was asked for, nats (the criterion; 0 is none),
        or None without event order. The mean of both ways of asking, which a pull leaves alone, is the sensitivity.
      sentence: the answer in words.
    """

    answer: Answer
    lost: tuple[str, ...]
    kept: tuple[str, ...]
    open: tuple[str, ...]
    falls: Mapping[str, Shift]
    pull: Estimate | None
    sentence: str


@dataclasses.dataclass(frozen=True)
class FaultEffect:
    """What a fault costs the deployed configuration, or would cost it.

    Attributes:
      name: of the fault.
      description: what an implementation with it does.
      costs: fall of each task at the target length against the exact run, positive is worse.
      matters: whether it costs order, binding or retrieval more than the margin.
    """

    name: str
    description: str
    costs: Mapping[str, Shift]
    matters: Answer


@dataclasses.dataclass(frozen=True)
class Implementation:
    """Answer 2: is what runs what is meant to run?

    Attributes:
      status: "exact" where the deployed configuration was run exactly and nothing else is known of it; "repair first"
        where running it exactly significantly wins back more than the margin; "repair may help" where that is open;
        "faulty, harmless" where it significantly does not.
      repair: gain of an exact run by task, or None where it was run exactly.
      faults: what each fault that was tried would cost.
      nearest: how far runs with each fault, and the exact one, lie from observed answers, nats a question; nearest
        first.
      sentence: the answer in words.
    """

    status: Status
    repair: Mapping[str, Shift] | None
    faults: tuple[FaultEffect, ...]
    nearest: Mapping[str, float]
    sentence: str


@dataclasses.dataclass(frozen=True)
class Price:
    """What a change costs, against the deployed configuration and against the original model.

    Attributes:
      short_accuracy: fall of the accuracy of all tasks used at the trained length.
      short_loss: rise of the loss of text below the trained length, nats a token.
      long_loss: rise of the loss of text beyond it, nats a token.
    """

    short_accuracy: Estimate | None
    short_loss: Estimate
    long_loss: Estimate


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of the deployed configuration, measured.

    Attributes:
      option: "1" drops the bias, "2" undoes the scaling, "3" scales through another angle; "" lies outside the three.
      words: the change, such as "drop the bias".
      configuration: name of what the model runs after it.
      contexts: it was judged on.
      gain: by task, at the target length against the deployed configuration (run exactly, where it is faulty).
      together: order and binding together by the stated weights; where neither is learned, the fall of the long loss.
      retrieval_lost: whether long retrieval significantly falls by more than its margin; "no" where it significantly
        does not.
      against_deployed: its price.
      against_original: the same against the unchanged model at the same positions and lengths.
      ships: whether it may ship as it is.
      decides: the margin that decides that, such as "long loss of text", or "" where all are kept.
    """

    option: str
    words: str
    configuration: str
    contexts: int
    gain: Mapping[str, Shift]
    together: Shift
    retrieval_lost: Answer
    against_deployed: Price
    against_original: Price
    ships: Answer
    decides: str


@dataclasses.dataclass(frozen=True)
class Place:
    """One option's place in a ranking.

    Attributes:
      option: "1", "2" or "3", or the words of a change outside the three.
      change: its best change; what `gain` is of.
      probability_first: share of the joint resamples in which the option is the best of those that are not demoted;
        0 for one that is.
      gain: expected, nats of log-odds (nats a token where text is ranked by); the best change of a family is chosen on
        one half of a resample and valued on the other.
      demoted: why it stands behind options that gain less, or "".
    """

    option: str
    change: str
    probability_first: float
    gain: Estimate
    demoted: str


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Answer 3: which of 1, 2 and 3 to try first.

    Attributes:
      by: "order", "binding", "together", or "long loss of text".
      weights: of each task in it.
      places: best first; the three options only.
      outside: changes outside the three ("undo both", "drop the rotation", "sharpen the logits"), placed alike, best
        first; `probability_first` is that of beating all of the three.
    """

    by: str
    weights: Mapping[str, float]
    places: tuple[Place, ...]
    outside: tuple[Place, ...]


@dataclasses.dataclass(frozen=True)
class Cause:
    """Answer 4: which part costs how much, from the 2 x 2 of scaling and bias.

    Attributes:
      by_task: Shapley value of each part ("scaling", "bias") and the interaction, nats lost at the target length, by
        task.
      part: "scaling", "bias", "both", "neither" or "not resolved".
      ahead: by how much the larger part exceeds the other, nats; None without a whole 2 x 2.
      sentence: the answer in words.
    """

    by_task: Mapping[str, Mapping[str, Estimate]]
    part: Part
    ahead: Estimate | None
    sentence: str


@dataclasses.dataclass(frozen=True)
class Shipping:
    """Answer 5: may the first change ship as it is?

    Attributes:
      answer: yes, no, or not resolved.
      decides: the measure that decides.
      resolve: what would resolve an open one, such as "80 contexts", or "".
      sentence: the answer in words.
    """

    answer: Answer
    decides: str
    resolve: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What to try first and why, for one deployed configuration of one model or of five and more together.

    Attributes:
      deployed: its name.
      contexts: it was judged on, at each length.
      confidence: of every interval of this verdict.
      regression: answer 1.
      price: of the configuration as it is deployed, against the original model.
      implementation: answer 2.
      first: what to try first: "repair", or the words of a change of the best place of `rankings["together"]`.
      probability_first: that it is the best of the three; of a repair, 1.0.
      rankings: answer 3, by "order", "binding" and "together", of those that were learned; else "long loss of text".
      changes: every change, in the order given.
      cause: answer 4.
      shipping: answer 5.
      next: answer 6, one step a line, most useful first.
      settled: whether more contexts could change what is tried first.
      open: changes worth asking more contexts of, by configuration.
    """

    deployed: str
    contexts: int
    confidence: float
    regression: Regression
    price: Price
    implementation: Implementation
    first: str
    probability_first: float
    rankings: Mapping[str, Ranking]
    changes: tuple[Change, ...]
    cause: Cause
    shipping: Shipping
    next: tuple[str, ...]
    settled: bool
    open: tuple[str, ...]

    @property
    def decisive(self) -> Ranking:
        """The ranking that decides what to try first."""
        return self.rankings[TOGETHER if TOGETHER in self.rankings else TEXT]
