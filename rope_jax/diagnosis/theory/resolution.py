r"""What a change of frequencies and a bias do to positional resolution, predicted from the numbers of a config alone.

Nothing here has seen a weight or a token: these are predictions, to be put beside measurements. Float64 on the host,
no JAX. Symbols: `theta` trained and `theta'` scaled inverse frequencies, `L` trained and `L'` target length, `Delta`
an offset in tokens, `Delta*` the offset a head is tuned to, `w` the weight of a pair (uniform, or a measured `|q||k|`)
and `w_hat` the same with sum 1, `A` the amplitude of the rotary logit in nats, `b(Delta)` the bias in nats.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Complex128, Float64, Int64

from rope_jax.errors import InputError
from rope_jax.frequencies import Frequencies, check_positive

Curves = Float64[np.ndarray, "stars offsets"]
OffsetCurve = Float64[np.ndarray, " offsets"]

CLASSES = {
    "interpolated": "every phase it reaches lies within those of training",
    "extrapolated": "stretched by less than the context, but it turned fully in training: no angle is new",
    "out of distribution": "never turned fully in training, and now reaches phases that training never showed",
    "unchanged": "same frequency, and no angle is new",
    "still": "does not turn",
}

BLOCK = 256
"""Offsets in a row of the factored phase table."""

MOST_OFFSETS = 2**17
MOST_PAIRS = 1024
_PHASES = 2**24  # (pair, offset): as many as 128 pairs have at the most offsets
_BYTES = 16 * 6  # an entry of a phase table: a complex number, and copies of it at work


def uniform_weights(pairs: int) -> Frequencies:
    """Returns the weight `1 / pairs` for every pair: what a config alone can say."""
    return np.full(pairs, 1.0 / pairs)


def normalized(weights: Frequencies) -> Frequencies:
    """Returns `w_hat = w / sum(w)`.

    Raises:
      InputError: unless the weights are finite, none negative and not all zero.
    """
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise InputError("pair weights must be finite, none below zero, and not all zero")
    return weights / weights.sum()


def never_turns_fully(trained: Frequencies, original_length: int) -> Bool[np.ndarray, " pairs"]:
    r"""Returns which pairs complete no period over the trained length, `(L - 1)\theta_i < 2\pi`."""
    return (original_length - 1) * trained < 2 * np.pi


def first_offset_out(trained: Frequencies, scaled: Frequencies, original_length: int) -> Int64[np.ndarray, " pairs"]:
    r"""Returns the smallest offset at which each pair is out of distribution.

    .. math:: \min\{\Delta : \Delta\theta'_i > (L-1)\theta_i\} \quad\text{where } (L-1)\theta_i < 2\pi

    Args:
      trained: `theta`, `[pairs]`.
      scaled: `theta'`, `[pairs]`.
      original_length: `L`, tokens.

    Returns:
      int64 `[pairs]`, tokens; the largest int64 where no offset is.
    """
    never = np.iinfo(np.int64).max
    limit = (original_length - 1) * trained
    candidates = never_turns_fully(trained, original_length) & (scaled > 0)
    last_in = np.floor(np.divide(limit, scaled, out=np.zeros_like(limit), where=candidates))
    # The quotient may round across a whole number; the products decide.
    last_in += (last_in + 1) * scaled <= limit
    last_in -= last_in * scaled > limit
    return np.where(candidates & (last_in < 2**62), np.minimum(last_in, 2**62).astype(np.int64) + 1, never)


def out_of_distribution_share(
    trained: Frequencies, scaled: Frequencies, *, original_length: int, target_length: int
) -> float:
    r"""Returns the share of (pair, offset) combinations, offsets `0 ... L' - 1`, whose phase training never showed.

    .. math:: \frac{\#\{(i, \Delta) : (L-1)\theta_i < 2\pi,\ \Delta\theta'_i > (L-1)\theta_i\}}{(d/2)\,L'}

    Linear interpolation by exactly `L'/L` leaves a few of them: its last `L'/L - 1` offsets lie less than one trained
    step beyond `L - 1`.

    Args:
      trained: `theta`, `[pairs]`.
      scaled: `theta'`, `[pairs]`.
      original_length: `L`, tokens.
      target_length: `L'`, tokens; a sliding window's size for layers that have one.
    """
    first = first_offset_out(trained, scaled, original_length)
    return float(np.maximum(target_length - first.astype(np.float64), 0).sum() / (len(trained) * target_length))


def classify_pairs(
    trained: Frequencies, scaled: Frequencies, *, original_length: int, target_length: int
) -> tuple[str, ...]:
    """Returns each pair's class, a key of `CLASSES`.

    A phase less than one trained step beyond the last one (`Delta theta' < L theta`) counts as met: it is what
    interpolation by exactly `L'/L` leaves over.

    Args:
      trained: `theta`, `[pairs]`.
      scaled: `theta'`, `[pairs]`.
      original_length: `L`, tokens.
      target_length: `L'`, tokens; a sliding window's size for layers that have one.
    """
    farthest = (target_length - 1) * scaled
    within = farthest < original_length * trained
    classes = []
    for theta, new, inside, partial in zip(
        trained, scaled, within, never_turns_fully(trained, original_length), strict=True
    ):
        if new == 0:
            classes.append("still")
        elif partial and not inside:
            classes.append("out of distribution")
        elif abs(new - theta) <= 1e-12 * theta:
            classes.append("unchanged")
        else:
            classes.append("interpolated" if inside else "extrapolated")
    return tuple(classes)


def phase_sum(
    frequencies: Frequencies,
    coefficients: Complex128[np.ndarray, "stars pairs"],
    length: int,
    *,
    blocks: Int64[np.ndarray, " blocks"] | None = None,
) -> Curves:
    r"""Returns a sum of rotating pairs at every offset, `Re \sum_i c_{ni} e^{i\Delta\theta_i}`.

    With `Delta = 256 a + b` the phases factor, so the sum is one matrix product and few sines are taken.

    Args:
      frequencies: `theta`, radians per token, `[pairs]`.
      coefficients: `c`, complex, `[stars, pairs]`.
      length: offsets `0 ... length - 1`.
      blocks: which `256 a ... 256 a + 255` to work out, rising, `[blocks]`; all by default.

    Returns:
      float64 `[stars, length]`; with `blocks` only their offsets below `length`.
    """
    rows = np.arange(-(-length // BLOCK)) if blocks is None else blocks
    size = len(rows) * BLOCK - max((int(rows[-1]) + 1) * BLOCK - length, 0)
    outer = np.exp(1j * BLOCK * rows[:, None] * frequencies)
    inner = np.exp(1j * np.arange(BLOCK)[:, None] * frequencies)
    inner_parts = np.concatenate([inner.real, inner.imag], axis=1).T
    sums = np.empty((len(coefficients), size))
    for n, c in enumerate(coefficients):
        rotated = outer * c
        rotated_parts = np.concatenate([rotated.real, -rotated.imag], axis=1)
        # Not `@`: products this small lose more to the BLAS's threads, on a busy machine forty times over.
        sums[n] = np.einsum("rp,pb->rb", rotated_parts, inner_parts).reshape(-1)[:size]
    return sums


def most_offsets(pairs: int) -> int:
    """Returns how many offsets are worked out at most; the more pairs, the fewer, so that the work is bounded."""
    return min(MOST_OFFSETS, _PHASES // max(pairs, 1) // BLOCK * BLOCK)


def check_pairs(pairs: int, reach: int, *, origin: str) -> None:
    """Raises `InputError` where there are too many rotary pairs to inspect, before anything of that size is made."""
    if pairs > MOST_PAIRS:
        rows = BLOCK + -(-min(reach, MOST_OFFSETS) // BLOCK)
        raise InputError(
            f"{origin}: a rotary dimension of {2 * pairs:,} makes {pairs:,} pairs; their phases would take about "
            f"{rows * pairs * _BYTES / 1e9:,.1f} GB: at most {MOST_PAIRS:,} pairs are inspected"
        )


def evenly(
    reach: int, *, most: int, also: Sequence[float] = ()
) -> tuple[Int64[np.ndarray, " blocks"], Int64[np.ndarray, " offsets"]]:
    """Returns every offset below `reach`, or, beyond a limit, that many: half at both ends, half in between.

    Args:
      reach: offsets `0 ... reach - 1`; one more than the limit is still within it, a target length counted in.
      most: the limit, a multiple of `BLOCK`.
      also: offsets whose blocks are there too, beside the limit; those beyond `reach` do not count.

    Returns:
      rising numbers of the blocks of `BLOCK` neighbouring offsets, and the offsets below `reach` in them.
    """
    last = (reach - 1) // BLOCK
    blocks = np.arange(last + 1)
    if reach > most + 1:
        dense = max(most // BLOCK // 4, 1)
        between = np.linspace(dense, last + 1 - dense, max(most // BLOCK - 2 * dense, 1), endpoint=False)
        named = np.array([offset // BLOCK for offset in also if offset < reach], np.int64)
        blocks = np.unique(np.concatenate([blocks[:dense], between.astype(np.int64), blocks[-dense:], named]))
    offsets = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    return blocks, offsets[offsets < reach]


def kernel(frequencies: Frequencies, weights: Frequencies, length: int) -> OffsetCurve:
    r"""Returns how alike two offsets are that lie `delta` apart, for `delta = 0 ... length - 1`.

    .. math:: K(\delta) = \frac{\sum_i w_i \cos \delta\theta_i}{\sum_i w_i}
    """
    return phase_sum(frequencies, normalized(weights).astype(np.complex128)[None], length)[0]


def fisher(frequencies: Frequencies, weights: Frequencies) -> float:
    r"""Returns the sharpness of the kernel at its top, `F = \sum_i w_i\theta_i^2 / \sum_i w_i`, radians² per token²."""
    return float(normalized(weights) @ frequencies**2)


def fisher_ratio(trained: Frequencies, scaled: Frequencies, weights: Frequencies) -> float:
    """Returns `F / F0`, the sharpness left after scaling; 1 when nothing is scaled."""
    return fisher(scaled, weights) / fisher(trained, weights)


def information(
    frequencies: Frequencies, weights: Frequencies, *, amplitude: float, bias_slope: float, noise: float = 1.0
) -> float:
    r"""Returns the information that one logit carries about its offset, rotation and bias together.

    .. math:: I(\Delta) = \frac{A^2 \sum_i \hat w_i \theta_i^2}{2\sigma^2} + \frac{b'(\Delta)^2}{\sigma^2}

    Phases are taken as independent. A line adds the same at every offset, so this alone ranks nothing: read it
    beside the attention mass that stays.

    Args:
      frequencies: the frequencies in use, `[pairs]`.
      weights: `w`, `[pairs]`.
      amplitude: `A`, nats.
      bias_slope: `b'(Delta)`, nats per token.
      noise: `sigma`, nats.
    """
    check_positive("noise", noise)
    return (amplitude**2 * fisher(frequencies, weights) / 2 + bias_slope**2) / noise**2


def just_noticeable_difference(information: float) -> float:
    r"""Returns the offset difference one logit can tell, `1/\sqrt{I}` tokens; infinite when there is no information."""
    return math.inf if information <= 0 else 1 / math.sqrt(information)


def coherence_curves(
    trained: Frequencies,
    scaled: Frequencies,
    weights: Frequencies,
    stars: Sequence[int],
    length: int,
    *,
    blocks: Int64[np.ndarray, " blocks"] | None = None,
) -> Curves:
    r"""Returns coherence: where a relation trained at `Delta*` lands after the change, and how sharp it is.

    .. math:: C(\Delta^* \to \Delta) = \sum_i \hat w_i \cos(\Delta\theta'_i - \Delta^*\theta_i)

    Args:
      trained: `theta`, `[pairs]`.
      scaled: `theta'`, `[pairs]`.
      weights: `w`, `[pairs]`.
      stars: the offsets `Delta*`, tokens.
      length: offsets `Delta = 0 ... length - 1`.
      blocks: which blocks of offsets to work out, see `phase_sum`.

    Returns:
      float64 `[stars, length]`, at most 1; with `blocks` only their offsets.
    """
    tuned = np.exp(-1j * np.asarray(stars, dtype=np.float64)[:, None] * trained)
    return phase_sum(scaled, tuned * normalized(weights), length, blocks=blocks)


def peak(curve: OffsetCurve) -> tuple[int, float]:
    """Returns the offset of a curve's largest value, and that value."""
    top = int(np.argmax(curve))
    return top, float(curve[top])


def g50(logits: OffsetCurve, star: int) -> int:
    r"""Returns the smallest `g` such that half of the softmax mass lies within `g` tokens of `star`.

    With logits `A K(\Delta - \Delta^*) + b(\Delta)` over all `Delta < L'` this is the blur of attention. It depends
    strongly on `A`: show it against `A`.

    Args:
      logits: nats, one an offset, `[offsets]`.
      star: `Delta*`, tokens.
    """
    mass = np.exp(logits - logits.max())
    running = np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum()
    first, end = np.clip(star - np.arange(len(logits) + 1), 0, None), star + 1 + np.arange(len(logits) + 1)
    within = running[np.minimum(end, len(logits))] - running[first]
    return int(np.argmax(within >= 0.5))
