"""cos and sin of position times frequency: exact at any position, compiled, differentiated, and without tables."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rope_jax import double_float, dynamic, frequencies, length_rules, phases

BASES = (194.0, 1e4, 5e5, 1e6)
EDGES = [0, 1, 2, 255, 256, 257, 65_535, 65_536, 65_537, 2**20, 2**24 - 1, 2**24]
EDGES = np.array([sign * edge for edge in EDGES for sign in (1, -1)], np.int32)
COS_SIN = jax.jit(phases.cos_sin)
POSITIONS = np.concatenate([EDGES, np.random.default_rng(0).integers(-(2**24), 2**24, 1000, np.int32)])


def halves(theta):
    return tuple(jnp.asarray(half) for half in double_float.split(theta))


def exact(positions, theta):
    """Long double has 64 bits: p * theta is right to 2^-40 turns at 2^24."""
    angle = np.asarray(positions, np.longdouble)[..., None] * np.asarray(theta, np.longdouble)
    return np.cos(angle).astype(np.float64), np.sin(angle).astype(np.float64)


def assert_close(actual, expected, atol):
    for ours, reference in zip(actual, expected, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(ours, np.float64), reference, rtol=0, atol=atol)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dim", [8, 128])
def test_exact_to_a_millionth_at_every_position(base, compiled, dim):
    theta = frequencies.inverse_frequencies(dim, base=base)
    function = COS_SIN if compiled else phases.cos_sin
    assert_close(function(jnp.asarray(POSITIONS), *halves(theta)), exact(POSITIONS, theta), 1e-6)


def test_three_times_better_still_up_to_a_million():
    theta = frequencies.inverse_frequencies(128, base=1e4)
    positions = np.random.default_rng(1).integers(-(2**20), 2**20, 4000, np.int32)
    assert_close(COS_SIN(jnp.asarray(positions), *halves(theta)), exact(positions, theta), 3e-7)


FREQUENCIES = st.one_of(
    st.just(0.0), st.floats(-15, math.log10(frequencies.LARGEST_FREQUENCY)).map(lambda x: 10.0**x), st.floats(0, 3)
)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**24), 2**24), st.lists(FREQUENCIES, min_size=4, max_size=4), st.sampled_from([1, -1]))
@example(2**24, [frequencies.LARGEST_FREQUENCY, 100.1, 7.5, 4.1], 1)
@example(-(2**24), [frequencies.LARGEST_FREQUENCY, 3.0, 2.01, 1e-7], -1)  # a learned frequency may cross zero
def test_the_stated_error_at_any_position_and_frequency(position, theta, sign):
    theta = np.minimum([x if x > 1e-15 else 0.0 for x in theta], frequencies.LARGEST_FREQUENCY)
    positions = np.full(8, position, np.int32)
    actual, expected = COS_SIN(jnp.asarray(positions), *halves(sign * theta)), exact(positions, sign * theta)
    assert_close([x[:, theta <= 3] for x in actual], [x[:, theta <= 3] for x in expected], 1e-6)
    # 48 bits of the frequency: beyond some radians a token the rest of it counts at far positions.
    for column, frequency in enumerate(theta):
        atol = 5e-7 + abs(position) * frequency * 2.0**-45
        assert_close([x[:, column] for x in actual], [x[:, column] for x in expected], atol)


NEXT = np.nextafter(np.float32(frequencies.LARGEST_FREQUENCY), np.float32(np.inf)).item()
BEYOND = st.floats(NEXT, 2.0**126, width=32)


@settings(max_examples=50, deadline=None)
@given(st.integers(-(2**24), 2**24), BEYOND, st.sampled_from([1, -1]))
@example(1, NEXT, -1)
@example(1, math.inf, 1)
@example(0, math.nan, 1)
def test_a_phase_that_is_lost_is_no_number(position, theta, sign):
    cos, sin = COS_SIN(jnp.full(3, position, jnp.int32), *(jnp.asarray([x, 0.0]) for x in (1.0, 0.0)))
    assert np.isfinite([cos, sin]).all()
    lost = jnp.asarray([1.0, sign * theta], jnp.float32)
    for part in COS_SIN(jnp.full(8, position, jnp.int32), lost, jnp.zeros(2)):
        assert np.isfinite(part[:, 0]).all()
        assert np.isnan(part[:, 1]).all()


WIDTHS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("phase", ["exact", "float32"])
def test_positions_of_any_width_are_those_of_int32(width, phase):
    high, low = halves(frequencies.inverse_frequencies(8, base=1e4))
    most = min(np.iinfo(width).max, 2**31 - 1)
    values = np.array([0, 1, 100, most // 2 + 1, most - 1, most, max(np.iinfo(width).min, -(2**31))], np.int64)
    expected = phases.cos_sin(jnp.asarray(values, jnp.int32), high, low, phase=phase)
    given = [values.astype(width)]
    if np.dtype(width).itemsize < 8:  # jax has none wider without x64
        given.append(jnp.asarray(given[0]))
    for positions in given:
        for ours, right in zip(phases.cos_sin(positions, high, low, phase=phase), expected, strict=True):
            np.testing.assert_array_equal(ours, right)


@pytest.mark.parametrize("phase", ["exact", "float32"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.bool_])
def test_positions_that_are_no_integers_are_refused(dtype, phase, without_type_checks):
    with pytest.raises(TypeError, match=r"^positions must be integers"):
        phases.cos_sin(jnp.zeros(3, dtype), jnp.ones(2), phase=phase)


@pytest.mark.parametrize(
    ("positions", "theta", "remainder"),
    [((), (4,), (4,)), ((3,), (), ()), ((3,), (2, 4), (2, 4)), ((2, 3), (3, 4), (3, 4)), ((2, 3), (4,), (5,))],
)
def test_shapes_that_do_not_fit_are_refused(positions, theta, remainder, without_type_checks):
    with pytest.raises(ValueError, match=r"positions .* must be \[\*batch, tokens\]|remainder .* differ"):
        phases.cos_sin(jnp.zeros(positions, jnp.int32), jnp.ones(theta), jnp.ones(remainder))


def test_batched_frequencies_and_vmap_are_each_row():
    thetas = np.stack([frequencies.inverse_frequencies(32, base=base) for base in BASES])
    positions = np.random.default_rng(2).integers(-(2**20), 2**20, (4, 50), np.int32)
    high, low = halves(thetas)
    batched = COS_SIN(jnp.asarray(positions), high, low)
    mapped = jax.jit(jax.vmap(phases.cos_sin))(jnp.asarray(positions), high, low)
    for row in range(4):
        alone = COS_SIN(jnp.asarray(positions[row]), high[row], low[row])
        for part in range(2):
            np.testing.assert_array_equal(batched[part][row], alone[part])
            np.testing.assert_array_equal(mapped[part][row], alone[part])
    shared = COS_SIN(jnp.asarray(positions), high[1], low[1])
    assert shared[0].shape == (4, 50, 16)
    assert_close(shared, exact(positions, thetas[1]), 1e-6)


def test_frequencies_born_under_jit_are_as_exact():
    rule = length_rules.dynamic_ntk(factor=8.0, original_length=4096)
    rotary = frequencies.rotary(128, base=1e4, original_length=4096)
    length = 2**24

    @jax.jit
    def run(positions, length):
        return phases.cos_sin(positions, *dynamic.frequencies_at(rule, rotary, length))

    theta = rule.at(length)(rotary).inverse_frequencies
    positions = np.abs(POSITIONS[np.abs(POSITIONS) < length])
    assert_close(run(jnp.asarray(positions), jnp.int32(length)), exact(positions, theta), 1e-6)


def test_cos_is_even_and_sin_is_odd_to_the_bit_near_and_far():
    high, low = halves(frequencies.inverse_frequencies(64, base=1e4))
    positions = jnp.asarray(np.abs(POSITIONS))
    forward, backward = (COS_SIN(p, high, low) for p in (positions, -positions))
    # Both directions truncate 16 low bits: they may differ by one unit of 2^-32 turns, 1.5e-9.
    np.testing.assert_allclose(forward[0], backward[0], rtol=0, atol=2e-7)
    np.testing.assert_allclose(forward[1], -backward[1], rtol=0, atol=2e-7)


def test_position_zero_and_still_pairs_are_one_and_zero():
    cos, sin = COS_SIN(jnp.zeros(1, jnp.int32), *halves(frequencies.inverse_frequencies(64, base=1e4)))
    assert np.all(np.asarray(cos) == 1)
    assert np.all(np.asarray(sin) == 0)
    cos, sin = COS_SIN(jnp.asarray(POSITIONS), jnp.zeros(3), jnp.zeros(3))
    assert np.all(np.asarray(cos) == 1)
    assert np.all(np.asarray(sin) == 0)


def test_extreme_positions_stay_on_the_circle():
    theta = frequencies.inverse_frequencies(128, base=1e4)
    positions = jnp.asarray([2**31 - 1, -(2**31), -(2**31) + 1, 2**30], jnp.int32)
    cos, sin = COS_SIN(positions, *halves(theta))
    np.testing.assert_allclose(cos**2 + sin**2, 1.0, atol=1e-6)
    assert_close((cos, sin), exact(positions, theta), 1e-4)


def test_turns_compose_at_far_positions():
    # e^(i(a+b)) = e^(ia) e^(ib) with all three computed on their own.
    high, low = halves(frequencies.inverse_frequencies(64, base=5e5))
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-(2**23), 2**23, 500, np.int32) for _ in range(2))
    unit = lambda p: (lambda cos, sin: np.asarray(cos) + 1j * np.asarray(sin))(  # noqa: E731
        *COS_SIN(jnp.asarray(p), high, low)
    )
    np.testing.assert_allclose(unit(a + b), unit(a) * unit(b), atol=2e-6)


def test_the_remainder_is_needed_and_may_be_left_out():
    theta = frequencies.inverse_frequencies(128, base=1e4)
    high, low = halves(theta)
    positions = jnp.asarray([2**20 - 1], jnp.int32)
    without = COS_SIN(positions, high)
    assert_close(without, exact(positions, np.asarray(high, np.float64)), 1e-6)
    assert np.max(np.abs(np.asarray(without[0]) - exact(positions, theta)[0])) > 1e-4
    assert np.any(np.asarray(low) != 0)


def test_x64_stays_off():
    assert not jax.config.jax_enable_x64


def test_float32_phase_is_the_peers_product_to_the_bit():
    high, low = halves(frequencies.inverse_frequencies(128, base=1e4))
    positions = jnp.asarray(POSITIONS)
    angle = positions.astype(jnp.float32)[:, None] * high[None]
    cos, sin = phases.cos_sin(positions, high, low, phase="float32")
    np.testing.assert_array_equal(cos, jnp.cos(angle))
    np.testing.assert_array_equal(sin, jnp.sin(angle))


@pytest.mark.parametrize(("reach", "error"), [(2**15, 1.9e-3), (2**20, 6.2e-2)])
def test_what_float32_phases_cost(reach, error):
    # The figures of the docstring: base 1e4, d = 128.
    theta = frequencies.inverse_frequencies(128, base=1e4)
    positions = np.arange(reach - 4096, reach, dtype=np.int32)
    cos, sin = phases.cos_sin(jnp.asarray(positions), *halves(theta), phase="float32")
    reference = exact(positions, theta)
    worst = max(np.abs(np.asarray(cos) - reference[0]).max(), np.abs(np.asarray(sin) - reference[1]).max())
    assert error / 2 < worst < error * 1.1


def test_unknown_phase_is_an_error(without_type_checks):
    with pytest.raises(ValueError, match="phase must be 'exact' or 'float32', got 'bf16'"):
        phases.cos_sin(jnp.zeros(1, jnp.int32), jnp.ones(1), phase="bf16")


def _primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _primitives(inner)


@pytest.mark.parametrize("phase", ["exact", "float32"])
def test_no_table_is_gathered_forward_or_backward(phase):
    high, low = halves(frequencies.inverse_frequencies(32, base=1e4))
    positions = jnp.arange(64, dtype=jnp.int32)

    def loss(high):
        cos, sin = phases.cos_sin(positions, high, low, phase=phase)
        return jnp.sum(cos * sin)

    for function in (loss, jax.grad(loss)):
        names = set(_primitives(jax.make_jaxpr(function)(high).jaxpr))
        assert {"mul", "neg"} <= names or "cos" in names
        assert not {name for name in names if "gather" in name or "slice" in name or "sort" in name or "while" in name}
    assert "gather" in set(_primitives(jax.make_jaxpr(lambda p: jnp.take(high, p))(positions).jaxpr))


# ---- gradients

THETA = frequencies.inverse_frequencies(16, base=194.0)
NEAR = jnp.arange(-100, 400, 7, dtype=jnp.int32)
WEIGHTS = np.random.default_rng(4).standard_normal((2, len(NEAR), len(THETA)))


def _loss64(theta):
    cos, sin = exact(np.asarray(NEAR), theta)
    return np.sum(WEIGHTS[0] * cos + WEIGHTS[1] * sin)


def _loss(high, low):
    cos, sin = phases.cos_sin(NEAR, high, low)
    return jnp.sum(jnp.asarray(WEIGHTS[0], jnp.float32) * cos + jnp.asarray(WEIGHTS[1], jnp.float32) * sin)


def _finite_differences():
    steps = np.eye(len(THETA)) * 1e-6
    return np.array([(_loss64(THETA + step) - _loss64(THETA - step)) / 2e-6 for step in steps])


def test_vjp_and_jvp_equal_finite_differences():
    expected = _finite_differences()
    scale = np.abs(expected).max()
    gradient = jax.jit(jax.grad(_loss))(*halves(THETA))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * scale)
    tangent = np.random.default_rng(5).standard_normal(len(THETA)).astype(np.float32)
    high, low = halves(THETA)
    _, moved = jax.jvp(jax.jit(lambda theta: _loss(theta, low)), (high,), (jnp.asarray(tangent),))
    np.testing.assert_allclose(moved, expected @ tangent, rtol=1e-4, atol=1e-5 * scale)


def test_gradients_of_batched_frequencies_are_each_rows():
    high, low = halves(np.stack([THETA, THETA * 0.9]))
    positions = jnp.stack([NEAR, NEAR + 5])

    def loss(high, low, positions):
        cos, sin = phases.cos_sin(positions, high, low)
        return jnp.sum(cos - 2 * sin)

    gradient = jax.jit(jax.grad(loss))
    batched = gradient(high, low, positions)
    alone = jnp.stack([gradient(high[i], low[i], positions[i]) for i in range(2)])
    np.testing.assert_allclose(batched, alone, rtol=1e-4, atol=1e-2)


def test_second_derivatives_exist():
    high, low = halves(THETA)
    curvature = jax.jit(jax.hessian(lambda h: jnp.sum(phases.cos_sin(NEAR, h, low)[0])))(high)
    expected = np.diag(-np.sum(np.asarray(NEAR, np.float64)[:, None] ** 2 * exact(np.asarray(NEAR), THETA)[0], axis=0))
    np.testing.assert_allclose(curvature, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_the_remainder_gets_no_gradient():
    assert not np.any(jax.jit(jax.grad(_loss, argnums=1))(*halves(THETA)))


def test_an_update_of_a_frequency_moves_the_output_downhill():
    high, low = halves(THETA)
    gradient = jax.jit(jax.grad(_loss))(high, low)
    moved = high - 1e-4 * gradient / jnp.linalg.norm(gradient)
    fall = float(_loss(high, low) - _loss(moved, low))
    assert fall == pytest.approx(1e-4 * float(jnp.linalg.norm(gradient)), rel=0.2)


def test_float32_and_exact_phases_have_the_same_gradient_nearby():
    high, low = halves(THETA)

    def peers(high):
        cos, sin = phases.cos_sin(NEAR, high, low, phase="float32")
        return jnp.sum(jnp.asarray(WEIGHTS[0], jnp.float32) * cos + jnp.asarray(WEIGHTS[1], jnp.float32) * sin)

    expected = _finite_differences()
    np.testing.assert_allclose(jax.jit(jax.grad(peers))(high), expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())
