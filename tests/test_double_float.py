"""Unevaluated sums of two float32, against long double, eagerly and compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax import double_float
from rope_jax.double_float import DoubleFloat


def pair(value):
    high, low = double_float.split(value)
    return DoubleFloat(jnp.asarray(high), jnp.asarray(low))


def wide(x: DoubleFloat):
    return np.asarray(x.high, np.longdouble) + np.asarray(x.low, np.longdouble)


def assert_normalised(x: DoubleFloat):
    np.testing.assert_array_equal(np.asarray(x.high), wide(x).astype(np.float32))


def numbers(seed, low=-12.0, high=12.0, size=4096):
    rng = np.random.default_rng(seed)
    return rng.choice([-1, 1], size) * 2.0 ** rng.uniform(low, high, size)


@pytest.fixture(params=["op by op", "compiled"])
def run(request):
    if request.param == "compiled":
        return jax.jit
    return lambda function: function


@given(st.floats(-1e30, 1e30).filter(lambda x: x == 0 or abs(x) > 1e-20))
def test_split_is_the_nearest_float32_and_what_it_left(value):
    high, low = double_float.split(value)
    assert high.dtype == low.dtype == np.float32
    assert high == np.float32(value)
    assert abs(np.float64(high) + np.float64(low) - value) <= 2.0**-48 * abs(value)


def test_add(run):
    x, y = pair(numbers(0)), pair(numbers(1))
    total = run(double_float.add)(x, y)
    np.testing.assert_array_less(np.abs(wide(total) - (wide(x) + wide(y))), 2.0**-45 * (abs(wide(x)) + abs(wide(y))))
    assert_normalised(total)


def test_multiply(run):
    x, y = pair(numbers(2)), pair(numbers(3))
    product = run(double_float.multiply)(x, y)
    np.testing.assert_array_less(np.abs(wide(product) / (wide(x) * wide(y)) - 1), 2.0**-45)
    assert_normalised(product)


def test_multiply_of_zero_and_powers_of_two_is_exact(run):
    x = pair(numbers(4))
    for factor in (0.0, 1.0, -2.0, 0.25):
        product = run(double_float.multiply)(x, double_float.constant(factor, x.high))
        np.testing.assert_array_equal(wide(product), wide(x) * factor)


def test_normalised_accepts_halves_in_any_proportion(run):
    high, low = (jnp.asarray(numbers(seed), jnp.float32) for seed in (5, 6))
    result = run(double_float.normalised)(DoubleFloat(high, low))
    np.testing.assert_array_equal(wide(result), np.asarray(high, np.longdouble) + np.asarray(low, np.longdouble))
    assert_normalised(result)


@pytest.mark.parametrize(("reach", "rtol"), [(16, 1e-13), (50, 3e-13)])
def test_exp(reach, rtol):
    x = pair(np.random.default_rng(7).uniform(-reach, reach, 8192))
    result = jax.jit(double_float.exp)(x)
    np.testing.assert_array_less(np.abs(wide(result) / np.exp(wide(x)) - 1), rtol)


def test_exp_of_zero_is_one_and_far_below_it_is_a_float32():
    result = jax.jit(double_float.exp)(pair(np.array([0.0, -80.0, 80.0])))
    assert wide(result)[0] == 1.0
    np.testing.assert_allclose(wide(result)[1:].astype(np.float64), np.exp([-80.0, 80.0]), rtol=1e-7)


def test_log():
    # Past 2^-20 of 1 the error is relative to the logarithm, closer it is an absolute 2^-45.
    values = np.concatenate([np.abs(numbers(8, -40, 40)), 1 + numbers(9, -30, -1), [1.0]])
    x = pair(values)
    result = jax.jit(double_float.log)(x)
    error = np.abs(wide(result) - np.log(wide(x)))
    np.testing.assert_array_less(error, 1e-13 * np.abs(np.log(wide(x))) + 2.0**-44)


@settings(max_examples=50, deadline=None)
@given(st.floats(1, 4096), st.floats(-1.1, 0))
def test_a_power_is_good_to_thirteen_digits(growth, exponent):
    # What dynamic NTK computes: growth^(-2i/(d-2)).
    x, y = pair(np.full(8, growth)), pair(np.full(8, exponent))
    result = _power(x, y)
    np.testing.assert_array_less(np.abs(wide(result) / np.exp(np.log(wide(x)) * wide(y)) - 1), 1e-13)


@jax.jit
def _power(x, y):
    return double_float.exp(double_float.multiply(double_float.log(x), y))


def test_x64_stays_off():
    assert not jax.config.jax_enable_x64
    assert all(half.dtype == jnp.float32 for half in double_float.add(pair(np.ones(2)), pair(np.ones(2))))
