"""A GGUF file and a directory of the same model are one checkpoint: the same weights and the same positions."""

import pathlib
import sys

import gguf
import jax
import numpy as np
import pytest
from flax import nnx

from rope_jax.checkpoints.checkpoint import schemes_of
from rope_jax.checkpoints.dialects import read_config, read_positions
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.errors import CheckpointError, InputError, RopeJaxError, UnsupportedError

sys.path.append(str(pathlib.Path(__file__).parents[1] / "golden"))
from gguf_models import write_gguf
from logit_cases import CASES, GEMMAS, random_weights, write

# Without dynamic scaling and those variants of YaRN that GGUF has no key for.
_ROPES = ("default", "linear", "yarn", "yarn_betas", "llama3", "longrope", "longrope_attention_factor")
SAME = {
    **{f"llama-{rope}": CASES[f"llama-{rope}"] for rope in _ROPES},
    **{f"{model}-{rope}": CASES[f"{model}-{rope}"] for model in ("qwen2", "qwen3") for rope in ("default", "yarn")},
    **{name: CASES[name] for name in ("llama-biases", "llama-tied", "llama-default-heads", "mistral-window")},
    # No key of these files scales attention: it follows from the head.
    **{name: {**config, "query_pre_attn_scalar": 16} for name, config in GEMMAS.items() if name != "gemma"},
    "gemma": GEMMAS["gemma"],
}


def parameters(checkpoint):
    leaves, _ = jax.tree_util.tree_flatten_with_path(nnx.state(checkpoint.model))
    return {jax.tree_util.keystr(keys): np.asarray(leaf) for keys, leaf in leaves}


def schemes(checkpoint, length):
    found = schemes_of(checkpoint, length=length)
    return found if isinstance(found, dict) else dict.fromkeys(checkpoint.config.layer_types, found)


@pytest.mark.parametrize("case", SAME)
def test_the_same_weights_and_the_same_positions(case, tmp_path):
    tensors = random_weights(SAME[case])
    write(tmp_path, SAME[case], tensors)
    theirs = load_checkpoint(tmp_path)
    ours = load_checkpoint(write_gguf(tmp_path / "model.gguf", SAME[case], tensors))
    assert ours.config == theirs.config
    assert ours.layout == theirs.layout == "half"
    expected, found = parameters(theirs), parameters(ours)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    for length in (1, 64, 65, 400):
        one, other = schemes(theirs, length), schemes(ours, length)
        assert one.keys() == other.keys()
        for name in one:
            for a, b in zip(jax.tree.leaves(one[name]), jax.tree.leaves(other[name]), strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-9)
    assert ours.positions.declared_length == theirs.positions.declared_length
    assert ours.positions.original_length == theirs.positions.original_length


def test_every_value_is_reported_with_its_key(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", CASES["llama-yarn"], random_weights(CASES["llama-yarn"]))
    values = read_positions(path).values
    assert values["factor"].source == "llama.rope.scaling.factor"
    assert values["rope_theta"].source == "llama.rope.freq_base"
    assert values["beta_fast"].source == "default of llama.cpp"
    config = read_config(path)
    assert config["rope_scaling"]["rope_type"] == "yarn"
    assert config["model_type"] == "llama"


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_quantised_weights_are_what_the_package_dequantises(kind, tmp_path):
    config = {**CASES["llama-default"], "intermediate_size": 64}
    tensors = random_weights(config)
    found = parameters(load_checkpoint(write_gguf(tmp_path / "m.gguf", config, tensors, kind=kind)))
    name = next(name for name in found if "blocks" in name and "['up']['kernel']" in name and "[0]" in name)
    wanted = gguf.GGMLQuantizationType[kind]
    expected = gguf.dequantize(gguf.quantize(tensors["model.layers.0.mlp.up_proj.weight"], wanted), wanted)
    assert found[name].dtype.name == {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")
    np.testing.assert_array_equal(found[name].astype(np.float32), expected.T)


def test_quantised_weights_come_in_the_dtype_that_is_asked_for(tmp_path):
    config = {**CASES["llama-default"], "intermediate_size": 64}
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), kind="Q8_0")
    dtypes = {value.dtype.name for value in parameters(load_checkpoint(path, dtype="bfloat16")).values()}
    assert dtypes == {"bfloat16", "float32"}  # norms are stored as they are


# What may stand in metadata -> a part of the error it leads to.
REFUSED = {
    "rope.new_key": (("add_uint32", 3), "is about positions and not understood"),
    "attention.new_key": (("add_uint32", 3), "is about positions and not understood"),
    "rope.scaling.type": (("add_string", "spiral"), "unknown, known are none, linear, yarn, longrope"),
    "rope.scaling.alpha": (("add_float32", 1000.0), "fixed alpha"),
    "rope.scaling.yarn_ext_factor": (("add_float32", 0.5), "is about positions"),
    "rope.dimension_sections": (("add_array", [8, 0, 0, 0]), "positions of several axes"),
    "rope.dimension_count_swa": (("add_uint32", 8), "differs from rope.dimension_count"),
    "rope.freq_base_swa": (("add_float32", 77.0), "not read for architecture 'llama'"),
    "rope.scale_linear": (("add_string", "2"), "must be a number"),
    "attention.max_alibi_bias": (("add_float32", 8.0), "ALiBi beside rotary embeddings"),
    "attention.relative_buckets_count": (("add_uint32", 32), "is about positions"),
    "attention.temperature_scale": (("add_float32", 0.1), "attention temperature"),
    "attention.scale": (("add_float32", 0.9), "another scale than 1"),
    "attention.causal": (("add_bool", False), "bidirectional"),
    "attention.sliding_window_pattern": (("add_string", "LLG"), "must be a whole number"),
    "attention.key_length_swa": (("add_uint32", 8), "differs from the dimensions of a key"),
    "attention.clamp_kqv": (("add_float32", 8.0), "is about positions"),
    "residual_scale": (("add_float32", 0.5), "not understood, and it may change"),
    "expert_count": (("add_uint32", 8), "mixtral"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_is_not_understood_is_an_error_by_name(key, tmp_path):
    (method, value), message = REFUSED[key]
    config = CASES["llama-default"]

    def change(writer, prefix):
        getattr(writer, method)(f"{prefix}.{key}", value)

    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), change=change)
    with pytest.raises(RopeJaxError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert f"llama.{key}" in str(caught.value) or key in ("expert_count", "attention.sliding_window_pattern")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("architecture", "error"),
    [("mamba", "'mamba' is not read"), ("t5", "model_type 't5' has no decoder"), ("mpt", "model_type 'mpt' has no")],
)
def test_an_architecture_that_no_decoder_runs_is_named(architecture, error, tmp_path):
    config = {**CASES["llama-default"], "model_type": architecture}

    def change(writer, prefix):
        if prefix == "t5":
            writer.add_relative_attn_buckets_count(32)
        if prefix == "mpt":
            writer.add_max_alibi_bias(8.0)

    tensors = {"model.norm.weight": np.ones(32, np.float32)}
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for add, value in (
        (writer.add_block_count, 2),
        (writer.add_context_length, 64),
        (writer.add_embedding_length, 32),
        (writer.add_head_count, 4),
    ):
        add(value)
    change(writer, architecture)
    writer.add_tensor("output_norm.weight", tensors["model.norm.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match=error):
        load_checkpoint(path)
    if architecture != "mamba":
        group = read_positions(path).groups[0]
        assert group.bias is not None
        assert group.bias.kind == {"t5": "t5", "mpt": "alibi"}[architecture]
    assert config["model_type"] == architecture


def test_frequency_factors_divide(tmp_path):
    config = CASES["llama-default"]
    factors = np.array([1, 1, 2, 3, 5, 8, 13, 21], np.float32)
    tensors = random_weights(config)
    plain = load_checkpoint(write_gguf(tmp_path / "plain.gguf", config, tensors))
    path = write_gguf(tmp_path / "m.gguf", config, tensors, extra={"rope_freqs.weight": factors})
    divided = load_checkpoint(path)
    before, after = (schemes_of(one, length=64).inverse_frequencies for one in (plain, divided))
    np.testing.assert_allclose(after, before / factors, rtol=1e-6)
    assert any("not Llama 3's rule" in finding for finding in divided.positions.findings)


@pytest.mark.parametrize(
    ("factor", "low", "high", "length", "base", "dim"),
    [(8.0, 1.0, 4.0, 8192, 5e5, 128), (32.0, 1.0, 4.0, 8192, 5e5, 64), (4.0, 2.0, 6.0, 4096, 1e4, 128)],
)
def test_llama3s_hyperparameters_are_recovered(factor, low, high, length, base, dim):
    from rope_jax.checkpoints.gguf_scaling import llama3_of
    from rope_jax.frequencies import inverse_frequencies, rotary
    from rope_jax.scaling import llama3

    rule = llama3(factor=factor, original_length=length, low_freq_factor=low, high_freq_factor=high)
    theta = inverse_frequencies(dim, base=base)
    divisors = (theta / rule(rotary(dim, base=base, original_length=length)).inverse_frequencies).astype(np.float32)
    found = llama3_of(divisors.astype(np.float64), theta)
    assert found is not None
    assert found["factor"] == factor
    assert found["low_freq_factor"] == 1
    assert found["high_freq_factor"] == pytest.approx(high / low, abs=1e-2)
    assert found["original_max_position_embeddings"] == pytest.approx(length / low, abs=1)
    known = llama3_of(divisors.astype(np.float64), theta, original_length=length)
    assert known is not None
    assert known["low_freq_factor"] == pytest.approx(low, abs=1e-2)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_tensors_are_exactly_those_of_the_metadata(change, tmp_path):
    config = CASES["llama-default"]
    tensors = random_weights(config)
    if change == "missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    if change == "shape":
        tensors["model.layers.1.mlp.up_proj.weight"] = np.ones((7, 32), np.float32)
    extra = {"blk.0.attn_sinks.weight": np.ones(4)} if change == "extra" else None
    path = write_gguf(tmp_path / "m.gguf", config, tensors, extra=extra)
    with pytest.raises(CheckpointError, match="blk.0.attn_sinks" if change == "extra" else "blk.1.ffn_up.weight"):
        load_checkpoint(path)


def test_a_value_that_is_not_finite_is_found(tmp_path):
    config = CASES["llama-default"]
    tensors = random_weights(config)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    with pytest.raises(CheckpointError, match=r"blk.1.ffn_up.weight' holds 1 values that are not finite"):
        load_checkpoint(write_gguf(tmp_path / "m.gguf", config, tensors))


def test_weights_that_do_not_fit_are_not_read(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", CASES["llama-default"], random_weights(CASES["llama-default"]))
    with pytest.raises(CheckpointError, match="allowed by max_bytes"):
        load_checkpoint(path, max_bytes=10_000)


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf", CASES["llama-default"], random_weights(CASES["llama-default"]))
    monkeypatch.setitem(sys.modules, "gguf", None)
    for read in (load_checkpoint, read_positions, read_config):
        with pytest.raises(InputError, match=r"pip install 'rope_jax\[gguf\]'"):
            read(path)


def test_pairs_are_known_for_the_packages_architectures():
    from rope_jax.checkpoints.gguf_layouts import ARCHITECTURES, pair_layout

    names = set(gguf.MODEL_ARCH_NAMES.values())
    assert set(ARCHITECTURES) <= names
    assert {name for name in ARCHITECTURES if pair_layout(name) == "interleaved"} == {"llama"}
    known = 0
    for name in names:
        try:
            known += pair_layout(name) in ("half", "interleaved", None)
        except KeyError:
            continue
    assert known >= 100
    assert issubclass(InputError, RopeJaxError)
