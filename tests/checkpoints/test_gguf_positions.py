"""Positions of architectures that no decoder runs: the same from a GGUF file as from the model's config.json."""

import dataclasses

import gguf
import numpy as np
import pytest

from rope_jax.checkpoints.dialects import positions_of, read_positions
from rope_jax.length_rules import LengthRule
from rope_jax.rules import Rule

_HEADS = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 8}
_FACTORS = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.1, 4.0]
SLIDING, FULL = "sliding_attention", "full_attention"

# Architecture -> the keys beside the shapes, tensors, and the model's own config.json.
CASES = {
    "phi3": (
        {
            "rope.dimension_count": 16,
            "rope.freq_base": 10000.0,
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": float(np.float32(np.sqrt(1 + np.log(4) / np.log(64)))),
        },
        {"rope_factors_short.weight": _FACTORS, "rope_factors_long.weight": _FACTORS[::-1]},
        {
            "model_type": "phi3",
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 64,
            "rope_scaling": {"type": "longrope", "short_factor": _FACTORS, "long_factor": _FACTORS[::-1]},
        },
    ),
    "gptneox": (
        {"rope.dimension_count": 4},
        {},
        {"model_type": "gpt_neox", "max_position_embeddings": 256, "rotary_pct": 0.25, "rotary_emb_base": 10000},
    ),
    "stablelm": (
        {"rope.dimension_count": 4, "rope.freq_base": 10000.0, "use_parallel_residual": False},
        {},
        {"model_type": "stablelm", "max_position_embeddings": 256, "partial_rotary_factor": 0.25, "rope_theta": 1e4},
    ),
    "gpt-oss": (
        {
            "rope.freq_base": 150000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
            "attention.sliding_window": 16,
            "expert_count": 4,
            "expert_used_count": 2,
        },
        {},
        {
            "model_type": "gpt_oss",
            "max_position_embeddings": 256,
            "rope_theta": 150000.0,
            "sliding_window": 16,
            "layer_types": [SLIDING, FULL] * 2,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "olmo2": (
        {
            "rope.freq_base": 500000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": [True, True, True, False],
        },
        {},
        {
            "model_type": "olmo3",
            "max_position_embeddings": 256,
            "rope_theta": 500000.0,
            "sliding_window": 16,
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        },
    ),
    "gemma3": (
        {
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": 2,
        },
        {},
        {
            "model_type": "gemma3_text",
            "max_position_embeddings": 256,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "sliding_window": 16,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 16,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "bloom": ({}, {}, {"model_type": "bloom", "max_position_embeddings": 256}),
    "mpt": (
        {"attention.max_alibi_bias": 8.0},
        {},
        {"model_type": "mpt", "max_seq_len": 256, "attn_config": {"alibi": True}},
    ),
    "t5": (
        {"attention.relative_buckets_count": 32, "decoder_start_token_id": 0},
        {},
        {
            "model_type": "t5",
            "n_positions": 256,
            "num_layers": 4,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
        },
    ),
}


def write(path, architecture, keys, tensors=()):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(4)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(f"{architecture}.{key}", value)
    for name, value in dict(tensors).items():
        writer.add_tensor(name, np.asarray(value, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def frequencies(group, length):
    if group.rotary is None:
        return np.zeros(0), 1.0, 1.0
    assert isinstance(group.rule, Rule | LengthRule)
    rule = group.rule.at(length) if isinstance(group.rule, LengthRule) else group.rule
    rotary = rule(group.rotary)
    return rotary.inverse_frequencies, rotary.cos_sin_factor, rotary.logit_scale


@pytest.mark.parametrize("architecture", CASES)
def test_the_same_positions_as_from_the_config(architecture, tmp_path):
    keys, tensors, config = CASES[architecture]
    found = read_positions(write(tmp_path / "m.gguf", architecture, keys, tensors))
    theirs = positions_of({"num_hidden_layers": 4, **_HEADS, **config}, origin="config.json")
    if architecture == "t5":
        theirs = positions_of({**_HEADS, **config}, origin="config.json")
    assert found.model_type == theirs.model_type
    assert len(found.groups) == len(theirs.groups)
    for ours, other in zip(found.groups, theirs.groups, strict=True):
        for length in (1, 65, 256):
            for a, b in zip(frequencies(ours, length), frequencies(other, length), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)
        same = {"rotary": None, "rule": other.rule}
        assert dataclasses.replace(ours, **same) == dataclasses.replace(other, **same)
    assert (found.original_length, found.declared_length) == (theirs.original_length, theirs.declared_length)


def scale_of(path):
    from rope_jax.checkpoints.dialects import read_config

    return read_config(path)["query_pre_attn_scalar"]


def test_the_27b_gemmas_scale_attention_by_their_width(tmp_path):
    for architecture, layers, scalar in (
        ("gemma3", 62, 32),
        ("gemma3", 34, 16),
        ("gemma2", 46, 32),
        ("gemma2", 26, 16),
    ):
        path = tmp_path / f"{architecture}{layers}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_block_count(layers)
        writer.add_context_length(256)
        writer.add_embedding_length(128)
        writer.add_head_count(4)
        writer.add_key_length(16)
        writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert scale_of(path) == scalar


def test_a_llama_with_a_window_is_a_mistral_and_llama_cpp_is_said_to_differ(tmp_path):
    keys = {"rope.dimension_count": 16, "attention.sliding_window": 16}
    found = read_positions(write(tmp_path / "m.gguf", "llama", keys))
    assert found.model_type == "mistral"
    assert found.groups[0].window == 16
    assert any("llama.cpp sees all tokens" in finding for finding in found.findings)


def test_a_stored_yarn_attention_factor_has_no_effect_and_is_found(tmp_path):
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
    plain = read_positions(write(tmp_path / "a.gguf", "llama", keys))
    stored = read_positions(write(tmp_path / "b.gguf", "llama", {**keys, "rope.scaling.yarn_attn_factor": 0.5}))
    for one in (plain, stored):
        assert frequencies(one.groups[0], 64)[1] == pytest.approx(0.1 * np.log(4) + 1)
    assert any("overwritten by llama.cpp" in finding for finding in stored.findings)
