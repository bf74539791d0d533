"""Any JSON object gives positions or a one-line error of this library, never another exception."""

import copy
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rope_jax.checkpoints.dialects import positions_of
from rope_jax.checkpoints.positions import PositionConfig
from rope_jax.errors import RopeJaxError

COMMON = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}
FULL, SLIDING = "full_attention", "sliding_attention"
BASES = [
    {"model_type": "llama", **COMMON},
    {
        "model_type": "qwen3",
        **COMMON,
        "head_dim": 16,
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 2,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 32},
    },
    {
        "model_type": "llama",
        **COMMON,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    },
    {
        "model_type": "phi3",
        **COMMON,
        "original_max_position_embeddings": 1024,
        "sliding_window": 2047,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [1.0, 2.0] * 4},
    },
    {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            **COMMON,
            "head_dim": 16,
            "sliding_window": 64,
            "sliding_window_pattern": 2,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "vision_config": {"rope_theta": 100.0},
    },
    {
        "model_type": "gemma4_text",
        **{key: value for key, value in COMMON.items() if key != "rope_theta"},
        "head_dim": 16,
        "global_head_dim": 32,
        "sliding_window": 64,
        "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
        "rope_parameters": {
            FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    {
        "model_type": "gemma4_unified",
        "text_config": {
            "model_type": "gemma4_unified_text",
            **{key: value for key, value in COMMON.items() if key != "rope_theta"},
            "head_dim": 16,
            "sliding_window": 64,
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
            "per_layer_config": {"01": {"head_dim": 32}, "3": {"head_dim": 32, "num_key_value_heads": 1}},
        },
    },
    {
        "model_type": "exaone4",
        **COMMON,
        "sliding_window": 64,
        "sliding_window_pattern": "LLLG",
        "use_logn_attn": False,
        "auto_map": {"AutoConfig": "configuration_x.XConfig"},
    },
    {"model_type": "minicpm", **COMMON, "max_length": 8192, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    {
        "model_type": "mpt",
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "attn_config": {"alibi": True, "alibi_bias_max": 8},
    },
    {"model_type": "falcon", **COMMON, "alibi": True},
    {
        "model_type": "t5",
        "d_model": 64,
        "d_kv": 16,
        "num_heads": 4,
        "num_layers": 2,
        "n_positions": 512,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "is_encoder_decoder": True,
    },
    {
        "model_type": "deepseek_v3",
        **COMMON,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "original_max_position_embeddings": 1024,
        },
    },
    {
        "model_type": "mimo_v2_flash",
        **COMMON,
        "head_dim": 16,
        "swa_head_dim": 16,
        "swa_rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "hybrid_layer_pattern": [0, 1, 1, 0],
        "sliding_window_size": 32,
    },
    {
        "model_type": "qwen3_5",
        "text_config": {
            "model_type": "qwen3_5_text",
            **COMMON,
            "head_dim": 16,
            "full_attention_interval": 2,
            "rope_parameters": {"mrope_section": [1, 1, 0], "rope_type": "default", "partial_rotary_factor": 0.25},
        },
    },
    {
        "model_type": "lfm3",
        **{key: value for key, value in COMMON.items() if key != "rope_theta"},
        "head_dim": 16,
        "sliding_window": 64,
        "_sliding_window": 64,
        "layer_types": ["conv", FULL, SLIDING, "linear_attention"],
        "audio_config": {"rope_theta": 3.0, "layer_types": ["conv"]},
    },
    {
        "model_type": "step3p5",
        **COMMON,
        "rope_theta": [5e6, 1e4, 1e4, 5e6],
        "partial_rotary_factors": [0.5, 1.0, 1.0, 0.5],
        "layer_types": [FULL, SLIDING, SLIDING, FULL],
        "sliding_window": 64,
        "attention_other_setting": {"attention_type": SLIDING, "num_attention_heads": 2, "head_dim": 32},
        "num_nextn_predict_layers": 0,
    },
    {"model_type": "granite_swa", **COMMON, "layer_rope_theta": [0, 1e4, 1e4, 5e5], "sliding_window": 64},
    {
        "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text",
            **COMMON,
            "head_dim": 16,
            "attention_chunk_size": 64,
            "no_rope_layers": [1, 1, 1, 0],
            "attn_temperature_tuning": 4,
            "floor_scale": 512,
            "attn_scale": 0.1,
        },
    },
    {
        "model_type": "ministral3",
        **{**COMMON, "rope_theta": 1e6},
        "rope_parameters": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
            "max_position_embeddings": 4096,
            "llama_4_scaling_beta": 0.1,
            "mrope_section": [2, 3, 3],
            "mrope_interleaved": True,
        },
    },
    {
        "model_type": "kimi_linear",
        **{key: value for key, value in COMMON.items() if key != "max_position_embeddings"},
        "model_max_length": 4096,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "linear_attn_config": {"full_attn_layers": [4], "kda_layers": [1, 2, 3]},
        "mla_use_nope": True,
    },
    {"model_type": "nemotron_h", **COMMON, "hybrid_override_pattern": "M-*E", "attention_head_dim": 16},
    {"model_type": "jamba", **COMMON, "attn_layer_period": 2, "attn_layer_offset": 1},
    {
        "model_type": "hunyuan_v1_dense",
        **COMMON,
        "attention_head_dim": 16,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "mscale": 1.0},
    },
    {
        "model_type": "zamba2",
        **COMMON,
        "layers_block_type": ["mamba", "hybrid", "mamba", "mamba"],
        "hybrid_layer_ids": [1],
        "use_mem_rope": True,
    },
    {
        "model_type": "beam",
        **{key: value for key, value in COMMON.items() if key != "rope_theta"},
        "head_dim": 16,
        "sliding_window": 64,
        "rope_parameters": {SLIDING: {"rope_type": "default", "rope_theta": 1e4}, FULL: None},
    },
    {
        "model_type": "modernbert-decoder",
        **{key: value for key, value in COMMON.items() if key != "rope_theta"},
        "local_attention": 128,
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 160000.0,
    },
    {"model_type": "recurrent_gemma", **COMMON, "block_types": ["recurrent", "attention"], "logits_soft_cap": 30.0},
]

EXTREME = [0, -1, 1, 2, 3, 0.5, -0.0, 1e-300, 1e300, 5e-324, 1 << 31, (1 << 31) - 1, 1 << 62, 10**400, 100_001]
EXTREME += [float("nan"), float("inf"), -float("inf"), 1.0000001, 0.9999999, 4096.5, 31, 33]
KEYS = sorted(
    {key for base in BASES for key in base}
    | {key for base in BASES for value in base.values() if isinstance(value, dict) for key in value}
    | {
        "rope_parameters",
        "rotary_pct",
        "layer_types",
        "attention_factor",
        "attn_factor",
        "truncate",
        "alpha",
        "finetuned",
    }
    | {"no_rope_layers", "short_mscale", "long_mscale", "attention_chunk_size", "rope\nkey", "", "a.b", "rotary_dim"}
)
WORDS = [
    "",
    "yarn",
    "llama3",
    "default",
    "longrope",
    "mrope",
    "\ud800",
    "a\nb",
    "x" * 300,
    "llama",
    "gemma3",
    "smollm3",
]
junk = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**6), 10**6),
        st.floats(),
        st.sampled_from(EXTREME),
        st.sampled_from(WORDS),
        st.text(max_size=4),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(config):
    """Returns every (object, key) in a config."""
    found = []
    for key, value in config.items():
        found.append((config, key))
        if isinstance(value, dict):
            found.extend(places(value))
    return found


def random_junk(chance, depth=0):
    """Returns any JSON value, as `junk` does; drawing ten thousand of those would take minutes."""
    match chance.randrange(8 if depth < 3 else 6):
        case 0:
            return chance.choice([None, True, False])
        case 1:
            return chance.choice(EXTREME)
        case 2:
            return chance.choice(WORDS)
        case 3:
            return chance.randrange(-(10**6), 10**6)
        case 4:
            return math.ldexp(chance.uniform(-1, 1), chance.randrange(-1000, 1000))
        case 5:
            return "".join(
                chr(chance.choice([chance.randrange(32, 127), chance.randrange(0x110000)])) for _ in range(3)
            )
        case 6:
            return [random_junk(chance, depth + 1) for _ in range(chance.randrange(4))]
        case _:
            return {chance.choice(KEYS): random_junk(chance, depth + 1) for _ in range(chance.randrange(4))}


def mutated(seed):
    """Returns one of the bases with one to four random changes."""
    chance = random.Random(seed)
    config = copy.deepcopy(chance.choice(BASES))
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        spots = places(config)
        if not spots:
            break
        owner, key = chance.choice(spots)
        match chance.choice(["delete", "junk", "extreme", "nest", "rename", "add", "swap", "list", "borrow"]):
            case "delete":
                del owner[key]
            case "junk":
                owner[key] = random_junk(chance)
            case "extreme":
                owner[key] = chance.choice(EXTREME)
            case "nest":
                owner[key] = {chance.choice(KEYS): owner[key]}
            case "rename":
                owner[chance.choice(KEYS)] = owner.pop(key)
            case "add":
                owner[chance.choice(KEYS)] = random_junk(chance)
            case "swap":
                other, name = chance.choice(spots)
                owner[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(owner[key])
            case "list":
                owner[key] = [owner[key]] * chance.randrange(10)
            case "borrow":
                owner[key] = copy.deepcopy(chance.choice(BASES).get(key, 7))
    return config


def check(config):
    try:
        positions = positions_of(config, origin="fuzz.json")
    except RopeJaxError as error:
        message = str(error)
        assert message.startswith("fuzz.json: ")
        assert message.isprintable(), "one line"
        assert len(message) < 700
    else:
        assert isinstance(positions, PositionConfig)
        layers = [layer for group in positions.groups for layer in group.layers]
        assert len(layers) == len(set(layers)) > 0
        assert positions.original_length >= 1
        assert all(finding.isprintable() for finding in positions.findings)


def example_count(count):
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@example_count(50)
@given(st.integers(0, 2**60))
def test_five_hundred_mutated_configs(seed):
    for step in range(10):
        check(mutated(10 * seed + step))


@pytest.mark.slow
@example_count(1_000)
@given(st.integers(0, 2**60))
def test_ten_thousand_mutated_configs(seed):
    for step in range(10):
        check(mutated(10 * seed + step))


@example_count(200)
@given(st.dictionaries(st.sampled_from(KEYS), junk, max_size=8))
def test_objects_that_never_were_configs(config):
    check(config)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base["model_type"])
def test_the_bases_themselves_are_understood(base):
    assert positions_of(base, origin="fuzz.json").groups
