"""The Hopper kernels by one name, as `mosaic_gpu` runs them."""

from rope_jax.attention.mosaic_gpu_backward import of_keys, of_queries, of_strip
from rope_jax.attention.mosaic_gpu_forward import forward

__all__ = ["forward", "of_keys", "of_queries", "of_strip"]
