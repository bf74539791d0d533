"""Model types with multi-head latent attention: heads of a still and a turning part, from one latent vector a token.

As in `model_types`, read off transformers 5.24.
"""

import dataclasses
from typing import Any

from rope_jax.checkpoints.type_record import ModelType

__all__ = ["LATENT_TYPES", "MISTRAL3"]


def _latent(theta: float = 10000.0, *, sparse: bool = False, **defaults: Any) -> ModelType:
    shape = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rope_interleave": True}
    return ModelType({"rope_theta": theta, **shape, **defaults}, latent=True, sparse=sparse)


# Mistral's section from Ministral 3 on.
MISTRAL3 = {
    "rope_type": "yarn",
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
LATENT_TYPES: dict[str, ModelType] = {
    "deepseek_v2": _latent(),
    "deepseek_v3": _latent(),
    "kimi_k2": _latent(),
    "axk1": _latent(),
    "glm4_moe_lite": _latent(qk_nope_head_dim=192),
    "longcat_flash": _latent(1e7),
    "minicpm3": _latent(qk_nope_head_dim=64, qk_rope_head_dim=32),
    "sarvam_mla": _latent(),
    "youtu": _latent(),
    "axk2": _latent(sparse=True, qk_nope_head_dim=64, qk_rope_head_dim=32),
    "deepseek_v32": _latent(sparse=True),
    "glm_moe_dsa": _latent(sparse=True, qk_nope_head_dim=192),
    "hy_v4": _latent(sparse=True, qk_nope_head_dim=192),
    "dots3_note_text": dataclasses.replace(_latent(8e7, sparse=True), scales_softmax=False),
    "mistral4": ModelType(
        {"qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "rope_interleave": True, "rope_theta": 10000.0},
        latent=True,
        rope={"rope_theta": 10000.0, **MISTRAL3, "factor": 128.0, "original_max_position_embeddings": 8192},
        temperature="beta",
    ),
}
