"""KERPLE: two kernels of the distance with learned shape, neither of which ever becomes flat."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Integer

from rope_jax.integers import as_int32


def _per_head(parameter: Float32[Array, " heads"], offset: Int[Array, "*shape"]) -> Float[Array, "heads ..."]:
    return parameter.reshape(-1, *(1,) * offset.ndim)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KerpleLogarithmic:
    r"""The bias `-r1 ln(1 + r2 |i - j|)` (Chi et al., arXiv 2205.09921, equation 6).

    Attributes:
      r1: float32 `[heads]`, above 0, nats.
      r2: float32 `[heads]`, above 0, per token.
    """

    r1: Array
    r2: Array

    @property
    def num_heads(self) -> int:
        return self.r1.shape[0]

    def __call__(self, offset: Integer[Array | np.ndarray, "*shape"]) -> Float[Array, "heads *shape"]:
        """Returns the bias of every head at `offset = i - j`, query minus key position, integers of any width."""
        offset = as_int32("offset", offset)
        distance = jnp.abs(offset.astype(jnp.float32))[None]
        return -_per_head(self.r1, offset) * jnp.log1p(_per_head(self.r2, offset) * distance)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KerplePower:
    r"""The bias `-r1 |i - j|^r2` (Chi et al., arXiv 2205.09921, equation 5).

    Attributes:
      r1: float32 `[heads]`, above 0.
      r2: float32 `[heads]`, in (0, 2].
    """

    r1: Array
    r2: Array

    @property
    def num_heads(self) -> int:
        return self.r1.shape[0]

    def __call__(self, offset: Integer[Array | np.ndarray, "*shape"]) -> Float[Array, "heads *shape"]:
        """Returns the bias of every head at `offset = i - j`, query minus key position, integers of any width."""
        offset = as_int32("offset", offset)
        distance = jnp.abs(offset.astype(jnp.float32))[None]
        # At distance 0 the power's derivative in r2 is 0 * ln 0: the inner value is made 1 there, the outer 0.
        safe = jnp.maximum(distance, 1.0)
        power = jnp.where(distance > 0, safe ** _per_head(self.r2, offset), 0.0)
        return -_per_head(self.r1, offset) * power
