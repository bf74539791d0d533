"""Losses, A* and the T5 fit, on a tiny decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rope_jax.biases import alibi_paper, bucket_starts, t5_bias
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.diagnosis.evaluation.fitting import fit_t5_table, largest_multiplier
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


def slopes_with(multiplier):
    return schemes_with(alibi_paper(2, multiplier=multiplier))


def test_the_largest_harmless_multiplier_is_where_the_cost_meets_the_margin():
    """In place of the losses: cost grows as the square of the slope, so the answer is known."""
    unit = float(slopes_with(1.0).slopes[0])

    def program(scheme, part):
        return np.full(part.shape, 2.0 + 0.5 * (float(scheme.slopes[0]) / unit) ** 2)

    found = largest_multiplier(program, slopes_with, np.zeros((16, 8), np.int32), margin=0.02, bisections=12)
    assert found.value == pytest.approx(0.2, rel=1e-3)
    assert found.value <= 0.2 * (1 + 1e-6)
    assert 0 <= found.cost <= 0.02


def test_no_harmless_multiplier_gives_zero():
    def program(scheme, part):
        return np.full(part.shape, 1.0 + float(scheme.slopes[0] > 0))

    assert largest_multiplier(program, slopes_with, np.zeros((8, 8), np.int32), margin=0.5).value == 0


def test_the_fit_lowers_the_loss_and_ties_buckets_never_reached(decoder, tokens):
    fitted = fit_t5_table(
        LossProgram(decoder), decoder, schemes_with, tokens[:, :9], num_heads=2, num_buckets=8, max_distance=16,
        steps=30, learning_rate=0.2,
    )  # fmt: skip
    assert fitted.after < fitted.before
    # Offsets up to 8 reach the buckets that start at 0, 1, 2, 3, 4, 6 and 8; the last one starts at 12.
    assert bucket_starts(8, 16) == (0, 1, 2, 3, 4, 6, 8, 12)
    assert fitted.reached == 7
    np.testing.assert_array_equal(fitted.table[:, 7], fitted.table[:, 6])
    assert np.unique(fitted.table[0, :7]).size == 7


def test_the_fit_is_reproducible_from_any_step_on(decoder, tokens):
    arguments = {"num_heads": 2, "num_buckets": 8, "max_distance": 16, "steps": 3}
    first = fit_t5_table(LossProgram(decoder), decoder, schemes_with, tokens, **arguments)
    states = []
    program = LossProgram(decoder)
    second = fit_t5_table(program, decoder, schemes_with, tokens, **arguments, on_step=states.append)
    np.testing.assert_array_equal(first.table, second.table)
    assert [state.steps for state in states] == [1, 2, 3]
    resumed = fit_t5_table(program, decoder, schemes_with, tokens, **arguments, resume=states[0])
    np.testing.assert_array_equal(first.table, resumed.table)
    assert resumed.after == first.after


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
