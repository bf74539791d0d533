"""Attention one block of queries at a time: memory is a block against all keys, forward and backward.

Heads come first and keys are transposed once, which on a CPU is six times faster than contracting them where they lie.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rope_jax.attention.reference import visible
from rope_jax.scheme import Scheme

_BLOCK = 256
_HIDDEN = -1e30  # finite, so that a row that sees nothing still has finite logits and gradients


def attention_by_query_blocks(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    *,
    q_positions: Int[Array, "batch queries"],
    kv_positions: Int[Array, "batch keys"],
    segments: tuple[Int[Array, "batch queries"], Int[Array, "batch keys"]] | None,
    window: int | None,
    causal: bool,
    scale: float,
    soft_cap: float | None,
) -> Float[Array, "batch queries heads v_dim"]:
    """Returns attention; arguments as in `rope_jax.attention.attention`."""
    batch, queries, heads, _ = q.shape
    kv_heads = k.shape[2]
    keys = jnp.transpose(scheme.rotate(k, kv_positions), (0, 2, 3, 1))  # batch, kv_heads, dim, keys
    values = jnp.transpose(v, (0, 2, 1, 3))
    logit_scale = scale * scheme.logit_scale
    logit_scale = jnp.broadcast_to(logit_scale, (batch,)).reshape(batch, 1, 1, 1)

    def of_block(block):
        q, q_positions, q_segments = block
        size = q.shape[1]
        turned = scheme.rotate(q, q_positions).reshape(batch, size, kv_heads, heads // kv_heads, -1)
        rows = jnp.transpose(turned, (0, 2, 3, 1, 4)).reshape(batch, kv_heads, -1, turned.shape[-1])
        logits = jnp.einsum("bgad,bgdk->bgak", rows, keys, preferred_element_type=jnp.float32) * logit_scale
        if soft_cap is not None:
            logits = soft_cap * jnp.tanh(logits / soft_cap)
        pairs = None if segments is None else (q_segments, segments[1])
        mask = visible(q_positions, kv_positions, pairs, causal=causal, window=window)[:, None]
        bias = scheme.bias(q_positions[:, :, None] - kv_positions[:, None, :])
        logits = jnp.where(mask, logits.reshape(bias.shape) + bias, _HIDDEN)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True).reshape(batch, kv_heads, -1, 1)
        mixed = jnp.einsum(
            "bgak,bgkd->bgad",
            weights.reshape(batch, kv_heads, -1, weights.shape[-1]).astype(v.dtype),
            values,
            preferred_element_type=jnp.float32,
        )
        mixed = (mixed / total).reshape(batch, heads, size, -1)
        return jnp.transpose(jnp.where(mask.any(axis=-1, keepdims=True), mixed, 0.0), (0, 2, 1, 3)).astype(v.dtype)

    everything = (q, q_positions, q_positions if segments is None else segments[0])
    blocks, rest = divmod(queries, _BLOCK)
    if blocks == 0 or (blocks == 1 and rest == 0):
        return of_block(everything)

    def stacked(x: Array) -> Array:
        return jnp.moveaxis(x[:, : blocks * _BLOCK].reshape(batch, blocks, _BLOCK, *x.shape[2:]), 1, 0)

    # Each block is recomputed in the backward pass, so that the blocks' weights are never held together.
    out = jax.lax.map(jax.checkpoint(of_block), jax.tree.map(stacked, everything))
    out = jnp.moveaxis(out, 0, 1).reshape(batch, blocks * _BLOCK, heads, -1)
    if rest == 0:
        return out
    last = of_block(jax.tree.map(lambda x: x[:, blocks * _BLOCK :], everything))
    return jnp.concatenate([out, last], axis=1)
