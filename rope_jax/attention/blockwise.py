"""Attention tile by tile with an online softmax: pure JAX, any platform, memory of a tile beside inputs and outputs.

Tiles of queries go along the keys one by one while they must tell keys apart, near the diagonal; what lies far is plain
for several of them, and these go on together, as one block that fills the cores better.

Axes: B batch, N queries, S keys, K key heads, G query heads to a key head, R = G * (queries of a tile) rows,
C keys of a tile, d head dimension, e value dimension, P rotary pairs.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from rope_jax import rotation
from rope_jax.attention import blockwise_backward, blockwise_wide, machine
from rope_jax.attention.call import NOTHING, Settings, Tokens
from rope_jax.attention.heads import Results, each_head
from rope_jax.attention.logits import Side
from rope_jax.attention.online_softmax import MARGIN, Head, Rows, Sums, along
from rope_jax.attention.operands import (
    Asked,
    Operands,
    Plan,
    Row,
    from_tiles,
    in_tiles,
    logit_bounds,
    operands_of,
    prepare,
    primals,
    turned_tiles,
    vary_together,
    with_zeros,
)
from rope_jax.scheme import Scheme

BLOCK = 2  # tiles of queries that go along far keys together, on a CPU


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
    """Returns outputs and log-sum-exps; arguments as in `rope_jax.attention.attention`."""
    operands = operands_of(q, k, v, scheme, sinks, queries, keys)
    operands, queries, keys = vary_together((operands, queries, keys))
    return differentiable(operands, queries, keys, settings, scheme.layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def differentiable(
    operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, layout: rotation.Layout
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns what `forward` does, outputs in the dtype of the values, with a backward pass of the same memory."""
    out, lse = forward(operands, queries, keys, settings, layout)
    return out.astype(operands.v.dtype), lse


def _forward_rule(operands, queries, keys, settings, layout):
    # A tuple is either there or not, while a flag among the residuals would be traced.
    asked = tuple(() if getattr(operands, name).perturbed else None for name in Asked._fields)
    operands, queries, keys = primals((operands, queries, keys))
    out, lse, correction = _with_correction(operands, queries, keys, settings, layout)
    # The backward pass is given cotangents as narrow as what it returned, and float32 outputs.
    return (out.astype(operands.v.dtype), lse), (operands, queries, keys, out, lse, correction, asked)


def _backward_rule(settings, layout, residuals, cotangents):
    operands, queries, keys, out, lse, correction, asked = residuals
    asked = Asked(*(x is not None for x in asked))
    of_out, of_lse = cotangents
    cotangents = with_zeros(of_out, out).astype(operands.v.dtype), with_zeros(of_lse, lse)
    gradients = blockwise_backward.backward(
        operands, queries, keys, out, lse, *cotangents, settings, layout, correction=correction, asked=asked
    )
    return gradients, None, None


differentiable.defvjp(_forward_rule, _backward_rule, symbolic_zeros=True)


def forward(
    operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, layout: rotation.Layout
) -> tuple[Float32[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns float32 outputs and log-sum-exps."""
    out, lse, _ = _with_correction(operands, queries, keys, settings, layout)
    return out, lse


def _with_correction(
    operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, layout: rotation.Layout
) -> tuple[
    Float32[Array, "batch queries heads v_dim"],
    Float32[Array, "batch queries heads"],
    Float32[Array, "batch queries heads"],
]:
    """Returns outputs, log-sum-exps, and what weights taken from these must be multiplied by.

    A log-sum-exp of 10 is rounded to 5e-7, and every weight of its row would be off by as much.
    """
    if machine.heads_at_once():
        return blockwise_wide.forward(operands, queries, keys, settings, layout)
    by_token, by_head, row, plan = prepare(operands, queries, keys, settings, block=BLOCK)
    of_head = functools.partial(_forward_head, settings=settings, layout=layout, plan=plan)
    shape = by_token[0].shape[:-1]  # [B, N, K, G]
    zeros = Results(by_token=(row.zeros(*shape, operands.v.shape[-1]), row.zeros(*shape), row.zeros(*shape)))
    out, lse, correction = each_head(of_head, by_token, by_head, row, zeros).by_token
    heads = operands.q.shape[:3]
    return out.reshape(*heads, -1), lse.reshape(heads), correction.reshape(heads)


def _forward_head(by_token, by_head, row: Row, *, settings: Settings, layout, plan: Plan) -> Results:
    """Returns outputs `[N, G, e]`, log-sum-exps and corrections `[N, G]` of one key head."""
    (q, k, v), (slopes, strip, sinks) = by_token, by_head
    tokens, groups, _ = q.shape
    tiles, pairs = row.queries, row.pairs
    q_tiles = turned_tiles(q.astype(jnp.float32) * row.scale, row.q_turn, layout, plan.rows, plan.block)
    k_tiles = turned_tiles(k[:, None], row.k_turn, layout, plan.columns)
    v_tiles = in_tiles(v[:, None], plan.columns).astype(jnp.float32)
    bounds = logit_bounds(q_tiles, k_tiles, slopes, strip, pairs, settings)
    v_sizes = jnp.abs(v_tiles.astype(jnp.float32)).max(axis=(1, 2))
    head = Head(jnp.swapaxes(k_tiles, 1, 2), v_tiles, v_sizes, slopes, strip, row)
    rows = Rows(
        q=q_tiles,
        positions=tiles.positions,
        held=tiles.segments >= 0,
        wanted=pairs.sees,
        plain=pairs.plain,
        nearest=pairs.nearest,
        bounds=jnp.moveaxis(bounds, 0, 1),
    )
    sides = Side(tiles.positions, tiles.segments, tiles.contiguous, jnp.ones_like(tiles.first))
    reference = jnp.broadcast_to(sinks[:, None], (groups, plan.rows)).reshape(-1)
    start = Sums(reference, jnp.where(reference > NOTHING, 1.0, 0.0), row.zeros(groups * plan.rows, v.shape[-1]))

    def of_tile(tile: tuple[Rows, Side], beyond: Array | None = None) -> Sums:
        """Returns the sums of a tile after all tiles of keys, or after those that are not left for later."""
        rows, side = tile
        general = lambda j, sums: head.meet(rows.q, side, j, sums, settings)  # noqa: E731
        count = rows.wanted.sum(dtype=jnp.int32)
        if beyond is None and rows.wanted.shape[0] == 1:
            return general(jnp.int32(0), start)
        if beyond is not None:
            rows = rows._replace(wanted=rows.wanted & ~beyond)
        return along(rows, start, head, settings, general, count_all=count, first=True)

    def of_block(block: tuple[Rows, Side]) -> Sums:
        """Returns the sums of several tiles, `[tiles, R]`."""
        rows, sides = block
        count = rows.wanted.sum(axis=1, dtype=jnp.int32).max()
        together = _together(rows, row)
        sums = jax.lax.map(functools.partial(of_tile, beyond=together.wanted), block)

        def general(j, sums: Sums) -> Sums:
            of_one = lambda x: head.meet(x[0], x[1], j, x[2], settings)  # noqa: E731
            return _merged(jax.lax.map(of_one, (rows.q, sides, _split(sums, groups, plan.block))), groups)

        sums = along(together, _merged(sums, groups), head, settings, general, count_all=count, first=False)
        return _split(sums, groups, plan.block)

    if plan.block == 1:
        sums = jax.lax.map(of_tile, (rows, sides))
    else:
        by_block = lambda x: x.reshape(-1, plan.block, *x.shape[1:])  # noqa: E731
        sums = jax.lax.map(of_block, jax.tree.map(by_block, (rows, sides)))
        sums = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), sums)
    some = sums.weight > 0
    weight = jnp.where(some, sums.weight, 1.0)
    lse = jnp.where(some, sums.reference + jnp.log(weight), NOTHING)
    above = jnp.minimum(lse - sums.reference, 2 * MARGIN)  # at most e^MARGIN for each of fewer keys than e^MARGIN
    correction = jnp.where(some, jnp.exp(above) / weight, 1.0)
    results = sums.mixed / weight[..., None], lse, correction
    return Results(by_token=tuple(from_tiles(x, groups, tokens) for x in results))


def _together(rows: Rows, row: Row) -> Rows:
    """Returns the rows of a block of tiles as one, which wants the tiles of keys that are plain for all of them."""
    ahead = row.keys.last[None, :] > rows.positions.min(axis=1)[:, None]
    common = rows.plain.all(axis=0) & (ahead.all(axis=0) | ~ahead.any(axis=0))
    return Rows(
        q=_merged(rows.q, rows.bounds.shape[1]),
        positions=rows.positions.reshape(-1),
        held=rows.held.reshape(-1),
        wanted=common,
        plain=common,
        nearest=rows.nearest.min(axis=0),
        bounds=rows.bounds.max(axis=0),
    )


def _merged(sums, groups: int):
    """Returns arrays `[tiles, R, ..]` as those of one tile, its rows head by head."""

    def of_array(x: Array) -> Array:
        x = jnp.swapaxes(x.reshape(x.shape[0], groups, -1, *x.shape[2:]), 0, 1)
        return x.reshape(-1, *x.shape[3:])

    return jax.tree.map(of_array, sums)


def _split(sums, groups: int, tiles: int):
    """Returns what `_merged` was given."""

    def of_array(x: Array) -> Array:
        x = jnp.swapaxes(x.reshape(groups, tiles, -1, *x.shape[1:]), 0, 1)
        return x.reshape(tiles, -1, *x.shape[3:])

    return jax.tree.map(of_array, sums)
