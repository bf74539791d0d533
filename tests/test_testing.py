"""The library's own assertions: each passes on what is right and fails on every wrong implementation tried."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax import double_float, frequencies, rotation, scaling, testing

DIM = 16
ROTARY = frequencies.rotary(DIM, base=1e4, original_length=4096)
SCALED = scaling.yarn(factor=8.0, original_length=4096)(ROTARY)


def right(rotary=SCALED, **arguments):
    return jax.jit(testing.rotation_of(rotary, **arguments))


def tabled(theta, positions_of=lambda p: p, dtype=jnp.float32, layout="half", size=1.0):
    """A rotation as peers write it, in float32, with one thing to get wrong."""
    theta = jnp.asarray(theta, jnp.float32)

    def rotate(x, positions):
        angle = positions_of(positions).astype(dtype)[:, None] * theta.astype(dtype)[None]
        cos, sin = (f(angle.astype(jnp.float32)) for f in (jnp.cos, jnp.sin))
        return rotation.rotate(x[:, None], size * cos, size * sin, layout=layout)[:, 0]

    return jax.jit(rotate)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_angle_equivalence_passes(layout):
    testing.assert_angle_equivalence(right(layout=layout), SCALED, dim=DIM, layout=layout)
    testing.assert_angle_equivalence(right(), SCALED, dim=DIM + 6)
    testing.assert_angle_equivalence(right(), SCALED, dim=DIM, reach=2**24)
    # Linear scaling is also a division of positions.
    linear = scaling.linear(factor=8.0)(ROTARY)
    divided = tabled(ROTARY.inverse_frequencies, lambda p: p / 8)
    testing.assert_angle_equivalence(divided, linear, dim=DIM, reach=64)


WRONG = {
    "unscaled": right(ROTARY),
    "another layout": right(layout="interleaved"),
    "turned the other way": tabled(-SCALED.inverse_frequencies),
    "off by one": tabled(SCALED.inverse_frequencies, lambda p: p + 1),
    "bfloat16 phases": tabled(SCALED.inverse_frequencies, dtype=jnp.bfloat16),
    "float32 phases, far": tabled(SCALED.inverse_frequencies),
    "positive positions only": tabled(SCALED.inverse_frequencies, jnp.abs),
    "factor left in": tabled(SCALED.inverse_frequencies, size=SCALED.cos_sin_factor),
    "identity": lambda x, positions: x,
}


@pytest.mark.parametrize("name", WRONG)
def test_angle_equivalence_fails(name):
    with pytest.raises(AssertionError):
        testing.assert_angle_equivalence(WRONG[name], SCALED, dim=DIM)


def test_angle_equivalence_fails_where_the_rest_is_touched():
    def touches(x, positions):
        return right()(x, positions).at[:, DIM:].multiply(1.01)

    with pytest.raises(AssertionError):
        testing.assert_angle_equivalence(touches, SCALED, dim=DIM + 2)


def test_relative_identity():
    testing.assert_relative_identity(right(), dim=DIM)
    testing.assert_relative_identity(right(layout="interleaved"), dim=DIM + 4)
    theta = SCALED.inverse_frequencies
    wrong = [
        tabled(theta, lambda p: p * p % 65_536),  # not additive
        tabled(theta, jnp.abs),
        tabled(theta, lambda p: p + 1),
        tabled(theta, dtype=jnp.bfloat16),
        tabled(theta, lambda p: p // 2),
        tabled(theta),  # float32 phases at a million
        lambda x, positions: x + positions[:, None] / 1000,  # added, not turned
        WRONG["factor left in"],
    ]
    for rotate in wrong:
        with pytest.raises(AssertionError):
            testing.assert_relative_identity(rotate, dim=DIM)


def test_norms_and_angles():
    testing.assert_preserves_norms_and_angles(right(), dim=DIM)
    testing.assert_preserves_norms_and_angles(tabled(SCALED.inverse_frequencies, lambda p: p + 1), dim=DIM)
    stretched = lambda x, positions: x * (1 + 1e-3 * (positions[:, None] > 100))  # noqa: E731
    sheared = lambda x, positions: x.at[:, 0].add(0.01 * x[:, 1])  # noqa: E731
    for rotate in (WRONG["factor left in"], stretched, sheared):
        with pytest.raises(AssertionError):
            testing.assert_preserves_norms_and_angles(rotate, dim=DIM)


def logits_of(rotate, bias=lambda offset: -0.1 * jnp.abs(offset)):
    q, k = (jnp.asarray(np.random.default_rng(seed).standard_normal((12, DIM)), jnp.float32) for seed in (0, 1))

    def attend(positions):
        p = positions[0]
        return jax.nn.softmax(rotate(q, p) @ rotate(k, p).T + bias(p[:, None] - p[None]), axis=-1)

    return attend


def test_shift_invariance():
    testing.assert_shift_invariant(logits_of(right()), tokens=12)
    keyed = jax.jit(lambda positions: jnp.cos(positions * 0.1))
    for wrong in (
        keyed,
        logits_of(tabled(SCALED.inverse_frequencies, lambda p: p * p % 4099)),
        logits_of(tabled(SCALED.inverse_frequencies, dtype=jnp.bfloat16)),
        logits_of(tabled(SCALED.inverse_frequencies)),  # float32 phases, shifted by a million
    ):
        with pytest.raises(AssertionError):
            testing.assert_shift_invariant(wrong, tokens=12)
    with pytest.raises(AssertionError, match="nothing to see"):
        testing.assert_shift_invariant(lambda positions: jnp.zeros(3), tokens=12)


def test_causal():
    x = jnp.asarray(np.random.default_rng(2).standard_normal((10, 3)), jnp.float32)
    testing.assert_causal(lambda x: jnp.cumsum(x, axis=0), x, at=4)
    leaks = lambda x: jnp.cumsum(x, axis=0) + 1e-4 * jnp.roll(x, -1, axis=0)  # noqa: E731
    with pytest.raises(AssertionError, match=r"tokens \[3\] saw inputs from token 4"):
        testing.assert_causal(leaks, x, at=4)
    with pytest.raises(AssertionError, match="saw inputs"):
        testing.assert_causal(lambda x: x - x.mean(axis=0, keepdims=True), x, at=9)
    with pytest.raises(AssertionError, match="nothing to see"):
        testing.assert_causal(lambda x: jnp.zeros_like(x), x, at=4)


def test_golden(tmp_path):
    path = tmp_path / "golden.json"
    path.write_text(json.dumps({"source": "a paper", "values": [1.0, 2.0, 3.0], "ones": [1.0, 1.0]}))
    testing.assert_golden(np.array([1.0, 2.0, 3.0 + 1e-6]), path, "values")
    testing.assert_golden(jnp.asarray([1.01, 2.0, 3.0]), path, "values", atol=0.02)
    for wrong in (np.array([1.0, 2.0, 3.001]), np.array([1.0, 2.0]), np.array([1.0, 2.0, np.nan])):
        with pytest.raises(AssertionError):
            testing.assert_golden(wrong, path, "values")
    for wrong_shape in (np.array(1.0), np.ones((2, 2)), np.ones((1, 2))):
        with pytest.raises(AssertionError):
            testing.assert_golden(wrong_shape, path, "ones")
    path.write_text(json.dumps({"values": [1.0]}))
    with pytest.raises(AssertionError, match="where its numbers come from"):
        testing.assert_golden(np.ones(1), path, "values")


def test_rotation_of_a_record_takes_all_its_bits():
    high, _ = double_float.split(SCALED.inverse_frequencies)
    rounded = testing.rotation_of(frequencies.Rotary(high.astype(np.float64), 1e4, DIM, 4096))
    with pytest.raises(AssertionError):
        testing.assert_angle_equivalence(jax.jit(rounded), SCALED, dim=DIM, reach=2**24)
