r"""What each band of rotary pairs adds to a head's logit at every distance, and the bias beside it.

.. math:: \ell_B(\Delta) = c\,\mathrm{Re} \sum_{i \in B} h_i e^{i \Delta \theta'_i}, \qquad
    h_i = \sigma\,\langle q_i \bar k_i \rangle

with the products of the head's own queries and keys, taken at the trained length. A band holds the pairs that turn so
often in training; a scaling moves some bands and leaves others, and which of them the head lives by decides what it
costs.
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from rope_jax.diagnosis.prediction.own_heads import OwnHeads, bias_of, far_products, frequencies_of, sharpness
from rope_jax.diagnosis.theory import resolution
from rope_jax.scheme import Scheme

TURNS = (1.0, 4.0, 32.0)
"""Turns within the trained length between bands: below 1 a pair has never come round; 4 and 32 are where the ramps of
Llama-3 and of YaRN end."""

_STRETCHES = 24


class Bands(NamedTuple):
    """A head's mean logit on what it looks for, over stretches of distance.

    Attributes:
      edges: of the stretches, tokens, `[stretches + 1]`.
      logits: nats, by band from the slowest pairs to the fastest, `[4, stretches]`.
      bias_nats: the bias beside them, `[stretches]`.
    """

    edges: Float64[np.ndarray, " edges"]
    logits: Float64[np.ndarray, "bands stretches"]
    bias_nats: Float64[np.ndarray, " stretches"]


def far_bands(own: OwnHeads, scheme: Scheme, *, target_length: int) -> Bands:
    """Returns the bands of the head by which questions find the item.

    Args:
      own: what was taken out of the model.
      scheme: any; its frequencies, factors and bias are used.
      target_length: `L'`, tokens.
    """
    turns = len(own.items.tokens[0]) * own.trained / (2 * np.pi)
    band = np.digitize(turns, TURNS)
    products = sharpness(own, scheme) * far_products(own)
    theta = frequencies_of(scheme)
    of_band = np.where(band == np.arange(len(TURNS) + 1)[:, None], products, 0)
    curves = resolution.phase_sum(theta, of_band, target_length)
    bias = bias_of(scheme, own.far.head, np.arange(target_length))
    edges = np.unique(np.geomspace(1, target_length, _STRETCHES + 1).round())
    stretches = [slice(int(low), int(high)) for low, high in itertools.pairwise(edges)]
    return Bands(
        edges,
        np.stack([curves[:, stretch].mean(axis=1) for stretch in stretches], axis=1),
        np.array([bias[stretch].mean() for stretch in stretches]),
    )
