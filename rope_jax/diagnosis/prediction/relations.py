"""How a model's own heads see a relation between two tokens: queries and keys taken out of a real forward pass."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Complex128, Int

from rope_jax import rotation
from rope_jax.attention.api import attend
from rope_jax.decoder import Decoder
from rope_jax.scheme import Scheme


class Heads(NamedTuple):
    """Unrotated queries and keys of one row, as complex pairs.

    Attributes:
      q: `[layers, tokens, heads, pairs]`.
      k: the same; keys shared by a group of heads are repeated.
      scale: multiplies every `q.k`.
    """

    q: Complex128[np.ndarray, "layers tokens heads pairs"]
    k: Complex128[np.ndarray, "layers tokens heads pairs"]
    scale: float


def heads_of(decoder: Decoder, scheme: Scheme, rows: Int[np.ndarray, "rows tokens"]) -> list[Heads]:
    """Returns queries and keys of every layer for every row, under the scheme that the model runs."""
    graph, state = nnx.split(decoder)

    @jax.jit
    def run(state, row: Int[Array, " tokens"]):
        seen = []

        def looking(q, k, v, scheme, sinks, queries, keys, settings, implementation=None):
            seen.append((q[0], k[0]))
            return attend(q, k, v, scheme, sinks, queries, keys, settings, implementation)

        nnx.merge(graph, state).hidden(row[None], scheme, attention=looking)
        return jax.tree.map(lambda *layers: jnp.stack(layers), *seen)

    pairs = functools.partial(_pairs, scheme=scheme)
    result = []
    for row in rows:
        q, k = (np.asarray(x) for x in run(state, jnp.asarray(row, jnp.int32)))
        k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
        # Turning multiplies queries and keys by the cos/sin factor, logits by its square.
        factor = float(scheme.logit_scale) * float(scheme.cos_sin_factor) ** 2
        result.append(Heads(pairs(q), pairs(k), factor * q.shape[-1] ** -0.5))
    return result


def _pairs(x: np.ndarray, *, scheme: Scheme) -> np.ndarray:
    turning = jnp.asarray(x[..., : scheme.rotary_dim])
    return np.asarray(rotation.as_complex(turning, layout=scheme.layout)).astype(np.complex128)


def products(
    heads: Heads, queries: Int[np.ndarray, " n"], keys: Int[np.ndarray, " n"]
) -> Complex128[np.ndarray, "layers heads pairs"]:
    r"""Returns the mean product of queries and keys, pair by pair, in nats before any turning.

    .. math:: c_i = \sigma\,\langle q_i \bar k_i \rangle

    so that the logit of the relation at offset `D` under frequencies `theta'` is `Re sum_i c_i e^{i D theta'_i}`: its
    modulus is the weight of a pair and the sum of the moduli the amplitude `A`, both measured.

    Args:
      heads: of one row.
      queries: positions of the tokens that look.
      keys: positions of what each looks for.
    """
    return heads.scale * (heads.q[:, queries] * heads.k[:, keys].conj()).mean(axis=1)
