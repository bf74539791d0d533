"""A key-value cache whose keys stand either unrotated or rotated, laid out for fast decoding.

*Unrotated* keys serve every scheme: each step can score all of them under the frequencies of the moment. That equals
recomputing only in the first layer: deeper keys and values come from hidden states made under the scheme of their own
step (`migration` measures the gap). *Rotated* keys are turned once, when they are written, by the scheme of their step,
and cost the least to read; another scheme needs `migration.migrate` first.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rope_jax.decoder.arguments import check_count
from rope_jax.decoder.config import DecoderConfig

EMPTY = -1  # the segment of a slot that holds nothing

Cached = Literal["unrotated", "rotated"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys", "values", "positions", "segments", "filled"],
    meta_fields=["cached"],
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens so far.

    Attributes:
      keys: one `[batch, kv_heads, head_dim, capacity]` a layer: slots last, so that a step turns and multiplies them
        as they stand.
      values: one `[batch, kv_heads, capacity, head_dim]` a layer.
      positions: int32 `[batch, capacity]`.
      segments: int32 `[batch, capacity]`; `EMPTY` where a slot holds nothing.
      filled: int32 `[]`, slots in use.
      cached: whether the keys are "unrotated" or "rotated"; static.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    positions: Array
    segments: Array
    filled: Array
    cached: Cached = "unrotated"

    @property
    def capacity(self) -> int:
        return self.positions.shape[1]


def empty_cache(
    config: DecoderConfig, *, batch: int, capacity: int, dtype=jnp.float32, cached: Cached = "unrotated"
) -> Cache:
    """Returns a cache with room for `capacity` tokens a sequence.

    Raises:
      ValueError: if `cached` is neither "unrotated" nor "rotated", or the capacity is no whole number of at least 1.
    """
    check_count("capacity", capacity)
    if cached not in ("unrotated", "rotated"):
        raise ValueError(f"cached must be 'unrotated' or 'rotated', got {cached!r}")
    heads, dim = config.num_kv_heads, config.head_dim
    layers = range(config.num_layers)
    return Cache(
        keys=tuple(jnp.zeros((batch, heads, dim, capacity), dtype) for _ in layers),
        values=tuple(jnp.zeros((batch, heads, capacity, dim), dtype) for _ in layers),
        positions=jnp.zeros((batch, capacity), jnp.int32),
        segments=jnp.full((batch, capacity), EMPTY, jnp.int32),
        filled=jnp.int32(0),
        cached=cached,
    )


def append_positions(
    cache: Cache, positions: Int[Array, "batch tokens"], segments: Int[Array, "batch tokens"] | None
) -> Cache:
    """Returns the cache with room marked for new tokens at `filled`; every layer then writes its own slots.

    They are of segment 0 where `segments` is None.

    Raises:
      ValueError: if they do not fit, in number or as a batch. Under `jit` only what is static is known: there the
        caller must see to it that `filled + tokens` stays within the capacity, or the last slots are overwritten.
    """
    if positions.shape[0] != cache.positions.shape[0]:
        raise ValueError(f"{positions.shape[0]} sequences do not continue a cache of {cache.positions.shape[0]}")
    filled = 0 if isinstance(cache.filled, jax.core.Tracer) else int(cache.filled)
    if filled + positions.shape[1] > cache.capacity:
        raise ValueError(
            f"{positions.shape[1]} tokens do not fit into a cache of {cache.capacity} with {filled} in use"
        )
    segments = jnp.zeros_like(positions) if segments is None else segments
    at = (0, cache.filled)
    return dataclasses.replace(
        cache,
        positions=jax.lax.dynamic_update_slice(cache.positions, positions.astype(jnp.int32), at),
        segments=jax.lax.dynamic_update_slice(cache.segments, segments.astype(jnp.int32), at),
        filled=cache.filled + positions.shape[1],
    )


def write_keys(
    store: Float[Array, "batch kv_heads dim capacity"], new: Float[Array, "batch tokens kv_heads dim"], end: Array
) -> Float[Array, "batch kv_heads dim capacity"]:
    """Returns one layer's keys with `new` in the slots that end at `end`."""
    new = jnp.moveaxis(new, 1, 3).astype(store.dtype)
    return jax.lax.dynamic_update_slice(store, new, (0, 0, 0, end - new.shape[3]))


def write_values(
    store: Float[Array, "batch kv_heads capacity dim"], new: Float[Array, "batch tokens kv_heads dim"], end: Array
) -> Float[Array, "batch kv_heads capacity dim"]:
    """Returns one layer's values with `new` in the slots that end at `end`."""
    new = jnp.moveaxis(new, 1, 2).astype(store.dtype)
    return jax.lax.dynamic_update_slice(store, new, (0, 0, end - new.shape[2], 0))
