"""The tensors of a GGUF file: read a few rows at a time, dequantised, and put back as published code has them."""

import io
from collections.abc import Iterator

import ml_dtypes
import numpy as np
from jaxtyping import Float64

from rope_jax.checkpoints.gguf_file import GgufFile, TensorInfo, gguf_package
from rope_jax.checkpoints.strict_json import show
from rope_jax.errors import CheckpointError, UnsupportedError
from rope_jax.regular_files import open_regular, shown_path

__all__ = ["STORED", "read_tensor", "read_vector", "stored_dtype", "unpermuted"]

STORED = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
"""Kinds that hold values and not blocks; these keep their dtype."""

_PIECE = 2**22  # values that are dequantised at once


def stored_dtype(info: TensorInfo, dtype: np.dtype) -> np.dtype:
    """Returns the dtype that a tensor is read in: its own, or `dtype` where it is quantised."""
    return STORED.get(info.kind, dtype)


def read_tensor(file: GgufFile, name: str, *, dtype: np.dtype) -> np.ndarray:
    """Returns one tensor; beside the result, a piece of a few million values at most is held.

    Args:
      file: the GGUF file.
      name: of the tensor.
      dtype: that a quantised one is read in; others keep their own.

    Raises:
      CheckpointError: if it cannot be read, or a value is not finite in `dtype`.
      UnsupportedError: for a kind that the `gguf` package cannot dequantise.
    """
    info = file.tensors[name]
    result = np.empty(info.shape, stored_dtype(info, dtype))
    flat, at, bad = result.reshape(-1), 0, 0
    with open_regular(file.path, "weights", error=CheckpointError) as stream:
        for values in _pieces(file, info, stream):
            with np.errstate(over="ignore"):
                flat[at : at + values.size] = values
            bad += int(values.size - np.isfinite(flat[at : at + values.size]).sum())
            at += values.size
    if bad:
        raise CheckpointError(
            f"{shown_path(file.path)}: tensor {show(name)} holds {bad} values that are not finite as {result.dtype}"
        )
    return result


def _pieces(file: GgufFile, info: TensorInfo, stream: io.BufferedReader) -> Iterator[np.ndarray]:
    """Yields the values of a tensor in pieces."""
    package = gguf_package()
    kind = package.GGMLQuantizationType[info.kind]
    values, size = info.block
    blocks, most = info.size // values, max(1, _PIECE // values)
    stream.seek(info.start)
    for first in range(0, blocks, most):
        count = min(most, blocks - first)
        content = stream.read(count * size)
        if len(content) != count * size:
            raise CheckpointError(f"{shown_path(file.path)}: tensor {show(info.name)}: the file became shorter")
        if info.kind in STORED:
            yield np.frombuffer(content, STORED[info.kind])
            continue
        try:
            # A damaged scale may overflow: what is not finite is counted, not warned about.
            with np.errstate(all="ignore"):
                read = package.quants.dequantize(np.frombuffer(content, np.uint8).reshape(count, size), kind)
        except NotImplementedError:
            raise UnsupportedError(
                f"{shown_path(file.path)}: tensor {show(info.name)} is stored as {info.kind}, which the gguf package "
                "does not dequantise"
            ) from None
        yield read.reshape(-1)


def read_vector(file: GgufFile, name: str, length: int) -> Float64[np.ndarray, " length"]:
    """Returns a short tensor of positive values, such as factors of frequencies.

    Raises:
      CheckpointError: if it is not there, of another length, or a value is not finite or not positive.
    """
    where = f"{shown_path(file.path)}: tensor {show(name)}"
    if name not in file.tensors:
        raise CheckpointError(f"{where} is missing")
    shape = file.tensors[name].shape
    if shape != (length,):
        raise CheckpointError(f"{where} is {list(shape)}, the metadata make it {[length]}")
    # As the shortest decimals that give them: what was written as 1.05 is 1.05 again.
    values = np.array([float(str(value)) for value in read_tensor(file, name, dtype=np.dtype(np.float32))], np.float64)
    if not (values > 0).all():
        raise CheckpointError(f"{where} holds a value that is not positive")
    return values


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Returns rows of queries or keys with half-split pairs, from rows with interleaved ones.

    Args:
      rows: `[heads * dim, ...]`, dimension `2i` of a head paired with `2i + 1`.
      heads: how many.

    Returns:
      the same rows, `i` paired with `i + dim / 2`.
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
