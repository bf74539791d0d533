"""`tokenizer.json` files, which are tried in a process of their own first: the library that reads them can abort.

A GGUF file stands for the `tokenizer.json` that its metadata make.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import tokenizers
from jaxtyping import Int64

from rope_jax.checkpoints.gguf_file import is_gguf
from rope_jax.checkpoints.gguf_tokenizer import tokenizer_text
from rope_jax.checkpoints.strict_json import one_line
from rope_jax.diagnosis.tasks import tokenizer_process
from rope_jax.errors import InputError, RopeJaxError
from rope_jax.regular_files import check_regular

__all__ = ["encode_documents", "first_line", "read_tokenizer"]

MAX_BYTES = 256 * 2**20  # the largest published ones have about 35 MB
_MEMORY = 4 * 2**30  # of address space, beyond what the sizes of the files ask for
_MEMORY_PER_BYTE = 256
_SECONDS, _BYTES_PER_SECOND = 120.0, 20_000  # a tenth of the slowest seen
_SAMPLE = "The 3rd key of box 27 is blue; it was found in 1994. What is the key?"


def read_tokenizer(file: pathlib.Path) -> tokenizers.Tokenizer:
    """Returns the tokenizer in a `tokenizer.json`, without the truncation and padding it may have been saved with.

    Args:
      file: the `tokenizer.json`, or a GGUF file.

    Raises:
      InputError: if the file cannot be read, is no tokenizer, or crashes the library that reads it.
    """
    with _as_json(file) as written:
        loaded, reason, crashed = _run(written, [_SAMPLE])[1:]
        if crashed or not loaded:
            raise InputError(f"{file}: not a tokenizer: {reason}")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(written))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{file}: not a tokenizer: {first_line(error)}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode_documents(file: pathlib.Path, documents: Sequence[str], *, origin: str) -> Int64[np.ndarray, " tokens"]:
    """Returns the token ids of all documents, one after the other, each with the special tokens its tokenizer adds.

    Args:
      file: the `tokenizer.json`, or a GGUF file.
      documents: texts.
      origin: where they come from, for messages.

    Raises:
      InputError: if the file is no tokenizer, or cannot encode the documents.
    """
    with _as_json(file) as written:
        ids, loaded, reason, _ = _run(written, documents)
    if not loaded:
        raise InputError(f"{file}: not a tokenizer: {reason}")
    if ids is None:
        raise InputError(f"{origin}: {file} cannot encode it: {reason}")
    return ids


@contextlib.contextmanager
def _as_json(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the `tokenizer.json`, one that is there for so long where a GGUF file has it in its metadata."""
    if not is_gguf(file):
        yield file
        return
    try:
        text = tokenizer_text(file)
    except RopeJaxError as error:
        raise InputError(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="rope-jax-") as folder:
        written = pathlib.Path(folder) / "tokenizer.json"
        written.write_text(text, encoding="utf-8")
        yield written


def _run(file: pathlib.Path, documents: Sequence[str]) -> tuple[np.ndarray | None, bool, str, bool]:
    """Returns token ids (None if it failed), whether the tokenizer could be read, why not, and whether it crashed."""
    size = check_regular(file, "a tokenizer").st_size
    if size > MAX_BYTES:
        raise InputError(f"{file}: {size:,} bytes are no tokenizer; at most {MAX_BYTES:,} are read")
    given = json.dumps(list(documents)).encode()
    memory = _MEMORY + _MEMORY_PER_BYTE * (size + len(given))
    seconds = _SECONDS + (size + len(given)) / _BYTES_PER_SECOND
    # -P: a module of the working directory must not stand in for one of those that are imported.
    command = [sys.executable, "-P", tokenizer_process.__file__, os.path.abspath(file), str(memory)]
    # Threads take address space each, and the limit counts it.
    environment = {"RAYON_NUM_THREADS": str(min(8, os.cpu_count() or 1)), **os.environ}
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired as expired:
        loaded = (expired.stdout or b"").startswith(tokenizer_process.LOADED)
        return None, loaded, f"no answer in {seconds:.0f} seconds", True
    except OSError as error:
        raise InputError(f"{file}: no process could be started to read it: {error.strerror}") from error
    loaded = done.stdout.startswith(tokenizer_process.LOADED)
    if done.returncode == 0 and loaded:
        return np.frombuffer(done.stdout[len(tokenizer_process.LOADED) :], "<i8"), True, "", False
    printed = done.stderr.decode("utf-8", "replace")
    if done.returncode == 1:
        crashed = "panicked at" in printed
        return None, loaded, first_line(printed.strip().rpartition("\n")[2] or "no reason given"), crashed
    return None, loaded, f"it crashes the library that reads it ({_ending(done.returncode)})", True


def _ending(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"exit status {status}"


def first_line(error: object) -> str:
    """Returns what an error says first, short and printable."""
    return one_line((str(error).splitlines() or [type(error).__name__])[0][:300])
