"""What one configuration did, in the numbers that a verdict is drawn from: one a model and context, or row of text."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from rope_jax.diagnosis.tasks.contexts import Reach
from rope_jax.diagnosis.tasks.registry import TASKS

Values = Float64[np.ndarray, "models _"]
"""Models, and contexts or rows of text, of which there may be other numbers at each length."""

LIMIT = 4.6
"""Log-odds count up to this many nats either way, odds of 100 to 1: more certainty changes no answer."""
RETRIEVAL = "retrieval"
PRECISION = ("order", "binding")
"""Tasks that ask where something stands; each counts half where both are learned."""
ORDER_WAYS = tuple(TASKS["order"].ways.values())
"""The two ways in which event order is asked; kept beside `order`, which is their mean."""


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """The outcomes of one configuration, short (at `L`) and long (at `L'`).

    Rows of one number are the same context (or row of text) in every configuration, so that they are compared in pairs.

    Attributes:
      log_odds: nats, by reach and task, `[models, contexts]`; tasks of `PRECISION`, `RETRIEVAL`, and `ORDER_WAYS`.
      accuracy: share of right answers, alike.
      loss: nats a counted token of text, by reach, `[models, rows]`.
    """

    log_odds: Mapping[Reach, Mapping[str, Values]]
    accuracy: Mapping[Reach, Mapping[str, Values]]
    loss: Mapping[Reach, Float64[np.ndarray, "models rows"]]


@dataclasses.dataclass(frozen=True)
class Option:
    """A change of the deployed configuration.

    Attributes:
      number: "1" drops the bias, "2" undoes the scaling, "3" scales through another angle; "" lies outside the three.
      words: the change, such as "drop the bias".
      configuration: name of what the model runs after it.
    """

    number: str
    words: str
    configuration: str


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a verdict on one deployed configuration is drawn from.

    Attributes:
      deployed: its name.
      as_deployed: what it answers as it runs: observed, with a known fault, or exactly.
      exact: the same configuration run exactly, where `as_deployed` may have a fault; else None.
      original: the unchanged model.
      options: what may be changed.
      changed: outcomes after each option, by configuration; on the first contexts only where it was not asked on.
      corners: the 2 x 2, by which of "scaling" and "bias" are in place; empty where a part is missing.
      used: tasks that the original model has learned; empty for a model that answers no questions.
      faults: what a run of the deployed configuration with each fault answers, with the fault's description, by name.
      nearest: how far runs with each fault, and the exact one, lie from observed answers, nats a question.
    """

    deployed: str
    as_deployed: Panel
    exact: Panel | None
    original: Panel
    options: tuple[Option, ...]
    changed: Mapping[str, Panel]
    corners: Mapping[frozenset[str], Panel]
    used: tuple[str, ...]
    faults: Mapping[str, tuple[str, Panel]]
    nearest: Mapping[str, float]

    @property
    def base(self) -> Panel:
        """What changes are judged over: the deployed configuration, run exactly."""
        return self.as_deployed if self.exact is None else self.exact
