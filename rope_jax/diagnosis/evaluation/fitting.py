"""What a bias has to learn, with the weights frozen: the largest safe ALiBi slopes, and T5's table.

Both look only at text that is not evaluated, in chunks no longer than the trained length.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rope_jax.biases import T5, bucket_starts, t5_bias
from rope_jax.decoder import Decoder, Schemes
from rope_jax.diagnosis.evaluation.losses import next_token_losses
from rope_jax.diagnosis.evaluation.rows import summed_gradient
from rope_jax.diagnosis.tasks.text import Rows

_CHUNKS_AT_ONCE = 8

Losses = Callable[[Schemes, Rows], np.ndarray]
"""Losses of the frozen decoder under a scheme; a `LossProgram`."""


@dataclasses.dataclass(frozen=True)
class Multiplier:
    """The largest safe multiplier of ALiBi's slopes.

    Attributes:
      value: the largest multiplier of the paper's slopes found within the margin; 0 if none was.
      cost: its short-context cost on the fitting text, nats.
      evaluations: multipliers tried, as (multiplier, cost) pairs.
    """

    value: float
    cost: float
    evaluations: tuple[tuple[float, float], ...]


def largest_multiplier(
    program: Losses,
    schemes_at: Callable[[float], Schemes],
    chunks: Rows,
    *,
    margin: float,
    counted: np.ndarray | None = None,
    bisections: int = 8,
    on_start: Callable[[float, int, int], None] = lambda multiplier, done, total: None,
) -> Multiplier:
    """Returns the largest multiplier of ALiBi's slopes whose mean loss rises by at most `margin` nats.

    Powers of two are tried from 16 downwards until one is within the margin; the gap above it is then bisected in
    the logarithm. A cost that is not monotone above the first power within the margin is not explored.

    Args:
      program: losses of the frozen decoder.
      schemes_at: the unscaled scheme with the paper's slopes times a multiplier.
      chunks: `[chunks, tokens]`, not evaluated text, no longer than the trained length.
      margin: nats a token.
      counted: weight of every next token in the mean, `[chunks, tokens - 1]`; all alike where None.
      bisections: halvings of the last gap; 8 leave 0.3 %.
      on_start: called before each group of chunks, with the multiplier, chunks done, and of how many.
    """

    def mean_loss(multiplier: float) -> float:
        told = functools.partial(on_start, multiplier)
        return _mean_loss(program, schemes_at(multiplier), chunks, counted, on_start=told)

    without = mean_loss(0.0)
    tried: list[tuple[float, float]] = []

    def cost(multiplier: float) -> float:
        tried.append((multiplier, mean_loss(multiplier) - without))
        return tried[-1][1]

    power = next((p for p in range(4, -21, -1) if cost(2.0**p) <= margin), None)
    if power is None:
        return Multiplier(0.0, 0.0, tuple(tried))
    best = tried[-1]
    low, high = float(power), float(power + 1)
    for _ in range(bisections if power < 4 else 0):
        middle = (low + high) / 2
        if cost(2.0**middle) <= margin:
            low, best = middle, tried[-1]
        else:
            high = middle
    return Multiplier(best[0], best[1], tuple(tried))


def _mean_loss(
    program: Losses,
    scheme: Schemes,
    chunks: Rows,
    counted: np.ndarray | None,
    *,
    on_start: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    # One shape for all calls: the last, partial group of chunks is left out.
    groups = len(chunks) // _CHUNKS_AT_ONCE or 1
    parts = np.array_split(chunks[: groups * _CHUNKS_AT_ONCE], groups)
    found: list[np.ndarray] = []
    for part in parts:
        on_start(sum(map(len, found)), sum(map(len, parts)))
        found.append(program(scheme, part))
    losses = np.concatenate(found).astype(np.float64)
    return float(np.average(losses, weights=None if counted is None else counted[: len(losses)]))


@dataclasses.dataclass(frozen=True)
class FittedTable:
    """A T5 table fitted with frozen weights.

    Attributes:
      table: float32 `[heads, buckets]`, nats; buckets never reached hold the last reached one's value.
      reached: buckets that the fitting text reached.
      before: mean loss on the fitting text with a table of zeros.
      after: the same with the fitted table.
    """

    table: np.ndarray
    reached: int
    before: float
    after: float

    def bias(self, *, max_distance: int) -> T5:
        return t5_bias(self.table, max_distance=max_distance)


class FitState(NamedTuple):
    """A fit that is not finished.

    Attributes:
      steps: done.
      leaves: the table and the moments of Adam.
    """

    steps: int
    leaves: tuple[np.ndarray, ...]


def fit_t5_table(
    program: Losses,
    decoder: Decoder,
    schemes_with: Callable[[T5], Schemes],
    chunks: Rows,
    *,
    num_heads: int,
    num_buckets: int,
    max_distance: int,
    steps: int,
    counted: np.ndarray | None = None,
    learning_rate: float = 0.02,
    seed: int = 0,
    resume: FitState | None = None,
    on_step: Callable[[FitState], None] = lambda state: None,
) -> FittedTable:
    """Returns the T5 table that lowers the loss of frozen weights on `chunks` most, by Adam from zeros.

    Args:
      program: losses of the frozen decoder, before and after.
      decoder: the model; its weights do not change.
      schemes_with: the scheme with a given T5 bias; traced.
      chunks: `[chunks, tokens]`, not evaluated text, no longer than the trained length.
      num_heads: heads of the table.
      num_buckets: causal buckets.
      max_distance: see `biases.bucket`.
      steps: Adam steps; the rate decays to zero by a cosine.
      counted: weight of every next token in the loss, `[chunks, tokens - 1]`; all alike where None.
      learning_rate: the first step's, nats.
      seed: of the order in which chunks are drawn.
      resume: a step of the same fit to go on from.
      on_step: called after each step, with what the next one goes on from.
    """
    starts = np.asarray(bucket_starts(num_buckets, max_distance))
    reached = int((starts < chunks.shape[1]).sum())
    owner = jnp.asarray(np.minimum(np.arange(num_buckets), reached - 1))
    graph, state = nnx.split(decoder)

    weights = np.ones((len(chunks), chunks.shape[1] - 1)) if counted is None else counted

    def tied(table) -> Schemes:
        return schemes_with(T5(jnp.take(table, owner, axis=1), max_distance))

    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    @jax.jit
    def step(table, moments, state, tokens, weights):
        def loss(table, row, weights):
            return (next_token_losses(nnx.merge(graph, state), tied(table), row[None])[0] * weights).sum()

        gradient = summed_gradient(
            loss, table, (tokens, weights / weights.sum()), config=decoder.config, length=tokens.shape[1]
        )
        updates, moments = optimiser.update(gradient, moments)
        return optax.apply_updates(table, updates), moments

    table = jnp.zeros((num_heads, num_buckets), jnp.float32)
    moments = optimiser.init(table)
    rng = np.random.default_rng(seed)
    size = min(_CHUNKS_AT_ONCE, len(chunks))
    order = np.concatenate([rng.permutation(len(chunks)) for _ in range(-(-steps * size // len(chunks)))])
    if resume is not None:
        structure = jax.tree.structure((table, moments))
        table, moments = jax.tree.unflatten(structure, map(jnp.asarray, resume.leaves))
    for at in range(0 if resume is None else resume.steps, steps):
        drawn = order[at * size : (at + 1) * size]
        table, moments = step(
            table, moments, state, jnp.asarray(chunks[drawn]), jnp.asarray(weights[drawn], jnp.float32)
        )
        on_step(FitState(at + 1, tuple(map(np.asarray, jax.tree.leaves((table, moments))))))
    before, after = (_mean_loss(program, tied(one), chunks, counted) for one in (jnp.zeros_like(table), table))
    return FittedTable(np.asarray(jnp.take(table, owner, axis=1)), reached, before, after)
