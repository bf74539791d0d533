"""What a model answers to the questions of contexts, under any scheme, by one compiled program.

The outcome of a question is the log-odds of its answer against its distractors, in nats: zero where the answer is as
likely as they are on average, whatever their number. Accuracy stands beside it. Only answer tokens are scored.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int32

from rope_jax.attention.api import attend
from rope_jax.decoder import Attend, Decoder, Schemes
from rope_jax.diagnosis.evaluation.compiled import SchemeProgram
from rope_jax.diagnosis.evaluation.panel import LIMIT
from rope_jax.diagnosis.evaluation.rows import each_row
from rope_jax.diagnosis.tasks.contexts import Contexts
from rope_jax.diagnosis.tasks.registry import index_of, names

ChoiceLogits = Float32[np.ndarray, "rows Q 8"]


class ProbeProgram(SchemeProgram):
    """The answers of one decoder to contexts.

    Args:
      decoder: the model.
      attention: computes every layer's attention; see `Decoder.hidden`.
    """

    def __init__(self, decoder: Decoder, *, attention: Attend = attend) -> None:
        self._attention = attention

        def of_rows(model: Decoder, scheme: Schemes, *rows):
            def of_row(row):
                tokens, position, choices, *more = row
                hidden = model.hidden(tokens[None], scheme, **self._seen(*more))
                logits = model.unembed(hidden[:, position])[0]
                return jnp.take_along_axis(logits, jnp.maximum(choices, 0), axis=-1)

            return each_row(of_row, rows, config=model.config, length=rows[0].shape[1])

        super().__init__(decoder, of_rows)

    def _seen(self, *more: Array) -> dict[str, Any]:
        """Returns how the decoder is to read a row, from what is given of the row beside the context."""
        return {"attention": self._attention}

    def __call__(self, scheme: Schemes, items: Contexts, *more: np.ndarray) -> ChoiceLogits:
        """Returns the logit of every choice of every question; what stands where there is no choice means nothing."""
        asked = items.tokens, items.position, items.choices
        return self.run(scheme, *(jnp.asarray(value, jnp.int32) for value in asked), *map(jnp.asarray, more))


def log_odds(logits: ChoiceLogits, choices: Int32[np.ndarray, "rows Q 8"]) -> Float64[np.ndarray, "rows Q"]:
    r"""Returns the log-odds of each answer against its distractors, in nats, cut off at `LIMIT`.

    .. math:: o = l_0 - \ln\Big(\frac{1}{n}\sum_{k=1}^{n} e^{l_k}\Big)

    with `l_0` the logit of the answer and `l_1 ... l_n` those of its distractors; a model that knows nothing and says
    so gets 0, whatever `n`. One that guesses with confidence gets less on average, and the less the larger `n`.

    Args:
      logits: from a `ProbeProgram`.
      choices: of the contexts; -1 where there is none.
    """
    wide = logits.astype(np.float64)
    others = np.where(choices[..., 1:] >= 0, wide[..., 1:], -np.inf)
    top = others.max(axis=-1, keepdims=True)
    mean = np.exp(others - top).sum(axis=-1) / (choices[..., 1:] >= 0).sum(axis=-1)
    return np.clip(wide[..., 0] - top[..., 0] - np.log(mean), -LIMIT, LIMIT)


def picked(logits: ChoiceLogits, choices: Int32[np.ndarray, "rows Q 8"]) -> Int32[np.ndarray, "rows Q"]:
    """Returns the index of the likeliest choice of every question, 0 for the answer; a tie goes to a distractor."""
    reversed_logits = np.where(choices >= 0, logits, -np.inf)[..., ::-1]
    return (choices.shape[-1] - 1 - reversed_logits.argmax(axis=-1)).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What a model answered under one configuration, at one length.

    Attributes:
      log_odds: nats, `[rows, Q]`.
      right: whether the answer was the likeliest choice, `[rows, Q]`.
      picked: index of the likeliest choice, `[rows, Q]`.
    """

    log_odds: Float64[np.ndarray, "rows Q"]
    right: Bool[np.ndarray, "rows Q"]
    picked: Int32[np.ndarray, "rows Q"]


def answers(logits: ChoiceLogits, items: Contexts) -> Answers:
    """Returns the outcomes of raw logits."""
    index = picked(logits, items.choices)
    return Answers(log_odds(logits, items.choices), index == 0, index)


def by_row(
    values: Float[np.ndarray, "rows Q"] | Bool[np.ndarray, "rows Q"],
    items: Contexts,
    probe: str,
    *,
    asked_for: int | None = None,
) -> Float64[np.ndarray, " rows"]:
    """Returns the mean of a task's questions in each context: the unit that is resampled.

    Args:
      values: an outcome of every question.
      items: the contexts.
      probe: which task.
      asked_for: only questions with this `asked`, such as `FIRST`; all where None.
    """
    asked = asks(items, probe, asked_for)
    return np.where(asked, values, 0.0).sum(axis=1) / asked.sum(axis=1)


def asks(items: Contexts, probe: str, asked_for: int | None = None) -> Bool[np.ndarray, "rows Q"]:
    """Returns which questions are a task's, or of them those with this `asked`."""
    asked = items.probe == index_of(probe)
    return asked if asked_for is None else asked & (items.asked == asked_for)


def asked_probes(items: Contexts) -> tuple[str, ...]:
    """Returns the tasks that every context asks, in the order of the registry."""
    return tuple(name for name in names() if asks(items, name).any(axis=1).all())


def strata(
    values: Float64[np.ndarray, "rows Q"], items: Contexts, probe: str, by: str, edges: Sequence[int]
) -> list[tuple[float, int]]:
    """Returns mean and number of a probe's questions with `edges[k] <= distance or gap < edges[k + 1]`.

    Args:
      values: an outcome of every question.
      items: the contexts.
      probe: which questions.
      by: "distance" or "gap".
      edges: of the strata, tokens.
    """
    where, asked = getattr(items, by), asks(items, probe)
    result = []
    for low, high in itertools.pairwise(edges):
        inside = asked & (where >= low) & (where < high)
        result.append((float(values[inside].mean()) if inside.any() else float("nan"), int(inside.sum())))
    return result
