"""Attention as a TPU kernel: rotation, biases and masks are worked out in the tile; memory grows with the tokens.

Here a call is brought into the kernels' form: heads before tokens, whole tiles, and what is known of each tile as
integers (`pallas_tpu_tile`); the two directions are `pallas_tpu_forward` and `pallas_tpu_backward`.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from rope_jax.attention.call import NOTHING, Settings, Tokens, without_padding
from rope_jax.attention.operands import middle, turns_from, turns_of_fixed
from rope_jax.attention.pallas_tpu_backward import backward
from rope_jax.attention.pallas_tpu_forward import forward
from rope_jax.attention.pallas_tpu_tile import LANES, Extent, Layout, Operands, Plan, meet
from rope_jax.attention.tiles import Tiles, aligned, cut
from rope_jax.scheme import Scheme

_DTYPES = (jnp.float32, jnp.bfloat16)


def attend(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    sinks: Float[Array, " heads"] | None,
    queries: Tokens,
    keys: Tokens,
    settings: Settings,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns outputs and log-sum-exps; arguments as in `rope_jax.attention.attention`.

    Raises:
      NotImplementedError: without a TPU, or for what `attend_with` does not take.
    """
    if jax.default_backend() != "tpu":
        raise NotImplementedError(f"the TPU kernel needs a TPU, the default backend is {jax.default_backend()}")
    return attend_with(q, k, v, scheme, sinks, queries, keys, settings)


def attend_with(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    sinks: Float[Array, " heads"] | None,
    queries: Tokens,
    keys: Tokens,
    settings: Settings,
    *,
    tile: tuple[int, int] = (1024, 512),
    interpret: bool = False,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns what `attend` does, whatever the default backend: for tests, and to compile ahead of time.

    Args:
      q: queries; the rest as in `attend`.
      tile: queries and keys of a tile, multiples of 128; cut to what the call holds.
      interpret: whether to run on any platform, slowly.

    Raises:
      NotImplementedError: for dtypes other than float32 and bfloat16.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in _DTYPES:
            raise NotImplementedError(f"the TPU kernel takes float32 and bfloat16, {name} is {x.dtype}")
    if 0 in (*q.shape, *k.shape, *v.shape):
        raise NotImplementedError("the TPU kernel takes no empty arrays")
    shared = jnp.promote_types(q.dtype, k.dtype)
    pairs = scheme.rotary_dim // 2
    size_q, size_k = (min(size, _whole(x.shape[1], LANES)) for size, x in zip(tile, (q, k), strict=True))
    plan = Plan(settings, size_q, size_k, q.shape[2] // k.shape[2], pairs, scheme.max_offset, interpret)
    q, k, v = without_padding(q, queries), without_padding(k, keys), without_padding(v, keys)
    if scheme.layout == "interleaved":
        q, k = _halves(q, pairs), _halves(k, pairs)
    place = middle(queries, keys)
    operands = Operands(
        q=_heads_first(q.astype(shared), size_q),
        k=_heads_first(k.astype(shared), size_k),
        v=_heads_first(v, size_k),
        q_turn=_turns(scheme, queries, place, size_q),
        k_turn=_turns(scheme, keys, place, size_k),
        table=_table(scheme, sinks, plan),
    )
    out, lse = _attention(plan, operands, _layout(queries, keys, plan))
    count = q.shape[1]
    return jnp.swapaxes(out[:, :, :count], 1, 2), jnp.swapaxes(lse[:, :, 0, :count], 1, 2)


def _whole(count: int, size: int) -> int:
    return -(-count // size) * size


def _halves(x: Array, pairs: int) -> Array:
    """Reorders interleaved pairs into halves; done to queries and keys alike, it leaves their products alone."""
    turning = x[..., : 2 * pairs].reshape(*x.shape[:-1], pairs, 2)
    turning = jnp.swapaxes(turning, -1, -2).reshape(*x.shape[:-1], 2 * pairs)
    return jnp.concatenate([turning, x[..., 2 * pairs :]], axis=-1)


def _heads_first(x: Array, size: int) -> Array:
    return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % size), (0, 0)))


def _turns(scheme: Scheme, tokens: Tokens, place: Array, size: int) -> Array:
    """Returns cos and sin; what reaches the inverse frequencies is counted from a place, as only offsets matter."""
    if scheme.rotary_dim == 0:
        return jnp.zeros((1, 8, LANES), jnp.float32)
    turn = turns_of_fixed(scheme, tokens)
    batch, _, pairs = turn[0].shape
    frequencies = jnp.broadcast_to(scheme.inverse_frequencies, (batch, pairs))
    both = jnp.concatenate(turns_from(place, turn, frequencies, tokens.positions), axis=-1)
    return jnp.pad(both, ((0, 0), (0, -both.shape[1] % size), (0, 0)))


def _table(scheme: Scheme, sinks: Array | None, plan: Plan) -> Array:
    """Returns each head's numbers in one row, the strip from the largest offset to the smallest."""
    heads = scheme.num_heads
    slopes = scheme.slopes.reshape(-1, heads)
    scale = plan.settings.scale * jnp.broadcast_to(scheme.logit_scale.reshape(-1, 1), slopes.shape)
    sink = jnp.full((heads,), NOTHING) if sinks is None else jnp.maximum(sinks, NOTHING)
    sink = jnp.broadcast_to(sink[None], slopes.shape)
    strip = jnp.flip(scheme.offset_bias.reshape(-1, heads, 2 * plan.reach + 1), axis=-1)
    before, behind = plan.centre - plan.reach, plan.centre + LANES - plan.reach - 1
    strip = jnp.pad(strip, ((0, 0), (0, 0), (before, behind)), mode="edge")
    numbers = [jnp.broadcast_to(x.astype(jnp.float32)[..., None], (*x.shape, LANES)) for x in (slopes, sink, scale)]
    return jnp.concatenate([*numbers, strip], axis=-1)[:, :, None, :]


def _layout(queries: Tokens, keys: Tokens, plan: Plan) -> Layout:
    q_tiles = jax.vmap(lambda tokens: cut(tokens, plan.queries))(queries)
    k_tiles = jax.vmap(lambda tokens: cut(tokens, plan.keys))(keys)
    q_extent, k_extent = _extent(q_tiles), _extent(k_tiles)
    sees = meet(
        Extent(*(x[:, :, None] for x in q_extent)),
        Extent(*(x[:, None, :] for x in k_extent)),
        plan.settings,
        plan.reach,
    ).sees
    q_span, q_steps = _span(sees)
    k_span, k_steps = _span(jnp.swapaxes(sees, 1, 2))
    return Layout(
        q_marks=_marks(q_tiles, -1),
        k_marks=_marks(k_tiles, -2),
        q_info=jnp.stack(q_extent, axis=-1).reshape(-1),
        k_info=jnp.stack(k_extent, axis=-1).reshape(-1),
        q_span=q_span,
        k_span=k_span,
        aligned=aligned(queries, keys).astype(jnp.int32),
        q_steps=q_steps,
        k_steps=k_steps,
    )


def _extent(tiles: Tiles) -> Extent:
    flags = (tiles.first, tiles.last, tiles.low, tiles.high, tiles.some, tiles.full, tiles.contiguous)
    return Extent(*(x.astype(jnp.int32) for x in (*flags, tiles.positions[:, :, 0])))


def _marks(tiles: Tiles, hidden: int) -> Array:
    """Returns positions and segments, negative ones as a number that the other side does not use."""
    segments = jnp.where(tiles.segments < 0, hidden, tiles.segments)
    return jnp.stack([x.reshape(x.shape[0], -1) for x in (tiles.positions, segments)], axis=1)


def _span(sees: Array) -> tuple[Array, Array]:
    count = sees.shape[-1]
    some = sees.any(axis=-1)
    first = jnp.where(some, jnp.argmax(sees, axis=-1), 0)
    last = jnp.where(some, count - 1 - jnp.argmax(jnp.flip(sees, axis=-1), axis=-1), -1)
    steps = jnp.maximum(jnp.max(last - first) + 1, 1).astype(jnp.int32)
    spans = jnp.stack([first, last], axis=-1).reshape(-1).astype(jnp.int32)
    return jnp.append(spans, steps), steps


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, operands: Operands, layout: Layout) -> tuple[Array, Array]:
    return forward(plan, operands, layout)


def _attention_forward(plan: Plan, operands: Operands, layout: Layout):
    out, lse = forward(plan, operands, layout)
    return (out, lse), (operands, layout, out, lse)


def _attention_backward(plan: Plan, residuals, cotangents):
    return backward(plan, *residuals, *cotangents), None


_attention.defvjp(_attention_forward, _attention_backward)
