"""What is written is read back by this library's own reader, and every key that is not about positions stays."""

import copy
import json
import math

import numpy as np
import pytest

from rope_jax import scaling
from rope_jax.checkpoints.dialects import positions_of
from rope_jax.checkpoints.exporting import PEER_NAMES, export_config, wanted_scaling
from rope_jax.checkpoints.extending import trained_length
from rope_jax.checkpoints.presets import preset
from rope_jax.checkpoints.reading_back import largest_difference
from rope_jax.errors import ScalingError, UnsupportedError
from rope_jax.frequencies import base_multiplier, inverse_frequencies
from rope_jax.rules import Rule
from rope_jax.scaling.registry import SCALINGS

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "vocab_size": 99,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}
L, TARGET = 4096, 32768
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
FACTORS = np.linspace(1.0, 8.0, 32).tolist()


def export(config, rule, *, peer="transformers", target=TARGET, trained=None, compose=False):
    """Returns the export, checked: it reads back as the rule, and nothing that is not about positions was touched."""
    before = copy.deepcopy(config)
    positions = positions_of(config, origin="test.json")
    trained = trained_length(positions) if trained is None else trained
    wanted = wanted_scaling(positions, rule, trained_length=trained, target_length=target, compose=compose)
    exported = export_config(config, positions, wanted, peer=peer)
    assert config == before, "a config is read, not changed"
    written = json.loads(json.dumps(exported.config, allow_nan=False))
    after = positions_of(written, origin="written.json")
    lengths = (1, trained, trained + 1, target)
    assert largest_difference(positions, wanted, after, lengths=lengths) < 1e-12
    for key in ("architectures", "vocab_size", "torch_dtype", "hidden_size"):
        assert exported.config.get(key) == config.get(key)
    return exported, after


@pytest.mark.parametrize("peer", PEER_NAMES)
@pytest.mark.parametrize("name", [name for name in SCALINGS if name not in ("dynamic_ntk", "no_rotation")])
def test_every_scaling_reads_back(name, peer):
    exported, after = export(LLAMA, name, peer=peer)
    assert exported.config["rope_theta"] == exported.section["rope_theta"]
    old = exported.config["rope_scaling"]
    if exported.section["rope_type"] == "default":
        assert old is None
    else:
        assert {**old, "rope_theta": exported.section["rope_theta"]} == exported.section
    assert after.declared_length == TARGET


@pytest.mark.parametrize(
    ("name", "rope_type"),
    [("none", "default"), ("linear", "linear"), ("by_parts", "llama3"), ("yarn", "yarn"), ("llama3", "llama3")],
)
def test_native_rope_types(name, rope_type):
    exported, _ = export(LLAMA, name)
    assert exported.section["rope_type"] == rope_type
    assert exported.config["max_position_embeddings"] == (L if name == "linear" else TARGET)
    assert exported.section.get("original_max_position_embeddings", L) == L


def test_yarn_states_its_attention_factor():
    section = export(LLAMA, "yarn")[0].section
    assert section["attention_factor"] == pytest.approx(0.1 * math.log(8) + 1, rel=1e-15)
    untruncated = scaling.yarn(factor=8.0, original_length=L, truncate=False, attention_factor=0.9)
    section = export(LLAMA, untruncated)[0].section
    assert (section["truncate"], section["attention_factor"]) == (False, 0.9)


@pytest.mark.parametrize("other", [{"attention_factor": 0.9}, {"mscale": 1.0, "mscale_all_dim": 0.8}])
def test_yarn_with_another_factor_is_a_list_for_vllm(other):
    rule = scaling.yarn(factor=8.0, original_length=L, **other)
    exported, _ = export(LLAMA, rule, peer="vllm")
    factor = other.get("attention_factor", scaling.yarn_mscale(8.0, 1.0) / scaling.yarn_mscale(8.0, 0.8))
    assert exported.section["rope_type"] == "longrope"
    assert exported.section["short_mscale"] == exported.section["long_mscale"] == pytest.approx(factor, rel=1e-12)
    with pytest.raises(UnsupportedError, match="interleaved"):
        export({**LLAMA, "model_type": "glm"}, rule, peer="vllm")


def test_base_scaling_is_another_base():
    for config, where in ((LLAMA, "rope_theta"), ({**LLAMA, "model_type": "gpt_neox"}, "rope_theta")):
        exported, _ = export(config, scaling.ntk(multiplier=4.0))
        assert exported.section["rope_type"] == "default"
        assert exported.config[where] == pytest.approx(40000.0)
    neox = {**LLAMA, "model_type": "gpt_neox", "rotary_emb_base": 10000, "rotary_pct": 0.25}
    del neox["rope_theta"]
    exported, _ = export(neox, "ntk")
    assert exported.config["rotary_emb_base"] == pytest.approx(10000 * base_multiplier(16, factor=8.0))
    assert exported.section["partial_rotary_factor"] == 0.25


def test_any_other_map_is_a_list_of_factors():
    exported, after = export(LLAMA, scaling.per_pair(factors=FACTORS, attention_factor=1.1), peer="vllm")
    section = exported.section
    assert section["rope_type"] == "longrope"
    assert section["short_factor"] == section["long_factor"] == pytest.approx(FACTORS, rel=1e-15)
    assert section["attention_factor"] == section["short_mscale"] == section["long_mscale"] == 1.1
    assert exported.config["original_max_position_embeddings"] == section["original_max_position_embeddings"] == L
    assert (after.original_length, after.declared_length) == (L, TARGET)
    assert "short_mscale" not in export(LLAMA, scaling.per_pair(factors=FACTORS))[0].section
    own = Rule("mine", lambda r: scaling.resonance()(scaling.linear(factor=3.0)(r)))
    section = export(LLAMA, own)[0].section
    turned = inverse_frequencies(64, base=10000.0) / np.array(section["long_factor"])
    wavelengths = 2 * np.pi / turned
    np.testing.assert_allclose(wavelengths, np.round(wavelengths), rtol=1e-12)
    # A step where transformers would divide by zero.
    step = scaling.llama3(factor=8.0, original_length=L, low_freq_factor=2.0, high_freq_factor=2.0)
    assert export(LLAMA, step)[0].section["rope_type"] == "longrope"


def test_dynamic_keeps_the_trained_length_and_is_not_for_vllm():
    exported, after = export(LLAMA, "dynamic_ntk")
    assert exported.section == {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0}
    assert exported.config["max_position_embeddings"] == L
    assert after.groups[0].rule.at(8 * L)(after.groups[0].rotary).base == pytest.approx(
        10000 * base_multiplier(64, factor=8.0)
    )
    with pytest.raises(UnsupportedError, match="cannot be exported to vllm"):
        export(LLAMA, "dynamic_ntk", peer="vllm")


@pytest.mark.parametrize("target", [4097, 5003, 12289, 30001, 99991])
@pytest.mark.parametrize("trained", [1000, 4096, 3001])
@pytest.mark.parametrize("name", ["linear", "yarn"])
def test_rounding_takes_no_token_away(name, trained, target):
    exported, after = export({**LLAMA, "max_position_embeddings": trained}, name, peer="vllm", target=target)
    original = exported.section.get("original_max_position_embeddings", exported.config["max_position_embeddings"])
    assert original == trained
    assert int(original * exported.section["factor"]) == target
    assert after.declared_length == target


def test_a_new_scaling_takes_the_place_of_a_declared_one():
    declared = {**LLAMA, "rope_scaling": LLAMA3}  # 512 tokens, extended to 4096
    for name in ("yarn", "ntk", "by_parts", "llama3", "linear", "yarn_map"):
        exported, after = export(declared, name)
        fresh, alike = export({**LLAMA, "max_position_embeddings": 512}, name)
        for one, other in zip(after.groups, alike.groups, strict=True):
            np.testing.assert_array_equal(
                one.rule(one.rotary).inverse_frequencies
                if isinstance(one.rule, Rule)
                else one.rule.at(TARGET)(one.rotary).inverse_frequencies,
                other.rule(other.rotary).inverse_frequencies
                if isinstance(other.rule, Rule)
                else other.rule.at(TARGET)(other.rotary).inverse_frequencies,
            )
        assert exported.section == fresh.section
    assert export(declared, "yarn")[0].section["factor"] == TARGET / 512
    assert export(declared, "dynamic_ntk")[1].original_length == 512
    kept, _ = export(declared, "none")
    assert {key: kept.section[key] for key in LLAMA3} == LLAMA3


def test_a_composed_scaling_stacks_on_the_declared_one_where_rules_allow():
    declared = {**LLAMA, "rope_scaling": LLAMA3}
    exported, after = export(declared, "linear", compose=True)
    group = positions_of(declared, origin="test.json").groups[0]
    trained = group.rule(group.rotary).inverse_frequencies
    np.testing.assert_allclose(after.groups[0].rule.at(1)(group.rotary).inverse_frequencies, trained / 8, rtol=1e-14)
    assert exported.section["rope_type"] == "longrope"
    assert exported.section["original_max_position_embeddings"] == L  # up to which it was trained with llama3
    again, _ = export(exported.config, "linear", target=2 * TARGET, compose=True)
    assert again.section["long_factor"] == pytest.approx([2 * f for f in exported.section["long_factor"]])


def test_yarn_is_yarn_and_its_map_alone_has_no_temperature():
    yarn, yarn_map = (export(LLAMA, name, peer="vllm")[0].section for name in ("yarn", "yarn_map"))
    assert yarn["attention_factor"] == pytest.approx(0.1 * math.log(8) + 1, rel=1e-15)
    assert yarn_map["attention_factor"] == yarn_map["short_mscale"] == yarn_map["long_mscale"] == 1
    group = positions_of(export(LLAMA, "yarn")[0].config, origin="yarn.json").groups[0]
    trained = inverse_frequencies(64, base=10000.0)
    np.testing.assert_allclose(trained / yarn_map["long_factor"], group.rule(group.rotary).inverse_frequencies)


@pytest.mark.parametrize("name", ["yarn", "ntk", "by_parts", "llama3", "dynamic_ntk"])
def test_what_has_no_single_meaning_on_top_is_refused(name):
    with pytest.raises(ScalingError, match=r"test\.json declares llama3"):
        export({**LLAMA, "rope_scaling": LLAMA3}, name, compose=True)


def test_rules_by_length_take_nothing_on_top():
    for rope in (
        {"rope_type": "dynamic", "factor": 2.0},
        {
            "rope_type": "longrope",
            "original_max_position_embeddings": 512,
            "short_factor": [1.0] * 32,
            "long_factor": FACTORS,
        },
    ):
        config = {**LLAMA, "rope_scaling": rope}
        with pytest.raises(ScalingError, match="depend on the length"):
            export(config, "linear", compose=True)
        assert export(config, "linear")[0].section["rope_type"] == "linear"
        kept, _ = export(config, "none")
        assert kept.section["rope_type"] == rope["rope_type"]
        with pytest.raises(UnsupportedError, match="cannot be exported to vllm"):
            export(config, "none", peer="vllm")


def test_the_declared_length_is_used_under_every_name():
    config = {**LLAMA, "max_sequence_length": L, "original_max_position_embeddings": 100}
    exported, _ = export(config, "llama3")
    assert exported.config["max_sequence_length"] == exported.config["max_position_embeddings"] == TARGET
    assert exported.config["original_max_position_embeddings"] == L
    assert "original_max_position_embeddings" not in export(config, "ntk")[0].config


def test_a_trained_length_of_ones_own():
    exported, _ = export({**LLAMA, "max_position_embeddings": 131072}, "yarn", trained=8192, target=65536)
    assert exported.section["factor"] == 8.0
    assert exported.section["original_max_position_embeddings"] == 8192
    assert exported.config["max_position_embeddings"] == 65536


def test_schema_of_transformers_5_and_multimodal_wrappers():
    config = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
    del config["rope_theta"]
    exported, _ = export(config, "yarn")
    assert exported.section["partial_rotary_factor"] == exported.config["rope_scaling"]["partial_rotary_factor"] == 0.5
    wrapped = {"model_type": "any", "max_position_embeddings": L, "text_config": LLAMA, "vision_config": {"depth": 3}}
    exported, _ = export(wrapped, "yarn", peer="vllm")
    assert exported.config["vision_config"] == {"depth": 3}
    assert exported.config["max_position_embeddings"] == TARGET
    assert exported.config["text_config"]["rope_parameters"] == exported.section
    assert exported.overrides["text_config"]["rope_parameters"] == exported.section
    mrope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}
    assert export({**LLAMA, "rope_parameters": mrope}, "ntk")[0].section["mrope_section"] == [8, 12, 12]
    with pytest.raises(UnsupportedError, match="mrope_section"):
        export({**LLAMA, "rope_parameters": mrope}, "yarn")


def test_a_section_for_each_layer_type():
    types = ["sliding_attention", "full_attention"] * 2
    nested = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = {**LLAMA, "layer_types": types, "sliding_window": 512, "rope_parameters": nested}
    del config["rope_theta"]
    exported, after = export(config, "yarn")
    assert exported.config["rope_parameters"]["sliding_attention"] == nested["sliding_attention"]
    assert exported.config["rope_parameters"]["full_attention"]["rope_type"] == "yarn"
    assert "rope_scaling" not in exported.config
    assert [group.rule.name for group in after.groups] == ["none", "yarn"]
    flat = {**config, "rope_parameters": nested["full_attention"]}
    with pytest.raises(UnsupportedError, match="full_attention layers cannot be scaled alone"):
        export(flat, "yarn")


def test_models_with_limits_of_their_own():
    phi = {**LLAMA, "model_type": "phi3"}
    for name in ("linear", "yarn", "llama3"):
        assert export(phi, name)[0].section["rope_type"] == "longrope"
    with pytest.raises(UnsupportedError, match="reads no rope type"):
        export(phi, "dynamic_ntk")
    glm = {**LLAMA, "model_type": "glm", "head_dim": 64}
    rule = scaling.per_pair(factors=FACTORS[:16])
    assert export(glm, rule)[0].section["rope_type"] == "longrope"
    with pytest.raises(UnsupportedError, match="interleaved"):
        export(glm, rule, peer="vllm")
    with pytest.raises(UnsupportedError, match="no rotary embedding"):
        export({"model_type": "bloom", "n_layer": 2, "n_head": 4, "hidden_size": 64, "seq_length": 64}, "none")
    with pytest.raises(ScalingError, match="does not rotate"):
        export(LLAMA, Rule("mine", scaling.proportional(proportion=0.5).transform))
    with pytest.raises(ScalingError, match="31 per-pair factors given for 32"):
        export(LLAMA, scaling.per_pair(factors=FACTORS[1:]))


def test_a_difference_is_found():
    positions = positions_of(LLAMA, origin="test.json")
    wanted = wanted_scaling(positions, scaling.linear(factor=8.0), trained_length=L, target_length=TARGET)
    other = positions_of({**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 8.1}}, origin="other.json")
    assert largest_difference(positions, wanted, other, lengths=[1]) == pytest.approx(0.1 / 8.1)
    for changes in (
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 5},
        {"head_dim": 32},
        {"partial_rotary_factor": 0.5},
    ):
        other = positions_of({**LLAMA, **changes}, origin="other.json")
        assert largest_difference(positions, wanted, other, lengths=[1]) == math.inf


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3.1-8b", "mistral-7b-v0.1", "qwen2.5-7b"])
def test_presets(name):
    export(dict(preset(name)), "linear", target=2**20)


def test_real_configs(real):
    read, refused = 0, []
    for file in sorted((real / "configs").glob("*.json")):
        config = json.loads(file.read_text())
        try:
            positions_of(config, origin=file.name)
        except UnsupportedError:
            continue
        for name in ("none", "ntk", "yarn"):
            for peer in ("transformers", "vllm"):
                try:
                    export(config, name, peer=peer, target=2**20)
                    read += 1
                except (UnsupportedError, ScalingError):
                    refused.append((file.stem, name, peer))
    assert read >= 70
    assert ("Qwen3-8B", "yarn", "vllm") not in refused
    assert ("gpt-oss-20b", "none", "transformers") in refused  # windowed layers share the section
