"""What textbooks, papers and this project's own notes claim about positions, each as an assertion."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax import biases, double_float, frequencies, phases, rotation, scaling

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


# ---- biases


def test_what_is_constant_in_a_row_changes_no_softmax_so_alibi_is_a_bias_of_the_key():
    rng = np.random.default_rng(1)
    tokens = jnp.arange(40)
    seen = tokens[:, None] >= tokens[None]
    logits = jnp.asarray(rng.standard_normal((4, 40, 40)), jnp.float32)
    alibi = biases.alibi_paper(4)
    key_only = alibi.slopes[:, None, None] * tokens.astype(jnp.float32)[None, None]
    weights = [
        jax.nn.softmax(jnp.where(seen[None], logits + bias, -jnp.inf), axis=-1)
        for bias in (alibi(tokens[:, None] - tokens[None]), key_only)
    ]
    np.testing.assert_allclose(weights[0], weights[1], atol=2e-6)


def test_causal_alibi_has_rank_two():
    # Before the mask: m (j - i) = m j - m i, an outer sum.
    offset = np.arange(50)[:, None] - np.arange(50)[None]
    signed = -biases.paper_slopes(8)[:, None, None] * offset
    assert [int(np.linalg.matrix_rank(head)) for head in signed] == [2] * 8


def test_the_symmetric_bias_is_not_of_rank_two():
    tokens = jnp.arange(50)
    both_ways = np.asarray(biases.alibi_paper(2)(tokens[:, None] - tokens[None]))
    assert np.linalg.matrix_rank(both_ways[0]) > 10


def test_t5_is_constant_beyond_its_last_edge_and_alibi_and_kerple_never_are():
    far = jnp.asarray([113, 128, 1000, 10**6])
    table = np.random.default_rng(2).standard_normal((2, 32))
    flat = biases.t5_bias(table, max_distance=128)(far)
    np.testing.assert_array_equal(flat, np.repeat(table[:, -1:].astype(np.float32), 4, axis=1))
    assert np.all(np.diff(biases.alibi_paper(2)(far)) < 0)
    kerple = biases.KerpleLogarithmic(jnp.ones(2), jnp.ones(2))
    assert np.all(np.diff(kerple(far)) < 0)


def test_inside_a_bucket_the_odds_of_two_keys_do_not_move():
    bias = biases.t5_bias(np.random.default_rng(3).standard_normal((1, 32)), max_distance=128)
    starts = biases.bucket_starts(32, 128)
    for first, following in itertools.pairwise(starts):
        values = np.asarray(bias(jnp.arange(first, following)))
        assert np.ptp(values) == 0
        assert values[0, 0] != float(bias(jnp.asarray(following))[0])


def test_alibi_rows_converge_and_t5_rows_do_not():
    def row_sum(bias, length):
        return np.exp(np.asarray(bias(jnp.arange(length)), np.float64)).sum(axis=1)

    alibi, flat = biases.alibi_paper(8), biases.t5_bias(np.zeros((1, 32)))
    np.testing.assert_allclose(row_sum(alibi, 32_768), row_sum(alibi, 65_536), rtol=1e-9)
    assert row_sum(flat, 65_536)[0] == 2 * row_sum(flat, 32_768)[0]


def test_the_bias_horizon_of_the_gentlest_paper_slope():
    # H = A / m: at 20 nats a head of slope 2^-8 sees 5,120 tokens; and it costs 16 nats at 4k.
    gentlest = biases.paper_slopes(8).min()
    assert 20 / gentlest == 5120
    assert 4096 * gentlest == 16


def test_an_alibi_tensor_in_bfloat16_steps_by_128_tokens():
    offset = jnp.arange(16_385, 32_768)
    steps = np.unique(np.asarray(offset.astype(jnp.bfloat16).astype(jnp.float32)))
    assert np.min(np.diff(steps)) == 128


def test_one_parameter_per_offset_knows_nothing_of_longer_ones():
    bias = biases.PerOffset(jnp.asarray(np.random.default_rng(4).standard_normal((1, 64)), jnp.float32))
    gradient = jax.grad(lambda bias: jnp.sum(bias(jnp.arange(32))))(bias).table
    assert np.all(np.asarray(gradient[0, :32]) == 1)
    assert not np.any(gradient[0, 32:])
