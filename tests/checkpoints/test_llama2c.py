"""llama2.c files: written here by the published order, the real one, and damaged ones."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx

from rope_jax.checkpoints.checkpoint import schemes_of
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.errors import CheckpointError, RopeJaxError, UnsupportedError

D, F, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH = 16, 24, 2, 4, 2, 11, 32
HEADER = (D, F, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH)


def parts(base=10000.0, tied=True, seed=0):
    """The weights in file order, by the names of llama2.c."""
    stream = np.random.RandomState(seed)

    def normal(*shape):
        return stream.standard_normal(shape).astype(np.float32)

    d = D // HEADS
    angles = np.outer(np.arange(LENGTH), base ** -(np.arange(0, d, 2) / d))
    found = {
        "tok_embeddings": normal(VOCAB, D),
        "attention_norm": normal(LAYERS, D),
        "wq": normal(LAYERS, HEADS * d, D),
        "wk": normal(LAYERS, KV_HEADS * d, D),
        "wv": normal(LAYERS, KV_HEADS * d, D),
        "wo": normal(LAYERS, D, HEADS * d),
        "ffn_norm": normal(LAYERS, D),
        "w1": normal(LAYERS, F, D),
        "w2": normal(LAYERS, D, F),
        "w3": normal(LAYERS, F, D),
        "norm": normal(D),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }
    if not tied:
        found["wcls"] = normal(VOCAB, D)
    return found


def write(file, found, header=HEADER):
    content = np.array(header, "<i4").tobytes() + b"".join(part.tobytes() for part in found.values())
    file.write_bytes(content)
    return file


def refuses(file, kind, *words, **arguments):
    with pytest.raises(kind) as caught:
        load_checkpoint(file, **arguments)
    message = str(caught.value)
    assert isinstance(caught.value, RopeJaxError)
    assert "\n" not in message
    for word in (str(file), *words):
        assert word in message


def test_weights_come_out_as_they_were_stored(tmp_path):
    found = parts(tied=False)
    file = write(tmp_path / "model.bin", found, (*HEADER[:5], -VOCAB, LENGTH))
    checkpoint = load_checkpoint(file)
    block = checkpoint.model.blocks[1]
    np.testing.assert_array_equal(checkpoint.model.embedding[...], found["tok_embeddings"])
    np.testing.assert_array_equal(checkpoint.model.unembedding[...], found["wcls"])
    np.testing.assert_array_equal(checkpoint.model.norm.weight[...], found["norm"])
    q = np.moveaxis(found["wq"][1].reshape(HEADS, 4, D), -1, 0)
    np.testing.assert_array_equal(block.attention.q.kernel[...], q)
    np.testing.assert_array_equal(block.attention.o.kernel[...], found["wo"][1].T.reshape(HEADS, 4, D))
    np.testing.assert_array_equal(block.mlp.gate.kernel[...], found["w1"][1].T)
    np.testing.assert_array_equal(block.mlp.down.kernel[...], found["w2"][1].T)
    np.testing.assert_array_equal(block.mlp.up.kernel[...], found["w3"][1].T)
    np.testing.assert_array_equal(block.mlp_norm.weight[...], found["ffn_norm"][1])
    assert checkpoint.config.rms_norm_eps == 1e-5
    assert checkpoint.layout == schemes_of(checkpoint).layout == "interleaved"
    assert checkpoint.positions.values["rope_theta"].source == "default of llama2.c"
    assert checkpoint.positions.original_length == LENGTH


def test_a_positive_vocabulary_means_tied_embeddings(tmp_path):
    assert load_checkpoint(write(tmp_path / "model.bin", parts())).model.unembedding is None


@pytest.mark.parametrize("change", [-4, 4, 1, -1])
def test_a_file_of_another_length(change, tmp_path):
    file = write(tmp_path / "model.bin", parts())
    content = file.read_bytes()
    file.write_bytes(content[:change] if change < 0 else content + b"\x00" * change)
    refuses(file, CheckpointError, f"{len(content) + change:,}", f"{len(content):,}")


@pytest.mark.parametrize("length", [0, 4, 27])
def test_a_file_shorter_than_its_header(length, tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(b"\x01" * length)
    refuses(file, CheckpointError, "header")


@pytest.mark.parametrize(
    ("at", "value", "word"),
    [
        (0, -16, "dim"),
        (0, 15, "dim"),
        (1, 0, "hidden_dim"),
        (2, 0, "n_layers"),
        (2, 2**31 - 1, "n_layers"),
        (3, 5, "n_heads"),
        (3, 16, "even"),
        (4, 3, "n_kv_heads"),
        (5, 0, "vocab_size"),
        (6, -1, "seq_len"),
        (6, 2**31 - 1, "bytes long"),
        (5, -VOCAB, "bytes long"),
    ],
)
def test_an_impossible_header(at, value, word, tmp_path):
    header = [*HEADER]
    header[at] = value
    refuses(write(tmp_path / "model.bin", parts(), header), CheckpointError, word)


def test_a_later_format(tmp_path):
    refuses(write(tmp_path / "model.bin", parts(), (0x616B3432, 2, *HEADER[:5])), UnsupportedError, "versioned")


@pytest.mark.parametrize(("part", "name"), [("wk", "attention.k.kernel"), ("norm", "norm.weight"), ("cos", "cos")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite(part, name, value, tmp_path):
    found = parts()
    found[part].flat[-1] = value
    refuses(write(tmp_path / "model.bin", found), CheckpointError, name)


def test_tables_of_another_base(tmp_path):
    refuses(write(tmp_path / "model.bin", parts(base=1e6)), CheckpointError, "base 10000")


def test_the_size_is_checked_before_anything_is_made(tmp_path):
    refuses(write(tmp_path / "model.bin", parts()), CheckpointError, "max_bytes", max_bytes=1000)


def test_a_directory_of_that_name(tmp_path):
    (tmp_path / "model.bin").mkdir()
    refuses(tmp_path / "model.bin", CheckpointError, "config.json")


# The real model, as published and converted.


@pytest.fixture(scope="module")
def both(real):
    path = real / "models" / "stories260K"
    return load_checkpoint(path), load_checkpoint(path / "stories260K.bin")


@pytest.fixture(scope="module")
def reference(real):
    return json.loads((real / "golden" / "stories260K_reference.json").read_text())


@jax.jit
def _pick(logits, at):
    row = jax.lax.dynamic_index_in_dim(logits[0], at, keepdims=False)
    return row.argmax(), jax.nn.log_softmax(row).max()


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, state, tokens, scheme):
    return nnx.merge(graph, state)(tokens, scheme)


@functools.partial(jax.jit, static_argnums=0)
def _losses(graph, state, tokens, scheme):
    logits = nnx.merge(graph, state)(tokens[:, :-1], scheme)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]


def forward(checkpoint):
    graph, state = nnx.split(checkpoint.model)
    scheme = schemes_of(checkpoint)
    return lambda tokens: _logits(graph, state, jnp.asarray(tokens), scheme)


def test_greedy_text_of_the_reference(both, reference):
    model = forward(both[1])
    expected = reference["computed_here_float64_numpy"]["greedy_token_ids_from_BOS"][:64]
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, 0] = 1
    logprobs = []
    for at in range(len(expected) - 1):
        token, logprob = _pick(model(tokens), at)
        tokens[0, at + 1] = int(token)
        logprobs.append(float(logprob))
    assert tokens[0].tolist() == expected
    first = reference["computed_here_float64_numpy"]["top1_logprob_first_63_steps"]
    np.testing.assert_allclose(logprobs, first, rtol=0, atol=1e-4)
    tokenizer = tokenizers.Tokenizer.from_file(str(both[1].tokenizer_file))
    text = tokenizer.decode(tokens[0, 1:].tolist()).strip()
    assert reference["published"]["greedy_text"].startswith(text)
    assert len(text) > 100


def test_both_layouts_give_the_same_logits_and_the_same_greedy_tokens(both, reference):
    tokens = np.array([reference["computed_here_float64_numpy"]["greedy_token_ids_from_BOS"]], np.int32)
    half, interleaved = (np.asarray(forward(checkpoint)(tokens)) for checkpoint in both)
    np.testing.assert_allclose(half, interleaved, rtol=0, atol=1e-4)
    # Under the forced prefix, each next token is the largest logit: what a greedy loop would give.
    assert half[0, :-1].argmax(-1).tolist() == tokens[0, 1:].tolist()
    assert both[0].config == both[1].config
    assert both[0].sha256 != both[1].sha256


def test_mean_loss_of_the_reference(both, real, reference):
    tokenizer = tokenizers.Tokenizer.from_file(str(both[0].tokenizer_file))
    stories = (real / "text" / "tinystories_sample_2MiB.txt").read_text().split("<|endoftext|>")[1:61]
    rows = [[1, *tokenizer.encode(story.strip(), add_special_tokens=False).ids][:513] for story in stories]
    longest = max(len(ids) for ids in rows)
    graph, state = nnx.split(both[0].model)
    total = 0.0
    for start in range(0, 60, 12):
        part = rows[start : start + 12]
        tokens = np.array([ids + [0] * (longest - len(ids)) for ids in part], np.int32)
        losses = np.asarray(_losses(graph, state, jnp.asarray(tokens), schemes_of(both[0])))
        total += sum(float(loss[: len(ids) - 1].sum()) for loss, ids in zip(losses, part, strict=True))
    count = sum(len(ids) - 1 for ids in rows)
    # The converted tokenizer differs from the original in one token of these stories.
    assert abs(count - reference["computed_here_float64_numpy"]["tokens"]) <= 1
    mean = reference["computed_here_float64_numpy"]["mean_nll_stories_1_to_60_of_tinystories_sample_2MiB"]
    assert abs(total / count - mean) < 1e-3
