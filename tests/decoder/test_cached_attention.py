"""Decoding from rotated and from unrotated keys, and prompts in chunks: the same as the whole forward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rope_jax import biases, frequencies, length_rules, scaling
from rope_jax.decoder import Decoder, DecoderConfig, continue_from, empty_cache, generate
from rope_jax.errors import InputError
from rope_jax.scheme import Retrofit, build, per_length

CONFIG = DecoderConfig(
    vocab_size=29,
    hidden_size=16,
    intermediate_size=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
)
TRAINED = frequencies.rotary(8, base=194.0, original_length=16)
ROTARY = scaling.yarn(factor=4.0, original_length=16, beta_fast=8.0)(TRAINED)
T5 = biases.t5_bias(np.random.default_rng(0).standard_normal((4, 8)), max_distance=20)
FAR = 1_000_000
PROMPT = jnp.asarray(np.random.default_rng(2).integers(0, 29, (2, 50)), jnp.int32)
LENGTHS = jnp.asarray([50, 33])


def scheme_of(layout="half"):
    return build(ROTARY, T5, num_heads=4, head_dim=8, layout=layout)


@pytest.fixture(scope="module")
def model():
    decoder = Decoder(CONFIG, rngs=nnx.Rngs(0))
    decoder.embedding[...] = decoder.embedding[...] * 50  # or every logit is about the same
    return decoder


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("cached", ["rotated", "unrotated"])
def test_steps_and_chunks_equal_the_whole_forward(model, cached, layout):
    graph, state = nnx.split(model)
    extend = jax.jit(
        lambda state, cache, *args, positions: nnx.merge(graph, state).extend(cache, *args, positions=positions)
    )
    positions = FAR + jnp.broadcast_to(jnp.arange(50, dtype=jnp.int32)[None], PROMPT.shape)
    whole = model(PROMPT, scheme_of(layout), positions=positions)
    cache, parts, start = empty_cache(CONFIG, batch=2, capacity=64, cached=cached), [], 0
    for size in (20, 20, 3, 3, 3, 1):  # the first two go tile by tile, the others through the decoding loop
        here = slice(start, start + size)
        made, cache = extend(state, cache, PROMPT[:, here], scheme_of(layout), positions=positions[:, here])
        parts.append(made)
        start += size
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-4)
    assert cache.cached == cached


@pytest.mark.parametrize("chunk", [7, 20, 64])
@pytest.mark.parametrize("cached", ["rotated", "unrotated"])
def test_a_prompt_in_chunks_generates_the_same(model, cached, chunk):
    arguments = {"max_new_tokens": 6, "lengths": LENGTHS, "cached": cached}
    made = generate(model, scheme_of(), PROMPT, chunk=chunk, **arguments)
    np.testing.assert_array_equal(made, generate(model, scheme_of(), PROMPT, max_new_tokens=6, lengths=LENGTHS))


@pytest.mark.parametrize("cached", ["rotated", "unrotated"])
def test_going_on_from_a_cache_equals_generating_at_once(model, cached):
    expected = generate(model, scheme_of(), PROMPT, max_new_tokens=8, lengths=LENGTHS)
    positions = jnp.broadcast_to(jnp.arange(50, dtype=jnp.int32)[None], PROMPT.shape)
    segments = jnp.where(positions < LENGTHS[:, None], 0, -1)
    _, cache = model.prefill(PROMPT, scheme_of(), capacity=60, segments=segments, cached=cached)
    first, cache = continue_from(model, scheme_of(), cache, expected[:, 0], LENGTHS, max_new_tokens=3)
    rest, cache = continue_from(model, scheme_of(), cache, first[:, -1], LENGTHS + 3, max_new_tokens=4)
    np.testing.assert_array_equal(jnp.concatenate([first, rest], axis=1), expected[:, 1:])
    assert int(cache.filled) == 57


def test_each_sequence_may_have_a_scheme_of_its_own_length(model):
    rule = length_rules.dynamic_ntk(factor=6.0, original_length=16)
    dynamic = per_length(Retrofit(TRAINED, rule, biases.alibi_paper(4)), num_heads=4, head_dim=8)
    both = generate(model, dynamic, PROMPT, max_new_tokens=5, lengths=LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = generate(model, dynamic, PROMPT[row : row + 1, :length], max_new_tokens=5)
        np.testing.assert_array_equal(both[row], alone[0])


def test_padding_may_hold_anything(model):
    """What the embedding of a padded slot is, NaN too, changes no later logit."""
    poisoned = nnx.clone(model)
    poisoned.embedding[...] = poisoned.embedding[...].at[28].set(jnp.nan)
    poisoned.unembedding = model.unembedding
    clean = jnp.where(PROMPT == 28, 0, PROMPT)
    held = jnp.arange(50)[None] < LENGTHS[:, None]
    segments = jnp.where(held, 0, -1).astype(jnp.int32)

    def next_logits(decoder, prompt, cached):
        _, cache = decoder.prefill(prompt, scheme_of(), capacity=51, segments=segments, cached=cached)
        return decoder.extend(cache, clean[:, :1], scheme_of(), positions=LENGTHS[:, None].astype(jnp.int32))[0]

    for cached in ("rotated", "unrotated"):
        expected = next_logits(model, clean, cached)
        np.testing.assert_array_equal(next_logits(poisoned, jnp.where(held, clean, 28), cached), expected)


def test_what_cannot_be_cached_is_an_error(model):
    rule = length_rules.dynamic_ntk(factor=6.0, original_length=16)
    dynamic = per_length(Retrofit(TRAINED, rule), num_heads=4, head_dim=8)
    with pytest.raises(InputError, match="needs cached='unrotated'"):
        generate(model, dynamic, PROMPT, max_new_tokens=2, cached="rotated")
    with pytest.raises((ValueError, TypeError), match="unrotated"):  # the tests' type checker refuses it too
        empty_cache(CONFIG, batch=1, capacity=4, cached="turned")
    with pytest.raises(InputError, match="chunk must be a whole number, at least 1, got 0"):
        generate(model, scheme_of(), PROMPT, max_new_tokens=2, chunk=0)
    cache = dataclasses.replace(empty_cache(CONFIG, batch=2, capacity=4, cached="rotated"), filled=jnp.int32(2))
    with pytest.raises(InputError, match="do not fit into a cache of 4 with 2 in use"):
        continue_from(model, scheme_of(), cache, PROMPT[:, 0], LENGTHS, max_new_tokens=3)
    with pytest.raises(InputError, match="needs a cache of unrotated keys"):
        continue_from(model, dynamic, cache, PROMPT[:, 0], LENGTHS, max_new_tokens=1)
