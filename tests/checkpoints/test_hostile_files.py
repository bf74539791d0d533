"""Files that wait, names that no file can have, and sizes that cost time: each ends in one line, and soon."""

import json
import os
import pathlib
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.errors import CheckpointError

sys.path.append(str(pathlib.Path(__file__).parents[1] / "golden"))
from logit_cases import CASES, write

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    write(directory, CASES["llama-default"])
    return directory


def copy(llama, directory, *, weights=True):
    (directory / "config.json").write_bytes((llama / "config.json").read_bytes())
    if weights:
        (directory / WHOLE).write_bytes((llama / WHOLE).read_bytes())
    return directory


@pytest.mark.parametrize("name", [WHOLE, INDEX, "config.json", "shard.safetensors", "model.bin"])
def test_a_fifo_is_not_waited_for(name, llama, tmp_path):
    copy(llama, tmp_path, weights=False)
    path = tmp_path
    if name == "config.json":
        (tmp_path / name).unlink()
    if name == "shard.safetensors":
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    if name == "model.bin":
        path = tmp_path / name
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value).isprintable()
    assert name == "config.json" or "is a FIFO, not a regular file" in str(caught.value)


@pytest.mark.parametrize("name", [WHOLE, "model.bin"])
def test_a_device_is_not_read(name, llama, tmp_path):
    copy(llama, tmp_path, weights=False)
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="is a character device, not a regular file"):
        load_checkpoint(tmp_path / name if name == "model.bin" else tmp_path)


@given(
    stem=st.one_of(
        st.text(max_size=40),
        st.builds(str.__mul__, st.sampled_from("xé\n "), st.integers(1, 5000)),
        st.sampled_from(["a\0b", "\ud800", "../a", ".", "-", "~", "\u202e", "x" * 243, "x" * 244, "x" * 10**6]),
    ),
    suffix=st.sampled_from([".safetensors", "", ".bin"]),
)
@settings(deadline=None, max_examples=80)
def test_a_shard_of_any_name_is_an_error_of_one_line(llama, stem, suffix):
    with tempfile.TemporaryDirectory() as folder:
        directory = copy(llama, pathlib.Path(folder), weights=False)
        (directory / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": stem + suffix}}))
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(directory)
        message = str(caught.value)
        assert message.isprintable()
        assert len(message) < 1000
        assert f"{directory / INDEX}: names " in message


def deep(directory: pathlib.Path, layers: int) -> pathlib.Path:
    """Writes a Llama of `layers` layers and nine tensors a layer."""
    D, V = 4, 8
    tensors = {"model.embed_tokens.weight": (V, D), "lm_head.weight": (V, D), "model.norm.weight": (D,)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        tensors |= {f"{at}self_attn.{x}_proj.weight": (D, D) for x in "qkvo"}
        tensors |= {f"{at}mlp.{x}_proj.weight": (D, D) for x in ("gate", "up", "down")}
        tensors |= {f"{at}{x}_layernorm.weight": (D,) for x in ("input", "post_attention")}
    directory.mkdir(exist_ok=True)
    save_file({name: np.ones(shape, np.float32) for name, shape in tensors.items()}, directory / WHOLE)
    config = {"model_type": "llama", "vocab_size": V, "hidden_size": D, "intermediate_size": D}
    config |= {"num_hidden_layers": layers, "num_attention_heads": 2, "rms_norm_eps": 1e-5}
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    return directory


def calls_of_loading(directory: pathlib.Path) -> int:
    """Returns how many Python functions are called: unlike a time, the same on a busy machine."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        load_checkpoint(directory)
    finally:
        sys.setprofile(None)
    return calls


def test_loading_takes_work_in_proportion_to_the_tensors(tmp_path):
    load_checkpoint(deep(tmp_path / "warm", 2))
    few, many = (calls_of_loading(deep(tmp_path / str(layers), layers)) for layers in (20, 80))
    assert many < 5 * few


@pytest.mark.parametrize("layers", [10**5, 10**6])
def test_layers_without_weights_are_not_made(layers, llama, tmp_path, monkeypatch):
    directory = copy(llama, tmp_path)
    config = json.loads((directory / "config.json").read_text()) | {"num_hidden_layers": layers}
    for key in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads"):
        config[key] = 1
    config["head_dim"] = 2
    (directory / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("rope_jax.checkpoints.weights.abstract_decoder", None)
    with pytest.raises((CheckpointError, ValueError), match=r"is missing from its weights|num_hidden_layers"):
        load_checkpoint(directory, max_bytes=2**40)


def test_a_name_of_a_tensor_may_be_as_long_as_it_likes(llama, tmp_path):
    directory = copy(llama, tmp_path)
    tensors = load_file(directory / WHOLE)
    tensors["x" * 10**5 + "\n"] = np.ones(1, np.float32)
    save_file(tensors, directory / WHOLE)
    with pytest.raises(CheckpointError, match="belongs to nothing in the config's model") as caught:
        load_checkpoint(directory)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
