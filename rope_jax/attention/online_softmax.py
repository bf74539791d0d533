"""Rows of queries on their way along the tiles of keys, nearest first, with the sums of an online softmax.

The exponentials of a row are taken against a reference: the row's maximum so far, or an older one while a bound shows
that nothing can overflow. Most tiles then need neither a maximum nor a rescaled sum: they are *plain* (`logits`).

Axes: R rows, which go head by head; G query heads to a key head, C keys of a tile, e value dimension.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from rope_jax.attention.call import NOTHING, Settings
from rope_jax.attention.logits import Side, capped, separated_line, tile_mask, written_bias
from rope_jax.attention.operands import ROUNDING, Row, at

MARGIN = 30.0  # nats that a logit may lie above its row's reference before the reference is renewed, at most
_OVERFLOW = 87.0  # nats: no weighted sum of values may grow beyond e to this


class Sums(NamedTuple):
    """What rows have gathered."""

    reference: Array  # [R], nats
    weight: Array  # [R], sum of exp(logit - reference)
    mixed: Array  # [R, e], the same sum over values


class Head(NamedTuple):
    """What all rows of a key head meet."""

    k_tiles: Array  # [tiles, d, C], turned
    v_tiles: Array  # [tiles, C, e]
    v_sizes: Array  # [tiles], largest entries
    slopes: Array  # [G]
    strip: Array  # [G, 2M + 1]
    row: Row

    @property
    def columns(self) -> int:
        return self.k_tiles.shape[-1]

    def logits(self, q: Array, j: Array, settings: Settings) -> Float32[Array, "rows columns"]:
        """Returns the soft-capped logits of rows and a tile of keys, without the bias."""
        s = jnp.dot(q, at(self.k_tiles, j), preferred_element_type=jnp.float32)
        return capped(s, settings.soft_cap)[0]

    def mix(self, p: Array, j: Array) -> Float32[Array, "rows e"]:
        """Returns the values of a tile of keys, mixed by weights."""
        p = p.reshape(-1, self.columns).astype(self.v_tiles.dtype)
        return jnp.dot(p, at(self.v_tiles, j), preferred_element_type=jnp.float32)

    def meet(self, q: Array, side: Side, j: Array, sums: Sums, settings: Settings) -> Sums:
        """Returns the sums of the rows of one tile of queries after any tile of keys, mask and bias written out."""
        groups, columns = self.slopes.shape[0], self.row.side_of_keys(j)
        shape = _shape(groups, q.shape[0], self.columns)
        mask = jnp.broadcast_to(tile_mask(side, columns, settings), shape)
        bias = written_bias(self.slopes, self.strip, side, columns)
        s = jnp.where(mask, self.logits(q, j, settings).reshape(shape) + bias.reshape(shape), NOTHING)
        reference = jnp.maximum(sums.reference, s.max(axis=-1).reshape(-1))
        p = jnp.where(mask, jnp.exp(s - reference.reshape(*shape[:-1], 1)), 0.0)
        kept = jnp.exp(sums.reference - reference)
        weight = kept * sums.weight + p.sum(axis=-1).reshape(-1)
        return Sums(reference, weight, kept[:, None] * sums.mixed + self.mix(p, j))


class Rows(NamedTuple):
    """Rows that go along the keys together, and how they meet each tile of keys."""

    q: Array  # [R, d], turned and scaled
    positions: Array  # [R / G]
    held: Array  # [R / G], whether there is a query
    wanted: Array  # [tiles], whether to meet it
    plain: Array  # [tiles], whether it is plain
    nearest: Array  # [tiles], smallest distance
    bounds: Array  # [G, tiles], of any logit


def along(
    rows: Rows,
    sums: Sums,
    head: Head,
    settings: Settings,
    general: Callable[[Array, Sums], Sums],
    *,
    count_all: Array,
    first: bool,
) -> Sums:
    """Returns the sums after every wanted tile of keys that can matter.

    Args:
      rows: the queries.
      sums: those before.
      head: the keys.
      settings: of the call.
      general: adds a tile of keys that is not plain, or for which the references are too old.
      count_all: tiles of keys that the rows see, beyond the wanted ones too: none may be left out unless all together
        could be.
      first: whether the rows have met no key before.
    """
    groups = head.slopes.shape[0]
    shape = _shape(groups, rows.q.shape[0], head.columns)
    order = jnp.argsort(jnp.where(rows.wanted, rows.nearest, jnp.iinfo(jnp.int32).max), stable=True)
    count = rows.wanted.sum(dtype=jnp.int32)
    steps = jnp.arange(order.shape[0])
    of_query, of_key, side = separated_line(head.slopes, head.strip, rows.positions, head.row.keys.positions)
    of_query = of_query.reshape(2, -1)
    lowest = lambda x: _lowest(x, rows.held, groups)  # noqa: E731
    excess, excess_values = _excess(rows, head, order, count, count_all)
    margin = margin_of(head.k_tiles.shape[0] * head.columns, head.v_sizes.max())

    def plain(j, sums: Sums, shifts) -> Sums:
        shift = shifts[0] if settings.causal else at(shifts, at(side, j))
        column = at(of_key, j)
        column = column if groups == 1 else column[:, None, :]
        s = head.logits(rows.q, j, settings).reshape(shape)
        p = jnp.exp(s + column - shift.reshape(*shape[:-1], 1))
        return Sums(sums.reference, sums.weight + p.sum(axis=-1).reshape(-1), sums.mixed + head.mix(p, j))

    def stretch(n, sums: Sums):
        """Returns where the plain tiles from `n` on end, whether anything that matters follows, and the sums."""
        steady = rows.plain & (rows.bounds - lowest(sums.reference)[:, None] <= margin).all(axis=0)
        void = jnp.zeros(order.shape, bool)
        if settings.skip_tiles:
            lse = jnp.where(sums.weight > 0, sums.reference + jnp.log(sums.weight), NOTHING)
            of_output = sums.reference + jnp.log(jnp.abs(sums.mixed).max(axis=1))
            void = excess <= lowest(lse)[:, None]
            void = (void & (excess_values <= lowest(of_output)[:, None])).all(axis=0)
        end = jnp.min(steps, where=(steps >= n) & (void | ~steady[order]), initial=order.shape[0])
        end = jnp.minimum(end, count).astype(jnp.int32)
        shifts = sums.reference[None, :] - of_query  # references stay while the stretch lasts
        sums = jax.lax.fori_loop(n, end, lambda n, sums: plain(at(order, n), sums, shifts), sums)
        return end, (end < count) & ~(void & (steps == end)).any(), sums

    def step(state):
        # A tile that needs the general form, then all plain ones after it: a loop in a loop in place of a conditional,
        # in whose branches XLA's CPU backend uses one core only.
        n, _, sums = state
        return stretch(n + 1, general(at(order, n), sums))

    zero = head.row.origin.astype(jnp.int32)
    begin = (zero, count > 0, sums) if first else stretch(zero, sums)
    return jax.lax.while_loop(lambda state: state[1], step, begin)[2]


def margin_of(keys: int, largest: Float32[Array, "*heads"]) -> Float32[Array, "*heads"]:
    """Returns the nats that a logit may lie above its row's reference, where every key had such a logit.

    Args:
      keys: how many there are.
      largest: entry of their values.
    """
    return jnp.clip(_OVERFLOW - jnp.log(keys * jnp.maximum(largest, 1.0)), 0.0, MARGIN)


def _excess(rows: Rows, head: Head, order: Array, count: Array, count_all: Array) -> tuple[Array, Array]:
    """Returns what each row's sum, and each row's output, must exceed for all tiles from one on to be void, in nats.

    What all remaining tiles could add is at most (keys left) * exp(largest bound left), and that times the largest
    value left. It must vanish beside each row's own sum and beside each row's own output.
    """
    steps = jnp.arange(order.shape[0])
    in_order = jnp.where(steps[None, :] < count, rows.bounds[:, order], NOTHING)
    rest = jax.lax.cummax(in_order, axis=1, reverse=True)
    rest_values = jnp.log(jax.lax.cummax(head.v_sizes[order], reverse=True))[None, :]
    keys_left = jnp.maximum(count_all - steps, 1).astype(jnp.float32) * head.columns
    # Half of what may be lost, as a row may go along the keys in two parts.
    excess = rest + jnp.log(2 * keys_left / ROUNDING)[None, :]
    return excess, excess + rest_values


def _shape(groups: int, rows: int, columns: int) -> tuple[int, ...]:
    """Returns the shape of a tile of logits; a single group has no axis of its own.

    XLA's CPU backend shares the outermost dimension out among the cores.
    """
    return (rows, columns) if groups == 1 else (groups, rows // groups, columns)


def _lowest(x: Float32[Array, " rows"], held: Array, groups: int) -> Float32[Array, " groups"]:
    """Returns the smallest of each group's rows, those of empty slots apart."""
    counts = jnp.broadcast_to(held, (groups, held.shape[0]))
    return jnp.min(x.reshape(groups, -1), axis=1, where=counts, initial=-NOTHING)
