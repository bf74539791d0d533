"""Loading Hugging Face directories: what is accepted comes out exactly, and everything else is refused by name."""

import json
import pathlib
import struct
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rope_jax.checkpoints.checkpoint import schemes_at, schemes_of
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.errors import CheckpointError, ConfigError, RopeJaxError, UnsupportedError
from rope_jax.scheme import Scheme

sys.path.append(str(pathlib.Path(__file__).parents[1] / "golden"))
from logit_cases import CASES, MODELS, new_schema, random_weights, write

Q = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def llama(tmp_path):
    """A directory that loads, to be tampered with."""
    write(tmp_path, CASES["llama-default"])
    return tmp_path


def edit_tensors(directory, change):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_config(directory, **changes):
    file = directory / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


def shard(directory, *, change=lambda index: None):
    """Splits the weights into two files with an index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, directory / file)
    index = {"metadata": {"total_size": 0}, "weight_map": {n: f for f, part in files.items() for n in part}}
    change(index)
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def refuses(path, kind, *words, **arguments):
    with pytest.raises(kind) as caught:
        load_checkpoint(path, **arguments)
    message = str(caught.value)
    assert isinstance(caught.value, RopeJaxError)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


def test_weights_come_out_as_they_were_stored(llama):
    tensors = load_file(llama / "model.safetensors")
    checkpoint = load_checkpoint(llama)
    block = checkpoint.model.blocks[1]
    D, H, K, d, F = 32, 4, 2, 16, 48
    at = "model.layers.1."
    np.testing.assert_array_equal(checkpoint.model.embedding[...], tensors[EMBEDDING])
    np.testing.assert_array_equal(checkpoint.model.unembedding[...], tensors["lm_head.weight"])
    q = np.moveaxis(tensors[at + "self_attn.q_proj.weight"].reshape(H, d, D), -1, 0)
    np.testing.assert_array_equal(block.attention.q.kernel[...], q)
    v = np.moveaxis(tensors[at + "self_attn.v_proj.weight"].reshape(K, d, D), -1, 0)
    np.testing.assert_array_equal(block.attention.v.kernel[...], v)
    o = np.moveaxis(tensors[at + "self_attn.o_proj.weight"].reshape(D, H, d), 0, -1)
    np.testing.assert_array_equal(block.attention.o.kernel[...], o)
    np.testing.assert_array_equal(block.mlp.down.kernel[...], tensors[at + "mlp.down_proj.weight"].T)
    assert block.mlp.gate.kernel[...].shape == (D, F)
    np.testing.assert_array_equal(block.mlp_norm.weight[...], tensors[at + "post_attention_layernorm.weight"])
    assert checkpoint.layout == "half"
    assert checkpoint.tokenizer_file is None
    assert len(checkpoint.sha256) == 64
    assert checkpoint.origin == str(llama)


def test_every_tensor_keeps_its_own_dtype(llama):
    def change(tensors):
        tensors[Q] = tensors[Q].astype(ml_dtypes.bfloat16)
        tensors[EMBEDDING] = tensors[EMBEDDING].astype(np.float16)

    edit_tensors(llama, change)
    model = load_checkpoint(llama).model
    assert model.blocks[0].attention.q.kernel[...].dtype == jnp.bfloat16
    assert model.embedding[...].dtype == jnp.float16
    assert model.blocks[0].attention.k.kernel[...].dtype == jnp.float32


def test_shards_give_the_same_model(llama):
    whole = load_checkpoint(llama)
    shard(llama)
    sharded = load_checkpoint(llama)
    for a, b in zip(jax.tree.leaves(nnx.state(whole.model)), jax.tree.leaves(nnx.state(sharded.model)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tokenizer_beside_the_weights_is_named(llama):
    (llama / "tokenizer.json").write_text("{}")
    assert load_checkpoint(llama).tokenizer_file == llama / "tokenizer.json"


# The config.


def test_another_model_type_is_refused(llama):
    edit_config(llama, model_type="phi3")
    refuses(llama, UnsupportedError, "phi3")


@pytest.mark.parametrize(
    ("changes", "kind", "word"),
    [
        ({"surprise": 1}, ConfigError, "surprise"),
        ({"layer_types": ["full_attention"] * 2}, ConfigError, "layer_types"),
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act"),
        ({"use_qk_norm": True}, UnsupportedError, "use_qk_norm"),
        ({"sliding_window": 16}, UnsupportedError, "sliding_window"),
        ({"quantization_config": {"bits": 4}}, UnsupportedError, "quantization_config"),
        ({"architectures": ["LlamaForSequenceClassification"]}, UnsupportedError, "LlamaForSequenceClassification"),
        ({"rope_interleaved": True}, UnsupportedError, "rope_interleaved"),
        ({"attention_bias": "yes"}, ConfigError, "attention_bias"),
        ({"hidden_size": "absent"}, ConfigError, "hidden_size"),
        ({"num_hidden_layers": 2.5}, ConfigError, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, ConfigError, "num_hidden_layers"),
        ({"vocab_size": True}, ConfigError, "vocab_size"),
        ({"num_key_value_heads": 3}, ConfigError, "num_key_value_heads"),
        ({"head_dim": 15}, ConfigError, "head_dim"),
        ({"rms_norm_eps": None}, ConfigError, "rms_norm_eps"),
        ({"rms_norm_eps": -1.0}, ConfigError, "rms_norm_eps"),
        ({"model_type": "absent"}, ConfigError, "model_type"),
        ({"model_type": ["llama"]}, ConfigError, "model_type"),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factr": 2.0}}, ConfigError, "fact"),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_key(changes, kind, word, llama):
    edit_config(llama, **changes)
    refuses(llama, kind, word)


@pytest.mark.parametrize(
    ("model", "key"), [("mistral", "mlp_bias"), ("qwen2", "attention_bias"), ("qwen3", "mlp_bias")]
)
def test_a_switch_that_this_model_type_does_not_have_must_be_off(model, key, tmp_path):
    write(tmp_path, new_schema(model, "default", **{key: False}))
    load_checkpoint(tmp_path)
    edit_config(tmp_path, **{key: True})
    refuses(tmp_path, UnsupportedError, key)


@pytest.mark.parametrize(("model", "key"), [("mistral", "num_key_value_heads"), ("qwen3", "head_dim")])
def test_no_shape_is_guessed(model, key, tmp_path):
    write(tmp_path, CASES[f"{model}-default"])
    edit_config(tmp_path, **{key: "absent"})
    refuses(tmp_path, ConfigError, key)


@pytest.mark.parametrize("model", MODELS)
def test_shapes_follow_the_model_type(model, tmp_path):
    write(tmp_path, CASES[f"{model}-default"])
    config = load_checkpoint(tmp_path).config
    assert config.qkv_bias == (model == "qwen2")
    assert not config.output_bias
    assert config.qk_norm == (model == "qwen3")
    assert config.windows == (None, None)


def test_llama_attention_bias_reaches_the_output_projection(tmp_path):
    write(tmp_path, CASES["llama-biases"])
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.model.blocks[0].attention.o.bias[...].shape == (32,)
    assert checkpoint.model.blocks[0].mlp.down.bias[...].shape == (32,)
    stored = load_file(tmp_path / "model.safetensors")["model.layers.0.self_attn.k_proj.bias"]
    np.testing.assert_array_equal(checkpoint.model.blocks[0].attention.k.bias[...], stored.reshape(2, 16))


def test_windows_of_each_layer(tmp_path):
    write(tmp_path, CASES["qwen2-window"])
    assert load_checkpoint(tmp_path).config.windows == (None, 24)
    # Wider than the declared length: no effect until the model is run beyond it, as it will be here.
    edit_config(tmp_path, sliding_window=100_000)
    assert load_checkpoint(tmp_path).config.windows == (None, 100_000)


def test_mistral_without_the_key_has_its_default_window(tmp_path):
    write(tmp_path, CASES["mistral-default"])
    edit_config(tmp_path, sliding_window="absent")
    assert load_checkpoint(tmp_path).config.windows == (4096, 4096)


# The weights.


def test_no_config_no_weights_no_path(llama):
    refuses(llama / "absent", CheckpointError)
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    refuses(llama, CheckpointError, "model.safetensors")
    (llama / "config.json").unlink()
    refuses(llama, CheckpointError, "config.json")
    other = llama / "weights.gguf"
    other.write_bytes(b"")
    refuses(other, CheckpointError)


def test_a_missing_tensor(llama):
    edit_tensors(llama, lambda tensors: tensors.pop(Q))
    refuses(llama, CheckpointError, Q)


@pytest.mark.parametrize(
    "name", ["model.layers.2.input_layernorm.weight", "model.layers.0.self_attn.q_proj.bias", "x\ny"]
)
def test_an_extra_tensor(name, llama):
    edit_tensors(llama, lambda tensors: tensors.update({name: np.ones(32, np.float32)}))
    refuses(llama, CheckpointError, repr(name), "model.safetensors")


def test_a_misshapen_tensor(llama):
    edit_tensors(llama, lambda tensors: tensors.update({Q: tensors[Q].T.copy()}))
    refuses(llama, CheckpointError, Q, "[32, 64]", "[64, 32]", "model.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_value_that_is_not_finite(value, dtype, llama):
    def change(tensors):
        tensors[Q] = tensors[Q].astype(dtype)
        tensors[Q][3, 4] = value

    edit_tensors(llama, change)
    refuses(llama, CheckpointError, Q, "NaN" if np.isnan(value) else "infinite", "model.safetensors")


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.float64, ml_dtypes.float8_e4m3fn])
def test_a_dtype_that_is_not_read(dtype, llama):
    edit_tensors(llama, lambda tensors: tensors.update({Q: tensors[Q].astype(dtype)}))
    refuses(llama, CheckpointError, Q, "model.safetensors")


def header(text, payload=b""):
    return struct.pack("<Q", len(text)) + text + payload


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 4,
        b"\xff" * 64,
        struct.pack("<Q", 10**6) + b"{}",
        header(b"{not json}"),
        header(b"{}", b"left over"),
        header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', b"\x00" * 8),
        header(b'{"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}', b"\x00" * 4),
        header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b"\x00" * 4),
        header(b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}'),
    ],
)
def test_a_damaged_file(content, llama):
    (llama / "model.safetensors").write_bytes(content)
    refuses(llama, CheckpointError, "model.safetensors")


@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_a_truncated_file(keep, llama):
    file = llama / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    refuses(llama, CheckpointError, "model.safetensors")


def test_a_directory_in_place_of_a_file(llama):
    (llama / "model.safetensors").unlink()
    (llama / "model.safetensors").mkdir()
    refuses(llama, CheckpointError, "model.safetensors")


# Tied embeddings and old buffers.


def test_an_output_projection_beside_tied_embeddings_must_equal_them(tmp_path):
    write(tmp_path, CASES["llama-tied"])
    edit_tensors(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING].copy()}))
    assert load_checkpoint(tmp_path).model.unembedding is None

    def change(tensors):
        tensors["lm_head.weight"][0, 0] += 1

    edit_tensors(tmp_path, change)
    refuses(tmp_path, CheckpointError, "lm_head.weight")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_old_frequency_buffers_must_agree_with_the_config(dtype, llama):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    theta = (10000.0 ** -(np.arange(0, 16, 2) / 16)).astype(dtype)
    edit_tensors(llama, lambda tensors: tensors.update({name: theta}))
    load_checkpoint(llama)
    edit_tensors(llama, lambda tensors: tensors.update({name: (500.0 ** -(np.arange(0, 16, 2) / 16)).astype(dtype)}))
    refuses(llama, CheckpointError, name)
    edit_tensors(llama, lambda tensors: tensors.update({name: theta[:4].copy()}))
    refuses(llama, CheckpointError, name)


# Shards.


def test_both_a_whole_file_and_an_index(llama):
    content = (llama / "model.safetensors").read_bytes()
    shard(llama)
    (llama / "model.safetensors").write_bytes(content)
    refuses(llama, CheckpointError, "model.safetensors.index.json")


@pytest.mark.parametrize("name", ["../up.safetensors", "/etc/passwd", "a\\b.safetensors", "..", "weights.bin", ""])
def test_an_index_that_leads_elsewhere(name, llama):
    shard(llama, change=lambda index: index["weight_map"].update({Q: name}))
    refuses(llama, CheckpointError, repr(name))


def test_an_index_that_names_an_absent_file(llama):
    files = shard(llama)
    (llama / next(iter(files))).unlink()
    refuses(llama, CheckpointError, next(iter(files)))


def test_an_index_that_disagrees_with_its_shards(llama):
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

    def swap(index):
        index["weight_map"][Q] = one if index["weight_map"][Q] == two else two

    shard(llama, change=swap)
    refuses(llama, CheckpointError, Q)


def test_an_index_that_leaves_a_tensor_out(llama):
    shard(llama, change=lambda index: index["weight_map"].pop(Q))
    refuses(llama, CheckpointError, Q)


def test_an_index_that_names_a_tensor_no_shard_has(llama):
    shard(llama, change=lambda index: index["weight_map"].update({"ghost": "model-00001-of-00002.safetensors"}))
    refuses(llama, CheckpointError, "ghost")


def test_a_tensor_in_two_shards(llama):
    files = shard(llama)
    one, two = (llama / file for file in files)
    save_file({**load_file(one), **dict(list(load_file(two).items())[:1])}, one)
    refuses(llama, CheckpointError, next(iter(load_file(two))), one.name)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "x", "a": "y"}}',
        "[" * 10**5,
    ],
)
def test_an_index_that_is_no_index(content, llama):
    shard(llama)
    (llama / "model.safetensors.index.json").write_text(content)
    refuses(llama, CheckpointError, "model.safetensors.index.json")


# Size.


def test_the_size_is_checked_before_anything_is_made(llama, monkeypatch):
    refuses(llama, CheckpointError, "max_bytes", max_bytes=1000)
    size = sum(4 * tensor.size for tensor in random_weights(CASES["llama-default"]).values())
    # By the config alone the weights might be of two bytes each; the file's header says that they are of four.
    refuses(llama, CheckpointError, "max_bytes", max_bytes=size - 1)
    load_checkpoint(llama, max_bytes=size)
    monkeypatch.setattr("rope_jax.checkpoints.weights.available_bytes", lambda: 1000)
    refuses(llama, CheckpointError, "1,000 are available")


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 2**31 - 1}, {"vocab_size": 2**31 - 1, "hidden_size": 2**30}])
def test_an_absurd_config_costs_nothing(changes, llama):
    edit_config(llama, **changes)
    refuses(llama, CheckpointError, "bytes")


# Schemes.


def test_schemes_of_one_and_of_several_layer_types(tmp_path):
    write(tmp_path / "one", CASES["llama-yarn"])
    assert isinstance(schemes_of(load_checkpoint(tmp_path / "one")), Scheme)
    write(tmp_path / "two", CASES["qwen2-window"])
    checkpoint = load_checkpoint(tmp_path / "two")
    schemes = schemes_of(checkpoint, layout="interleaved", max_offset=7)
    assert set(schemes) == {"full_attention", "sliding_attention"}
    assert schemes["full_attention"].layout == "interleaved"
    assert schemes["full_attention"].max_offset == 7


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_rules_by_length(rope, tmp_path):
    write(tmp_path, CASES[f"llama-{rope}"])
    checkpoint = load_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="length"):
        schemes_of(checkpoint)
    both = schemes_at(checkpoint, jnp.array([64, 160]))
    for row, length in enumerate((64, 160)):
        one = schemes_of(checkpoint.positions, length=length)
        np.testing.assert_allclose(both.inverse_frequencies[row], one.inverse_frequencies, rtol=1e-6)
