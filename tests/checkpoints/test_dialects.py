"""The configs written here are small; the real ones of `shared/real` are read where they are at hand."""

import copy
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from rope_jax import rules, scaling
from rope_jax.checkpoints.dialects import positions_of, read_config, read_positions
from rope_jax.checkpoints.ledger import looks_positional
from rope_jax.checkpoints.model_types import REFUSED
from rope_jax.checkpoints.positions import BiasSpec
from rope_jax.errors import ConfigError, UnsupportedError

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def llama(**changes):
    config = {**LLAMA, **changes}
    return {key: value for key, value in config.items() if value is not ...}


def read(config):
    before = copy.deepcopy(config)
    positions = positions_of(config, origin="test.json")
    assert config == before, "a config is read, not changed"
    return positions


def frequencies(group):
    rule = group.rule if isinstance(group.rule, rules.Rule) else group.rule.at(10**6)
    return rule(group.rotary)


def refused(config, kind=ConfigError):
    with pytest.raises(kind) as caught:
        read(config)
    message = str(caught.value)
    assert message.startswith("test.json: ")
    assert message.isprintable(), "one line"
    return message


# name: outcome, as (layer type, layers, rule, theta, rotary dim, window) a group, original and declared length
MAIN = "full_attention"
SLIDING = "sliding_attention"
REAL = {
    "DeepSeek-V2-Lite": ([(MAIN, 27, "yarn", 1e4, 64, None)], 4096, 163840),
    "DeepSeek-V3": ([(MAIN, 61, "yarn", 1e4, 64, None)], 4096, 163840),
    "GLM-4.5": ([(MAIN, 92, "none", 1e6, 64, None)], 131072, 131072),
    "Llama-4-Scout-17B-16E-Instruct": (
        [("chunked_attention", 36, "llama3", 5e5, 128, 8192), (MAIN, 12, "llama3", None, None, None)],
        8192,
        10485760,
    ),
    "Meta-Llama-3.1-405B": ([(MAIN, 126, "llama3", 5e5, 128, None)], 8192, 131072),
    "Meta-Llama-3.1-8B": ([(MAIN, 32, "llama3", 5e5, 128, None)], 8192, 131072),
    "MiMo-V2-Flash": ([(MAIN, 9, "none", 5e6, 64, None), (SLIDING, 39, "none", 1e4, 64, 129)], 262144, 262144),
    "Mistral-7B-Instruct-v0.3": ([(MAIN, 32, "none", 1e6, 128, None)], 32768, 32768),
    "Mixtral-8x7B-v0.1": ([(MAIN, 32, "none", 1e6, 128, None)], 32768, 32768),
    "Olmo-3.1-32B-Instruct": ([(SLIDING, 48, "none", 5e5, 128, 4096), (MAIN, 16, "yarn", 5e5, 128, None)], 8192, 65536),
    "Phi-3-vision-128k-instruct_su": ([(MAIN, 32, "longrope", 1e4, 96, None)], 4096, 131072),
    "Qwen2-7B-Instruct": ([(MAIN, 28, "none", 1e6, 128, None)], 32768, 32768),
    "Qwen2.5-7B-Instruct": ([(MAIN, 28, "none", 1e6, 128, None)], 32768, 32768),
    "Qwen3-8B": ([(MAIN, 36, "none", 1e6, 128, None)], 40960, 40960),
    "Qwen3-8B_yarn_override": "fragment",
    "Qwen3.5-27B": ([(MAIN, 16, "none", 1e7, 64, None)], 262144, 262144),
    "bloom-560m": ([(MAIN, 24, "none", None, None, None)], 2048, 2048),
    "falcon-40b": ([(MAIN, 60, "none", 1e4, 64, None)], 2048, 2048),
    "gemma-4-26B-A4B": (
        [(SLIDING, 25, "none", 1e4, 256, 1024), (MAIN, 5, "proportional", 1e6, 512, None)],
        262144,
        262144,
    ),
    "gemma2_2b_it": ([(SLIDING, 13, "none", 1e4, 256, 4096), (MAIN, 13, "none", 1e4, 256, None)], 8192, 8192),
    "gpt-oss-20b": ([(SLIDING, 12, "yarn", 1.5e5, 64, 128), (MAIN, 12, "yarn", 1.5e5, 64, None)], 4096, 131072),
    "maxtext_hf_gemma3_4b_config": (
        [(SLIDING, 29, "none", 1e4, 256, 1024), (MAIN, 5, "linear", 1e4, 256, None)],
        32768,
        163840,
    ),
    "mlc_codellama_7b": ([(MAIN, 32, "none", 1e6, 128, None)], 16384, 16384),
    "mlc_llama2_7b": ([(MAIN, 32, "none", 1e4, 128, None)], 2048, 2048),
    "mlc_minicpm_2b": ([(MAIN, 40, "dynamic_ntk", 1e6, 64, None)], 65536, 262144),
    "mlc_phi-3_5": ([(MAIN, 32, "longrope", 1e4, 96, None)], 4096, 131072),
    "mlc_starcoder2": ([(SLIDING, 32, "none", 1e6, 128, 4096)], 16384, 16384),
    "mpt-7b": ([(MAIN, 32, "none", None, None, None)], 2048, 2048),
    "phi-4-mini-reasoning": ([(MAIN, 32, "longrope", 1e4, 96, None)], 4096, 131072),
    "pythia-410m_seqcls": ([(MAIN, 24, "none", 1e4, 16, None)], 2048, 2048),
    "t5-large": ([(MAIN, 24, "none", None, None, None)], 512, 512),
    "t5-small": ([(MAIN, 6, "none", None, None, None)], 512, 512),
}


class TestRealConfigs:
    @pytest.mark.parametrize("name", sorted(REAL))
    def test_outcome(self, real, name):
        path = real / "configs" / f"{name}.json"
        expected = REAL[name]
        if isinstance(expected, str):
            with pytest.raises(UnsupportedError) as caught:
                read_positions(path)
            assert REFUSED[expected] in str(caught.value)
            assert str(caught.value).isprintable()
            return
        groups, original, declared = expected
        positions = read_positions(path)
        found = [
            (g.name, len(g.layers), g.rule.name, g.rotary and g.rotary.base, g.rotary and g.rotary.dim, g.window)
            for g in positions.groups
        ]
        assert found == groups
        assert (positions.original_length, positions.declared_length) == (original, declared)

    @pytest.mark.parametrize("name", sorted(name for name, outcome in REAL.items() if not isinstance(outcome, str)))
    def test_every_key_about_positions_is_accounted_for(self, real, name):
        path = real / "configs" / f"{name}.json"
        positions, config = read_positions(path), read_config(path)
        sources = {sourced.source for sourced in positions.values.values()}
        prefix = "text_config." if "text_config" in config else ""
        for key, value in config.get("text_config", config).items():
            if not looks_positional(key) or (prefix + key) in sources | set(positions.without_effect):
                continue
            assert isinstance(value, dict), key  # a section: each of its keys was used
            inner = [f"{prefix}{key}.{name}" for name in value]
            assert all(any(source.startswith(path) for source in sources) for path in inner), key

    def test_every_file_is_expected(self, real):
        assert {path.stem for path in (real / "configs").glob("*.json")} == set(REAL)

    def test_published_corrections(self, real):
        def main(name):
            return read_positions(real / "configs" / f"{name}.json").main_group

        assert frequencies(main("Olmo-3.1-32B-Instruct")).cos_sin_factor == pytest.approx(1.2079441541679836)
        lite, v3 = frequencies(main("DeepSeek-V2-Lite")), frequencies(main("DeepSeek-V3"))
        assert lite.cos_sin_factor == v3.cos_sin_factor == 1.0
        assert lite.logit_scale == pytest.approx((0.0707 * math.log(40) + 1) ** 2)
        assert v3.logit_scale == pytest.approx((0.1 * math.log(40) + 1) ** 2)
        assert frequencies(main("mlc_phi-3_5")).cos_sin_factor == pytest.approx(
            math.sqrt(1 + math.log(32) / math.log(4096))
        )
        assert main("gpt-oss-20b").rule.hyperparameters["truncate"] is False
        still = frequencies(main("gemma-4-26B-A4B")).inverse_frequencies
        assert np.count_nonzero(still) == 64
        assert main("DeepSeek-V3").head_dim == 192


class TestSchemas:
    def test_both_schemas_say_the_same(self):
        scaling_v4 = {**YARN, "type": "yarn"}
        del scaling_v4["rope_type"]
        v4 = read(llama(rope_scaling=scaling_v4))
        v5 = read(llama(rope_theta=..., rope_parameters={**YARN, "rope_theta": 10000.0}))
        for positions, source in ((v4, "rope_scaling.factor"), (v5, "rope_parameters.factor")):
            assert positions.values["factor"].source == source
            assert positions.values["factor"].value == 8.0
        np.testing.assert_array_equal(
            frequencies(v4.main_group).inverse_frequencies, frequencies(v5.main_group).inverse_frequencies
        )
        assert v5.values["rope_theta"].source == "rope_parameters.rope_theta"

    def test_unscaled_in_every_spelling(self):
        spellings = [
            {},
            {"rope_scaling": None},
            {"rope_scaling": {}},
            {"rope_parameters": {"rope_type": "default"}},
            {"rope_parameters": {"rope_theta": 10000.0}},
            {"rope_scaling": {"type": "default"}},
            {"rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}},
        ]
        for spelling in spellings:
            positions = read(llama(**spelling))
            assert positions.main_group.rule.name == "none"
            assert positions.original_length == positions.declared_length == 4096

    def test_type_and_rope_type(self):
        assert read(llama(rope_scaling={**YARN, "type": "yarn"})).main_group.rule.name == "yarn"
        assert "contradicts" in refused(llama(rope_scaling={**YARN, "type": "linear"}))
        assert "missing, beside 'factor'" in refused(llama(rope_scaling={"factor": 8.0}))

    def test_two_sections(self):
        both = llama(rope_scaling=YARN, rope_parameters={**YARN, "rope_theta": 10000.0})
        assert any("they agree" in finding for finding in read(both).findings)
        assert "rope_scaling: contradicts" in refused(
            llama(rope_scaling=YARN, rope_parameters={"rope_type": "default"})
        )

    def test_bases_must_agree(self):
        assert "contradicts" in refused(llama(rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
        same = read(llama(rope_parameters={"rope_type": "default", "rope_theta": 10000}))
        assert same.without_effect["rope_theta"] == "repeats rope_parameters.rope_theta"

    def test_a_wrapper_is_descended_into(self):
        inner = llama(torch_dtype=...)
        positions = read({"model_type": "llava", "text_config": inner, "torch_dtype": "float16", "rope_theta": 10000.0})
        assert positions.values["rope_theta"].source == "text_config.rope_theta"
        assert positions.without_effect["rope_theta"] == "repeats text_config.rope_theta"
        assert (positions.model_type, positions.dtype) == ("llama", "float16")
        assert "rope_theta: is about positions" in refused({"text_config": inner, "rope_theta": 1})
        assert "text_config: must be an object" in refused({"model_type": "llama", "text_config": 3})

    def test_towers_are_not_the_text(self):
        positions = read(llama(vision_config={"rope_theta": 100.0, "rope_parameters": {"junk": 1}}))
        assert "vision" in positions.without_effect["vision_config"]


class TestRopeTypes:
    @pytest.mark.parametrize("key", ["factr", "alpha", "beta_fas", "original_max_position_embedding"])
    @pytest.mark.parametrize(
        "section", [YARN, LLAMA3, {"rope_type": "linear", "factor": 2.0}, {"rope_type": "default"}]
    )
    def test_an_unknown_key_is_an_error_with_its_name(self, section, key):
        message = refused(llama(rope_scaling={**section, key: 1.0}))
        assert f"rope_scaling.{key}: not understood for rope type" in message

    def test_an_unknown_type_is_an_error_with_its_name(self):
        message = refused(llama(rope_scaling={"rope_type": "ntk-aware", "factor": 2.0}))
        assert "rope_scaling.rope_type: unknown rope type" in message
        assert "'ntk-aware'" in message

    def test_linear_takes_the_declared_length_for_the_trained_one(self):
        positions = read(llama(rope_scaling={"type": "linear", "factor": 4.0}))
        assert (positions.original_length, positions.declared_length) == (4096, 16384)
        assert positions.values["original_length"].source == "max_position_embeddings"
        assert any("taken for the trained length" in finding for finding in positions.findings)
        stated = {"type": "linear", "factor": 4.0, "original_max_position_embeddings": 1024}
        positions = read(llama(rope_scaling=stated))
        assert (positions.original_length, positions.declared_length, positions.findings) == (1024, 4096, ())

    def test_dynamic(self):
        rule = read(llama(rope_scaling={"type": "dynamic", "factor": 2.0})).main_group.rule
        assert (rule.name, rule.factor, rule.original_length) == ("dynamic_ntk", 2.0, 4096)
        message = refused(llama(rope_scaling={"type": "dynamic", "factor": 1.0, "alpha": 1000.0}), UnsupportedError)
        assert REFUSED["dynamic alpha"] in message

    def test_yarn_defaults_and_options(self):
        plain = read(llama(rope_scaling=YARN))
        assert plain.values["beta_fast"].source == "default of yarn"
        assert frequencies(plain.main_group).cos_sin_factor == pytest.approx(scaling.yarn_mscale(8.0))
        assert read(llama(rope_scaling={**YARN, "factor": None})).values["factor"].source.startswith("derived")
        exact = read(llama(rope_scaling={**YARN, "truncate": False})).main_group.rule
        assert exact.hyperparameters["truncate"] is False
        alone = read(llama(rope_scaling={**YARN, "mscale": 0.7}))
        assert frequencies(alone.main_group).cos_sin_factor == pytest.approx(scaling.yarn_mscale(8.0))
        assert any("one alone" in finding for finding in alone.findings)

    def test_the_two_attention_factors_of_yarn(self):
        replaced = read(llama(rope_scaling={**YARN, "attention_factor": 1.0}))
        assert frequencies(replaced.main_group).cos_sin_factor == 1.0
        assert any("replaces" in finding for finding in replaced.findings)
        multiplied = read(llama(rope_scaling={**YARN, "attn_factor": 2.0}))
        assert frequencies(multiplied.main_group).cos_sin_factor == pytest.approx(2 * scaling.yarn_mscale(8.0))
        assert "state one of them" in refused(llama(rope_scaling={**YARN, "attn_factor": 1.0, "attention_factor": 1.0}))

    def test_factor_and_lengths_that_disagree_are_found(self):
        assert any("disagrees" in finding for finding in read(llama(rope_scaling={**YARN, "factor": 4.0})).findings)
        itself = read(llama(rope_scaling={**YARN, "original_max_position_embeddings": 4096}))
        assert any("the original length itself" in finding for finding in itself.findings)
        stale = read(llama(original_max_position_embeddings=512))
        assert stale.original_length == 4096
        assert stale.without_effect["original_max_position_embeddings"] == "no scaling is declared"

    def test_llama3(self):
        positions = read(llama(rope_scaling=LLAMA3))
        assert positions.original_length == 512
        expected = scaling.llama3(factor=8.0, original_length=512, low_freq_factor=1.0, high_freq_factor=4.0)
        np.testing.assert_array_equal(
            frequencies(positions.main_group).inverse_frequencies,
            expected(positions.main_group.rotary).inverse_frequencies,
        )
        step = read(llama(rope_scaling={**LLAMA3, "high_freq_factor": 1.0}))
        assert any("division by zero" in finding for finding in step.findings)
        for key in LLAMA3:
            assert refused(llama(rope_scaling={k: v for k, v in LLAMA3.items() if k != key}))

    @pytest.mark.parametrize("name", ["longrope", "su"])
    def test_longrope(self, name):
        lists = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
        config = llama(rope_scaling={"type": name, **lists}, original_max_position_embeddings=512)
        positions = read(config)
        assert positions.values["factor"].value == 8.0
        expected = scaling.longrope_factor(factor=8.0, original_length=512)
        assert positions.main_group.rule.attention_factor == pytest.approx(expected)
        config["rope_scaling"]["short_factor"] = [1.0] * 31
        assert "must be a list of 32 values, has 31" in refused(config)

    def test_longrope_factors_per_length(self):
        lists = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32, "original_max_position_embeddings": 512}
        same = llama(rope_scaling={"type": "longrope", **lists, "short_mscale": 1.2, "long_mscale": 1.2})
        assert read(same).main_group.rule.attention_factor == 1.2
        differ = llama(rope_scaling={"type": "longrope", **lists, "short_mscale": 1.0, "long_mscale": 1.2})
        assert REFUSED["length-dependent factor"] in refused(differ, UnsupportedError)

    def test_proportional(self):
        section = {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
        group = read(llama(rope_parameters=section)).main_group
        assert group.rotary.dim == 64
        assert np.count_nonzero(frequencies(group).inverse_frequencies) == 8

    def test_original_length_stated_twice(self):
        assert read(llama(rope_scaling=YARN, original_max_position_embeddings=512)).original_length == 512
        assert "contradicts" in refused(llama(rope_scaling=YARN, original_max_position_embeddings=1024))


class TestHeads:
    def test_explicit_head_dim_wins(self):
        assert read(llama(head_dim=128)).main_group.head_dim == 128
        assert read(llama()).values["head_dim"].source == "derived: hidden_size / num_attention_heads"
        assert "not a multiple" in refused(llama(hidden_size=255))

    def test_partial_rotary(self):
        neox = llama(model_type="gpt_neox", rotary_pct=0.5, rotary_emb_base=10000)
        assert read(neox).main_group.rotary.dim == 32
        assert read({**neox, "rotary_pct": 0.25, "partial_rotary_factor": 0.25}).main_group.rotary.dim == 16
        assert "rotary_pct: contradicts" in refused({**neox, "partial_rotary_factor": 0.25})
        assert "rotary_emb_base: contradicts" in refused({**neox, "rotary_emb_base": 5000})
        assert read(llama(model_type="gpt_neox")).values["partial_rotary_factor"].source == "default of gpt_neox"
        assert "must be an even number" in refused(llama(partial_rotary_factor=0.02))

    def test_the_base_is_never_silently_assumed(self):
        positions = read(llama(rope_theta=...))
        assert positions.values["rope_theta"].source == "default of llama"
        assert any("not stated" in finding for finding in positions.findings)
        assert "rope_theta: missing" in refused(llama(model_type="novel", rope_theta=...))
        assert read(llama(model_type="novel")).main_group.rotary.base == 10000.0

    def test_latent_attention(self):
        config = llama(
            model_type="deepseek_v3",
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            rope_scaling={**YARN, "mscale": 1.0, "mscale_all_dim": 0.8},
        )
        group = read(config).main_group
        assert (group.head_dim, group.rotary.dim) == (192, 64)
        expected = scaling.yarn_mscale(8.0, 0.8)
        assert frequencies(group).logit_scale == pytest.approx(expected**2)
        assert frequencies(group).cos_sin_factor == pytest.approx(scaling.yarn_mscale(8.0) / expected)


class TestLayers:
    def windows(self, config):
        return [(group.name, group.layers, group.window) for group in read(config).groups]

    def test_a_window_for_all_layers(self):
        everyone = (0, 1, 2, 3)
        assert self.windows(llama(model_type="mistral", sliding_window=1024)) == [(SLIDING, everyone, 1024)]
        for off in (None, 4096, 131072):
            assert self.windows(llama(model_type="mistral", sliding_window=off)) == [(MAIN, everyone, None)]
        # Mistral's published default is a window of 4096.
        longer = llama(model_type="mistral", max_position_embeddings=8192)
        assert self.windows(longer) == [(SLIDING, everyone, 4096)]

    def test_qwen_windows(self):
        qwen = llama(model_type="qwen2", sliding_window=1024, max_window_layers=3)
        assert self.windows(qwen) == [(MAIN, (0, 1, 2, 3), None)]
        assert read(qwen).without_effect["max_window_layers"] == "no layer has a window"
        on = {**qwen, "use_sliding_window": True}
        assert self.windows(on) == [(MAIN, (0, 1, 2), None), (SLIDING, (3,), 1024)]

    def test_a_window_of_unknown_layers_is_an_error(self):
        assert "sliding_window: which layers" in refused(llama(model_type="novel", sliding_window=64))
        listed = llama(model_type="novel", sliding_window=64, layer_types=[SLIDING, MAIN] * 2)
        assert self.windows(listed) == [(SLIDING, (0, 2), 64), (MAIN, (1, 3), None)]

    def test_layer_types(self):
        assert "must be a list of 4 values" in refused(llama(layer_types=[MAIN] * 3))
        assert "unknown layer type 'retention'" in refused(llama(layer_types=[MAIN] * 3 + ["retention"]))
        chunked = llama(layer_types=[MAIN] * 3 + ["chunked_attention"])
        assert "attention_chunk_size: missing" in refused(chunked)
        assert REFUSED["chunked attention"] in refused(llama(attention_chunk_size=64), UnsupportedError)
        linear = read(llama(layer_types=["linear_attention"] * 3 + [MAIN]))
        assert [group.layers for group in linear.groups] == [(3,)]

    def test_patterns(self):
        gemma2 = llama(model_type="gemma2", head_dim=64, sliding_window=512)
        assert self.windows(gemma2) == [(SLIDING, (0, 2), 512), (MAIN, (1, 3), None)]
        cohere2 = llama(model_type="cohere2", sliding_window=512, sliding_window_pattern=2)
        assert self.windows(cohere2) == [(SLIDING, (0, 2), 512), (MAIN, (1, 3), None)]
        contradiction = {**cohere2, "layer_types": [MAIN] * 4}
        assert "sliding_window_pattern: contradicts layer_types" in refused(contradiction)

    @pytest.mark.parametrize("nested", [False, True])
    def test_gemma3_scales_its_global_layers_only(self, nested):
        config = llama(model_type="gemma3_text", head_dim=64, sliding_window=512, sliding_window_pattern=2)
        if nested:
            config["rope_parameters"] = {
                MAIN: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            }
            del config["rope_theta"]
        else:
            config |= {
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
            }
        local, main = read(config).groups
        assert (local.rule.name, local.rotary.base, local.window) == ("none", 1e4, 512)
        assert (main.rule.name, main.rotary.base, main.window) == ("linear", 1e6, None)
        assert local.rotary.original_length == main.rotary.original_length

    def test_olmo3_scales_its_full_layers_only(self):
        config = llama(model_type="olmo3", sliding_window=128, layer_types=[SLIDING, MAIN] * 2, rope_scaling=YARN)
        local, main = read(config).groups
        assert (local.rule.name, main.rule.name) == ("none", "yarn")
        assert local.rotary.base == main.rotary.base == 10000.0

    def test_gpt_oss_scales_all(self):
        config = llama(model_type="gpt_oss", sliding_window=128, rope_scaling={**YARN, "truncate": False})
        assert [group.rule.name for group in read(config).groups] == ["yarn", "yarn"]

    def test_layers_that_do_not_turn(self):
        smol = llama(model_type="smollm3", no_rope_layers=[1, 1, 1, 0])
        turning, still = read(smol).groups
        assert (turning.layers, still.layers, still.rotary) == ((0, 1, 2), (3,), None)
        cohere = read(llama(model_type="cohere2", sliding_window=128))
        assert [group.rotary is None for group in cohere.groups] == [False, True]

    def test_nested_sections_name_layer_types(self):
        assert "not a layer type" in refused(llama(rope_parameters={"fuller": {"rope_type": "default"}}))
        partly = llama(
            layer_types=[SLIDING, MAIN] * 2, sliding_window=8, rope_parameters={MAIN: {"rope_type": "default"}}
        )
        assert "has no section for sliding_attention" in refused(partly)


MPT = {
    "model_type": "mpt",
    "d_model": 256,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 2048,
    "attn_config": {"alibi": True, "alibi_bias_max": 8, "prefix_lm": False},
}
T5 = {"model_type": "t5", "d_model": 256, "d_kv": 64, "num_heads": 4, "num_layers": 2}


class TestBiases:
    def test_mpt(self):
        group = read({**MPT, "learned_pos_emb": True}).main_group
        assert (group.bias, group.rotary) == (BiasSpec("alibi"), None)
        for change, mechanism in (
            ({"alibi": False}, "learned positions"),
            ({"alibi": True, "alibi_bias_max": 4}, "alibi_bias_max"),
            ({"alibi": True, "softmax_scale": 1.0}, "softmax scale"),
            ({"alibi": True, "prefix_lm": True}, "bidirectional attention"),
        ):
            assert REFUSED[mechanism] in refused({**MPT, "attn_config": change}, UnsupportedError)

    def test_bloom(self):
        config = {"model_type": "bloom", "n_embed": 256, "n_head": 4, "n_layer": 2, "offset_alibi": 100}
        positions = read(config)
        assert positions.main_group.bias == BiasSpec("alibi")
        assert positions.values["declared_length"].source == "default of bloom"
        assert "offset_alibi" in positions.without_effect

    def test_falcon(self):
        config = llama(model_type="falcon", alibi=True)
        group = read(config).main_group
        assert group.bias == BiasSpec("alibi", slopes_scale=1 / 8)
        assert group.rotary is None
        assert read({**config, "alibi": False}).main_group.bias is None

    def test_alibi_of_an_unknown_model(self):
        assert REFUSED["unknown dialect"] in refused(llama(model_type="novel", alibi=True), UnsupportedError)

    def test_t5(self):
        positions = read(T5)
        assert positions.main_group.bias == BiasSpec("t5", num_buckets=32, max_distance=128, unscaled_logits=True)
        assert positions.values["max_distance"].source == "default of t5"
        assert positions.original_length == 512
        assert "relative_attention_max_distance: must be" in refused({**T5, "relative_attention_max_distance": 16})

    def test_learned_positions_are_refused(self):
        assert REFUSED["learned positions"] in refused({"model_type": "gpt2"}, UnsupportedError)


class TestStrictness:
    @pytest.mark.parametrize(
        "key",
        [
            "rope_thetaa",
            "ropeScaling",
            "rotary_base",
            "rotary_dims",
            "alibi_slopes",
            "max_sequence_len",
            "position_scale",
            "relative_attention_type",
            "num_buckets",
            "local_window",
            "yarn_factor",
            "mscale",
            "attn_temperature_scale",
            "attention_scale",
            "attention_chunk_len",
            "nope_layers",
            "attn_layer_types",
            "freq_base",
            "interpolation",
            "seq_len",
            "query_scaling",
            "long_factor",
        ],
    )
    def test_a_key_about_positions_is_understood_or_an_error(self, key):
        assert f"{key}: is about positions and not understood, got 3" in refused(llama(**{key: 3}))
        assert key in refused(llama(something={"nested": [{key: 3}]}))

    @pytest.mark.parametrize(
        "key",
        [
            "problem_type",
            "base_model",
            "moe_layer_freq",
            "dim_model_base",
            "properties",
            "num_local_experts",
            "temperature",
            "attention_bias",
            "attention_dropout",
            "compression",
            "repository",
            "intermediate_size",
            "rms_norm_eps",
            "use_qk_norm",
            "scale_depth",
            "seq_aux",
            "clip_qkv",
            "attn_implementation",
            "length_penalty",
            "positive",
        ],
    )
    def test_other_keys_are_none_of_its_business(self, key):
        with_it, without = read(llama(**{key: 3})), read(llama())
        assert (with_it.values, with_it.without_effect) == (without.values, {})

    def test_runtime_limits_are_reported_as_such(self):
        positions = read(llama(context_window_size=2048, prefill_chunk_size=2048, max_length=20))
        assert set(positions.without_effect) == {"context_window_size", "prefill_chunk_size", "max_length"}

    @pytest.mark.parametrize(
        "value", [True, "10000", None, [], {}, 0, -1.0, 1.0, 1e300, float("nan"), float("inf"), 10**400]
    )
    def test_the_base_must_be_a_number_above_one(self, value):
        assert "rope_theta: " in refused(llama(rope_theta=value))

    @pytest.mark.parametrize(
        "key", ["num_hidden_layers", "num_attention_heads", "max_position_embeddings", "hidden_size"]
    )
    @pytest.mark.parametrize("value", [True, "4", None, 0, -4, 4.5, 10**12, float("nan")])
    def test_counts_must_be_counts(self, key, value):
        assert f"{key}: " in refused(llama(**{key: value}))

    def test_a_whole_float_is_a_count(self):
        assert read(llama(max_position_embeddings=4096.0)).declared_length == 4096

    @pytest.mark.parametrize("factor", [0.5, 0, -1, True, "8", 1e9, float("inf")])
    @pytest.mark.parametrize("section", [YARN, LLAMA3, {"rope_type": "linear"}, {"rope_type": "dynamic"}])
    def test_factors_must_be_at_least_one(self, section, factor):
        assert "rope_scaling.factor: must be a number from 1 to" in refused(
            llama(rope_scaling={**section, "factor": factor})
        )

    def test_switches_that_matter(self):
        assert REFUSED["bidirectional attention"] in refused(llama(use_bidirectional_attention=True), UnsupportedError)
        assert "attention temperature: queries" in refused(llama(attn_temperature_tuning=True), UnsupportedError)
        assert REFUSED["chunked attention"] in refused(llama(attention_chunk_size=128), UnsupportedError)
        assert REFUSED["fragment"] in refused({"rope_scaling": YARN}, UnsupportedError)

    def test_messages_stay_on_one_line(self):
        refused(llama(**{"rope\nkey": "a\nb" * 100}))
        refused(llama(rope_scaling={**YARN, "a\u2028b": "\ud800"}))
        deep: dict = {}
        node = deep
        for _ in range(5000):
            node["a"] = {}
            node = node["a"]
        with pytest.raises(ConfigError, match="nests more than"):
            positions_of({**LLAMA, "x": deep}, origin="test.json")

    def test_logit_scales_are_reported(self):
        positions = read(llama(query_pre_attn_scalar=128, attn_logit_softcapping=50.0, final_logit_softcapping=30.0))
        assert positions.values["query_pre_attn_scalar"].value == 128
        assert positions.values["attn_logit_softcapping"].value == 50.0
        assert "final_logit_softcapping" in positions.without_effect


def test_reads_a_file_or_its_directory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == LLAMA
    assert read_positions(tmp_path).origin == read_positions(str(tmp_path / "config.json")).origin
    with pytest.raises(ConfigError, match="cannot be read"):
        read_positions(tmp_path / "absent")


def test_needs_no_jax():
    code = (
        "import sys, rope_jax.checkpoints.dialects; sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'torch')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
