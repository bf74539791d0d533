"""Loops over pairs of tiles, the same pairs for all heads, whose length alone is known at run time.

Several steps go by without a look at whether to go on, as on a GPU that look is a wait of the host for the device. A
tile of queries may meet several tiles of keys in a row, so that it, and what it gathers, are fetched and put back once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rope_jax.attention.operands import at

STEPS = 8  # pairs of tiles between two looks at whether to go on, at most
RUN = 4  # plain tiles of keys that a tile of queries meets in a row


def over_runs(run: Callable, wanted: Bool[Array, "q_tiles k_tiles"], carry, *, length: int):
    """Returns the carry after `run(i, meet_all, carry)` for runs that hold every wanted pair of tiles.

    `meet_all(step, state)` is the state after `step(j, valid, state)` for each of the `length` pairs of the run; where
    a tile of queries has no more, one that it has met is met again, not valid.
    """
    length = min(length, wanted.shape[1])
    runs = -(-wanted.shape[1] // length)
    order = jnp.argsort(~wanted, axis=1, stable=True).astype(jnp.int32)
    count = wanted.sum(axis=1, dtype=jnp.int32)

    def of_run(i: Array, u: Array, valid: Array, carry):
        in_order, last = at(order, i), at(count, i)

        def meet_all(step: Callable, state):
            def one(n: Array, state):
                number = u * length + n
                j = at(in_order, jnp.clip(number, 0, jnp.maximum(last - 1, 0)))
                # Looked up before: a kernel that looks up where it adds does not add in place.
                return step(jax.lax.optimization_barrier(j), valid & (number < last), state)

            return jax.lax.fori_loop(0, length, one, state)

        return run(i, meet_all, carry)

    held = jnp.arange(runs, dtype=jnp.int32)[None] * length < count[:, None]
    return over_pairs(of_run, held, carry, steps=1)


def over_pairs(step: Callable, wanted: Bool[Array, "q_tiles k_tiles"], carry, *, steps: int | None = None):
    """Returns the carry after `step(i, j, valid, carry)` for every wanted pair of tiles.

    Beyond the last pair that one is met again, not valid, up to a whole number of `steps`; `STEPS` where None.
    """
    count = wanted.sum(dtype=jnp.int32)
    if wanted.size == 1:
        return step(jnp.int32(0), jnp.int32(0), count > 0, carry)
    order = jnp.flatnonzero(wanted, size=wanted.size).astype(jnp.int32)
    together = min(STEPS if steps is None else steps, max(wanted.shape))

    def several(n, carry):
        def one(m: Int[Array, ""], carry):
            number = n * together + m
            pair = at(order, jnp.minimum(number, count - 1))
            columns = jnp.array(wanted.shape[1], jnp.int32)
            return step(jax.lax.div(pair, columns), jax.lax.rem(pair, columns), number < count, carry)

        return jax.lax.fori_loop(0, together, one, carry)

    return jax.lax.fori_loop(0, (count + together - 1) // together, several, carry)
