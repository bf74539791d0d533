"""T5's relative bias: offsets share buckets, each bucket has one learned number a head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Integer

from rope_jax.biases.buckets import bucket_starts
from rope_jax.errors import ScalingError
from rope_jax.integers import as_int32


def bucket(
    offset: Integer[Array | np.ndarray, "*shape"], *, num_buckets: int, max_distance: int, bidirectional: bool = False
) -> Int32[Array, "*shape"]:
    """Returns the bucket of each `offset = i - j`, query minus key position.

    Args:
      offset: tokens, integers of any width; below zero for future keys.
      num_buckets: all buckets; halved for each direction when `bidirectional`.
      max_distance: the offset from which the published rule stops telling offsets apart.
      bidirectional: gives future keys buckets of their own; otherwise they share bucket 0.
    """
    offset = jnp.maximum(as_int32("offset", offset), -(2**31) + 1)  # |-2^31| is no int32
    one_side = _one_side(num_buckets, bidirectional)
    starts = jnp.asarray(bucket_starts(one_side, max_distance), jnp.int32)
    distance = jnp.abs(offset) if bidirectional else jnp.maximum(offset, 0)
    found = jnp.searchsorted(starts, distance, side="right").astype(jnp.int32) - 1
    return jnp.where(offset < 0, found + one_side, found) if bidirectional else found


def _one_side(num_buckets: int, bidirectional: bool) -> int:
    if bidirectional and num_buckets % 2:
        raise ScalingError(f"bidirectional buckets need an even num_buckets, got {num_buckets}")
    return num_buckets // 2 if bidirectional else num_buckets


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class T5:
    """The bias `table[head, bucket(i - j)]`.

    Attributes:
      table: float32 `[heads, buckets]`, nats. The published embedding is its transpose.
      max_distance: see `bucket`; static.
      bidirectional: see `bucket`; static.
      unscaled_logits: T5's own attention has no `1 / sqrt(head_dim)`; True undoes it in the scheme. Static.
    """

    table: Array
    max_distance: int = dataclasses.field(default=128, metadata={"static": True})
    bidirectional: bool = dataclasses.field(default=False, metadata={"static": True})
    unscaled_logits: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def num_heads(self) -> int:
        return self.table.shape[0]

    @property
    def flat_from(self) -> int:
        """The first offset of the last bucket: beyond it the bias is one constant."""
        return bucket_starts(_one_side(self.table.shape[1], self.bidirectional), self.max_distance)[-1]

    def __call__(self, offset: Integer[Array | np.ndarray, "*shape"]) -> Float[Array, "heads *shape"]:
        """Returns the bias of every head at `offset = i - j`, query minus key position, integers of any width."""
        index = bucket(
            offset,
            num_buckets=self.table.shape[1],
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )
        return jnp.take(self.table, index, axis=1)


def t5_bias(
    table: Float[Array, "heads buckets"] | np.ndarray,
    *,
    max_distance: int = 128,
    bidirectional: bool = False,
    unscaled_logits: bool = False,
) -> T5:
    """Returns the bias of a learned `table`; a table of zeros is T5 before any training."""
    bias = T5(jnp.asarray(table, jnp.float32), max_distance, bidirectional, unscaled_logits)
    _ = bias.flat_from  # checks the bucket count and the distance
    return bias
