"""What textbooks, papers and this project's own notes claim about biases, each as an assertion.

The notebooks of `experiments/notebooks` show the same; claims about rotation are in `test_claims.py`.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax import biases


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


# ---- what is shared between offsets


def test_both_biases_are_constant_along_diagonals():
    tokens = jnp.arange(48)
    offset = tokens[:, None] - tokens[None]
    table = np.random.default_rng(6).standard_normal((1, 8))
    for bias in (biases.alibi_paper(1), biases.t5_bias(table, max_distance=32)):
        matrix = np.asarray(bias(offset)[0])
        assert all(np.ptp(np.diagonal(matrix, diagonal)) == 0 for diagonal in range(-47, 48))


def test_t5_has_no_low_rank():
    tokens = jnp.arange(48)
    table = -np.log1p(np.asarray(biases.bucket_starts(8, 32), np.float64))[None]
    matrix = biases.t5_bias(table, max_distance=32)(tokens[:, None] - tokens[None])[0]
    assert np.linalg.matrix_rank(np.asarray(matrix)) > 10


@pytest.mark.parametrize(("max_distance", "last"), [(128, 113), (2048, 1513), (32_768, 20_347)])
def test_the_last_bucket_begins_before_max_distance(max_distance, last):
    starts = biases.bucket_starts(32, max_distance)
    assert starts[:17] == tuple(range(17))  # the first half hold one offset each
    assert starts[-1] == last < max_distance
    edge = biases.bucket(
        jnp.asarray([last - 1, last, max_distance - 1, 2**30]), num_buckets=32, max_distance=max_distance
    )
    assert edge.tolist() == [30, 31, 31, 31]


def test_a_longer_max_distance_starts_the_last_bucket_earlier_in_proportion():
    shares = [biases.bucket_starts(32, distance)[-1] / distance for distance in (128, 2048, 32_768)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("slope", [1 / 16, 1 / 256])
def test_the_room_under_alibi_is_about_one_over_the_slope(slope):
    row = np.exp(np.asarray(biases.Alibi(jnp.asarray([slope]))(jnp.arange(32_768))[0], np.float64))
    assert row.sum() == pytest.approx(1 / (1 - np.exp(-slope)), rel=1e-6)
    assert row.sum() == pytest.approx(1 / slope, rel=0.04)


# ---- one parameter per offset, trained on 64 tokens and read at 256

TEACHER = biases.KerpleLogarithmic(jnp.ones(1), jnp.ones(1))


def divergence(bias, length):
    """KL divergence of attention by the bias alone from the teacher's, nats, for each query."""
    tokens = jnp.arange(length)
    offset = tokens[:, None] - tokens[None]
    teacher, student = (
        jax.nn.log_softmax(jnp.where(offset >= 0, b(offset)[0], -1e30), axis=-1) for b in (TEACHER, bias)
    )
    return jnp.sum(jnp.exp(teacher) * jnp.where(offset >= 0, teacher - student, 0.0), axis=-1)


def trained_on_64(bias):
    return np.asarray(jax.grad(lambda bias: divergence(bias, 64).mean())(bias).table[0])


def test_offsets_that_training_never_met_are_never_trained():
    gradient = trained_on_64(biases.PerOffset(jnp.zeros((1, 256))))
    assert np.all(gradient[:64] != 0)
    assert not np.any(gradient[64:])


@pytest.mark.parametrize(("max_distance", "starts", "untrained"), [(32, (23, 27), 0), (128, (64, 91), 2)])
def test_buckets_share_what_was_learned_and_are_untrained_where_they_begin_beyond_it(max_distance, starts, untrained):
    assert biases.bucket_starts(16, max_distance)[-2:] == starts
    gradient = trained_on_64(biases.t5_bias(np.zeros((1, 16)), max_distance=max_distance))
    assert np.sum(gradient == 0) == untrained
    assert np.all(gradient[: 16 - untrained] != 0)


def test_one_parameter_per_offset_fits_perfectly_short_and_means_nothing_long():
    # Softmax leaves the trained entries known up to one constant, and nothing ties the others to them.
    learned = np.asarray(TEACHER(jnp.arange(64))[0])
    beyond = {}
    for constant in (0.0, 2.0, -2.0):
        bias = biases.PerOffset(jnp.asarray(np.concatenate([learned + constant, np.zeros(192)])[None], jnp.float32))
        lost = np.asarray(divergence(bias, 256))
        assert np.abs(lost[:64]).max() < 1e-5
        beyond[constant] = lost[-1]
    assert beyond[-2.0] > beyond[0.0] > beyond[2.0] > 0.5
    # A tail that shares the last trained offset's parameter stays close: buckets do this.
    shared = biases.PerOffset(jnp.asarray(learned[None]))
    assert np.asarray(divergence(shared, 256))[-1] < beyond[2.0] / 5
