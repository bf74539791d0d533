r"""What a scheme does to the heads that carry `binding`, from their own queries and keys, without running the scheme.

Two heads carry the relation: one by which an item finds its marker (local), one by which the question finds the item
(far). Both are chosen, and their queries and keys taken, at the trained length under the trained scheme; a scheme then
only changes angles, logits and bias:

.. math:: \ell(\Delta) = c\,\mathrm{Re} \sum_i h_i e^{i \Delta \theta'_i} + b(\Delta), \qquad
    h_i = \sigma\,\langle q_i \bar k_i \rangle

These are figures of two heads, not of the model: what it answers is predicted by `stretched`.
"""

import dataclasses

import numpy as np
from jaxtyping import Complex128, Float64, Int

from rope_jax.decoder import Decoder
from rope_jax.diagnosis.prediction import relations
from rope_jax.diagnosis.prediction.relations import Heads
from rope_jax.diagnosis.tasks.contexts import GROUP, Contexts
from rope_jax.diagnosis.tasks.registry import index_of
from rope_jax.diagnosis.theory import resolution
from rope_jax.scheme import Scheme


@dataclasses.dataclass(frozen=True, eq=False)
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
      rows: queries and keys of every row.
      items: the contexts of those rows, of the trained length.
      local: the head by which items find their marker.
      far: the head by which questions find the item.
      trained: `theta`, radians per token, `[pairs]`.
      factor: of the trained scheme on all logits, contained in the products.
    """

    rows: list[Heads]
    items: Contexts
    local: Relation
    far: Relation
    trained: Float64[np.ndarray, " pairs"]
    factor: float


@dataclasses.dataclass(frozen=True, eq=False)
class HeadFigures:
    """What a scheme is predicted to do to the two heads.

    Attributes:
      coherence: sharpness left at each asked offset 1 ... 8 itself, `C(D -> D)`, with the local head's own weights.
      g50: blur of the local head at each offset, tokens.
      just_noticeable: offset difference that the local head can tell, tokens.
      horizon: tokens beyond which the far head's bias outweighs its amplitude; infinite without a line.
      step: largest step of the far head's bias from one offset to the next, beyond the trained length, nats.
    """

    coherence: Float64[np.ndarray, " offsets"]
    g50: tuple[int, ...]
    just_noticeable: float
    horizon: float
    step: float


def own_heads(decoder: Decoder, trained: Scheme, items: Contexts) -> OwnHeads:
    """Returns the two heads that carry `binding`, chosen by the attention they pay under the trained scheme.

    Args:
      decoder: the model.
      trained: the scheme it was trained under.
      items: contexts of the trained length that are not evaluated.
    """
    rows = relations.heads_of(decoder, trained, items.tokens)
    theta = frequencies_of(trained)
    local = np.zeros((rows[0].q.shape[0], rows[0].q.shape[2]))
    far = np.zeros_like(local)
    for number, row in enumerate(rows):
        markers, found, askers = np.array(_bind_places(items, number)).T
        local += _attention(row, theta, trained, found, markers).sum(axis=-1)
        far += _attention(row, theta, trained, askers, found).sum(axis=-1)
    count = sum(len(_bind_places(items, number)) for number in range(len(rows)))
    return OwnHeads(rows, items, _best(local / count), _best(far / count), theta, _factor(trained))


def _factor(scheme: Scheme) -> float:
    return float(scheme.cos_sin_factor) ** 2 * float(scheme.logit_scale)


def sharpness(own: OwnHeads, scheme: Scheme) -> float:
    """Returns what a scheme multiplies all logits by, over what the trained one does."""
    return _factor(scheme) / own.factor


def _best(mass: np.ndarray) -> Relation:
    layer, head = np.unravel_index(int(mass.argmax()), mass.shape)
    return Relation(int(layer), int(head), float(mass[layer, head]))


def _bind_places(items: Contexts, row: int) -> list[tuple[int, int, int]]:
    """Returns the positions of marker, item and question for every `binding` question of a row."""
    asked = np.flatnonzero(items.probe[row] == index_of("binding"))
    position, distance, offset = items.position[row, asked], items.distance[row, asked], items.asked[row, asked]
    return [(int(p - d), int(p - d + o), int(p)) for p, d, o in zip(position, distance, offset, strict=True)]


def frequencies_of(scheme: Scheme) -> Float64[np.ndarray, " pairs"]:
    """Returns the inverse frequencies of a scheme, both halves together, radians per token."""
    return np.asarray(scheme.inverse_frequencies, np.float64) + np.asarray(scheme.remainder, np.float64)


def bias_of(scheme: Scheme, head: int, offsets: Int[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    """Returns the bias of one head at `offsets`, nats."""
    strip = np.asarray(scheme.offset_bias, np.float64)[head]
    index = np.clip(offsets, -scheme.max_offset, scheme.max_offset) + scheme.max_offset
    return -float(scheme.slopes[head]) * np.abs(offsets) + strip[index]


def _attention(row: Heads, theta: np.ndarray, scheme: Scheme, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns the causal attention that every head pays from each query to its key, `[layers, heads, queries]`."""
    tokens = np.arange(row.q.shape[1])
    turns = np.exp(1j * tokens[:, None] * theta)[:, None]
    turned_q, turned_k = row.q[:, queries] * turns[queries], row.k * turns
    # One product of matrices a layer and head, over the pairs.
    products = turned_q.transpose(0, 2, 1, 3) @ turned_k.transpose(0, 2, 3, 1).conj()
    logits = row.scale * products.real
    offsets = queries[:, None] - tokens
    for head in range(logits.shape[1]):
        logits[:, head] += bias_of(scheme, head, offsets)
    logits = np.where(offsets >= 0, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.take_along_axis(weights, keys[None, None, :, None], axis=-1)[..., 0] / weights.sum(axis=-1)


def _product(row: Heads, relation: Relation, query: int, key: int) -> Complex128[np.ndarray, " pairs"]:
    return relations.products(row, np.array([query]), np.array([key]))[relation.layer, relation.head]


def far_products(own: OwnHeads) -> Complex128[np.ndarray, " pairs"]:
    """Returns `h` of the head by which questions find the item, before any turning."""
    total, count = np.zeros(len(own.trained), np.complex128), 0
    for number, row in enumerate(own.rows):
        for _, item, asker in _bind_places(own.items, number):
            total += _product(row, own.far, asker, item)
            count += 1
    return total / max(count, 1)


def head_figures(own: OwnHeads, scheme: Scheme, *, target_length: int) -> HeadFigures:
    """Returns what `scheme` does to the two heads.

    Args:
      own: what was taken out of the model.
      scheme: any; its frequencies, factors and bias are used.
      target_length: `L'`, tokens.
    """
    theta = frequencies_of(scheme)
    sharper = sharpness(own, scheme)
    sums, counts = np.zeros((GROUP, len(theta)), np.complex128), np.zeros(GROUP)
    for number, row in enumerate(own.rows):
        for marker, item, _ in _bind_places(own.items, number):
            sums[item - marker - 1] += _product(row, own.local, item, marker)
            counts[item - marker - 1] += 1
    tuned = sums / np.maximum(counts, 1)[:, None]
    amplitude = np.abs(tuned).sum(axis=1) * sharper
    offsets = np.arange(1, GROUP + 1)
    # The relation as the head was trained on it, turned by what the scheme makes of the same offset.
    held = (tuned * np.exp(1j * offsets[:, None] * theta)).sum(axis=1).real
    trained = (tuned * np.exp(1j * offsets[:, None] * own.trained)).sum(axis=1).real
    length = len(own.items.tokens[0])
    reach = min(target_length, 4 * length)
    line = bias_of(scheme, own.local.head, np.arange(reach))
    curves = resolution.phase_sum(theta, sharper * tuned, reach) + line
    weights = np.abs(tuned).mean(axis=0)
    slope = float(scheme.slopes[own.local.head])
    known = resolution.information(theta, weights, amplitude=float(amplitude.mean()), bias_slope=slope)
    far_slope = float(scheme.slopes[own.far.head])
    beyond = bias_of(scheme, own.far.head, np.arange(length, target_length))
    return HeadFigures(
        coherence=held / np.maximum(np.abs(trained), 1e-12),
        g50=tuple(resolution.g50(curve, int(offset)) for curve, offset in zip(curves, offsets, strict=True)),
        just_noticeable=resolution.just_noticeable_difference(known),
        horizon=float(sharper * np.abs(far_products(own)).sum() / far_slope) if far_slope > 0 else float("inf"),
        step=float(np.abs(np.diff(beyond)).max()) if len(beyond) > 1 else 0.0,
    )
