"""What is written down of one model type: the fields of its record, and the mechanisms that are refused by name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from rope_jax.checkpoints.ledger import Section
from rope_jax.errors import ConfigError, UnsupportedError

__all__ = ["CHUNKED", "CROSS", "FULL", "LINEAR", "REFUSED", "SLIDING", "ModelType", "refusal"]

FULL = "full_attention"
SLIDING = "sliding_attention"
CHUNKED = "chunked_attention"
# Layers that no position enters: they carry a state, see another sequence, or have no attention at all.
LINEAR = "linear_attention"
CROSS = "cross_attention"

# Mechanisms that are refused rather than approximated, each with its reason.
REFUSED = {
    "fragment": "no model_type: a fragment to merge into a config, not a config; what it leaves out would be guessed",
    "learned positions": "positions are learned vectors added to the embeddings: there is no rotation or bias to scale",
    "sinusoidal positions": "positions are fixed sinusoids added to the embeddings: no rotation or bias to scale",
    "no attention": "no layer has attention: a state is carried on, and no position enters",
    "no positions": "no layer has positions",
    "relative embeddings": "logits get a term of the query's content and of embedded offsets, in place of rotation",
    "segment bias": "the learned bias depends on prompt segments beside the offset, as no bias of positions here does",
    "axial positions": "positions are two learned tables over the rows and columns of a grid, and keys are hashed",
    "compressed attention": "keys stand for several tokens each, at positions of their own, beside those of a window",
    "learned frequencies": "frequencies are learned: each is multiplied by exp(alpha), and only the weights hold alpha",
    "several decoders": "bytes, patches and bytes again pass through three stacks, each with positions of its own",
    "drafting head": "it drafts for another model and reads that model's keys, at the positions that model gave them",
    "layer types missing": "which layers are convolutions is not stated, and the model type has no published default",
    "chunked attention": "tokens see their own chunk of the context only, which is neither a window nor full attention",
    "dynamic alpha": (
        "a fixed alpha in place of a factor: published programs disagree about it for this model type (vLLM takes it "
        "for another base, transformers drops it); state the base, rope_theta * alpha^(d/(d-2)), instead"
    ),
    "length-dependent factor": "short_mscale and long_mscale differ: the cos/sin factor would depend on the length",
    "alibi_bias_max": "slopes for another alibi_bias_max than 8 are not a multiple of the published slopes",
    "softmax scale": "attention has a scale of its own in place of 1/sqrt(head_dim)",
    "bidirectional attention": "every token sees the ones after it: probes of a causal context have no meaning",
    "prefix attention": "tokens of the prompt see the ones after them: probes of a causal context have no meaning",
    "unknown dialect": "the model type is not known, and published code disagrees about what this key means",
}

Layers = Literal[
    "alike",
    "every nth full",
    "first and every nth full",
    "upper sliding",
    "lower alternate sliding",
    "still sliding",
    "still chunked",
    "listed",
]
Rotation = Literal["all", "no full", "no full beside windows", "listed", "none", "if asked"]
Scheme = Literal["rope", "alibi", "mpt", "falcon", "t5", "refused"]


@dataclasses.dataclass(frozen=True)
class ModelType:
    """What a model type adds to its config.

    Attributes:
      defaults: values of absent keys, as published; a key without one here must be stated.
      scheme: where positions enter.
      layers: which layers a sliding window holds for, where no list says so. "listed": none unless a list does.
      kinds: the type of layer `i` of `n`, where no list says so and no rule of `layers` does.
      window_switch: whether the published code reads `use_sliding_window`.
      full_every: the distance of full layers, where the published code fixes it and reads no `sliding_window_pattern`;
        0 where it reads that key.
      first_of_n_full: whether a pattern's full layer is the first of every n (ModernBERT), not the last.
      rope: the rope section where the config has none; a layer type without a section of its own does not turn.
      local_unscaled: whether sliding layers keep their trained frequencies, whatever the rope section says.
      own_keys: by layer type, the keys that replace `head_dim`, `num_attention_heads` or `rope_theta` for it.
      own_names: the top-level keys that the published code reads in place of `rope_theta`, `partial_rotary_factor`,
        `head_dim`, `sliding_window` or `final_logit_softcapping`.
      whole_by_default: whether rope type "default" turns whole heads, whatever `partial_rotary_factor` says.
      rotary_dim_unread: whether the published code does not read `rotary_dim`.
      rope_scaling_unread: whether the published code drops `rope_scaling` and reads `rope_parameters` alone.
      last_full: whether the last layer is a full one whatever list or pattern says (Gemma 4).
      rotation: which layers turn: "all"; "no full" layer (Cohere 2), nor one beside windowed ones (EXAONE 4); those
        that `no_rope_layers` names (SmolLM 3); "none" (Jamba); all "if asked" by a key (Granite's hybrids).
      window_excludes_self: whether the window counts the tokens before the query only.
      latent: whether heads split into a turning and a still part (DeepSeek's MLA), and YaRN scales the softmax.
      scales_softmax: whether YaRN's `mscale_all_dim` scales the softmax of latent heads; some leave it.
      sparse: whether a learned index picks the keys that a query reads, which leaves their positions as they are.
      temperature: the formula of the query's temperature, or "".
      fixed_alpha: whether a rope section's `alpha` is another base (HunYuan).
      encoder: whether it is an encoder unless `is_decoder` is true.
      refused: the mechanism of `REFUSED`, where scheme is "refused".
    """

    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scheme: Scheme = "rope"
    layers: Layers = "listed"
    kinds: Callable[[int, int], str] | None = None
    window_switch: bool = False
    full_every: int = 0
    first_of_n_full: bool = False
    rope: Mapping[str, Any] | None = None
    local_unscaled: bool = False
    own_keys: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    own_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    whole_by_default: bool = False
    rotary_dim_unread: bool = False
    rope_scaling_unread: bool = False
    last_full: bool = False
    rotation: Rotation = "all"
    window_excludes_self: bool = False
    latent: bool = False
    scales_softmax: bool = True
    sparse: bool = False
    temperature: Literal["", "llama4", "beta"] = ""
    fixed_alpha: bool = False
    encoder: bool = False
    refused: str = ""


def refusal(section: Section, key: str, mechanism: str) -> ConfigError:
    """Returns the error that refuses `mechanism`, a key of `REFUSED`, because of `key`."""
    return section.error(key, f"{mechanism}: {REFUSED[mechanism]}", UnsupportedError)
