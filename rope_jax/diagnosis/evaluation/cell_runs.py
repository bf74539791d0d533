"""Runs cells on one subject: the same weights and the same items in each, every finished cell kept on disk."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from rope_jax.attention.api import attend
from rope_jax.decoder import Attend, Schemes
from rope_jax.diagnosis.evaluation import kept_files, probes
from rope_jax.diagnosis.evaluation.losses import LossProgram
from rope_jax.diagnosis.evaluation.probes import Answers, ProbeProgram
from rope_jax.diagnosis.tasks.contexts import Contexts
from rope_jax.diagnosis.tasks.subject import Reach, Subject, short_and_long
from rope_jax.errors import CheckpointError

_NUMBER_BYTES = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What one cell did, a number a context or a row of text, so that cells are compared row by row.

    Attributes:
      answers: outcomes of every question, short and long; empty for a model that answers no probes.
      log_odds: nats, by reach and probe, `[contexts]`.
      accuracy: the same, of right answers.
      loss: nats a counted token of text, by reach, `[rows]`; see `short_and_long`.
      losses: of every next token, `[rows, tokens - 1]`.
    """

    answers: Mapping[Reach, Answers]
    log_odds: Mapping[Reach, Mapping[str, Float64[np.ndarray, " contexts"]]]
    accuracy: Mapping[Reach, Mapping[str, Float64[np.ndarray, " contexts"]]]
    loss: Mapping[Reach, Float64[np.ndarray, " rows"]]
    losses: np.ndarray

    def first(self, other: "Scores") -> "Scores":
        """Returns these scores on the first contexts and rows of text, as many as the other scores are of."""
        rows = {reach: len(x) for reach, of_probes in other.log_odds.items() for x in of_probes.values()}
        texts = len(other.losses)

        def cut(values: Mapping[Reach, Mapping[str, np.ndarray]]) -> dict[Reach, dict[str, np.ndarray]]:
            return {
                reach: {name: x[: rows[reach]] for name, x in of_probes.items()} for reach, of_probes in values.items()
            }

        return Scores(
            {reach: probes.first_answers(given, rows[reach]) for reach, given in self.answers.items()},
            cut(self.log_odds),
            cut(self.accuracy),
            {reach: values[:texts] for reach, values in self.loss.items()},
            self.losses[:texts],
        )


def joined(parts: Sequence[Scores]) -> Scores:
    """Returns the scores of one scheme on several parts of the items as those of all of them."""
    one = parts[0]

    def join(values: Sequence[Mapping[Reach, Mapping[str, np.ndarray]]]) -> dict[Reach, dict[str, np.ndarray]]:
        return {
            reach: {name: np.concatenate([of_part[reach][name] for of_part in values]) for name in of_probes}
            for reach, of_probes in values[0].items()
        }

    return Scores(
        {reach: probes.joined_answers([part.answers[reach] for part in parts]) for reach in one.answers},
        join([part.log_odds for part in parts]),
        join([part.accuracy for part in parts]),
        {reach: np.concatenate([part.loss[reach] for part in parts]) for reach in one.loss},
        np.concatenate([part.losses for part in parts]),
    )


class Outcomes(NamedTuple):
    """The first three attributes of `Scores`, which contexts alone decide."""

    answers: dict[Reach, Answers]
    log_odds: dict[Reach, dict[str, np.ndarray]]
    accuracy: dict[Reach, dict[str, np.ndarray]]


def outcomes(logits: Mapping[str, np.ndarray], asked: Mapping[Reach, Contexts]) -> Outcomes:
    """Returns the outcomes of raw logits, by reach.

    Args:
      logits: of every choice, by reach, from whatever answered.
      asked: the contexts of each reach.
    """
    return outcomes_of({reach: probes.answers(logits[reach], items) for reach, items in asked.items()}, asked)


def outcomes_of(answers: Mapping[Reach, Answers], asked: Mapping[Reach, Contexts]) -> Outcomes:
    """Returns the outcomes of answers, by reach.

    Args:
      answers: to every question, by reach, from whatever answered.
      asked: the contexts of each reach.
    """
    result = Outcomes({}, {}, {})
    for reach, items in asked.items():
        given = answers[reach]
        names = probes.asked_probes(items)
        result.answers[reach] = given
        result.log_odds[reach] = {name: probes.by_row(given.log_odds, items, name) for name in names}
        result.accuracy[reach] = {name: probes.by_row(given.right, items, name) for name in names}
    return result


class CellRuns:
    """Runs cells of a subject through one compiled program a length, and keeps what is finished.

    Args:
      subject: the model and its items.
      store: directory of finished cells; None keeps them in memory only. What lies there from the same weights, items
        and scheme is taken, whatever run made it.
      attention: computes every layer's attention, for running a scheme with a fault.
      note: the fault's name; it sets these cells apart in the store.
      program: answers the contexts in place of the decoder's own.

    Attributes:
      ran: cells computed by this object.
      taken: cells found in the store.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        store: Path | None = None,
        attention: Attend = attend,
        note: str = "",
        program: ProbeProgram | None = None,
    ) -> None:
        self.subject = subject
        self._note = note
        self.ran = self.taken = 0
        self._store = store
        self.program = program or ProbeProgram(subject.checkpoint.model, attention=attention)
        self._losses = LossProgram(subject.checkpoint.model, attention=attention)
        self._kept: dict[str, dict[str, np.ndarray]] = {}

    def on(self, subject: Subject) -> "CellRuns":
        """Returns runs of the same model and programs on other items, of which nothing is finished yet.

        Raises:
          ValueError: if it is another model, whose results would be kept under the wrong name.
        """
        if subject.checkpoint.sha256 != self.subject.checkpoint.sha256:
            raise ValueError(f"{subject.checkpoint.origin} is not the model of these runs")
        other = copy.copy(self)
        other.subject, other.ran, other.taken, other._kept = subject, 0, 0, {}
        return other

    @property
    def compilations(self) -> int:
        """Programs compiled: one for each length of contexts and one for text, whatever the cells."""
        return self.program.compilations + self._losses.compilations

    def __call__(self, scheme: Schemes, *, note: str = "") -> Scores:
        """Returns the scores of a scheme.

        Args:
          scheme: what the model runs under.
          note: what else sets this run apart from others of the same scheme and weights.

        Raises:
          CheckpointError: if the model overflows float32 under the scheme.
          InputError: if the store cannot be written to.
        """
        return self.scores(self.raw(scheme, note=note))

    def raw(self, scheme: Schemes, *, note: str = "") -> dict[str, np.ndarray]:
        """Returns the logits of all choices, `short` and `long`, and the `losses` of the text, under a scheme."""
        key = self._key(scheme, f"{self._note} {note}".strip())
        raw = self._kept.get(key) or self._load(key)
        if raw is None:
            raw = self._compute(scheme)
            self.ran += 1
            self._save(key, raw)
        self._kept[key] = raw
        return raw

    def _compute(self, scheme: Schemes) -> dict[str, np.ndarray]:
        items = self.subject.items
        raw: dict[str, np.ndarray] = {reach: self.program(scheme, asked) for reach, asked in items.asked.items()}
        # Row by row, so that the same program serves any number of rows.
        raw["losses"] = np.concatenate([self._losses(scheme, row[None]) for row in items.text])
        if not all(np.isfinite(value).all() for value in raw.values()):
            raise CheckpointError(f"{self.subject.checkpoint.origin}: a scheme gives values beyond float32")
        return raw

    def scores(self, raw: Mapping[str, np.ndarray]) -> Scores:
        """Returns the scores of raw results, of this model or of a deployment of it."""
        items = self.subject.items
        losses, counted = raw["losses"].astype(np.float64), items.counted
        loss: dict[Reach, np.ndarray] = {
            reach: (losses[:, part] * counted[:, part]).sum(axis=1) / counted[:, part].sum(axis=1)
            for reach, part in short_and_long(self.subject.trained_length).items()
        }
        return Scores(*outcomes(raw, items.asked), loss, losses)

    def _key(self, scheme: Schemes, note: str) -> str:
        items = self.subject.items
        described: dict[str, Any] = {
            **kept_files.made_with(self.subject.checkpoint),
            "length": self.subject.trained_length,
            "note": note,
        }
        return kept_files.digest(described, scheme, items.short, items.long, items.text, items.counted)

    def _load(self, key: str) -> dict[str, np.ndarray] | None:
        raw = None
        if self._store is not None:
            items = self.subject.items
            # A logit of every choice, and a loss of every next token.
            numbers = sum(asked.choices.size for asked in items.asked.values()) + items.text.size
            raw = kept_files.read_arrays(self._file(self._store, key), key, largest=numbers * _NUMBER_BYTES)
        self.taken += raw is not None
        return raw

    def _save(self, key: str, raw: Mapping[str, np.ndarray]) -> None:
        if self._store is not None:
            kept_files.write_arrays(self._file(self._store, key), key, raw)

    def _file(self, store: Path, key: str) -> Path:
        return store / f"{key[:32]}.npz"
