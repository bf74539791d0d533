"""The library's own assertions: each passes on what is right and fails on every wrong implementation tried."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rope_jax import double_float, frequencies, rotation, scaling, testing

DIM = 16
ROTARY = frequencies.rotary(DIM, base=1e4, original_length=4096)
SCALED = scaling.linear(factor=8.0)(ROTARY)
YARN = scaling.yarn(factor=8.0, original_length=4096)(ROTARY)
STRICT = {"angle_rtol": 0.0}  # exact phases


def right(rotary=SCALED, **arguments):
    return jax.jit(testing.rotation_of(rotary, **arguments))


def tabled(theta, positions_of=lambda p: p, dtype=jnp.float32, layout="half", size=1.0):
    """A rotation as other libraries write it, in float32, with one thing to get wrong."""
    theta = jnp.asarray(theta, jnp.float32)

    def rotate(x, positions):
        angle = positions_of(positions).astype(dtype)[:, None] * theta.astype(dtype)[None]
        cos, sin = (f(angle.astype(jnp.float32)) for f in (jnp.cos, jnp.sin))
        return rotation.rotate(x[:, None], size * cos, size * sin, layout=layout)[:, 0]

    return jax.jit(rotate)


def plain(x, positions):
    """All of a plain float32 rotary embedding, linear scaling by 8 included, with nothing of this library."""
    dim = x.shape[-1]
    theta = 1.0 / (10_000.0 ** (jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)) / 8
    angle = positions[:, None].astype(jnp.float32) * theta[None]
    cos, sin = (jnp.concatenate([f(angle), f(angle)], axis=-1) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


PLAIN = jax.jit(plain)
IDENTITY = lambda x, positions: x  # noqa: E731
THETA = SCALED.inverse_frequencies


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_angle_equivalence_passes(layout):
    testing.assert_angle_equivalence(right(layout=layout), SCALED, dim=DIM, layout=layout, **STRICT)
    testing.assert_angle_equivalence(right(), SCALED, dim=DIM + 6, **STRICT)
    testing.assert_angle_equivalence(right(), SCALED, dim=DIM, reach=2**24, **STRICT)
    # Linear scaling is also a division of positions.
    divided = tabled(ROTARY.inverse_frequencies, lambda p: p / 8)
    testing.assert_angle_equivalence(divided, SCALED, dim=DIM, reach=64, **STRICT)


def test_a_right_float32_rotary_passes_everything_with_defaults():
    testing.assert_angle_equivalence(PLAIN, SCALED, dim=DIM)
    testing.assert_relative_identity(PLAIN, dim=DIM)
    testing.assert_preserves_norms_and_angles(PLAIN, dim=DIM)
    testing.assert_shift_invariant(attention_of(PLAIN), tokens=12)
    testing.assert_angle_equivalence(tabled(ROTARY.inverse_frequencies), ROTARY, dim=DIM, reach=2**24)


def test_yarn_passes_with_its_factor_only():
    with_factor = tabled(YARN.inverse_frequencies, size=YARN.cos_sin_factor)
    for rotate in (right(YARN), with_factor):
        testing.assert_angle_equivalence(rotate, YARN, dim=DIM)
        testing.assert_relative_identity(rotate, dim=DIM, cos_sin_factor=YARN.cos_sin_factor)
        testing.assert_preserves_norms_and_angles(rotate, dim=DIM, cos_sin_factor=YARN.cos_sin_factor)
        for check in (testing.assert_relative_identity, testing.assert_preserves_norms_and_angles):
            with pytest.raises(AssertionError):
                check(rotate, dim=DIM)


# Wrong rotations, each with what a test of angles compares it with.
WRONG = {
    "unscaled": (right(ROTARY), SCALED),
    "another rule": (right(scaling.ntk(factor=8.0)(ROTARY)), SCALED),
    "another layout": (right(layout="interleaved"), SCALED),
    "turned the other way": (tabled(-THETA), SCALED),
    "off by one": (tabled(THETA, lambda p: p + 1), SCALED),
    "bfloat16 phases": (tabled(THETA, dtype=jnp.bfloat16), SCALED),
    "float16 frequencies": (tabled(THETA.astype(np.float16)), SCALED),
    "positive positions only": (tabled(THETA, jnp.abs), SCALED),
    "modulo 4096": (tabled(THETA, lambda p: p % 4096), SCALED),
    "modulo 5000": (tabled(THETA, lambda p: p % 5000), SCALED),
    "int16": (tabled(THETA, lambda p: p.astype(jnp.int16)), SCALED),
    "end of a table": (tabled(THETA, lambda p: jnp.clip(p, -40_959, 40_959)), SCALED),
    "factor of nothing": (tabled(THETA, size=1.2), SCALED),
    "factor forgotten": (tabled(YARN.inverse_frequencies), YARN),
    "factor applied twice": (tabled(YARN.inverse_frequencies, size=YARN.cos_sin_factor**2), YARN),
    "identity": (IDENTITY, SCALED),
    "not a number": (lambda x, positions: x + jnp.nan, SCALED),
    "another shape": (lambda x, positions: x[:, None], SCALED),
}


@pytest.mark.parametrize("name", WRONG)
def test_angle_equivalence_fails(name):
    rotate, record = WRONG[name]
    with pytest.raises(AssertionError):
        testing.assert_angle_equivalence(rotate, record, dim=DIM)


def test_exact_phases_are_asked_for_by_no_tolerance_of_angles():
    for check in (
        lambda: testing.assert_angle_equivalence(PLAIN, SCALED, dim=DIM, **STRICT),
        lambda: testing.assert_relative_identity(PLAIN, dim=DIM, **STRICT),
        lambda: testing.assert_shift_invariant(attention_of(PLAIN), tokens=12, **STRICT),
    ):
        with pytest.raises(AssertionError):
            check()


def test_angle_equivalence_fails_where_the_rest_is_touched():
    def touches(x, positions):
        return right()(x, positions).at[:, DIM:].multiply(1.01)

    with pytest.raises(AssertionError):
        testing.assert_angle_equivalence(touches, SCALED, dim=DIM + 2)


def test_relative_identity_passes():
    testing.assert_relative_identity(right(), dim=DIM, **STRICT)
    testing.assert_relative_identity(right(layout="interleaved"), dim=DIM + 4, **STRICT)


NOT_RELATIVE = {
    "not additive": tabled(THETA, lambda p: p * p % 65_536),
    "added, not turned": lambda x, positions: x + positions[:, None] / 1000,
    "halved positions": tabled(THETA, lambda p: p // 2),
    **{
        name: WRONG[name][0]
        for name in (
            "positive positions only",
            "off by one",
            "bfloat16 phases",
            "modulo 4096",
            "modulo 5000",
            "int16",
            "end of a table",
            "factor of nothing",
            "identity",
            "not a number",
        )
    },
}


@pytest.mark.parametrize("name", NOT_RELATIVE)
def test_relative_identity_fails(name):
    with pytest.raises(AssertionError):
        testing.assert_relative_identity(NOT_RELATIVE[name], dim=DIM)


def test_norms_and_angles():
    testing.assert_preserves_norms_and_angles(right(), dim=DIM)
    testing.assert_preserves_norms_and_angles(tabled(THETA, lambda p: p + 1), dim=DIM)
    stretched = lambda x, positions: x * (1 + 1e-3 * (positions[:, None] > 100))  # noqa: E731
    sheared = lambda x, positions: x.at[:, 0].add(0.01 * x[:, 1])  # noqa: E731
    for rotate in (WRONG["factor of nothing"][0], WRONG["not a number"][0], stretched, sheared):
        with pytest.raises(AssertionError):
            testing.assert_preserves_norms_and_angles(rotate, dim=DIM)


def attention_of(rotate, bias=lambda offset: -0.1 * jnp.abs(offset), tokens=12):
    q, k = (jnp.asarray(np.random.default_rng(seed).standard_normal((tokens, DIM)), jnp.float32) for seed in (0, 1))

    @jax.jit
    def attend(positions):
        p = positions[0]
        logits = rotate(q, p) @ rotate(k, p).T + bias(p[:, None] - p[None])
        return jax.nn.softmax(jnp.where(p[:, None] >= p[None], logits, -jnp.inf), axis=-1)

    return attend


def test_shift_invariance_passes():
    testing.assert_shift_invariant(attention_of(right()), tokens=12, **STRICT)
    testing.assert_shift_invariant(attention_of(right(), bias=jnp.zeros_like), tokens=12, **STRICT)
    testing.assert_shift_invariant(attention_of(IDENTITY), tokens=12, **STRICT)  # a bias alone
    testing.assert_shift_invariant(attention_of(right(YARN)), tokens=12, shifts=(1, 1000, 2**24), **STRICT)
    # A table is right as far as it reaches.
    testing.assert_shift_invariant(attention_of(WRONG["end of a table"][0]), tokens=12, reach=2**15)


DRIFTING = {
    "keyed by position": lambda positions: jnp.cos(positions * 0.1),
    "not additive": attention_of(NOT_RELATIVE["not additive"]),
    **{name: attention_of(WRONG[name][0]) for name in ("bfloat16 phases", "end of a table", "not a number")},
    **{
        f"{dtype} positions": attention_of(tabled(THETA, lambda p, dtype=dtype: p.astype(dtype)))
        for dtype in ("int8", "uint8", "int16", "uint16", "float16")
    },
}


@pytest.mark.parametrize("name", DRIFTING)
def test_shift_invariance_fails(name):
    with pytest.raises(AssertionError):
        testing.assert_shift_invariant(DRIFTING[name], tokens=12)


@settings(max_examples=25, deadline=None)
@given(st.integers(13, 2**18), st.booleans())
@example(4096, True)
@example(2**15, False)
@example(40_960, True)
@example(71_730, False)
def test_shift_invariance_fails_at_any_modulus(modulus, signed):
    wrap = lambda p: (p + modulus // 2) % modulus - modulus // 2 if signed else p % modulus  # noqa: E731
    with pytest.raises(AssertionError):
        testing.assert_shift_invariant(attention_of(tabled(THETA, wrap), bias=jnp.zeros_like), tokens=12)


def test_shift_invariance_with_a_steep_bias_fails_at_powers_of_two_and_of_ten():
    steep = lambda offset: -2.0 * jnp.abs(offset)  # noqa: E731
    for modulus in (256, 1000, 4096, 10_000, 65_536, 2**18):
        wrapping = attention_of(tabled(THETA, lambda p, m=modulus: p % m), bias=steep)
        with pytest.raises(AssertionError):
            testing.assert_shift_invariant(wrapping, tokens=12)
    # Float32 phases are 0.1 radians off at a million: only exact ones show what happens there.
    far = attention_of(lambda x, positions: right()(x, positions % 2**20), bias=steep)
    with pytest.raises(AssertionError):
        testing.assert_shift_invariant(far, tokens=12, **STRICT)


def test_shift_invariance_has_something_to_see():
    with pytest.raises(AssertionError, match="nothing to see"):
        testing.assert_shift_invariant(lambda positions: jnp.zeros(3), tokens=12)


def means_of(sees):
    """Returns a model whose output at a token is the mean of the inputs that a matrix lets it see."""
    return lambda x: jnp.asarray(sees / sees.sum(axis=1, keepdims=True), x.dtype) @ x


def causal_matrix(tokens):
    return np.tril(np.ones((tokens, tokens)))


X = jnp.asarray(np.random.default_rng(2).standard_normal((10, 3)), jnp.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 10), st.data())
def test_causal_passes_on_any_causal_mixing(tokens, data):
    window = data.draw(st.integers(2, tokens))
    sees = np.tril(np.ones((tokens, tokens))) - np.tril(np.ones((tokens, tokens)), -window)
    at = data.draw(st.none() | st.integers(1, tokens - 1))
    testing.assert_causal(means_of(sees), X[:tokens], at=at)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 10), st.integers(0, 9), st.none() | st.integers(1, 9))
@example(5, 0, 5)
@example(2, 0, 4)
def test_causal_fails_on_chunks_that_see_themselves(size, start, at):
    chunk = (np.arange(10) - start) // size
    sees = np.maximum(causal_matrix(10), chunk[:, None] == chunk[None])
    with pytest.raises(AssertionError, match="saw inputs"):
        testing.assert_causal(means_of(sees), X, at=at)


@pytest.mark.parametrize("future", [(8, 9), (0, 1), (0, 9), (4, 5)])
def test_causal_fails_on_one_token_that_sees_one_later(future):
    sees = causal_matrix(10)
    sees[future] = 1
    with pytest.raises(AssertionError, match=rf"tokens \[{future[0]}\] saw inputs from token"):
        testing.assert_causal(means_of(sees), X)


def test_causal_names_what_saw_what():
    leaks = lambda x: jnp.cumsum(x, axis=0) + 1e-4 * jnp.roll(x, -1, axis=0)  # noqa: E731
    with pytest.raises(AssertionError, match=r"tokens \[3\] saw inputs from token 4"):
        testing.assert_causal(leaks, X, at=4)
    with pytest.raises(AssertionError, match="saw inputs"):
        testing.assert_causal(lambda x: x - x.mean(axis=0, keepdims=True), X, at=9)


@pytest.mark.parametrize("at", [0, 10, -1])
def test_causal_has_something_to_see(at):
    with pytest.raises(AssertionError, match="nothing to see"):
        testing.assert_causal(lambda x: jnp.cumsum(x, axis=0), X, at=at)
    for model in (jnp.zeros_like, lambda x: x + jnp.nan):
        with pytest.raises(AssertionError, match="nothing to see"):
            testing.assert_causal(model, X)
    with pytest.raises(AssertionError, match="nothing to see"):
        testing.assert_causal(lambda x: x, X[:1])


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
        testing.assert_angle_equivalence(jax.jit(rounded), SCALED, dim=DIM, reach=2**24, **STRICT)
