"""Attention and its gradients by their definition, in numpy and float64, a head at a time.

.. math:: P = softmax(L), \\quad dP = dO\\,V^T, \\quad dS = P \\circ (dP - (dO \\circ O) 1), \\quad
    dV = P^T dO, \\quad dQ = \\sigma\\, dS\\,K, \\quad dK = \\sigma\\, dS^T Q

with queries and keys turned, and their gradients turned back.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from problem import BUCKETS, buckets

_NOTHING = -1e30


def attention(
    q: Float[np.ndarray, "tokens heads dim"],
    k: Float[np.ndarray, "tokens kv_heads dim"],
    v: Float[np.ndarray, "tokens kv_heads dim"],
    d_out: Float[np.ndarray, "tokens heads dim"],
    parameter: Float[np.ndarray, "..."],
    *,
    bias: str,
    positions: Int[np.ndarray, " tokens"],
    seen: Bool[np.ndarray, "tokens tokens"],
    frequencies: Float64[np.ndarray, " pairs"],
) -> dict[str, np.ndarray]:
    """Returns the output and the gradients of everything that has one, by name.

    Args:
      q: queries, not turned.
      k: keys, not turned.
      v: values.
      d_out: cotangent of the output.
      parameter: ALiBi's slopes `[heads]`, or T5's table `[heads, buckets]`; not read for another bias.
      bias: "none", "alibi" or "t5".
      positions: of queries and keys.
      seen: which keys each query sees.
      frequencies: radians a token; pairs are a half of the dimensions apart. None of them turns nothing.
    """
    q, k, v, d_out, parameter = (np.asarray(x, np.float64) for x in (q, k, v, d_out, parameter))
    turns = np.exp(1j * positions[:, None] * frequencies)
    scale, groups = q.shape[-1] ** -0.5, q.shape[1] // k.shape[1]
    distance = positions[:, None] - positions
    bucket = buckets()[np.clip(distance, 0, len(buckets()) - 1)]
    found = {"out": np.zeros_like(q), "d_q": np.zeros_like(q), "d_k": np.zeros_like(k), "d_v": np.zeros_like(v)}
    d_parameter = np.zeros_like(parameter)
    for head in range(q.shape[1]):
        of = head // groups
        turned_q, turned_k = _turned(q[:, head], turns), _turned(k[:, of], turns)
        logits = scale * turned_q @ turned_k.T
        if bias == "alibi":
            logits -= parameter[head] * np.abs(distance)
        if bias == "t5":
            logits += parameter[head][bucket]
        logits = np.where(seen, logits, -np.inf)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=_NOTHING))
        total = weights.sum(axis=-1, keepdims=True)
        weights /= np.where(total > 0, total, 1.0)
        out = weights @ v[:, of]
        d_weights = d_out[:, head] @ v[:, of].T
        d_logits = weights * (d_weights - (d_out[:, head] * out).sum(axis=-1, keepdims=True))
        found["out"][:, head] = out
        found["d_q"][:, head] = _turned(scale * d_logits @ turned_k, turns.conj())
        found["d_k"][:, of] += _turned(scale * d_logits.T @ turned_q, turns.conj())
        found["d_v"][:, of] += weights.T @ d_out[:, head]
        if bias == "alibi":
            d_parameter[head] = -(d_logits * np.abs(distance)).sum()
        if bias == "t5":
            d_parameter[head] = np.bincount(bucket.ravel(), d_logits.ravel(), minlength=BUCKETS)
    names = {"alibi": "d_slopes", "t5": "d_table"}
    return found | ({names[bias]: d_parameter} if bias in names else {})


def _turned(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Returns `x` with every pair of dimensions turned."""
    pairs = turns.shape[-1]
    turned = (x[:, :pairs] + 1j * x[:, pairs : 2 * pairs]) * turns
    return np.concatenate([turned.real, turned.imag, x[:, 2 * pairs :]], axis=-1)
