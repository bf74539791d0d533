"""What attention asks of the machine: whether a tile of one head fills it, and whether it runs the Hopper kernels."""

import functools

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


HOPPER_VERSIONS = ("0.11", "0.12")  # of jax; others may lower the kernels to something else


@functools.cache
def hopper_lacks() -> str | None:
    """Returns why the Hopper kernels do not run here; None where they do."""
    if jax.default_backend() != "gpu":
        return f"need a GPU, the default backend is {jax.default_backend()}"
    capability = getattr(jax.devices()[0], "compute_capability", "unknown")
    if capability != "9.0":
        return f"need compute capability 9.0, the GPU has {capability}"
    return unwritten()


def unwritten() -> str | None:
    """Returns why the Hopper kernels cannot be compiled, whatever the machine; None where they can."""
    if jax.__version__.startswith(HOPPER_VERSIONS):
        return None
    return f"need jax {' or '.join(HOPPER_VERSIONS)}, this is {jax.__version__}"
