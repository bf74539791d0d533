"""Inverse frequencies, wavelengths, period matching and the critical dimension."""

import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rope_jax import frequencies, length_rules, scaling
from rope_jax.errors import ScalingError

DIMS = st.integers(1, 128).map(lambda pairs: 2 * pairs)
BASES = st.floats(1.5, 1e8)


def assert_printed(actual, printed, digits=5):
    """Asserts that `actual` rounds to the printed numbers; upstream computed them in float32, so to one more unit."""
    printed = np.asarray(printed, np.float64)
    magnitude = np.floor(np.log10(np.where(printed > 0, printed, 1.0)))
    half_a_unit = 0.5 * 10.0 ** (magnitude - digits + 1)
    np.testing.assert_array_less(np.abs(actual - printed), half_a_unit + 2e-7 * printed + 1e-300)


def test_default_vectors_of_the_transformers_test_suite(real):
    golden = json.loads((real / "golden" / "hf_rope_inv_freq.json").read_text())
    cases = [case for case in golden["inv_freq_cases"] if case["rope_type"] == "default"]
    assert len(cases) == 2
    for case in cases:
        assert_printed(
            frequencies.inverse_frequencies(case["head_dim"], base=case["rope_theta"]), case["expected_inv_freq"]
        )


@given(DIMS, BASES)
def test_frequencies_are_a_geometric_series_from_one(dim, base):
    theta = frequencies.inverse_frequencies(dim, base=base)
    assert theta.dtype == np.float64
    assert theta.shape == (dim // 2,)
    assert theta[0] == 1.0
    np.testing.assert_allclose(theta, [base ** (-2 * i / dim) for i in range(dim // 2)], rtol=1e-14)
    np.testing.assert_allclose(theta[1:] / theta[:-1], base ** (-2 / dim), rtol=1e-13)
    np.testing.assert_allclose(frequencies.wavelengths(theta) * theta, 2 * np.pi, rtol=1e-14)
    np.testing.assert_allclose(frequencies.turns(theta, 4096) * frequencies.wavelengths(theta), 4096, rtol=1e-14)


def test_a_pair_that_does_not_turn_has_an_infinite_wavelength():
    assert frequencies.wavelengths(np.array([1.0, 0.0])).tolist() == [2 * np.pi, np.inf]


@pytest.mark.parametrize("dim", [0, -2, 3])
def test_dim_must_be_even_and_positive(dim):
    with pytest.raises(ScalingError, match="rotary dim") as caught:
        frequencies.inverse_frequencies(dim, base=1e4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", [0.0, -1.0, math.inf, math.nan])
def test_base_must_be_finite_and_positive(base):
    with pytest.raises(ScalingError, match="base must be"):
        frequencies.inverse_frequencies(8, base=base)


def test_base_has_no_default():
    with pytest.raises(TypeError, match="base"):
        frequencies.inverse_frequencies(8)


def test_original_length_is_checked():
    with pytest.raises(ScalingError, match="original_length"):
        frequencies.rotary(8, base=1e4, original_length=0)


def test_base_multiplier_of_the_worked_example():
    # YaRN, arXiv 2309.00071, equation 16 at d = 128, s = 8.
    assert f"{frequencies.base_multiplier(128, factor=8.0):.4f}" == "8.2685"
    assert round(frequencies.period_matched_base(1e4, factor=8.0, dim=128)) == 82_685


@given(DIMS.filter(lambda dim: dim > 2), BASES, st.floats(1, 64))
def test_period_matching_stretches_the_longest_wavelength_by_the_factor(dim, base, factor):
    before = frequencies.inverse_frequencies(dim, base=base)
    after = frequencies.inverse_frequencies(dim, base=frequencies.period_matched_base(base, factor=factor, dim=dim))
    growth = frequencies.period_growth(before, after)
    assert growth[0] == 1.0
    assert growth[-1] == pytest.approx(factor, rel=1e-12)
    multiplier = frequencies.base_multiplier(dim, factor=factor)
    np.testing.assert_allclose(growth, multiplier ** (2 * np.arange(dim // 2) / dim), rtol=1e-12)


def test_one_pair_cannot_be_period_matched():
    with pytest.raises(ScalingError, match="at least 4"):
        frequencies.base_multiplier(2, factor=2.0)


def test_period_growth_of_still_pairs_is_one():
    before, after = np.array([1.0, 0.1, 0.0]), np.array([0.5, 0.0, 0.0])
    assert frequencies.period_growth(before, after).tolist() == [2.0, np.inf, 1.0]


def test_only_uniform_growth_is_called_uniform():
    theta = frequencies.inverse_frequencies(64, base=1e4)
    assert frequencies.grows_uniformly(theta, theta / 8)
    assert not frequencies.grows_uniformly(theta, frequencies.inverse_frequencies(64, base=8e4))
    assert not frequencies.grows_uniformly(theta, np.where(np.arange(32) < 8, theta / 8, 0.0))
    # One outlier is enough, also where it is the last pair.
    assert not frequencies.grows_uniformly(theta, np.where(np.arange(32) < 31, theta / 8, theta / 8.001))


def test_critical_dimension_of_llama2():
    assert frequencies.critical_dimension(128, base=1e4, length=4096) == 92


@given(DIMS, st.floats(2, 1e7), st.integers(1, 2**24))
def test_critical_dimension_counts_the_dimensions_that_complete_a_period(dim, base, length):
    turned = frequencies.turns(frequencies.inverse_frequencies(dim, base=base), length)
    assert 2 * np.sum(turned > 1 + 1e-9) <= frequencies.critical_dimension(dim, base=base, length=length)
    assert frequencies.critical_dimension(dim, base=base, length=length) <= 2 * np.sum(turned > 1 - 1e-9)


@pytest.mark.parametrize("bad", [{"base": 1.0}, {"base": -1.0}, {"length": 0}, {"dim": 3}])
def test_critical_dimension_checks_its_arguments(bad):
    arguments = {"dim": 8, "base": 1e4, "length": 64} | bad
    with pytest.raises(ScalingError):
        frequencies.critical_dimension(arguments.pop("dim"), **arguments)


# ---- frequencies whose phase would be lost

EXTREME = st.floats(-320, 300).map(lambda x: 10.0**x).filter(lambda x: x > 0)
RULES = {
    "linear": lambda x: scaling.linear(factor=x),
    "ntk": lambda x: scaling.ntk(factor=x),
    "ntk by a multiplier": lambda x: scaling.ntk(multiplier=x),
    "explicit_base": lambda x: scaling.explicit_base(base=x),
    "proportional": lambda x: scaling.proportional(proportion=0.5, factor=x),
    "by_parts": lambda x: scaling.by_parts(factor=x, original_length=64),
    "llama3": lambda x: scaling.llama3(factor=x, original_length=64, low_freq_factor=1.0, high_freq_factor=4.0),
    "per_pair": lambda x: scaling.per_pair(factors=[1.0, 1.0, x, 1.0]),
    "longrope": lambda x: length_rules.longrope(
        short_factor=[1.0] * 4, long_factor=[1.0, x, 1.0, 1.0], original_length=64
    ).at(65),
}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["rotary", *RULES]), EXTREME)
@example("rotary", 1e-6)
@example("ntk", 1e300)
def test_every_frequency_that_can_be_made_keeps_its_phase(name, x):
    make = lambda: (  # noqa: E731
        frequencies.rotary(8, base=x, original_length=64)
        if name == "rotary"
        else RULES[name](x)(frequencies.rotary(8, base=1e4, original_length=64))
    )
    try:
        record = make()
    except ScalingError:
        rule = "" if name == "rotary" else f"{name.split()[0]}: "
        reason = r"with base .* pair \d would turn by .* radians a token: more than 128"
        with pytest.raises(ScalingError, match=f"^({rule}{reason}|.*too large|.*must be a finite positive).*$"):
            make()
    else:
        assert (np.abs(record.inverse_frequencies) <= frequencies.LARGEST_FREQUENCY).all()


def test_the_largest_frequency_is_allowed_and_the_next_is_refused_with_its_number():
    largest = frequencies.LARGEST_FREQUENCY
    record = frequencies.Rotary(np.array([1.0, -largest]), 1e4, 4, 64)
    assert record.inverse_frequencies.tolist() == [1.0, -largest]
    with pytest.raises(ScalingError, match=r"base 1e-06, pair 63 would turn by 805842 radians a token"):
        frequencies.rotary(128, base=1e-6, original_length=64)
    for beyond in (np.nextafter(largest, 1e3), -1e9, math.inf, math.nan):
        with pytest.raises(ScalingError, match=r"pair 1 would turn by .* radians a token: more than 128"):
            frequencies.Rotary(np.array([1.0, beyond]), 1e4, 4, 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"inverse_frequencies": np.ones(3)},
        {"inverse_frequencies": np.ones((2, 1))},
        {"dim": 5},
        {"base": 0.0},
        {"base": math.inf},
        {"original_length": 0},
        {"cos_sin_factor": math.nan},
        {"logit_scale": math.inf},
    ],
)
def test_a_record_that_does_not_fit_together_is_refused(changes, without_type_checks):
    fits = {"inverse_frequencies": np.array([1.0, 0.01]), "base": 1e4, "dim": 4, "original_length": 64}
    frequencies.Rotary(**fits)
    with pytest.raises(ScalingError):
        frequencies.Rotary(**{**fits, **changes})
