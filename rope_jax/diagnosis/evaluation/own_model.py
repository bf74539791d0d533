"""A user's own checkpoint and text as a subject: rows to judge, disjoint text to fit on, and questions in English."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.checkpoints.extending import trained_length as trained_length_of
from rope_jax.checkpoints.layout import layout_by_loss, require_layout
from rope_jax.decoder import Schemes
from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.probes import ProbeProgram
from rope_jax.diagnosis.evaluation.schemes import SchemeMaker
from rope_jax.diagnosis.tasks.contexts import Contexts
from rope_jax.diagnosis.tasks.language_probes import STATUS, language_contexts
from rope_jax.diagnosis.tasks.subject import Items, Subject
from rope_jax.diagnosis.tasks.text import Rows, Text, chunks, without_overlap
from rope_jax.diagnosis.tasks.tokenizer_file import read_tokenizer
from rope_jax.errors import InputError
from rope_jax.phases import Phase
from rope_jax.rotation import Layout

_LAYOUT_ROWS = 8
_FEWEST_CHUNKS = 16  # of leftover text, below which rows are split in two and each half is fitted for the other
_LEAST_TRAINED = 32


@dataclasses.dataclass(frozen=True)
class OwnSettings:
    """How a user's checkpoint is asked.

    Attributes:
      trained_length: `L`, tokens; what the config says where None.
      contexts: of questions in English at each length; 0 for none.
      learned: accuracy at the trained length from which a task counts as learned.
      layout: of the rotary pairs; the checkpoint's own, checked on the text, where None.
      phase: "exact" or "float32".
      compose: whether a scaling comes on top of a declared one, rather than in its place.
      seed: of the contexts.
    """

    trained_length: int | None = None
    contexts: int = 20
    learned: float = 0.9
    layout: Layout | None = None
    phase: Phase = "exact"
    compose: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class OwnModel:
    """A checkpoint, ready to be asked.

    Attributes:
      folds: the model, once for each fold of its text, with the text that its biases are fitted on.
      fold_of_row: which fold each row of text belongs to.
      findings: what a reader must know beside the numbers.
    """

    folds: tuple[Subject, ...]
    fold_of_row: tuple[int, ...]
    findings: tuple[str, ...]


def own_model(
    checkpoint: Checkpoint,
    text: Text,
    settings: OwnSettings,
    *,
    fit_text: Rows | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> OwnModel:
    """Returns a checkpoint as a subject.

    Args:
      checkpoint: the model.
      text: rows of the target length, which are judged, and what is left over of their file.
      settings: see `OwnSettings`.
      fit_text: chunks of at most the trained length to fit biases on; those that occur in the rows are left out.
        Without it what is left over of the text, and where that is too little each half of the rows for the other.
      progress: called as work proceeds.

    Raises:
      InputError: if lengths contradict each other, or there is no disjoint text to fit on.
      CheckpointError: if the model reads this text far better under the other layout of its rotary pairs.
    """
    trained = settings.trained_length or trained_length_of(checkpoint.positions)
    target = text.rows.shape[1]
    if trained < _LEAST_TRAINED:
        raise InputError(f"trained length {trained} is too short to fit biases on; at least {_LEAST_TRAINED}")
    if target <= trained + 1:
        raise InputError(f"target length {target} leaves no token to predict beyond the trained length {trained}")
    maker = SchemeMaker(
        checkpoint.positions,
        settings.layout or checkpoint.layout,
        settings.phase,
        trained,
        target,
        compose=settings.compose,
    )
    original = maker(maker.original())
    progress("checking the layout of the rotary pairs on text", 0, 1)
    findings = [*checkpoint.positions.findings, *_layout_findings(checkpoint, text, trained, settings, original)]
    declared = checkpoint.positions.main_group.rule.name
    if declared != "none":
        how = "comes on top of it" if settings.compose else "takes its place"
        findings.append(f"the model was shipped with {declared} up to {trained:,} tokens: a new scaling {how}")
    asked, finding = _english(checkpoint, original, target, trained, settings)
    findings.append(finding)
    short, long = asked or (None, None)
    items = Items(short, long, text.rows, np.ones((len(text.rows), target - 1)))
    parts = _fit_texts(text, fit_text, trained)
    if len(parts) > 1:
        findings.append("biases are fitted on each half of the rows for the other half (cross-fitting)")
    folds = [
        Subject(
            checkpoint=checkpoint,
            trained_length=trained,
            target_length=target,
            items=items,
            fit_text=pieces,
            fit_counted=np.ones((len(pieces), pieces.shape[1] - 1)),
            unseen_items=None,
            language=f"questions in English ({STATUS}); text as given" if asked else "text as given",
        )
        for _, pieces in parts
    ]
    fold_of_row = [fold for fold, (rows, _) in enumerate(parts) for _ in range(rows)]
    return OwnModel(tuple(folds), tuple(fold_of_row), tuple(findings))


def _layout_findings(
    checkpoint: Checkpoint, text: Text, trained: int, settings: OwnSettings, original: Schemes
) -> list[str]:
    head = chunks(text.rows, trained)[:_LAYOUT_ROWS]
    loss = layout_by_loss(checkpoint.model, jnp.asarray(head), original)
    used = settings.layout or checkpoint.layout
    if settings.layout is None:
        require_layout(loss, used, origin=checkpoint.origin)
    elif loss.favours not in (None, settings.layout):
        return [
            f"WRONG LAYOUT: the text is read far better as {loss.favours} (loss {loss.half:.3f} as half, "
            f"{loss.interleaved:.3f} as interleaved) than in the layout that was asked for, {settings.layout}"
        ]
    if loss.undecided:
        return [f"LAYOUT NOT CHECKED: {loss.undecided}; the weights are taken to be {used}, as stated"]
    return []


def _english(
    checkpoint: Checkpoint, original: Schemes, target: int, trained: int, settings: OwnSettings
) -> tuple[tuple[Contexts, Contexts] | None, str]:
    """Returns contexts short and long with questions in English, where the model has learned some; and what to say."""
    opening = f"questions in English ({STATUS})"
    if not settings.contexts:
        return None, f"{opening}: not asked for"
    if checkpoint.tokenizer_file is None:
        return None, f"{opening}: not asked, the checkpoint has no tokenizer"
    try:
        tokenizer = read_tokenizer(checkpoint.tokenizer_file)
        short, long = (
            language_contexts(
                np.random.default_rng(settings.seed),
                tokenizer,
                rows=settings.contexts,
                length=length,
                largest_gap=trained // 2,
            )
            for length in (trained, target)
        )
    except InputError as error:
        return None, f"{opening}: not asked, {error}"
    given = probes.answers(ProbeProgram(checkpoint.model)(original, short), short)
    accuracy = {name: float(probes.by_row(given.right, short, name).mean()) for name in probes.asked_probes(short)}
    shown = f"accuracy at {trained:,} tokens: " + ", ".join(f"{name} {value:.2f}" for name, value in accuracy.items())
    if all(value < settings.learned for value in accuracy.values()):
        return None, f"{opening}: none learned, so the verdict rests on the loss of text; {shown}"
    return (short, long), f"{opening}: {shown}"


def _fit_texts(text: Text, given: Rows | None, trained: int) -> list[tuple[int, Int32[np.ndarray, "_ _"]]]:
    """Returns, for each group of rows, how many they are and chunks of text that share nothing with them."""
    count = len(text.rows)
    if given is not None:
        kept = without_overlap(given, text.rows)
        if not len(kept):
            raise InputError(f"fit_text: it has no chunk of {given.shape[1]} tokens that is not also evaluated")
        return [(count, kept)]
    leftover = without_overlap(chunks(text.leftover, trained), text.rows)
    if len(leftover) >= _FEWEST_CHUNKS:
        return [(count, leftover)]
    if count < 2:
        raise InputError("text: one row leaves no disjoint text to fit biases on: give more rows or another fit_text")
    halves = text.rows[: count // 2], text.rows[count // 2 :]
    parts = [(len(judged), without_overlap(chunks(other, trained), judged)) for judged, other in (halves, halves[::-1])]
    if not all(len(kept) for _, kept in parts):
        raise InputError(f"{text.origin}: the rows repeat each other: no disjoint text to fit biases on")
    return parts
