"""What callers give a decoder, checked at its border: ids, positions and segments as int32 of one shape."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Integer

from rope_jax.attention.call import Tokens
from rope_jax.decoder.config import DecoderConfig
from rope_jax.errors import InputError
from rope_jax.integers import as_int32

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)  # of a normal float32

Integers = Integer[Array | np.ndarray, "..."]


def checked_tokens(
    config: DecoderConfig,
    tokens: Integers,
    positions: Integers | None,
    segments: Integers | None,
    *,
    name: str = "tokens",
    one_segment: bool = False,
) -> tuple[Int32[Array, "batch tokens"], Tokens]:
    """Returns ids that an embedding can look up, and where they stand.

    Ids of padding (a negative segment) may be anything and come back within the vocabulary. Under `jit` the other ids
    come back as they are.

    Args:
      config: for the size of the vocabulary.
      tokens: ids, `[batch, tokens]`, integers of any width.
      positions: of each token; 0, 1, 2, ... where None.
      segments: of each token, negative for padding; None for one segment.
      name: of `tokens`, for errors.
      one_segment: whether to write one segment out where there is None: the slots of a cache tell what they hold by it.

    Raises:
      TypeError: if they are not integers.
      ValueError: if the shapes differ, or a known id is outside of the vocabulary.
    """
    ids = as_int32(name, tokens)
    if ids.ndim != 2:
        raise ValueError(f"{name} must be of shape [batch, tokens], got {ids.shape}")
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
    if segments is None and one_segment:
        segments = jnp.zeros_like(ids)
    at = Tokens(as_int32("positions", positions), None if segments is None else as_int32("segments", segments))
    for what, given in (("positions", at.positions), ("segments", at.segments)):
        if given is not None and given.shape != ids.shape:
            raise ValueError(f"{what} must be one a token, {ids.shape}, got {given.shape}")
    check_ids(name, ids, config.vocab_size, counts=None if at.segments is None else at.segments >= 0)
    if at.segments is not None:
        ids = jnp.where(at.segments < 0, jnp.clip(ids, 0, config.vocab_size - 1), ids)
    return ids, at


def check_ids(name: str, ids: Int32[Array, "*shape"], vocab_size: int, *, counts: Array | None = None) -> None:
    """Raises `InputError` where a known id is outside of the vocabulary; `counts` leaves ids out where it is False."""
    if not all(x is None or _is_known(x) for x in (ids, counts)):
        return
    known = np.asarray(ids) if counts is None else np.asarray(ids)[np.asarray(counts)]
    if known.size and not 0 <= known.min() <= known.max() < vocab_size:
        raise InputError(
            f"{name} must be from 0 to {vocab_size - 1}, for a vocabulary of {vocab_size}; got {known.min()} to "
            f"{known.max()}"
        )


def check_count(name: str, value: int) -> None:
    """Raises `InputError` unless `value` is an integer, of any kind but a boolean, and at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} must be a whole number, at least 1, got {value!r}")


def check_sampling(temperature: float, key: Array | None) -> None:
    """Raises `InputError` unless tokens can be drawn at `temperature`."""
    is_number = isinstance(temperature, int | float | np.integer | np.floating) and not isinstance(temperature, bool)
    if not (is_number and (temperature == 0 or _SMALLEST <= temperature <= _LARGEST)):
        raise InputError(f"temperature must be 0, or from {_SMALLEST:.2g} to {_LARGEST:.2g}, got {temperature!r}")
    if temperature > 0 and key is None:
        raise InputError(f"a temperature above 0 needs a key, got temperature {temperature!r} and no key")


def check_dtype(dtype) -> None:
    """Raises `ValueError` unless activations can be of `dtype`."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating one, got {jnp.dtype(dtype).name}")


def _is_known(x: Array) -> bool:
    return not isinstance(x, jax.core.Tracer) and x.is_fully_addressable
