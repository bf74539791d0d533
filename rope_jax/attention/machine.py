"""What attention in pure JAX does differently on a CPU, where a tile of one head fills every core, and elsewhere."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def heads_at_once() -> bool:
    """Returns whether all heads of all sequences share a tile (`wide_tiles`); on a CPU one head follows another."""
    return jax.default_backend() != "cpu"


def product_dtype(*arrays: Array) -> jnp.dtype:
    """Returns the dtype of the operands of products: bfloat16 off the CPU where all of them are, else float32.

    Not float16: it holds neither weights of e^30 nor, next to its least normal number, scaled queries.
    """
    narrow = heads_at_once() and all(x.dtype == jnp.bfloat16 for x in arrays)
    return jnp.dtype(jnp.bfloat16 if narrow else jnp.float32)
