"""Stretched contexts stand where long ones do, and a key that counts twice is two keys."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from cases import BASE, DIM, HEADS, TRAINED, tiny_decoder
from hypothesis import given
from hypothesis import strategies as st

from rope_jax import biases, frequencies
from rope_jax.attention.api import attend
from rope_jax.attention.call import Settings, Tokens
from rope_jax.diagnosis.evaluation.probes import ProbeProgram
from rope_jax.diagnosis.prediction.stretched import StretchedProgram, counting, stretched
from rope_jax.diagnosis.tasks import contexts
from rope_jax.errors import InputError
from rope_jax.scheme import build

ROTARY = frequencies.rotary(DIM, base=BASE, original_length=TRAINED)
COUNTS = contexts.Counts(first_pairs=3, last_pairs=1)
ITEMS = contexts.contexts(np.random.default_rng(0), rows=3, length=TRAINED, counts=COUNTS)


def scheme(bias=None):
    return build(ROTARY, num_heads=HEADS, head_dim=DIM, bias=bias)


def test_at_the_trained_length_nothing_is_stretched():
    decoder = tiny_decoder()
    alibi = scheme(biases.alibi_paper(HEADS))
    seen = stretched(ITEMS, TRAINED)
    np.testing.assert_array_equal(seen.counts, 1)
    np.testing.assert_array_equal(seen.positions, np.broadcast_to(np.arange(TRAINED), seen.positions.shape))
    np.testing.assert_allclose(
        StretchedProgram(decoder)(alibi, ITEMS, *seen), ProbeProgram(decoder)(alibi, ITEMS), atol=2e-5
    )


@given(factor=st.one_of(st.floats(1.0, 16.0), st.floats(16.0, 5000.0)))
def test_tokens_stand_where_those_of_a_long_context_do(factor):
    target = round(factor * TRAINED)
    seen = stretched(ITEMS, target)
    np.testing.assert_allclose(seen.counts.sum(axis=1), target, rtol=1e-5)
    assert (np.diff(seen.positions, axis=1) >= 1).all()
    assert (seen.positions[:, 0] == 0).all()
    # Questions are as close together as ever, and the last token is the last of the long context.
    assert (seen.positions[:, -1] == target - 1).all()
    for row, first in enumerate(contexts.first_asked(ITEMS)):
        np.testing.assert_array_equal(np.diff(seen.positions[row, first:]), 1)
        # So are a marker and the items behind it, and two events keep their distance.
        (marker,) = np.flatnonzero(np.isin(ITEMS.tokens[row, :first], contexts.MARKERS))
        np.testing.assert_array_equal(np.diff(seen.positions[row, marker : marker + contexts.GROUP + 1]), 1)
        for question in np.flatnonzero(ITEMS.gap[row]):
            second = ITEMS.position[row, question] - ITEMS.distance[row, question]
            apart = seen.positions[row, second] - seen.positions[row, second - ITEMS.gap[row, question]]
            assert apart == ITEMS.gap[row, question]


@pytest.mark.parametrize(("seed", "temperature", "start"), [(0, 1.0, 0), (1, 0.5, 0), (2, 2.0, 1_000_000)])
def test_a_key_that_counts_several_times_is_as_many_keys_in_one_place(seed, temperature, start):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, 6)
    q, k, v = (jnp.asarray(rng.standard_normal((1, n, HEADS, DIM)), jnp.float32) for n in (1, 6, 6))
    places = jnp.asarray(start + np.sort(rng.integers(0, 50, 6)), jnp.int32)
    queries = Tokens(jnp.asarray([[start + 60]], jnp.int32))
    sharp = scheme(biases.alibi_paper(HEADS))
    sharp = dataclasses.replace(sharp, logit_scale=sharp.logit_scale * temperature)
    settings = Settings(DIM**-0.5)
    counted, _ = counting(jnp.asarray(counts, jnp.float32))(
        q, k, v, sharp, None, queries, Tokens(places[None]), settings
    )
    many = (jnp.repeat(x, jnp.asarray(counts), axis=1) for x in (k, v))
    repeated, _ = attend(
        q, *many, sharp, None, queries, Tokens(jnp.repeat(places, jnp.asarray(counts))[None]), settings
    )
    np.testing.assert_allclose(counted, repeated, atol=2e-6)


def test_what_cannot_be_stretched_is_refused():
    with pytest.raises(InputError, match="192 tokens cannot stand for ones of 100"):
        stretched(ITEMS, 100)
    bare = ITEMS._replace(tokens=np.full_like(ITEMS.tokens, contexts.SYMBOLS[0]))
    with pytest.raises(InputError, match="without filler outside its facts"):
        stretched(bare, 2 * TRAINED)
    with pytest.raises(InputError, match="soft cap"):
        counting(jnp.ones(3))(None, None, None, scheme(), None, None, None, Settings(1.0, soft_cap=5.0))
