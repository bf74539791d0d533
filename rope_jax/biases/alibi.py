"""ALiBi: a line through zero, one slope a head."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from rope_jax.biases.slopes import geometric_slopes, paper_slopes
from rope_jax.integers import as_int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Alibi:
    r"""The bias `-m_h |i - j|`, added to the scaled logits.

    Attributes:
      slopes: `m`, float32 `[heads]`, nats per token.
    """

    slopes: Array

    @property
    def num_heads(self) -> int:
        return self.slopes.shape[0]

    def __call__(self, offset: Integer[Array | np.ndarray, "*shape"]) -> Float[Array, "heads *shape"]:
        """Returns the bias of every head at `offset = i - j`, query minus key position, integers of any width."""
        offset = as_int32("offset", offset)
        slopes = self.slopes.reshape(-1, *(1,) * offset.ndim)
        return -slopes * jnp.abs(offset.astype(jnp.float32))[None]


def alibi_paper(num_heads: int, *, multiplier: float = 1.0) -> Alibi:
    """Returns ALiBi with the paper's slopes, each times `multiplier`."""
    return Alibi(jnp.asarray(multiplier * paper_slopes(num_heads), jnp.float32))


def alibi_geometric(num_heads: int, *, multiplier: float = 1.0) -> Alibi:
    """Returns the variant with slopes `2^(-8(h+1)/n)` for every head count."""
    return Alibi(jnp.asarray(multiplier * geometric_slopes(num_heads), jnp.float32))


def alibi_inside_scale(num_heads: int, *, head_dim: int, multiplier: float = 1.0) -> Alibi:
    """Returns the textbook's variant, `(q.k + m (j - i)) / sqrt(d)`: the paper's slopes divided by `sqrt(head_dim)`."""
    return Alibi(jnp.asarray(multiplier * paper_slopes(num_heads) / math.sqrt(head_dim), jnp.float32))
