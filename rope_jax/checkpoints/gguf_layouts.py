"""What a GGUF file does not store and its architecture implies: which dimensions pair, and whose config it stands for.

Source: `llama_model_rope_type` and the `load_arch_hparams` of each architecture in the llama.cpp that llama-cpp-python
0.3.36 carries (the names are those of `MODEL_ARCH_NAMES` in gguf 0.19), and its converters for what they change.
"""

import dataclasses
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # it needs JAX, and a config is read without
    from rope_jax.rotation import Layout

__all__ = ["ARCHITECTURES", "Architecture", "pair_layout"]


def _named(text: str) -> frozenset[str]:
    return frozenset(text.split())


_INTERLEAVED = _named(
    "arcee arctic baichuan bailingmoe chameleon chatglm cohere2 command-r deci deepseek deepseek2 ernie4_5 "
    "ernie4_5-moe granite granitehybrid granitemoe internlm2 llada llama llama-embed llama4 minicpm mistral3 mistral4 "
    "neo-bert olmo plm smollm3 starcoder xverse"
)
_HALF = _named(
    "afmoe apertus bailingmoe2 bert bitnet codeshell cogvlm dbrx dots1 dream eurobert exaone exaone-moe exaone4 falcon "
    "falcon-h1 gemma gemma-embedding gemma2 gemma3 gemma3n gemma4 gpt-oss gptneox grok grovemoe hunyuan-dense "
    "hunyuan-moe jais2 jina-bert-v3 lfm2 lfm2moe llada-moe mimo2 minicpm3 minimax-m2 modern-bert nemotron nomic-bert "
    "nomic-bert-moe olmo2 olmoe openelm orion pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 qwen qwen2 qwen2moe "
    "qwen3 qwen3moe qwen3next rnd1 seed_oss smallthinker stablelm starcoder2 step35"
)
_NO_ROTATION = _named(
    "bloom clip gpt2 gptj jais jamba jina-bert-v2 kimi-linear mamba mamba2 mpt nemotron_h nemotron_h_moe refact rwkv6 "
    "rwkv6qwen2 rwkv7 arwkv7 t5 t5encoder wavtokenizer-dec"
)
# Half-split pairs with a position of each of three axes; for text they are one.
_THREE_AXES = _named("qwen2vl paddleocr qwen35 qwen35moe qwen3vl qwen3vlmoe")


def pair_layout(architecture: str) -> "Layout | None":
    """Returns which dimensions llama.cpp rotates together in the weights of an architecture.

    Args:
      architecture: `general.architecture`.

    Returns:
      "interleaved", "half", or None where nothing rotates.

    Raises:
      KeyError: if it is not in the table.

    >>> pair_layout("llama"), pair_layout("qwen3"), pair_layout("mpt")
    ('interleaved', 'half', None)
    """
    if architecture in _INTERLEAVED:
        return "interleaved"
    if architecture in _HALF or architecture in _THREE_AXES:
        return "half"
    if architecture in _NO_ROTATION:
        return None
    raise KeyError(architecture)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An architecture whose metadata is read as the config of a model type.

    Attributes:
      model_type: as in `model_types.MODEL_TYPES`.
      windowed_type: the model type where the file states a sliding window; the same one where None.
      windows: which layers a window holds for where no pattern is stated: it is not known, all, or all but every n-th.
      window_run: whether llama.cpp itself applies the window.
      partial: whether `rope.dimension_count` may be less than a head.
      local_base: whether layers with a window have a base of their own, `rope.freq_base_swa`.
      scale_of_layers: the number of layers whose attention is scaled by the heads' share of the width, and not by the
        head's dimensions (the 27B models of Gemma); None for no such number.
      frequency_tensors: whether llama.cpp reads `rope_freqs` and `rope_factors_*`.
      permuted: whether the converter reordered the rows of Hugging Face's queries and keys, which are half-split.
      alibi: whether positions enter by ALiBi, "fixed" (8) or as `attention.max_alibi_bias` says.
    """

    model_type: str
    windowed_type: str | None = None
    windows: int | Literal["unknown", "all"] = "unknown"
    window_run: bool = True
    partial: bool = False
    local_base: bool = False
    scale_of_layers: int | None = None
    frequency_tensors: bool = False
    permuted: bool = False
    alibi: Literal["no", "fixed", "stated"] = "no"


ARCHITECTURES: dict[str, Architecture] = {
    # Mistral is converted as a Llama, and llama.cpp applies no window in one.
    "llama": Architecture(
        "llama", windowed_type="mistral", windows="all", window_run=False, frequency_tensors=True, permuted=True
    ),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen2moe": Architecture("qwen2_moe"),
    "qwen3moe": Architecture("qwen3_moe"),
    "gemma": Architecture("gemma"),
    "gemma2": Architecture("gemma2", windows=2, scale_of_layers=46),
    "gemma3": Architecture("gemma3_text", windows=6, local_base=True, scale_of_layers=62),
    "phi3": Architecture("phi3", windows="all", window_run=False, partial=True, frequency_tensors=True),
    "olmo2": Architecture("olmo2", windowed_type="olmo3", windows=4),
    "gpt-oss": Architecture("gpt_oss", windows=2),
    "starcoder2": Architecture("starcoder2", windows="all", window_run=False),
    "stablelm": Architecture("stablelm", partial=True),
    "gptneox": Architecture("gpt_neox", partial=True),
    "falcon": Architecture("falcon"),
    "bloom": Architecture("bloom", alibi="fixed"),
    "mpt": Architecture("mpt", alibi="stated"),
    "t5": Architecture("t5"),
}
