"""What biases are fitted on and how: the largest safe ALiBi slopes, and a bucketed table under the deployed scaling."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rope_jax.biases import T5, Alibi, Bias, bucket_starts
from rope_jax.decoder import Schemes
from rope_jax.diagnosis.evaluation import fitting, kept_files
from rope_jax.diagnosis.evaluation.losses import LossProgram
from rope_jax.diagnosis.evaluation.schemes import SchemeMaker, offsets_of
from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.subject import Subject, answer_weights
from rope_jax.scheme import Retrofit

_MOST_CHUNKS = 64  # that a multiplier is looked for on
_LONG_ROWS = 24  # contexts of the target length that a table is fitted on, and a third as many rows of text
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
    """Fits biases to one model, its weights frozen, on text that is not evaluated.

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
        subject, settings = self._subject, self._settings
        original = self._maker.original()
        maker = dataclasses.replace(self._maker, max_offset=offsets_of(at(1.0), subject.target_length))

        def on_start(value: float, done: int, total: int) -> None:
            self._progress(f"fitting the largest safe slopes, multiplier {value:.4g}", done, total)

        def look() -> dict[str, np.ndarray]:
            multiplier = fitting.largest_multiplier(
                LossProgram(subject.checkpoint.model),
                lambda value: maker(dataclasses.replace(original, bias=at(value))),
                subject.fit_text[:_MOST_CHUNKS],
                counted=subject.fit_counted[:_MOST_CHUNKS],
                margin=settings.margin,
                on_start=on_start,
            )
            return {"value": np.asarray(multiplier.value), "cost": np.asarray(multiplier.cost)}

        unit = maker(dataclasses.replace(original, bias=at(1.0)))
        kept = self._kept("slopes", [settings.margin], unit, subject.fit_text[:_MOST_CHUNKS], look)
        value, cost = float(kept["value"]), float(kept["cost"])
        of = "the paper's slopes" if isinstance(at(1.0), Alibi) else "the bias of multiplier 1"
        self.found = (
            f"{value:.3g} times {of}: the most that raises the loss at the trained length by no more than "
            f"{settings.margin:g} nats a token ({cost:+.3f}, on other text)"
        )
        return value

    def table(self) -> T5:
        """Returns the T5 bias whose table lowers the loss most, under the deployed scaling.

        It is fitted at the target length where rows of that length can be made (a bundled test model), else on the
        text at the trained length; buckets that are never reached then hold the last reached one's value.
        """
        subject, settings = self._subject, self._settings
        rows, counted = self._rows()
        distance = max(subject.target_length, settings.num_buckets)

        def on_step(state: fitting.FitState) -> None:
            self._progress("fitting T5 buckets, steps", state.steps, settings.steps)

        starts = bucket_starts(settings.num_buckets, distance)
        maker = dataclasses.replace(self._maker, max_offset=starts[-1])

        def fit() -> dict[str, np.ndarray]:
            fitted = fitting.fit_t5_table(
                LossProgram(subject.checkpoint.model),
                subject.checkpoint.model,
                lambda bias: maker(dataclasses.replace(self._deployed, bias=bias)),
                rows,
                counted=counted,
                num_heads=subject.checkpoint.config.num_heads,
                num_buckets=settings.num_buckets,
                max_distance=distance,
                steps=settings.steps,
                seed=settings.seed,
                on_step=on_step,
            )
            return {name: np.asarray(value) for name, value in dataclasses.asdict(fitted).items()}

        told = [settings.num_buckets, settings.steps, settings.seed, distance]
        kept = self._kept("table", told, self._maker(dataclasses.replace(self._deployed, bias=None)), rows, fit)
        found = fitting.FittedTable(kept["table"], int(kept["reached"]), float(kept["before"]), float(kept["after"]))
        self.found = (
            f"{settings.num_buckets} buckets up to {distance:,} tokens ({found.reached} reached), {settings.steps} "
            f"steps under {self._deployed.scaling}: loss {found.before:.3f} to {found.after:.3f} nats a token on other "
            f"rows of {rows.shape[1]:,} tokens"
        )
        return found.bias(max_distance=distance)

    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        subject = self._subject
        if not subject.synthetic:
            return subject.fit_text, subject.fit_counted
        rng = np.random.default_rng([_STREAM, self._settings.seed])
        asked = subject.more_contexts(rng, rows=_LONG_ROWS, length=subject.target_length)
        text = contexts.repeated_text(
            rng, rows=_LONG_ROWS // 3, length=subject.target_length, farthest=subject.trained_length // 2
        )
        # Copied tokens are many and easy: a row of them counts as much as a row of answers.
        weights = answer_weights(asked)
        share = weights.sum(axis=1).mean() / text.predictable.sum(axis=1, keepdims=True)
        order = rng.permutation(_LONG_ROWS + _LONG_ROWS // 3)
        rows = np.concatenate([asked.tokens, text.tokens])[order]
        return rows, np.concatenate([weights, share * text.predictable])[order]

    def _kept(self, what: str, told: list, scheme: Schemes, rows: np.ndarray, compute) -> dict[str, np.ndarray]:
        described = {what: kept_files.made_with(self._subject.checkpoint), "settings": told}
        key = kept_files.digest(described, scheme, rows)
        file = None if self._store is None else self._store / f"{what}-{key[:24]}.npz"
        kept = None if file is None else kept_files.read_arrays(file, key)
        if kept is None:
            kept = compute()
            if file is not None:
                kept_files.write_arrays(file, key, kept)
        return kept
