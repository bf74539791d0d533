"""The Hopper kernels by one name, as `mosaic_gpu` runs them."""

from rope_jax.attention.mosaic_gpu_backward import of_keys, of_queries
from rope_jax.attention.mosaic_gpu_forward import forward
from rope_jax.attention.mosaic_gpu_strip import of_strip

__all__ = ["forward", "of_keys", "of_queries", "of_strip"]
