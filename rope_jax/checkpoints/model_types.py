"""What each model type's published code does where its config is silent, and what is refused whatever it says.

Read off the configuration and modeling files of transformers 5.24; `tests/peers` holds it to what those models do.
"""

import dataclasses
from typing import Any

from rope_jax.checkpoints.harmless import HARMLESS
from rope_jax.checkpoints.latent_types import LATENT_TYPES, MISTRAL3
from rope_jax.checkpoints.mixed_types import MIXED_TYPES
from rope_jax.checkpoints.type_record import CHUNKED, CROSS, FULL, LINEAR, REFUSED, SLIDING, ModelType, refusal

__all__ = [
    "CHUNKED",
    "CROSS",
    "FULL",
    "HARMLESS",
    "LINEAR",
    "MODEL_TYPES",
    "REFUSED",
    "SLIDING",
    "UNKNOWN",
    "WRAPPERS",
    "ModelType",
    "refusal",
]

UNKNOWN = ModelType(window_switch=True)  # as in all published code that has the key


def _rope(theta: float = 10000.0, **defaults: Any) -> ModelType:
    return ModelType({"rope_theta": theta, **defaults})


def _windowed(theta: float = 10000.0, **defaults: Any) -> ModelType:
    return ModelType({"rope_theta": theta, **defaults}, layers="alike")


def _still(theta: float = 10000.0, **defaults: Any) -> ModelType:
    """A windowed model whose full layers do not turn."""
    return ModelType({"rope_theta": theta, **defaults}, layers="every nth full", rotation="no full")


_QWEN = ModelType(
    {"rope_theta": 10000.0, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
    layers="upper sliding",
    window_switch=True,
)
_QWEN_VL = dataclasses.replace(_QWEN, defaults={**_QWEN.defaults, "rope_theta": 1e6, "max_window_layers": 80})
_PHI3 = _windowed(original_max_position_embeddings=4096)
_GEMMA3 = ModelType(
    # The trained length before Gemma 3's extension is in its report (arXiv 2503.19786, section 2) and in no config.
    {
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "original_max_position_embeddings": 32768,
        "num_attention_heads": 8,
        "max_position_embeddings": 131072,
    },
    layers="every nth full",
    local_unscaled=True,
    own_keys={SLIDING: {"rope_theta": "rope_local_base_freq"}},
)
_GEMMA4 = ModelType(
    {"head_dim": 256, "global_head_dim": 512, "sliding_window": 512},
    layers="every nth full",
    full_every=6,
    rope={
        FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    },
    own_keys={FULL: {"head_dim": "global_head_dim"}},
    whole_by_default=True,
    last_full=True,
)
_EXAONE4 = ModelType(
    {"rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_pattern": 4},
    layers="every nth full",
    rotation="no full beside windows",
)
_MIMO = ModelType(
    {
        "rope_theta": 5e6,
        "swa_rope_theta": 10000.0,
        "partial_rotary_factor": 0.334,
        "head_dim": 192,
        "sliding_window": 129,
    },
    layers="first and every nth full",
    full_every=6,
    local_unscaled=True,
    own_keys={
        SLIDING: {
            "rope_theta": "swa_rope_theta",
            "head_dim": "swa_head_dim",
            "num_attention_heads": "swa_num_attention_heads",
        }
    },
    window_excludes_self=True,
)
_T5 = ModelType(
    {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "n_positions": 512, "d_kv": 64},
    scheme="t5",
)
_LLAMA3_OF_8 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
_APERTUS = ModelType({"rope_theta": 1.2e7}, rope={"rope_theta": 1.2e7, **_LLAMA3_OF_8})
_CWM = ModelType(
    {"rope_theta": 1e6, "head_dim": 128, "sliding_window": 8192},
    kinds=lambda i, n: SLIDING if i % 4 else FULL,
    rope={"rope_theta": 1e6, **_LLAMA3_OF_8, "factor": 16.0},
)
_HUNYUAN = dataclasses.replace(_rope(), fixed_alpha=True)
_LLAMA4 = ModelType(
    {
        "rope_theta": 5e5,
        "head_dim": 128,
        "attention_chunk_size": 8192,
        "no_rope_layer_interval": 4,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    },
    layers="still chunked",
    rotation="listed",
    temperature="llama4",
)
_GRANITE_SWA = ModelType({"rope_theta": 10000.0, "sliding_window": 128}, kinds=lambda i, n: SLIDING if i % 4 else FULL)
_GPT_NEOX = ModelType(
    {"rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    own_names={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
)

MODEL_TYPES: dict[str, ModelType] = {
    "llama": _rope(),
    "apertus": _APERTUS,
    "apertus1p5_text": _APERTUS,
    "arcee": _rope(),
    "aria_text": _rope(),
    "bitnet": _rope(5e5),
    "codegen": _rope(rotary_dim=64),
    "cohere": _rope(5e5),
    "cwm": _CWM,
    "dbrx": _rope(),
    "diffllama": _rope(),
    "doge": dataclasses.replace(_windowed(), sparse=True),
    "emu3_text_model": _rope(1e6),
    "ernie4_5": _rope(5e5, head_dim=128),
    "ernie4_5_moe": _rope(5e5),
    "exaone": _rope(5e5),
    "falcon_h1": _rope(),
    "flex_olmo": _rope(5e5),
    "gemma": _rope(head_dim=256),
    "glm": _rope(partial_rotary_factor=0.5, head_dim=128),
    "glm4": _rope(partial_rotary_factor=0.5, head_dim=128),
    "glm4_moe": _rope(partial_rotary_factor=0.5),
    "gpt_neox": _GPT_NEOX,
    "gpt_neox_japanese": dataclasses.replace(_GPT_NEOX, defaults={"rope_theta": 10000.0}),
    "gptj": _rope(rotary_dim=64),
    "granite": _rope(),
    "granitemoe": _rope(),
    "granitemoeshared": _rope(),
    "granite_swa": _GRANITE_SWA,
    "granitemoe_swa": _GRANITE_SWA,
    "helium": _rope(1e5, head_dim=128),
    "hrm_text": _rope(head_dim=128),
    "hunyuan": _HUNYUAN,
    "hunyuan_v1_dense": _HUNYUAN,
    "hunyuan_v1_moe": _HUNYUAN,
    "hy_v3": dataclasses.replace(_rope(11158840.0, head_dim=128), fixed_alpha=True),
    "hyperclovax": _rope(),
    "internlm3": _rope(head_dim=128),
    "iquestcoder": _rope(head_dim=128),
    "jais2": _rope(),
    "jetmoe": _rope(kv_channels=128),
    "minicpm": _rope(),
    "minimax_m2": _rope(5e6, head_dim=128),
    "minimax_m3_vl_text": dataclasses.replace(_rope(5e6, head_dim=128), sparse=True, rotary_dim_unread=True),
    "nanochat": _rope(),
    "nemotron": _rope(partial_rotary_factor=0.5),
    "olmo": _rope(),
    "olmo2": _rope(),
    "olmoe": _rope(),
    "persimmon": _rope(partial_rotary_factor=0.5),
    "phi": _rope(partial_rotary_factor=0.5),
    "roformer": dataclasses.replace(_rope(), encoder=True),
    "sarvam_moe": _rope(8e6, head_dim=64),
    "seed_oss": _rope(head_dim=128),
    "solar_open": _rope(1e6, head_dim=128),
    "stablelm": _rope(partial_rotary_factor=0.25),
    # Windows, with rotation in every layer.
    "mistral": _windowed(sliding_window=4096),
    "ministral": ModelType({"rope_theta": 10000.0, "sliding_window": 4096}, kinds=lambda i, n: SLIDING),
    "mixtral": _windowed(1e6),
    "moshi": _windowed(sliding_window=3000),
    "starcoder2": _windowed(),
    "phi3": _PHI3,
    "phi4": _PHI3,
    "phi4_multimodal": _PHI3,
    "phimoe": _windowed(1e6),
    "dots1": dataclasses.replace(
        _QWEN,
        defaults={"rope_theta": 10000.0, "sliding_window": 4096, "max_window_layers": 62},
        window_switch=False,
    ),
    "qwen2": _QWEN,
    "qwen3": dataclasses.replace(_QWEN, defaults={**_QWEN.defaults, "head_dim": 128}),
    "qwen2_moe": dataclasses.replace(_QWEN, layers="lower alternate sliding"),
    "qwen3_moe": dataclasses.replace(_windowed(use_sliding_window=False, sliding_window=4096), window_switch=True),
    "gemma2": ModelType(
        {
            "rope_theta": 10000.0,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
        },
        layers="every nth full",
        full_every=2,
    ),
    "gemma3_text": _GEMMA3,
    "gemma3n_text": ModelType(
        {"rope_theta": 1e6, "rope_local_base_freq": 10000.0, "head_dim": 256, "sliding_window": 512},
        layers="every nth full",
        full_every=5,
        local_unscaled=True,
        own_keys={SLIDING: {"rope_theta": "rope_local_base_freq"}},
    ),
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": dataclasses.replace(_GEMMA4, defaults={**_GEMMA4.defaults, "sliding_window": 1024}),
    "vaultgemma": ModelType(
        {"rope_theta": 10000.0, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096},
        layers="every nth full",
        full_every=2,
    ),
    "olmo3": ModelType(
        {"rope_theta": 5e5, "sliding_window": 4096},
        layers="every nth full",
        full_every=4,
        local_unscaled=True,
    ),
    "gpt_oss": ModelType(
        {"rope_theta": 150000.0, "head_dim": 64, "sliding_window": 128},
        layers="every nth full",
        full_every=2,
        rope={
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    ),
    "mimo_v2_flash": _MIMO,
    "dory": ModelType(
        {"head_dim": 256, "sliding_window": 1024},
        layers="every nth full",
        full_every=4,
        rope={
            FULL: {"rope_type": "default", "rope_theta": 1e7},
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "laguna": ModelType(
        {"head_dim": 128, "sliding_window": 512},
        kinds=lambda i, n: FULL,
        rope={
            FULL: {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5},
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        },
    ),
    "mellum": ModelType(
        {"head_dim": 128, "sliding_window": 1024},
        kinds=lambda i, n: FULL,
        rope={
            FULL: {"rope_type": "default", "rope_theta": 5e5},
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "modernbert-decoder": ModelType(
        {
            "local_attention": 128,
            "global_rope_theta": 160000.0,
            "local_rope_theta": 10000.0,
            "global_attn_every_n_layers": 3,
        },
        layers="every nth full",
        first_of_n_full=True,
        own_keys={FULL: {"rope_theta": "global_rope_theta"}, SLIDING: {"rope_theta": "local_rope_theta"}},
    ),
    "step3p5": ModelType(
        {"rope_theta": 10000.0, "head_dim": 128},
        kinds=lambda i, n: FULL,
        local_unscaled=True,
        own_keys={SLIDING: {"num_attention_heads": "num_sliding_attention_heads"}},
    ),
    # Images beside text.
    **dict.fromkeys(("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_omni_text"), _QWEN_VL),
    "qwen3_vl_text": _rope(5e5, head_dim=128),
    "qwen3_vl_moe_text": _rope(5e5),
    "ernie4_5_vl_moe_text": _rope(5e5),
    "hunyuan_vl_text": _HUNYUAN,
    # Layers without rotation among the others.
    "afmoe": _still(head_dim=128, sliding_window=1024, global_attn_every_n_layers=4),
    "beam": ModelType(
        {"head_dim": 128, "sliding_window": 512},
        layers="every nth full",
        full_every=6,
        last_full=True,
        rope={SLIDING: {"rope_type": "default", "rope_theta": 10000.0}, FULL: None},
    ),
    "cohere2": _still(sliding_window=4096, sliding_window_pattern=4),
    "cohere2_moe": dataclasses.replace(
        _still(head_dim=128, sliding_window=4096, sliding_window_pattern=4, prefix_dense_sliding_window_pattern=1),
        rope_scaling_unread=True,
    ),
    "cohere_compass_text": ModelType({"sliding_window": 4096}),
    "exaone4": _EXAONE4,
    "exaone_moe": _EXAONE4,
    "flint": ModelType(
        {"rope_theta": 10000.0, "head_dim": 128, "sliding_window": 513},
        kinds=lambda i, n: FULL if i < 2 or i % 4 == 1 or i == n - 1 else SLIDING,
        rotation="no full",
    ),
    "kolibri1": ModelType(
        {"rope_theta": 10000.0, "head_dim": 128, "sliding_window": 513},
        layers="every nth full",
        full_every=5,
        rotation="no full beside windows",
    ),
    "smollm3": ModelType(
        {"rope_theta": 2e6, "no_rope_layer_interval": 4, "use_sliding_window": False},
        layers="still sliding",
        window_switch=True,
        rotation="listed",
    ),
    "llama4_text": _LLAMA4,
    # A temperature by the query's position.
    "ministral3": ModelType(
        {"head_dim": 128, "rope_theta": 10000.0},
        layers="alike",
        rope={"rope_theta": 1e6, **MISTRAL3},
        temperature="beta",
    ),
    # No rotation.
    "mpt": ModelType({"max_seq_len": 2048}, scheme="mpt"),
    "bloom": ModelType({"seq_length": 2048}, scheme="alibi"),
    "falcon": ModelType({"rope_theta": 10000.0, "max_position_embeddings": 2048, "alibi": False}, scheme="falcon"),
    "t5": _T5,
    "mt5": _T5,
    **LATENT_TYPES,
    **MIXED_TYPES,
}
# A wrapper around a text model and towers; older files leave the inner model type out.
WRAPPERS = {
    "emu3": "emu3_text_model",
    "fuyu": "persimmon",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "exaone4_5": "exaone4",
    "exaone4_5_text": "exaone4",
    "dots3_note": "dots3_note_text",
    "got_ocr2": "qwen2",
    "llama4": "llama4_text",
    "mllama": "mllama_text_model",
    "moss_transcribe_diarize": "qwen3",
    "ernie4_5_vl_moe": "ernie4_5_vl_moe_text",
    "hunyuan_vl": "hunyuan_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
    "step3p7": "step3p5",
}
