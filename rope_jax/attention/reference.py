"""The oracle: attention by its definition, every logit written out. Slow and plain on purpose; used in tests."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from rope_jax.attention.call import NOTHING, Settings, Tokens, offsets, visible, without_padding
from rope_jax.scheme import Scheme


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
    groups = q.shape[2] // k.shape[2]
    q, k, v = without_padding(q, queries), without_padding(k, keys), without_padding(v, keys)
    turned_q = scheme.rotate(q, queries.positions)
    turned_k = jnp.repeat(scheme.rotate(k, keys.positions), groups, axis=2)
    logits = jnp.einsum("bqhd,bkhd->bhqk", turned_q, turned_k, preferred_element_type=jnp.float32)
    logits = logits * (settings.scale * jnp.broadcast_to(scheme.logit_scale, q.shape[:1]))[:, None, None, None]
    if settings.soft_cap is not None:
        logits = settings.soft_cap * jnp.tanh(logits / settings.soft_cap)
    logits = logits + scheme.bias(offsets(queries.positions, keys.positions))
    mask = visible(queries, keys, causal=settings.causal, window=settings.window)[:, None]
    # A query that sees nothing gives zeros and zero gradients: -inf never reaches the exponential.
    top = jnp.max(logits, axis=-1, keepdims=True, where=mask, initial=NOTHING)
    if sinks is not None:
        top = jnp.maximum(top, sinks.reshape(1, -1, 1, 1))
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, logits - top, 0.0)), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sinks.reshape(1, -1, 1, 1) - top)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    values = jnp.repeat(v, groups, axis=2).astype(jnp.float32)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights / total, values).astype(v.dtype)
    lse = jnp.where(some, top + jnp.log(total), NOTHING)[..., 0]
    out = without_padding(out, queries)  # zeros anyway; this drops their cotangents, which may be NaN
    return out, jnp.swapaxes(lse, 1, 2)
