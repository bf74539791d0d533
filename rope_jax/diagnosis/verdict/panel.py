"""What one configuration did, in the numbers that a verdict is drawn from: one a model and context, or row of text."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float64

Reach = Literal["short", "long"]
Values = Float64[np.ndarray, "models units"]

RETRIEVAL = "retrieval"
PRECISION = ("order", "binding")
"""Tasks that ask where something stands; each counts half where both are learned."""
ORDER_WAYS = ("order, first asked", "order, last asked")
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
    loss: Mapping[Reach, Values]
