"""Integer arguments at the border: any width becomes int32, and everything else is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

LARGEST = 2**31 - 1


def as_int32(name: str, value) -> Int32[Array, "..."]:
    """Returns integers of any width as int32, so that differences of them neither wrap nor lose their sign.

    Values that are known are held to int32's range. Under `jit` a width that could exceed it saturates.

    >>> as_int32("positions", np.arange(3, dtype=np.uint8)).dtype
    dtype('int32')

    Args:
      name: the argument's, for the error.
      value: an array, traced or not, or nested lists of integers.

    Raises:
      TypeError: if the values are not integers (booleans and floating numbers are not).
      ValueError: if a known value does not fit into int32.
    """
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
        if value.size == 0 and value.dtype == np.float64:  # numpy's dtype of an empty list
            value = value.astype(np.int32)
    dtype = value.dtype
    if dtype.kind == "m" or not jnp.issubdtype(dtype, jnp.integer):  # numpy counts spans of time among the integers
        raise TypeError(f"{name} must be integers, got {dtype}: a fraction of a position or an id has no meaning here")
    if dtype == jnp.int32:
        return jnp.asarray(value)
    if jnp.iinfo(dtype).max > LARGEST:
        if isinstance(value, jax.core.Tracer):
            value = jnp.clip(value, max(-LARGEST - 1, jnp.iinfo(dtype).min), LARGEST)
        elif value.size:
            known = np.asarray(value)  # on the host: where a program is traced, jax would trace the comparison too
            least, most = int(known.min()), int(known.max())
            if least < -LARGEST - 1 or most > LARGEST:
                raise ValueError(f"{name} must fit into int32, got {least} to {most}")
            return jnp.asarray(known.astype(np.int32))
    return jnp.asarray(value.astype(np.int32))
