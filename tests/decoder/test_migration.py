"""A cache from one scheme to another: exact in the first layer, stale below it by an amount that is measured."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rope_jax import biases, frequencies, scaling
from rope_jax.decoder import Decoder, DecoderConfig, migrate, migration_gap, reprefill
from rope_jax.scheme import build

CONFIG = DecoderConfig(
    vocab_size=61,
    hidden_size=64,
    intermediate_size=96,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
)
TRAINED = frequencies.rotary(16, base=194.0, original_length=64)
ALIBI = biases.alibi_paper(4)
FAR = 100_000  # where float32 phases would be wrong in the third digit


def scheme_of(rule=None, bias=None, **how):
    rotary = TRAINED if rule is None else rule(TRAINED)
    return build(rotary, bias, num_heads=4, head_dim=16, **how)


OLD, NEW = scheme_of(), scheme_of(scaling.yarn(factor=4.0, original_length=64, beta_fast=8.0), ALIBI)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 49)), jnp.int32)
POSITIONS = FAR + jnp.broadcast_to(jnp.arange(48, dtype=jnp.int32)[None], (2, 48))


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def prefill(model):
    graph, state = nnx.split(model)

    @functools.partial(jax.jit, static_argnames="cached")
    def run(scheme, *, cached="rotated"):
        decoder = nnx.merge(graph, state)
        return decoder.prefill(TOKENS[:, :48], scheme, capacity=52, positions=POSITIONS, cached=cached)[1]

    return run


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_the_first_layer_is_exact_and_only_the_first(prefill, layout):
    old, new = (dataclasses.replace(scheme, layout=layout) for scheme in (OLD, NEW))
    moved, exact = migrate(prefill(old), old, new, CONFIG), prefill(new)
    np.testing.assert_allclose(moved.keys[0], exact.keys[0], atol=2e-6)
    np.testing.assert_array_equal(moved.values[0], exact.values[0])
    assert np.abs(np.asarray(moved.keys[1] - exact.keys[1])).max() > 1e-2
    np.testing.assert_array_equal(moved.positions, exact.positions)


def test_there_and_back_is_where_it_was(prefill):
    cache = prefill(OLD)
    back = migrate(migrate(cache, OLD, NEW, CONFIG), NEW, OLD, CONFIG)
    for x, y in zip(back.keys, cache.keys, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-6)


def test_from_no_rotation_and_to_none(prefill):
    nothing = build(None, ALIBI, num_heads=4, head_dim=16)
    moved = migrate(prefill(nothing), nothing, NEW, CONFIG)
    np.testing.assert_allclose(moved.keys[0], prefill(NEW).keys[0], atol=2e-6)
    moved = migrate(prefill(NEW), NEW, nothing, CONFIG)
    np.testing.assert_allclose(moved.keys[0], prefill(nothing).keys[0], atol=2e-6)


def test_unrotated_keys_serve_any_scheme_as_they_are(prefill):
    cache = prefill(OLD, cached="unrotated")
    assert migrate(cache, OLD, NEW, CONFIG) is cache
    np.testing.assert_array_equal(cache.keys[0], prefill(NEW, cached="unrotated").keys[0])


def test_reading_again_is_exact_in_every_layer(model, prefill):
    again = reprefill(model, prefill(OLD), TOKENS[:, :48], NEW)
    for x, y in zip((*again.keys, *again.values), (*prefill(NEW).keys, *prefill(NEW).values), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    assert again.cached == "rotated"
    assert reprefill(model, prefill(OLD), TOKENS[:, :48], NEW, cached="unrotated").cached == "unrotated"


def test_the_gap_is_zero_in_the_first_layer_and_documented(model):
    """Run with `-s` to see the figures that `migration` names."""
    gap = migration_gap(model, TOKENS, scheme_of(), scheme_of(scaling.yarn(factor=4.0, original_length=64)))
    print({name: np.asarray(x).round(4).tolist() for name, x in gap.items()})
    assert gap["keys"][0] < 1e-6
    assert gap["values"][0] == 0
    np.testing.assert_allclose(gap["keys"][1], 0.77, atol=0.01)
    np.testing.assert_allclose(gap["logits"], 0.34, atol=0.01)
    none = migration_gap(model, TOKENS, OLD, OLD)
    assert none["largest"] < 1e-5


def test_schemes_that_pair_dimensions_differently_are_an_error(prefill):
    other = dataclasses.replace(NEW, layout="interleaved")
    with pytest.raises(ValueError, match="pair keys differently"):
        migrate(prefill(OLD), OLD, other, CONFIG)
