"""Scaling rules against published numbers, their own equations, and each other."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rope_jax import frequencies, length_rules, scaling
from rope_jax.errors import ScalingError
from rope_jax.rules import Rule, Stage, compose
from rope_jax.scaling.registry import scaling_rule

DIMS = st.integers(2, 128).map(lambda pairs: 2 * pairs)
BASES = st.floats(10, 1e8)
FACTORS = st.floats(1, 64)
LENGTHS = st.integers(64, 2**18)


def rotary(dim=128, base=1e4, original_length=4096):
    return frequencies.rotary(dim, base=base, original_length=original_length)


def theta_of(*rules, **shape):
    return compose(*rules)(rotary(**shape)).inverse_frequencies


def rule_of_case(case):
    params = dict(case["params"])
    rope_type = case["rope_type"]
    if rope_type == "default":
        return scaling.none()
    if rope_type == "dynamic":
        rule = length_rules.dynamic_ntk(factor=params["factor"], original_length=case["max_position_embeddings"])
        return rule.at(params["seq_len"])
    if rope_type == "proportional":
        return scaling.proportional(proportion=params["partial_rotary_factor"])
    params["original_length"] = params.pop("original_max_position_embeddings")
    return {"yarn": scaling.yarn, "llama3": scaling.llama3}[rope_type](**params)


def test_every_vector_of_the_transformers_test_suite(real):
    golden = json.loads((real / "golden" / "hf_rope_inv_freq.json").read_text())
    assert len(golden["inv_freq_cases"]) == 10
    for case in golden["inv_freq_cases"]:
        shape = rotary(case["head_dim"], case["rope_theta"], case["max_position_embeddings"])
        expected = np.asarray(case["expected_inv_freq"])
        # They print five significant digits, or four decimals of the mantissa of a small number.
        digits = 4 if case["test"] == "test_proportional_rope_numerically_nested" else 5
        unit = 10.0 ** (np.floor(np.log10(np.where(expected > 0, expected, 1.0))) - digits + 1)
        actual = rule_of_case(case)(shape).inverse_frequencies
        np.testing.assert_array_less(
            np.abs(actual - expected), 0.5 * unit + 2e-7 * expected + 1e-300, err_msg=case["test"]
        )
    for rule in golden["attention_scaling_rules"]:
        if rule["rope_type"] == "yarn":
            actual = scaling.yarn(factor=rule["factor"], original_length=2048)(rotary()).cos_sin_factor
        else:
            actual = scaling.longrope_factor(
                factor=rule["factor"], original_length=rule["original_max_position_embeddings"]
            )
        assert actual == pytest.approx(rule["expected"], rel=1e-9)


@pytest.mark.parametrize(
    ("factor", "published"), [(2, "1.0693"), (4, "1.1386"), (8, "1.2079"), (16, "1.2773"), (32, "1.3466")]
)
def test_yarn_cos_sin_factor(factor, published):
    scaled = scaling.yarn(factor=factor, original_length=4096)(rotary())
    assert f"{scaled.cos_sin_factor:.4f}" == published
    assert scaled.logit_scale == 1.0


def test_longrope_factor():
    assert f"{scaling.longrope_factor(factor=8, original_length=4096):.4f}" == "1.1180"
    assert f"{scaling.longrope_factor(factor=32, original_length=4096):.4f}" == "1.1902"
    assert scaling.longrope_factor(factor=1, original_length=1) == 1.0


@given(DIMS, BASES, FACTORS)
def test_linear_divides_every_frequency(dim, base, factor):
    before = rotary(dim, base)
    after = scaling.linear(factor=factor)(before)
    np.testing.assert_allclose(after.inverse_frequencies * factor, before.inverse_frequencies, rtol=1e-15)
    assert (after.base, after.rules, before.rules) == (base, ("linear",), ())


@given(DIMS, BASES, FACTORS)
def test_ntk_grows_periods_from_one_to_the_factor(dim, base, factor):
    before = rotary(dim, base)
    after = scaling.ntk(factor=factor)(before)
    growth = frequencies.period_growth(before.inverse_frequencies, after.inverse_frequencies)
    multiplier = factor ** (dim / (dim - 2))
    np.testing.assert_allclose(growth, multiplier ** (2 * np.arange(dim // 2) / dim), rtol=1e-12)
    assert after.base == pytest.approx(base * multiplier)
    remade = frequencies.inverse_frequencies(dim, base=after.base)
    np.testing.assert_allclose(after.inverse_frequencies, remade, rtol=1e-12)
    by_multiplier = scaling.ntk(multiplier=multiplier)(before).inverse_frequencies
    np.testing.assert_allclose(by_multiplier, remade, rtol=1e-12)


@given(DIMS, BASES, st.floats(1.01, 64), LENGTHS)
def test_ramps_leave_fast_pairs_alone_and_interpolate_slow_ones(dim, base, factor, length):
    before = rotary(dim, base, length)
    theta = before.inverse_frequencies
    seen = length * theta / (2 * np.pi)
    low, high = (dim * math.log(length / (2 * math.pi * r)) / (2 * math.log(base)) for r in (32, 1))
    yarn_rule = scaling.yarn(factor=factor, original_length=length)
    # A ramp beyond the last pair is refused; tested below.
    yarn = yarn_rule(before).inverse_frequencies if low < dim - 1 else theta
    parts = scaling.by_parts(factor=factor, original_length=length)(before).inverse_frequencies
    llama3 = scaling.llama3(factor=factor, original_length=length, low_freq_factor=1, high_freq_factor=4)(before)
    for scaled, fast in ((yarn, 1e9), (parts, 32), (llama3.inverse_frequencies, 4)):
        assert np.all(scaled <= theta * (1 + 1e-15))
        assert np.all(scaled >= theta / factor * (1 - 1e-15))
        np.testing.assert_array_equal(scaled[seen >= fast], theta[seen >= fast])
    for scaled in (parts, llama3.inverse_frequencies):
        np.testing.assert_allclose(scaled[seen <= 1], theta[seen <= 1] / factor, rtol=1e-15)
    # YaRN's bounds are indices: pairs outside of the rounded ones.
    index = np.arange(dim // 2)
    np.testing.assert_array_equal(yarn[index <= low - 1], theta[index <= low - 1])
    slow = index >= max(high, 0) + 1
    np.testing.assert_allclose(yarn[slow], theta[slow] / factor, rtol=1e-12)


@given(DIMS, BASES, FACTORS, LENGTHS)
def test_llama3_is_its_published_piecewise_formula(dim, base, factor, length):
    before = rotary(dim, base, length)
    low, high = 1.0, 4.0

    def one(theta):
        wavelength = 2 * math.pi / theta
        if wavelength < length / high:
            return theta
        if wavelength > length / low:
            return theta / factor
        smooth = (length / wavelength - low) / (high - low)
        return (1 - smooth) * theta / factor + smooth * theta

    actual = scaling.llama3(factor=factor, original_length=length, low_freq_factor=low, high_freq_factor=high)(before)
    expected = [one(theta) for theta in before.inverse_frequencies]
    np.testing.assert_allclose(actual.inverse_frequencies, expected, rtol=1e-12)


def test_llama3_with_equal_bounds_is_a_step_and_never_divides_by_zero():
    # Llama 4 Scout publishes low_freq_factor = high_freq_factor = 1.
    before = rotary(128, 5e5, 8192)
    rule = scaling.llama3(factor=16.0, original_length=8192, low_freq_factor=1.0, high_freq_factor=1.0)
    after = rule(before).inverse_frequencies
    fast = 2 * np.pi / before.inverse_frequencies <= 8192
    np.testing.assert_array_equal(after, np.where(fast, before.inverse_frequencies, before.inverse_frequencies / 16))
    nearly = scaling.llama3(factor=16.0, original_length=8192, low_freq_factor=1.0, high_freq_factor=1.0 + 1e-12)
    np.testing.assert_allclose(after, nearly(before).inverse_frequencies, rtol=1e-9)


@given(DIMS, BASES, FACTORS, LENGTHS)
def test_by_parts_with_llama3_bounds_is_llama3(dim, base, factor, length):
    before = rotary(dim, base, length)
    parts = scaling.by_parts(factor=factor, original_length=length, alpha=1.0, beta=4.0)(before)
    llama3 = scaling.llama3(factor=factor, original_length=length, low_freq_factor=1.0, high_freq_factor=4.0)(before)
    np.testing.assert_array_equal(parts.inverse_frequencies, llama3.inverse_frequencies)


def test_by_parts_limits():
    before = rotary()
    every_pair_is_slow = scaling.by_parts(factor=8.0, original_length=4096, alpha=1e6, beta=1e7)
    every_pair_is_fast = scaling.by_parts(factor=8.0, original_length=4096, alpha=1e-9, beta=1e-8)
    np.testing.assert_array_equal(every_pair_is_slow(before).inverse_frequencies, before.inverse_frequencies / 8)
    np.testing.assert_array_equal(every_pair_is_fast(before).inverse_frequencies, before.inverse_frequencies)


@given(DIMS, BASES, LENGTHS)
def test_a_factor_of_one_changes_no_frequency(dim, base, length):
    before = rotary(dim, base, length)
    rules = [
        scaling.linear(factor=1.0),
        scaling.ntk(factor=1.0),
        scaling.by_parts(factor=1.0, original_length=length),
        scaling.llama3(factor=1.0, original_length=length, low_freq_factor=1, high_freq_factor=4),
        scaling.proportional(proportion=1.0),
        scaling.per_pair(factors=[1.0] * (dim // 2)),
        scaling.explicit_base(base=base),
        length_rules.dynamic_ntk(factor=4.0, original_length=length).at(length),
    ]
    for rule in rules:
        after = rule(before)
        np.testing.assert_allclose(after.inverse_frequencies, before.inverse_frequencies, rtol=1e-14)
        assert (after.cos_sin_factor, after.logit_scale) == (1.0, 1.0)


def _yarn_change_without_truncation(dim, base, length, factor):
    rounded, exact = (
        theta_of(
            scaling.yarn(factor=factor, original_length=length, truncate=truncate),
            dim=dim,
            base=base,
            original_length=length,
        )
        for truncate in (True, False)
    )
    # Either may be called the change: against the rounded bounds, and against the unrounded ones.
    return np.abs(exact / rounded - 1), np.abs(rounded / exact - 1)


def test_yarn_truncation_changes_frequencies_by_a_quarter():
    llama2 = _yarn_change_without_truncation(128, 1e4, 4096, 8.0)
    gpt_oss = _yarn_change_without_truncation(64, 150_000.0, 4096, 32.0)
    np.testing.assert_allclose([change.max() for change in llama2], [0.206, 0.259], atol=5e-4)
    np.testing.assert_allclose([change.max() for change in gpt_oss], [0.433, 0.763], atol=5e-4)


def test_yarn_without_truncation_is_its_formula():
    # gpt-oss: head_dim 64, base 150,000, 32 x 4,096.
    dim, base, length, factor = 64, 150_000.0, 4096, 32.0
    theta = base ** (-np.arange(dim // 2) * 2 / dim)
    low, high = (dim * np.log(length / (2 * np.pi * r)) / (2 * np.log(base)) for r in (32, 1))
    kept = 1 - np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    actual = theta_of(
        scaling.yarn(factor=factor, original_length=length, truncate=False), dim=dim, base=base, original_length=length
    )
    np.testing.assert_allclose(actual, theta / factor * (1 - kept) + theta * kept, rtol=1e-12)


def test_yarn_bounds_are_clamped_and_kept_apart():
    # So short a training length that no pair turns 32 times: the lower bound is clamped at the first pair.
    short = theta_of(scaling.yarn(factor=4.0, original_length=16), original_length=16)
    assert np.isfinite(short).all()
    assert short[0] == 1.0
    # Where the published code would run the ramp backwards: no pair is slow, or none is fast.
    for length, base in ((20_107, 10.0), (4, 1e4)):
        rule = scaling.yarn(factor=4.0, original_length=length, truncate=False)
        with pytest.raises(ScalingError, match="no pair of dim 4"):
            rule(rotary(4, base, length))
    # Equal bounds: a step, as in the published code, which adds 0.001.
    step = theta_of(scaling.yarn(factor=4.0, original_length=4096, beta_fast=4.0, beta_slow=4.0, truncate=False))
    growth = rotary().inverse_frequencies / step
    assert np.sum((growth > 1.001) & (growth < 3.999)) <= 1


def test_yarn_mscales():
    def factors(**mscales):
        after = scaling.yarn(factor=40.0, original_length=4096, **mscales)(rotary(64))
        return after.cos_sin_factor, after.logit_scale

    g = lambda m: 0.1 * m * math.log(40) + 1  # noqa: E731
    assert factors() == pytest.approx((g(1), 1))
    assert factors(mscale=0.707) == pytest.approx((g(1), 1))  # a lone mscale is ignored, as transformers does
    assert factors(mscale=0.707, mscale_all_dim=1.0) == pytest.approx((g(0.707) / g(1), 1))
    # DeepSeek-V2: both 0.707, so cos and sin stay, and the softmax scale is multiplied by the square.
    assert factors(mscale=0.707, mscale_all_dim=0.707, scale_logits=True) == pytest.approx((1, g(0.707) ** 2))
    assert factors(attention_factor=1.25, mscale=0.7, mscale_all_dim=1.0) == (1.25, 1)


def test_proportional_stops_the_slowest_pairs_and_keeps_the_rest():
    after = theta_of(scaling.proportional(proportion=0.25, factor=8.0))
    np.testing.assert_array_equal(after[:16], rotary().inverse_frequencies[:16] / 8)
    assert not after[16:].any()


@given(DIMS, BASES, FACTORS)
def test_resonance_makes_every_wavelength_whole(dim, base, factor):
    before = scaling.linear(factor=factor)(rotary(dim, base))
    wavelengths = frequencies.wavelengths(scaling.resonance()(before).inverse_frequencies)
    np.testing.assert_allclose(wavelengths, np.round(wavelengths), rtol=1e-12)
    assert np.max(np.abs(wavelengths - frequencies.wavelengths(before.inverse_frequencies))) <= 0.5 + 1e-6


def test_per_pair_writes_any_static_map():
    before = rotary()
    target = scaling.yarn(factor=8.0, original_length=4096)(before)
    factors = (before.inverse_frequencies / target.inverse_frequencies).tolist()
    again = scaling.per_pair(factors=factors, attention_factor=target.cos_sin_factor)(before)
    np.testing.assert_allclose(again.inverse_frequencies, target.inverse_frequencies, rtol=1e-15)
    assert again.cos_sin_factor == target.cos_sin_factor


RULES = {
    "explicit_base": scaling.explicit_base(base=5e5),
    "proportional": scaling.proportional(proportion=0.5),
    "by_parts": scaling.by_parts(factor=4.0, original_length=4096),
    "yarn": scaling.yarn(factor=4.0, original_length=4096),
    "yarn_map": scaling.yarn_map(factor=4.0, original_length=4096),
    "llama3": scaling.llama3(factor=4.0, original_length=4096, low_freq_factor=1, high_freq_factor=4),
    "per_pair": scaling.per_pair(factors=[2.0] * 64),
    "dynamic_ntk": length_rules.dynamic_ntk(factor=4.0, original_length=4096).at(8192),
    "longrope": length_rules.longrope(short_factor=[1.0] * 64, long_factor=[2.0] * 64, original_length=4096).at(8192),
    "ntk": scaling.ntk(factor=4.0),
    "ntk4": scaling_rule("ntk4", factor=4.0, original_length=4096),
    "linear": scaling.linear(factor=4.0),
    "no_rotation": scaling.no_rotation(),
    "resonance": scaling.resonance(),
}
GEOMETRY, RAMPS = {"explicit_base", "proportional"}, set(list(RULES)[2:9])
BASES_SCALED, UNIFORM = {"ntk", "ntk4"}, {"linear", "no_rotation"}
MAY_FOLLOW = {
    "explicit_base": {"explicit_base"},
    "proportional": GEOMETRY,  # a base made anew after it would turn the stopped pairs again
    **dict.fromkeys(RAMPS, GEOMETRY),
    **dict.fromkeys(BASES_SCALED, GEOMETRY | BASES_SCALED | UNIFORM),
    **dict.fromkeys(UNIFORM | {"resonance"}, GEOMETRY | RAMPS | BASES_SCALED | UNIFORM),
}


@pytest.mark.parametrize("second", RULES)
@pytest.mark.parametrize("first", RULES)
def test_what_may_follow_what(first, second):
    assert all(name == rule.name and rule.stage for name, rule in RULES.items())
    once = RULES[first](rotary())
    if first in MAY_FOLLOW[second]:
        twice = RULES[second](once)
        assert twice.rules == (first, second)
        assert np.isfinite(twice.inverse_frequencies).all()
    else:
        with pytest.raises(ScalingError, match=f"{second} after {first}") as caught:
            RULES[second](once)
        assert "\n" not in str(caught.value)


@given(DIMS, BASES, FACTORS, FACTORS)
def test_linear_and_ntk_commute_and_multiply(dim, base, a, b):
    shape = {"dim": dim, "base": base}
    linear, ntk = (lambda s: scaling.linear(factor=s)), (lambda s: scaling.ntk(factor=s))
    pairs = [
        ((linear(a), linear(b)), (linear(a * b),)),
        ((linear(a), linear(b)), (linear(b), linear(a))),
        ((ntk(a), ntk(b)), (ntk(a * b),)),
        ((ntk(a), linear(b)), (linear(b), ntk(a))),
    ]
    for left, right in pairs:
        np.testing.assert_allclose(theta_of(*left, **shape), theta_of(*right, **shape), rtol=1e-12)


def test_factors_of_cos_sin_multiply_through_and_none_changes_nothing():
    yarn = scaling.yarn(factor=4.0, original_length=4096)
    after = compose(scaling.none(), yarn, scaling.none(), scaling.linear(factor=2.0))(rotary())
    assert after.cos_sin_factor == yarn(rotary()).cos_sin_factor
    assert after.rules == ("yarn", "linear")


BAD = [0.0, -1.0, math.inf, math.nan]
OUT_OF_RANGE = [
    *((scaling.linear, {"factor": bad}) for bad in BAD),
    *((scaling.ntk, {key: bad}) for bad in BAD for key in ("factor", "multiplier")),
    (scaling.ntk, {}),
    (scaling.ntk, {"factor": 2.0, "multiplier": 2.0}),
    *((scaling.explicit_base, {"base": bad}) for bad in BAD),
    *((scaling.proportional, {"proportion": bad}) for bad in [*BAD, 1.01]),
    *((scaling.proportional, {"proportion": 0.5, "factor": bad}) for bad in BAD),
    *((scaling.by_parts, {"factor": 2.0, "original_length": 64, key: bad}) for bad in BAD for key in ("alpha", "beta")),
    *((scaling.by_parts, {"factor": 2.0, "original_length": 64, key: bad}) for bad in BAD for key in ("factor",)),
    *((scaling.by_parts, {"factor": 2.0, "original_length": bad}) for bad in [0, -1]),
    (scaling.by_parts, {"factor": 2.0, "original_length": 64, "alpha": 4.0, "beta": 2.0}),
    (scaling.llama3, {"factor": 2.0, "original_length": 64, "low_freq_factor": 4.0, "high_freq_factor": 1.0}),
    (scaling.llama3, {"factor": 2.0, "original_length": 64, "low_freq_factor": 0.0, "high_freq_factor": 1.0}),
    *((scaling.yarn, {"factor": bad, "original_length": 64}) for bad in [*BAD, 0.5]),
    *(
        (scaling.yarn, {"factor": 2.0, "original_length": 64, key: bad})
        for bad in BAD
        for key in ("beta_fast", "beta_slow", "attention_factor")
    ),
    *((scaling.yarn, {"factor": 2.0, "original_length": 64, "mscale": bad}) for bad in BAD[1:]),
    *((scaling.yarn, {"factor": 2.0, "original_length": 64, "mscale_all_dim": bad}) for bad in BAD[1:]),
    (scaling.yarn, {"factor": 2.0, "original_length": 64, "beta_fast": 1.0, "beta_slow": 2.0}),
    *((scaling.per_pair, {"factors": [1.0, bad]}) for bad in BAD),
    (scaling.per_pair, {"factors": [1.0], "attention_factor": 0.0}),
    (scaling.longrope_factor, {"factor": 2.0, "original_length": 1}),
    (scaling.longrope_factor, {"factor": -2.0, "original_length": 64}),
]


@pytest.mark.parametrize(("make", "hyperparameters"), OUT_OF_RANGE)
def test_hyperparameters_out_of_range_raise_one_line(make, hyperparameters):
    with pytest.raises(ScalingError) as caught:
        make(**hyperparameters)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_that_need_the_record():
    with pytest.raises(ScalingError, match="3 per-pair factors given for 64"):
        scaling.per_pair(factors=[1.0, 2.0, 3.0])(rotary())
    with pytest.raises(ScalingError, match="base above 1"):
        scaling.yarn(factor=2.0, original_length=64)(rotary(base=0.5))
    with pytest.raises(ScalingError, match="at least 4"):
        scaling.ntk(factor=2.0)(rotary(dim=2))


def test_a_rule_of_ones_own_composes_where_it_says_what_it_reads():
    def third(rotary):
        return dataclasses.replace(rotary, inverse_frequencies=rotary.inverse_frequencies / 3)

    unknown, own = Rule("own", third), Rule("own", third, stage=Stage.RAMP)
    np.testing.assert_allclose(unknown(rotary()).inverse_frequencies, rotary().inverse_frequencies / 3)
    for first, second in ((unknown, scaling.linear(factor=2.0)), (scaling.linear(factor=2.0), unknown)):
        with pytest.raises(ScalingError, match=r"rule 'own' composes with no other: .* stage"):
            compose(first, second)(rotary())
    after = compose(own, scaling.linear(factor=2.0), scaling.resonance())(rotary())
    assert after.rules == ("own", "linear", "resonance")
    after = compose(own, scaling.linear(factor=2.0))(rotary())
    np.testing.assert_allclose(after.inverse_frequencies, rotary().inverse_frequencies / 6)
    for first, second in ((own, scaling.ntk(factor=2.0)), (scaling.linear(factor=2.0), own), (own, own)):
        with pytest.raises(ScalingError, match="no single meaning"):
            compose(first, second)(rotary())
