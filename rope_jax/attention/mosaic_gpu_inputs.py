"""What the Hopper kernels are given: a call's arrays in whole tiles, its bias in the frame of each tile, and its turns.

Keys are turned before the kernels. Queries are turned as the forward kernel takes them up, and gradients turned back as
the backward kernels put them down, where `turnable`; elsewhere, and where a turn itself has a gradient, outside.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from rope_jax import rotation
from rope_jax.attention.call import NOTHING, Settings, Tokens
from rope_jax.attention.mosaic_gpu_tile import TILE, Plan, Sizes, Slots, Turn, turned
from rope_jax.attention.operands import Operands, middle, turns_from

UNSEEN_QUERY, UNSEEN_KEY = -1, -2  # segments of slots that hold nothing
_HIDES = 2e3  # nats between entries of a strip; more would hide no more, and round what is near alike
_TOGETHER = 8  # columns of a tile of registers; halves are taken apart between these


def plan_of(operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, sizes: Sizes) -> Plan:
    """Returns the static side of a call's kernels."""
    return Plan(
        settings=settings,
        groups=operands.q.shape[2] // operands.k.shape[2],
        keys=operands.k.shape[1],
        reach=operands.strip.shape[-1] // 2,
        segmented=queries.segments is not None or keys.segments is not None,
        sizes=sizes,
    )


def slots_of(base: Array, queries: Tokens, keys: Tokens) -> Slots:
    """Returns where tokens stand; `base` is what `mosaic_gpu_spans.in_slots` returns."""

    def padded(tokens: Tokens, unseen: int) -> Array:
        found = segments(tokens, unseen)
        return jnp.pad(found, ((0, 0), (0, -found.shape[1] % TILE)), constant_values=unseen)

    return Slots(base, padded(queries, UNSEEN_QUERY), padded(keys, UNSEEN_KEY))


def segments(tokens: Tokens, unseen: int) -> Int32[Array, "batch slots"]:
    """Returns the segment of each slot, 0 where a call has none, and `unseen` where a slot holds nothing."""
    found = jnp.zeros_like(tokens.positions) if tokens.segments is None else tokens.segments
    return jnp.where(found < 0, unseen, found)


def turnable(operands: Operands, layout: rotation.Layout) -> bool:
    """Returns whether the kernels can turn: halves, that begin where a tile of registers does."""
    pairs = operands.q_turn[0].shape[-1]
    return layout == "half" and pairs > 0 and pairs % _TOGETHER == 0


def query_turn(plan: Plan, operands: Operands) -> Turn:
    """Returns what the kernels turn and scale queries by, and what their gradients are turned back by."""
    scale = operands.scale * plan.settings.scale
    cos, sin = (in_tiles(x * scale[:, None, None]) for x in operands.q_turn)
    return Turn(cos, sin, scale)


def key_turn(operands: Operands) -> Turn:
    """Returns what the kernels turn gradients of keys back by."""
    cos, sin = map(in_tiles, operands.k_turn)
    return Turn(cos, sin, jnp.ones_like(operands.scale))


def tokens_of(
    plan: Plan, operands: Operands, queries: Tokens, keys: Tokens, layout: rotation.Layout, *, turn_queries: bool
) -> tuple[Array, Array, Array]:
    """Returns queries, keys and values in tiles, heads filled up to a multiple of 64; keys turned.

    What reaches the inverse frequencies is counted from the middle of the sequence, as only offsets matter.

    Args:
      plan: of the call.
      operands: of the call.
      queries: where they stand.
      keys: where they stand.
      layout: of the rotary pairs.
      turn_queries: whether queries are turned and scaled too.
    """
    dim = -(-max(operands.q.shape[-1], operands.v.shape[-1]) // 64) * 64
    place = middle(queries, keys)

    def on_side(
        x: Array, turn: tuple[Array, Array], positions: Array, factor: Array
    ) -> Float32[Array, "batch tokens heads dim"]:
        cos, sin = turns_from(place, turn, operands.frequencies, positions)
        if layout != "half" or cos.shape[-1] == 0:
            rotate = jax.vmap(functools.partial(rotation.rotate, layout=layout))
            return rotate(x.astype(jnp.float32), cos, sin) * factor[:, None, None, None]
        # In the order of the forward kernel, so that both round alike: weights made anew then sum to 1 too. On a GPU it
        # takes two thirds of the time of `rotate`, whose barrier this is.
        tables = (cos * factor[:, None, None], sin * factor[:, None, None])
        cos, sin = (table[:, :, None] for table in jax.lax.optimization_barrier(tables))
        return turned(x.astype(jnp.float32), cos, sin, factor[:, None, None, None])

    q = operands.q
    if turn_queries:
        q = on_side(q, operands.q_turn, queries.positions, operands.scale * plan.settings.scale)
    k = on_side(operands.k, operands.k_turn, keys.positions, jnp.ones_like(operands.scale))
    q, k, v = (in_tiles(x.astype(jnp.bfloat16), dim) for x in (q, k, operands.v))
    return q, k, v


def bias_of(
    plan: Plan, queries: int, slopes: Array, strip: Array, sinks: Array
) -> tuple[tuple[Array, Array, Array], Float32[Array, "batch heads queries"]]:
    """Returns slopes, strip and sinks as the kernels read them, and what a log-sum-exp in a tile's frame lacks.

    Args:
      plan: of the call.
      queries: of a sequence.
      slopes: `[batch, heads]`.
      strip: `[batch, heads, offsets]`.
      sinks: `[batch, heads]`.
    """
    counted, lacks = from_far(strip, plan.reach)
    inside = (jnp.arange(-(-queries // TILE) * TILE) % TILE).astype(jnp.float32)
    # What the slopes get through the kernels counts from each query, and holds all of their gradient.
    shift = lacks - jax.lax.stop_gradient(slopes)[..., None] * inside[None, None]
    sinks = jnp.where(sinks[..., None] > NOTHING, sinks[..., None] - shift, NOTHING)
    return (slopes, counted, sinks), shift


def from_far(strip: Float32[Array, "*shape offsets"], reach: int) -> tuple[Array, Float32[Array, "*shape 1"]]:
    """Returns a strip counted from its far entry, or where that hides keys by -1e9 from no farther than it takes.

    Beside it, what a logit made of it lacks.
    """
    highest = jax.lax.stop_gradient(strip[..., reach:].max(axis=-1, keepdims=True))
    above = jnp.minimum(highest - strip[..., -1:], _HIDES)
    return jnp.maximum(strip - highest, -_HIDES) + above, highest - above


def in_tiles(x: Float[Array, "batch tokens *heads dim"], dim: int = 0) -> Float[Array, "batch slots *heads wide"]:
    """Returns zeros after the tokens, up to whole tiles, and after the last dimension, up to `dim`."""
    last = max(dim - x.shape[-1], 0)
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % TILE), *((0, 0),) * (x.ndim - 3), (0, last)))
