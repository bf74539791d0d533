r"""What a scheme does to `bind`, predicted from the model's own queries and keys without running the scheme.

Two heads carry the relation: one by which an item finds its marker (local), one by which the question finds the item
(far). Both are chosen, and their queries and keys taken, at the trained length under the trained scheme; a scheme then
only changes angles, logits and bias:

.. math:: \ell_k = \tau\,\mathrm{Re} \sum_i q_i \bar k_i e^{i \Delta_k \theta'_i} + b(\Delta_k), \qquad
    m = \frac{e^{\ell_*}}{\sum_k n_k e^{\ell_k}}, \qquad \text{error} = 1 - m_{local}\, m_{far}

For the far relation the haystack is spread over `s` times the distance and every filler key counts `n = s` times.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64

from rope_jax.decoder import Decoder
from rope_jax.diagnosis import relations, resolution
from rope_jax.diagnosis.relations import Heads
from rope_jax.scheme import Scheme
from rope_jax.subjects.haystacks import FILLER, GROUP, PROBES, Haystacks


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
      items: the haystacks of those rows, of the trained length.
      local: the head by which items find their marker.
      far: the head by which questions find the item.
      trained: `theta`, radians per token, `[pairs]`.
    """

    rows: list[Heads]
    items: Haystacks
    local: Relation
    far: Relation
    trained: Float64[np.ndarray, " pairs"]


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a scheme is predicted to do.

    Attributes:
      error: of `bind` at each asked offset 1 ... 8, from 0 to 1.
      coherence: sharpness left at each offset itself, `C(D -> D)`, with the local head's own weights.
      g50: blur of the local head at each offset, tokens.
      just_noticeable: offset difference that the local head can tell, tokens.
      horizon: tokens beyond which the far head's bias outweighs its amplitude; infinite without a line.
      step: largest step of the far head's bias from one offset to the next, beyond the trained length, nats.
    """

    error: Float64[np.ndarray, " offsets"]
    coherence: Float64[np.ndarray, " offsets"]
    g50: tuple[int, ...]
    just_noticeable: float
    horizon: float
    step: float


def own_heads(decoder: Decoder, trained: Scheme, items: Haystacks) -> OwnHeads:
    """Returns the two heads that carry `bind`, chosen by the attention they pay under the trained scheme.

    Args:
      decoder: the model.
      trained: the scheme it was trained under.
      items: haystacks of the trained length that are not evaluated.
    """
    rows = relations.heads_of(decoder, trained, items.tokens)
    theta = _frequencies(trained)
    local = np.zeros((rows[0].q.shape[0], rows[0].q.shape[2]))
    far = np.zeros_like(local)
    for number, row in enumerate(rows):
        attention = _attention(row, theta, trained)
        for marker, item, asker in _bind_places(items, number):
            local += attention[:, :, item, marker]
            far += attention[:, :, asker, item]
    count = sum(len(_bind_places(items, number)) for number in range(len(rows)))
    return OwnHeads(rows, items, _best(local / count), _best(far / count), theta)


def _best(mass: np.ndarray) -> Relation:
    layer, head = np.unravel_index(int(mass.argmax()), mass.shape)
    return Relation(int(layer), int(head), float(mass[layer, head]))


def _bind_places(items: Haystacks, row: int) -> list[tuple[int, int, int]]:
    """Returns the positions of marker, item and question for every `bind` question of a row."""
    asked = np.flatnonzero(items.probe[row] == PROBES.index("bind"))
    position, distance, offset = items.position[row, asked], items.distance[row, asked], items.asked[row, asked]
    return [(int(p - d), int(p - d + o), int(p)) for p, d, o in zip(position, distance, offset, strict=True)]


def _frequencies(scheme: Scheme) -> np.ndarray:
    return np.asarray(scheme.inverse_frequencies, np.float64) + np.asarray(scheme.remainder, np.float64)


def _bias(scheme: Scheme, head: int, offsets: np.ndarray) -> np.ndarray:
    strip = np.asarray(scheme.offset_bias, np.float64)[head]
    index = np.clip(offsets, -scheme.max_offset, scheme.max_offset) + scheme.max_offset
    return -float(scheme.slopes[head]) * np.abs(offsets) + strip[index]


def _attention(row: Heads, theta: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Returns the causal attention of every head, `[layers, heads, tokens, tokens]`."""
    tokens = row.q.shape[1]
    turns = np.exp(1j * np.arange(tokens)[:, None] * theta)[None, :, None]
    logits = row.scale * np.einsum("LTHP,LSHP->LHTS", row.q * turns, (row.k * turns).conj()).real
    offsets = np.arange(tokens)[:, None] - np.arange(tokens)[None]
    for head in range(logits.shape[1]):
        logits[:, head] += _bias(scheme, head, offsets)
    logits = np.where(offsets >= 0, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def predict(own: OwnHeads, scheme: Scheme, *, factor: float, target_length: int) -> Prediction:
    """Returns what `scheme` does to `bind` at `factor` times the trained length.

    Args:
      own: what was taken out of the model.
      scheme: any; its frequencies, factors and bias are used.
      factor: `s`, target over trained length.
      target_length: `L'`, tokens.
    """
    theta = _frequencies(scheme)
    sharper = float(scheme.cos_sin_factor) ** 2 * float(scheme.logit_scale)
    errors: list[list[float]] = [[] for _ in range(GROUP)]
    tuned = np.zeros((GROUP, len(theta)), np.complex128)
    for number, row in enumerate(own.rows):
        tokens = own.items.tokens[number]
        asked_from = int(own.items.position[number].min()) - 3
        far_places = np.where(
            np.arange(len(tokens)) < asked_from,
            np.arange(len(tokens)) * factor,
            target_length - len(tokens) + np.arange(len(tokens)),
        ).round()
        copies = np.where(np.isin(tokens, FILLER), factor, 1.0)
        for marker, item, asker in _bind_places(own.items, number):
            near = _mass(
                row, own.local, item, marker, np.arange(len(tokens)), np.ones(len(tokens)), theta, scheme, sharper
            )
            away = _mass(row, own.far, asker, item, far_places, copies, theta, scheme, sharper)
            errors[item - marker - 1].append(1 - near * away)
            head = own.local
            tuned[item - marker - 1] += (
                row.scale * row.q[head.layer, item, head.head] * row.k[head.layer, marker, head.head].conj()
            )
    counts = np.asarray([len(values) for values in errors])
    tuned /= np.maximum(counts, 1)[:, None]
    return _described(own, scheme, theta, sharper, tuned, errors, target_length)


def _mass(row: Heads, relation: Relation, query: int, key: int, places, copies, theta, scheme: Scheme, sharper: float):
    """Returns the attention that one query pays to one key, all tokens standing at `places`."""
    layer, head = relation.layer, relation.head
    offsets = (places[query] - places[: query + 1]).astype(np.int64)
    product = row.q[layer, query, head] * row.k[layer, : query + 1, head].conj()
    logits = sharper * row.scale * (product * np.exp(1j * offsets[:, None] * theta)).sum(axis=-1).real
    logits += _bias(scheme, head, offsets)
    weights = copies[: query + 1] * np.exp(logits - logits.max())
    return float(weights[key] / weights.sum())


def _described(own: OwnHeads, scheme: Scheme, theta, sharper, tuned, errors, target_length: int) -> Prediction:
    amplitude = np.abs(tuned).sum(axis=1) * sharper
    offsets = np.arange(1, GROUP + 1)
    # The relation as the head was trained on it, turned by what the scheme makes of the same offset.
    held = (tuned * np.exp(1j * offsets[:, None] * theta)).sum(axis=1).real
    trained = (tuned * np.exp(1j * offsets[:, None] * own.trained)).sum(axis=1).real
    reach = min(target_length, 4 * len(own.items.tokens[0]))
    line = _bias(scheme, own.local.head, np.arange(reach))
    curves = resolution.phase_sum(theta, sharper * tuned, reach) + line
    weights = np.abs(tuned).mean(axis=0)
    slope = float(scheme.slopes[own.local.head])
    known = resolution.information(theta, weights, amplitude=float(amplitude.mean()), bias_slope=slope)
    far_slope = float(scheme.slopes[own.far.head])
    beyond = _bias(scheme, own.far.head, np.arange(len(own.items.tokens[0]), target_length))
    return Prediction(
        error=np.asarray([np.mean(values) if values else np.nan for values in errors]),
        coherence=held / np.maximum(np.abs(trained), 1e-12),
        g50=tuple(resolution.g50(curve, int(offset)) for curve, offset in zip(curves, offsets, strict=True)),
        just_noticeable=resolution.just_noticeable_difference(known),
        horizon=float(amplitude.mean() / far_slope) if far_slope > 0 else float("inf"),
        step=float(np.abs(np.diff(beyond)).max()) if len(beyond) > 1 else 0.0,
    )
