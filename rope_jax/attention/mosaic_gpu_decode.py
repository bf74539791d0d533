"""Few queries against a long cache on a Hopper GPU: its tiles are shared out, and what the parts found is merged.

All queries of a key head are the rows of one tile. Each of `splits` blocks of the GPU reads a run of tiles of keys, as
fast as memory gives them, and leaves an output and a log-sum-exp.

Axes: B batch, K key heads, R rows, query heads of a key head by queries, `ROWS` with what fills them up; S slots.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32

from rope_jax import rotation
from rope_jax.attention import machine
from rope_jax.attention.call import NOTHING, Settings, Tokens, visible
from rope_jax.attention.logits import capped
from rope_jax.attention.mosaic_gpu_inputs import UNSEEN_KEY, UNSEEN_QUERY, from_far, segments
from rope_jax.attention.mosaic_gpu_tile import HIDDEN, LOG2E
from rope_jax.attention.operands import Operands, varying_axes

ROWS, COLUMNS = 64, 64  # of a tile: queries of one key head, and slots
_CORES = 132  # of an H100, where a device does not say
_LARGEST_DIM = 256


class Rows(NamedTuple):
    """What is known of the queries of a key head; `[B, ROWS]` where heads share it, else `[B, K, ROWS]`."""

    positions: Array  # [B, ROWS]
    segments: Array  # [B, ROWS]
    slopes: Array  # [B, K, ROWS], in units of ln 2
    head: Array  # [ROWS], query head of the key head; where its strip begins


class Slots(NamedTuple):
    """What is known of the cache's slots, in whole tiles."""

    positions: Array  # [B, S]
    segments: Array  # [B, S]
    holes: Array  # [B, tiles], 1 where a slot holds nothing, and may hold NaN
    near: Array  # [B, tiles], 1 where a tile may need the strip
    spans: Array  # [B, splits, 2], first tile and end of each part


class Plan(NamedTuple):
    """The static side of a call; hashable."""

    settings: Settings
    groups: int
    reach: int
    splits: int
    rows: int  # that are written out, a multiple of 8


def kernel_for(operands: Operands, settings: Settings) -> Callable[..., tuple[Array, Array]] | None:
    """Returns the kernel for a call over a cache whose slots are last; None where it cannot serve."""
    if machine.hopper_lacks() or cannot(operands, settings):
        return None
    from rope_jax.attention import mosaic_gpu_decode_kernel  # what it imports differs from version to version

    return mosaic_gpu_decode_kernel.parts


def cannot(operands: Operands, settings: Settings) -> str | None:
    """Returns why the kernel cannot serve a call, on whatever machine; None where it can."""
    _, few, heads, dim = operands.q.shape
    kv_heads, slots, v_dim = operands.v.shape[1:]
    if any(x.dtype != jnp.bfloat16 for x in (operands.q, operands.k, operands.v)):
        return "it takes queries and a cache of bfloat16"
    if operands.k_turn[0].size:
        return "it takes keys that are rotated already"
    if not settings.causal:
        return "it is of causal attention"
    if heads // kv_heads * few > ROWS:
        return f"it takes {ROWS} queries of a key head"
    if dim % 64 or v_dim % 64 or max(dim, v_dim) > _LARGEST_DIM or slots % COLUMNS:
        return f"it takes heads of a multiple of 64, up to {_LARGEST_DIM}, and slots of a multiple of {COLUMNS}"
    if varying_axes(operands):
        return "inside jax.shard_map it needs check_vma=False"
    return None


def forward(
    operands: Operands,
    queries: Tokens,
    keys: Tokens,
    settings: Settings,
    layout: rotation.Layout,
    kernel: Callable[..., tuple[Array, Array]],
) -> tuple[Float32[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns outputs and log-sum-exps.

    Args:
      operands: of the call; keys `[B, K, d, S]`, rotated, and values `[B, K, S, e]`.
      queries: where they stand.
      keys: where the slots stand.
      settings: of the call.
      layout: of the rotary pairs.
      kernel: what goes along the parts: `mosaic_gpu_decode_kernel.parts`.
    """
    batch, few, heads, _ = operands.q.shape
    kv_heads, slots, _ = operands.v.shape[1:]
    groups = heads // kv_heads
    missing = -slots % COLUMNS
    if missing:  # a copy of the cache, which `cannot` spares callers
        last = lambda x, axis, fill=0: jnp.pad(  # noqa: E731
            x, [(0, missing * (at == axis)) for at in range(x.ndim)], constant_values=fill
        )
        operands = operands._replace(k=last(operands.k, 3), v=last(operands.v, 2))
        keys = Tokens(last(keys.positions, 1), last(segments(keys, UNSEEN_KEY), 1, UNSEEN_KEY))
        slots += missing
    plan = Plan(
        settings=settings,
        groups=groups,
        reach=operands.strip.shape[-1] // 2,
        splits=max(1, min(_cores() // (batch * kv_heads), slots // COLUMNS)),
        rows=-(-groups * few // 8) * 8,
    )
    scale = (operands.scale * settings.scale)[:, None, None, None]
    q = rotation.rotate(operands.q.astype(jnp.float32) * scale, *operands.q_turn, layout=layout)

    def by_row(x: Array, fill=0) -> Array:
        """Takes `[B, N, H, ..]` to `[B, K, ROWS, ..]`."""
        x = jnp.moveaxis(x.reshape(batch, few, kv_heads, groups, *x.shape[3:]), 1, 3)
        x = x.reshape(batch, kv_heads, groups * few, *x.shape[4:])
        return jnp.pad(x, ((0, 0), (0, 0), (0, ROWS - groups * few), *((0, 0),) * (x.ndim - 3)), constant_values=fill)

    def of_queries(x: Array, fill: int) -> Array:
        return by_row(jnp.broadcast_to(x[:, :, None], (batch, few, heads)), fill)[:, 0]

    slopes = jnp.broadcast_to(operands.slopes[:, None], (batch, few, heads)).astype(jnp.float32)
    head = jnp.minimum(jnp.arange(ROWS, dtype=jnp.int32) // few, groups - 1)
    rows = Rows(
        positions=of_queries(queries.positions, 0),
        segments=of_queries(segments(queries, UNSEEN_QUERY), UNSEEN_QUERY),
        slopes=by_row(slopes) * LOG2E,
        head=head,
    )
    strip, lacks = from_far(operands.strip, plan.reach)
    strip = strip[..., plan.reach :].reshape(-1) * LOG2E
    out, lse = kernel(
        plan, by_row(q).astype(operands.k.dtype), operands.k, operands.v, rows, _slots(plan, queries, keys), strip
    )
    # [B, K, splits, R, ..]: parts, and a sink as one of its own that adds no value.
    lse = lse[..., : groups * few].reshape(*lse.shape[:3], groups, few)
    lse = jnp.where(lse > NOTHING, lse + lacks.reshape(batch, kv_heads, 1, groups, 1), NOTHING)
    sinks = operands.sinks.reshape(batch, kv_heads, 1, groups, 1)
    top = jnp.maximum(lse.max(axis=2, keepdims=True), sinks)
    some = top > NOTHING
    weights = jnp.where(lse > NOTHING, jnp.exp(lse - top), 0.0)
    total = weights.sum(axis=2, keepdims=True) + jnp.where(sinks > NOTHING, jnp.exp(sinks - top), 0.0)
    total = jnp.where(some, total, 1.0)
    out = out[..., : groups * few, :].reshape(*lse.shape, -1)
    mixed = jnp.sum(out * (weights / total)[..., None], axis=2)  # [B, K, G, N, e]
    lse = jnp.where(some, top + jnp.log(total), NOTHING)[:, :, 0]
    out = jnp.moveaxis(mixed, 3, 1).reshape(batch, few, heads, -1)
    return out, jnp.moveaxis(lse, 3, 1).reshape(batch, few, heads)


def _slots(plan: Plan, queries: Tokens, keys: Tokens) -> Slots:
    """Returns what is known of the slots, and the tiles of each part; all that any query sees lie in some part."""
    batch, slots = keys.positions.shape
    tiles = slots // COLUMNS
    seen = visible(queries, keys, causal=True, window=plan.settings.window).any(axis=1)
    near = visible(queries, keys, causal=True, window=max(plan.reach, 1)).any(axis=1)
    by_tile = lambda x: x.reshape(batch, tiles, COLUMNS).any(axis=-1)  # noqa: E731
    seen, near = by_tile(seen), by_tile(near) if plan.reach else jnp.zeros((batch, tiles), bool)
    some = seen.any(axis=1)
    first = jnp.where(some, jnp.argmax(seen, axis=1), 0)
    end = jnp.where(some, tiles - jnp.argmax(seen[:, ::-1], axis=1), 0)
    part = -(-(end - first) // plan.splits)
    begin = jnp.minimum(first[:, None] + jnp.arange(plan.splits)[None] * part[:, None], end[:, None])
    spans = jnp.stack([begin, jnp.minimum(begin + part[:, None], end[:, None])], axis=-1).astype(jnp.int32)
    of_keys = segments(keys, UNSEEN_KEY)
    holes = by_tile(of_keys < 0)
    return Slots(keys.positions, of_keys, holes.astype(jnp.int32), near.astype(jnp.int32), spans)


def logits(
    plan: Plan,
    products: Array,
    offset: Array,
    same: Array,
    slopes: Array,
    near: Array,
    strip: Callable[[Array], Array] | None,
) -> Array:
    """Returns the logits of a tile in units of ln 2, hidden where a slot is not seen.

    Args:
      plan: of the call.
      products: `q.k`, scaled.
      offset: of each entry, `i - j`.
      same: whether query and slot are of one segment.
      slopes: of each entry's row, in units of ln 2.
      near: whether the tile may need the strip.
      strip: returns the strip's values at offsets from 0 to the reach, less the last one; None where it is constant.
    """
    t = capped(products, plan.settings.soft_cap)[0] * LOG2E - slopes * offset.astype(jnp.float32)
    seen = same & (offset >= 0)
    if plan.settings.window is not None:
        seen &= offset < plan.settings.window
    if strip is not None:
        read = strip
        at = lax.max(lax.min(offset, jnp.int32(plan.reach)), jnp.int32(0))
        t = lax.cond(near, lambda: t + read(at), lambda: t)
    return jnp.where(seen, t, HIDDEN)


@functools.cache
def _cores() -> int:
    return getattr(jax.devices()[0], "core_count", _CORES)
