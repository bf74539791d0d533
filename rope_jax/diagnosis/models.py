"""From what a user names to subjects: bundled test models, a model of their kind, or a checkpoint with its text."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.checkpoints.extending import trained_length as trained_length_of
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.diagnosis.evaluation.own_model import OwnSettings, own_model
from rope_jax.diagnosis.options import Options
from rope_jax.diagnosis.tasks.contexts import TRAINING, shortest_with_copy
from rope_jax.diagnosis.tasks.subject import BundledModel, Subject, bundled_models, read_bundled_model
from rope_jax.diagnosis.tasks.text import Rows, Text, chunks, read_chunks, read_text
from rope_jax.errors import InputError

Model = str | Path | Checkpoint | BundledModel

_MOST_CHUNKS = 512
_ROWS, _OWN_ROWS = 64, 8
_CONTEXTS, _OWN_CONTEXTS = 100, 20
_RATIO = 1.5
_WHY = (
    f"no target length was asked for, so it is {_RATIO:g} times the trained one: at several times its length a small "
    "model may lose all of its tasks, and that says little about event order"
)


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
    further: Callable[[int], list[Subject]] | None = None
    at_length: Callable[[int], list[Subject]] | None = None

    @property
    def subjects(self) -> list[Subject]:
        """Every model with all its items."""
        return [several[0] for several in self.folds]


def asked_of(
    model: Model | Sequence[Model] | None,
    options: Options,
    *,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Asked:
    """Returns the models and what they are asked, before any is run.

    Args:
      model: a directory or file, a checkpoint that is read, several models of one kind, or None for the bundled one.
      options: what is asked for; with `full`, None stands for every bundled test model.
      progress: called as work proceeds.

    Raises:
      InputError: if a model is not there, text is missing, or lengths contradict each other.
    """
    models: Sequence[Any]
    if model is None:
        models = bundled_models()[: None if options.full else 1]
        if not models:
            raise InputError("no test model is installed with the package: name a checkpoint")
    else:
        several = isinstance(model, Sequence) and not isinstance(model, str | bytes)
        models = list(model) if several else [model]  # type: ignore[arg-type]
        if not models:
            raise InputError("no model is named")
        if wrong := [one for one in models if not isinstance(one, Model)]:
            raise InputError(f"a model is a directory, a file or a checkpoint, got {wrong[0]!r}")
    if all(_is_bundled(one) for one in models):
        known = [one if isinstance(one, BundledModel) else read_bundled_model(Path(one)) for one in models]
        return _bundled(known, options)
    if len(models) > 1:
        raise InputError("several models are asked together only where they read the bundled test models' contexts")
    (one,) = models
    progress(f"reading {one}" if isinstance(one, str | Path) else "reading the model", 0, 1)
    return _own(one if isinstance(one, Checkpoint) else load_checkpoint(one), options, progress)


def _is_bundled(model: Model) -> bool:
    return isinstance(model, BundledModel) or (isinstance(model, str | Path) and (Path(model) / TRAINING).is_file())


def _bundled(known: Sequence[BundledModel], options: Options) -> Asked:
    for name in ("text", "fit_text"):
        if getattr(options, name) is not None:
            raise InputError(f"{name}: a bundled test model makes its own text: it is for a checkpoint of your own")
    if options.contexts == 0:
        raise InputError("contexts: a bundled test model is asked questions, at least 1")
    trained = known[0].checkpoint.positions.original_length
    if options.trained_length not in (None, trained):
        raise InputError(
            f"trained_length {options.trained_length}: a bundled test model was trained on contexts of {trained} tokens"
        )
    target = options.target_length or round(_RATIO * trained)

    def subjects(target: int, part: int = 0) -> list[Subject]:
        return [
            one.asked(
                target_length=target,
                rows=options.contexts or _CONTEXTS,
                text_rows=options.text_rows or _ROWS,
                seed=options.seed,
                part=part,
            )
            for one in known
        ]

    first = subjects(target)
    items = first[0].items
    if options.most_contexts is not None or not (items.counted[:, trained - 1 :].sum(axis=1) > 0).all():
        check_copies(trained, target)
    lengths = {(one.trained_length, one.target_length) for one in first}
    if len(lengths) > 1:
        raise InputError(f"models that are judged together must share their lengths, got {sorted(lengths)}")
    return Asked(
        folds=tuple((one,) for one in first),
        fold_of_row=(0,) * len(items.text),
        findings=(_WHY,) if options.target_length is None else (),
        further=lambda part: subjects(target, part),
        at_length=subjects,
    )


def check_copies(trained_length: int, target_length: int) -> None:
    """Raises `InputError` unless every row of repeated text has a copied token beyond the trained length."""
    least = shortest_with_copy(trained_length, trained_length // 2)
    if target_length < least:
        raise InputError(
            f"target length {target_length}: rows of text may have no copied token beyond the {trained_length} tokens "
            f"of training, so that no loss is measured there; from {least} tokens on there always is one"
        )


def _own(checkpoint: Checkpoint, options: Options, progress: Callable[[str, int, int], None]) -> Asked:
    if options.text is None:
        raise InputError(f"text: a checkpoint of your own is asked on text, and none is given for {checkpoint.origin}")
    if options.target_length is None:
        raise InputError(f"target_length: say how far the context of {checkpoint.origin} is to be extended")
    progress("reading the text", 0, 1)
    settings = OwnSettings(
        trained_length=options.trained_length,
        contexts=_OWN_CONTEXTS if options.contexts is None else options.contexts,
        learned=options.margins.learned,
        layout=options.layout,
        phase=options.phase,
        compose=options.compose,
        seed=options.seed,
    )
    text = _text(checkpoint, options, options.target_length)
    fit_text = _fit_text(checkpoint, options, options.trained_length or trained_length_of(checkpoint.positions))
    made = own_model(checkpoint, text, settings, fit_text=fit_text, progress=progress)
    return Asked((made.folds,), made.fold_of_row, made.findings)


def _text(checkpoint: Checkpoint, options: Options, length: int) -> Text:
    rows, text = options.text_rows or _OWN_ROWS, options.text
    if isinstance(text, np.ndarray):
        given = _checked_rows("text", text, checkpoint, least=length)
        return Text(np.ascontiguousarray(given[:rows, :length]), given[rows:].reshape(-1), "the given rows")
    return read_text(max_rows=rows, **_of_file(text, checkpoint, options, length))


def _fit_text(checkpoint: Checkpoint, options: Options, length: int) -> Rows | None:
    """Returns chunks to fit on of the trained length, as long as is measured with."""
    if options.fit_text is None:
        return None
    if isinstance(options.fit_text, np.ndarray):
        return chunks(_checked_rows("fit_text", options.fit_text, checkpoint, least=length), length)[:_MOST_CHUNKS]
    return read_chunks(max_chunks=_MOST_CHUNKS, **_of_file(options.fit_text, checkpoint, options, length))


def _of_file(path: Any, checkpoint: Checkpoint, options: Options, length: int) -> dict[str, Any]:
    return {
        "path": Path(path),
        "length": length,
        "vocab_size": checkpoint.config.vocab_size,
        "tokenizer_file": checkpoint.tokenizer_file,
        "separator": options.separator,
    }


def _checked_rows(name: str, given: np.ndarray, checkpoint: Checkpoint, *, least: int) -> Rows:
    """Returns rows of tokens that a model knows."""
    vocab_size = checkpoint.config.vocab_size
    if given.ndim != 2 or given.shape[1] < least or given.dtype.kind not in "iu" or not given.size:
        raise InputError(f"{name} must be rows of at least {least} tokens, got {given.dtype} {given.shape}")
    if given.min() < 0 or given.max() >= vocab_size:
        raise InputError(f"{name}: token ids run from {given.min()} to {given.max()}, the vocabulary has {vocab_size}")
    return np.asarray(given, np.int32)
