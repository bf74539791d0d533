"""The one attention function that models call."""

import math

from jaxtyping import Array, Float, Int

from rope_jax.attention.query_blocks import attention_by_query_blocks
from rope_jax.scheme import Scheme


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
) -> Float[Array, "batch queries heads v_dim"]:
    r"""Returns attention under a positional scheme; queries and keys arrive unrotated.

    .. math:: o_i = \sum_j \mathrm{softmax}_j\big(c\,\sigma\,(R_i q_i)\cdot(R_j k_j) + b(i - j)\big)\, v_j

    Memory is one block of queries against all keys, forward and backward.

    Args:
      q: queries.
      k: keys; `heads` must be a multiple of `kv_heads`.
      v: values.
      scheme: rotation, factors and bias; its arrays may carry a leading batch axis.
      q_positions: int32 positions of the queries.
      kv_positions: int32 positions of the keys, in any order.
      segment_ids: ids of queries and of keys; only equal ids attend, and negative ones to nothing.
      window: keys at `window` or more positions are not seen; None for all.
      causal: whether keys of later positions are hidden.
      scale: `sigma`; `1 / sqrt(dim)` where None.
      soft_cap: caps scaled logits at `soft_cap * tanh(logit / soft_cap)`, before the bias.

    Returns:
      the outputs, in `v`'s dtype; zeros for a query that sees nothing.

    Raises:
      ValueError: if the heads do not group, or differ from the scheme's.
    """
    heads, kv_heads = q.shape[-2], k.shape[-2]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not divide into groups over {kv_heads} key heads")
    if scheme.num_heads != heads:
        raise ValueError(f"the scheme has {scheme.num_heads} heads, the queries {heads}")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return attention_by_query_blocks(
        q,
        k,
        v,
        scheme,
        q_positions=q_positions,
        kv_positions=kv_positions,
        segments=segment_ids,
        window=window,
        causal=causal,
        scale=scale,
        soft_cap=soft_cap,
    )
