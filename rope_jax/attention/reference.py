"""The oracle: attention with every logit written out, N x N. Slow and plain on purpose."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from rope_jax.scheme import Scheme


def masked_logits(
    q: Float[Array, "*batch queries heads dim"],
    k: Float[Array, "*batch keys kv_heads dim"],
    bias: Float32[Array, "*batch heads queries keys"],
    mask: Bool[Array, "*batch queries keys"],
    *,
    scale: Float32[Array, "*#batch"] | float,
    soft_cap: float | None = None,
) -> Float32[Array, "*batch heads queries keys"]:
    """Returns the logits of rotated queries and keys: scaled, capped, biased, and -inf where masked."""
    groups = q.shape[-2] // k.shape[-2]
    grouped = q.reshape(*q.shape[:-2], k.shape[-2], groups, q.shape[-1])
    logits = jnp.einsum("...qgrd,...kgd->...grqk", grouped, k, preferred_element_type=jnp.float32)
    logits = logits.reshape(bias.shape)
    scale = jnp.asarray(scale, jnp.float32)
    logits = logits * scale.reshape((1,) * (logits.ndim - 3 - scale.ndim) + scale.shape + (1, 1, 1))
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    return jnp.where(mask[..., None, :, :], logits + bias, -jnp.inf)


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
        q_segments, kv_segments = (s.astype(jnp.int32) for s in segments)
        mask &= (q_segments[..., :, None] == kv_segments[..., None, :]) & (q_segments[..., :, None] >= 0)
    return mask


def attention_reference(
    q: Float[Array, "*batch queries heads dim"],
    k: Float[Array, "*batch keys kv_heads dim"],
    v: Float[Array, "*batch keys kv_heads v_dim"],
    scheme: Scheme,
    *,
    q_positions: Int[Array, "*batch queries"],
    kv_positions: Int[Array, "*batch keys"],
    segments: tuple[Int[Array, "*batch queries"], Int[Array, "*batch keys"]] | None,
    window: int | None,
    causal: bool,
    scale: float,
    soft_cap: float | None,
    keys_are_rotated: bool = False,
) -> Float[Array, "*batch queries heads v_dim"]:
    """Returns attention by its definition; arguments as in `rope_jax.attention.attention`."""
    q = scheme.rotate(q, q_positions)
    k = k if keys_are_rotated else scheme.rotate(k, kv_positions)
    bias = scheme.bias(q_positions[..., :, None] - kv_positions[..., None, :])
    mask = visible(q_positions, kv_positions, segments, causal=causal, window=window)
    logits = masked_logits(q, k, bias, mask, scale=scheme.logit_scale * scale, soft_cap=soft_cap)
    # A query that sees nothing gives zeros and zero gradients: -inf never reaches the exponential.
    sees_any = mask.any(axis=-1)[..., None, :, None]
    top = jnp.where(sees_any, logits.max(axis=-1, keepdims=True), 0.0)
    weights = jnp.where(mask[..., None, :, :], jnp.exp(jnp.where(mask[..., None, :, :], logits - top, 0.0)), 0.0)
    total = jnp.where(sees_any, weights.sum(axis=-1, keepdims=True), 1.0)
    weights = (weights / total).astype(v.dtype)
    kv_heads = v.shape[-2]
    grouped = weights.reshape(*weights.shape[:-3], kv_heads, weights.shape[-3] // kv_heads, *weights.shape[-2:])
    out = jnp.einsum("...grqk,...kgd->...qgrd", grouped, v)
    return out.reshape(*q.shape[:-1], v.shape[-1])
