"""Rules that read the sequence's length, on the host and traced, and that the two agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rope_jax import dynamic, frequencies, length_rules, scaling
from rope_jax.errors import ScalingError

L = 4096
SHORT, LONG = tuple(1 + 0.01 * i for i in range(48)), tuple(1.1 + i for i in range(48))


def rotary(dim=96, base=1e4):
    return frequencies.rotary(dim, base=base, original_length=L)


def dynamic_ntk():
    return length_rules.dynamic_ntk(factor=4.0, original_length=L)


def longrope():
    return length_rules.longrope(short_factor=SHORT, long_factor=LONG, original_length=L, attention_factor=1.19)


_TRACED = jax.jit(lambda length: dynamic.frequencies_at(dynamic_ntk(), rotary(), length))


def wide(pair):
    return np.asarray(pair[0], np.float64) + np.asarray(pair[1], np.float64)


def hf_dynamic(dim, base, factor, length):
    """The formula of transformers' `_compute_dynamic_ntk_parameters`, in float64."""
    length = max(length, L)
    base = base * ((factor * length / L) - (factor - 1)) ** (dim / (dim - 2))
    return 1.0 / (base ** (np.arange(0, dim, 2, dtype=np.float64) / dim))


@pytest.mark.parametrize("length", [1, L - 1, L])
def test_dynamic_ntk_is_the_trained_embedding_up_to_its_length(length):
    np.testing.assert_array_equal(dynamic_ntk().at(length)(rotary()).inverse_frequencies, rotary().inverse_frequencies)


def test_dynamic_ntk_moves_at_the_very_next_token():
    before, after = rotary().inverse_frequencies, dynamic_ntk().at(L + 1)(rotary()).inverse_frequencies
    assert after[0] == 1.0
    assert np.all(after[1:] < before[1:])
    assert before[-1] / after[-1] == pytest.approx(1 + 4 / L, rel=1e-12)


@given(st.integers(2, 128).map(lambda n: 2 * n), st.floats(10, 1e8), st.floats(1, 32), st.integers(1, 2**20))
def test_dynamic_ntk_equals_transformers_formula(dim, base, factor, length):
    rule = length_rules.dynamic_ntk(factor=factor, original_length=L).at(length)
    scaled = rule(rotary(dim, base))
    np.testing.assert_allclose(scaled.inverse_frequencies, hf_dynamic(dim, base, factor, length), rtol=1e-11)
    assert scaled.rules == ("dynamic_ntk",)


def test_longrope_switches_exactly_after_the_trained_length():
    theta = rotary().inverse_frequencies
    for length, factors in ((1, SHORT), (L, SHORT), (L + 1, LONG), (2**20, LONG)):
        scaled = longrope().at(length)(rotary())
        np.testing.assert_array_equal(scaled.inverse_frequencies, theta / np.asarray(factors))
        assert (scaled.cos_sin_factor, scaled.rules) == (1.19, ("longrope",))


LENGTHS = [1, 2, L - 1, L, L + 1, L + 2, 5000, 8192, 16_384, 131_072, 2**20, 2**24]


@pytest.mark.parametrize("make", [dynamic_ntk, longrope])
@pytest.mark.parametrize("base", [194.0, 1e4, 1e6])
def test_traced_lengths_agree_with_the_host_and_share_one_program(make, base):
    rule, shape = make(), rotary(base=base)
    traced = jax.jit(lambda length: dynamic.frequencies_at(rule, shape, length))
    for length in LENGTHS:
        high, low = traced(jnp.int32(length))
        assert high.dtype == low.dtype == jnp.float32
        np.testing.assert_allclose(wide((high, low)), rule.at(length)(shape).inverse_frequencies, rtol=1e-13)
    assert traced._cache_size() == 1


@pytest.mark.parametrize("make", [dynamic_ntk, longrope])
def test_a_batch_of_lengths_is_each_of_them(make):
    rule = make()
    lengths = jnp.asarray(LENGTHS, jnp.int32).reshape(3, 4)
    batched = jax.jit(lambda lengths: dynamic.frequencies_at(rule, rotary(), lengths))(lengths)
    assert batched[0].shape == batched[1].shape == (3, 4, 48)
    expected = np.stack([rule.at(length)(rotary()).inverse_frequencies for length in LENGTHS]).reshape(3, 4, 48)
    np.testing.assert_allclose(wide(batched), expected, rtol=1e-13)
    mapped = jax.jit(jax.vmap(lambda length: dynamic.frequencies_at(rule, rotary(), length)))(lengths)
    np.testing.assert_allclose(wide(mapped), expected, rtol=1e-13)


def test_below_the_trained_length_the_traced_frequencies_are_the_host_ones_to_the_last_bit():
    high, low = _TRACED(jnp.asarray([7, L], jnp.int32))
    theta = rotary().inverse_frequencies
    np.testing.assert_allclose(wide((high, low)), np.stack([theta, theta]), rtol=2.0**-46)
    np.testing.assert_array_equal(np.asarray(high), np.stack([theta, theta]).astype(np.float32))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2**24))
def test_any_length_agrees_with_the_host(length):
    expected = dynamic_ntk().at(length)(rotary()).inverse_frequencies
    np.testing.assert_allclose(wide(_TRACED(jnp.int32(length))), expected, rtol=1e-13)


def test_composition():
    # They follow a base made anew, and refuse what has already been scaled.
    fresh = scaling.explicit_base(base=1e6)(rotary())
    traced = jax.jit(lambda length: dynamic.frequencies_at(dynamic_ntk(), fresh, length))(jnp.int32(8192))
    np.testing.assert_allclose(wide(traced), hf_dynamic(96, 1e6, 4.0, 8192), rtol=1e-12)
    scaled = scaling.linear(factor=2.0)(rotary())
    for rule in (dynamic_ntk(), longrope()):
        with pytest.raises(ScalingError, match=f"{rule.name} after linear"):
            rule.at(8192)(scaled)
        with pytest.raises(ScalingError, match=f"{rule.name} after linear"):
            dynamic.frequencies_at(rule, scaled, jnp.int32(8192))


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (length_rules.dynamic_ntk, {"factor": 0.5, "original_length": 4096}),
        (length_rules.dynamic_ntk, {"factor": float("nan"), "original_length": 4096}),
        (length_rules.dynamic_ntk, {"factor": 2.0, "original_length": 0}),
        (length_rules.longrope, {"short_factor": [1.0], "long_factor": [1.0, 2.0], "original_length": 4096}),
        (length_rules.longrope, {"short_factor": [0.0], "long_factor": [1.0], "original_length": 4096}),
        (length_rules.longrope, {"short_factor": [1.0], "long_factor": [-1.0], "original_length": 4096}),
        (length_rules.longrope, {"short_factor": [1.0], "long_factor": [1.0], "original_length": 0}),
    ],
)
def test_hyperparameters_out_of_range_raise_one_line(make, arguments):
    with pytest.raises(ScalingError) as caught:
        make(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", [dynamic_ntk(), longrope()])
def test_errors_that_need_the_record(rule):
    for evaluate in (
        lambda record: rule.at(8192)(record),
        lambda record: dynamic.frequencies_at(rule, record, jnp.int32(8192)),
    ):
        with pytest.raises(ScalingError):
            evaluate(rotary(dim=2))


def test_other_rules_are_not_rules_by_length():
    with pytest.raises(TypeError):
        dynamic.frequencies_at(scaling.linear(factor=2.0), rotary(), jnp.int32(8192))


DIMS, BASES = st.sampled_from([4, 16, 64, 128]), st.floats(0, 12).map(lambda x: 1.01 * 10.0**x)
TRAINED, FACTORS = st.integers(1, 2**20), st.floats(1, 64)


@settings(max_examples=20, deadline=None)
@given(DIMS, BASES, TRAINED, FACTORS, st.lists(st.integers(1, 2**31 - 1), min_size=5, max_size=5))
@example(64, 5.305187128637356, 140, 12.317602359602358, [1, 140, 141, 2**31 - 1, 1_588_699_614])
def test_traced_frequencies_agree_as_stated_with_the_host(dim, base, trained, factor, lengths):
    rule = length_rules.dynamic_ntk(factor=factor, original_length=trained)
    record = rotary(dim, base)
    traced = wide(dynamic.frequencies_at(rule, record, np.array(lengths)))
    host = np.stack([rule.at(length)(record).inverse_frequencies for length in lengths])
    np.testing.assert_allclose(traced, host, rtol=4e-13, atol=0)
    np.testing.assert_allclose(traced, host, rtol=0, atol=2e-14)


@pytest.mark.parametrize("rule", [dynamic_ntk(), longrope()])
@pytest.mark.parametrize("width", [np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_lengths_of_any_width_are_those_of_int32(rule, width):
    values = [1, L - 1, L, L + 1, 32_767, *([65_535] if np.iinfo(width).max > 32_767 else [])]
    right = wide(dynamic.frequencies_at(rule, rotary(), np.array(values, np.int32)))
    np.testing.assert_array_equal(wide(dynamic.frequencies_at(rule, rotary(), np.array(values, width))), right)
    if np.dtype(width).itemsize < 8:
        np.testing.assert_array_equal(wide(dynamic.frequencies_at(rule, rotary(), jnp.asarray(values, width))), right)
    for value, row in zip(values, right, strict=True):
        # A factor that is a Python integer takes the width of what it multiplies.
        whole = dataclasses.replace(rule, factor=4) if isinstance(rule, length_rules.DynamicNtk) else rule
        np.testing.assert_allclose(row, whole.at(width(value))(rotary()).inverse_frequencies, rtol=4e-13)


@pytest.mark.parametrize("rule", [dynamic_ntk(), longrope()])
@pytest.mark.parametrize("length", [8192.0, np.float32(8192), True, np.nan])
def test_lengths_that_are_no_integers_are_refused(rule, length, without_type_checks):
    with pytest.raises(TypeError, match=r"^lengths must be integers"):
        dynamic.frequencies_at(rule, rotary(), jnp.asarray(length))
    with pytest.raises(ScalingError, match="length must be a whole number, at least 1"):
        rule.at(length)
    with pytest.raises(ScalingError, match="original_length must be a whole number"):
        dataclasses.replace(rule, original_length=length)
