"""The ways in which published configs say one thing: synonyms, values that are off, layers of several kinds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.checkpoints.checkpoint import schemes_of
from rope_jax.checkpoints.dialects import positions_of
from rope_jax.checkpoints.model_types import MODEL_TYPES
from rope_jax.checkpoints.positions import Temperature
from rope_jax.errors import ConfigError, UnsupportedError
from rope_jax.length_rules import at_length

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
COMMON = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 4, "max_position_embeddings": 4096}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 1e6}


def read(model_type, **changes):
    config = {"model_type": model_type, **COMMON, **changes}
    return positions_of({key: value for key, value in config.items() if value is not ...}, origin="test.json")


def refused(model_type, kind=ConfigError, **changes):
    with pytest.raises(kind) as caught:
        read(model_type, **changes)
    assert str(caught.value).isprintable()
    return str(caught.value)


def layers(positions):
    """Returns base, rotary dimensions, window, heads and their width of every layer that has positions."""
    return {
        layer: (
            group.rotary and group.rotary.base,
            group.rotary and group.rotary.dim,
            group.window,
            group.num_heads,
            group.head_dim,
        )
        for group in positions.groups
        for layer in group.layers
    }


def frequencies(positions):
    """Returns the frequencies of the first group that turns."""
    group = next(group for group in positions.groups if group.rotary is not None)
    return at_length(group.rule, 64)(group.rotary).inverse_frequencies


SAID = [
    ("gemma2", {"sliding_window": 64}, {"sliding_window_size": 64}),
    ("gemma2", {"sliding_window": 64}, {"_sliding_window": 64}),
    ("gemma3_text", {"sliding_window": 64, "sliding_window_pattern": 2}, {"_sliding_window_pattern": 2}),
    ("gemma3_text", {"sliding_window": 64, "layer_types": [SLIDING, FULL] * 2}, {"_sliding_window_pattern": 2}),
    ("lfm2", {"layer_types": ["conv", "conv", FULL, "conv"]}, {"full_attn_idxs": [2], "theta": 1e6}),
    ("qwen3_next", {"full_attention_interval": 4}, {"layer_types": [LINEAR] * 3 + [FULL]}),
    ("afmoe", {"global_attn_every_n_layers": 2}, {"layer_types": [SLIDING, FULL] * 2}),
    ("zamba2", {"layers_block_type": ["mamba", "hybrid", "mamba", "mamba"]}, {"hybrid_layer_ids": [1]}),
    ("deepseek_v3", {"qk_nope_head_dim": 32, "qk_rope_head_dim": 32}, {"qk_head_dim": 64, "head_dim": 32}),
    ("llama", {"rope_theta": 1e6, "head_dim": 64}, {"attn_head_dim": 64, "rope_base": 1e6}),
]


@pytest.mark.parametrize(("model_type", "stated", "again"), SAID)
def test_what_is_said_twice_and_agrees_is_said_once(model_type, stated, again):
    once, twice = read(model_type, **stated), read(model_type, **stated, **again)
    assert layers(once) == layers(twice)
    np.testing.assert_array_equal(*map(frequencies, (once, twice)) if model_type != "zamba2" else (0, 0))


@pytest.mark.parametrize(
    ("model_type", "stated"),
    [
        ("gemma2", {"sliding_window": 64, "sliding_window_size": 32}),
        ("gemma3_text", {"sliding_window": 64, "sliding_window_pattern": 2, "_sliding_window_pattern": 3}),
        ("lfm2", {"layer_types": ["conv", "conv", FULL, "conv"], "full_attn_idxs": [1]}),
        ("qwen3_next", {"full_attention_interval": 2, "layer_types": [LINEAR] * 3 + [FULL]}),
        ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "attn_layer_indices": [0]}),
    ],
)
def test_what_contradicts_itself_is_an_error(model_type, stated):
    assert "contradicts" in refused(model_type, **stated)


OFF = ["rope_scaling", "rope_parameters", "sliding_window", "alibi", "attention_chunk_size", "attn_logit_softcapping"]
OFF += [
    "layer_types",
    "no_rope_layers",
    "logn_attn",
    "num_sink_tokens",
    "local_window",
    "max_window_layers",
    "use_mrope",
]
OFF += ["linear_attn_config", "index_topk", "group_size_1", "per_layer_config", "sliding_window_pattern", "rotary_dim"]


@given(off=st.dictionaries(st.sampled_from(OFF), st.sampled_from([None, False, 0])))
@settings(max_examples=150)
def test_off_is_off(off):
    plain, other = read("llama", rope_theta=1e4), read("llama", rope_theta=1e4, **off)
    assert layers(plain) == layers(other)
    assert other.findings == ()


@pytest.mark.parametrize("rope_type", ["yarn", "linear", "llama3", "default"])
def test_streams_of_positions_change_nothing_for_text(rope_type):
    section = {**YARN, "rope_type": rope_type, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    keep = {"default": 0, "linear": 1, "yarn": 2, "llama3": 4}[rope_type]
    names = ["factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"][:keep]
    section = {key: section[key] for key in ("rope_type", "rope_theta", *names)}
    streams = {"mrope_section": [3, 4, 1], "mrope_interleaved": True}
    plain = read("qwen3_5_text", layer_types=[FULL] * 4, rope_parameters=section)
    both = read("qwen3_5_text", layer_types=[FULL] * 4, rope_parameters={**section, **streams, "type": "mrope"})
    np.testing.assert_array_equal(frequencies(plain), frequencies(both))
    assert any("mrope_section" in finding for finding in both.findings)


def test_layers_without_positions_are_in_no_group_and_named():
    kinds = ["conv", FULL, "mamba", "cross_attention"]
    found = read("lfm2", layer_types=kinds)
    assert [group.layers for group in found.groups] == [(1,)]
    for kind in ("conv", "mamba", "cross_attention"):
        assert f"1 of 4 layers are {kind}: they have no positions and are in no group" in found.findings
    assert "no layer has positions" in refused("lfm2", layer_types=["conv"] * 4)
    letters = read("nemotron_h", hybrid_override_pattern="M-*E")
    assert list(layers(letters)) == [2]


def test_every_layer_may_have_its_own():
    theta = read("granite_swa", layer_rope_theta=[0, 1e4, 1e4, 5e5], sliding_window=64)
    assert [layers(theta)[i][0] for i in range(4)] == [None, 1e4, 1e4, 5e5]
    assert [group.name for group in theta.groups] == [FULL, SLIDING, f"{SLIDING}_2"]
    step = read(
        "step3p5",
        head_dim=64,
        rope_theta=[5e6, 1e4, 1e4, 5e6],
        partial_rotary_factors=[0.5, 1.0, 1.0, 0.5],
        layer_types=[FULL, SLIDING, SLIDING, FULL],
        sliding_window=32,
        attention_other_setting={"attention_type": SLIDING, "num_attention_heads": 8, "head_dim": 64},
    )
    assert [layers(step)[i] for i in (0, 1)] == [(5e6, 32, None, 4, 64), (1e4, 64, 32, 8, 64)]
    heads = read("laguna", head_dim=64, num_attention_heads_per_layer=[4, 8, 4, 8])
    assert [layers(heads)[i][3] for i in range(4)] == [4, 8, 4, 8]
    uneven = read("llama", rope_theta=1e4, per_layer_config={"2": {"head_dim": 32}})
    assert [layers(uneven)[i][4] for i in range(4)] == [64, 64, 32, 64]
    assert "must be a list of 4 values" in refused("granite_swa", layer_rope_theta=[1e4])


def test_a_section_that_is_null_is_no_rotation():
    sections = {SLIDING: {"rope_type": "default", "rope_theta": 1e4}, FULL: None}
    found = read("beam", head_dim=64, sliding_window=64, layer_types=[SLIDING, FULL] * 2, rope_parameters=sections)
    assert [layers(found)[i][0] for i in range(4)] == [1e4, None, 1e4, None]
    # Gemma's code fills in what it has for the layer type instead.
    gemma = read(
        "gemma3_text", head_dim=64, sliding_window=64, rope_parameters={FULL: {"rope_theta": 1e6}, SLIDING: None}
    )
    assert layers(gemma)[0][0] == 1e4


@pytest.mark.parametrize("name", [name for name, spec in MODEL_TYPES.items() if spec.rotation == "no full"])
def test_families_with_still_layers_are_never_read_as_turning(name):
    found = read(name, rope_theta=..., sliding_window=64, layer_types=[SLIDING, FULL] * 2)
    assert [layers(found)[i][0] is None for i in range(4)] == [False, True, False, True]
    relative = refused(f"{name}_omni", UnsupportedError, rope_theta=1e4)
    assert f"the family of {name}" in relative or "whose published code leaves layers without rotation" in relative
    by_class = refused("novel", UnsupportedError, rope_theta=1e4, architectures=["SmolLM3ForCausalLM"])
    assert "the family of smollm3" in by_class


def test_attention_without_any_rotation():
    for name in ("jamba", "zamba", "nemotron_h"):
        listed = {"jamba": {"attn_layer_period": 2, "attn_layer_offset": 1}}.get(name, {})
        kinds = {} if listed else {"layers_block_type": ["mamba", "attention"] * 2}
        found = read(name, head_dim=64, **listed, **kinds)
        assert {group.rotary for group in found.groups} == {None}
        assert any("no layer turns" in finding for finding in found.findings)
    asked = {"layer_types": ["mamba", "attention"] * 2, "rope_theta": 1e4}
    assert layers(read("granitemoehybrid", **asked, position_embedding_type="nope"))[1][0] is None
    assert layers(read("granitemoehybrid", **asked, position_embedding_type="rope"))[1][0] == 1e4


def test_alpha_is_another_base():
    section = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "mscale": 1.0}
    found = read("hunyuan_v1_dense", head_dim=128, rope_theta=1e4, rope_scaling=section)
    assert layers(found)[0][0] == pytest.approx(1e4 * 1000 ** (128 / 126))
    assert found.groups[0].rule.name == "none"
    assert any("11158839.93" in finding for finding in found.findings)
    off = read("hunyuan_v1_dense", rope_theta=1e4, rope_scaling={**section, "alpha": 0, "factor": 2.0, "mscale": 0})
    assert off.groups[0].rule.name == "dynamic_ntk"


def test_temperatures_by_position():
    beta = read("ministral3", head_dim=64, rope_parameters={**YARN, "llama_4_scaling_beta": 0.1})
    assert beta.groups[0].temperature == Temperature(0.1, 1024)
    assert any("1 + 0.1 ln(1 + floor(position / 1024))" in finding for finding in beta.findings)
    llama4 = read("llama4_text", attn_temperature_tuning=4, floor_scale=512, attention_chunk_size=64)
    assert [(group.chunked, group.temperature) for group in llama4.groups] == [
        (True, None),
        (False, Temperature(0.1, 512, shift=1)),
    ]
    np.testing.assert_allclose(llama4.groups[1].temperature.at(np.array([510, 511])), [1, 1 + 0.1 * np.log(2)])
    for positions, words in (
        (beta, "attention temperature: layers of type full"),
        (llama4, "chunked attention: layers"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            schemes_of(positions)
    for off in (False, 0, None):
        still = read("llama4_text", attn_temperature_tuning=off, attention_chunk_size=0)
        assert {(group.temperature, group.window) for group in still.groups} == {(None, None)}


def test_towers_are_not_the_text():
    towers = ("vision_config", "audio_encoder_config", "visual", "high_res_vision_config", "depth_decoder_config")
    junk = {"rope_theta": 3, "rope_scaling": {"junk": 1}, "use_bidirectional_attention": True, "window_size": 4}
    plain = read("llama", rope_theta=1e4)
    assert layers(read("llama", rope_theta=1e4, **dict.fromkeys(towers, junk), image_seq_length=576)) == layers(plain)
    inner = {"model_type": "qwen2", **COMMON, "rope_theta": 1e4}
    for path in (("thinker_config", "text_config"), ("llm_config",), ("language_config",)):
        config = inner
        for name in reversed(path):
            config = {name: config, "audio_config": junk}
        assert layers(positions_of({"model_type": "x", **config}, origin="test.json")) == layers(plain)


@pytest.mark.parametrize(
    "name", ["bert", "mamba", "reformer", "deepseek_v4", "mistral_large4", "inkling_text", "xlnet"]
)
def test_refusals_name_the_mechanism(name):
    message = refused(name, UnsupportedError, rope_theta=1e4)
    assert MODEL_TYPES[name].refused in message
    assert f"got '{name}'" in message
