"""Arrays out of files that anyone may have written: what a header declares is checked before memory is taken for it."""

import ast
import math
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from rope_jax.checkpoints.strict_json import one_line
from rope_jax.errors import InputError
from rope_jax.regular_files import open_regular

_MAGIC, _ZIP = b"\x93NUMPY", b"PK"
_LONGEST_HEADER = 10_000  # bytes, as numpy itself allows
_LARGEST_SIZE = 2**62
_MOST_DIMENSIONS = 32
_NUMBERS = "biufcmM"
_TYPE = re.compile(r"[<>|=]?[A-Za-z?][0-9]{0,4}(\[[0-9A-Za-z]{1,8}\])?")


class _DamagedError(Exception):
    """The file is not what it should be; the message says why."""


# What zipfile and its decompressors raise on damage.
_OF_DAMAGE = (
    _DamagedError,
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


class Header(NamedTuple):
    """What an array file declares.

    Attributes:
      dtype: a type of numbers or times.
      shape: of the array.
      order: "C" or "F".
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    order: str

    @property
    def bytes(self) -> int:
        """Bytes of the array, however many."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy(path: Path) -> np.ndarray:
    """Returns the array in a `.npy`, as a window on the file.

    Raises:
      InputError: if the file is no regular file, cannot be read, or is not one whole array of numbers.
    """
    with _opened(path, ".npy array") as file:
        start = file.read(2)
        if start == _ZIP:
            raise _DamagedError("it is a .npz archive")
        file.seek(0)
        header = _header(file)
        held = os.fstat(file.fileno()).st_size - file.tell()
        if header.bytes != held:
            raise _DamagedError(
                f"its header declares {header.dtype} {header.shape}, {header.bytes} bytes; the file holds {held}"
            )
        if not header.bytes:
            return np.empty(header.shape, header.dtype)
        return np.memmap(file, header.dtype, "r", file.tell(), header.shape, header.order)  # type: ignore[call-overload]


def read_float_npz(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns floating arrays of known shapes out of an `.npz` that holds no others.

    Args:
      path: as `numpy.savez` or `numpy.savez_compressed` writes it.
      shapes: of each array asked for, by name.

    Raises:
      InputError: if the file is no regular file, cannot be read, holds an array that was not asked for, or an array
        is missing, damaged, encrypted, or of another type or shape.
    """
    with _opened(path, ".npz archive") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            raise _DamagedError("it is a .npy array")
        with zipfile.ZipFile(file) as archive:
            asked = {f"{name}.npy" for name in shapes}
            for entry in archive.infolist():
                if entry.filename not in asked:
                    shown = one_line(entry.filename.removesuffix(".npy"))[:200]
                    raise InputError(f"{path}: has an array {shown!r}, which nothing asks for: {', '.join(shapes)}")
            return {name: _member(archive, name, shape, path) for name, shape in shapes.items()}


def _member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], path: Path) -> np.ndarray:
    entries = [entry for entry in archive.infolist() if entry.filename == f"{name}.npy"]
    if len(entries) != 1:
        raise InputError(f"{path}: has {'no array' if not entries else f'{len(entries)} arrays'} {name!r}")
    entry = entries[0]
    if entry.flag_bits & 1:
        raise _DamagedError(f"{name!r} is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _DamagedError(f"{name!r} is compressed by method {entry.compress_type}, which numpy does not write")
    with archive.open(entry) as member:
        header = _header(cast(BufferedIOBase, member))
        if header.dtype.kind != "f" or header.shape != shape:
            raise InputError(f"{path}: {name!r} needs floats {shape}, got {header.dtype} {header.shape}")
        # Never more than was asked for, whatever the archive would unpack to; its end is where a checksum is looked at.
        content = member.read(header.bytes + 1)
    if len(content) != header.bytes:
        raise _DamagedError(f"{name!r} does not hold the {header.bytes} bytes that its header declares")
    return np.frombuffer(content, header.dtype).reshape(shape, order=header.order)  # type: ignore[call-overload]


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[BufferedReader]:
    """Opens a regular file; whatever goes wrong while it is read is one line that names it."""
    try:
        with open_regular(path, kind) as file:
            yield file
    except InputError:
        raise
    except _OF_DAMAGE as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        why = one_line((why.splitlines() or [type(error).__name__])[0])[:200]
        raise InputError(f"{path}: not a readable {kind}: {why}") from error


def _header(file: BufferedIOBase) -> Header:
    opening = _exactly(file, len(_MAGIC) + 2)
    version = (opening[-2], opening[-1])
    if opening[:-2] != _MAGIC:
        raise _DamagedError("it does not begin as one")
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise _DamagedError(f"version {version[0]}.{version[1]} of the format is not known")
    length = "<H" if version == (1, 0) else "<I"
    (size,) = struct.unpack(length, _exactly(file, struct.calcsize(length)))
    if size > _LONGEST_HEADER:
        raise _DamagedError(f"a header of {size} bytes; {_LONGEST_HEADER} are allowed")
    text = _exactly(file, size).decode("utf-8" if version == (3, 0) else "latin1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage may look like odd Python
            told = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise _DamagedError("its header is not a description of an array") from None
    if not isinstance(told, dict) or set(told) != {"descr", "fortran_order", "shape"}:
        raise _DamagedError("its header does not give exactly descr, fortran_order and shape")
    shape, order = told["shape"], told["fortran_order"]
    if type(order) is not bool:
        raise _DamagedError("fortran_order is neither True nor False")
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n <= _LARGEST_SIZE for n in shape):
        raise _DamagedError("its shape is not a tuple of sizes")
    if len(shape) > _MOST_DIMENSIONS:
        raise _DamagedError(f"{len(shape)} dimensions; {_MOST_DIMENSIONS} are allowed")
    return Header(_dtype(told["descr"]), shape, "F" if order else "C")


def _dtype(described: object) -> np.dtype:
    try:
        if not isinstance(described, str) or not _TYPE.fullmatch(described):
            raise TypeError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names of types that are going out of use
            dtype = np.dtype(described)
    except (TypeError, ValueError):
        raise _DamagedError("its type is none of numpy's numbers") from None
    if dtype.kind not in _NUMBERS or not dtype.itemsize:
        raise _DamagedError(f"it holds {dtype}, not numbers")
    return dtype


def _exactly(file: BufferedIOBase, count: int) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise _DamagedError("it ends within its header")
    return content
