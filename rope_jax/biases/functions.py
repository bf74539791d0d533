"""The biases themselves: ALiBi, KERPLE, T5's buckets, and one parameter per offset."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32, Integer

from rope_jax.biases.host import bucket_starts, geometric_slopes, paper_slopes
from rope_jax.errors import ScalingError
from rope_jax.integers import as_int32

_MOST_COMPARED = 2**28  # offsets times entries of all heads; more would take longer than they are worth


def _per_head(parameter: Float32[Array, " heads"], offset: Int[Array, "*shape"]) -> Float[Array, "heads ..."]:
    return parameter.reshape(-1, *(1,) * offset.ndim)


def _distance(offset: Int[Array, "*shape"]) -> Float32[Array, "1 *shape"]:
    return jnp.abs(offset.astype(jnp.float32))[None]  # |-2^31| is no int32


class _PerHead:
    @property
    def num_heads(self) -> int:
        return jax.tree.leaves(self)[0].shape[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Alibi(_PerHead):
    r"""The bias `-m_h |i - j|`, added to the scaled logits.

    Attributes:
      slopes: `m`, float32 `[heads]`, nats per token.
    """

    slopes: Array

    def __call__(self, offset: Integer[Array | np.ndarray, "*shape"]) -> Float[Array, "heads *shape"]:
        """Returns the bias of every head at `offset = i - j`, query minus key position, integers of any width."""
        offset = as_int32("offset", offset)
        return -_per_head(self.slopes, offset) * _distance(offset)


def alibi_paper(num_heads: int, *, multiplier: float = 1.0) -> Alibi:
    """Returns ALiBi with the paper's slopes, each times `multiplier`."""
    return Alibi(jnp.asarray(multiplier * paper_slopes(num_heads), jnp.float32))


def alibi_geometric(num_heads: int, *, multiplier: float = 1.0) -> Alibi:
    """Returns the variant with slopes `2^(-8(h+1)/n)` for every head count."""
    return Alibi(jnp.asarray(multiplier * geometric_slopes(num_heads), jnp.float32))


def alibi_inside_scale(num_heads: int, *, head_dim: int, multiplier: float = 1.0) -> Alibi:
    """Returns the textbook's variant, `(q.k + m (j - i)) / sqrt(d)`: the paper's slopes divided by `sqrt(head_dim)`."""
    return Alibi(jnp.asarray(multiplier * paper_slopes(num_heads) / math.sqrt(head_dim), jnp.float32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KerpleLogarithmic(_PerHead):
    r"""The bias `-r1 ln(1 + r2 |i - j|)` (Chi et al., arXiv 2205.09921, equation 6).

    Attributes:
      r1: float32 `[heads]`, above 0, nats.
      r2: float32 `[heads]`, above 0, per token.
    """

    r1: Array
    r2: Array

    def __call__(self, offset: Integer[Array | np.ndarray, "*shape"]) -> Float[Array, "heads *shape"]:
        """Returns the bias of every head at `offset = i - j`, query minus key position, integers of any width."""
        offset = as_int32("offset", offset)
        return -_per_head(self.r1, offset) * jnp.log1p(_per_head(self.r2, offset) * _distance(offset))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KerplePower(_PerHead):
    r"""The bias `-r1 |i - j|^r2` (Chi et al., arXiv 2205.09921, equation 5).

    Attributes:
      r1: float32 `[heads]`, above 0.
      r2: float32 `[heads]`, in (0, 2].
    """

    r1: Array
    r2: Array

    def __call__(self, offset: Integer[Array | np.ndarray, "*shape"]) -> Float[Array, "heads *shape"]:
        """Returns the bias of every head at `offset = i - j`, query minus key position, integers of any width."""
        offset = as_int32("offset", offset)
        distance = _distance(offset)
        # At distance 0 the power's derivative in r2 is 0 * ln 0: the inner value is made 1 there, the outer 0.
        safe = jnp.maximum(distance, 1.0)
        power = jnp.where(distance > 0, safe ** _per_head(self.r2, offset), 0.0)
        return -_per_head(self.r1, offset) * power


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
    # Unrolled, the search is one fused pass; a loop would be several kernels a step, on a GPU.
    found = jnp.searchsorted(starts, distance, side="right", method="scan_unrolled").astype(jnp.int32) - 1
    return jnp.where(offset < 0, found + one_side, found) if bidirectional else found


def _looked_up(table: Float[Array, "heads entries"], index: Int32[Array, "*shape"]) -> Float[Array, "heads *shape"]:
    """Returns `table[:, index]`; for a strip in a form whose gradient is summed in one order on a GPU too."""
    if jax.default_backend() == "cpu" or index.size * table.size > _MOST_COMPARED:
        return jnp.take(table, index, axis=1)
    return _compared(table, index)


@jax.jit  # one pass there; on a CPU, which adds in one order anyway, each part would be written out
def _compared(table: Float[Array, "heads entries"], index: Int32[Array, "*shape"]) -> Float[Array, "heads *shape"]:
    """Returns `table[:, index]` as a sum over all entries of which one is left."""
    entries = jnp.arange(table.shape[1], dtype=jnp.int32).reshape((1,) * (index.ndim + 1) + (-1,))
    rows = table.reshape(table.shape[0], *(1,) * index.ndim, -1)
    return jnp.where(index[None, ..., None] == entries, rows, 0.0).sum(axis=-1)


def _one_side(num_buckets: int, bidirectional: bool) -> int:
    if bidirectional and num_buckets % 2:
        raise ScalingError(f"bidirectional buckets need an even num_buckets, got {num_buckets}")
    return num_buckets // 2 if bidirectional else num_buckets


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class T5(_PerHead):
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
    def flat_from(self) -> int:
        """The first offset of the last bucket: beyond it the bias is one constant."""
        return bucket_starts(_one_side(self.table.shape[1], self.bidirectional), self.max_distance)[-1]

    def __call__(self, offset: Integer[Array | np.ndarray, "*shape"]) -> Float[Array, "heads *shape"]:
        """Returns the bias of every head at `offset = i - j`, query minus key position, integers of any width."""
        layout = {"num_buckets": self.table.shape[1], "max_distance": self.max_distance}
        return _looked_up(self.table, bucket(offset, **layout, bidirectional=self.bidirectional))


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerOffset(_PerHead):
    """The bias `table[head, clip(i - j, 0, max_offset)]` (arXiv 1803.02155 clips alike).

    Attributes:
      table: float32 `[heads, max_offset + 1]`, nats; the last entry holds for every offset beyond it.
    """

    table: Array

    @property
    def flat_from(self) -> int:
        """The last offset that has a parameter of its own."""
        return self.table.shape[1] - 1

    def __call__(self, offset: Integer[Array | np.ndarray, "*shape"]) -> Float[Array, "heads *shape"]:
        """Returns the bias of every head at `offset = i - j`, query minus key position; future keys count as 0."""
        offset, last = as_int32("offset", offset), self.flat_from
        inner = jnp.take(self.table, jnp.clip(offset, 0, last), axis=1)
        if last == 0:
            return jnp.broadcast_to(_per_head(self.table[:, 0], offset), inner.shape)
        # Its ends apart, so that no two offsets add to one entry's gradient in an order that a GPU may change.
        for here, at in ((offset <= 0, 0), (offset >= last, -1)):
            inner = jnp.where(here[None], _per_head(self.table[:, at], offset), inner)
        return inner
