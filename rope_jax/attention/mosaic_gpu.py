"""Attention as Hopper kernels: biases and masks are worked out in the tile; memory grows with the tokens.

The kernels count in slots: a query and a key are as far apart as their slots and one number a sequence. Where positions
jump otherwise, which is known at run time only, `blockwise` does the call, forward and backward.

Queries and keys are turned before the kernels, in float32, and rounded to bfloat16 once; products are of bfloat16, sums
of float32. `mosaic_gpu_tile` is the arithmetic of a tile, `mosaic_gpu_spans` says which tiles meet.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from rope_jax import rotation
from rope_jax.attention import blockwise, blockwise_backward
from rope_jax.attention.call import NOTHING, Settings, Tokens, without_padding
from rope_jax.attention.logits import sum_diagonals
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
from rope_jax.attention.operands import Operands, middle, operands_of, turns_from, varying_axes
from rope_jax.scheme import Scheme

_VERSIONS = ("0.11", "0.12")  # of jax; others may lower the kernels to something else
_LARGEST_DIM = 256
_UNSEEN_QUERY, _UNSEEN_KEY = -1, -2  # segments of slots that hold nothing
_NO_ROW = 1e30  # log-sum-exp of a slot that holds no query: all its weights are zero
_LARGEST_CAP = 1e4  # nats; float32 tells thousandths apart
_HIDES = 2e3  # nats between entries of a strip; more would hide no more, and round what is near alike


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
    if jax.default_backend() != "gpu":
        raise NotImplementedError(f"the Hopper kernels need a GPU, the default backend is {jax.default_backend()}")
    capability = getattr(jax.devices()[0], "compute_capability", "unknown")
    if capability != "9.0":
        raise NotImplementedError(f"the Hopper kernels need compute capability 9.0, the GPU has {capability}")
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
    if not jax.__version__.startswith(_VERSIONS):
        raise NotImplementedError(f"the Hopper kernels need jax {' or '.join(_VERSIONS)}, this is {jax.__version__}")
    from rope_jax.attention import mosaic_gpu_kernels  # what it imports differs from version to version

    return mosaic_gpu_kernels


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _differentiable(operands: Operands, queries: Tokens, keys: Tokens, call: Call) -> tuple[Array, Array]:
    return _forward(operands, queries, keys, call)


def _forward_rule(operands, queries, keys, call):
    primals = jax.tree.map(lambda x: x.value, (operands, queries, keys), is_leaf=_is_primal)
    out, lse = _forward(*primals, call)
    # A tuple is either there or not, while a flag among the residuals would be traced.
    asked = tuple(() if x.perturbed else None for x in (operands.slopes, operands.strip))
    return (out, lse), (*primals, out, lse, asked)


def _backward_rule(call, residuals, cotangents):
    *residuals, asked = residuals
    out, lse = residuals[3:]
    zeros = lambda x, like: jnp.zeros_like(like) if _is_zero(x) else x  # noqa: E731
    cotangents = tuple(zeros(x, like) for x, like in zip(cotangents, (out, lse), strict=True))
    slopes, strip = (x is not None for x in asked)
    return _backward(*residuals, *cotangents, call, slopes=slopes, strip=strip), None, None


def _is_primal(x) -> bool:
    return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


def _is_zero(x) -> bool:
    return isinstance(x, jax.custom_derivatives.SymbolicZero)


_differentiable.defvjp(_forward_rule, _backward_rule, symbolic_zeros=True)


def _forward(operands: Operands, queries: Tokens, keys: Tokens, call: Call) -> tuple[Array, Array]:
    base, regular = in_slots(queries, keys)

    def by_kernels() -> tuple[Array, Array]:
        plan, slots = _plan(operands, queries, keys, call), _slots(base, queries, keys)
        inputs, shift = _inputs(plan, operands, queries, keys, call.layout)
        tokens = operands.q.shape[1]

        def void(tiles: Known, limits: Array) -> Array:
            lowest = least_lse(plan, inputs, slots, tokens, operands.strip, operands.sinks)
            return void_forward(plan, limits, lowest, inputs, tiles)

        sees, plain = _meetings(plan, operands, inputs, slots, void)
        out, lse = call.kernels.forward(plan, inputs, slots, span(sees, plain))
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
    *,
    slopes: bool,
    strip: bool,
) -> Operands:
    """Returns the gradient of every operand; `slopes` and `strip` say whether that of the bias is asked for."""
    base, regular = in_slots(queries, keys)

    def by_kernels() -> Operands:
        plan, slots = _plan(operands, queries, keys, call), _slots(base, queries, keys)
        tokens = operands.q.shape[1]
        prepare = lambda x: _inputs(plan, x, queries, keys, call.layout)  # noqa: E731
        (inputs, shift), pull = jax.vjp(prepare, operands)
        some = jnp.swapaxes(lse, 1, 2) > NOTHING  # [B, H, N]
        fill = lambda x, value: jnp.pad(x, ((0, 0), (0, 0), (0, -tokens % TILE)), constant_values=value)  # noqa: E731
        cotangent = jnp.where(jnp.swapaxes(some, 1, 2)[..., None], without_padding(d_out, queries), 0)
        cotangent = cotangent.astype(jnp.bfloat16)
        of_lse = jnp.where(some, jnp.swapaxes(d_lse, 1, 2), 0.0)
        delta = jnp.sum(cotangent.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
        through_lse = fill(jnp.swapaxes(delta, 1, 2) - of_lse, 0.0)
        framed = fill(jnp.swapaxes(lse, 1, 2), _NO_ROW)
        framed = jnp.where((framed > NOTHING) & (framed < _NO_ROW), framed - shift, framed)
        back = Cotangents(out=_in_tiles(cotangent, inputs.q.shape[-1]), delta=through_lse, lse=framed * LOG2E)

        def void(tiles: Known, limits: Array) -> Array:
            seeing = fill(jnp.where(some, jnp.swapaxes(lse, 1, 2), _NO_ROW), _NO_ROW)
            padded = jnp.pad(out, ((0, 0), (0, -tokens % TILE), (0, 0), (0, 0)), constant_values=1)
            return void_backward(plan, limits, inputs, seeing, padded, tiles)

        sees, plain = _meetings(plan, operands, inputs, slots, void)
        d_q, d_slopes = call.kernels.of_queries(plan, inputs, slots, back, span(sees, plain), slopes=slopes)
        by_group = lambda x: x.reshape(x.shape[0], -1, plan.groups, *x.shape[2:])  # noqa: E731
        across = lambda x: jnp.swapaxes(x, 2, 3)  # noqa: E731
        k_spans = span(across(by_group(sees).any(axis=2)), across(by_group(plain)[:, :, 0]))
        d_k, d_v = call.kernels.of_keys(plan, inputs, slots, back, k_spans)
        d_strip = jnp.zeros_like(inputs.strip)
        if strip and plan.reach:
            d_strip = _by_offset(plan, call.kernels.of_strip(plan, inputs, slots, back), base)
        by_sink = jnp.exp(jnp.minimum(inputs.sinks - framed, 0.0))
        by_sink = jnp.where((inputs.sinks > NOTHING) & (framed < _NO_ROW), by_sink, 0.0)
        gradients = Inputs(
            q=d_q, k=d_k, v=d_v, slopes=d_slopes.sum(axis=2), strip=d_strip, sinks=-by_sink * through_lse
        )
        (found,) = pull((gradients, fill(of_lse, 0.0)))
        return found

    def by_blocks() -> Operands:
        wide = out.astype(jnp.float32)
        return blockwise_backward.backward(operands, queries, keys, wide, lse, d_out, d_lse, call.settings, call.layout)

    return _choose(regular, by_kernels, by_blocks)


_choose = jax.lax.cond


def _meetings(
    plan: Plan, operands: Operands, inputs: Inputs, slots: Slots, void: Callable[[Known, Array], Array]
) -> tuple[Bool[Array, "batch heads q_tiles k_tiles"], Bool[Array, "batch heads q_tiles k_tiles"]]:
    """Returns which tiles meet, but for those that cannot matter, and which of them are plain.

    Args:
      plan: of the call.
      operands: of the call.
      inputs: what the kernels read.
      slots: where tokens stand.
      void: returns which tiles cannot matter, from what is known of them and what their logits do not exceed. It is
        asked only where a head has a slope.
    """
    tiles = known(plan, slots, operands.q.shape[1])
    shape = (*inputs.slopes.shape, *tiles.pairs.sees.shape[1:])
    sees, plain = (jnp.broadcast_to(x[:, None], shape) for x in (tiles.pairs.sees, tiles.pairs.plain))
    if plan.settings.skip_tiles and plan.keys >= plan.sizes.skip_from:
        found = lambda: void(tiles, bounds(plan, inputs, tiles, operands.strip))  # noqa: E731
        sees &= ~jax.lax.cond((operands.slopes > 0).any(), found, lambda: jnp.zeros(shape, bool))
    return sees, plain


def _plan(operands: Operands, queries: Tokens, keys: Tokens, call: Call) -> Plan:
    return Plan(
        settings=call.settings,
        groups=operands.q.shape[2] // operands.k.shape[2],
        keys=operands.k.shape[1],
        reach=operands.strip.shape[-1] // 2,
        segmented=queries.segments is not None or keys.segments is not None,
        sizes=call.sizes,
    )


def _slots(base: Array, queries: Tokens, keys: Tokens) -> Slots:
    def segments(tokens: Tokens, unseen: int) -> Array:
        found = jnp.zeros_like(tokens.positions) if tokens.segments is None else tokens.segments
        found = jnp.where(found < 0, unseen, found)
        return jnp.pad(found, ((0, 0), (0, -found.shape[1] % TILE)), constant_values=unseen)

    return Slots(base, segments(queries, _UNSEEN_QUERY), segments(keys, _UNSEEN_KEY))


def _inputs(
    plan: Plan, operands: Operands, queries: Tokens, keys: Tokens, layout: rotation.Layout
) -> tuple[Inputs, Float32[Array, "batch heads queries"]]:
    """Returns what the kernels read, and what a log-sum-exp in a tile's frame lacks to be a true one.

    What reaches the inverse frequencies is counted from the middle of the sequence, as only offsets matter.
    """
    dim = -(-max(operands.q.shape[-1], operands.v.shape[-1]) // 64) * 64
    place = middle(queries, keys)

    def turned(x: Array, turn: tuple[Array, Array], positions: Array) -> Array:
        turn = turns_from(place, turn, operands.frequencies, positions)
        return jax.vmap(functools.partial(rotation.rotate, layout=layout))(x.astype(jnp.float32), *turn)

    scale = (operands.scale * plan.settings.scale)[:, None, None, None]
    q = turned(operands.q, operands.q_turn, queries.positions) * scale
    k = turned(operands.k, operands.k_turn, keys.positions)
    far = operands.strip[..., -1:]
    padded = -(-operands.q.shape[1] // TILE) * TILE
    inside = (jnp.arange(padded) % TILE).astype(jnp.float32)
    # Counted from the far entry; where a strip hides what is far by -1e9, from no farther than it takes.
    highest = jax.lax.stop_gradient(operands.strip[..., plan.reach :].max(axis=-1, keepdims=True))
    above = jnp.minimum(highest - far, _HIDES)
    strip = jnp.maximum(operands.strip - highest, -_HIDES) + above
    # What the slopes get through the kernels counts from each query, and holds all of their gradient.
    shift = highest - above - jax.lax.stop_gradient(operands.slopes)[..., None] * inside[None, None]
    sinks = operands.sinks[..., None]
    sinks = jnp.where(sinks > NOTHING, sinks - shift, NOTHING)
    inputs = Inputs(
        q=_in_tiles(q.astype(jnp.bfloat16), dim),
        k=_in_tiles(k.astype(jnp.bfloat16), dim),
        v=_in_tiles(operands.v, dim),
        slopes=operands.slopes,
        strip=strip,
        sinks=sinks,
    )
    return inputs, shift


def _in_tiles(x: Array, dim: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % TILE), (0, 0), (0, dim - x.shape[3])))


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
