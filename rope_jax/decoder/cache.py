"""A key-value cache that holds *unrotated* keys, so that every step can score all keys under the scheme of the moment.

That equals recomputing only in the first layer: deeper keys and values come from hidden states made under the scheme
of their own step. Run the prompt again to change schemes exactly.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rope_jax.decoder.config import DecoderConfig

EMPTY = -1  # the segment of a slot that holds nothing


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens so far.

    Attributes:
      keys: one `[batch, capacity, kv_heads, head_dim]` a layer, before rotation.
      values: one `[batch, capacity, kv_heads, head_dim]` a layer.
      positions: int32 `[batch, capacity]`.
      segments: int32 `[batch, capacity]`; `EMPTY` where a slot holds nothing.
      filled: int32 `[]`, slots in use.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    positions: Array
    segments: Array
    filled: Array

    @property
    def capacity(self) -> int:
        return self.positions.shape[1]


def empty_cache(config: DecoderConfig, *, batch: int, capacity: int, dtype=jnp.float32) -> Cache:
    """Returns a cache with room for `capacity` tokens a sequence."""
    shape = (batch, capacity, config.num_kv_heads, config.head_dim)
    layers = range(config.num_layers)
    return Cache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in layers),
        values=tuple(jnp.zeros(shape, dtype) for _ in layers),
        positions=jnp.zeros((batch, capacity), jnp.int32),
        segments=jnp.full((batch, capacity), EMPTY, jnp.int32),
        filled=jnp.int32(0),
    )


def append_positions(
    cache: Cache, positions: Int[Array, "batch tokens"], segments: Int[Array, "batch tokens"]
) -> Cache:
    """Returns the cache with room marked for new tokens at `filled`; every layer then writes its own slots.

    Raises:
      ValueError: if they do not fit. Under `jit` only what is static is known: there the caller must see to it that
        `filled + tokens` stays within the capacity, or the last slots are overwritten.
    """
    filled = 0 if isinstance(cache.filled, jax.core.Tracer) else int(cache.filled)
    if filled + positions.shape[1] > cache.capacity:
        raise ValueError(
            f"{positions.shape[1]} tokens do not fit into a cache of {cache.capacity} with {filled} in use"
        )
    at = (0, cache.filled)
    return dataclasses.replace(
        cache,
        positions=jax.lax.dynamic_update_slice(cache.positions, positions.astype(jnp.int32), at),
        segments=jax.lax.dynamic_update_slice(cache.segments, segments.astype(jnp.int32), at),
        filled=cache.filled + positions.shape[1],
    )


def write_layer(
    store: Float[Array, "batch capacity kv_heads dim"], new: Float[Array, "batch tokens kv_heads dim"], end: Array
) -> Float[Array, "batch capacity kv_heads dim"]:
    """Returns one layer's keys or values with `new` written into the slots that end at `end`."""
    return jax.lax.dynamic_update_slice(store, new.astype(store.dtype), (0, end - new.shape[1], 0, 0))
