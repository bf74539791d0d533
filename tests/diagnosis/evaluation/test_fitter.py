"""Losses, A* and the T5 fit, on a tiny decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rope_jax.biases import alibi_paper, bucket_starts, t5_bias
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.diagnosis.evaluation.fitter import fit_t5_table, largest_multiplier
from rope_jax.diagnosis.evaluation.losses import LossProgram, next_token_losses
from rope_jax.frequencies import rotary
from rope_jax.scheme import build

CONFIG = DecoderConfig(
    vocab_size=24, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
    rms_norm_eps=1e-5,
)  # fmt: skip
MAX_OFFSET = bucket_starts(8, 16)[-1]


@pytest.fixture(scope="module")
def decoder():
    return Decoder(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 24, (16, 32)).astype(np.int32)


def schemes_with(bias):
    record = rotary(8, base=100.0, original_length=32)
    return build(record, bias, num_heads=2, head_dim=8, max_offset=MAX_OFFSET)


def test_losses_are_the_negative_log_probabilities(decoder, tokens):
    got = jax.jit(lambda t: next_token_losses(decoder, schemes_with(None), t))(jnp.asarray(tokens))
    logits = np.asarray(decoder(jnp.asarray(tokens), schemes_with(None)), np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_probabilities[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_losses_do_not_depend_on_the_blocks_of_the_unembedding(decoder):
    long = np.random.default_rng(1).integers(0, 24, (1, 600)).astype(np.int32)
    program = LossProgram(decoder)
    whole, part = program(schemes_with(None), long), program(schemes_with(None), long[:, :257])
    np.testing.assert_allclose(whole[:, :256], part, atol=1e-5)


def test_many_schemes_run_one_program(decoder, tokens):
    program = LossProgram(decoder)
    for multiplier in np.linspace(0, 1, 20):
        program(schemes_with(alibi_paper(2, multiplier=float(multiplier))), tokens)
    assert program.compilations == 1


def test_the_largest_harmless_multiplier_is_where_the_cost_meets_the_margin():
    """The cost grows as the square of the multiplier, so the answer is known."""
    value, cost = largest_multiplier(lambda multiplier: 2.0 + 0.5 * multiplier**2, margin=0.02)
    assert value == pytest.approx(0.2, rel=3e-3)
    assert value <= 0.2 * (1 + 1e-6)
    assert cost == pytest.approx(0.5 * value**2)


def test_no_harmless_multiplier_gives_zero_and_none_too_large_sixteen():
    assert largest_multiplier(lambda multiplier: 1.0 + (multiplier > 0), margin=0.5) == (0, 0)
    assert largest_multiplier(lambda multiplier: 1.0, margin=0.5) == (16, 0)


def fit(decoder, tokens, **changes):
    settings = {"num_buckets": 8, "max_distance": 16, "steps": 3} | changes
    return fit_t5_table(decoder, schemes_with, tokens, np.ones((len(tokens), tokens.shape[1] - 1)), **settings)


def test_the_fit_lowers_the_loss_and_ties_buckets_never_reached(decoder, tokens):
    fitted = fit(decoder, tokens[:, :9], steps=30, learning_rate=0.2)
    assert fitted["after"] < fitted["before"]
    # Offsets up to 8 reach the buckets that start at 0, 1, 2, 3, 4, 6 and 8; the last one starts at 12.
    assert bucket_starts(8, 16) == (0, 1, 2, 3, 4, 6, 8, 12)
    assert fitted["reached"] == 7
    table = fitted["table"]
    np.testing.assert_array_equal(table[:, 7], table[:, 6])
    assert np.unique(table[0, :7]).size == 7


def test_the_fit_is_reproducible_and_every_step_is_told(decoder, tokens):
    steps = []
    first, second = fit(decoder, tokens), fit(decoder, tokens, on_step=steps.append)
    np.testing.assert_array_equal(first["table"], second["table"])
    assert first["after"] == second["after"]
    assert steps == [1, 2, 3]


def test_the_gradient_of_the_table_is_that_of_finite_differences(decoder, tokens):
    table = jnp.asarray(np.random.default_rng(2).standard_normal((2, 8)) * 0.3, jnp.float32)

    def loss(table):
        return next_token_losses(decoder, schemes_with(t5_bias(table, max_distance=16)), jnp.asarray(tokens)).mean()

    gradient = jax.grad(loss)(table)
    assert np.abs(gradient).min() > 0
    step = 0.1  # float32 losses of about 3 resolve differences to 1e-5 at this step
    for at in ((0, 0), (1, 3), (0, 7)):
        up, down = loss(table.at[at].add(step)), loss(table.at[at].add(-step))
        np.testing.assert_allclose(gradient[at], (up - down) / (2 * step), rtol=2e-2, atol=4e-5)
