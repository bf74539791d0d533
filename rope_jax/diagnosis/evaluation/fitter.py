"""Biases fitted with the weights frozen, on rows that are not evaluated: the largest safe slopes, and T5's table."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rope_jax.biases import T5, Alibi, Bias, bucket_starts, t5_bias
from rope_jax.decoder import Decoder, Schemes
from rope_jax.diagnosis.evaluation import kept_files
from rope_jax.diagnosis.evaluation.losses import LossProgram, loss_gradient
from rope_jax.diagnosis.evaluation.schemes import SchemeMaker, offsets_of
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.tasks.text import Rows
from rope_jax.scheme import Retrofit

_MOST_CHUNKS = 64  # that a multiplier is looked for on
_CHUNKS_AT_ONCE = 8
_BISECTIONS = 8  # leave 0.3 % of a multiplier
_TABLE_RATE = 0.1  # at 0.02 a table of 60 steps was still on its way: twice the steps took it farther
_LONG_ROWS = 120  # contexts of the target length that a table is fitted on, and a third as many rows of text
_STREAM = 2**30  # seeds of these rows, which nothing else draws from


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """How biases are fitted.

    Attributes:
      margin: short loss that the largest safe slopes may cost, nats a token.
      num_buckets: T5 buckets, up to the target length.
      steps: Adam steps of the T5 table.
      seed: of the rows that are fitted on, and their order.
    """

    margin: float = 0.02
    num_buckets: int = 32
    steps: int = 60
    seed: int = 0


class ModelFitter:
    """Fits biases to one model.

    Args:
      subject: the model; `fit_text` is what is fitted on up to the trained length.
      maker: of its schemes.
      deployed: the scaling that a table is to go with, without a bias.
      settings: see `FitSettings`.
      store: directory of finished fits; None for none.
      progress: called as work proceeds.

    Attributes:
      found: how the last bias was found, in words.
    """

    def __init__(
        self,
        subject: Subject,
        maker: SchemeMaker,
        deployed: Retrofit,
        settings: FitSettings,
        *,
        store: Path | None = None,
        progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> None:
        self._subject, self._maker, self._deployed, self._settings = subject, maker, deployed, settings
        self._store, self._progress = store, progress
        self.found = ""

    def largest_safe(self, at: Callable[[float], Bias]) -> float:
        """Returns the largest multiplier of a bias whose short loss rises by no more than the margin, unscaled."""
        subject, margin, unit = self._subject, self._settings.margin, at(1.0)
        maker = dataclasses.replace(self._maker, max_offset=offsets_of(unit, subject.target_length))
        chunks, counted = subject.fit_text[:_MOST_CHUNKS], subject.fit_counted[:_MOST_CHUNKS]

        def scheme_with(bias: Bias) -> Schemes:
            return maker(dataclasses.replace(self._maker.original(), bias=bias))

        def search() -> dict[str, np.ndarray]:
            program = LossProgram(subject.checkpoint.model)

            def loss_at(multiplier: float) -> float:
                told = functools.partial(
                    self._progress, f"fitting the largest safe slopes, multiplier {multiplier:.4g}"
                )
                return _mean_loss(program, scheme_with(at(multiplier)), chunks, counted, told)

            value, cost = largest_multiplier(loss_at, margin=margin)
            return {"value": np.asarray(value), "cost": np.asarray(cost)}

        kept = self._kept("slopes", [margin], scheme_with(unit), chunks, search)
        of = "the paper's slopes" if isinstance(unit, Alibi) else "the bias of multiplier 1"
        self.found = (
            f"{kept['value']:.3g} times {of}: the most that raises the loss at the trained length by no more than "
            f"{margin:g} nats a token ({kept['cost']:+.3f}, on other text)"
        )
        return float(kept["value"])

    def table(self) -> T5:
        """Returns the T5 bias whose table lowers the loss most, under the deployed scaling.

        It is fitted at the target length where rows of that length can be made (a bundled test model), else on the
        text at the trained length; buckets that are never reached then hold the last reached one's value.
        """
        subject, settings = self._subject, self._settings
        rows, counted = self._rows()
        distance = max(subject.target_length, settings.num_buckets)
        maker = dataclasses.replace(self._maker, max_offset=bucket_starts(settings.num_buckets, distance)[-1])
        fit = functools.partial(
            fit_t5_table,
            subject.checkpoint.model,
            lambda bias: maker(dataclasses.replace(self._deployed, bias=bias)),
            rows,
            counted,
            num_buckets=settings.num_buckets,
            max_distance=distance,
            steps=settings.steps,
            seed=settings.seed,
            on_step=lambda step: self._progress("fitting T5 buckets, steps", step, settings.steps),
        )
        told = [settings.num_buckets, settings.steps, _TABLE_RATE, settings.seed, distance]
        kept = self._kept("table", told, self._maker(dataclasses.replace(self._deployed, bias=None)), rows, fit)
        self.found = (
            f"{settings.num_buckets} buckets up to {distance:,} tokens ({kept['reached']} reached), {settings.steps} "
            f"steps under {self._deployed.scaling}: loss {kept['before']:.3f} to {kept['after']:.3f} nats a token on "
            f"other rows of {rows.shape[1]:,} tokens"
        )
        return t5_bias(kept["table"], max_distance=distance)

    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._subject.synthetic:
            return self._subject.fit_text, self._subject.fit_counted
        rng = np.random.default_rng([_STREAM, self._settings.seed])
        rows, counted = self._subject.practice(rng, rows=_LONG_ROWS, text_rows=_LONG_ROWS // 3)
        order = rng.permutation(len(rows))
        return rows[order], counted[order]

    def _kept(self, what: str, told: list, scheme: Schemes, rows: np.ndarray, make) -> Mapping[str, np.ndarray]:
        described = {what: kept_files.made_with(self._subject.checkpoint), "settings": told}
        key = kept_files.digest(described, scheme, rows)
        return kept_files.taken_or_made(self._store, f"{what}-{key[:24]}.npz", key, make)


def largest_multiplier(loss_at: Callable[[float], float], *, margin: float) -> tuple[float, float]:
    """Returns the largest multiplier of a bias whose mean loss rises by at most `margin`, and that rise, nats.

    Powers of two are tried from 16 downwards until one is within the margin, zero if none is; the gap above it is then
    bisected in the logarithm. A cost that is not monotone above the first power within the margin is not explored.

    Args:
      loss_at: mean loss of the frozen decoder with the bias times a multiplier, nats a token.
      margin: nats a token.
    """
    without = loss_at(0.0)

    def cost(logarithm: float) -> float:
        return loss_at(2.0**logarithm) - without

    for power in range(4, -21, -1):
        best = cost(power)
        if best <= margin:
            break
    else:
        return 0.0, 0.0
    low, high = float(power), float(power + 1)
    for _ in range(_BISECTIONS if power < 4 else 0):
        middle = (low + high) / 2
        risen = cost(middle)
        if risen <= margin:
            low, best = middle, risen
        else:
            high = middle
    return 2.0**low, best


def _mean_loss(
    program: LossProgram,
    scheme: Schemes,
    chunks: Rows,
    counted: np.ndarray,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    # One shape for all calls: the last, partial group of chunks is left out.
    groups = len(chunks) // _CHUNKS_AT_ONCE or 1
    parts = np.array_split(chunks[: groups * _CHUNKS_AT_ONCE], groups)
    found: list[np.ndarray] = []
    for part in parts:
        told(sum(map(len, found)), sum(map(len, parts)))
        found.append(program(scheme, part))
    losses = np.concatenate(found).astype(np.float64)
    return float(np.average(losses, weights=counted[: len(losses)]))


def fit_t5_table(
    decoder: Decoder,
    schemes_with: Callable[[T5], Schemes],
    rows: Rows,
    counted: np.ndarray,
    *,
    num_buckets: int,
    max_distance: int,
    steps: int,
    learning_rate: float = _TABLE_RATE,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, np.ndarray]:
    """Returns the T5 table that lowers the loss of frozen weights most, by Adam from zeros.

    Args:
      decoder: the model; its weights do not change.
      schemes_with: the scheme with a given T5 bias; traced.
      rows: `[rows, tokens]`, not evaluated.
      counted: weight of every next token in the loss, `[rows, tokens - 1]`.
      num_buckets: causal buckets.
      max_distance: see `biases.bucket`.
      steps: Adam steps; the rate decays to zero by a cosine.
      learning_rate: the first step's, nats.
      seed: of the order in which rows are drawn.
      on_step: called after each step.

    Returns:
      `table`: float32 `[heads, buckets]`, nats; buckets never reached hold the last reached one's value. `reached`:
      buckets that the rows reached. `before`, `after`: mean loss on the rows with a table of zeros, and with the fitted
      one.
    """
    starts = np.asarray(bucket_starts(num_buckets, max_distance))
    reached = int((starts < rows.shape[1]).sum())
    owner = jnp.asarray(np.minimum(np.arange(num_buckets), reached - 1))
    graph, state = nnx.split(decoder)

    def tied(table) -> Schemes:
        return schemes_with(T5(jnp.take(table, owner, axis=1), max_distance))

    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    @jax.jit
    def step(table, moments, state, tokens, weights):
        gradient = loss_gradient(lambda table: (nnx.merge(graph, state), tied(table)), table, tokens, weights)
        updates, moments = optimiser.update(gradient, moments)
        return optax.apply_updates(table, updates), moments

    table = zeros = jnp.zeros((decoder.config.num_heads, num_buckets), jnp.float32)
    moments = optimiser.init(table)
    rng = np.random.default_rng(seed)
    size = min(_CHUNKS_AT_ONCE, len(rows))
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(-(-steps * size // len(rows)))])
    for number in range(steps):
        drawn = order[number * size : (number + 1) * size]
        weights = jnp.asarray(counted[drawn], jnp.float32)
        table, moments = step(table, moments, state, jnp.asarray(rows[drawn]), weights)
        on_step(number + 1)
    program = LossProgram(decoder)
    before, after = (_mean_loss(program, tied(one), rows, counted) for one in (zeros, table))
    found = {"table": jnp.take(table, owner, axis=1), "reached": reached, "before": before, "after": after}
    return {name: np.asarray(value) for name, value in found.items()}
