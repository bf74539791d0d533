"""Cosine and sine of `position * inverse frequency`, exact at any int32 position, without x64 and without tables.

An angle is held as a whole number of 2^-32 turns, which wraps for free. The inverse frequency arrives as a float32 and
a float32 remainder (48 bits); the program turns both into 48-bit fixed-point turns per position, multiplies by the
position in integers, and evaluates cos and sin on an eighth of a turn. Worst error against float64, for frequencies
made on the host: below 1e-6 for `|position| <= 2^24` and frequencies up to 3 radians a token. The 48 bits are relative
to the frequency, so in general it is below `5e-7 + |position * frequency| * 2^-45`, up to `LARGEST_FREQUENCY`.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Integer, UInt32

from rope_jax import double_float
from rope_jax.double_float import DoubleFloat
from rope_jax.frequencies import LARGEST_FREQUENCY
from rope_jax.integers import as_int32

Phase = Literal["exact", "float32"]

# In place of the 16 low bits of a frequency beyond the limit. A mark in the turns costs nothing; a second use of the
# frequency would have XLA work it out again for every position.
_LOST = 1 << 16


def check_phase(phase: str) -> None:
    """Raises `ValueError` unless `phase` is a known way of computing phases."""
    if phase not in get_args(Phase):
        raise ValueError(f"phase must be 'exact' or 'float32', got {phase!r}")


def cos_sin(
    positions: Integer[Array | np.ndarray, "*batch tokens"],
    inverse_frequencies: Float32[Array, "*#batch pairs"],
    remainder: Float32[Array, "*#batch pairs"] | None = None,
    *,
    phase: Phase = "exact",
) -> tuple[Float32[Array, "*batch tokens pairs"], Float32[Array, "*batch tokens pairs"]]:
    r"""Returns `cos(p theta)` and `sin(p theta)` for every position and pair, in float32.

    Args:
      positions: `p`, token positions, integers of any width within int32, negative ones too; one row a sequence.
      inverse_frequencies: `theta`, radians per token, shared (`[pairs]`) or one set a sequence (`[*batch, pairs]`).
        Gradients flow to it. Exact phases of a pair beyond `LARGEST_FREQUENCY` either way are NaN: values may be known
        only to the compiled program, which cannot raise.
      remainder: what float32 rounding left of `theta`, held constant under differentiation; zero where absent.
      phase: "exact"; or "float32" to form the angle in float32 as other libraries do (1.9e-3 off at 32k, 0.06 at
        1M for base 1e4), which weights trained that way carry with them.

    Raises:
      TypeError: if the positions are not integers.
      ValueError: on an unknown `phase`, or shapes that do not fit.
    """
    check_phase(phase)
    positions = as_int32("positions", positions)
    _check_shapes(positions, inverse_frequencies, remainder)
    shared_dims = positions.ndim - inverse_frequencies.ndim
    shape = (1,) * shared_dims + inverse_frequencies.shape[:-1] + (1, inverse_frequencies.shape[-1])
    theta = inverse_frequencies.reshape(shape)
    p = positions[..., None]
    if phase == "float32":
        angle = p.astype(jnp.float32) * theta
        return jnp.cos(angle), jnp.sin(angle)
    low = jnp.zeros_like(theta) if remainder is None else remainder.reshape(shape)
    return _exact_cos_sin(p, theta, low)


def _check_shapes(positions: Array, inverse_frequencies: Array, remainder: Array | None) -> None:
    if remainder is not None and remainder.shape != inverse_frequencies.shape:
        raise ValueError(f"remainder {remainder.shape} and inverse_frequencies {inverse_frequencies.shape} differ")
    batch, sets = positions.shape[:-1], inverse_frequencies.shape[:-1]
    fits = positions.ndim and inverse_frequencies.ndim and len(sets) <= len(batch)
    if not fits or any(n not in (1, m) for n, m in zip(sets[::-1], batch[::-1], strict=False)):
        raise ValueError(
            f"positions {positions.shape} must be [*batch, tokens] and inverse_frequencies "
            f"{inverse_frequencies.shape} [pairs] or [*batch, pairs]"
        )


@jax.custom_jvp
def _exact_cos_sin(
    p: Int[Array, "*tokens 1"], theta: Float32[Array, "*batch pairs"], remainder: Float32[Array, "*batch pairs"]
) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
    # The barrier keeps a compiler from working the turns out anew for every position.
    upper, lower = jax.lax.optimization_barrier(_fixed_point_turns(theta, remainder))
    lost = lower == _LOST
    cos, sin = _cos_sin_of_turns(_phase(p, upper, lower))
    return jnp.where(lost, jnp.nan, cos), jnp.where(lost, jnp.nan, sin)


@_exact_cos_sin.defjvp
def _exact_cos_sin_jvp(primals, tangents):
    # The remainder carries no tangent: an optimiser that moved both halves would move theta twice.
    p, _, _ = primals
    _, theta_dot, _ = tangents
    cos, sin = _exact_cos_sin(*primals)
    angle_dot = p.astype(jnp.float32) * theta_dot
    return (cos, sin), (-sin * angle_dot, cos * angle_dot)


def _fixed_point_turns(
    theta: Float32[Array, "*shape"], remainder: Float32[Array, "*shape"]
) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """Returns turns per position, modulo 1, as 32 high bits and 16 low bits; `_LOST` for these beyond the limit."""
    # A learned frequency may be negative; its fraction of a turn, close below 1, would lose the bits: the magnitude is
    # converted and the fixed-point number negated.
    negative = theta < 0
    magnitude = DoubleFloat(jnp.where(negative, -theta, theta), jnp.where(negative, -remainder, remainder))
    per_radian = double_float.constant(1 / (2 * math.pi), theta)
    high, low = double_float.multiply(magnitude, per_radian)
    digits = []
    rest = high - jnp.floor(high)
    for _ in range(3):  # base-65536 digits; multiplying by a power of two and dropping the whole part are exact
        rest = rest * 65536
        digits.append(jnp.floor(rest))
        rest = rest - digits[-1]
    first, second, third = (digit.astype(jnp.int32) for digit in digits)
    last = third + jnp.round(low * 2.0**48 + rest).astype(jnp.int32)  # may carry or borrow
    upper, lower = (first << 16) + second + (last >> 16), last & 0xFFFF
    upper = jnp.where(negative, -upper - (lower != 0), upper)
    lower = jnp.where(negative, -lower & 0xFFFF, lower)
    lower = jnp.where(high <= LARGEST_FREQUENCY / (2 * math.pi), lower, _LOST)  # also where high is NaN
    return upper.astype(jnp.uint32), lower.astype(jnp.uint32)


def _phase(
    p: Int[Array, "*tokens 1"], upper: UInt32[Array, "*batch pairs"], lower: UInt32[Array, "*batch pairs"]
) -> UInt32[Array, "..."]:
    """Returns `p * turns` modulo one turn, in units of 2^-32 turns."""
    # The shift is arithmetic (int32), or negative positions would be wrong.
    p_high, p_low = (p >> 16).astype(jnp.uint32), (p & 0xFFFF).astype(jnp.uint32)
    return p.astype(jnp.uint32) * upper + p_high * lower + ((p_low * lower) >> 16)


def _even_polynomial(function, *, degree: int) -> np.ndarray:
    """Returns coefficients in `z = x^2` that interpolate `function(z)` at Chebyshev nodes of `|x| <= pi/4`."""
    edge = (math.pi / 4) ** 2
    fit = np.polynomial.Chebyshev.interpolate(function, degree, domain=[0, edge])
    return fit.convert(kind=np.polynomial.Polynomial).coef.astype(np.float32)


def _sin_remainder(z: np.ndarray) -> np.ndarray:
    x = np.sqrt(z)
    return (np.sin(x) / x - 1) / z


def _cos_remainder(z: np.ndarray) -> np.ndarray:
    return (np.cos(np.sqrt(z)) - 1 + z / 2) / z**2


_SIN = _even_polynomial(_sin_remainder, degree=3)  # sin x = x + x z P(z)
_COS = _even_polynomial(_cos_remainder, degree=2)  # cos x = 1 - z/2 + z^2 P(z)


def _cos_sin_of_turns(phase: UInt32[Array, "*shape"]) -> tuple[Float32[Array, "*shape"], Float32[Array, "*shape"]]:
    """Returns cos and sin of `2 pi phase / 2^32`, reducing to an eighth of a turn in integers."""
    quadrant = (phase + jnp.uint32(1 << 29)) >> 30
    rest = (phase - (quadrant << 30)).astype(jnp.int32)  # in [-2^29, 2^29): at most an eighth of a turn
    x = rest.astype(jnp.float32) * np.float32(2 * math.pi / 2**32)
    z = x * x
    sine = x + x * z * _horner(_SIN, z)
    cosine = 1 - 0.5 * z + z * z * _horner(_COS, z)
    swaps = (quadrant & 1) == 1
    cos = jnp.where(swaps, sine, cosine)
    sin = jnp.where(swaps, cosine, sine)
    cos_negative = ((quadrant + 1) & 2) == 2
    sin_negative = (quadrant & 2) == 2
    return jnp.where(cos_negative, -cos, cos), jnp.where(sin_negative, -sin, sin)


def _horner(coefficients: np.ndarray, z: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    value = jnp.full_like(z, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * z + coefficient
    return value
