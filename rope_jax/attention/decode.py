"""One or a few queries against a long key-value cache: the cache is read once, a chunk at a time.

A cache keeps its keys with the slots last, `[B, K, d, S]`: then a chunk turns by whole rows of slots, at next to no
cost beside reading it, and meets the queries as a plain product of matrices. Only the chunks from the first to the last
that a query sees are read: none that is still empty, and with a window few. On a Hopper GPU `mosaic_gpu_decode` reads
caches of rotated keys in bfloat16.

Axes: B batch, N queries, S slots of the cache, H heads, K key heads, G query heads to a key head, R = G * N rows,
C slots of a chunk, d head dimension, e value dimension, P rotary pairs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from rope_jax import rotation
from rope_jax.attention import blockwise_backward, mosaic_gpu_decode
from rope_jax.attention.call import NOTHING, Settings, Tokens, offsets, visible, without_padding
from rope_jax.attention.logits import capped
from rope_jax.attention.machine import product_dtype
from rope_jax.attention.operands import Operands, turns_of_fixed, vary_together
from rope_jax.scheme import Scheme

QUERIES = 16  # a sequence; more are for blockwise
CHUNK = 4096  # slots of all sequences together that are worked on at once

Turn = tuple[Float32[Array, "batch pairs slots"], Float32[Array, "batch pairs slots"]]  # cos and sin


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
      NotImplementedError: if there are more than 16 queries a sequence.
    """
    _few(q)
    q_turn, k_turn = turns_of_fixed(scheme, queries), turns_of_fixed(scheme, keys)
    operands = Operands.of(without_padding(q, queries), k, v, scheme, sinks, q_turn, k_turn, scheme.inverse_frequencies)
    operands, queries, keys = vary_together((operands, queries, keys))
    out, lse = _differentiable(operands, queries, keys, settings, scheme.layout, False)
    return out.astype(v.dtype), lse


def over_cache(
    q: Float[Array, "batch queries heads dim"],
    keys: Float[Array, "batch kv_heads dim slots"],
    values: Float[Array, "batch kv_heads slots v_dim"],
    scheme: Scheme,
    sinks: Float[Array, " heads"] | None,
    queries: Tokens,
    slots: Tokens,
    settings: Settings,
    *,
    turn: Turn | None,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns what `attend` does, from a cache as `rope_jax.decoder.cache` lays it out.

    Args:
      q: queries, unrotated.
      keys: the cache's, with the slots last.
      values: the cache's.
      scheme: rotation of the queries, factors and bias.
      sinks: a logit for each head that takes weight and adds no value, or None.
      queries: where the queries stand.
      slots: where the cached tokens stand; what lies in a slot of a negative segment is never used, not even NaN.
      settings: the static side.
      turn: cos and sin at every slot, as `turn_of` makes them; None if the cached keys are rotated already.

    Raises:
      NotImplementedError: if there are more than 16 queries a sequence.
    """
    _few(q)
    frequencies = scheme.inverse_frequencies
    if turn is None:  # the keys stay as they are, and the queries' own positions count
        nothing = jnp.zeros((q.shape[0], 0, keys.shape[-1]), jnp.float32)
        turn, q_turn, frequencies = (nothing, nothing), scheme.cos_sin(queries.positions), frequencies[..., :0]
    else:
        q_turn = turns_of_fixed(scheme, queries)
    operands = Operands.of(without_padding(q, queries), keys, values, scheme, sinks, q_turn, turn, frequencies)
    operands, queries, slots = vary_together((operands, queries, slots))
    out, lse = _differentiable(operands, queries, slots, settings, scheme.layout, True)
    return out.astype(q.dtype), lse


def turn_of(scheme: Scheme, positions: Int[Array, "batch slots"]) -> Turn:
    """Returns cos and sin at every slot of a cache; the same for all layers of one scheme.

    The gradient to the inverse frequencies does not pass through them: `over_cache` gives it.
    """
    cos, sin = turns_of_fixed(scheme, Tokens(positions))
    return jnp.swapaxes(cos, 1, 2), jnp.swapaxes(sin, 1, 2)


def _few(q: Array) -> None:
    if q.shape[1] > QUERIES:
        raise NotImplementedError(f"decode takes at most {QUERIES} queries a sequence, got {q.shape[1]}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _differentiable(
    operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, layout: rotation.Layout, slots_last: bool
) -> tuple[Float32[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns outputs and log-sum-exps of operands whose keys are as a cache has them, or as a call has them."""
    return _forward(operands, queries, keys, settings, layout, slots_last)


def _forward_rule(operands, queries, keys, settings, layout, slots_last):
    out, lse = _forward(operands, queries, keys, settings, layout, slots_last)
    return (out, lse), (operands, queries, keys, out, lse)


def _backward_rule(settings, layout, slots_last, residuals, cotangents):
    operands, queries, keys, out, lse = residuals
    plain = _as_called(operands) if slots_last else operands
    plain = plain._replace(k=without_padding(plain.k, keys), v=without_padding(plain.v, keys))
    gradients = blockwise_backward.backward(plain, queries, keys, out, lse, *cotangents, settings, layout)
    return (_as_cached(gradients) if slots_last else gradients), None, None


_differentiable.defvjp(_forward_rule, _backward_rule)


def _as_called(operands: Operands) -> Operands:
    k, v = jnp.moveaxis(operands.k, 3, 1), jnp.moveaxis(operands.v, 2, 1)
    return operands._replace(k=k, v=v, k_turn=jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2), operands.k_turn))


def _as_cached(operands: Operands) -> Operands:
    k, v = jnp.moveaxis(operands.k, 1, 3), jnp.moveaxis(operands.v, 1, 2)
    return operands._replace(k=k, v=v, k_turn=jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2), operands.k_turn))


class _Sums(NamedTuple):
    """The rows on their way along the cache."""

    top: Array  # [B, K, G, N], largest logit so far
    weight: Array  # [B, K, G, N], sum of exp(logit - top)
    mixed: Array  # [B, K, R, e], the same sum over values


def _forward(operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, layout, slots_last: bool):
    kernel = mosaic_gpu_decode.kernel_for(operands, settings) if slots_last else None
    if kernel is not None:
        return mosaic_gpu_decode.forward(operands, queries, keys, settings, layout, kernel)
    batch, few, heads, _ = operands.q.shape
    chunk_of = _cached_chunk if slots_last else _called_chunk
    slots = keys.positions.shape[1]
    kv_heads = operands.k.shape[1 if slots_last else 2]
    groups = heads // kv_heads
    turns_keys = operands.k_turn[0].size > 0
    size = min(max(CHUNK // batch, 128), slots)
    dtype = product_dtype(operands.q, operands.k, operands.v)

    scale = (operands.scale * settings.scale)[:, None, None, None]
    rows = operands.q.astype(jnp.float32) * scale
    if turns_keys:  # the same order of dimensions as theirs
        cos, sin = operands.q_turn
        rows = _turned(rows, cos[:, :, None, :], sin[:, :, None, :], layout, axis=3)
    else:
        rows = rotation.rotate(rows, *operands.q_turn, layout=layout)
    rows = jnp.moveaxis(rows.reshape(batch, few, kv_heads, groups, -1), 1, 3)
    rows = rows.reshape(batch, kv_heads, groups * few, -1).astype(dtype)  # [B, K, R, d]
    shape = (batch, kv_heads, groups, few)

    mask = visible(queries, keys, causal=settings.causal, window=settings.window)
    seen_by_any = mask.any(axis=(0, 1))
    numbers = jnp.arange(slots, dtype=jnp.int32) // size
    begin = jnp.min(numbers, where=seen_by_any, initial=slots)
    end = jnp.max(numbers, where=seen_by_any, initial=-1) + 1

    def step(chunk: Array, sums: _Sums) -> _Sums:
        first = chunk * size
        start = jnp.minimum(first, slots - size)  # the last chunk may begin in the one before, whose slots then hide
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        hidden = (start + jnp.arange(size, dtype=jnp.int32) < first)[None, None, :]
        seen = cut(mask, axis=2) & ~hidden
        k, v = chunk_of(operands, cut)
        turn = (cut(x, axis=2 if slots_last else 1) for x in operands.k_turn)
        turn = (x if slots_last else jnp.swapaxes(x, 1, 2) for x in turn)
        cos, sin = (x[:, None] for x in turn)
        k = _turned(k.astype(jnp.float32), cos, sin, layout, axis=2).astype(dtype) if turns_keys else k.astype(dtype)
        if keys.segments is not None:  # zero times NaN is NaN
            v = jnp.where((cut(keys.segments, axis=1) >= 0)[:, None, :, None], v, 0)
        s = jnp.einsum("bkrd,bkdc->bkrc", rows, k, preferred_element_type=jnp.float32).reshape(*shape, size)
        s, _ = capped(s, settings.soft_cap)
        offset = offsets(queries.positions, cut(keys.positions, axis=1)).astype(jnp.int32)
        s = s + _bias(operands.slopes, operands.strip, offset, seen).reshape(*shape, -1)
        seen = seen[:, None, None]
        top = jnp.maximum(sums.top, jnp.where(seen, s, NOTHING).max(axis=-1))
        p = jnp.where(seen, jnp.exp(jnp.where(seen, s - top[..., None], 0.0)), 0.0)
        kept = jnp.exp(sums.top - top)
        mixed = jnp.einsum(
            "bkrc,bkce->bkre",
            p.reshape(batch, kv_heads, -1, size).astype(dtype),
            v.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        kept_rows = kept.reshape(batch, kv_heads, -1, 1)
        return _Sums(top, kept * sums.weight + p.sum(axis=-1), kept_rows * sums.mixed + mixed)

    # Zeros that vary over the same mesh axes as the operands: a loop's carry has one type throughout.
    origin = jnp.where(operands.scale == operands.scale, 0.0, 0.0).astype(jnp.float32)
    sinks = jnp.broadcast_to(operands.sinks.reshape(batch, kv_heads, groups, 1), shape)
    start = _Sums(
        sinks,
        jnp.where(sinks > NOTHING, 1.0, 0.0),
        jnp.broadcast_to(origin[:, None, None, None], (batch, kv_heads, groups * few, operands.v.shape[-1])),
    )
    zero = origin[0].astype(jnp.int32)
    sums = jax.lax.fori_loop(begin + zero, end + zero, step, start)
    some = sums.weight > 0
    weight = jnp.where(some, sums.weight, 1.0)
    out = sums.mixed / weight.reshape(batch, kv_heads, -1, 1)
    lse = jnp.where(some, sums.top + jnp.log(weight), NOTHING)
    out = jnp.moveaxis(out.reshape(*shape, -1), 3, 1).reshape(batch, few, heads, -1)
    return out, jnp.moveaxis(lse, 3, 1).reshape(batch, few, heads)


def _cached_chunk(operands: Operands, cut):
    return cut(operands.k, axis=3), cut(operands.v, axis=2)


def _called_chunk(operands: Operands, cut):
    return jnp.moveaxis(cut(operands.k, axis=1), 1, 3), jnp.moveaxis(cut(operands.v, axis=1), 1, 2)


def _turned(x: Float32[Array, "..."], cos: Array, sin: Array, layout: rotation.Layout, *, axis: int) -> Array:
    """Returns `x` with its pairs along `axis` turned, all first members before all second ones, then the rest."""
    pairs = cos.shape[axis]
    take = functools.partial(jax.lax.slice_in_dim, x, axis=axis)
    if layout == "half":
        first, second = take(0, pairs), take(pairs, 2 * pairs)
    else:
        first, second = take(0, 2 * pairs, stride=2), take(1, 2 * pairs, stride=2)
    parts = [first * cos - second * sin, second * cos + first * sin, take(2 * pairs, x.shape[axis])]
    return jnp.concatenate([part for part in parts if part.shape[axis]], axis=axis)


def _bias(
    slopes: Float32[Array, "batch heads"],
    strip: Float32[Array, "batch heads offsets"],
    offset: Int[Array, "batch queries slots"],
    seen: Bool[Array, "batch queries slots"],
) -> Float32[Array, "batch heads queries slots"]:
    """Returns the bias of a chunk; the strip is looked up only where an offset within it is seen."""
    line = -slopes[:, :, None, None] * jnp.abs(offset).astype(jnp.float32)[:, None]
    if strip.shape[-1] == 1:
        return line + strip[:, :, :, None]
    reach = strip.shape[-1] // 2

    def near():
        index = jnp.clip(offset, -reach, reach) + reach
        return jax.vmap(lambda strip, index: jnp.take(strip, index, axis=1))(strip, index)

    def far():
        return jnp.where(offset[:, None] > 0, strip[:, :, -1:, None], strip[:, :, :1, None])

    return line + jax.lax.cond(((jnp.abs(offset) < reach) & seen).any(), near, far)
