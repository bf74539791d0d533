"""What is written is what is read back, and it appears whole or not at all."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from rope_jax.checkpoints import saving
from rope_jax.checkpoints.checkpoint import schemes_of
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.checkpoints.saving import llama_config, save_llama
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.errors import CheckpointError

CONFIG = {
    "vocab_size": 19, "hidden_size": 12, "intermediate_size": 20, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 6, "rms_norm_eps": 1e-5,
}  # fmt: skip


def decoder_of(**changes) -> Decoder:
    model = Decoder(DecoderConfig(**(CONFIG | changes)), rngs=nnx.Rngs(0))
    # No weight equal to another, norms included, so that none can be taken for another.
    rng = np.random.default_rng(1)
    noise = jax.tree.map(lambda x: x + jnp.asarray(rng.standard_normal(x.shape) * 0.1, x.dtype), nnx.state(model))
    nnx.update(model, noise)
    return model


def written(folder, model, **kwargs):
    save_llama(folder, model, llama_config(model, base=173.5, trained_length=64), **kwargs)
    return load_checkpoint(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_was_saved_is_loaded(tmp_path, tied, dtype):
    model = decoder_of(tie_embeddings=tied)
    loaded = written(tmp_path / "new" / "model", model, dtype=dtype)
    assert loaded.config == model.config
    group = loaded.positions.main_group
    assert loaded.positions.original_length == 64
    np.testing.assert_allclose(group.rotary.inverse_frequencies, 173.5 ** -(np.arange(3) / 3), rtol=1e-12)
    saved, read = (jax.tree_util.tree_leaves_with_path(nnx.state(one)) for one in (model, loaded.model))
    assert len(saved) == len(read) > 0
    for (path, one), (other_path, two) in zip(saved, read, strict=True):
        assert path == other_path
        np.testing.assert_array_equal(np.asarray(one).astype(dtype), np.asarray(two))
        assert two.dtype == dtype


def test_the_loaded_model_gives_the_same_logits(tmp_path):
    model = decoder_of()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 19, (2, 24)), jnp.int32)
    loaded = written(tmp_path, model)
    scheme = schemes_of(loaded)
    before, after = (jax.jit(lambda t, one=one: one(t, scheme))(tokens) for one in (model, loaded.model))
    np.testing.assert_array_equal(before, after)


def test_the_header_says_where_the_weights_are_from(tmp_path):
    written(tmp_path, decoder_of(), metadata={"command": "train --seed=3"})
    with safe_open(str(tmp_path / "model.safetensors"), framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt", "command": "train --seed=3"}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_the_same_model_gives_the_same_bytes(tmp_path):
    hashes = {written(tmp_path / name, decoder_of()).sha256 for name in "ab"}
    assert len(hashes) == 1


@pytest.mark.parametrize("broken", ["write", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, broken):
    model = decoder_of()
    before = written(tmp_path, model).sha256

    def fail(*_):
        raise OSError("disk full")

    other = decoder_of()
    other.embedding[...] = other.embedding[...] + 1
    if broken == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(saving.Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        written(tmp_path, other)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path).sha256 == before


def test_nothing_but_the_two_files_is_left(tmp_path):
    written(tmp_path, decoder_of())
    written(tmp_path, decoder_of())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    "changes",
    [
        {"qkv_bias": True}, {"output_bias": True}, {"mlp_bias": True}, {"qk_norm": True},
        {"windows": (None, 16)},
    ],
)  # fmt: skip
def test_what_a_llama_config_cannot_say_is_refused(changes):
    with pytest.raises(CheckpointError, match="only plain Llama"):
        llama_config(decoder_of(**changes), base=100.0, trained_length=64)


@pytest.mark.parametrize(("value", "dtype"), [(1e5, "float16"), (np.nan, "float32"), (np.inf, "float16")])
def test_weights_that_would_not_load_are_not_written(tmp_path, value, dtype):
    model = decoder_of()
    model.norm.weight[...] = jnp.full_like(model.norm.weight[...], value)
    with pytest.raises(CheckpointError, match=r"norm\.weight.*not finite"):
        written(tmp_path / "model", model, dtype=dtype)
    assert list((tmp_path / "model").glob("*")) == []
