"""A team's own bias from a file: slopes, or a bucketed table."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from rope_jax.biases import Alibi, Bias, t5_bias
from rope_jax.diagnosis.tasks.array_files import read_npy
from rope_jax.errors import InputError, named


def read_own_bias(file: Path, *, max_distance: int | None = None) -> Bias:
    """Returns the bias of a `.npy`: `[heads]` ALiBi slopes, nats a token, or `[heads, buckets]` a T5 table, nats.

    Args:
      file: of finite floats.
      max_distance: from which distance on a table is one bucket, tokens; needed for a table.

    Raises:
      InputError: if the file cannot be read, or its array is neither.
    """
    with named(str(file)):
        return _read(file, max_distance)


def _read(file: Path, max_distance: int | None) -> Bias:
    values = read_npy(file)
    if values.dtype.kind != "f" or values.ndim not in (1, 2) or not values.size:
        raise InputError(f"needs floats, [heads] slopes or a [heads, buckets] table, got {values.dtype} {values.shape}")
    wrong = np.argwhere(~(np.abs(values) <= np.finfo(np.float32).max))
    if len(wrong):
        at = tuple(map(int, wrong[0]))
        raise InputError(f"{values[at]} at {list(at)} is not finite, or beyond float32")
    if values.ndim == 1:
        return Alibi(jnp.asarray(values, jnp.float32))
    if max_distance is None:
        raise InputError("a table needs the distance from which on it is one bucket (--own_distance)")
    return t5_bias(values, max_distance=max_distance)
