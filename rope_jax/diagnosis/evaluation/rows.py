"""One row after another on a CPU, where a row fills every core; several at once elsewhere, as many as memory bears."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rope_jax.decoder import DecoderConfig

_ELEMENTS = 2**30  # of the widest activation, held together on an accelerator
_ELEMENTS_OF_GRADIENT = 2**29  # of those of all layers, which a backward pass keeps


def each_row(function: Callable[[Any], Any], rows: Any, *, config: DecoderConfig, length: int) -> Any:
    """Returns the results of a function for every row.

    On a CPU attention over a batch takes more than twice as long as over its rows one by one.

    Args:
      function: of one row; runs the decoder on it.
      rows: a pytree of arrays with a leading axis of rows.
      config: of the decoder.
      length: tokens of a row.
    """
    at_once = _at_once(_ELEMENTS, length * config.intermediate_size)
    return jax.lax.map(function, rows, batch_size=at_once if at_once > 1 else None)


def rows_of_gradient(count: int, *, config: DecoderConfig, length: int) -> int:
    """Returns of how many rows out of `count` a gradient is to be taken at once; it divides their number.

    Args:
      count: of all rows.
      config: of the decoder.
      length: tokens of a row.
    """
    most = _at_once(_ELEMENTS_OF_GRADIENT, length * config.intermediate_size * config.num_layers)
    return largest_divisor(count, most)


def largest_divisor(count: int, most: int) -> int:
    """Returns the largest number up to `most` that divides `count`.

    >>> largest_divisor(12, 5)
    4
    """
    return max(number for number in range(1, min(most, count) + 1) if count % number == 0)


def summed_gradient(
    loss: Callable[..., Array], at: Any, rows: tuple[Array, ...], *, config: DecoderConfig, length: int
) -> Any:
    """Returns the gradient of a loss summed over rows.

    Args:
      loss: from `at` and what belongs to one row to a number.
      at: a pytree of arrays, which the gradient is of.
      rows: arrays with a leading axis of rows.
      config: of the decoder that the loss runs.
      length: tokens of a row.
    """
    at_once = rows_of_gradient(rows[0].shape[0], config=config, length=length)

    def of_group(at, group):
        return loss(at, *(x[0] for x in group)) if at_once == 1 else jax.vmap(lambda row: loss(at, *row))(group).sum()

    def add(total, group):
        return jax.tree.map(jnp.add, total, jax.grad(of_group)(at, group)), None

    groups = tuple(x.reshape(-1, at_once, *x.shape[1:]) for x in rows)
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, at), groups)[0]


def _at_once(elements: int, of_row: int) -> int:
    return 1 if jax.default_backend() == "cpu" else max(1, elements // of_row)
