"""What a decoder is made of, positions apart."""

import dataclasses
from typing import Literal

FULL = "full_attention"

Activation = Literal["silu", "gelu_tanh"]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shapes and switches of a decoder of the Llama or the Gemma family.

    Attributes:
      vocab_size: tokens in the vocabulary.
      hidden_size: width of the residual stream.
      intermediate_size: width of the MLP's gate.
      num_layers: blocks.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads`.
      head_dim: dimensions of a head.
      rms_norm_eps: added to the mean square.
      tie_embeddings: whether the output projection is the embedding.
      qkv_bias: whether query, key and value projections have a bias.
      output_bias: whether attention's output projection has one.
      mlp_bias: whether the three MLP projections have one.
      qk_norm: whether queries and keys are RMS-normalised per head, before they are turned.
      layer_types: one name a layer; the scheme of a layer is looked up by it.
      windows: one sliding window a layer, in tokens, or None.
      activation: of the MLP's gate: "silu", or "gelu_tanh" (GELU in its tanh form).
      post_norms: whether what attention and MLP return is normed too, before it is added (four norms a block).
      embedding_scale: multiplies the embeddings, in the dtype of the activations; the output projection never.
      attention_scale: multiplies every `q.k`; `1 / sqrt(head_dim)` where None.
      attention_soft_cap: caps attention's logits at `cap * tanh(logit / cap)`; None for no cap.
      output_soft_cap: the same for the output logits.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    layer_types: tuple[str, ...] = ()
    windows: tuple[int | None, ...] = ()
    activation: Activation = "silu"
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    output_soft_cap: float | None = None

    def __post_init__(self) -> None:
        for name in ("layer_types", "windows"):
            default = (FULL,) if name == "layer_types" else (None,)
            value = getattr(self, name) or default * self.num_layers
            if len(value) != self.num_layers:
                raise ValueError(f"{name} names {len(value)} layers, num_layers is {self.num_layers}")
            object.__setattr__(self, name, tuple(value))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.activation not in ("silu", "gelu_tanh"):
            raise ValueError(f"activation must be 'silu' or 'gelu_tanh', got {self.activation!r}")

    @property
    def num_parameters(self) -> int:
        """Weights in the model, for a size estimate before anything is allocated."""
        d, f = self.hidden_size, self.intermediate_size
        h, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = d * (2 * h + 2 * kv) + 3 * d * f + (4 if self.post_norms else 2) * d
        layer += self.qkv_bias * (h + 2 * kv) + self.output_bias * d + self.mlp_bias * (2 * f + d)
        layer += self.qk_norm * 2 * self.head_dim
        return self.num_layers * layer + d + self.vocab_size * d * (1 if self.tie_embeddings else 2)
