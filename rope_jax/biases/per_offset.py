"""One parameter per offset: what buckets improve on, since an offset never seen in training has no parameter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from rope_jax.integers import as_int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerOffset:
    """The bias `table[head, clip(i - j, 0, max_offset)]` (arXiv 1803.02155 clips alike).

    Attributes:
      table: float32 `[heads, max_offset + 1]`, nats; the last entry holds for every offset beyond it.
    """

    table: Array

    @property
    def num_heads(self) -> int:
        return self.table.shape[0]

    @property
    def flat_from(self) -> int:
        """The last offset that has a parameter of its own."""
        return self.table.shape[1] - 1

    def __call__(self, offset: Integer[Array | np.ndarray, "*shape"]) -> Float[Array, "heads *shape"]:
        """Returns the bias of every head at `offset = i - j`, query minus key position; future keys count as 0."""
        offset = as_int32("offset", offset)
        return jnp.take(self.table, jnp.clip(offset, 0, self.flat_from), axis=1)
