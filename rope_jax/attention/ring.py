"""Ring attention: the sequence lies sharded over a mesh axis, and keys and values travel round it.

Each device keeps its queries and holds one chunk of keys at a time. Parts are merged by their log-sum-exps, in float32;
in the backward pass the gradients of a chunk travel with it and arrive where the chunk came from. A device's memory is
that of its own tokens. Positions travel too, so that any order of the sequence is exact; `zigzag` gives the order in
which every device has the same causal work.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from rope_jax import rotation
from rope_jax.attention import blockwise, blockwise_backward
from rope_jax.attention.call import NOTHING, Settings, Tokens, both_sides, checked, without_padding
from rope_jax.attention.operands import COLUMNS, ROWS, Operands, turns_of_fixed, vary_together, varying_axes
from rope_jax.attention.tiles import cut, meet
from rope_jax.scheme import Scheme


def ring_attention(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    *,
    axis_name: str,
    q_positions: Int[Array | np.ndarray, "... queries"],
    kv_positions: Int[Array | np.ndarray, "... keys"],
    segment_ids: tuple[Int[Array | np.ndarray, "... queries"], Int[Array | np.ndarray, "... keys"]] | None = None,
    window: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " heads"] | None = None,
    skip_tiles: bool = True,
    return_lse: bool = False,
) -> (
    Float[Array, "batch queries heads v_dim"]
    | tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]
):
    """Returns attention over a sequence of which every device of a mesh axis holds a part; for use in `jax.shard_map`.

    Other mesh axes may shard the batch, or the heads of everything that has heads: the scheme's slopes and strip and
    the sinks too.

    Args:
      q: this device's queries, unrotated.
      k: this device's keys, unrotated; as many on every device.
      v: this device's values.
      scheme: rotation, factors and bias; its gradients are summed over the devices that share it.
      axis_name: the mesh axis over which the tokens are sharded.
      q_positions: positions of this device's queries in the whole sequence, integers of any width.
      kv_positions: positions of its keys.
      segment_ids: ids of its queries and keys; only equal ids attend, and negative ones to nothing.
      window: keys at `window` or more positions are not seen; None for all.
      causal: whether keys of later positions are hidden.
      scale: multiplies `q.k`; `1 / sqrt(dim)` where None.
      soft_cap: caps scaled logits, before the bias.
      sinks: a logit for each head that takes weight and adds no value.
      skip_tiles: whether tiles that provably cannot change the output beyond float32 rounding are left out.
      return_lse: whether to return the log-sum-exps too; -1e30 for a query that sees nothing.

    Raises:
      ValueError: if shapes do not fit each other or the scheme, a number is out of range, or queries differ along the
        axis and keys do not.
      TypeError: if an argument is of another kind than it must be: positions that are not integers, say.

    Source: Liu et al., arXiv 2310.01889; the balanced order: Brandon et al., arXiv 2311.09431.
    """
    settings = checked(
        q, k, v, scheme, sinks, window=window, causal=causal, scale=scale, soft_cap=soft_cap, skip_tiles=skip_tiles
    )
    queries, keys = both_sides(q, k, q_positions, kv_positions, segment_ids)
    q, k, v = without_padding(q, queries), without_padding(k, keys), without_padding(v, keys)
    # Turned once, before they travel; the rotation's gradient is taken outside the ring. Sinks count once, after it.
    q_turn, k_turn = turns_of_fixed(scheme, queries), turns_of_fixed(scheme, keys)
    q, k = rotation.rotate(q, *q_turn, layout=scheme.layout), rotation.rotate(k, *k_turn, layout=scheme.layout)
    operands = Operands.of(q, k, v, scheme, None, _no_turn(q), _no_turn(k), scheme.inverse_frequencies)
    operands, queries, keys = _vary((operands, queries, keys), axis_name)
    out, lse = _ring(operands, queries, keys, settings, scheme.layout, axis_name)
    if sinks is not None:
        out, lse = _with_sinks(out, lse, sinks)
    out = out.astype(v.dtype)
    return (out, lse) if return_lse else out


def zigzag(x: Array, devices: int, axis: int = 1) -> Array:
    """Returns the tokens of `x` in the order in which each of `devices` gets one early and one late piece.

    Of `2 * devices` pieces, device `i` holds the pieces `i` and `2 * devices - 1 - i`: under a causal mask it then sees
    as much as any other, of every chunk. Tiles are skipped best if a piece is a multiple of 512 tokens.

    >>> zigzag(jnp.arange(8), 2, axis=0).tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]

    Args:
      x: anything with tokens on `axis`: token ids, positions, segments, queries.
      devices: size of the mesh axis.
      axis: of the tokens.

    Raises:
      ValueError: if the tokens do not divide into `2 * devices` pieces.
    """
    x = jnp.moveaxis(x, axis, 0)
    pieces = _pieces(x, devices)
    both = jnp.stack([pieces[:devices], pieces[devices:][::-1]], axis=1)
    return jnp.moveaxis(both.reshape(x.shape), 0, axis)


def unzigzag(x: Array, devices: int, axis: int = 1) -> Array:
    """Returns what `zigzag` was given.

    >>> unzigzag(zigzag(jnp.arange(12), 3, axis=0), 3, axis=0).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    """
    x = jnp.moveaxis(x, axis, 0)
    pieces = _pieces(x, devices)
    in_order = jnp.concatenate([pieces[::2], pieces[1::2][::-1]])
    return jnp.moveaxis(in_order.reshape(x.shape), 0, axis)


def _pieces(x: Array, devices: int) -> Array:
    if x.shape[0] % (2 * devices):
        raise ValueError(f"{x.shape[0]} tokens do not divide into two pieces for each of {devices} devices")
    return x.reshape(2 * devices, -1, *x.shape[1:])


class _Chunk(NamedTuple):
    """What travels."""

    k: Array
    v: Array
    keys: Tokens


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _ring(operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, layout, axis_name: str):
    return _forward(operands, queries, keys, settings, layout, axis_name)


def _forward(operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, layout, axis_name: str):
    """Returns float32 outputs and log-sum-exps over the keys of all devices."""

    def step(_, state):
        chunk, out, lse = state
        following = _send(chunk, axis_name)  # asked for before the work, so that it can travel meanwhile

        def add(_, sums):
            here = operands._replace(k=chunk.k, v=chunk.v)
            return _merge(*sums, *blockwise.forward(here, queries, chunk.keys, settings, layout))

        return following, *_where_seen(queries, chunk.keys, settings, operands, add, (out, lse))

    batch, tokens, heads, _ = operands.q.shape
    zero = _zero(operands)
    out = jnp.broadcast_to(zero, (batch, tokens, heads, operands.v.shape[-1]))
    lse = jnp.broadcast_to(zero + NOTHING, (batch, tokens, heads))
    start = (_Chunk(operands.k, operands.v, keys), out, lse)
    # The last send brings the keys home unneeded; without it the loop's body would have to be compiled twice.
    _, out, lse = jax.lax.fori_loop(0, jax.lax.axis_size(axis_name), step, start)
    return out, lse


def _forward_rule(operands, queries, keys, settings, layout, axis_name):
    out, lse = _forward(operands, queries, keys, settings, layout, axis_name)
    return (out, lse), (operands, queries, keys, out, lse)


def _backward_rule(settings, layout, axis_name, residuals, cotangents):
    operands, queries, keys, out, lse = residuals

    def step(_, state):
        chunk, of_chunk, of_device = state
        following = _send(chunk, axis_name)

        def add(_, sums):
            d_k, d_v, rest = sums
            here = operands._replace(k=chunk.k, v=chunk.v)
            part = blockwise_backward.backward(here, queries, chunk.keys, out, lse, *cotangents, settings, layout)
            rest = jax.tree.map(lambda x, y: x + y.astype(jnp.float32), rest, _kept(part))
            return d_k + part.k.astype(jnp.float32), d_v + part.v.astype(jnp.float32), rest

        *of_chunk, of_device = _where_seen(queries, chunk.keys, settings, operands, add, (*of_chunk, of_device))
        return following, _send(tuple(of_chunk), axis_name), of_device

    zeros = jax.tree.map(lambda x: jnp.broadcast_to(_zero(operands), x.shape), operands)
    start = (_Chunk(operands.k, operands.v, keys), (zeros.k, zeros.v), _kept(zeros))
    _, (d_k, d_v), rest = jax.lax.fori_loop(0, jax.lax.axis_size(axis_name), step, start)
    gradients = zeros._replace(k=d_k, v=d_v, **rest)
    return jax.tree.map(lambda x, of: x.astype(of.dtype), gradients, operands), None, None


_ring.defvjp(_forward_rule, _backward_rule)


def _kept(gradients: Operands) -> dict[str, Array]:
    """Returns the gradients that stay on their device."""
    return {name: getattr(gradients, name) for name in ("q", "frequencies", "scale", "slopes", "strip")}


def _send(x, axis_name: str):
    """Returns what the device before this one on the axis had."""
    size = jax.lax.axis_size(axis_name)
    towards = [(i, (i + 1) % size) for i in range(size)]
    return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, axis_name, towards), x)


def _where_seen(queries: Tokens, keys: Tokens, settings: Settings, operands: Operands, add, sums):
    """Returns `add(0, sums)`, or `sums` as they are if no query sees any of the keys."""
    reach = operands.strip.shape[-1] // 2

    def of_row(queries: Tokens, keys: Tokens) -> Array:
        return meet(cut(queries, ROWS), cut(keys, COLUMNS), settings, max_offset=reach).sees.any()

    seen = jax.vmap(of_row)(queries, keys).any()
    # A loop in place of a conditional: XLA's CPU backend would run a branch on one core.
    return jax.lax.fori_loop(0, seen.astype(jnp.int32), add, sums)


def _merge(out: Array, lse: Array, other_out: Array, other_lse: Array) -> tuple[Array, Array]:
    """Returns the attention over two disjoint sets of keys from that over each."""
    top = jnp.maximum(lse, other_lse)
    weight, other_weight = jnp.exp(lse - top), jnp.exp(other_lse - top)
    total = weight + other_weight
    share, other_share = (weight / total)[..., None], (other_weight / total)[..., None]
    # Where both saw nothing, top + ln 2 is NOTHING again in float32, and both outputs are zeros.
    return share * out + other_share * other_out, top + jnp.log(total)


def _with_sinks(out: Array, lse: Array, sinks: Array) -> tuple[Array, Array]:
    """Returns the outputs and log-sum-exps with one more key for each head, whose value is zero."""
    whole = jnp.logaddexp(lse, sinks.astype(jnp.float32)[None, None, :])
    return out * jnp.exp(lse - whole)[..., None], whole


def _no_turn(x: Array) -> tuple[Array, Array]:
    none = jnp.zeros((*x.shape[:2], 0), jnp.float32)
    return none, none


def _zero(operands: Operands) -> Array:
    """Returns a float32 zero that varies over the same mesh axes as the operands."""
    return jnp.where(operands.scale[0] == operands.scale[0], 0.0, 0.0).astype(jnp.float32)


def _vary(arguments, axis_name: str):
    """Returns the arguments, each varying over the ring's axis and all others that any of them varies over."""
    operands, _, keys = arguments
    if not varying_axes(arguments):  # the mesh is not checked for what varies
        return arguments
    if axis_name in varying_axes(operands.q) and axis_name not in varying_axes((operands.k, keys.positions)):
        raise ValueError(f"queries are sharded over {axis_name!r}, keys are not: each would be counted several times")
    return vary_together(arguments, frozenset({axis_name}))
