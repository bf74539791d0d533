"""Finished work on disk: every file ends in the key of what it was computed from, and a checksum of its content.

A name is not believed. A file whose key, checksum or format is not the one asked for is as good as none: one line on
stderr says which file it is and why, and the caller computes anew.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from rope_jax import __version__
from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.errors import InputError
from rope_jax.regular_files import irregular_kind

_OF_ARRAYS = "rope-jax kept 1 key={} sha256={}"  # the comment of a zip file
_OF_JSON = ', "format": 1, "key": "{}", "sha256": "{}"}}\n'
_HASH = "0" * 64
_LARGEST_JSON = 2**28  # bytes; a search at its limits of 4,096 candidates and generations writes less
_LARGEST_ARRAYS = 2**32  # bytes; no more items and text are made at once
_AROUND_ARRAYS = 2**16  # bytes of headers, names and the seal


def digest(described: Mapping[str, Any], *trees: Any) -> str:
    """Returns the key of finished work: a hash of what it depends on.

    Args:
      described: plain values.
      *trees: pytrees of arrays; their structure counts, with what is static in it, and dtypes, shapes and values.
    """
    leaves, structure = jax.tree.flatten(trees)
    found = hashlib.sha256(json.dumps([described, str(structure)], sort_keys=True).encode())
    for array in map(np.asarray, leaves):
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def made_with(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what every result of a model depends on beside the question: weights, config, versions, arithmetic."""
    return {
        "weights": checkpoint.sha256,
        "config": repr(checkpoint.config),
        "versions": [__version__, jax.__version__],
        # A GPU makes products of fewer bits by default.
        "arithmetic": [jax.default_backend(), str(jax.config.jax_default_matmul_precision)],  # type: ignore[attr-defined]
    }


def taken_or_made(
    store: Path | None,
    name: str,
    key: str,
    make: Callable[[], Mapping[str, np.ndarray]],
    *,
    largest: int = _LARGEST_ARRAYS,
) -> Mapping[str, np.ndarray]:
    """Returns arrays that are kept under a key; else makes them, and keeps them as an `.npz` that anyone may read.

    Args:
      store: directory, made if it is missing; None to keep nothing.
      name: of the file, which appears only once it is whole.
      key: as from `digest`: what the arrays must have been computed from.
      make: computes the arrays.
      largest: bytes that they can have.

    Raises:
      InputError: if nothing can be kept there; before `make` is called where what lies there is no file.
    """
    if store is None:
        return make()
    content = _read(store / name, key, _OF_ARRAYS, largest + _AROUND_ARRAYS)
    if content is not None:
        with np.load(io.BytesIO(content), allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    made = make()
    archive = io.BytesIO()
    np.savez(archive, **made)  # type: ignore[arg-type]
    # A zip file ends in the length of its comment and the comment.
    content = archive.getvalue()[:-2] + struct.pack("<H", len(_OF_ARRAYS.format(_HASH, _HASH)))
    _write(store / name, key, content, _OF_ARRAYS)
    return made


def write_json(file: Path, key: str, value: Any) -> None:
    """Writes plain values as one JSON object with their key and checksum; errors as in `taken_or_made`."""
    # Python writes the shortest decimals that read back as the same float64, so nothing is lost on the way.
    _write(file, key, b'{"kept": ' + json.dumps(value, allow_nan=False).encode(), _OF_JSON)


def read_json(file: Path, key: str) -> Any | None:
    """Returns what `write_json` wrote under the same key; None where there is no such file, or with a line why not."""
    content = _read(file, key, _OF_JSON, _LARGEST_JSON)
    return None if content is None else json.loads(content + b"}")["kept"]


def what_is_kept(store: Path) -> str | None:
    """Returns in words how much finished work, of this run or others, lies in a directory; None for none."""
    try:
        count = sum(1 for entry in os.scandir(store) if not entry.name.startswith("."))
    except OSError:
        return None
    results = "1 finished result is" if count == 1 else f"{count} finished results are"
    return f"{results} kept in {store}: what is of the same command is taken" if count else None


def _checksum(key: str, content: bytes) -> str:
    return hashlib.sha256(key.encode() + content).hexdigest()


def _write(file: Path, key: str, content: bytes, seal: str) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        if os.path.lexists(file) and not os.path.isfile(file):
            raise InputError(f"{file}: cannot keep finished work there: not a regular file")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content + seal.format(key, _checksum(key, content)).encode())
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(f"{file.parent}: cannot keep finished work there: {error.strerror}") from error


def _read(file: Path, key: str, seal: str, largest: int) -> bytes | None:
    """Returns what was written before a seal with this key; None where there is no such file, or with a line why."""
    size = len(seal.format(_HASH, _HASH))
    try:
        status = os.stat(file)  # does not wait, as opening a pipe would
        kind = irregular_kind(status.st_mode)
        if kind is not None:
            raise InputError(f"{file}: cannot keep finished work there: it is {kind}, not a regular file")
        content, sealed = b"", None
        if size <= status.st_size <= largest:
            with open(file, "rb") as opened:
                # A file that was blown up has no seal at its end, and is not read.
                opened.seek(status.st_size - size)
                sealed = re.fullmatch(seal.format(*["([0-9a-f]{64})"] * 2).encode(), opened.read(size))
                opened.seek(0)
                content = opened.read(status.st_size - size) if sealed else b""
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    else:
        if status.st_size > largest:
            why = f"{status.st_size} bytes, of which it can have {largest}: damaged"
        elif sealed is None:
            why = "no checksum of this version: cut off, damaged, or kept by another version"
        elif _checksum(sealed[1].decode(), content) != sealed[2].decode():
            why = "its content does not match its checksum"
        elif sealed[1].decode() != key:
            why = "computed from something else: another model, text, setting or version"
        else:
            return content
    tqdm.tqdm.write(f"rope-jax: {file}: {why}: computed anew", file=sys.stderr)  # print would cut into a bar
    return None
