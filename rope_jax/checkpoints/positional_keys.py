"""Which keys of a config are about positions, by their names, and which sections are about other parts of a model."""

import re

__all__ = ["NOT_POSITIONS", "OTHER_PARTS", "POSITION_KEY", "looks_positional", "other_part"]

# A key is about positions when one of these matches its name in snake_case, between underscores. Words that tell
# nothing alone (`base`, `scale`, `length`, `layers`) count in the company of others only.
_ALONE = (
    r"[a-z]*rope|rope\w*|rotary\w*|nope|yarn\w*|ntk|xpos|alibi\w*|theta|position\w*|pos|relative|buckets?|windows?"
    r"|windowed|sliding|swa|freqs?|frequency|frequencies|mscale|context|ctx|softcap\w*|interpolat\w*|extrapolat\w*"
    r"|bidirectional|is_causal|sink|sinks|base|hybrid|pattern|chunk|chunked|seqlen|n_ctx|full|prefix_lm"
    r"|head_dim|kv_channels|head_size|attention_head_size|d_head|per_layer_config"
)
_TOGETHER = (
    r"(seq|sequence)_(len|lens|length|lengths)|(max|context|input|original)_(len|length)"
    r"|(attn|attention|softmax|logit|logits|query|qk|kv)_(\w+_)?(scale|scalar|scaling|factor|multiplier|temperature)"
    r"|(scale|scaling)_(\w+_)?(attn|attention)|query_pre_attn_scalar"
    r"|(layer|attention|attn|block|layers_block)_(types?|layers?|pattern|mode|span|period|offset|interval)"
    r"|(local|global)_(\w+_)?(attn|attention|layers?|heads?|span)|beta_(fast|slow)|(short|long)_factor"
    r"|(low|high|long|short)_(freq|mscale)\w*|floor_scale|offset_alibi|max_distance"
)
POSITION_KEY = re.compile(rf"(?:^|_)(?:{_ALONE}|{_TOGETHER})(?=_|$)")

# Keys that the pattern would catch and that are about something else.
NOT_POSITIONS = frozenset(
    (
        "base_config",
        "base_config_key",
        "base_model",
        "base_model_name",
        "base_model_name_or_path",
        "base_model_prefix",
        "base_model_tp_plan",
        "base_model_pp_plan",
        "base_model_ep_plan",
        "base_model_revision",
        "dim_model_base",
        "base_model_id",
        "chunk_size_feed_forward",
        "chunk_size",
        "num_global_key_value_heads",
        "hybrid_cache",
        "v_head_dim",
        "activation_sparsity_pattern",
        "ngram_vocab_size_base",
    )
)
# Keys that begin so are about experts, states, towers, storage or drafting, unless they name a rotation.
_OTHER_SUBJECT = re.compile(
    r"(moe|mlp|norm|layernorm|expert|experts|router|ffn|mamba|ssm|linear|conv|index|indexer|mtp|vision|visual|image|video|audio|speech"
    r"|quant|quantization|lora|tie|vq)_(?!.*(rope|rotary|alibi|position|theta))"
)

# What other parts of a model, or other programs, keep in the same file.
OTHER_PARTS = {
    "task_specific_params": "settings of the generation loop",
    "generation_config": "settings of the generation loop",
    "quantization_config": "storage of the weights",
    "compression_config": "storage of the weights",
    "init_config": "initial weights",
    "auto_map": "code to load",
    "id2label": "labels of a classifier",
    "label2id": "labels of a classifier",
}
_TOWER = re.compile(
    r"(\w+_)?(vision|visual|image|video|vit|audio|speech|acoustic|semantic|talker|token2wav|code2wav|codec|vq|vqgan|vae"
    r"|tts|depth_decoder|code_predictor|protein|projector|aligner|resampler|perceiver|qformer|patcher|mtp|draft)"
    r"(_\w+)?_(config|cfg|model|tower|encoder|args)|vision|visual|audio|speech|vision_tower|audio_tower"
)


def looks_positional(key: str) -> bool:
    """Returns whether a key's name says that positions may depend on it.

    >>> looks_positional("rope_theta"), looks_positional("ropeTheta"), looks_positional("base_model")
    (True, True, False)
    """
    name = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower())
    if name in NOT_POSITIONS or _OTHER_SUBJECT.match(name):
        return False
    return POSITION_KEY.search(name) is not None


def other_part(key: str) -> str | None:
    """Returns what the section `key` is about, if it is no part of the model that reads text.

    >>> other_part("audio_encoder_config"), other_part("text_config")
    ('positions of the audio tower, not of the text', None)
    """
    if key in OTHER_PARTS:
        return OTHER_PARTS[key]
    named = _TOWER.fullmatch(key)
    if named is None:
        return None
    return f"positions of the {named[2] or key.split('_')[0]} tower, not of the text"
