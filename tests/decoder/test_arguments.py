"""What a decoder is given: integers of any width come through, and what does not fit is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rope_jax import biases, frequencies, scheme
from rope_jax.decoder import Decoder, DecoderConfig, continue_from, empty_cache, generate
from rope_jax.errors import InputError

CONFIG = DecoderConfig(
    vocab_size=29,
    hidden_size=16,
    intermediate_size=20,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
)
DECODER = Decoder(CONFIG, rngs=nnx.Rngs(0))
GRAPH, STATE = nnx.split(DECODER)
SCHEME = scheme.build(
    frequencies.rotary(8, base=194.0, original_length=8), biases.alibi_paper(4), num_heads=4, head_dim=8
)
TOKENS = np.random.default_rng(0).integers(0, 29, (2, 6))
POSITIONS, SEGMENTS = np.arange(6)[None].repeat(2, 0), np.zeros((2, 6), np.int64)


@jax.jit
def compiled(tokens, positions, segments):
    return nnx.merge(GRAPH, STATE)(tokens, SCHEME, positions=positions, segments=segments)


@jax.jit
def extended(tokens, positions, segments):
    cache = empty_cache(CONFIG, batch=2, capacity=8)
    return nnx.merge(GRAPH, STATE).extend(cache, tokens, SCHEME, positions=positions, segments=segments)[0]


@pytest.mark.parametrize("run", [compiled, extended])
@pytest.mark.parametrize("width", [np.int8, np.uint8, np.int16, np.uint16, np.uint32])
def test_integers_of_any_width_are_those_of_int32(run, width):
    far = POSITIONS + np.iinfo(np.int8).max - 5  # the last one is the largest of int8
    arguments = (TOKENS, far, SEGMENTS)
    expected = run(*(jnp.asarray(x, jnp.int32) for x in arguments))
    np.testing.assert_array_equal(run(*(jnp.asarray(x, width) for x in arguments)), expected)


def test_generation_takes_integers_of_any_width_and_numpy():
    expected = generate(DECODER, SCHEME, jnp.asarray(TOKENS, jnp.int32), max_new_tokens=3)
    for width in (np.int8, np.uint8, np.uint32, np.int64):
        made = generate(DECODER, SCHEME, TOKENS.astype(width), max_new_tokens=3, lengths=np.full(2, 6, width))
        np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.bool_])
@pytest.mark.parametrize("name", ["tokens", "positions", "segments"])
def test_what_is_no_integer_is_refused_by_name(name, dtype, without_type_checks):
    given = {"tokens": TOKENS, "positions": POSITIONS, "segments": SEGMENTS}
    given[name] = jnp.ones((2, 6), dtype)
    tokens = given.pop("tokens")
    cache = empty_cache(CONFIG, batch=2, capacity=8)
    for call in (
        lambda: DECODER(tokens, SCHEME, **given),
        lambda: DECODER.hidden(tokens, SCHEME, **given),
        lambda: DECODER.prefill(tokens, SCHEME, capacity=8, **given),
        lambda: DECODER.extend(cache, tokens, SCHEME, **given),
    ):
        with pytest.raises(TypeError, match=f"^{name} must be integers"):
            call()
    if name == "tokens":
        with pytest.raises(TypeError, match=r"^prompt must be integers"):
            generate(DECODER, SCHEME, tokens, max_new_tokens=1)
    if name == "positions":
        with pytest.raises(TypeError, match=r"^lengths must be integers"):
            generate(DECODER, SCHEME, TOKENS, max_new_tokens=1, lengths=given[name][:, 0])


@pytest.mark.parametrize(
    ("name", "shape"),
    [("positions", (2, 1)), ("positions", (1, 6)), ("positions", (6,)), ("segments", (2, 1)), ("tokens", (6,))],
)
def test_shapes_that_do_not_fit_are_refused_by_name(name, shape, without_type_checks):
    given = {"tokens": TOKENS, "positions": POSITIONS, "segments": SEGMENTS, name: np.zeros(shape, np.int32)}
    with pytest.raises(ValueError, match=f"^{name} must be "):
        DECODER(given.pop("tokens"), SCHEME, **given)


def test_another_batch_than_the_caches_is_refused():
    with pytest.raises(ValueError, match="1 sequences do not continue a cache of 2"):
        DECODER.extend(empty_cache(CONFIG, batch=2, capacity=8), TOKENS[:1], SCHEME, positions=POSITIONS[:1])


@pytest.mark.parametrize("wrong", [29, -1, 2**31 - 1, -(2**31)])
def test_ids_outside_of_the_vocabulary_are_refused_or_seen(wrong):
    tokens = TOKENS.astype(np.int32)
    tokens[1, 4] = wrong
    least, most = sorted((int(tokens.min()), int(tokens.max())))
    message = f"must be from 0 to 28, for a vocabulary of 29; got {least} to {most}$"
    with pytest.raises(InputError, match=f"^tokens {message}"):
        DECODER(tokens, SCHEME)
    with pytest.raises(InputError, match=f"^prompt {message}"):
        generate(DECODER, SCHEME, tokens, max_new_tokens=2)
    cache = empty_cache(CONFIG, batch=2, capacity=8)
    with pytest.raises(InputError, match=r"^tokens must be from 0 to 28"):
        continue_from(DECODER, SCHEME, cache, tokens[:, 4], np.array([0, 0]), max_new_tokens=1)
    for run in (compiled, extended):  # a program cannot raise, and does not take another token for it
        logits = np.asarray(run(tokens, POSITIONS, SEGMENTS))
        np.testing.assert_array_equal(logits[0], run(TOKENS, POSITIONS, SEGMENTS)[0])
        assert np.isnan(logits[1, 4:]).all()


@pytest.mark.parametrize("wrong", [29, -1, -100, 2**31 - 1])
def test_ids_of_padding_may_be_anything(wrong):
    padding = np.array([[0] * 6, [0] * 4 + [-1] * 2])
    tokens = np.where(padding < 0, wrong, TOKENS)
    right = compiled(TOKENS, POSITIONS, padding)
    for run in (compiled, extended, lambda t, p, s: DECODER(t, SCHEME, positions=p, segments=s)):
        logits = np.asarray(run(tokens, POSITIONS, padding))
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(logits[padding >= 0], right[padding >= 0], atol=1e-5)
    made = generate(DECODER, SCHEME, tokens, max_new_tokens=2, lengths=np.array([6, 4]))
    np.testing.assert_array_equal(made, generate(DECODER, SCHEME, TOKENS, max_new_tokens=2, lengths=np.array([6, 4])))

    def loss(state):
        logits = nnx.merge(GRAPH, state)(jnp.asarray(tokens), SCHEME, segments=jnp.asarray(padding))
        return jnp.where(padding[..., None] >= 0, logits, 0).sum()

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(STATE)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number, at least 1, got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, at least 1, got 2.5"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, at least 1, got True"),
        ({"chunk": 2.5}, "chunk must be a whole number, at least 1, got 2.5"),
        ({"temperature": float("nan")}, r"temperature must be 0, or from 1.2e-38 to 3.4e\+38, got nan"),
        ({"temperature": float("inf")}, r"temperature must be 0, or from 1.2e-38 to 3.4e\+38, got inf"),
        ({"temperature": -0.5}, r"temperature must be 0, or from 1.2e-38 to 3.4e\+38, got -0.5"),
        ({"temperature": True}, r"temperature must be 0, or from 1.2e-38 to 3.4e\+38, got True"),
        ({"temperature": 1e-39}, r"temperature must be 0, or from 1.2e-38 to 3.4e\+38, got 1e-39"),
        ({"temperature": 1e39}, r"temperature must be 0, or from 1.2e-38 to 3.4e\+38, got 1e\+39"),
        ({"temperature": "hot"}, r"temperature must be 0, or from 1.2e-38 to 3.4e\+38, got 'hot'"),
        ({"temperature": 1.0}, "a temperature above 0 needs a key"),
        ({"lengths": np.array([0, 3])}, "lengths must be one a prompt, from 1 to 6"),
        ({"dtype": jnp.int32}, "dtype must be a floating one, got int32"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(arguments, message, without_type_checks):
    with pytest.raises(ValueError, match=f"^{message}"):
        generate(DECODER, SCHEME, TOKENS, **{"max_new_tokens": 2, **arguments})


def test_the_least_temperature_takes_the_likeliest_token():
    greedy = generate(DECODER, SCHEME, TOKENS, max_new_tokens=5)
    for temperature in (1.2e-38, 1e-30):
        drawn = generate(DECODER, SCHEME, TOKENS, max_new_tokens=5, temperature=temperature, key=jax.random.key(1))
        np.testing.assert_array_equal(drawn, greedy)


def test_caches_take_lists_and_a_whole_capacity(without_type_checks):
    expected, _ = DECODER.prefill(TOKENS, SCHEME, capacity=8)
    found, _ = DECODER.prefill(TOKENS.tolist(), SCHEME, capacity=8)
    np.testing.assert_array_equal(found, expected)
    for capacity in (20.5, -1, True):
        with pytest.raises(InputError, match=r"^capacity must be a whole number, at least 1"):
            DECODER.prefill(TOKENS, SCHEME, capacity=capacity)
    with pytest.raises(InputError, match=r"^scheme must be a Scheme"):
        generate(DECODER, None, TOKENS, max_new_tokens=1)


def test_an_empty_prompt_or_batch_is_refused():
    for shape in ((2, 0), (0, 3)):
        with pytest.raises(InputError, match=r"^prompt must be of shape \[batch, tokens\], with a token at least"):
            generate(DECODER, SCHEME, np.zeros(shape, np.int32), max_new_tokens=1)
