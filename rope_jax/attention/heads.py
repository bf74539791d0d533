"""One sequence and one key head at a time, with the memory of one, where a tile of one head fills every core."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array


class Results(NamedTuple):
    """What the work on one head gives, or, with a leading batch axis, on all of them."""

    by_token: tuple[Array, ...] = ()  # [tokens, ...] of one head; all heads: [batch, tokens, kv_heads, ...]
    by_head: tuple[Array, ...] = ()  # [...]; all heads: [batch, kv_heads, ...]
    by_row: Any = ()  # a pytree of arrays that the heads of a sequence add to; all heads: [batch, ...]


def each_head(function, by_token: tuple[Array, ...], by_head: tuple[Array, ...], by_row, zeros: Results) -> Results:
    """Returns the results of `function(tokens, heads, row)` for every sequence and key head.

    Args:
      function: takes slices of the three groups below, without their batch and head axes; returns the results of one
        head.
      by_token: arrays `[batch, tokens, kv_heads, ...]`.
      by_head: arrays `[batch, kv_heads, ...]`.
      by_row: a pytree of arrays `[batch, ...]`, the same for every head.
      zeros: zeros in the shape of all heads' results; `by_head` is not read.
    """

    # Results go straight to their place: stacked by head and moved afterwards they would be held twice.
    def of_row(buffers, row: Array):
        shared = jax.tree.map(lambda x: x[row], by_row)

        def of_head(carry, head: Array):
            buffers, sums = carry

            def take(x: Array) -> Array:
                # One slice for both axes, so that no whole sequence is copied.
                one = jax.lax.dynamic_slice(x, place(x), (1, x.shape[1], 1, *x.shape[3:]))
                return one.reshape(x.shape[1], *x.shape[3:])

            def put(buffer: Array, x: Array) -> Array:
                return jax.lax.dynamic_update_slice(buffer, x[None, :, None], place(buffer))

            def place(x: Array) -> tuple:
                return (row, 0, head) + (0,) * (x.ndim - 3)

            results = function(tuple(map(take, by_token)), tuple(x[row, head] for x in by_head), shared)
            buffers = tuple(map(put, buffers, results.by_token))
            return (buffers, jax.tree.map(jnp.add, sums, results.by_row)), results.by_head

        sums = jax.tree.map(lambda x: x[row], zeros.by_row)
        (buffers, sums), heads = jax.lax.scan(of_head, (buffers, sums), jnp.arange(by_token[1].shape[2]))
        return buffers, (heads, sums)

    buffers, (heads, sums) = jax.lax.scan(of_row, zeros.by_token, jnp.arange(by_token[0].shape[0]))
    return Results(buffers, heads, sums)
