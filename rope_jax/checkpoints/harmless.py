"""Keys about positions that change nothing, with the values at which they do not, and the reason."""

from collections.abc import Callable
from typing import Any

__all__ = ["HARMLESS"]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
        ("use_rope", "scale_attn_weights", "use_rotary_embedding", "use_rotary_pos_emb", "rotary", "use_rotary"),
        (lambda value: value is True, "true: what is done anyway"),
    ),
    **dict.fromkeys(("full_attn_mod", "interpolate_factor"), (lambda value: value == 1, "1: changes nothing")),
    **dict.fromkeys(
        ("mrope_section", "mrope_interleaved", "use_mrope", "xdrope_section"),
        (lambda value: isinstance(value, (bool, list)) or value == 0, "positions of text are the same in every stream"),
    ),
    **dict.fromkeys(
        ("position_id_per_seconds", "tokens_per_second", "seconds_per_chunk"),
        (_number, "positions of audio and video, not of text"),
    ),
    **dict.fromkeys(
        ("head_dim_value", "qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "index_head_dim"),
        (lambda value: value is None, "null: not set"),
    ),
    "learnable_sink_init": (_number, "a learned sink, which stands at no position"),
    "num_attention_sinks": (_number, "a learned sink, which stands at no position"),
    "per_layer_config": (lambda value: not value, "no layer has values of its own"),
    **dict.fromkeys(
        ("attention_out_multiplier", "attention_in_multiplier"),
        (_number, "acts on what goes into attention or comes out, as norms and weights do"),
    ),
    "logits_soft_cap": (_number, "acts on the output logits, not on attention"),
    "layer_scale_init_value": (_number, "a scale of whole layers"),
    "num_logits_to_keep": (_number, "which logits are worked out"),
    "full_attn_alpha_factor": (_number, "acts on the residual stream"),
    "full_attn_beta_factor": (_number, "acts on the residual stream"),
    "yarn_only_types": (lambda value: value == ["full_attention"], "layers with a window are not scaled anyway"),
    "attention_value_scale": (lambda value: isinstance(value, (int, float)), "acts on values, after the softmax"),
    "scale_attention_softmax_in_fp32": (lambda value: isinstance(value, bool), "precision of the softmax"),
    "use_bidirectional_attention": (
        lambda value: value is False or value == "vision",
        "text tokens see earlier ones only",
    ),
    "position_embedding_type": (lambda value: value in ("rope", "rotary"), "what is done anyway"),
}
