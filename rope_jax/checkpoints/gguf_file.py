"""The container: what a GGUF file says of itself and where its tensors lie, every count checked before it is used.

The `gguf` package has a reader too. It trusts the counts and sizes in the file, so that a damaged one can ask for all
memory there is; here nothing is made that the file's own length does not allow for. Types, block sizes and
quantisations are the package's.
"""

import dataclasses
import importlib
import itertools
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from rope_jax.checkpoints.strict_json import show
from rope_jax.errors import CheckpointError, InputError, RopeJaxError, UnsupportedError
from rope_jax.regular_files import check_regular, open_regular, shown_path

__all__ = ["GgufFile", "TensorInfo", "gguf_package", "is_gguf", "read_gguf"]

MAGIC = b"GGUF"
SUFFIX = ".gguf"
_VERSIONS = (2, 3)
_MAX_DIMS, _MAX_NAME, _MAX_KEYS = 4, 1024, 100_000
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8  # bytes of the shortest entry of the list of tensors


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and how it is stored.

    Attributes:
      name: in the file.
      shape: slowest dimension first, as numpy has it; the file has it the other way round.
      kind: the package's name of how it is stored, such as "F32" or "Q4_K".
      block: values and bytes of one block; 1 and the size of a value for what is not quantised.
      start: of its bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    block: tuple[int, int]
    start: int

    @property
    def size(self) -> int:
        """Values in it."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes that it takes in the file."""
        values, size = self.block
        return self.size // values * size


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """What stands before the tensors' data.

    Attributes:
      path: the file.
      metadata: every key, in the file's order. Numbers are Python's; a float32 is the shortest decimal that gives it,
        so that 1e-05 is read back as it was written. An array is a list.
      tensors: every tensor, by name.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the model's kind; it is the prefix of the keys about it."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str) or not 0 < len(value) <= 64:
            raise self.error("general.architecture", f"must be given as text, got {show(value)}")
        return value

    def error(self, key: str, what: str, kind: type[RopeJaxError] = CheckpointError) -> RopeJaxError:
        """Returns the one-line error about a key."""
        return kind(f"{shown_path(self.path)}: {show(key)[1:-1]}: {what}")


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is named as a GGUF file, or is a regular file that begins as one."""
    if Path(path).suffix.lower() == SUFFIX:
        return not os.path.isdir(path)
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def gguf_package() -> ModuleType:
    """Returns the `gguf` package.

    Raises:
      InputError: if it is not installed.
    """
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise InputError("GGUF files are read with the gguf package: pip install 'rope_jax[gguf]'") from None


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Returns the metadata and the list of tensors of a GGUF file, version 2 or 3, little-endian.

    Args:
      path: the file; only what stands before the tensors' data is read.

    Raises:
      CheckpointError: if the file is damaged: a count or an offset that the file's length does not allow for, a name
        that is there twice, text that is not UTF-8, tensors that overlap.
      UnsupportedError: for other versions, the other byte order, and one part of several.
      InputError: if the `gguf` package is not installed.

    Source: the GGUF specification in docs/gguf.md of ggml, and gguf 0.19 for types and block sizes.
    """
    file = Path(path)
    size = check_regular(file, "a GGUF file", error=CheckpointError).st_size
    package = gguf_package()
    with open_regular(file, "a GGUF file", error=CheckpointError) as stream:
        reader = _Reader(stream, size, file)
        if reader.take(4) != MAGIC:
            raise reader.damage("does not begin as a GGUF file")
        (version,) = reader.unpack("<I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (*_VERSIONS, 1)
            what = "big-endian" if swapped else f"of version {version}"
            raise UnsupportedError(
                f"{shown_path(file)}: the GGUF file is {what}; little-endian ones of version 2 and 3 are read"
            )
        num_tensors, num_keys = reader.unpack("<QQ")
        if num_keys > min(_MAX_KEYS, size // 13) or num_tensors > size // _LEAST_TENSOR:
            raise reader.damage(f"states {num_tensors:,} tensors and {num_keys:,} keys, more than it can hold")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = reader.text(_MAX_NAME, "a key's name")
            if key in metadata:
                raise reader.damage(f"key {show(key)} is there twice")
            (kind,) = reader.unpack("<I")
            metadata[key] = reader.value(kind, key)
        listed = [_tensor(reader, package) for _ in range(num_tensors)]
        end = reader.at
    found = GgufFile(file, metadata, {})
    if isinstance(metadata.get("split.count"), int) and metadata["split.count"] > 1:
        raise found.error("split.count", "one part of several files: join them with llama.cpp first", UnsupportedError)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise found.error("general.alignment", f"must be a power of two from 8 to 2^20, got {show(alignment)}")
    start = -(-end // alignment) * alignment
    return dataclasses.replace(found, tensors=_placed(listed, start, alignment, size, file))


class _Reader:
    """A file read from its beginning, never past its end."""

    def __init__(self, stream: BinaryIO, size: int, path: Path) -> None:
        self.stream, self.size, self.path, self.at = stream, size, path, 0

    def damage(self, what: str) -> CheckpointError:
        return CheckpointError(f"{shown_path(self.path)}: damaged at byte {self.at:,}: {what}")

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise self.damage(f"{count:,} more bytes are needed, and {self.size - self.at:,} are there")
        content = self.stream.read(count)
        if len(content) != count:
            raise self.damage("the file became shorter while it was read")
        self.at += count
        return content

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def text(self, limit: int, what: str) -> str:
        (length,) = self.unpack("<Q")
        if length > limit:
            raise self.damage(f"{what} of {length:,} bytes; at most {limit:,} are read")
        content = self.take(length)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damage(f"{what} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind in _NUMBERS:
            return self.numbers(kind, 1)[0]
        if kind == _BOOL:
            return self.switches(1, key)[0]
        if kind == _STRING:
            return self.text(self.size, f"the text of {show(key)}")
        if kind != _ARRAY:
            raise self.damage(f"key {show(key)} is of type {kind}, which GGUF does not have")
        kind, length = self.unpack("<IQ")
        if kind == _STRING:
            if length > (self.size - self.at) // 8:
                raise self.damage(f"key {show(key)} is a list of {length:,} texts, more than the file can hold")
            return [self.text(self.size, f"a text of {show(key)}") for _ in range(length)]
        if kind == _BOOL:
            return self.switches(length, key)
        if kind in _NUMBERS:
            return self.numbers(kind, length)
        raise self.damage(f"key {show(key)} is a list of type {kind}, which is not read")

    def switches(self, count: int, key: str) -> list[bool]:
        content = self.take(count)
        if content.strip(b"\0\1"):
            raise self.damage(f"key {show(key)} holds a truth value that is neither 0 nor 1")
        return [byte == 1 for byte in content]

    def numbers(self, kind: int, count: int) -> list[int | float]:
        dtype = np.dtype(_NUMBERS[kind])
        values = np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if dtype == np.float32:
            return [float(str(value)) for value in values]
        return values.tolist()


def _tensor(reader: _Reader, package: ModuleType) -> tuple[str, tuple[int, ...], str, tuple[int, int], int]:
    """Returns one entry of the list of tensors, its offset counted from the beginning of the data."""
    name = reader.text(_MAX_NAME, "a tensor's name")
    (count,) = reader.unpack("<I")
    if not 1 <= count <= _MAX_DIMS:
        raise reader.damage(f"tensor {show(name)} has {count} dimensions; 1 to {_MAX_DIMS} are read")
    dims = reader.unpack(f"<{count}Q")
    number, offset = reader.unpack("<IQ")
    try:
        kind = package.GGMLQuantizationType(number)
        values, size = package.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise reader.damage(f"tensor {show(name)} is stored as type {number}, which is not known") from None
    if 0 in dims or max(dims) >= 2**48 or dims[0] % values:
        raise reader.damage(f"tensor {show(name)} of shape {list(dims)} is not possible as {kind.name}")
    return name, tuple(reversed(dims)), kind.name, (values, size), offset


def _placed(listed: list, start: int, alignment: int, size: int, path: Path) -> dict[str, TensorInfo]:
    """Returns the tensors by name, once each is known to lie within the file and apart from the others."""
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, block, offset in listed:
        info = TensorInfo(name, shape, kind, block, start + offset)
        if name in tensors:
            raise CheckpointError(f"{shown_path(path)}: tensor {show(name)} is there twice")
        if offset % alignment:
            raise CheckpointError(f"{shown_path(path)}: tensor {show(name)} lies at {offset:,}, not aligned")
        if info.start + info.bytes > size:
            ends = f"ends at byte {info.start + info.bytes:,}, the file at {size:,}"
            raise CheckpointError(f"{shown_path(path)}: tensor {show(name)} {ends}")
        tensors[name] = info
    by_place = sorted(tensors.values(), key=lambda info: info.start)
    for before, after in itertools.pairwise(by_place):
        if before.start + before.bytes > after.start:
            raise CheckpointError(
                f"{shown_path(path)}: tensors {show(before.name)} and {show(after.name)} share bytes of the file"
            )
    return tensors
