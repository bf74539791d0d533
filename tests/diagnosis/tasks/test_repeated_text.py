"""The text of the test models: what counts as predictable is a copy, and a copied token comes when it is promised."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.contexts import START, SYMBOLS
from rope_jax.diagnosis.tasks.subject import short_and_long


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.sampled_from([16, 32, 64, 200, 700]),
    farthest=st.sampled_from([4, 16, 128]),
)
def test_predictable_tokens_are_copies_of_what_stood_before(seed, length, farthest):
    text = contexts.repeated_text(np.random.default_rng(seed), rows=3, length=length, farthest=farthest)
    assert text.tokens.shape == (3, length)
    assert text.predictable.shape == (3, length - 1)
    assert (text.tokens[:, 0] == START).all()
    for line, weights in zip(text.tokens, text.predictable, strict=True):
        assert set(line[1:]) <= set(SYMBOLS)
        assert set(weights) <= {0.0, 1.0}
        for at in np.flatnonzero(weights):
            # The pair (this token, the next) stood up to `farthest` tokens before.
            before = range(max(1, at - farthest), at)
            assert any((line[b : b + 2] == line[at : at + 2]).all() for b in before)


def test_half_of_a_long_text_is_copied_and_little_of_it_is_in_doubt():
    text = contexts.repeated_text(np.random.default_rng(0), rows=20, length=1024, farthest=128)
    assert 0.42 < text.predictable.mean() < 0.53
    # What followed these two tokens when they last stood within reach is nearly always what follows now.
    right = []
    for line, weights in zip(text.tokens, text.predictable, strict=True):
        for at in np.flatnonzero(weights):
            before = [b for b in range(max(2, at - 128), at) if (line[b - 1 : b + 1] == line[at - 1 : at + 1]).all()]
            if before:
                right.append(np.mean([line[b + 1] == line[at + 1] for b in before]))
    assert len(right) > 0.9 * text.predictable.sum()
    assert np.mean(right) > 0.95


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), farthest=st.integers(2, 130), length=st.integers(2, 300))
def test_a_copied_token_comes_within_what_is_promised(seed, farthest, length):
    whole = contexts.shortest_with_copy(length, farthest)
    text = contexts.repeated_text(np.random.default_rng(seed), rows=20, length=whole, farthest=farthest)
    assert text.predictable[:, short_and_long(length)["long"]].any(axis=1).all()
