"""Attention as Hopper kernels: biases and masks are worked out in the tile; memory grows with the tokens.

The kernels count in slots: a query and a key are as far apart as their slots and one number a sequence. Where positions
jump otherwise, which is known at run time only, `blockwise` does the call, forward and backward.

Queries and keys are turned in float32 and rounded to bfloat16 once; products are of bfloat16, sums of float32.
`mosaic_gpu_inputs` is what the kernels are given, `mosaic_gpu_tile` the arithmetic of a tile, and `mosaic_gpu_spans`
says which tiles meet.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from rope_jax import rotation
from rope_jax.attention import blockwise, blockwise_backward, machine
from rope_jax.attention.call import NOTHING, Settings, Tokens, without_padding
from rope_jax.attention.logits import sum_diagonals
from rope_jax.attention.mosaic_gpu_inputs import (
    bias_of,
    in_tiles,
    key_turn,
    plan_of,
    query_turn,
    slots_of,
    tokens_of,
    turnable,
)
from rope_jax.attention.mosaic_gpu_spans import (
    Known,
    bounds,
    in_slots,
    known,
    least_lse,
    span,
    void_backward,
    void_forward,
)
from rope_jax.attention.mosaic_gpu_tile import LOG2E, TILE, Cotangents, Inputs, Plan, Sizes, Slots
from rope_jax.attention.operands import Operands, operands_of, primals, varying_axes, with_zeros
from rope_jax.scheme import Scheme

_LARGEST_DIM = 256
_NO_ROW = 1e30  # log-sum-exp of a slot that holds no query: all its weights are zero
_LARGEST_CAP = 1e4  # nats; float32 tells thousandths apart


class Call(NamedTuple):
    """The static side of a call; hashable."""

    settings: Settings
    layout: rotation.Layout
    sizes: Sizes
    kernels: Any  # a module or class with `forward`, `of_queries`, `of_keys` and `of_strip`


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
      NotImplementedError: without a Hopper GPU, or for what `attend_with` does not take.
    """
    lacks = machine.hopper_lacks()
    if lacks is not None:
        raise NotImplementedError(f"the Hopper kernels {lacks}")
    return attend_with(q, k, v, scheme, sinks, queries, keys, settings)


def candidates(dim: int) -> tuple[Sizes, ...]:
    """Returns the sizes worth a try for heads of `dim`; the first is the one that is used."""
    if dim > TILE:
        return (Sizes(keys=64),)
    return tuple(Sizes(128, stages, back) for stages, back in ((2, 2), (3, 2), (2, 3)))


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
    tiles: Sizes | None = None,
    kernels: Any = None,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns what `attend` does, whatever the default backend: for tests, and to compile ahead of time.

    Args:
      q: queries; the rest as in `attend`.
      tiles: sizes to use; the first of `candidates` where None.
      kernels: what runs the tiles; the Hopper kernels where None.

    Raises:
      NotImplementedError: for dtypes other than bfloat16, heads of more than 256, fewer than 128 queries, attention
        that is not causal, soft caps beyond 1e4, or, without `kernels`, inside a `jax.shard_map` that checks what
        varies, or with a version of jax that the kernels were not written for.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype != jnp.bfloat16:
            raise NotImplementedError(f"the Hopper kernels take bfloat16, {name} is {x.dtype}")
    if not settings.causal:
        raise NotImplementedError("the Hopper kernels are of causal attention")
    if settings.soft_cap is not None and settings.soft_cap > _LARGEST_CAP:
        raise NotImplementedError(
            f"the Hopper kernels take soft caps of up to {_LARGEST_CAP:g}, got {settings.soft_cap}"
        )
    if 0 in (*q.shape, *k.shape, *v.shape):
        raise NotImplementedError("the Hopper kernels take no empty arrays")
    if q.shape[1] < TILE:
        raise NotImplementedError(f"the Hopper kernels take {TILE} queries or more, got {q.shape[1]}")
    if kernels is None and varying_axes((q, k, v, scheme, sinks, queries, keys)):
        raise NotImplementedError("inside jax.shard_map the Hopper kernels need check_vma=False")
    dim = max(q.shape[3], v.shape[3])
    if dim > _LARGEST_DIM:
        raise NotImplementedError(f"the Hopper kernels take heads of up to {_LARGEST_DIM}, got {dim}")
    call = Call(settings, scheme.layout, tiles or candidates(dim)[0], kernels or _hopper())
    return _differentiable(operands_of(q, k, v, scheme, sinks, queries, keys), queries, keys, call)


@functools.cache
def _hopper() -> Any:
    lacks = machine.unwritten()
    if lacks is not None:
        raise NotImplementedError(f"the Hopper kernels {lacks}")
    from rope_jax.attention import mosaic_gpu_kernels  # what it imports differs from version to version

    return mosaic_gpu_kernels


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _differentiable(operands: Operands, queries: Tokens, keys: Tokens, call: Call) -> tuple[Array, Array]:
    return _forward(operands, queries, keys, call)


class Asked(NamedTuple):
    """Which gradients are asked for beside those of queries, keys and values; each empty, or None where it is not.

    A tuple is either there or not, while a flag among the residuals would be traced.
    """

    slopes: tuple | None
    strip: tuple | None
    turns: tuple | None  # of anything that queries and keys are turned or scaled by


def _forward_rule(operands, queries, keys, call):
    arguments = primals((operands, queries, keys))
    out, lse = _forward(*arguments, call)
    turning = operands.q_turn, operands.k_turn, operands.frequencies, operands.scale
    asked = (any(x.perturbed for x in jax.tree.leaves(parts)) for parts in (operands.slopes, operands.strip, turning))
    return (out, lse), (*arguments, out, lse, Asked(*(() if one else None for one in asked)))


def _backward_rule(call, residuals, cotangents):
    *residuals, asked = residuals
    out, lse = residuals[3:]
    cotangents = tuple(map(with_zeros, cotangents, (out, lse)))
    return _backward(*residuals, *cotangents, call, asked), None, None


_differentiable.defvjp(_forward_rule, _backward_rule, symbolic_zeros=True)


def _forward(operands: Operands, queries: Tokens, keys: Tokens, call: Call) -> tuple[Array, Array]:
    base, regular = in_slots(queries, keys)

    def by_kernels() -> tuple[Array, Array]:
        plan = plan_of(operands, queries, keys, call.settings, call.sizes)
        slots, tokens = slots_of(base, queries, keys), operands.q.shape[1]
        turn = query_turn(plan, operands) if turnable(operands, call.layout) else None
        arrays = tokens_of(plan, operands, queries, keys, call.layout, turn_queries=turn is None)
        bias, shift = bias_of(plan, tokens, operands.slopes, operands.strip, operands.sinks)
        inputs = Inputs(*arrays, *bias)

        def void(tiles: Known) -> Array:
            before = None if turn is None else (turn, in_tiles(operands.k, inputs.k.shape[-1]))
            lowest = least_lse(plan, inputs, slots, tokens, operands.strip, operands.sinks, before)
            return void_forward(plan, bounds(plan, inputs, tiles, operands.strip, turn), lowest, inputs, tiles)

        sees, plain = _meetings(plan, operands, slots, void)
        out, lse = call.kernels.forward(plan, inputs, slots, span(sees, plain), turn)
        lse = jnp.where(lse > NOTHING, lse + shift, NOTHING)
        return out[:, :tokens, :, : operands.v.shape[-1]], jnp.swapaxes(lse[:, :, :tokens], 1, 2)

    def by_blocks() -> tuple[Array, Array]:
        out, lse = blockwise.forward(operands, queries, keys, call.settings, call.layout)
        return out.astype(operands.v.dtype), lse

    return _choose(regular, by_kernels, by_blocks)


def _backward(
    operands: Operands,
    queries: Tokens,
    keys: Tokens,
    out: Array,
    lse: Array,
    d_out: Array,
    d_lse: Array,
    call: Call,
    asked: Asked,
) -> Operands:
    """Returns the gradient of every operand, zeros for what is not `asked` for."""
    base, regular = in_slots(queries, keys)

    def by_kernels() -> Operands:
        plan = plan_of(operands, queries, keys, call.settings, call.sizes)
        slots, tokens = slots_of(base, queries, keys), operands.q.shape[1]
        turns = asked.turns is None and turnable(operands, call.layout)  # back, in the kernels
        arrays = lambda x: tokens_of(plan, x, queries, keys, call.layout, turn_queries=True)  # noqa: E731
        tiles, pull = (arrays(operands), None) if turns else jax.vjp(arrays, operands)
        biases = operands.slopes, operands.strip, operands.sinks
        (bias, shift), pull_bias = jax.vjp(functools.partial(bias_of, plan, tokens), *biases)
        inputs = Inputs(*tiles, *bias)
        some = jnp.swapaxes(lse, 1, 2) > NOTHING  # [B, H, N]
        fill = lambda x, value: jnp.pad(x, ((0, 0), (0, 0), (0, -tokens % TILE)), constant_values=value)  # noqa: E731
        cotangent = jnp.where(jnp.swapaxes(some, 1, 2)[..., None], without_padding(d_out, queries), 0)
        cotangent = cotangent.astype(jnp.bfloat16)
        of_lse = jnp.where(some, jnp.swapaxes(d_lse, 1, 2), 0.0)
        delta = jnp.sum(cotangent.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
        through_lse = fill(jnp.swapaxes(delta, 1, 2) - of_lse, 0.0)
        framed = fill(jnp.swapaxes(lse, 1, 2), _NO_ROW)
        framed = jnp.where((framed > NOTHING) & (framed < _NO_ROW), framed - shift, framed)
        back = Cotangents(out=in_tiles(cotangent, inputs.q.shape[-1]), delta=through_lse, lse=framed * LOG2E)

        def void(tiles: Known) -> Array:
            seeing = fill(jnp.where(some, jnp.swapaxes(lse, 1, 2), _NO_ROW), _NO_ROW)
            padded = jnp.pad(out, ((0, 0), (0, -tokens % TILE), (0, 0), (0, 0)), constant_values=1)
            limits = bounds(plan, inputs, tiles, operands.strip)
            return void_backward(plan, limits, inputs, seeing, padded, tiles)

        sees, plain = _meetings(plan, operands, slots, void)
        of_q, of_k = (query_turn(plan, operands), key_turn(operands)) if turns else (None, None)
        spans, slopes = span(sees, plain), asked.slopes is not None
        d_q, d_slopes = call.kernels.of_queries(plan, inputs, slots, back, spans, of_q, slopes=slopes)
        by_group = lambda x: x.reshape(x.shape[0], -1, plan.groups, *x.shape[2:])  # noqa: E731
        across = lambda x: jnp.swapaxes(x, 2, 3)  # noqa: E731
        k_spans = span(across(by_group(sees).any(axis=2)), across(by_group(plain)[:, :, 0]))
        d_k, d_v = call.kernels.of_keys(plan, inputs, slots, back, k_spans, of_k)
        d_strip = jnp.zeros_like(inputs.strip)
        if asked.strip is not None and plan.reach:
            d_strip = _by_offset(plan, call.kernels.of_strip(plan, inputs, slots, back), base)
        by_sink = jnp.exp(jnp.minimum(inputs.sinks - framed, 0.0))
        by_sink = jnp.where((inputs.sinks > NOTHING) & (framed < _NO_ROW), by_sink, 0.0)
        of_bias = d_slopes.sum(axis=2), d_strip, -by_sink * through_lse
        slopes, strip, sinks = pull_bias((of_bias, fill(of_lse, 0.0)))
        if pull is not None:
            (found,) = pull((d_q, d_k, d_v))
        else:
            found = jax.tree.map(jnp.zeros_like, operands)
            pairs = (d_q, operands.q), (d_k, operands.k), (d_v, operands.v)
            q, k, v = (x[:, : like.shape[1], :, : like.shape[3]] for x, like in pairs)
            found = found._replace(q=q, k=k, v=v)
        return found._replace(slopes=slopes, strip=strip, sinks=sinks)

    def by_blocks() -> Operands:
        wide = out.astype(jnp.float32)
        return blockwise_backward.backward(operands, queries, keys, wide, lse, d_out, d_lse, call.settings, call.layout)

    return _choose(regular, by_kernels, by_blocks)


_choose = jax.lax.cond


def _meetings(
    plan: Plan, operands: Operands, slots: Slots, void: Callable[[Known], Array]
) -> tuple[Bool[Array, "batch heads q_tiles k_tiles"], Bool[Array, "batch heads q_tiles k_tiles"]]:
    """Returns which tiles meet, but for those that cannot matter, and which of them are plain.

    Args:
      plan: of the call.
      operands: of the call.
      slots: where tokens stand.
      void: returns which tiles cannot matter, from what is known of them. It is asked only where a head has a slope.
    """
    tiles = known(plan, slots, operands.q.shape[1])
    shape = (*operands.slopes.shape, *tiles.pairs.sees.shape[1:])
    sees, plain = (jnp.broadcast_to(x[:, None], shape) for x in (tiles.pairs.sees, tiles.pairs.plain))
    if plan.settings.skip_tiles and plan.keys >= plan.sizes.skip_from:
        none = functools.partial(jnp.zeros, shape, bool)
        sees &= ~jax.lax.cond((operands.slopes > 0).any(), lambda: void(tiles), none)
    return sees, plain


def _by_offset(plan: Plan, tiles: Float32[Array, "batch heads near rows columns"], base: Array) -> Array:
    """Returns the sums of the diagonals of near tiles, by offset as in the strip; in one fixed order."""
    batch, heads, near = tiles.shape[:3]
    diagonals = sum_diagonals(tiles.reshape(-1, TILE, TILE)).reshape(batch, heads, near, 2 * TILE)
    # Entry s of tile n has offset base % TILE + TILE (n - 1) + TILE - 1 - s.
    line = jnp.zeros((batch, heads, (near + 1) * TILE), jnp.float32)
    for n in range(near):
        line = line.at[..., n * TILE : (n + 2) * TILE].add(jnp.flip(diagonals[:, :, n], axis=-1))
    # Flipped, entry s of tile n has offset base % TILE + TILE (n - 1) - TILE + s. Nothing as large as offsets squared.
    first = base[:, None] % TILE - 2 * TILE
    offsets = (first + jnp.arange(line.shape[-1])[None])[:, None]
    inner = jnp.arange(1 - plan.reach, plan.reach)[None] - first
    here = (inner >= 0) & (inner < line.shape[-1])
    taken = jnp.take_along_axis(line, jnp.clip(inner, 0, line.shape[-1] - 1)[:, None], axis=-1)
    end = lambda there: jnp.sum(line, axis=-1, where=there, keepdims=True)  # noqa: E731
    ends = end(offsets <= -plan.reach), end(offsets >= plan.reach)
    return jnp.concatenate([ends[0], jnp.where(here[:, None], taken, 0.0), ends[1]], axis=-1)
