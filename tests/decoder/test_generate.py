"""Generation equals running the whole model again at every step, for fixed and length-dependent schemes."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rope_jax import biases, frequencies, length_rules, scaling, scheme
from rope_jax.decoder import Decoder, DecoderConfig, generate
from rope_jax.errors import InputError

generation = sys.modules["rope_jax.decoder.generate"]  # the package exports the function under this name
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
DECODER = Decoder(CONFIG, rngs=nnx.Rngs(0))
SHALLOW = Decoder(dataclasses.replace(CONFIG, num_layers=1, layer_types=(), windows=()), rngs=nnx.Rngs(3))
for model in (DECODER, SHALLOW):
    model.embedding[...] = model.embedding[...] * 50  # or every logit is about the same
ROTARY = frequencies.rotary(8, base=194.0, original_length=8)
BIAS = biases.alibi_paper(4)
STATIC = scheme.build(ROTARY, BIAS, num_heads=4, head_dim=8)
DYNAMIC = scheme.Retrofit(ROTARY, length_rules.dynamic_ntk(factor=6.0, original_length=8), BIAS)
PROMPT = jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, 7)), jnp.int32)
NEW = 9


def by_running_again(decoder, scheme_at, prompt, new):
    """The greedy continuation of one sequence, padded to one width so that one program serves."""
    graph, state = nnx.split(decoder)
    width = len(prompt) + new
    forward = jax.jit(lambda state, tokens, one: nnx.merge(graph, state)(tokens, one))
    tokens, margins = list(map(int, prompt)), []
    for _ in range(new):
        padded = jnp.asarray([tokens + [0] * (width - len(tokens))], jnp.int32)
        logits = np.sort(np.asarray(forward(state, padded, scheme_at(len(tokens)))[0, len(tokens) - 1]))
        margins.append(logits[-1] - logits[-2])
        tokens.append(int(np.argmax(forward(state, padded, scheme_at(len(tokens)))[0, len(tokens) - 1])))
    assert min(margins) > 1e-3, "a tie would make this test depend on rounding"
    return tokens[len(prompt) :]


def test_greedy_equals_running_the_whole_model_again():
    made = generate(DECODER, STATIC, PROMPT, max_new_tokens=NEW)
    assert made.shape == (2, NEW)
    for row in range(2):
        expected = by_running_again(DECODER, lambda _: STATIC, PROMPT[row], NEW)
        assert made[row].tolist() == expected
    assert len(set(made.ravel().tolist())) > 2


def test_ragged_prompts_equal_single_runs():
    made = generate(DECODER, STATIC, PROMPT, max_new_tokens=5, lengths=jnp.asarray([3, 7]))
    for row, length in enumerate((3, 7)):
        alone = generate(DECODER, STATIC, PROMPT[row : row + 1, :length], max_new_tokens=5)
        assert made[row].tolist() == alone[0].tolist()
    # What stands in the padding does not matter.
    other = PROMPT.at[0, 3:].set(5)
    again = generate(DECODER, STATIC, other, max_new_tokens=5, lengths=jnp.asarray([3, 7]))
    np.testing.assert_array_equal(again, made)


def test_dynamic_scaling_in_one_layer_equals_running_again_under_the_scheme_of_the_length():
    at = scheme.per_length(DYNAMIC, num_heads=4, head_dim=8)
    prompts = jnp.concatenate([PROMPT, PROMPT[:, :3]], axis=1)  # 10 tokens: past the trained 8
    made = generate(SHALLOW, at, prompts, max_new_tokens=NEW, lengths=jnp.asarray([6, 10]))

    def scheme_at(length):
        return scheme.scheme_of(DYNAMIC, length=length, num_heads=4, head_dim=8)

    for row, length in enumerate((6, 10)):
        assert made[row].tolist() == by_running_again(SHALLOW, scheme_at, prompts[row, :length], NEW)


def test_a_mapping_of_schemes_is_a_fixed_scheme():
    made = generate(DECODER, {"full_attention": STATIC}, PROMPT, max_new_tokens=4)
    np.testing.assert_array_equal(made, generate(DECODER, STATIC, PROMPT, max_new_tokens=4))


def test_another_scheme_or_temperature_runs_in_the_same_program():
    generate(DECODER, STATIC, PROMPT, max_new_tokens=6)
    compiled = generation._run._cache_size()
    other = scheme.build(scaling.linear(factor=4.0)(ROTARY), biases.alibi_geometric(4), num_heads=4, head_dim=8)
    generate(DECODER, other, PROMPT, max_new_tokens=6)
    assert generation._run._cache_size() == compiled


def test_sampling_follows_its_key_and_temperature():
    def sample(seed, temperature):
        return generate(
            DECODER, STATIC, PROMPT, max_new_tokens=6, temperature=temperature, key=jax.random.key(seed)
        ).tolist()

    assert sample(0, 5.0) == sample(0, 5.0)
    assert sample(0, 5.0) != sample(1, 5.0)
    assert sample(0, 1e-4) == generate(DECODER, STATIC, PROMPT, max_new_tokens=6).tolist()


def test_one_new_token():
    one = generate(DECODER, STATIC, PROMPT, max_new_tokens=1)
    assert one.shape == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number, at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"temperature": 1.0}, "needs a key"),
        ({"lengths": jnp.asarray([0, 3])}, "from 1 to 7"),
        ({"lengths": jnp.asarray([3, 8])}, "from 1 to 7"),
        ({"lengths": jnp.asarray([3])}, "one a prompt"),
    ],
)
def test_errors(arguments, message):
    # The number of lengths is also what the tests' type checker refuses.
    with pytest.raises((InputError, TypeError), match=f"{message}|batch"):
        generate(DECODER, STATIC, PROMPT, **({"max_new_tokens": 3} | arguments))
