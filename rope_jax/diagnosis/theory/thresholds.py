r"""Three different answers to "by how much must the base grow", none of which implies another.

A base multiplied by `lambda` gives `\theta_i \lambda^{-2i/d}`. Symbols as in `resolution`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from rope_jax.diagnosis.theory import resolution
from rope_jax.diagnosis.theory.resolution import BLOCK, phase_sum
from rope_jax.frequencies import Frequencies


def scaled_by_base(frequencies: Frequencies, multiplier: float) -> Frequencies:
    r"""Returns `\theta_i \lambda^{-2i/d}`, the frequencies under a base `lambda` times as large."""
    pairs = len(frequencies)
    return frequencies * multiplier ** -(np.arange(pairs) / pairs)


def in_distribution_multiplier(
    frequencies: Frequencies, *, trained: Frequencies | None = None, original_length: int, target_length: int
) -> float | None:
    r"""Returns the smallest `lambda >= 1` that leaves no pair out of distribution, up to the target length.

    .. math:: \lambda = \max_{i:\,(L-1)\theta_i < 2\pi} \Big(\frac{(L'-1)\,\theta^0_i}{(L-1)\,\theta_i}\Big)^{d/2i}

    The first pair that does not turn fully in training mostly decides, since base scaling stretches it least.

    Args:
      frequencies: `theta^0`, before any scaling, `[pairs]`.
      trained: `theta`, those that the weights were trained with, `[pairs]`; by default `theta^0`.
      original_length: `L`, tokens.
      target_length: `L'`, tokens.

    Returns:
      `lambda`; 1 when no pair can leave the trained range; None when no base helps (the first pair, which no base
      changes, does not turn fully either, or a single token was trained on).
    """
    if original_length < 2:
        return None
    limit = (original_length - 1) * (frequencies if trained is None else trained)
    partial = (limit < 2 * np.pi) & (frequencies > 0)
    with np.errstate(divide="ignore", over="ignore"):
        stretch = (target_length - 1) * frequencies[partial] / limit[partial]
        needed = stretch > 1
        if not needed.any():
            return 1.0
        exponents = len(frequencies) / np.flatnonzero(partial)[needed]  # infinite for pair 0
        largest = float((stretch[needed] ** exponents).max())
    return largest if np.isfinite(largest) else None


_SLAB = 2**7  # blocks of offsets tried together


@dataclasses.dataclass(frozen=True)
class NonNegativeBase:
    """Where `B(m)` stays at or above zero over the whole target length.

    Attributes:
      multiplier: the smallest `lambda` found, or None if there is none up to the scan's end; a lower bound where not
        every offset was tried.
      fails_again_at: the next larger `lambda` of the scan at which `B` dips below zero, up to twice `multiplier`,
        or None.
      step: ratio of neighbouring `lambda` in the scan, less 1; a narrower interval could be missed.
      offsets: `m` tried; fewer than `L' + 1` for a very long context.
    """

    multiplier: float | None
    fails_again_at: float | None
    step: float
    offsets: int


def non_negative_multiplier(
    frequencies: Frequencies, *, target_length: int, step: float = 0.005, largest: float = 1e6
) -> NonNegativeBase:
    r"""Returns the smallest `lambda` with `B(m) = \sum_i \cos m\theta_i >= 0` for all `0 <= m <= L'`.

    Below zero, a key like the query scores worse than a random one, so content cannot be found at that offset.

    It is not monotone in `lambda`: a larger base can fail again, so the answer comes from a scan upwards from 1 in
    steps of a constant ratio, its edge then narrowed by halving. After the first success the scan goes on to twice
    that `lambda`, to see whether it fails again. Of a very long context not every offset is tried, see
    `resolution.evenly`: a dip between those that are is missed, and the answer is a lower bound.

    Args:
      frequencies: `theta`, trained, `[pairs]`.
      target_length: `L'`, tokens.
      step: ratio of neighbouring `lambda`, less 1.
      largest: where to stop.

    Source: Men et al., arXiv 2405.14591, section 4.
    """
    known_bad = np.zeros(0, dtype=np.int64)
    coefficients = np.ones((1, len(frequencies)), np.complex128)
    most = 8 * resolution.most_offsets(len(frequencies))  # a dip is a single offset: its neighbours say little
    samples, offsets = resolution.evenly(target_length + 1, most=most)

    def holds(multiplier: float) -> bool:
        nonlocal known_bad
        theta = scaled_by_base(frequencies, multiplier)
        # Dips sit at nearly the same offsets for neighbouring lambda: what failed last is tried first.
        for tried in (known_bad[:16], known_bad[16:]):
            failing = tried[np.cos(tried[:, None] * theta).sum(1) < 0]
            if len(failing):
                known_bad = np.concatenate([failing[:1], known_bad[known_bad != failing[0]]])
                return False
        # From the far end, where dips are deepest, in slabs: most lambda fail in the first.
        for end in range(len(samples), 0, -_SLAB):
            blocks = samples[max(end - _SLAB, 0) : end]
            curve = phase_sum(theta, coefficients, target_length + 1, blocks=blocks)[0]
            bad = np.flatnonzero(curve < 0)
            if len(bad):
                first_of_slab = max(end - _SLAB, 0) * BLOCK
                deepest = offsets[first_of_slab + bad[np.argsort(curve[bad])[:64]]]
                known_bad = np.concatenate([deepest, np.setdiff1d(known_bad, deepest)])[:256]
                return False
        return True

    first: float | None = None
    below, multiplier = 1.0, 1.0
    while multiplier <= (largest if first is None else 2 * first):
        if holds(multiplier):
            if first is None:
                first = _edge(holds, below, multiplier)
        elif first is not None:
            return NonNegativeBase(first, multiplier, step, len(offsets))
        below, multiplier = multiplier, multiplier * (1 + step)
    return NonNegativeBase(first, None, step, len(offsets))


def _edge(holds: Callable[[float], bool], fails: float, succeeds: float) -> float:
    """Returns a point within 1e-5 above where `holds` turns true between `fails` and `succeeds`."""
    while succeeds - fails > 1e-5 * fails:
        middle = (fails + succeeds) / 2
        fails, succeeds = (fails, middle) if holds(middle) else (middle, succeeds)
    return succeeds
