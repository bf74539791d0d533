"""The decoder: causal, cached as computed, positions only from its scheme."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rope_jax import biases, frequencies, scaling, testing
from rope_jax.decoder import Decoder, DecoderConfig, empty_cache
from rope_jax.decoder.cache import EMPTY
from rope_jax.scheme import build

CONFIG = DecoderConfig(
    vocab_size=13,
    hidden_size=16,
    intermediate_size=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    qk_norm=True,
)
ANY_LAYERS = {"layer_types": (), "windows": ()}  # filled in for every layer
ROTARY = scaling.yarn(factor=4.0, original_length=64, beta_fast=8.0)(
    frequencies.rotary(8, base=194.0, original_length=64)
)
SCHEME = build(
    ROTARY, biases.t5_bias(np.random.default_rng(0).standard_normal((4, 8)), max_distance=20), num_heads=4, head_dim=8
)
PLAIN = build(frequencies.rotary(8, base=194.0, original_length=64), num_heads=4, head_dim=8)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 13, (2, 20)), jnp.int32)
EVERYWHERE = jnp.broadcast_to(jnp.arange(20, dtype=jnp.int32)[None], (2, 20))


def decoder_of(config=CONFIG, seed=0):
    return Decoder(config, rngs=nnx.Rngs(seed))


def split(config=CONFIG):
    graph, state = nnx.split(decoder_of(config))
    return state, jax.jit(
        lambda state, tokens, scheme, **kwargs: nnx.merge(graph, state)(tokens, scheme, **kwargs),
        static_argnames="dtype",
    )


STATE, FORWARD = split()
GRAPH = nnx.split(decoder_of())[0]


@jax.jit
def extend(state, cache, tokens, scheme, positions, segments=None):
    return nnx.merge(GRAPH, state).extend(cache, tokens, scheme, positions=positions, segments=segments)


def test_no_token_sees_a_later_one():
    def model(x):
        tokens = jnp.argmax(x[:, :13], axis=-1)[None].astype(jnp.int32)
        return FORWARD(STATE, tokens, SCHEME)[0]

    x = jnp.asarray(np.random.default_rng(2).standard_normal((20, 13)), jnp.float32)
    for at in (1, 10, 18):
        testing.assert_causal(model, 0.1 * x, at=at)


def test_gradients_of_later_embeddings_are_zero():
    # Every token is its own vocabulary entry, so the gradient of an embedding row is that of one place.
    config = dataclasses.replace(CONFIG, vocab_size=20)
    graph, state = nnx.split(decoder_of(config))
    tokens = jnp.arange(20, dtype=jnp.int32)[None]

    def logit(state, t):
        return nnx.merge(graph, state)(tokens, SCHEME)[0, t, 3]

    gradient = jax.jit(jax.grad(logit))
    for t in (0, 7):
        rows = np.abs(np.asarray(gradient(state, t)["embedding"][...])).max(axis=1)
        assert np.all(rows[: t + 1] > 0)
        assert np.all(rows[t + 1 :] == 0)


def test_a_full_cache_refuses_more_tokens():
    cache = empty_cache(CONFIG, batch=2, capacity=5)
    positions = jnp.arange(4, dtype=jnp.int32)[None].repeat(2, axis=0)
    model = decoder_of()
    _, cache = model.extend(cache, TOKENS[:, :4], SCHEME, positions=positions)
    with pytest.raises(ValueError, match="do not fit into a cache of 5 with 4 in use"):
        model.extend(cache, TOKENS[:, 4:6], SCHEME, positions=positions[:, :2] + 4)
    with pytest.raises(ValueError, match="do not fit"):
        jax.eval_shape(lambda c: model.extend(c, TOKENS[:, :6], SCHEME, positions=jnp.zeros((2, 6), int)), cache)


@pytest.mark.parametrize("chunks", [[20], [12, 8], [1, 1, 5, 13], [17, 1, 1, 1]])
def test_extending_a_cache_equals_the_whole_forward(chunks):
    whole = FORWARD(STATE, TOKENS, SCHEME)
    cache, out, at = empty_cache(CONFIG, batch=2, capacity=24), [], 0
    for size in chunks:
        logits, cache = extend(STATE, cache, TOKENS[:, at : at + size], SCHEME, EVERYWHERE[:, at : at + size])
        out.append(logits)
        at += size
    assert int(cache.filled) == 20
    assert cache.capacity == 24
    assert np.all(np.asarray(cache.segments[:, 20:]) == EMPTY)
    np.testing.assert_allclose(jnp.concatenate(out, axis=1), whole, atol=2e-5)


def test_ragged_prompts_padded_on_the_right():
    lengths = jnp.asarray([6, 9])
    prompt, positions = TOKENS[:, :9], EVERYWHERE[:, :9]
    segments = jnp.where(positions < lengths[:, None], 0, EMPTY)
    logits, cache = extend(STATE, empty_cache(CONFIG, batch=2, capacity=16), prompt, SCHEME, positions, segments)
    following = jnp.stack([TOKENS[0, 6:10], TOKENS[1, 9:13]])
    steps = []
    for step in range(4):
        more, cache = extend(STATE, cache, following[:, step : step + 1], SCHEME, lengths[:, None] + step)
        steps.append(more)
    steps = jnp.concatenate(steps, axis=1)
    for row, length in enumerate((6, 9)):
        alone = FORWARD(STATE, TOKENS[row : row + 1, : length + 4], SCHEME)[0]
        np.testing.assert_allclose(logits[row, :length], alone[:length], atol=2e-5)
        np.testing.assert_allclose(steps[row], alone[length:], atol=2e-5)


def test_the_cache_holds_keys_that_no_scheme_has_turned():
    # Layer 0's keys depend on the tokens alone, so a swapped scheme finds them as it needs them.
    empty = empty_cache(CONFIG, batch=2, capacity=20)
    caches = [extend(STATE, empty, TOKENS, one, EVERYWHERE)[1] for one in (SCHEME, PLAIN)]
    np.testing.assert_array_equal(caches[0].keys[0], caches[1].keys[0])
    assert np.any(np.asarray(caches[0].keys[1]) != np.asarray(caches[1].keys[1]))


def test_positions_default_to_counting_and_only_their_differences_matter():
    whole = FORWARD(STATE, TOKENS, SCHEME)
    np.testing.assert_array_equal(FORWARD(STATE, TOKENS, SCHEME, positions=EVERYWHERE), whole)
    np.testing.assert_allclose(FORWARD(STATE, TOKENS, SCHEME, positions=EVERYWHERE + 2**20), whole, atol=5e-5)
    assert np.max(np.abs(FORWARD(STATE, TOKENS, SCHEME, positions=2 * EVERYWHERE) - whole)) > 1e-3


def test_packed_documents_equal_separate_runs():
    segments = jnp.asarray([[0] * 8 + [1] * 9 + [-1] * 3])
    positions = jnp.asarray([[*range(8), *range(9), 0, 0, 0]], jnp.int32)
    packed = FORWARD(STATE, TOKENS[:1], SCHEME, positions=positions, segments=segments)
    for at in (slice(0, 8), slice(8, 17)):
        np.testing.assert_allclose(packed[0, at], FORWARD(STATE, TOKENS[:1, at], SCHEME)[0], atol=2e-5)


def test_each_layer_type_has_its_scheme_and_window():
    config = dataclasses.replace(
        CONFIG, layer_types=("sliding_attention", "full_attention"), windows=(4, None), qk_norm=False
    )
    state, forward = split(config)
    both = {"sliding_attention": PLAIN, "full_attention": SCHEME}
    mixed = forward(state, TOKENS, both)
    same = forward(state, TOKENS, {"sliding_attention": SCHEME, "full_attention": SCHEME})
    np.testing.assert_allclose(same, forward(state, TOKENS, SCHEME), atol=1e-6)
    assert np.max(np.abs(mixed - same)) > 1e-3
    with pytest.raises(ValueError, match="layer 0 is of type 'sliding_attention'"):
        forward(state, TOKENS, {"full_attention": SCHEME})
    # With one layer, a window of 4 cannot see 4 tokens back.
    one = dataclasses.replace(config, num_layers=1, layer_types=("sliding_attention",), windows=(4,))
    state, forward = split(one)
    changed = TOKENS.at[:, 5].set((TOKENS[:, 5] + 1) % 13)
    differs = np.any(np.asarray(forward(state, TOKENS, both) != forward(state, changed, both)), axis=(0, 2))
    assert np.flatnonzero(differs).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize(
    "switches", list(itertools.product([False, True], repeat=5)), ids=lambda s: "".join("01"[on] for on in s)
)
def test_num_parameters_counts_every_array(switches):
    names = ("tie_embeddings", "qkv_bias", "output_bias", "mlp_bias", "qk_norm")
    config = dataclasses.replace(CONFIG, num_layers=1, **ANY_LAYERS, **dict(zip(names, switches, strict=True)))
    state = nnx.state(nnx.eval_shape(lambda: decoder_of(config)), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters


def test_num_parameters_counts_every_layer():
    config = dataclasses.replace(CONFIG, num_layers=3, **ANY_LAYERS)
    state = nnx.state(nnx.eval_shape(lambda: decoder_of(config)), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters


def test_biases_and_norms_take_part():
    config = dataclasses.replace(CONFIG, qkv_bias=True, output_bias=True, mlp_bias=True, num_layers=1, **ANY_LAYERS)
    state, forward = split(config)
    gradient = jax.jit(jax.grad(lambda state: jnp.sum(forward(state, TOKENS, SCHEME)[..., 1])))(state)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        # A bias of all keys shifts every logit of a row alike only where keys are not normed; here they are.
        assert np.any(leaf), name
        assert np.isfinite(leaf).all(), name


def test_bfloat16_activations_stay_near_float32():
    wide, narrow = FORWARD(STATE, TOKENS, SCHEME), FORWARD(STATE, TOKENS, SCHEME, dtype=jnp.bfloat16)
    assert narrow.dtype == jnp.float32
    assert 0 < np.max(np.abs(wide - narrow)) < 0.15 * float(jnp.std(wide)) + 0.05


def test_hidden_and_unembed_make_the_logits():
    def logits(state):
        model = nnx.merge(GRAPH, state)
        return model.unembed(model.hidden(TOKENS, SCHEME))

    np.testing.assert_allclose(jax.jit(logits)(STATE), FORWARD(STATE, TOKENS, SCHEME), atol=2e-5)


def test_config_errors():
    with pytest.raises(ValueError, match="not a multiple"):
        dataclasses.replace(CONFIG, num_kv_heads=3)
    with pytest.raises(ValueError, match="layer_types names 1 layers, num_layers is 2"):
        dataclasses.replace(CONFIG, layer_types=("full_attention",))
    with pytest.raises(ValueError, match="windows names 3"):
        dataclasses.replace(CONFIG, windows=(1, 2, 3))
