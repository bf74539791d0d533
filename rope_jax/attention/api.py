"""The one attention function that models call: checks a call and gives it to the first implementation that can."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from rope_jax.attention import blockwise, cudnn, decode, mosaic_gpu, pallas_tpu, tokamax_gpu
from rope_jax.attention.call import NOTHING, Settings, Tokens, both_sides, checked
from rope_jax.attention.sharded import by_shard
from rope_jax.scheme import Scheme

Implementation = Literal["pallas_tpu", "mosaic_gpu", "cudnn", "decode", "blockwise", "tokamax"]

_IMPLEMENTATIONS = {  # tried in this order
    "pallas_tpu": pallas_tpu.attend,
    "mosaic_gpu": mosaic_gpu.attend,
    "cudnn": cudnn.attend,
    "decode": decode.attend,
    "blockwise": blockwise.attend,
    "tokamax": tokamax_gpu.attend,
}
_OUTPUTS_ONLY = frozenset({"cudnn", "tokamax"})  # these give no log-sum-exps
_ON_ONE_DEVICE = frozenset({"cudnn"})  # by name only on several: its partitioner refuses some shardings of tokens
_BY_NAME_ONLY = frozenset({"tokamax"})  # what is installed beside the library does not change what a call runs


def attention(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    *,
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
    implementation: Implementation | None = None,
) -> (
    Float[Array, "batch queries heads v_dim"]
    | tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]
):
    r"""Returns attention under a positional scheme; queries and keys arrive unrotated.

    .. math:: o_i = \sum_j e^{l_{ij} - z_i} v_j, \quad l_{ij} = c\,\sigma\,(R_i q_i)\cdot(R_j k_j) + b(i - j), \quad
        z_i = \ln\big(e^{s} + \sum_j e^{l_{ij}}\big)

    Rotation and bias are worked out tile by tile; memory grows with the tokens, forward and backward. Gradients reach
    `q`, `k`, `v`, `sinks` and every array of the scheme. The first call of a kind compiles, also outside of `jax.jit`;
    the next ones of the same shapes, dtypes and settings do not.

    Args:
      q: queries.
      k: keys; `heads` must be a multiple of `kv_heads`.
      v: values.
      scheme: rotation, factors and bias; its arrays may carry a leading batch axis.
      q_positions: positions of the queries, integers of any width, `[batch, queries]` or `[queries]` for all
        sequences. They become int32; a query and a key may be up to 2^31 - 1 apart.
      kv_positions: positions of the keys, in any order.
      segment_ids: ids of queries and of keys, shaped as the positions; only equal ids attend, and negative ones to
        nothing. What lies in a negative slot is never read, not even NaN.
      window: keys at `window` or more positions are not seen; None for all.
      causal: whether keys of later positions are hidden.
      scale: `sigma`; `1 / sqrt(dim)` where None.
      soft_cap: caps scaled logits at `soft_cap * tanh(logit / soft_cap)`, before the bias.
      sinks: `s`, a logit for each head that takes weight and adds no value; none where None.
      skip_tiles: whether tiles that provably cannot change the output beyond float32 rounding are left out.
      return_lse: whether to return `z` too; for a query that sees nothing it is -1e30, not -inf.
      implementation: the one to run; where None the first that can, of those that need no package of their own.

    Returns:
      the outputs, in `v`'s dtype, zeros for a query that sees nothing; and `z` if asked for.

    Raises:
      ValueError: if shapes do not fit each other or the scheme, or a number is out of range.
      TypeError: if an argument is of another kind than it must be: positions that are not integers, say.
      NotImplementedError: if the named implementation cannot serve the call.
    """
    settings = checked(
        q, k, v, scheme, sinks, window=window, causal=causal, scale=scale, soft_cap=soft_cap, skip_tiles=skip_tiles
    )
    queries, keys = both_sides(q, k, q_positions, kv_positions, segment_ids)
    if return_lse:
        return attend(q, k, v, scheme, sinks, queries, keys, settings, implementation)
    return outputs(q, k, v, scheme, sinks, queries, keys, settings, implementation)


def attend(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    sinks: Float[Array, " heads"] | None,
    queries: Tokens,
    keys: Tokens,
    settings: Settings,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns outputs and log-sum-exps of a call whose arguments are in order: what `attention` runs."""
    return _run(q, k, v, scheme, sinks, queries, keys, settings, implementation, with_lse=True)


def outputs(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    sinks: Float[Array, " heads"] | None,
    queries: Tokens,
    keys: Tokens,
    settings: Settings,
    implementation: Implementation | None = None,
) -> Float[Array, "batch queries heads v_dim"]:
    """Returns the outputs of `attend` alone, which more implementations can give: what the decoder runs."""
    return _run(q, k, v, scheme, sinks, queries, keys, settings, implementation, with_lse=False)[0]


def _run(q, k, v, scheme, sinks, queries, keys, settings, implementation, *, with_lse: bool):
    """Returns outputs, and log-sum-exps or None."""
    asked = _BY_NAME_ONLY if jax.device_count() == 1 else _BY_NAME_ONLY | _ON_ONE_DEVICE
    implementations = tuple((name, run) for name, run in _IMPLEMENTATIONS.items() if name not in asked)
    if implementation is not None:
        if implementation not in _IMPLEMENTATIONS:
            raise ValueError(f"implementation must be one of {', '.join(_IMPLEMENTATIONS)}; got {implementation!r}")
        implementations = ((implementation, _IMPLEMENTATIONS[implementation]),)
    if 0 in q.shape or 0 in k.shape:
        return _without_keys(q, v, sinks)
    return _compiled(
        q, k, v, scheme, sinks, queries, keys, implementations=implementations, settings=settings, with_lse=with_lse
    )


# Inlined into whatever program it is called from; compiled once for calls that are in none.
@functools.partial(jax.jit, static_argnames=("implementations", "settings", "with_lse"), inline=True)
def _compiled(q, k, v, scheme, sinks, queries, keys, *, implementations, settings: Settings, with_lse: bool):
    """Returns what the first implementation that can serve the call makes of it; None for log-sum-exps not wanted."""
    refusals = []
    for name, implement in implementations:
        try:
            if with_lse and name in _OUTPUTS_ONLY:
                raise NotImplementedError(
                    f"implementation {name!r} gives no log-sum-exps, and return_lse asks for them"
                )
            out, lse = by_shard(implement, q, k, v, scheme, sinks, queries, keys, settings)
            return out, lse if with_lse else None
        except NotImplementedError as refusal:
            refusals.append((name, refusal))
    if len(implementations) == 1:
        raise refusals[0][1]
    reasons = "; ".join(f"{name}: {refusal}" for name, refusal in refusals)
    raise NotImplementedError(f"no implementation can serve this call; {reasons}")


def _without_keys(
    q: Float[Array, "batch queries heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    sinks: Float[Array, " heads"] | None,
) -> tuple[Float[Array, "batch queries heads v_dim"], Float32[Array, "batch queries heads"]]:
    """Returns the results of queries that have no key to see, if there are any queries."""
    lse = jnp.full((), NOTHING, jnp.float32) if sinks is None else sinks.astype(jnp.float32)[None, None, :]
    return jnp.zeros((*q.shape[:3], v.shape[-1]), v.dtype), jnp.broadcast_to(lse, q.shape[:3])
