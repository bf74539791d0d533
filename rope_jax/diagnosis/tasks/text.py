"""Text in: rows of tokens of one length, and what is left over for fitting."""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Int32

from rope_jax.diagnosis.tasks.array_files import read_npy
from rope_jax.diagnosis.tasks.tokenizer_file import encode_documents
from rope_jax.errors import InputError
from rope_jax.regular_files import read_regular

Rows = Int32[np.ndarray, "rows tokens"]


@dataclasses.dataclass(frozen=True)
class Text:
    """Rows to evaluate, and disjoint text that nothing is evaluated on.

    Attributes:
      rows: int32 `[rows, length]`, evaluated.
      leftover: int32 `[leftover]`, whatever of the same file was not put into rows.
      origin: the file.
    """

    rows: Rows
    leftover: Int32[np.ndarray, " leftover"]
    origin: str


def read_text(
    path: pathlib.Path,
    *,
    length: int,
    vocab_size: int,
    tokenizer_file: pathlib.Path | None,
    max_rows: int,
    separator: str = "<|endoftext|>",
) -> Text:
    """Returns the first `max_rows` rows of `length` tokens of a file.

    Args:
      path: a `.npy` of token rows, or UTF-8 text for the tokenizer. Documents of a text are split at `separator`,
        stripped, tokenised each with the special tokens its tokenizer adds, and packed one after the other.
      length: tokens of a row.
      vocab_size: every token id must lie below it.
      tokenizer_file: a `tokenizer.json`, needed for text.
      max_rows: rows evaluated at most.
      separator: between documents of a text.

    Raises:
      InputError: if the file cannot be read, holds no row of `length` tokens, or has ids outside the vocabulary.
    """
    if path.suffix == ".npy":
        rows = _read_npy(path)
        if rows.shape[1] < length:
            raise InputError(f"{path}: rows have {rows.shape[1]} tokens, fewer than the target length {length}")
        used, leftover = rows[:max_rows, :length], rows[max_rows:].reshape(-1)
    else:
        tokens = _tokenise(path, tokenizer_file, separator)
        count = min(len(tokens) // length, max_rows)
        if count == 0:
            raise InputError(f"{path}: {len(tokens)} tokens do not fill one row of {length}")
        used, leftover = tokens[: count * length].reshape(count, length), tokens[count * length :]
    for part in (used, leftover):
        _check_ids(part, vocab_size, path)
    return Text(np.ascontiguousarray(used, np.int32), np.ascontiguousarray(leftover, np.int32), str(path))


def read_chunks(
    path: pathlib.Path,
    *,
    length: int,
    vocab_size: int,
    tokenizer_file: pathlib.Path | None,
    max_chunks: int,
    separator: str = "<|endoftext|>",
) -> Rows:
    """Returns the first `max_chunks` chunks of `length` tokens of a file to fit on; otherwise as `read_text`.

    Args:
      path: as in `read_text`; no chunk crosses from one row of a `.npy` into the next.
      length: tokens of a chunk.
      vocab_size: every token id must lie below it.
      tokenizer_file: a `tokenizer.json`, needed for text.
      max_chunks: chunks taken at most.
      separator: between documents of a text.
    """
    tokens = _read_npy(path) if path.suffix == ".npy" else _tokenise(path, tokenizer_file, separator)
    if tokens.shape[-1] < length:
        raise InputError(f"{path}: {tokens.shape[-1]} tokens do not fill one chunk of the trained length {length}")
    _check_ids(tokens, vocab_size, path)
    return chunks(tokens, length)[:max_chunks]


def chunks(tokens: np.ndarray, length: int) -> Rows:
    """Returns whole chunks of `length` tokens of a row, or of each of several rows."""
    tokens = np.atleast_2d(tokens)
    whole = tokens.shape[1] // length
    return np.ascontiguousarray(tokens[:, : whole * length].reshape(-1, length), np.int32)


def without_overlap(
    candidates: Int32[np.ndarray, "chunks chunk"], evaluated: Rows, *, span: int = 64
) -> Int32[np.ndarray, "kept chunk"]:
    """Returns the candidate chunks that share no run of `span` tokens with the evaluated rows, at any offset.

    Where a chunk or a row is shorter than `span`, runs of that length count.
    """
    span = min(span, evaluated.shape[1], candidates.shape[1])

    def runs(tokens: np.ndarray) -> set[bytes]:
        return {run.tobytes() for run in np.lib.stride_tricks.sliding_window_view(tokens, span)}

    seen: set[bytes] = set().union(*(runs(row) for row in evaluated))
    return candidates[np.asarray([seen.isdisjoint(runs(chunk)) for chunk in candidates], bool)]


def _check_ids(tokens: np.ndarray, vocab_size: int, path: pathlib.Path) -> None:
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise InputError(
            f"{path}: token ids run from {tokens.min()} to {tokens.max()}, the vocabulary has {vocab_size}"
        )


def _read_npy(path: pathlib.Path) -> np.ndarray:
    rows = read_npy(path)
    # By kind: numpy counts durations among its integers.
    if rows.ndim != 2 or rows.dtype.kind not in "iu" or 0 in rows.shape:
        raise InputError(f"{path}: token rows must be a non-empty 2-D integer array, got {rows.dtype} {rows.shape}")
    return rows


def _tokenise(path: pathlib.Path, tokenizer_file: pathlib.Path | None, separator: str) -> np.ndarray:
    if tokenizer_file is None:
        raise InputError(f"{path}: the checkpoint has no tokenizer.json, so text cannot be read; pass a .npy of tokens")
    content = read_regular(path, "text")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not readable as UTF-8 text: {error}") from error
    documents = [stripped for document in text.split(separator) if (stripped := document.strip())]
    if not documents:
        raise InputError(f"{path}: the text is empty")
    return encode_documents(tokenizer_file, documents, origin=str(path))
