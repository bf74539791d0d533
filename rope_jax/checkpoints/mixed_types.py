"""Model types whose layers are not all attention with positions, and those that have no rotation to read at all.

As in `model_types`, read off transformers 5.24.
"""

import dataclasses
from typing import Any

from rope_jax.checkpoints.type_record import CROSS, FULL, LINEAR, SLIDING, ModelType

__all__ = ["MIXED_TYPES", "WITHOUT_ROTATION"]


def _hybrid(theta: float = 10000.0, **defaults: Any) -> ModelType:
    return ModelType({"rope_theta": theta, **defaults})


def _without(**defaults: Any) -> ModelType:
    return ModelType(defaults, rotation="none")


_QWEN_NEXT = ModelType(
    {"rope_theta": 10000.0, "head_dim": 256, "partial_rotary_factor": 0.25, "full_attention_interval": 4}
)
_LATENT = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
_ZAYA = {"rope_type": "default", "partial_rotary_factor": 0.5}
_LARA = (LINEAR, SLIDING, LINEAR, FULL, SLIDING)
_MLLAMA_CROSS = (3, 8, 13, 18, 23, 28, 33, 38)
_ZAMBA2_HYBRID = (6, 12, 18, 24, 30, 36, 42, 47, 51)

_HYBRIDS: dict[str, ModelType] = {
    "bamba": dataclasses.replace(_hybrid(partial_rotary_factor=0.5), kinds=lambda i, n: LINEAR),
    "bailing_hybrid": dataclasses.replace(
        _hybrid(6e6, **_LATENT, rope_interleave=True, layer_group_size=6), latent=True
    ),
    "granitemoehybrid": dataclasses.replace(_hybrid(), rotation="if asked", kinds=lambda i, n: LINEAR),
    "jamba": _without(attn_layer_period=8, attn_layer_offset=4, head_dim=None),
    "kimi_linear": dataclasses.replace(
        _without(**_LATENT), latent=True, kinds=lambda i, n: FULL if i and i % 4 == 0 else LINEAR
    ),
    "lara_mini": ModelType(
        {"rope_theta": 10000.0, "head_dim": 128, "sliding_window": 512},
        kinds=lambda i, n: _LARA[i % 5],
        rotation="no full",
    ),
    "lfm2": _hybrid(1e6),
    "lfm2_moe": dataclasses.replace(_hybrid(1e6), refused="layer types missing"),
    "lfm3": ModelType(
        {"head_dim": 128, "sliding_window": 256},
        kinds=lambda i, n: FULL if i % 4 == 2 else SLIDING if i % 4 == 0 and i > 0 else "conv",
        rope={
            FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "minimax": dataclasses.replace(_hybrid(1e6), kinds=lambda i, n: LINEAR if i % 2 else FULL),
    "mllama_text_model": dataclasses.replace(_hybrid(5e5), kinds=lambda i, n: CROSS if i in _MLLAMA_CROSS else FULL),
    "nemotron_h": _without(head_dim=128),
    "olmo_hybrid": dataclasses.replace(_hybrid(), kinds=lambda i, n: LINEAR if (i + 1) % 4 else FULL),
    "qwen3_next": _QWEN_NEXT,
    "qwen3_5_text": _QWEN_NEXT,
    "qwen3_5_moe_text": _QWEN_NEXT,
    "qwen4_exp_text": ModelType({"rope_theta": 10000.0, "head_dim": 256, "full_attention_interval": 4}, sparse=True),
    "recurrent_gemma": ModelType(
        {
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "attention_window_size": 2048,
            "block_types": ("recurrent", "recurrent", "attention"),
        },
        layers="alike",
        own_names={"final_logit_softcapping": "logits_soft_cap", "sliding_window": "attention_window_size"},
    ),
    "zamba": _without(attn_layer_period=6, attn_layer_offset=4),
    "zamba2": ModelType(
        {"rope_theta": 10000.0},
        rotation="if asked",
        kinds=lambda i, n: FULL if i in _ZAMBA2_HYBRID else LINEAR,
        own_names={"head_dim": "attention_head_dim"},
    ),
    "zaya": ModelType(
        {"head_dim": 128},
        rope={FULL: {**_ZAYA, "rope_theta": 5e6}, SLIDING: {**_ZAYA, "rope_theta": 10000.0}},
    ),
}

# No rotation that a config could describe, and why.
WITHOUT_ROTATION: dict[str, tuple[str, ...]] = {
    "learned positions": (
        *("bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot", "blenderbot-small"),
        *("camembert", "data2vec-text", "electra", "ernie", "git", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo"),
        *("mbart", "megatron-bert", "mvp", "openai-gpt", "opt", "plbart", "prophetnet", "rembert", "roberta"),
        *("roberta-prelayernorm", "roc_bert", "trocr", "whisper", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    ),
    "sinusoidal positions": (
        *("ctrl", "marian", "musicgen", "musicgen_decoder", "musicgen_melody", "musicgen_melody_decoder", "pegasus"),
        "xglm",
    ),
    "no attention": ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"),
    "relative embeddings": ("inkling2_loop_text", "inkling2_text", "inkling_text", "xlnet"),
    "segment bias": ("cpmant",),
    "axial positions": ("reformer",),
    "compressed attention": ("deepseek_v4",),
    "learned frequencies": ("mistral_large4", "mistral_large4_text"),
    "several decoders": ("blt",),
    "drafting head": ("gemma4_assistant", "gemma4_unified_assistant"),
}

MIXED_TYPES: dict[str, ModelType] = {
    **_HYBRIDS,
    **{
        name: ModelType(scheme="refused", refused=mechanism)
        for mechanism, names in WITHOUT_ROTATION.items()
        for name in names
    },
}
