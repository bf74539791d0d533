"""The analytic predictors against the project's own table (d = 128, base 1e4, 4k to 32k) and against brute force."""

import math

import numpy as np
import pytest

from rope_jax import scaling
from rope_jax.diagnosis.theory import resolution, thresholds
from rope_jax.diagnosis.theory.faults import bias_steps, float32_phase_error
from rope_jax.errors import InputError
from rope_jax.frequencies import base_multiplier, inverse_frequencies, rotary

L, TARGET, FACTOR = 4096, 32768, 8.0
CASE = rotary(128, base=1e4, original_length=L)
THETA = CASE.inverse_frequencies
UNIFORM = resolution.uniform_weights(64)
RULES = {
    "none": scaling.none(),
    "linear": scaling.linear(factor=FACTOR),
    "ntk": scaling.ntk(factor=FACTOR),
    "base 5e5": scaling.explicit_base(base=5e5),
    "by_parts": scaling.by_parts(factor=FACTOR, original_length=L),
    "yarn": scaling.yarn(factor=FACTOR, original_length=L),
    "llama3": scaling.llama3(factor=FACTOR, original_length=L, low_freq_factor=1.0, high_freq_factor=4.0),
}


def scaled(name: str) -> np.ndarray:
    return RULES[name](CASE).inverse_frequencies


def share(name: str) -> float:
    return resolution.out_of_distribution_share(THETA, scaled(name), original_length=L, target_length=TARGET)


def test_eighteen_pairs_never_turn_fully():
    assert resolution.never_turns_fully(THETA, L).sum() == 18


@pytest.mark.parametrize(
    ("name", "percent"),
    # Interpolation by exactly 8 leaves its last 7 offsets, each less than one trained step beyond L - 1.
    [("none", 24.61), ("ntk", 6.57), ("base 5e5", 0.0), ("linear", 0.006), ("by_parts", 0.006), ("llama3", 0.006)],
)
def test_out_of_distribution_share_of_the_case(name, percent):
    assert 100 * share(name) == pytest.approx(percent, abs=0.005)


def test_out_of_distribution_share_counts_what_the_definition_does():
    before, after = inverse_frequencies(16, base=300.0), inverse_frequencies(16, base=700.0)
    offsets = np.arange(200)[:, None]
    out = ((50 - 1) * before < 2 * np.pi) & (offsets * after > (50 - 1) * before)
    found = resolution.out_of_distribution_share(before, after, original_length=50, target_length=200)
    assert 0 < found == pytest.approx(out.mean(), abs=1e-15)


def test_unscaled_pairs_leave_at_the_first_new_offset():
    first = resolution.first_offset_out(THETA, THETA, L)
    assert set(first[-18:]) == {L}
    assert (first[:-18] > 2**60).all()


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("none", 1.0), ("linear", 1 / 64), ("ntk", 0.839), ("base 5e5", 0.7435), ("by_parts", 0.999), ("llama3", 1.0)],
)
def test_fisher_ratio_of_the_case(name, ratio):
    assert resolution.fisher_ratio(THETA, scaled(name), UNIFORM) == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "peaks"),
    [
        ("linear", [(128, 1.0), (512, 1.0), (2048, 1.0)]),
        ("ntk", [(18, 0.92), (103, 0.79), (496, 0.70)]),
        ("base 5e5", [(23, 0.86), (177, 0.76), (1482, 0.67)]),
        ("by_parts", [(16, 0.998), (64, 0.965), (758, 0.64)]),
        ("yarn", [(16, 0.999), (64, 0.99), (256, 0.86)]),
        ("llama3", [(16, 1.0), (64, 0.999), (256, 0.986)]),
    ],
)
def test_peaks_of_the_case(name, peaks):
    curves = resolution.coherence_curves(THETA, scaled(name), UNIFORM, [16, 64, 256], TARGET)
    found = [resolution.peak(curve) for curve in curves]
    assert [at for at, _ in found] == [at for at, _ in peaks]
    assert [height for _, height in found] == pytest.approx([height for _, height in peaks], abs=0.0055)


def test_classes_of_the_case():
    def count(name: str) -> dict[str, int]:
        classes = resolution.classify_pairs(THETA, scaled(name), original_length=L, target_length=TARGET)
        return {key: classes.count(key) for key in set(classes)}

    assert count("none") == {"unchanged": 46, "out of distribution": 18}
    assert count("linear") == {"interpolated": 64}
    assert count("ntk") == {"unchanged": 1, "extrapolated": 45, "out of distribution": 17, "interpolated": 1}
    assert set(count("llama3")) == {"unchanged", "extrapolated", "interpolated"}
    still = scaling.proportional(proportion=0.25)(CASE).inverse_frequencies
    classes = resolution.classify_pairs(still, still, original_length=L, target_length=TARGET)
    assert classes == ("unchanged",) * 16 + ("still",) * 48
    assert set(classes) <= set(resolution.CLASSES)


def test_phase_sum_is_the_sum():
    rng = np.random.default_rng(0)
    theta = rng.uniform(0, 1, 7)
    c = rng.normal(size=(3, 7)) + 1j * rng.normal(size=(3, 7))
    offsets = np.arange(700)
    whole = (c[:, None] * np.exp(1j * offsets[:, None] * theta)).sum(-1).real
    np.testing.assert_allclose(resolution.phase_sum(theta, c, 700), whole, atol=1e-12)


def test_kernel_curvature_is_fisher():
    weights = np.linspace(1, 2, 64)
    step = 1e-3
    top = resolution.kernel(THETA * step, weights, 2)
    assert 2 * (1 - top[1]) / step**2 == pytest.approx(resolution.fisher(THETA, weights), rel=1e-5)


def test_information_adds_rotation_and_bias():
    rotation = resolution.information(THETA, UNIFORM, amplitude=20.0, bias_slope=0.0)
    both = resolution.information(THETA, UNIFORM, amplitude=20.0, bias_slope=0.5, noise=2.0)
    assert rotation == pytest.approx(20**2 * np.mean(THETA**2) / 2)
    assert both == pytest.approx((rotation + 0.25) / 4)
    assert resolution.just_noticeable_difference(4.0) == 0.5
    assert math.isinf(resolution.just_noticeable_difference(0.0))


def test_g50_by_hand():
    logits = np.log(np.array([0.1, 0.1, 0.15, 0.3, 0.2, 0.1, 0.05]))
    assert resolution.g50(logits, 3) == 1
    assert resolution.g50(logits, 0) == 3
    assert resolution.g50(np.zeros(1), 0) == 0


def test_g50_falls_with_amplitude_and_rises_with_a_bias():
    curve = resolution.coherence_curves(THETA, THETA, UNIFORM, [1024], L)[0]
    np.testing.assert_allclose(curve[1024:], resolution.kernel(THETA, UNIFORM, L - 1024), atol=1e-12)
    blur = [resolution.g50(amplitude * curve, 1024) for amplitude in (1.0, 10.0, 20.0, 40.0)]
    assert blur == sorted(blur, reverse=True)
    assert blur[0] > blur[-1]
    assert resolution.g50(10 * curve - 2**-4 * np.arange(L), 1024) > resolution.g50(10 * curve, 1024)


@pytest.mark.parametrize("weights", [np.zeros(3), np.array([1.0, -1.0, 1.0]), np.array([1.0, math.nan, 1.0])])
def test_bad_weights_are_refused(weights):
    with pytest.raises(InputError, match="pair weights"):
        resolution.normalized(weights)


def test_the_three_thresholds_of_the_case():
    assert base_multiplier(128, factor=FACTOR) == pytest.approx(8.2685, abs=5e-5)
    clean = thresholds.in_distribution_multiplier(THETA, original_length=L, target_length=TARGET)
    assert clean == pytest.approx((32767 / 4095) ** (128 / 92))
    assert clean == pytest.approx(18.055, abs=1e-3)
    for multiplier, empty in ((clean * (1 + 1e-9), True), (clean * (1 - 1e-4), False)):
        after = thresholds.scaled_by_base(THETA, multiplier)
        left = resolution.out_of_distribution_share(THETA, after, original_length=L, target_length=TARGET)
        assert (left == 0) == empty
    content = thresholds.non_negative_multiplier(THETA, target_length=TARGET)
    assert content.multiplier == pytest.approx(63.0, abs=0.01)
    # Not monotone: it fails again soon after, and at 64.
    assert content.fails_again_at == pytest.approx(63.4, abs=0.1)
    ones = np.ones((1, 64), np.complex128)
    bases = (thresholds.scaled_by_base(THETA, multiplier) for multiplier in (62.9, 63.0, 64.0))
    at = [resolution.phase_sum(theta, ones, TARGET + 1).min() for theta in bases]
    assert at[0] < 0 <= at[1]
    assert at[2] < 0


def test_the_base_without_a_new_angle_against_weights_that_were_trained_with_a_scaling():
    trained = RULES["llama3"](CASE).inverse_frequencies
    multiplier = thresholds.in_distribution_multiplier(
        THETA, trained=trained, original_length=TARGET, target_length=2 * TARGET
    )
    for factor, empty in ((1 + 1e-9, True), (1 - 1e-4, False)):
        after = thresholds.scaled_by_base(THETA, multiplier * factor)
        share = resolution.out_of_distribution_share(trained, after, original_length=TARGET, target_length=2 * TARGET)
        assert (share == 0) == empty


def test_scaled_by_base_is_base_scaling():
    np.testing.assert_allclose(thresholds.scaled_by_base(THETA, 5.0), inverse_frequencies(128, base=5e4), rtol=1e-13)


def test_thresholds_at_the_edges():
    def clean(theta: np.ndarray, length: int, target: int) -> float | None:
        return thresholds.in_distribution_multiplier(theta, original_length=length, target_length=target)

    assert clean(THETA, L, L) == 1.0
    assert clean(THETA, 4, 64) is None  # the first pair does not turn fully either, and no base moves it
    assert clean(THETA, 1, 64) is None
    assert clean(np.array([1.0, 0.0]), L, TARGET) == 1.0
    assert thresholds.non_negative_multiplier(np.array([1.0]), target_length=64).multiplier is None
    assert thresholds.non_negative_multiplier(np.zeros(4), target_length=64).multiplier == 1.0


def test_precision():
    offset, tokens = bias_steps("bfloat16", target_length=TARGET)
    assert (offset, tokens) == (16384, 128)
    assert bias_steps("float32", target_length=TARGET) is None
    assert bias_steps("bfloat16", target_length=256) is None
    # Rounded to 8 significant bits, a line of slope 2^-8 takes one value for 128 offsets.
    last = np.arange(offset, TARGET) * 2.0**-8
    mantissa, exponent = np.frexp(last)
    assert len(np.unique(np.round(mantissa * 256) * 2.0**exponent)) == pytest.approx((TARGET - offset) / tokens, abs=1)
    assert float32_phase_error(THETA, length=TARGET) == pytest.approx(1.9e-3, abs=2e-4)
