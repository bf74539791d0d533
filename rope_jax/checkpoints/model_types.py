"""What each model type's published code does where its config is silent, and what is refused whatever it says."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from rope_jax.checkpoints.ledger import Section
from rope_jax.errors import ConfigError, UnsupportedError

FULL = "full_attention"
SLIDING = "sliding_attention"
LINEAR = "linear_attention"
CHUNKED = "chunked_attention"

# Mechanisms that are refused rather than approximated, each with its reason.
REFUSED = {
    "fragment": "no model_type: a fragment to merge into a config, not a config; what it leaves out would be guessed",
    "chunked attention": "tokens see their own chunk of the context only, which is neither a window nor full attention",
    "learned positions": "positions are learned vectors added to the embeddings: there is no rotation or bias to scale",
    "dynamic alpha": "a fixed alpha in place of a factor is another base in every peer; state the scaled base instead",
    "length-dependent factor": "short_mscale and long_mscale differ: the cos/sin factor would depend on the length",
    "alibi_bias_max": "slopes for another alibi_bias_max than 8 are not a multiple of the published slopes",
    "softmax scale": "attention has a scale of its own in place of 1/sqrt(head_dim)",
    "bidirectional attention": "every token sees the ones after it: probes of a causal context have no meaning",
    "unknown dialect": "the model type is not known, and published code disagrees about what this key means",
}

Layers = Literal[
    "alike",
    "every nth full",
    "first and every nth full",
    "every nth not linear",
    "upper sliding",
    "lower alternate sliding",
    "still sliding",
    "listed",
]
Scheme = Literal["rope", "alibi", "mpt", "falcon", "t5", "refused"]


@dataclasses.dataclass(frozen=True)
class ModelType:
    """What a model type adds to its config.

    Attributes:
      defaults: values of absent keys, as published; a key without one here must be stated.
      scheme: where positions enter.
      layers: which layers a sliding window holds for, where no list says so. "listed": none unless a list does.
      window_switch: whether the published code reads `use_sliding_window`.
      full_every: the distance of full layers, where the published code fixes it and reads no `sliding_window_pattern`;
        0 where it reads that key.
      rope: the rope section where the config has none.
      local_unscaled: whether sliding layers keep their trained frequencies, whatever the rope section says.
      own_keys: by layer type, the keys that replace `head_dim`, `num_attention_heads` or `rope_theta` for it.
      own_names: the top-level keys that the published code reads in place of `rope_theta` or `partial_rotary_factor`.
      whole_by_default: whether rope type "default" turns whole heads, whatever `partial_rotary_factor` says.
      last_full: whether the last layer is a full one whatever list or pattern says (Gemma 4).
      without_rotation: "full" layers do not turn (Cohere 2), or do not beside windowed ones (EXAONE 4), or those that
        `no_rope_layers` names do not (SmolLM 3).
      window_excludes_self: whether the window counts the tokens before the query only.
      latent: whether heads split into a turning and a still part (DeepSeek's MLA), and YaRN scales the softmax.
      refused: the mechanism of `REFUSED`, where scheme is "refused".
    """

    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scheme: Scheme = "rope"
    layers: Layers = "listed"
    window_switch: bool = False
    full_every: int = 0
    rope: Mapping[str, Any] | None = None
    local_unscaled: bool = False
    own_keys: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    own_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    whole_by_default: bool = False
    last_full: bool = False
    without_rotation: Literal["none", "full", "full beside windows", "listed"] = "none"
    window_excludes_self: bool = False
    latent: bool = False
    refused: str = ""


UNKNOWN = ModelType(window_switch=True)  # as in all published code that has the key


def _rope(theta: float = 10000.0, **defaults: Any) -> ModelType:
    return ModelType({"rope_theta": theta, **defaults})


def _windowed(theta: float = 10000.0, **defaults: Any) -> ModelType:
    return ModelType({"rope_theta": theta, **defaults}, layers="alike")


_QWEN = ModelType(
    {"rope_theta": 10000.0, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
    layers="upper sliding",
    window_switch=True,
)
_QWEN_NEXT = ModelType(
    {"rope_theta": 10000.0, "head_dim": 256, "partial_rotary_factor": 0.25, "full_attention_interval": 4},
    layers="every nth not linear",
)
_PHI3 = _windowed(original_max_position_embeddings=4096)
_DEEPSEEK = ModelType(
    {"rope_theta": 10000.0, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rope_interleave": True}, latent=True
)
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
    without_rotation="full beside windows",
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
_LEARNED = ModelType(scheme="refused", refused="learned positions")
_LLAMA4 = ModelType(scheme="refused", refused="chunked attention")

MODEL_TYPES: dict[str, ModelType] = {
    "llama": _rope(),
    "mistral": _windowed(sliding_window=4096),
    "mixtral": _windowed(1e6),
    "starcoder2": _windowed(),
    "phi": _rope(partial_rotary_factor=0.5),
    "phi3": _PHI3,
    "phi4": _PHI3,
    "phimoe": _windowed(1e6),
    "qwen2": _QWEN,
    "qwen3": dataclasses.replace(_QWEN, defaults={**_QWEN.defaults, "head_dim": 128}),
    "qwen2_moe": dataclasses.replace(_QWEN, layers="lower alternate sliding"),
    "qwen3_moe": dataclasses.replace(_windowed(use_sliding_window=False, sliding_window=4096), window_switch=True),
    "qwen3_next": _QWEN_NEXT,
    "qwen3_5_text": _QWEN_NEXT,
    "qwen3_5_moe_text": _QWEN_NEXT,
    "minicpm": _rope(),
    "gemma": _rope(head_dim=256),
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
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": dataclasses.replace(_GEMMA4, defaults={**_GEMMA4.defaults, "sliding_window": 1024}),
    "exaone4": _EXAONE4,
    "exaone_moe": _EXAONE4,
    "olmo": _rope(),
    "olmo2": _rope(),
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
    "granite": _rope(),
    "cohere": _rope(5e5),
    "cohere2": ModelType(
        {"rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_pattern": 4},
        layers="every nth full",
        without_rotation="full",
    ),
    "smollm3": ModelType(
        {"rope_theta": 2e6, "no_rope_layer_interval": 4, "use_sliding_window": False},
        layers="still sliding",
        window_switch=True,
        without_rotation="listed",
    ),
    "glm": _rope(partial_rotary_factor=0.5, head_dim=128),
    "glm4": _rope(partial_rotary_factor=0.5, head_dim=128),
    "glm4_moe": _rope(partial_rotary_factor=0.5),
    "stablelm": _rope(partial_rotary_factor=0.25),
    "persimmon": _rope(partial_rotary_factor=0.5),
    "nemotron": _rope(partial_rotary_factor=0.5),
    "gpt_neox": dataclasses.replace(
        _rope(partial_rotary_factor=0.25),
        own_names={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "mpt": ModelType({"max_seq_len": 2048}, scheme="mpt"),
    "bloom": ModelType({"seq_length": 2048}, scheme="alibi"),
    "falcon": ModelType({"rope_theta": 10000.0, "max_position_embeddings": 2048, "alibi": False}, scheme="falcon"),
    "t5": _T5,
    "mt5": _T5,
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    **dict.fromkeys(("gpt2", "gpt_neo", "opt", "bert", "roberta", "gpt_bigcode", "xglm"), _LEARNED),
}
# A wrapper around a text model and towers; older files leave the inner model type out.
WRAPPERS = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "exaone4_5": "exaone4",
    "exaone4_5_text": "exaone4",
    "llama4": "llama4_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}

# Keys about positions that change nothing, if they hold what the test accepts: the reason, by key.
HARMLESS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("context_window_size", "prefill_chunk_size", "max_length", "model_max_length", "max_context_length"),
        (lambda value: isinstance(value, (int, float)), "a limit of one runtime, not of the model"),
    ),
    **dict.fromkeys(
        ("swa_num_key_value_heads", "swa_v_head_dim"),
        (lambda value: isinstance(value, int), "a shape of keys or values, not their positions"),
    ),
    **dict.fromkeys(
        ("add_swa_attention_sink_bias", "add_full_attention_sink_bias"),
        (lambda value: isinstance(value, bool), "a learned sink, which stands at no position"),
    ),
    **dict.fromkeys(
        ("logit_scale", "logits_scaling", "final_logit_softcapping"),
        (lambda value: isinstance(value, (int, float, str)), "acts on the output logits, not on attention"),
    ),
    **dict.fromkeys(
        ("alibi", "use_alibi", "rope", "prefix_lm", "use_relative_position", "use_dynamic_ntk", "use_sliding_window"),
        (lambda value: value is False, "false: the mechanism is off"),
    ),
    **dict.fromkeys(
        ("use_rope", "scale_attn_weights", "use_rotary_embedding"),
        (lambda value: value is True, "true: what is done anyway"),
    ),
    **dict.fromkeys(("full_attn_mod", "interpolate_factor"), (lambda value: value == 1, "1: changes nothing")),
    "attention_value_scale": (lambda value: isinstance(value, (int, float)), "acts on values, after the softmax"),
    "scale_attention_softmax_in_fp32": (lambda value: isinstance(value, bool), "precision of the softmax"),
    "use_bidirectional_attention": (
        lambda value: value is False or value == "vision",
        "text tokens see earlier ones only",
    ),
    "position_embedding_type": (lambda value: value in ("rope", "rotary"), "what is done anyway"),
}


def refusal(section: Section, key: str, mechanism: str) -> ConfigError:
    """Returns the error that refuses `mechanism`, a key of `REFUSED`, because of `key`."""
    return section.error(key, f"{mechanism}: {REFUSED[mechanism]}", UnsupportedError)
