"""Outcomes of probes: what the numbers mean, and that the compiled program answers as the decoder itself does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BASE, DIM, HEADS, TRAINED, tiny_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rope_jax import biases, frequencies, scaling
from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.probes import LIMIT, ProbeProgram
from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.contexts import PROBES, Contexts
from rope_jax.scheme import build

ROTARY = frequencies.rotary(DIM, base=BASE, original_length=TRAINED)


def scheme(rotary=ROTARY, bias=None):
    return build(rotary, bias, num_heads=HEADS, head_dim=DIM, max_offset=40)


def choices(rows, questions, count):
    """Choices of which the first `count` are there."""
    one = np.where(np.arange(8) < count, np.arange(8), -1).astype(np.int32)
    return np.broadcast_to(one, (rows, questions, 8)).copy()


def items(**arrays):
    """Contexts of which only what is given matters."""
    rows, questions = arrays["probe"].shape
    given = {
        name: np.zeros((rows, questions, 8) if name in ("choices", "choice_offsets") else (rows, questions), np.int32)
        for name in Contexts._fields
        if name != "tokens"
    }
    return Contexts(tokens=np.zeros((rows, 4), np.int32), **(given | arrays))


def kinds(*names):
    return np.array([[PROBES.index(name) for name in names]], np.int32)


logits_of = hnp.arrays(np.float32, (2, 3, 8), elements=st.floats(-50, 50, width=32))


@given(logits=logits_of, count=st.integers(2, 8), shift=st.integers(-20, 20))
def test_log_odds_ignore_what_all_choices_share_and_what_is_no_choice(logits, count, shift):
    asked = choices(2, 3, count)
    whole = np.round(logits)  # so that the shift is exact
    before = probes.log_odds(whole, asked)
    np.testing.assert_allclose(probes.log_odds(whole + np.float32(shift), asked), before, atol=1e-9)
    elsewhere = np.where(asked >= 0, whole, np.float32(40))
    np.testing.assert_array_equal(probes.log_odds(elsewhere, asked), before)
    assert (abs(before) <= LIMIT).all()


@given(logits=logits_of, count=st.integers(2, 8))
def test_log_odds_are_odds_against_the_average_distractor(logits, count):
    chances = np.exp(logits[..., :count].astype(np.float64))
    expected = np.log(chances[..., 0] / chances[..., 1:].mean(axis=-1))
    np.testing.assert_allclose(
        probes.log_odds(logits, choices(2, 3, count)), np.clip(expected, -LIMIT, LIMIT), atol=1e-9
    )


@pytest.mark.parametrize("count", range(2, 9))
def test_a_model_that_knows_nothing_is_at_zero_whatever_the_number_of_distractors(count):
    asked = choices(4000, 1, count)
    np.testing.assert_allclose(probes.log_odds(np.full(asked.shape, 3.0, np.float32), asked), 0, atol=1e-12)
    # A little noise keeps it there up to its variance: E[ln mean e^l] - E[l] = (1 - 1/n) s^2 / 2.
    noise = np.random.default_rng(count).standard_normal(asked.shape).astype(np.float32) / 4
    mean = probes.log_odds(noise, asked).mean()
    assert abs(mean + (1 - 1 / (count - 1)) / 32) < 4 * np.sqrt(2 / 16 / 4000)


def test_confident_guesses_lie_below_zero_and_the_lower_the_more_distractors():
    noise = 5 * np.random.default_rng(0).standard_normal((4000, 1, 8)).astype(np.float32)
    means = [probes.log_odds(noise, choices(4000, 1, count)).mean() for count in (2, 4, 8)]
    assert abs(means[0]) < 0.2
    assert means[0] > means[1] + 0.5 > means[2] + 1.0


def test_certainty_counts_up_to_the_limit_and_infinities_do_not_matter():
    asked = choices(1, 2, 3)
    sure = np.array([[[90, 0, 0, 0, 0, 0, 0, 0], [-90, 0, 0, 0, 0, 0, 0, 0]]], np.float32)
    np.testing.assert_array_equal(probes.log_odds(sure, asked), [[LIMIT, -LIMIT]])


@pytest.mark.parametrize("other", range(1, 8))
def test_a_tie_is_a_wrong_answer(other):
    logits = np.zeros((1, 1, 8), np.float32)
    logits[..., [0, other]] = 2.0
    assert probes.picked(logits, choices(1, 1, 8)).tolist() == [[other]]
    logits[..., 0] = np.nextafter(np.float32(2), np.float32(3))
    assert probes.picked(logits, choices(1, 1, 8)).tolist() == [[0]]


def test_what_is_no_choice_is_never_picked():
    logits = np.array([[[1, 0, 9, 9, 9, 9, 9, 9]]], np.float32)
    asked = items(probe=kinds("order"), choices=choices(1, 1, 2))
    given = probes.answers(logits, asked)
    assert given.right.tolist() == [[True]]
    assert given.log_odds.tolist() == [[1.0]]


def test_the_unit_is_the_context_not_the_question():
    asked = items(probe=np.array([[0, 0, 1], [0, 1, 1]], np.int32))
    values = np.array([[1.0, 3.0, 10.0], [5.0, 20.0, 40.0]])
    np.testing.assert_array_equal(probes.by_row(values, asked, "retrieval"), [2.0, 5.0])
    np.testing.assert_array_equal(probes.by_row(values, asked, "binding"), [10.0, 30.0])
    np.testing.assert_array_equal(probes.by_row(values > 4, asked, "binding"), [1.0, 1.0])
    assert probes.asked_probes(asked) == ("retrieval", "binding")
    assert probes.asked_probes(items(probe=np.array([[0, 1], [0, 2]], np.int32))) == ("retrieval",)


def test_strata_part_the_questions():
    asked = items(
        probe=np.array([[0, 0, 0, 2]], np.int32), distance=np.array([[1, 9, 10, 10]], np.int32),
        gap=np.array([[0, 0, 0, 7]], np.int32),
    )  # fmt: skip
    values = np.array([[1.0, 3.0, 5.0, 7.0]])
    assert probes.strata(values, asked, "retrieval", "distance", [0, 10, 20]) == [(2.0, 2), (5.0, 1)]
    assert probes.strata(values, asked, "order", "gap", [0, 8]) == [(7.0, 1)]
    ((mean, count),) = probes.strata(values, asked, "retrieval", "distance", [11, 20])
    assert np.isnan(mean)
    assert count == 0


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_strata_of_real_contexts_leave_no_question_out(seed):
    asked = contexts.contexts(np.random.default_rng(seed), rows=2, length=192)
    values = np.random.default_rng(seed).standard_normal(asked.probe.shape)
    for name in PROBES:
        parts = probes.strata(values, asked, name, "distance", [0, 20, 60, 192])
        chosen = values[asked.probe == PROBES.index(name)]
        assert sum(count for _, count in parts) == len(chosen)
        np.testing.assert_allclose(sum(mean * count for mean, count in parts if count), chosen.sum())


@pytest.fixture(scope="module")
def asked():
    return contexts.contexts(np.random.default_rng(0), rows=3, length=TRAINED)


@pytest.fixture(scope="module")
def program():
    return ProbeProgram(tiny_decoder())


@pytest.mark.parametrize("bias", [None, biases.alibi_paper(HEADS)])
def test_the_program_gives_the_decoders_own_logits(program, asked, bias):
    decoder = tiny_decoder()
    logits = np.asarray(jax.jit(lambda tokens: decoder(tokens, scheme(bias=bias)))(jnp.asarray(asked.tokens)))
    rows, questions = np.indices(asked.position.shape)
    at = logits[rows, questions * 0 + asked.position]
    expected = np.take_along_axis(at, np.maximum(asked.choices, 0), axis=-1)
    got = program(scheme(bias=bias), asked)
    there = asked.choices >= 0
    np.testing.assert_allclose(got[there], expected[there], rtol=1e-4, atol=1e-4)
    assert got.dtype == np.float32


def test_one_program_answers_under_every_scheme(program, asked):
    table = np.random.default_rng(0).standard_normal((HEADS, 8))
    rotaries = [ROTARY, scaling.ntk(factor=2.0)(ROTARY), scaling.linear(factor=2.0)(ROTARY)]
    given = [
        program(scheme(rotary, bias), asked)
        for rotary in rotaries
        for bias in (None, biases.alibi_paper(HEADS), biases.t5_bias(table, max_distance=40))
    ]
    assert program.compilations == 1
    assert len({one.tobytes() for one in given}) == len(given)  # and answers differently under each
