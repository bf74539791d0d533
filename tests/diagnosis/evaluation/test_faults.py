"""Faults do what they say: each is held against what an implementation with that fault would really compute."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BASE, DIM, HEADS, TRAINED, tiny_decoder
from flax import nnx

from rope_jax import biases, frequencies, scaling
from rope_jax.attention.api import attend
from rope_jax.attention.call import Tokens, checked
from rope_jax.diagnosis.evaluation import faults
from rope_jax.diagnosis.evaluation.faults import FAULTS, Fault, FaultRequest, exempting, fault_of, rounded_bias
from rope_jax.errors import InputError
from rope_jax.rotation import half_to_interleaved
from rope_jax.scheme import build

ROTARY = frequencies.rotary(DIM, base=BASE, original_length=TRAINED)
SCALED = scaling.yarn(factor=4.0, original_length=TRAINED)(ROTARY)
LENGTH = 48
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 128, (2, LENGTH)), jnp.int32)
PLACES = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32)[None], (2, LENGTH))


def scheme(rotary=ROTARY, bias=None):
    return build(rotary, bias, num_heads=HEADS, head_dim=DIM, max_offset=20)


TABLE = biases.t5_bias(np.random.default_rng(5).standard_normal((HEADS, 8)), max_distance=20)
RETROFIT = scheme(SCALED, biases.alibi_paper(HEADS))
EVERY = {"alibi": RETROFIT, "t5": scheme(SCALED, TABLE), "none": scheme(SCALED)}


@functools.cache
def program(attention, layers=1):
    graph = nnx.split(tiny_decoder(num_layers=layers))[0]
    return jax.jit(
        lambda state, scheme, positions: nnx.merge(graph, state).hidden(
            TOKENS, scheme, attention=attention, positions=positions
        )
    )


def hidden(scheme, attention=attend, *, positions=PLACES, decoder=None, layers=1):
    state = nnx.state(decoder or tiny_decoder(num_layers=layers))
    return np.asarray(program(attention, layers)(state, scheme, positions))


def fault(name, **asked):
    return fault_of(name, FaultRequest(**asked))


def with_fault(name, scheme, *, positions=PLACES):
    wrong = fault(name, length=LENGTH)
    return hidden(wrong.scheme(scheme), wrong.attention, positions=positions)


def call(queries=32, kv_heads=HEADS):
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.standard_normal((2, queries, h, DIM)), jnp.float32) for h in (HEADS, kv_heads, kv_heads))
    return q, k, v, PLACES[:, :queries]


@functools.cache
def compiled(attention, window):
    def run(scheme, q, k, v, tokens):
        return attention(q, k, v, scheme, None, tokens, tokens, checked(q, k, v, scheme, window=window))

    return jax.jit(run)


def attended(attention, scheme, q, k, v, at, *, segments=None, window=None):
    segments = jnp.zeros_like(at) if segments is None else segments
    return compiled(attention, window)(scheme, q, k, v, Tokens(at, segments))


def oracle(turned_q, turned_k, v, scheme, at, bias=None):
    """Causal attention of turned queries and keys, written out in float64."""
    offset = at[:, :, None] - at[:, None, :]
    added = np.asarray(scheme.bias(jnp.asarray(offset)), np.float64) if bias is None else bias
    logits = np.einsum("bqhd,bkhd->bhqk", turned_q, turned_k) * DIM**-0.5 * float(scheme.logit_scale) + added
    logits = np.where(offset[:, None] >= 0, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(axis=-1, keepdims=True), np.asarray(v, np.float64))


def test_a_bias_in_bfloat16_steps_by_128_tokens_beyond_16384():
    line = build(None, biases.Alibi(jnp.array([1.0, 2.0**-8], jnp.float32)), num_heads=2, head_dim=DIM)
    written = rounded_bias(line, length=40_000)
    offsets = jnp.arange(16_384, 32_768, dtype=jnp.int32)
    far = np.asarray(written.bias(offsets[None]))[:, 0]
    for head in far:
        widths = np.diff(np.flatnonzero(np.diff(head)))  # halves are rounded to even
        assert set(widths) == {127, 129}
        assert abs(widths.mean() - 128) < 0.01
        assert len(np.unique(head)) == 128 + 1
    near = jnp.arange(0, 257, dtype=jnp.int32)[None]
    np.testing.assert_array_equal(written.bias(near), line.bias(near))  # eight bits hold them


def test_a_bias_in_bfloat16_is_rounded_once_and_nothing_else_changes():
    offsets = jnp.arange(LENGTH, dtype=jnp.int32)[None]
    for plain in EVERY.values():
        written = rounded_bias(plain, length=LENGTH)
        np.testing.assert_array_equal(
            written.bias(offsets), plain.bias(offsets).astype(jnp.bfloat16).astype(jnp.float32)
        )
        np.testing.assert_array_equal(written.inverse_frequencies, plain.inverse_frequencies)
    np.testing.assert_allclose(with_fault("bf16_bias", EVERY["none"]), hidden(EVERY["none"]), atol=1e-5)
    assert abs(with_fault("bf16_bias", EVERY["t5"]) - hidden(EVERY["t5"])).max() > 1e-4


def test_frequencies_in_bfloat16_leave_no_remainder():
    rounded = fault("bf16_frequencies", length=LENGTH).scheme(RETROFIT)
    error = abs(np.asarray(rounded.inverse_frequencies) / np.asarray(RETROFIT.inverse_frequencies) - 1)
    assert 0 < error.max() <= 2**-8
    assert not np.asarray(rounded.remainder).any()
    np.testing.assert_array_equal(rounded.slopes, RETROFIT.slopes)
    by_type = fault("bf16_frequencies", length=LENGTH).scheme({"full": RETROFIT, "sliding": EVERY["t5"]})
    np.testing.assert_array_equal(by_type["full"].inverse_frequencies, rounded.inverse_frequencies)


def test_two_faults_are_switches_of_the_scheme():
    wrong = fault("float32_phases", length=LENGTH)
    chex.assert_trees_all_equal(wrong.scheme(RETROFIT), dataclasses.replace(RETROFIT, phase="float32"))
    other = fault("wrong_layout", length=LENGTH)
    chex.assert_trees_all_equal(other.scheme(RETROFIT), dataclasses.replace(RETROFIT, layout="interleaved"))
    chex.assert_trees_all_equal(other.scheme(other.scheme(RETROFIT)), RETROFIT)
    assert wrong.attention is other.attention is attend


def test_positions_in_bfloat16_are_exact_up_to_256():
    at = PLACES + (257 - LENGTH)
    for name, plain in EVERY.items():
        got = with_fault("bf16_positions", plain, positions=at)
        np.testing.assert_allclose(got, hidden(plain, positions=at), atol=2e-5, err_msg=name)


def test_positions_in_bfloat16_put_neighbours_in_one_place():
    q, k, v, at = call()
    at = at + 1024
    rounded = at.astype(jnp.bfloat16).astype(jnp.int32)
    assert set(np.diff(rounded[0]).tolist()) == {0, 8}
    out, _ = attended(fault("bf16_positions", length=LENGTH).attention, RETROFIT, q, k, v, at)
    # Turned by the rounded position, seen and biased by the true one.
    turned = (np.asarray(RETROFIT.rotate(x, rounded), np.float64) for x in (q, k))
    np.testing.assert_allclose(out, oracle(*turned, v, RETROFIT, np.asarray(at)), atol=2e-5)
    exact = (np.asarray(RETROFIT.rotate(x, at), np.float64) for x in (q, k))
    assert abs(out - oracle(*exact, v, RETROFIT, np.asarray(at))).max() > 1e-2


@pytest.mark.parametrize("name", ["alibi", "t5"])
def test_a_cache_that_is_not_stale_is_no_fault(name):
    wrong = fault("stale_cache", length=LENGTH, trained=EVERY[name], fresh=LENGTH - 30)
    np.testing.assert_allclose(hidden(EVERY[name], wrong.attention), hidden(EVERY[name]), atol=2e-5)


def test_a_stale_cache_is_what_a_rotated_cache_gives_under_another_scheme():
    """The context really filled into a cache under the trained scheme, and really read under the retrofit."""
    cut, decoder = 30, tiny_decoder(num_layers=2)

    @jax.jit
    def really(trained, retrofit):
        before, cache = decoder.prefill(TOKENS[:, :cut], trained, capacity=LENGTH, cached="rotated")
        after, _ = decoder.advance(cache, TOKENS[:, cut:], retrofit, positions=PLACES[:, cut:])
        return jnp.concatenate([before, after], axis=1)

    wrong = fault("stale_cache", length=LENGTH, trained=scheme(), fresh=LENGTH - cut)
    for name, retrofit in EVERY.items():
        got = hidden(wrong.scheme(retrofit), wrong.attention, layers=2)
        np.testing.assert_allclose(got, really(scheme(), retrofit), atol=5e-5, err_msg=name)
        assert abs(got - hidden(retrofit, layers=2)).max() > 1e-2


def test_a_cache_with_everything_in_it_hides_the_retrofit():
    wrong = fault("stale_cache", length=LENGTH, trained=scheme(), fresh=0)
    np.testing.assert_allclose(hidden(RETROFIT, wrong.attention), hidden(scheme()), atol=2e-5)


def test_the_wrong_layout_is_the_right_one_of_permuted_weights():
    decoder, permuted = tiny_decoder(), tiny_decoder()
    back = np.argsort(half_to_interleaved(DIM))
    for block in permuted.blocks:
        for projection in (block.attention.q, block.attention.k):
            projection.kernel[...] = projection.kernel[...][..., back]
    wrong = fault("wrong_layout", length=LENGTH)
    got = hidden(wrong.scheme(RETROFIT), wrong.attention, decoder=decoder)
    np.testing.assert_allclose(got, hidden(RETROFIT, decoder=permuted), atol=2e-5)
    assert abs(got - hidden(RETROFIT, decoder=decoder)).max() > 1e-2


@pytest.mark.parametrize("first", [0, 4, 100])
def test_exempting_takes_the_bias_off_the_first_keys(first):
    q, k, v, at = call()
    offset = at[:, :, None] - at[:, None, :]
    spared = exempting(first)
    for bias in (biases.alibi_paper(HEADS, multiplier=8.0), TABLE):
        steep = scheme(SCALED, bias)
        out, lse = attended(spared, steep, q, k, v, at)
        left = np.where(np.asarray(at)[:, None, None, :] < first, 0, np.asarray(steep.bias(offset), np.float64))
        turned = (np.asarray(steep.rotate(x, at), np.float64) for x in (q, k))
        np.testing.assert_allclose(out, oracle(*turned, v, steep, np.asarray(at), left), atol=2e-5)
        assert out.dtype == v.dtype
        assert np.isfinite(lse).all()


@pytest.mark.parametrize("window", [None, 7])
def test_exempting_without_a_bias_changes_nothing(window):
    q, k, v, at = call(kv_heads=1)
    plain = attended(attend, EVERY["none"], q, k, v, at, window=window)
    spared = attended(exempting(3), EVERY["none"], q, k, v, at, window=window)
    for got, expected in zip(spared, plain, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_exempting_keeps_documents_apart():
    q, k, v, at = call()
    at, spared = at % 16, exempting(2)
    segments = jnp.asarray([[0] * 16 + [1] * 16, [0] * 16 + [-1] * 16], jnp.int32)
    out, _ = attended(spared, RETROFIT, q, k, v, at, segments=segments)
    elsewhere, _ = attended(spared, RETROFIT, q, k, v.at[:, :16].set(7.0), at, segments=segments)
    np.testing.assert_array_equal(out[0, 16:], elsewhere[0, 16:])
    assert (np.asarray(out)[:, :16] != np.asarray(elsewhere)[:, :16]).any()
    assert not np.asarray(out[1, 16:]).any()


def test_faults_have_names_and_what_cannot_be_is_refused():
    for name in FAULTS:
        made = fault(name, length=LENGTH, trained=scheme(), fresh=LENGTH - 3)
        assert made.name == name
        assert made.description
    with pytest.raises(InputError, match="unknown fault 'rust'; there are: bf16_bias"):
        fault("rust", length=LENGTH)
    with pytest.raises(InputError, match="there is a fault 'bf16_bias' already"):
        faults.register("bf16_bias", lambda request: Fault("bf16_bias", "again"))
    with pytest.raises(InputError, match="one scheme for all layers"):
        fault("stale_cache", length=LENGTH, trained={"full": RETROFIT})
    q, k, v, at = call(8)
    settings = checked(q, k, k, RETROFIT)
    with pytest.raises(NotImplementedError, match="sinks"):
        exempting(1)(q, k, v, RETROFIT, jnp.zeros(HEADS), Tokens(at), Tokens(at), settings)
