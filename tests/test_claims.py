"""What textbooks, papers and this project's own notes claim about rotation and its scaling, each as an assertion.

The notebooks of `experiments/notebooks` show the same; claims about biases are in `test_claims_biases.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax import double_float, frequencies, phases, rotation, scaling, scheme, testing
from rope_jax.attention import attention
from rope_jax.diagnosis.theory import resolution

COS_SIN = jax.jit(phases.cos_sin)
CASES = {"2k to 8k": (2048, 8192), "4k to 32k": (4096, 32_768), "L to 4L": (1024, 4096)}


def rotary(length=4096, dim=128, base=1e4):
    return frequencies.rotary(dim, base=base, original_length=length)


def phases_of(positions, theta):
    high, low = double_float.split(theta)
    return COS_SIN(jnp.asarray(positions, jnp.int32), jnp.asarray(high), jnp.asarray(low))


def matrices(positions, theta):
    return np.asarray(rotation.rotation_matrix(*phases_of(positions, theta), layout="half"), np.float64)


# ---- rotation


@pytest.mark.parametrize("rule", [scaling.linear(factor=8.0), scaling.ntk(factor=8.0)])
def test_scaled_rope_is_rope_with_a_transformed_angle(rule):
    # Both ways of writing position interpolation, and base scaling, are one map of angles: R'(p, theta) = R(p, theta').
    theta, scaled = rotary().inverse_frequencies, rule(rotary()).inverse_frequencies
    multiplier = scaled / theta
    positions = np.array([1, 7, 4096, 32_767])
    by_angle = np.exp(1j * positions[:, None] * theta * multiplier)
    cos, sin = phases_of(positions, scaled)
    np.testing.assert_allclose(np.asarray(cos) + 1j * np.asarray(sin), by_angle, atol=1e-6)
    if rule.name == "linear":
        np.testing.assert_allclose(by_angle, np.exp(1j * (positions / 8)[:, None] * theta), atol=1e-9)


def test_the_logit_is_a_sum_of_periodic_functions_of_the_offset():
    # arXiv 2306.15595, equation 3.
    theta = frequencies.inverse_frequencies(16, base=1e4)
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 16)), jnp.float32) for _ in range(2))
    h = np.asarray(rotation.as_complex(q, layout="half") * rotation.as_complex(k, layout="half").conj())[0, 0]
    for i, j in ((5, 0), (1005, 1000), (70, 4)):
        turned = [rotation.rotate(x, *phases_of([p], theta), layout="half") for x, p in ((q, i), (k, j))]
        expected = np.sum(h * np.exp(1j * (i - j) * theta)).real
        assert float(jnp.sum(turned[0] * turned[1])) == pytest.approx(expected, abs=1e-5)


def test_rope_alone_loses_no_adjacent_precision_with_distance():
    # ||R(D + 1) - R(D)||_F^2 = 8 sum sin^2(theta_i / 2), whatever D.
    theta = frequencies.inverse_frequencies(16, base=1e4)
    expected = 8 * np.sum(np.sin(theta / 2) ** 2)
    for distance in (0, 1, 100, 32_768, 2**20):
        here, there = matrices([distance, distance + 1], theta)
        assert np.sum((there - here) ** 2) == pytest.approx(expected, rel=1e-5)


def test_phases_of_low_precision_do_lose_neighbours():
    theta = frequencies.inverse_frequencies(16, base=1e4)
    expected = 8 * np.sum(np.sin(theta / 2) ** 2)
    positions = jnp.asarray([2**24 - 2, 2**24 - 1])
    cos, sin = phases.cos_sin(positions, jnp.asarray(theta, jnp.float32), phase="float32")
    here, there = np.asarray(rotation.rotation_matrix(cos, sin, layout="half"), np.float64)
    assert abs(np.sum((there - here) ** 2) / expected - 1) > 0.05


def test_a_layout_is_the_other_one_after_a_permutation_of_dimensions_and_not_before():
    order = rotation.interleaved_to_half(8)
    cos, sin = phases_of([3], frequencies.inverse_frequencies(8, base=10.0))
    half, interleaved = (
        np.asarray(rotation.rotation_matrix(cos, sin, layout=layout))[0] for layout in ("half", "interleaved")
    )
    np.testing.assert_array_equal(interleaved[np.ix_(order, order)], half)
    assert np.abs(interleaved - half).max() > 0.5


# ---- rotary against additive sinusoidal embeddings


def sinusoid(positions, theta):
    return np.asarray(rotation.sinusoidal(*phases_of(positions, theta), layout="half"), np.float64)


def spread(matrix):
    """The root mean variance along the diagonals, relative to the deviation of the whole matrix: 0 if relative."""
    diagonals = [np.diagonal(matrix, n) for n in range(1 - len(matrix), len(matrix))]
    return np.sqrt(sum(d.size * d.var() for d in diagonals) / matrix.size) / matrix.std()


def test_sinusoids_and_rotation_have_one_kernel():
    theta = frequencies.inverse_frequencies(64, base=1e4)
    kernel = 32 * resolution.kernel(theta, resolution.uniform_weights(32), 200)
    embedded = sinusoid(np.arange(200), theta)
    np.testing.assert_allclose(embedded @ embedded[0], kernel, atol=1e-4)
    one_in_each_pair = np.repeat([1.0, 0.0], 32)
    np.testing.assert_allclose(matrices(np.arange(200), theta) @ one_in_each_pair @ one_in_each_pair, kernel, atol=1e-4)
    assert np.any(np.diff(kernel) > 0)  # it does not fall monotonically


def test_a_sinusoid_moves_by_a_rotation():
    # s_(p + k) = R(-k) s_p, the sine being first.
    theta = frequencies.inverse_frequencies(64, base=1e4)
    for moved in (1, 10, 1000):
        (turn,) = matrices([-moved], theta)
        np.testing.assert_allclose(
            sinusoid([0, 7, 5000], theta) @ turn.T, sinusoid(np.array([0, 7, 5000]) + moved, theta), atol=1e-5
        )


def test_rotary_logits_depend_on_the_offset_alone_and_additive_ones_do_not():
    theta, positions = frequencies.inverse_frequencies(64, base=1e4), np.arange(40)
    rng = np.random.default_rng(5)
    x = np.tile(rng.standard_normal(64), (40, 1))
    w_q, w_k = rng.standard_normal((2, 64, 64)) / 8
    turns, embedded = matrices(positions, theta), sinusoid(positions, theta)
    turned_q, turned_k = (np.einsum("pij,pj->pi", turns, x @ w) for w in (w_q, w_k))
    assert spread(turned_q @ turned_k.T) < 1e-5
    assert spread(embedded @ embedded.T) < 1e-5  # relative, until the projections mix the pairs
    assert spread((embedded @ w_q) @ (embedded @ w_k).T) > 0.5
    assert spread(((x + embedded) @ w_q) @ ((x + embedded) @ w_k).T) > 0.5


def test_shifting_all_positions_changes_nothing_under_rotation_and_much_under_addition():
    record = rotary(dim=64)
    turning, nothing = (scheme.build(r, num_heads=1, head_dim=64) for r in (record, None))
    rng = np.random.default_rng(6)
    text = rng.standard_normal((40, 64))

    @jax.jit
    def of(x, positions, positional):
        return attention(x, x, x, positional, q_positions=positions, kv_positions=positions)

    def attend(inputs, positions, positional):
        x = jnp.asarray(inputs, jnp.float32)[None, :, None]
        return np.asarray(of(x, jnp.asarray(positions, jnp.int32)[None], positional))

    here = np.arange(40)
    added = {
        shift: attend(text + sinusoid(here + shift, record.inverse_frequencies), here + shift, nothing)
        for shift in (0, 1, 1000)
    }
    for shift in (1, 1000):
        np.testing.assert_allclose(attend(text, here + shift, turning), attend(text, here, turning), atol=1e-4)
        assert np.abs(added[shift] - added[0]).max() > 0.1


def test_rotation_keeps_norms_and_addition_does_not():
    testing.assert_preserves_norms_and_angles(jax.jit(testing.rotation_of(rotary(dim=64))), dim=64)
    text = np.random.default_rng(7).standard_normal((40, 64))
    added = text + sinusoid(np.arange(40), rotary(dim=64).inverse_frequencies)
    assert np.abs(np.linalg.norm(added, axis=-1) / np.linalg.norm(text, axis=-1) - 1).max() > 0.1


# ---- scaling


@pytest.mark.parametrize("case", CASES)
def test_base_scaling_does_not_stretch_every_period_alike(case):
    short, long = CASES[case]
    factor = long / short
    before = rotary(short)
    growth = frequencies.period_growth(
        before.inverse_frequencies, scaling.ntk(factor=factor)(before).inverse_frequencies
    )
    assert growth[0] == 1.0
    assert growth[-1] == pytest.approx(factor, rel=1e-12)
    assert np.all(np.diff(growth) > 0)
    assert np.all(growth[:-1] < factor)
    multiplier = frequencies.base_multiplier(128, factor=factor)
    np.testing.assert_allclose(growth, multiplier ** (np.arange(64) / 64), rtol=1e-12)  # lambda^(2i/d)
    assert not frequencies.grows_uniformly(before.inverse_frequencies, before.inverse_frequencies / growth)
    linear = scaling.linear(factor=factor)(before).inverse_frequencies
    assert frequencies.grows_uniformly(before.inverse_frequencies, linear)


@pytest.mark.parametrize("case", CASES)
def test_period_matching(case):
    # (lambda b)^((d-2)/d) = s b^((d-2)/d), so b' = b s^(d/(d-2)): the longest period grows by s, no more.
    short, long = CASES[case]
    factor, d, base = long / short, 128, 1e4
    multiplier = frequencies.base_multiplier(d, factor=factor)
    assert (multiplier * base) ** ((d - 2) / d) == pytest.approx(factor * base ** ((d - 2) / d))
    assert frequencies.period_matched_base(base, factor=factor, dim=d) == pytest.approx(base * factor ** (d / (d - 2)))
    # The plain product b s falls short of the factor for the longest period.
    plain = frequencies.inverse_frequencies(d, base=base * factor)
    assert frequencies.period_growth(frequencies.inverse_frequencies(d, base=base), plain)[-1] < factor


def test_the_multiplier_knows_neither_length_nor_base_and_is_above_the_factor():
    for dim in (32, 64, 128, 256):
        assert 4 < frequencies.base_multiplier(dim, factor=4.0) == 4 ** (dim / (dim - 2))
    for length, base in ((1024, 500.0), (2048, 1e4), (8192, 5e5)):
        after = scaling.ntk(factor=4.0)(rotary(length, base=base))
        assert after.base / base == pytest.approx(4.0890, abs=5e-5)


def test_worked_examples():
    assert frequencies.base_multiplier(128, factor=4.0) == pytest.approx(4.0890, abs=5e-5)  # 2k to 8k, L to 4L
    assert frequencies.base_multiplier(128, factor=8.0) == pytest.approx(8.2685, abs=5e-5)  # 4k to 32k
    assert scaling.linear(factor=4.0)(rotary(2048)).inverse_frequencies[0] == 0.25
    # 18 of 64 pairs never complete a period at 4k.
    assert np.sum(frequencies.turns(rotary().inverse_frequencies, 4095) < 1) == 18
    # The geometry of 4k at base 1e4, ln(L / 2 pi) / ln b = .704, at shorter lengths.
    for length, base in ((4096, 1e4), (256, 194), (512, 520), (1024, 1390)):
        assert np.log(length / (2 * np.pi)) / np.log(base) == pytest.approx(0.704, abs=2e-3)


def test_yarn_multiplies_logits_by_the_square_of_its_factor():
    scaled = scaling.yarn(factor=8.0, original_length=4096)(rotary())
    assert scaled.cos_sin_factor**2 == pytest.approx(1.459, abs=5e-4)


@pytest.mark.parametrize(
    ("rule", "fisher"),
    [
        (scaling.linear(factor=8.0), 0.016),
        (scaling.ntk(factor=8.0), 0.84),
        (scaling.explicit_base(base=5e5), 0.74),
        (scaling.by_parts(factor=8.0, original_length=4096), 1.0),
        (scaling.llama3(factor=8.0, original_length=4096, low_freq_factor=1, high_freq_factor=4), 1.0),
    ],
)
def test_fisher_information_of_the_notes(rule, fisher):
    theta = rotary().inverse_frequencies
    ratio = np.sum(rule(rotary()).inverse_frequencies ** 2) / np.sum(theta**2)
    assert ratio == pytest.approx(fisher, abs=6e-3)


@pytest.mark.parametrize(
    ("rule", "share"),
    [
        (scaling.none(), 0.246),
        (scaling.linear(factor=8.0), 0.0),
        (scaling.ntk(factor=8.0), 0.066),
        (scaling.explicit_base(base=5e5), 0.0),
        (scaling.by_parts(factor=8.0, original_length=4096), 0.0),
        (scaling.llama3(factor=8.0, original_length=4096, low_freq_factor=1, high_freq_factor=4), 0.0),
    ],
)
def test_out_of_distribution_cells_of_the_notes(rule, share):
    # Pair i at offset D when (L - 1) theta_i < 2 pi and D theta'_i > (L - 1) theta_i; 4k to 32k.
    theta, scaled = rotary().inverse_frequencies, rule(rotary()).inverse_frequencies
    seen = 4095 * theta
    out = (seen < 2 * np.pi)[:, None] & (np.arange(32_768)[None] * scaled[:, None] > seen[:, None] * (1 + 1e-12))
    assert np.mean(out) == pytest.approx(share, abs=1e-3)


# ---- ramps, 4k to 32k at d = 128, b = 10,000

RAMPS = {
    "by_parts": (scaling.by_parts(factor=8.0, original_length=4096), 32),
    "yarn": (scaling.yarn(factor=8.0, original_length=4096), 32),
    "llama3": (scaling.llama3(factor=8.0, original_length=4096, low_freq_factor=1, high_freq_factor=4), 4),
}


@pytest.mark.parametrize("name", RAMPS)
def test_a_ramp_keeps_pairs_that_turned_often_and_interpolates_those_that_never_did(name):
    rule, kept_from = RAMPS[name]
    ratio = rule(rotary()).inverse_frequencies / rotary().inverse_frequencies
    turned = frequencies.turns(rotary().inverse_frequencies, 4096)
    np.testing.assert_allclose(ratio[turned >= kept_from], 1.0)
    np.testing.assert_allclose(ratio[turned <= 1], 1 / 8)
    assert np.all(np.diff(ratio) <= 1e-12)


def test_a_ramp_in_turns_drops_earlier_than_one_in_the_index():
    ratio = {
        name: rule(rotary()).inverse_frequencies / rotary().inverse_frequencies for name, (rule, _) in RAMPS.items()
    }
    between = slice(24, 45)
    assert np.all(ratio["by_parts"][between] < ratio["yarn"][between])
    assert np.all(ratio["by_parts"][between] < ratio["llama3"][between])


def test_only_yarn_touches_the_size_of_logits():
    for rule in (scaling.linear(factor=8.0), scaling.ntk(factor=8.0), *(rule for rule, _ in RAMPS.values())):
        scaled = rule(rotary())
        assert (scaled.cos_sin_factor != 1) == (rule.name == "yarn")
        assert scaled.logit_scale == 1


def test_where_pairs_leave_what_training_showed():
    theta = rotary().inverse_frequencies
    slow = resolution.never_turns_fully(theta, 4096)
    unscaled = resolution.first_offset_out(theta, theta, 4096)
    assert slow.sum() == 18
    assert np.all(unscaled[slow] == 4096)
    base_scaled = resolution.first_offset_out(theta, scaling.ntk(factor=8.0)(rotary()).inverse_frequencies, 4096)[slow]
    assert np.all(base_scaled[:-1] < 32_000)  # all but the slowest run out before the target
    assert base_scaled[-1] == 8 * 4095 + 1


@pytest.mark.parametrize(
    ("rule", "found", "coherence"),
    [
        (scaling.none(), 64, 1.0),
        (scaling.linear(factor=8.0), 512, 1.0),
        (scaling.ntk(factor=8.0), 103, 0.79),
        (RAMPS["by_parts"][0], 64, 0.965),
        (RAMPS["yarn"][0], 64, 0.99),
        (RAMPS["llama3"][0], 64, 0.999),
    ],
)
def test_where_a_head_tuned_to_64_finds_its_match(rule, found, coherence):
    theta, scaled = rotary().inverse_frequencies, rule(rotary()).inverse_frequencies
    curves = resolution.coherence_curves(theta, scaled, resolution.uniform_weights(64), [64], 32_768)
    assert resolution.peak(curves[0]) == (found, pytest.approx(coherence, abs=6e-3))
