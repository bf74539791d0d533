"""What is diagnosed: a model, and the items it is asked, all made from one seed and the same in every configuration."""

import dataclasses
import functools
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from rope_jax.checkpoints import strict_json
from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.context_sizes import check_size
from rope_jax.diagnosis.tasks.contexts import TRAINING, Contexts, Counts, Reach
from rope_jax.diagnosis.tasks.text import Rows
from rope_jax.errors import InputError

_FIT_ROWS = 32
_UNSEEN_ROWS = 24
# Streams of the seed; 2 to 4 belong to the search for factors.
_JUDGED = 0
_FIT = 1
_UNSEEN = 5
_FURTHER = 6


def short_and_long(trained_length: int) -> dict[Reach, slice]:
    """Returns which columns of next-token losses are short, and which long.

    Column `t` is the loss of token `t + 1`. A token is short where its index lies below `L`, as in training; that of
    index `L` is the first long one. So columns `0 ... L - 2` are short, and all later ones long.

    Args:
      trained_length: `L`, tokens.

    >>> losses = np.arange(7)  # of tokens 1 to 7, trained at 4
    >>> [losses[columns].tolist() for columns in short_and_long(4).values()]
    [[0, 1, 2], [3, 4, 5, 6]]
    """
    return {"short": slice(0, trained_length - 1), "long": slice(trained_length - 1, None)}


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """What every configuration is asked.

    Attributes:
      short: contexts of the trained length, or None for a model that answers no questions.
      long: as many of the target length, with as many facts.
      text: rows of the target length for the loss by position.
      counted: weight of each next token of `text` in that loss, `[rows, length - 1]`.
    """

    short: Contexts | None
    long: Contexts | None
    text: Rows
    counted: Float64[np.ndarray, "rows next"]

    @property
    def asked(self) -> dict[Reach, Contexts]:
        """The contexts by reach; empty for a model that answers no questions."""
        of_reach: dict[Reach, Contexts | None] = {"short": self.short, "long": self.long}
        return {reach: items for reach, items in of_reach.items() if items is not None}


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model and what it is asked.

    Attributes:
      checkpoint: the model.
      trained_length: `L`, tokens.
      target_length: `L'`, tokens.
      items: what is evaluated.
      fit_text: rows of at most `L` tokens for fitting a bias, disjoint from the items.
      fit_counted: weights of their next tokens.
      unseen_items: contexts of the trained length that nothing is fitted to nor judged by, or None.
      language: where the questions come from, in words.
      counts: facts and questions of its contexts, for whoever makes more of them.
    """

    checkpoint: Checkpoint
    trained_length: int
    target_length: int
    items: Items
    fit_text: Rows
    fit_counted: Float64[np.ndarray, "rows next"]
    unseen_items: Contexts | None
    language: str
    counts: Counts = dataclasses.field(default_factory=Counts)

    @property
    def factor(self) -> float:
        """`s = L'/L`."""
        return self.target_length / self.trained_length

    @property
    def num_contexts(self) -> int:
        """Contexts at each length; 0 for a model that answers no questions."""
        return 0 if self.items.long is None else len(self.items.long.tokens)

    @property
    def synthetic(self) -> bool:
        """Whether its contexts are in the bundled test models' own vocabulary, so that more can be made."""
        return self.unseen_items is not None

    def more_contexts(self, rng: np.random.Generator, *, rows: int, length: int) -> Contexts:
        """Returns other contexts like its own: as many facts, and events no farther apart than in training."""
        return _made(rng, rows=rows, length=length, trained_length=self.trained_length, counts=self.counts)

    def practice(self, rng: np.random.Generator, *, rows: int, text_rows: int) -> tuple[Rows, np.ndarray]:
        """Returns contexts, then rows of repeated text, of the target length to train on, and how next tokens weigh.

        Answers and copied tokens count. Copies are many and easy: a row of them counts as much as one of answers.
        """
        asked = self.more_contexts(rng, rows=rows, length=self.target_length)
        text = contexts.repeated_text(rng, rows=text_rows, length=self.target_length, farthest=self.trained_length // 2)
        answers = answer_weights(asked)
        share = answers.sum(axis=1).mean() / text.predictable.sum(axis=1, keepdims=True)
        return np.concatenate([asked.tokens, text.tokens]), np.concatenate([answers, share * text.predictable])


def bundled_models() -> tuple[Path, ...]:
    """Returns the directories of the test models that are bundled with the package, by seed."""
    return tuple(sorted(Path(str(resources.files("rope_jax") / "models")).glob("seed-*")))


@dataclasses.dataclass(frozen=True, eq=False)
class BundledModel:
    """A model that reads the contexts' vocabulary.

    Attributes:
      checkpoint: the model.
      counts: facts and questions of the contexts that it was trained on.
    """

    checkpoint: Checkpoint
    counts: Counts

    def asked(
        self, *, rows: int, target_length: int | None = None, text_rows: int = 8, seed: int = 0, part: int = 0
    ) -> Subject:
        """Returns the model with contexts in its own language; they do not depend on its weights.

        Args:
          rows: contexts at each length.
          target_length: `L'`, tokens; eight times the trained length where None.
          text_rows: rows of repeated text.
          seed: of all items; those to fit on come from another stream of it.
          part: further parts of the items, 1 or more, are other draws of as many; what is fitted to stays.

        Raises:
          InputError: if the target is no longer than the trained length, or the items do not fit into memory.
        """
        length = self.checkpoint.positions.original_length
        target = 8 * length if target_length is None else target_length
        if target <= length:
            raise InputError(f"target length {target} must be above the trained length {length}")
        check_size(rows=rows, lengths=[length, target], text_rows=text_rows)
        judged = (_FURTHER, part) if part else (_JUDGED,)
        judge, fit, unseen = (
            np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)) for key in (judged, (_FIT,), (_UNSEEN,))
        )
        made = functools.partial(_made, trained_length=length, counts=self.counts)
        short, long = (made(judge, rows=rows, length=n) for n in (length, target))
        text = contexts.repeated_text(judge, rows=text_rows, length=target, farthest=length // 2)
        answers = made(fit, rows=_FIT_ROWS, length=length)
        copies = contexts.repeated_text(fit, rows=_FIT_ROWS // 4, length=length, farthest=length // 2)
        return Subject(
            checkpoint=self.checkpoint,
            trained_length=length,
            target_length=target,
            items=Items(short, long, text.tokens, text.predictable),
            fit_text=np.concatenate([answers.tokens, copies.tokens]),
            fit_counted=np.concatenate([answer_weights(answers), copies.predictable]),
            unseen_items=made(unseen, rows=_UNSEEN_ROWS, length=length),
            language="contexts in the model's own vocabulary; text of repeated segments, copied tokens counted",
            counts=self.counts,
        )


def read_bundled_model(directory: Path) -> BundledModel:
    """Returns the bundled test model that `experiments/train.py` has written to a directory.

    Raises:
      InputError: if the checkpoint does not know the contexts' vocabulary, or its record names no such counts.
    """
    checkpoint = load_checkpoint(directory)
    if checkpoint.config.vocab_size != contexts.VOCAB_SIZE:
        raise InputError(
            f"{directory}: a vocabulary of {checkpoint.config.vocab_size} tokens is not that of the contexts, "
            f"{contexts.VOCAB_SIZE}"
        )
    return BundledModel(checkpoint, _known(directory / TRAINING))


def _made(rng: np.random.Generator, *, rows: int, length: int, trained_length: int, counts: Counts) -> Contexts:
    gap = min(trained_length // 2, contexts.widest_gap(trained_length, counts))
    return contexts.contexts(rng, rows=rows, length=length, largest_gap=gap, counts=counts)


def _known(record: Path) -> Counts:
    """Returns the facts and questions that a model was trained on, as `experiments/train.py` wrote them down."""
    if not record.is_file():
        return Counts()
    written = strict_json.read(record).get("counts", {})
    known = {field.name for field in dataclasses.fields(Counts)}
    if not isinstance(written, dict) or not set(written) <= known or not all(type(n) is int for n in written.values()):
        raise InputError(f"{record}: counts must give whole numbers for some of {', '.join(sorted(known))}")
    return Counts(**written)


def answer_weights(items: Contexts) -> Float64[np.ndarray, "rows next"]:
    """Returns 1 where the next token answers a question, else 0."""
    weights = np.zeros((items.tokens.shape[0], items.tokens.shape[1] - 1))
    np.put_along_axis(weights, items.position, 1.0, axis=1)
    return weights
