r"""What a scheme does at a long length, predicted from contexts of the trained one.

A context is stretched: every filler token before its questions stands for `w` tokens of the long context, so that
facts lie as far apart as there and are looked for among as much filler. Filler inside a fact, between two events whose
order is asked for, stands for itself: a longer context does not pull them apart.

.. math:: o_i = \frac{\sum_j w_j e^{l_{ij}} v_j}{\sum_j w_j e^{l_{ij}}}, \qquad l_{ij} = c\,\sigma\,(R_{p_i} q_i) \cdot
    (R_{p_j} k_j) + b(p_i - p_j), \qquad p_j = \sum_{k<j} w_k

No row of the target length is run: the cost is that of the trained one. What is left out is that filler differs from
place to place, and what several fillers together say to the layers above.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from rope_jax.attention.api import attend
from rope_jax.attention.call import Settings
from rope_jax.decoder import Attend
from rope_jax.diagnosis.evaluation.probes import ProbeProgram
from rope_jax.diagnosis.tasks.contexts import FILLER, Contexts, first_asked
from rope_jax.errors import InputError
from rope_jax.scheme import Scheme


class Stretched(NamedTuple):
    """Where the tokens of short contexts stand in long ones, and how many tokens each stands for.

    Attributes:
      positions: `p`, `[rows, length]`.
      counts: `w`, `[rows, length]`.
    """

    positions: Int32[np.ndarray, "rows length"]
    counts: Float32[np.ndarray, "rows length"]


def stretched(items: Contexts, target_length: int) -> Stretched:
    """Returns what contexts look like that stand for ones of `target_length` tokens.

    Args:
      items: contexts of the trained length.
      target_length: `L'`, tokens.

    Raises:
      InputError: if the contexts are longer than that, or one holds no filler outside its facts.
    """
    length = items.tokens.shape[1]
    if length > target_length:
        raise InputError(f"contexts of {length} tokens cannot stand for ones of {target_length}")
    filler = np.isin(items.tokens, FILLER) & (np.arange(length) < first_asked(items)[:, None])
    for row, question in zip(*np.nonzero(items.gap), strict=True):
        second = items.position[row, question] - items.distance[row, question]
        filler[row, second - items.gap[row, question] : second] = False
    standing = filler.sum(axis=1, keepdims=True)
    if not standing.all():
        raise InputError("a context without filler outside its facts stands for no longer one")
    added = target_length - length
    passed = np.cumsum(filler, axis=1, dtype=np.int64) - filler
    positions = np.arange(length) + (passed * added + standing // 2) // standing
    counts = np.where(filler, 1 + added / standing, 1.0)
    return Stretched(positions.astype(np.int32), counts.astype(np.float32))


def counting(counts: Float[Array, " keys"]) -> Attend:
    """Returns attention in which every key counts as often as is said, for rows whose keys are all tokens."""

    def attention(q, k, v, scheme: Scheme, sinks, queries, keys, settings: Settings, implementation=None):
        if settings.soft_cap is not None:
            raise InputError("a context is stretched for models without a soft cap only")
        # One more dimension, which no rotation reaches, carries the logarithm into the logits.
        more = jnp.log(counts) / (settings.scale * scheme.logit_scale)
        more = jnp.broadcast_to(more[None, :, None, None], (*k.shape[:-1], 1)).astype(k.dtype)
        wide_q = jnp.concatenate([q, jnp.ones_like(q[..., :1])], axis=-1)
        wide_k = jnp.concatenate([k, more], axis=-1)
        return attend(wide_q, wide_k, v, scheme, sinks, queries, keys, settings, implementation)

    return attention


class StretchedProgram(ProbeProgram):
    """The answers of one decoder to contexts that are stretched, as `stretched` says how.

    Args:
      decoder: the model.
    """

    def _seen(self, *more: Array) -> dict[str, Any]:
        positions, counts = more
        return {"positions": positions[None], "attention": counting(counts)}
