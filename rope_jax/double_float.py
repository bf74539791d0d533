"""Unevaluated sums of two float32, about 46 bits, for frequencies that are born under jit without x64.

Every product here is of 12-bit halves and so exact in float32: a compiler that contracts `a*b + c` into one fused
operation cannot change a result. Sources: Dekker 1971 (splitting), Knuth, TAOCP 2, 4.2.2 (two-sum).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class DoubleFloat(NamedTuple):
    """The number `high + low`, with `high` the float32 nearest to it."""

    high: Float[Array, "*shape"]
    low: Float[Array, "*shape"]


def split(value: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Returns float64 `value` as the nearest float32 and the float32 remainder, on the host."""
    value = np.asarray(value, np.float64)
    high = value.astype(np.float32)
    return high, np.asarray(value - high.astype(np.float64), np.float32)


def constant(value: float, like: Float[Array, "*shape"]) -> DoubleFloat:
    """Returns `value` everywhere in the shape of `like`."""
    high, low = split(value)
    return DoubleFloat(jnp.full_like(like, high), jnp.full_like(like, low))


def _halves(x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Splits the 24-bit significand by masking bits, which no floating-point rewriting can undo."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    high = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFFF000), jnp.float32)
    return high, x - high


def _two_sum(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> DoubleFloat:
    total = a + b
    part = total - a
    return DoubleFloat(total, (a - (total - part)) + (b - part))


def normalised(x: DoubleFloat) -> DoubleFloat:
    """Returns `x` with `high` the float32 nearest to the sum, whatever the halves were."""
    return _two_sum(x.high, x.low)


def add(x: DoubleFloat, y: DoubleFloat) -> DoubleFloat:
    """Returns `x + y`."""
    total = _two_sum(x.high, y.high)
    return _two_sum(total.high, total.low + (x.low + y.low))


def multiply(x: DoubleFloat, y: DoubleFloat) -> DoubleFloat:
    """Returns `x * y`."""
    x_high, x_low = _halves(x.high)
    y_high, y_low = _halves(y.high)
    first = _two_sum(x_high * y_low, x_low * y_high)
    product = add(DoubleFloat(x_high * y_high, jnp.zeros_like(x_high)), first)
    cross = x_low * y_low + (x.high * y.low + x.low * y.high)
    return _two_sum(product.high, product.low + cross)


def exp(x: DoubleFloat) -> DoubleFloat:
    """Returns `e^x` to a relative 1e-13 for `|x| < 16` and 3e-13 for `|x| < 50`.

    A power of two times a Taylor series on `|r| <= ln 2 / 2`. Below -55 the low half underflows, and the
    result is a float32.
    """
    power = jnp.round(x.high * np.float32(1 / math.log(2)))
    # power * ln 2 must be exact to 2^-48 of 1, so ln 2 is a double-float too.
    reduced = add(x, multiply(DoubleFloat(-power, jnp.zeros_like(power)), constant(math.log(2), power)))
    # A loop, not one long expression: what uses the result would otherwise have XLA work all of it out again for every
    # element, and each term again for every use of it, which takes time exponential in the terms.
    result = _next_term(constant(1 / math.factorial(15), power), split(1 / math.factorial(14)), reduced)
    rest = tuple(jnp.asarray(half) for half in split(1 / np.array([math.factorial(n) for n in range(13, -1, -1)])))
    (result, _), _ = jax.lax.scan(_horner_step, (result, reduced), rest)
    # XLA's exp2 is not exact even at whole numbers, so the power of two is built from its exponent bits.
    exponent = (power.astype(jnp.int32) + 127) << 23
    scale = jax.lax.bitcast_convert_type(exponent, jnp.float32)
    return DoubleFloat(result.high * scale, result.low * scale)


def _horner_step(carry: tuple[DoubleFloat, DoubleFloat], coefficient) -> tuple[tuple[DoubleFloat, DoubleFloat], None]:
    value, x = carry
    return (_next_term(value, coefficient, x), x), None


def _next_term(value: DoubleFloat, coefficient, x: DoubleFloat) -> DoubleFloat:
    """Returns `value * x + coefficient`, the coefficient in two scalar halves."""
    high, low = (jnp.broadcast_to(half, x.high.shape) for half in coefficient)
    return add(multiply(value, x), DoubleFloat(high, low))


def log(x: DoubleFloat) -> DoubleFloat:
    """Returns the natural logarithm of `x > 0`, by one Newton step from float32."""
    start = jnp.log(x.high)
    guess = DoubleFloat(start, jnp.zeros_like(start))
    excess = add(multiply(x, exp(DoubleFloat(-start, jnp.zeros_like(start)))), constant(-1.0, start))
    # ln(1 + u) = u - u^2/2 + ...; u is about 2^-23, so the cubic term is beyond the 46 bits.
    squared = multiply(excess, excess)
    correction = add(excess, DoubleFloat(-0.5 * squared.high, -0.5 * squared.low))
    return add(guess, correction)
