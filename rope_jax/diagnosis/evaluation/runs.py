"""Runs configurations on one model: the same weights and the same items in each, everything finished kept on disk."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rope_jax.decoder import Attend, Schemes
from rope_jax.diagnosis.evaluation import kept_files, probes
from rope_jax.diagnosis.evaluation.faults import Fault
from rope_jax.diagnosis.evaluation.losses import LossProgram
from rope_jax.diagnosis.evaluation.panel import Panel
from rope_jax.diagnosis.evaluation.probes import Answers, ProbeProgram
from rope_jax.diagnosis.tasks.contexts import Contexts
from rope_jax.diagnosis.tasks.registry import TASKS
from rope_jax.diagnosis.tasks.subject import Items, Reach, Subject, short_and_long
from rope_jax.errors import CheckpointError
from rope_jax.named_records import made

_NUMBER_BYTES = 8
_TOKENS_AT_ONCE = 8192  # of text, kept in one file: what a stopped run may lose
_LONG_ROW = 4096  # tokens, from which on every finished layer is told of


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What one model did under one configuration.

    Attributes:
      answers: to every question, by reach; empty for a model that answers no questions.
      losses: nats of every next token of text, `[rows, tokens - 1]`.
    """

    answers: Mapping[Reach, Answers]
    losses: np.ndarray


def panel_of(scores: Sequence[Scores], items: Items, trained_length: int) -> Panel:
    """Returns the outcomes of a configuration as a verdict reads them.

    Args:
      scores: one a model.
      items: what all of them were asked.
      trained_length: `L`, tokens.
    """
    losses = np.stack([one.losses for one in scores]).astype(np.float64)
    loss: dict[Reach, np.ndarray] = {}
    for reach, part in short_and_long(trained_length).items():
        counted = items.counted[:, part]
        loss[reach] = (losses[..., part] * counted).sum(axis=2) / counted.sum(axis=1)
    return Panel(*outcomes_of([one.answers for one in scores], items.asked), loss)


def outcomes_of(
    answers: Sequence[Mapping[Reach, Answers]], asked: Mapping[Reach, Contexts]
) -> tuple[dict[Reach, dict[str, np.ndarray]], dict[Reach, dict[str, np.ndarray]]]:
    """Returns log-odds and accuracy as in a `Panel`, of the answers of every model to the same contexts."""
    log_odds, accuracy = (
        {reach: _by_context([getattr(one[reach], field) for one in answers], asked[reach]) for reach in asked}
        for field in ("log_odds", "right")
    )
    return log_odds, accuracy


def _by_context(values: Sequence[np.ndarray], asked: Contexts) -> dict[str, np.ndarray]:
    """Returns the mean outcome of each task in every context, `[models, contexts]`; ways of asking it apart too."""

    def of(task: str, way: int | None = None) -> np.ndarray:
        return np.stack([probes.by_row(value, asked, task, asked_for=way) for value in values])

    names = probes.asked_probes(asked)
    ways = {label: (name, way) for name in names for way, label in TASKS[name].ways.items()}
    everywhere = {label: one for label, one in ways.items() if probes.asks(asked, *one).any(axis=1).all()}
    return {name: of(name) for name in names} | {label: of(*one) for label, one in everywhere.items()}


class Runs:
    """Runs configurations of one model through one compiled program a length, and keeps what is finished.

    Args:
      subject: the model and its items.
      folds: the fold of each row of text: rows of one fold are read under schemes of their own, since what is fitted
        for them was fitted without them; contexts are answered under those of fold 0. All rows in fold 0 where None.
      store: directory of finished results; None keeps them in memory only. What lies there from the same weights,
        items and scheme is taken, whatever run made it.

    Attributes:
      fault: with which every scheme is run, none at first; its name sets the results apart in the store.
      ran: results computed by this object.
      tell: is told in words what is being done.
    """

    def __init__(self, subject: Subject, *, folds: Sequence[int] | None = None, store: Path | None = None) -> None:
        self.subject, self.ran = subject, 0
        self.fault = Fault("", "")
        self._folds = np.zeros(len(subject.items.text), int) if folds is None else np.asarray(folds)
        self._store = store
        self.tell: Callable[[str], None] = lambda what: None
        self._described = kept_files.made_with(subject.checkpoint)
        self._kept: dict[str, np.ndarray] = {}
        self._layers_read = 0
        self._programs: dict[Attend, tuple[ProbeProgram, LossProgram]] = {}

    @property
    def programs(self) -> tuple[ProbeProgram, LossProgram]:
        """What answers questions, and what reads text, with this fault; shared by all runs that come of one."""
        attention = self.fault.attention
        if attention not in self._programs:
            model, long = self.subject.checkpoint.model, self.subject.items.text.shape[1] >= _LONG_ROW
            reading = LossProgram(model, attention=self._telling(attention) if long else attention)
            self._programs[attention] = ProbeProgram(model, attention=attention), reading
        return self._programs[attention]

    def on(self, subject: Subject) -> "Runs":
        """Returns runs of the same model and programs on other items, of which nothing is finished yet.

        Raises:
          ValueError: if it is another model, whose results would be kept under the wrong name.
        """
        if subject.checkpoint.sha256 != self.subject.checkpoint.sha256:
            raise ValueError(f"{subject.checkpoint.origin} is not the model of these runs")
        other = copy.copy(self)
        other.subject, other.ran, other._kept = subject, 0, {}
        other._folds = np.zeros(len(subject.items.text), int)
        return other

    def with_fault(self, fault: Fault) -> "Runs":
        """Returns runs of the same model on the same items with a fault, which tell nothing yet."""
        other = copy.copy(self)
        other.fault, other.ran, other.tell = fault, 0, lambda what: None
        return other

    @property
    def compilations(self) -> int:
        """Programs compiled: for each fault, one for each length of contexts and one for text."""
        return sum(program.compilations for pair in self._programs.values() for program in pair)

    def __call__(self, schemes: Sequence[Schemes]) -> Scores:
        """Returns the scores of a configuration.

        Args:
          schemes: what the model runs under, one a fold, or one for all.

        Raises:
          CheckpointError: if the model overflows float32 under a scheme.
          InputError: if the store cannot be written to.
        """
        return self.scores(self.logits(schemes[0]), self.losses(schemes))

    def scores(self, logits: Mapping[Reach, np.ndarray], losses: np.ndarray) -> Scores:
        """Returns the scores of raw results, of this model or of a deployment of it."""
        asked = self.subject.items.asked
        return Scores({reach: probes.answers(logits[reach], items) for reach, items in asked.items()}, losses)

    def logits(self, scheme: Schemes) -> dict[Reach, np.ndarray]:
        """Returns the logits of all choices, by reach, `[contexts, questions, 8]`."""
        return {
            reach: self._found("logits", scheme, asked, asked.choices.size, self.programs[0])
            for reach, asked in self.subject.items.asked.items()
        }

    def losses(self, schemes: Sequence[Schemes]) -> np.ndarray:
        """Returns the losses of every next token of text, nats, `[rows, tokens - 1]`."""
        text = self.subject.items.text
        size = max(1, _TOKENS_AT_ONCE // text.shape[1])
        losses = np.empty((len(text), text.shape[1] - 1), np.float32)
        for fold in sorted(set(self._folds.tolist())):
            rows = np.flatnonzero(self._folds == fold)
            scheme = schemes[fold] if len(schemes) > 1 else schemes[0]
            for at in range(0, len(rows), size):
                part = rows[at : at + size]
                self.tell(f"row {at + 1} of {len(rows)}")
                losses[part] = self._found("losses", scheme, text[part], text[part].size, self._read)
        return losses

    def _read(self, scheme: Schemes, rows: np.ndarray) -> np.ndarray:
        self._layers_read = 0
        # Row by row, so that the same program serves any number of rows.
        return np.concatenate([self.programs[1](scheme, row[None]) for row in rows])

    def _found(
        self, what: str, meant: Schemes, asked, size: int, compute: Callable[[Schemes, Any], np.ndarray]
    ) -> np.ndarray:
        scheme = made(self.fault.scheme, meant, kind="fault", name=self.fault.name, expected=object)
        key = self._key(what, scheme, asked)

        def make() -> dict[str, np.ndarray]:
            value = compute(scheme, asked)
            if not np.isfinite(value).all():
                raise CheckpointError(f"{self.subject.checkpoint.origin}: a configuration gives values beyond float32")
            self.ran += 1
            return {what: value}

        if key not in self._kept:
            largest = size * _NUMBER_BYTES
            self._kept[key] = kept_files.taken_or_made(self._store, f"{key[:32]}.npz", key, make, largest=largest)[what]
        return self._kept[key]

    def _key(self, what: str, scheme: Schemes, asked) -> str:
        return kept_files.digest({**self._described, "what": what, "note": self.fault.name}, scheme, asked)

    def _telling(self, attention: Attend) -> Attend:
        layers = self.subject.checkpoint.config.num_layers

        def done(_) -> None:
            self.tell(f"layer {self._layers_read % layers + 1} of {layers}")
            self._layers_read += 1

        def told(*arguments):
            out, lse = attention(*arguments)
            # An element of the result: the call waits until the layer is done.
            jax.debug.callback(done, out[(0,) * out.ndim])
            return out, lse

        return told
