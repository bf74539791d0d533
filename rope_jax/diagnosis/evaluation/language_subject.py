"""A checkpoint that reads English as a subject: questions in its own tokens, where it has learned to answer them."""

import dataclasses

import numpy as np
from jaxtyping import Int32

from rope_jax.checkpoints.checkpoint import Checkpoint, schemes_of
from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.probes import ProbeProgram
from rope_jax.diagnosis.tasks.language_probes import LANGUAGE_COUNTS, STATUS, language_contexts
from rope_jax.diagnosis.tasks.registry import names
from rope_jax.diagnosis.tasks.subject import Items, Subject
from rope_jax.diagnosis.tasks.text import Rows
from rope_jax.diagnosis.tasks.tokenizer_file import read_tokenizer
from rope_jax.errors import InputError

_FEWEST_CHUNKS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Readiness:
    """Whether a checkpoint answers questions in English.

    Attributes:
      subject: with contexts where it does, else None.
      finding: one line for the report.
    """

    subject: Subject | None
    finding: str


def readiness(
    checkpoint: Checkpoint,
    text: Rows,
    fit_text: Int32[np.ndarray, "chunks chunk"],
    *,
    trained_length: int,
    rows: int,
    gate: float,
    seed: int = 0,
) -> Readiness:
    """Returns the subject for a verdict if the checkpoint has learned a task of each role.

    Args:
      checkpoint: the model.
      text: evaluated rows of the target length, for the loss by position.
      fit_text: rows to fit biases on, disjoint from `text`.
      trained_length: `L`, tokens.
      rows: contexts at each length.
      gate: accuracy at the trained length from which a task counts as learned.
      seed: of the contexts.
    """
    opening = f"questions in English ({STATUS})"
    if checkpoint.tokenizer_file is None:
        return Readiness(None, f"{opening}: not asked, the checkpoint has no tokenizer")
    if len(fit_text) < _FEWEST_CHUNKS:
        return Readiness(None, f"{opening}: not asked, no text is left to fit biases on: give --fit_text")
    try:
        tokenizer = read_tokenizer(checkpoint.tokenizer_file)
        short, long = (
            language_contexts(
                np.random.default_rng(seed),
                tokenizer,
                rows=rows,
                length=length,
                largest_gap=trained_length // 2,
                counts=LANGUAGE_COUNTS,
            )
            for length in (trained_length, text.shape[1])
        )
    except InputError as error:
        return Readiness(None, f"{opening}: not asked, {error}")
    logits = ProbeProgram(checkpoint.model)(schemes_of(checkpoint, length=trained_length), short)
    given = probes.answers(logits, short)
    accuracy = {name: float(probes.by_row(given.right, short, name).mean()) for name in probes.asked_probes(short)}
    shown = ", ".join(f"{name} {value:.2f}" for name, value in accuracy.items())
    learned = {name for name, value in accuracy.items() if value >= gate}
    if not all(learned & set(names(role)) for role in ("retrieval", "precision")):
        return Readiness(None, f"{opening}: not learned, so no verdict; accuracy at {trained_length} tokens: {shown}")
    subject = Subject(
        checkpoint=checkpoint,
        trained_length=trained_length,
        target_length=text.shape[1],
        items=Items(short, long, text, np.ones((len(text), text.shape[1] - 1))),
        fit_text=fit_text,
        fit_counted=np.ones((len(fit_text), fit_text.shape[1] - 1)),
        unseen_items=None,
        language=f"{opening}; text as given",
    )
    return Readiness(subject, f"{opening}: accuracy at {trained_length} tokens: {shown}")
