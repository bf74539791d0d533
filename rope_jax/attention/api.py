"""The one attention function that models call: checks a call and gives it to the first implementation that can."""

from typing import Literal

from jaxtyping import Array, Float, Float32, Int

from rope_jax.attention import blockwise, decode, pallas_tpu
from rope_jax.attention.call import Settings, Tokens, checked
from rope_jax.attention.sharded import by_shard
from rope_jax.scheme import Scheme

Implementation = Literal["pallas_tpu", "decode", "blockwise"]

_IMPLEMENTATIONS = {  # tried in this order
    "pallas_tpu": pallas_tpu.attend,
    "decode": decode.attend,
    "blockwise": blockwise.attend,
}


def attention(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    *,
    q_positions: Int[Array, "batch queries"],
    kv_positions: Int[Array, "batch keys"],
    segment_ids: tuple[Int[Array, "batch queries"], Int[Array, "batch keys"]] | None = None,
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
    `q`, `k`, `v`, `sinks` and every array of the scheme.

    Args:
      q: queries.
      k: keys; `heads` must be a multiple of `kv_heads`.
      v: values.
      scheme: rotation, factors and bias; its arrays may carry a leading batch axis.
      q_positions: int32 positions of the queries.
      kv_positions: int32 positions of the keys, in any order.
      segment_ids: ids of queries and of keys; only equal ids attend, and negative ones to nothing. What lies in a
        negative slot is never read, not even NaN.
      window: keys at `window` or more positions are not seen; None for all.
      causal: whether keys of later positions are hidden.
      scale: `sigma`; `1 / sqrt(dim)` where None.
      soft_cap: caps scaled logits at `soft_cap * tanh(logit / soft_cap)`, before the bias.
      sinks: `s`, a logit for each head that takes weight and adds no value; none where None.
      skip_tiles: whether tiles that provably cannot change the output beyond float32 rounding are left out.
      return_lse: whether to return `z` too; for a query that sees nothing it is -1e30, not -inf.
      implementation: the one to run; the first that can where None.

    Returns:
      the outputs, in `v`'s dtype, zeros for a query that sees nothing; and `z` if asked for.

    Raises:
      ValueError: if the heads do not group, differ from the scheme's, or a number is out of range.
      NotImplementedError: if the named implementation cannot serve the call.
    """
    settings = checked(
        q, k, scheme, window=window, causal=causal, scale=scale, soft_cap=soft_cap, skip_tiles=skip_tiles
    )
    q_segments, kv_segments = (None, None) if segment_ids is None else segment_ids
    queries, keys = Tokens(q_positions, q_segments), Tokens(kv_positions, kv_segments)
    out, lse = attend(q, k, v, scheme, sinks, queries, keys, settings, implementation)
    return (out, lse) if return_lse else out


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
    """Returns outputs and log-sum-exps of a call whose arguments are in order: what `attention` and the decoder run."""
    return by_shard(_implementation(implementation), q, k, v, scheme, sinks, queries, keys, settings)


def _implementation(name: str | None):
    """Returns the implementation of that name, or one that is the first that can serve a call."""
    if name is not None:
        if name not in _IMPLEMENTATIONS:
            raise ValueError(f"implementation must be one of {', '.join(_IMPLEMENTATIONS)}; got {name!r}")
        return _IMPLEMENTATIONS[name]

    def first_that_can(*call):
        refusals = []
        for name, attend in _IMPLEMENTATIONS.items():
            try:
                return attend(*call)
            except NotImplementedError as refusal:
                refusals.append(f"{name}: {refusal}")
        raise NotImplementedError("no implementation can serve this call; " + "; ".join(refusals))

    return first_that_can
