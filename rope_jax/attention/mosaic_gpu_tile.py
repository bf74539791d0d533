"""One tile of the Hopper kernels: logits, mask, softmax and gradients, as functions that plain JAX runs as well.

Logits are in units of ln 2, so that an exponential is one instruction, and are counted from the *frame* of a tile of
queries: a softmax does not see what is the same for a whole row, so the line `-m (i - j)` becomes `m (j - i_0)` with
`i_0` the first query of the tile, and the strip loses its value for far keys. Far tiles then carry no strip at all.

Queries and keys stand at slots, `i - j` is the difference of two slots plus one number a sequence (`mosaic_gpu`).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from rope_jax.attention.call import NOTHING, Settings

LOG2E = math.log2(math.e)
TILE = 128  # queries of a tile, and keys of what is known of a tile
HALF = TILE // 2  # queries or keys of one warpgroup
MARGIN = 2 * TILE  # how far the offsets of a tile reach beyond those at which it needs the strip
HIDDEN = -2e30  # so far below NOTHING that its exponential is zero even in a row that has seen nothing yet


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What may be tuned.

    Attributes:
      keys: of a tile of the forward kernel.
      forward_stages: tiles of keys in flight.
      backward_stages: the same of the backward kernels.
      skip_from: keys from which on tiles that cannot matter are looked for; with fewer it takes longer than it saves.
    """

    keys: int = 128
    forward_stages: int = 2
    backward_stages: int = 2
    skip_from: int = 8192


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static side of a kernel; hashable.

    Attributes:
      settings: of the call.
      groups: query heads a key head.
      keys: keys of a sequence, without what fills the last tile.
      reach: largest offset with a strip entry of its own.
      segmented: whether segments tell what is seen.
      sizes: what may be tuned.
    """

    settings: Settings
    groups: int
    keys: int
    reach: int
    segmented: bool
    sizes: Sizes


class Place(NamedTuple):
    """Where a tile lies, in scalars."""

    distance: Array  # position of the first key, counted from that of the queries' tile of `TILE`
    inside: Array  # first query, counted from that tile's
    left: Array  # keys from the first on to the end of the sequence


def by_row(x: Array, shape: tuple[int, ...]) -> Array:
    """Returns a column vector repeated along the rows."""
    return lax.broadcast_in_dim(x, shape, [0])


def by_column(x: Array, shape: tuple[int, ...]) -> Array:
    """Returns a row vector repeated along the columns."""
    return lax.broadcast_in_dim(x, shape, [1])


def turned(x: Array, cos: Array, sin: Array, factor: Array | float) -> Array:
    """Returns `x` with the first two runs of its last dimension turned against each other, as `rotation.rotate`.

    Args:
      x: `[.., dim]`, float32.
      cos: `[.., pairs]`, times the factor.
      sin: the same.
      factor: of the dimensions that do not turn.
    """
    pairs, axis = cos.shape[-1], x.ndim - 1

    def taken(start: int, end: int) -> Array:
        return lax.slice(x, (0,) * axis + (start,), (*x.shape[:axis], end))

    first, second = taken(0, pairs), taken(pairs, 2 * pairs)
    parts = [first * cos - second * sin, second * cos + first * sin]
    if x.shape[axis] > 2 * pairs:
        parts.append(taken(2 * pairs, x.shape[axis]) * factor)
    return lax.concatenate(parts, axis)


def capped(plan: Plan, products: Array) -> tuple[Array, Array | None]:
    """Returns soft-capped products and their derivative; None where there is no cap.

    The hyperbolic tangent is made of an exponential: the fast instruction for it has 11 bits.
    """
    cap = plan.settings.soft_cap
    if cap is None:
        return products, None
    bent = 1 - 2 / (1 + jnp.exp2(products * (2 * LOG2E / cap)))
    return cap * bent, (1 - bent) * (1 + bent)  # near 1 a square loses what is left


def logits(products: Array, slope: Array, key: Array, place: Place) -> Array:
    """Returns the logits of a tile that is seen whole and whose strip is zero.

    Args:
      products: capped `q.k`.
      slope: of the head, in units of ln 2.
      key: each entry's key, counted from the tile's first; int32.
      place: of the tile.
    """
    line = key.astype(jnp.float32) * slope + slope * place.distance.astype(jnp.float32)
    return products * LOG2E + line


def written(
    plan: Plan,
    t: Array,
    query: Array,
    key: Array,
    place: Place,
    same: Array | None,
    strip: Callable[[Array], Array] | None,
    columns: int,
) -> Array:
    """Returns the logits of any tile: with its strip, and hidden where a key is not seen.

    Args:
      plan: of the call.
      t: what `logits` returns.
      query: each entry's query, counted from the tile's first; int32.
      key: each entry's key.
      place: of the tile.
      same: whether query and key are of one segment; None where all are.
      strip: returns the strip's values at offsets from `-MARGIN` to the reach and `MARGIN`; None where it is constant.
      columns: keys of the tile.
    """
    first = place.inside - place.distance
    offset = query - key + first
    seen = offset >= 0
    if plan.settings.window is not None:
        seen &= offset < plan.settings.window
    if plan.keys % TILE:
        seen &= key < place.left
    if same is not None:
        seen &= same
    if strip is not None:
        read = strip
        near = (first < plan.reach + columns - 1) & (first > -TILE)
        t = lax.cond(near, lambda: t + read(offset), lambda: t)
    return jnp.where(seen, t, HIDDEN)


def meet_keys(t: Array, top: Array, total: Array) -> tuple[Array, Array, Array, Array]:
    """Returns weights, what sums so far are kept by, the new largest logit, and the sum without the new weights."""
    now = jnp.maximum(top, t.max(axis=1))
    kept = jnp.exp2(top - now)
    return jnp.exp2(t - by_row(now, t.shape)), kept, now, total * kept


def finish(top: Array, total: Array) -> tuple[Array, Array]:
    """Returns what mixed values are multiplied by, and log-sum-exps in nats."""
    some = total > 0
    whole = jnp.where(some, total, 1.0)
    return 1 / whole, jnp.where(some, top * (1 / LOG2E) + jnp.log(whole), NOTHING)


def gradient(t: Array, lse: Array, d_weights: Array, delta: Array) -> tuple[Array, Array]:
    """Returns weights and the gradient of the logits; `lse` in units of ln 2."""
    weights = jnp.exp2(t - lse)
    return weights, weights * (d_weights - delta)


def slope_gradient(d_logits: Array, key: Array, place: Place, inside: Array) -> Array:
    """Returns each row's part of the gradient of the slope, `sum of dS (j - i)`.

    Counted from the query itself, `inside` being its slot in the tile of `TILE`: the gradients of a row sum to little,
    and what rounding leaves of that sum would be multiplied by as much as the tile is long.
    """
    moment = (d_logits * (key + place.distance).astype(jnp.float32)).sum(axis=1)
    return moment - inside * d_logits.sum(axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the kernels read besides the cotangents; tokens in whole tiles, heads padded to a multiple of 64.

    Attributes:
      q: turned, scaled queries `[B, N, H, d]`; as they came where a kernel is given a `Turn`.
      k: turned keys `[B, S, K, d]`.
      v: values `[B, S, K, d]`.
      slopes: `[B, H]`.
      strip: `[B, H, 2M + 1]`, less its last entry.
      sinks: `[B, H, N]`, in the frame of each query's tile; `NOTHING` where there are none.
    """

    q: Array
    k: Array
    v: Array
    slopes: Array
    strip: Array
    sinks: Array


class Turn(NamedTuple):
    """What the kernels turn one side by."""

    cos: Array  # [B, N, P], times the factor
    sin: Array  # [B, N, P], times the factor
    factor: Array  # [B]


class Cotangents(NamedTuple):
    """What comes back, `[B, N, H, d]` and `[B, H, N]`; and the log-sum-exps in units of ln 2, in the frame."""

    out: Array
    delta: Array
    lse: Array


class Slots(NamedTuple):
    """Where tokens stand, as the kernels read it."""

    base: Array  # [B], position of the first query less that of the first key
    q_segments: Array  # [B, N]; negative ones differ from those of keys
    k_segments: Array  # [B, S]


def near_tiles(plan: Plan) -> int:
    """Returns for how many offsets of tiles, a tile apart, some entry of the strip is not the last one."""
    return -(-(plan.reach + TILE) // TILE) + 1


def wide_strip(plan: Plan, strip: Array) -> Array:
    """Returns the strip from offset `-MARGIN` to the reach and `MARGIN`, so that no offset of a near tile is cut."""
    offsets = jnp.arange(-MARGIN, plan.reach + MARGIN)
    return jnp.take(strip, jnp.clip(offsets, -plan.reach, plan.reach) + plan.reach, axis=-1)
