"""Finished work on disk: every file carries the key of what it was computed from, and a checksum of its content.

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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from rope_jax import __version__
from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.errors import InputError
from rope_jax.regular_files import irregular_kind

_FORMAT = 1
_SEAL = "rope-jax kept {} key={} sha256={}"
_SEALED = re.compile(_SEAL.format(_FORMAT, "([0-9a-f]{64})", "([0-9a-f]{64})").encode())
_SEAL_BYTES = len(_SEAL.format(_FORMAT, "0" * 64, "0" * 64))
_JSON = '{{"format": {}, "key": "{}", "sha256": "{}", "kept": {}}}\n'
_JSON_END = re.compile(rb"\}\n")
_SEALED_JSON = re.compile(
    rb'\{"format": %d, "key": "([0-9a-f]{64})", "sha256": "([0-9a-f]{64})", "kept": (.*)\}\n' % _FORMAT, re.DOTALL
)
_RECORD = "kept.json"
_LARGEST_JSON = 2**28  # bytes; a search at its limits of 4,096 candidates and generations writes less
_LARGEST_ARRAYS = 2**32  # bytes; no more items and text are made at once
_AROUND_ARRAYS = 2**16  # bytes of headers, names and the seal


class _UnusableError(Exception):
    """What lies there is not what was asked for; the message says why."""


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


def write_arrays(file: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as an `.npz`, whose comment holds the key and the checksum.

    Args:
      file: appears only once it is whole; its directory is made if it is missing.
      key: as from `digest`.
      arrays: by name.

    Raises:
      InputError: if it cannot be written.
    """
    archive = io.BytesIO()
    np.savez(archive, **arrays)  # type: ignore[arg-type]
    # A zip file ends in the length of its comment and the comment.
    content = archive.getvalue()[:-2] + struct.pack("<H", _SEAL_BYTES)
    _write(file, content + _SEAL.format(_FORMAT, key, _checksum(key, content)).encode())


def read_arrays(file: Path, key: str, *, largest: int = _LARGEST_ARRAYS) -> dict[str, np.ndarray] | None:
    """Returns what `write_arrays` wrote under the same key; None where there is no such file, or with a line why not.

    Args:
      file: as written; it need not exist.
      key: what the content must have been computed from.
      largest: bytes that the arrays can have.

    Raises:
      InputError: if what lies there is no file, so that nothing can be kept there either.
    """
    try:
        content = _content(file, largest + _AROUND_ARRAYS, ending=_SEALED, ending_bytes=_SEAL_BYTES)
        if content is None:
            return None
        sealed = _SEALED.fullmatch(content[-_SEAL_BYTES:])
        _check(sealed, key, content[:-_SEAL_BYTES])
    except _UnusableError as why:
        _say(file, why)
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def write_json(file: Path, key: str, value: Any) -> None:
    """Writes plain values as one JSON object with their key and checksum; arguments and errors as in `write_arrays`."""
    # Python writes the shortest decimals that read back as the same float64, so nothing is lost on the way.
    content = json.dumps(value, allow_nan=False)
    _write(file, _JSON.format(_FORMAT, key, _checksum(key, content.encode()), content).encode())


def read_json(file: Path, key: str) -> Any | None:
    """Returns what `write_json` wrote under the same key; None and errors as in `read_arrays`."""
    try:
        content = _content(file, _LARGEST_JSON, ending=_JSON_END, ending_bytes=2)
        if content is None:
            return None
        sealed = _SEALED_JSON.fullmatch(content)
        _check(sealed, key, b"" if sealed is None else sealed[3])
    except _UnusableError as why:
        _say(file, why)
        return None
    assert sealed is not None
    return json.loads(sealed[3])


def seal_directory(directory: Path, key: str, names: Iterable[str]) -> None:
    """Writes beside files that others have written a record of their checksums; errors as in `write_arrays`."""
    sums = {name: [(directory / name).stat().st_size, _file_checksum(directory / name)] for name in names}
    write_json(directory / _RECORD, key, sums)


def is_sealed(directory: Path, key: str) -> bool:
    """Returns whether a directory holds the files that were sealed there under a key; else with a line why not."""
    if not os.path.lexists(directory):
        return False
    if not os.path.lexists(directory / _RECORD):
        _say(directory, _UnusableError(f"no {_RECORD}: cut off, or kept by another version"))
        return False
    sums = read_json(directory / _RECORD, key)
    for name, expected in (sums or {}).items():
        try:
            size = _size(directory / name)
            if size is None:
                raise _UnusableError("is missing")
            # A file of another size is not read at all, however large.
            if expected[0] != size or expected[1] != _file_checksum(directory / name):
                raise _UnusableError("its content does not match its checksum")
        except _UnusableError as why:
            _say(directory / name, why)
            return False
    return sums is not None


def what_is_kept(store: Path) -> str | None:
    """Returns in words how much finished work, of this run or others, lies in a directory; None for none."""
    try:
        count = sum(1 for entry in os.scandir(store) if not entry.name.startswith("."))
    except OSError:
        return None
    return f"{count} finished results are kept in {store}: those of the same command are taken" if count else None


def _checksum(key: str, content: bytes) -> str:
    return hashlib.sha256(key.encode() + content).hexdigest()


def _check(sealed: re.Match[bytes] | None, key: str, content: bytes) -> None:
    if sealed is None:
        raise _UnusableError("no checksum of this version: cut off, damaged, or kept by another version")
    if _checksum(sealed[1].decode(), content) != sealed[2].decode():
        raise _UnusableError("its content does not match its checksum")
    if sealed[1].decode() != key:
        raise _UnusableError("computed from something else: another model, text, setting or version")


def _file_checksum(file: Path) -> str:
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise _UnusableError(f"cannot be read: {error.strerror}") from None


def _size(file: Path) -> int | None:
    """Returns the bytes of a file without waiting for it as for a pipe; None where there is none."""
    try:
        status = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _UnusableError(f"cannot be read: {error.strerror}") from None
    kind = irregular_kind(status.st_mode)
    if kind is not None:
        raise InputError(f"{file}: cannot keep finished work there: it is {kind}, not a regular file")
    return status.st_size


def _content(file: Path, largest: int, *, ending: re.Pattern[bytes], ending_bytes: int) -> bytes | None:
    """Returns the bytes of a file that can be what was written, going by its size and its last bytes; None for none."""
    size = _size(file)
    if size is None:
        return None
    if size > largest:
        raise _UnusableError(f"{size} bytes, of which it can have {largest}: damaged")
    try:
        with open(file, "rb") as opened:
            opened.seek(max(0, size - ending_bytes))
            if not ending.fullmatch(opened.read(ending_bytes)):
                return b""  # which carries no seal
            opened.seek(0)
            return opened.read(largest)
    except OSError as error:
        raise _UnusableError(f"cannot be read: {error.strerror}") from None


def _say(file: Path, why: _UnusableError) -> None:
    tqdm.tqdm.write(f"rope-jax: {file}: {why}: computed anew", file=sys.stderr)  # print would cut into a bar


def _write(file: Path, content: bytes) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        if os.path.lexists(file) and not os.path.isfile(file):
            raise InputError(f"{file}: cannot keep finished work there: not a regular file")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(f"{file.parent}: cannot keep finished work there: {error.strerror}") from error
