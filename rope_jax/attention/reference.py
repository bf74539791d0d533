"""The oracle: attention by its definition, every logit written out. Slow and plain on purpose; used in tests."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rope_jax.scheme import Scheme


def visible(
    q_positions: Int[Array, "*batch queries"],
    kv_positions: Int[Array, "*batch keys"],
    segments: tuple[Int[Array, "*batch queries"], Int[Array, "*batch keys"]] | None,
    *,
    causal: bool,
    window: int | None,
) -> Bool[Array, "*batch queries keys"]:
    """Returns which keys each query may see; a negative segment sees nothing and is seen by nothing."""
    offset = q_positions[..., :, None] - kv_positions[..., None, :]
    mask = offset >= 0 if causal else jnp.ones(offset.shape, bool)
    if window is not None:
        mask &= jnp.abs(offset) < window
    if segments is not None:
        q_segments, kv_segments = segments
        mask &= (q_segments[..., :, None] == kv_segments[..., None, :]) & (q_segments[..., :, None] >= 0)
    return mask


def attention_reference(
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
    groups = q.shape[2] // k.shape[2]
    turned_q = scheme.rotate(q, q_positions)
    turned_k = jnp.repeat(scheme.rotate(k, kv_positions), groups, axis=2)
    logits = jnp.einsum("bqhd,bkhd->bhqk", turned_q, turned_k)
    logits = logits * (scale * jnp.broadcast_to(scheme.logit_scale, (q.shape[0],)))[:, None, None, None]
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    logits = logits + scheme.bias(q_positions[:, :, None] - kv_positions[:, None, :])
    mask = visible(q_positions, kv_positions, segments, causal=causal, window=window)[:, None]
    # A query that sees nothing gives zeros and zero gradients: -inf never reaches the exponential.
    top = jnp.max(logits, axis=-1, keepdims=True, where=mask, initial=-1e30)
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, logits - top, 0.0)), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1.0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, jnp.repeat(v, groups, axis=2)).astype(v.dtype)
