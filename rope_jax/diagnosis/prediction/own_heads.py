r"""What a scheme does to the heads that carry `binding`, from their own queries and keys, without running the scheme.

Two heads carry the relation: one by which an item finds its marker (local), one by which the question finds the item
(far). Both are chosen, and their queries and keys taken, at the trained length under the trained scheme; a scheme then
only changes angles, logits and bias:

.. math:: \ell(\Delta) = c\,\mathrm{Re} \sum_i h_i e^{i \Delta \theta'_i} + b(\Delta), \qquad
    h_i = \sigma\,\langle q_i \bar k_i \rangle

These are figures of two heads, not of the model: what it answers is predicted by `stretched`.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Complex128, Float64, Int

from rope_jax import rotation
from rope_jax.attention.api import attend
from rope_jax.decoder import Decoder
from rope_jax.diagnosis.tasks.contexts import GROUP, Contexts
from rope_jax.diagnosis.tasks.registry import index_of
from rope_jax.diagnosis.theory import resolution
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


@dataclasses.dataclass(frozen=True)
class Relation:
    """One head's view of one relation, over many pairs of tokens.

    Attributes:
      layer: of the head.
      head: its number.
      mass: attention it pays to the right key at the trained length, mean.
    """

    layer: int
    head: int
    mass: float


@dataclasses.dataclass(frozen=True, eq=False)
class OwnHeads:
    """What was taken out of a model.

    Attributes:
      local: the head by which items find their marker.
      far: the head by which questions find the item.
      local_products: `h` of the local head at each asked offset 1 ... 8.
      far_products: `h` of the far head.
      trained: `theta`, radians per token, `[pairs]`.
      factor: of the trained scheme on all logits, contained in the products.
      length: of the rows, tokens.
    """

    local: Relation
    far: Relation
    local_products: Complex128[np.ndarray, "offsets pairs"]
    far_products: Complex128[np.ndarray, " pairs"]
    trained: Float64[np.ndarray, " pairs"]
    factor: float
    length: int


def own_heads(decoder: Decoder, trained: Scheme, items: Contexts) -> OwnHeads:
    """Returns the two heads that carry `binding`, chosen by the attention they pay under the trained scheme.

    Args:
      decoder: the model.
      trained: the scheme it was trained under.
      items: contexts of the trained length that are not evaluated.
    """
    rows = heads_of(decoder, trained, items.tokens)
    places = [_bind_places(items, number) for number in range(len(rows))]
    theta = _frequencies(trained)
    masses = np.zeros((2, rows[0].q.shape[0], rows[0].q.shape[2]))
    for row, (markers, found, askers) in zip(rows, places, strict=True):
        masses[0] += _attention(row, theta, trained, found, markers).sum(axis=-1)
        masses[1] += _attention(row, theta, trained, askers, found).sum(axis=-1)
    local, far = map(_best, masses / sum(len(markers) for markers, _, _ in places))

    sums, counts = np.zeros((GROUP, len(theta)), np.complex128), np.zeros(GROUP)
    total = np.zeros(len(theta), np.complex128)
    for row, of_row in zip(rows, places, strict=True):
        for marker, item, asker in of_row.T[..., None]:
            sums[item - marker - 1] += products(row, item, marker)[local.layer, local.head]
            counts[item - marker - 1] += 1
            total += products(row, asker, item)[far.layer, far.head]
    return OwnHeads(
        local=local,
        far=far,
        local_products=sums / np.maximum(counts, 1)[:, None],
        far_products=total / max(int(counts.sum()), 1),
        trained=theta,
        factor=_factor(trained),
        length=items.tokens.shape[1],
    )


def head_figures(own: OwnHeads, scheme: Scheme, *, target_length: int) -> dict[str, Any]:
    """Returns what `scheme` is predicted to do to the two heads, as plain values.

    Args:
      own: what was taken out of the model.
      scheme: any; its frequencies, factors and bias are used.
      target_length: `L'`, tokens.

    Returns:
      `coherence`: sharpness left at each asked offset 1 ... 8 itself, `C(D -> D)`, with the local head's own weights.
      `g50`: blur of the local head at each offset, tokens. `just_noticeable`: offset difference that it can tell,
      tokens. `horizon`: tokens beyond which the far head's bias outweighs its amplitude. Either is None where infinite.
      `step`: largest step of the far head's bias from one offset to the next, beyond the trained length, nats.
    """
    theta, tuned = _frequencies(scheme), own.local_products
    sharper = _factor(scheme) / own.factor
    offsets = np.arange(1, GROUP + 1)
    # The relation as the head was trained on it, turned by what the scheme makes of the same offset.
    held, trained = ((tuned * np.exp(1j * offsets[:, None] * at)).sum(axis=1).real for at in (theta, own.trained))
    reach = min(target_length, 4 * own.length)
    curves = resolution.phase_sum(theta, sharper * tuned, reach) + _bias(scheme, own.local.head, np.arange(reach))
    known = resolution.information(
        theta,
        np.abs(tuned).mean(axis=0),
        amplitude=float((np.abs(tuned).sum(axis=1) * sharper).mean()),
        bias_slope=float(scheme.slopes[own.local.head]),
    )
    noticeable = resolution.just_noticeable_difference(known)
    slope = float(scheme.slopes[own.far.head])
    beyond = _bias(scheme, own.far.head, np.arange(own.length, target_length))
    return {
        "coherence": (held / np.maximum(np.abs(trained), 1e-12)).tolist(),
        "g50": [resolution.g50(curve, int(offset)) for curve, offset in zip(curves, offsets, strict=True)],
        "just_noticeable": noticeable if math.isfinite(noticeable) else None,
        "horizon": float(sharper * np.abs(own.far_products).sum() / slope) if slope > 0 else None,
        "step": float(np.abs(np.diff(beyond)).max()) if len(beyond) > 1 else 0.0,
    }


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

    def pairs(x: np.ndarray) -> np.ndarray:
        turning = jnp.asarray(x[..., : scheme.rotary_dim])
        return np.asarray(rotation.as_complex(turning, layout=scheme.layout)).astype(np.complex128)

    result = []
    for row in rows:
        q, k = (np.asarray(x) for x in run(state, jnp.asarray(row, jnp.int32)))
        k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
        result.append(Heads(pairs(q), pairs(k), _factor(scheme) * q.shape[-1] ** -0.5))
    return result


def products(
    heads: Heads, queries: Int[np.ndarray, " n"], keys: Int[np.ndarray, " n"]
) -> Complex128[np.ndarray, "layers heads pairs"]:
    r"""Returns the mean product of queries and keys, pair by pair, in nats before any turning.

    .. math:: h_i = \sigma\,\langle q_i \bar k_i \rangle

    so that the logit of the relation at offset `D` under frequencies `theta'` is `Re sum_i h_i e^{i D theta'_i}`: its
    modulus is the weight of a pair and the sum of the moduli the amplitude `A`, both measured.

    Args:
      heads: of one row.
      queries: positions of the tokens that look.
      keys: positions of what each looks for.
    """
    return heads.scale * (heads.q[:, queries] * heads.k[:, keys].conj()).mean(axis=1)


def _factor(scheme: Scheme) -> float:
    # Turning multiplies queries and keys by the cos/sin factor, logits by its square.
    return float(scheme.logit_scale) * float(scheme.cos_sin_factor) ** 2


def _frequencies(scheme: Scheme) -> Float64[np.ndarray, " pairs"]:
    return np.asarray(scheme.inverse_frequencies, np.float64) + np.asarray(scheme.remainder, np.float64)


def _bias(scheme: Scheme, head: int, offsets: Int[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    strip = np.asarray(scheme.offset_bias, np.float64)[head]
    index = np.clip(offsets, -scheme.max_offset, scheme.max_offset) + scheme.max_offset
    return -float(scheme.slopes[head]) * np.abs(offsets) + strip[index]


def _best(mass: np.ndarray) -> Relation:
    layer, head = np.unravel_index(int(mass.argmax()), mass.shape)
    return Relation(int(layer), int(head), float(mass[layer, head]))


def _bind_places(items: Contexts, row: int) -> Int[np.ndarray, "3 questions"]:
    """Returns the positions of marker, item and question for every `binding` question of a row."""
    asked = items.probe[row] == index_of("binding")
    position, distance, offset = items.position[row, asked], items.distance[row, asked], items.asked[row, asked]
    return np.stack([position - distance, position - distance + offset, position])


def _attention(row: Heads, theta: np.ndarray, scheme: Scheme, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns the causal attention that every head pays from each query to its key, `[layers, heads, queries]`."""
    tokens = np.arange(row.q.shape[1])
    turns = np.exp(1j * tokens[:, None] * theta)[:, None]
    turned_q, turned_k = row.q[:, queries] * turns[queries], row.k * turns
    # One product of matrices a layer and head, over the pairs.
    logits = row.scale * (turned_q.transpose(0, 2, 1, 3) @ turned_k.transpose(0, 2, 3, 1).conj()).real
    offsets = queries[:, None] - tokens
    for head in range(logits.shape[1]):
        logits[:, head] += _bias(scheme, head, offsets)
    logits = np.where(offsets >= 0, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.take_along_axis(weights, keys[None, None, :, None], axis=-1)[..., 0] / weights.sum(axis=-1)
