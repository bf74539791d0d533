"""From what a user names to subjects: bundled test models, a model of their kind, or a checkpoint with its text."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.checkpoints.extending import trained_length as trained_length_of
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.diagnosis.evaluation.own_model import OwnSettings, own_model
from rope_jax.diagnosis.tasks.contexts import TRAINING, shortest_with_copy
from rope_jax.diagnosis.tasks.subject import BundledModel, Subject, bundled_models, read_bundled_model
from rope_jax.diagnosis.tasks.text import Rows, Text, chunks, read_chunks, read_text
from rope_jax.errors import InputError

Model = str | Path | Checkpoint | BundledModel
AnyRows = Integer[np.ndarray, "_ _"]
"""Rows of token ids, integers of any width."""

_MOST_CHUNKS = 512
_ROWS, _OWN_ROWS = 64, 8
_CONTEXTS = 100
_RATIO = 1.5
_WHY = (
    f"no target length was asked for, so it is {_RATIO:g} times the trained one: at several times its length a small "
    "model may lose all of its tasks, and that says little about order"
)


@dataclasses.dataclass(frozen=True)
class Request:
    """What the models are asked.

    Attributes:
      target_length: `L'`, tokens; None for one and a half times the trained length of a bundled test model.
      contexts: at each length; None for 100, or 20 of a user's own checkpoint.
      text: a text file or `.npy` of token rows, or rows of tokens; bundled test models make their own.
      fit_text: other text to fit biases on; or None.
      text_rows: rows of text judged; by default 64 that are made, or 8 of a user's own.
      separator: between documents of a text.
      own: how a user's checkpoint is asked.
      seed: of all items.
      asked_on: whether further parts of the items may be asked.
    """

    target_length: int | None
    contexts: int | None
    text: str | Path | AnyRows | None
    fit_text: str | Path | AnyRows | None
    text_rows: int | None
    separator: str
    own: OwnSettings
    seed: int
    asked_on: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """Models and what they are asked.

    Attributes:
      folds: for each model its subject, once for each fold of its text.
      fold_of_row: which fold each row of text belongs to.
      findings: what a reader must know.
      further: the same models with further parts of their items, from 1; None where there are none.
      at_length: the same models with items of another target length, tokens; None where there are none.
    """

    folds: tuple[tuple[Subject, ...], ...]
    fold_of_row: tuple[int, ...]
    findings: tuple[str, ...]
    further: Callable[[int], list[Subject]] | None
    at_length: Callable[[int], list[Subject]] | None

    @property
    def subjects(self) -> list[Subject]:
        """Every model with all its items."""
        return [several[0] for several in self.folds]


def asked_of(
    model: Model | Sequence[Model] | None,
    request: Request,
    *,
    full: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Asked:
    """Returns the models and what they are asked.

    Args:
      model: a directory or file, a checkpoint that is read, several models of one kind, or None for the bundled one.
      request: see `Request`.
      full: whether None stands for every bundled test model.
      progress: called as work proceeds.

    Raises:
      InputError: if a model is not there, text is missing, or lengths contradict each other.
    """
    if model is None:
        found = bundled_models()
        if not found:
            raise InputError("no test model is installed with the package: name a checkpoint")
        models: Sequence[Model] = found if full else found[:1]
    else:
        models = [model] if isinstance(model, str | Path | Checkpoint | BundledModel) else list(model)
    if all(_is_bundled(one) for one in models):
        return _bundled([_read(one) for one in models], request)
    if len(models) > 1:
        raise InputError("several models are asked together only where they read the bundled test models' contexts")
    progress(f"reading {models[0]}" if isinstance(models[0], str | Path) else "reading the model", 0, 1)
    checkpoint = models[0] if isinstance(models[0], Checkpoint) else load_checkpoint(models[0])  # type: ignore[arg-type]
    return _own(checkpoint, request, progress)


def _is_bundled(model: Model) -> bool:
    return isinstance(model, BundledModel) or (isinstance(model, str | Path) and (Path(model) / TRAINING).is_file())


def _read(model: Model) -> BundledModel:
    return model if isinstance(model, BundledModel) else read_bundled_model(Path(model))  # type: ignore[arg-type]


def _bundled(known: Sequence[BundledModel], request: Request) -> Asked:
    if request.text is not None or request.fit_text is not None:
        raise InputError("a bundled test model makes its own text: text is for a checkpoint of your own")
    trained = known[0].checkpoint.positions.original_length

    def subjects(target: int | None, part: int = 0) -> list[Subject]:
        return [
            one.asked(
                target_length=target or round(_RATIO * trained),
                rows=request.contexts or _CONTEXTS,
                text_rows=request.text_rows or _ROWS,
                seed=request.seed,
                part=part,
            )
            for one in known
        ]

    first = subjects(request.target_length)
    counted = first[0].items.counted[:, trained - 1 :].sum(axis=1)
    if request.asked_on or not (counted > 0).all():
        check_copies(trained, first[0].target_length)
    lengths = {(one.trained_length, one.target_length) for one in first}
    if len(lengths) > 1:
        raise InputError(f"models that are judged together must share their lengths, got {sorted(lengths)}")
    rows = len(first[0].items.text)
    return Asked(
        tuple((one,) for one in first),
        (0,) * rows,
        (_WHY,) if request.target_length is None else (),
        lambda part: subjects(request.target_length, part),
        lambda target: subjects(target),
    )


def check_copies(trained_length: int, target_length: int) -> None:
    """Raises `InputError` unless every row of repeated text has a copied token beyond the trained length."""
    least = shortest_with_copy(trained_length, trained_length // 2)
    if target_length < least:
        raise InputError(
            f"target length {target_length}: rows of text may have no copied token beyond the {trained_length} tokens "
            f"of training, so that no loss is measured there; from {least} tokens on there always is one"
        )


def _own(checkpoint: Checkpoint, request: Request, progress: Callable[[str, int, int], None]) -> Asked:
    if request.text is None:
        raise InputError(f"{checkpoint.origin}: a checkpoint of your own is asked on text: give text (--text=FILE)")
    if request.target_length is None:
        raise InputError(f"{checkpoint.origin}: say how far the context is to be extended (--target_length=N)")
    trained = request.own.trained_length or trained_length_of(checkpoint.positions)
    progress("reading the text", 0, 1)
    text = _text(checkpoint, request)
    made = own_model(checkpoint, text, request.own, fit_text=_fit_text(checkpoint, request, trained), progress=progress)
    return Asked((made.folds,), made.fold_of_row, made.findings, None, None)


def _text(checkpoint: Checkpoint, request: Request) -> Text:
    rows, length = request.text_rows or _OWN_ROWS, request.target_length
    assert length is not None
    if isinstance(request.text, np.ndarray):
        given = _checked_rows("text", request.text, checkpoint, least=length)
        return Text(np.ascontiguousarray(given[:rows, :length]), given[rows:].reshape(-1), "the given rows")
    assert request.text is not None
    return read_text(
        Path(request.text),
        length=length,
        vocab_size=checkpoint.config.vocab_size,
        tokenizer_file=checkpoint.tokenizer_file,
        max_rows=rows,
        separator=request.separator,
    )


def _fit_text(checkpoint: Checkpoint, request: Request, trained: int) -> Rows | None:
    if request.fit_text is None:
        return None
    if isinstance(request.fit_text, np.ndarray):
        given = _checked_rows("fit_text", request.fit_text, checkpoint, least=trained)
        return chunks(given, trained)[:_MOST_CHUNKS]
    return read_chunks(
        Path(request.fit_text),
        length=trained,  # as long as is measured with
        vocab_size=checkpoint.config.vocab_size,
        tokenizer_file=checkpoint.tokenizer_file,
        max_chunks=_MOST_CHUNKS,
        separator=request.separator,
    )


def _checked_rows(name: str, given: np.ndarray, checkpoint: Checkpoint, *, least: int) -> Rows:
    """Returns rows of tokens that a model knows."""
    vocab_size = checkpoint.config.vocab_size
    if given.ndim != 2 or given.shape[1] < least or given.dtype.kind not in "iu" or not given.size:
        raise InputError(f"{name} must be rows of at least {least} tokens, got {given.dtype} {given.shape}")
    if given.min() < 0 or given.max() >= vocab_size:
        raise InputError(f"{name}: token ids run from {given.min()} to {given.max()}, the vocabulary has {vocab_size}")
    return np.asarray(given, np.int32)
