"""What a published config says about positions, each value beside the key it came from."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from rope_jax.frequencies import Rotary
from rope_jax.length_rules import LengthRule, at_length
from rope_jax.rules import Rule


@dataclasses.dataclass(frozen=True)
class Sourced:
    """A value and where it was read.

    Attributes:
      value: the value used.
      source: the key's path in the config (`rope_scaling.factor`), or "default of <model type>", or "derived: ...".
    """

    value: Any
    source: str


@dataclasses.dataclass(frozen=True)
class BiasSpec:
    """A bias that a config asks for, on the host.

    Attributes:
      kind: "alibi" or "t5".
      slopes_scale: multiplies ALiBi's paper slopes (Falcon puts the bias inside `1/sqrt(head_dim)`).
      num_buckets: T5 buckets.
      max_distance: T5's largest told-apart distance, tokens.
      bidirectional: whether the T5 buckets tell future keys apart (an encoder).
      unscaled_logits: whether attention has no `1/sqrt(head_dim)`.
    """

    kind: Literal["alibi", "t5"]
    slopes_scale: float = 1.0
    num_buckets: int | None = None
    max_distance: int | None = None
    bidirectional: bool = False
    unscaled_logits: bool = False


@dataclasses.dataclass(frozen=True)
class Temperature:
    r"""A factor on the logits of a query that grows with the query's position.

    .. math:: t(i) = 1 + \beta \ln(1 + \lfloor (i + s) / \ell \rfloor)

    Attributes:
      beta: `beta`, its growth.
      length: `l`, tokens after which it changes, again and again.
      shift: `s`, tokens: 1 in Llama 4, whose code counts from one, 0 in Ministral 3.
    """

    beta: float
    length: float
    shift: int = 0

    def at(self, positions: Int[np.ndarray, " tokens"]) -> Float[np.ndarray, " tokens"]:
        """Returns `t` at whole positions, in float64.

        >>> Temperature(0.1, 8192.0, shift=1).at(np.array([0, 8190, 8191])).round(6).tolist()
        [1.0, 1.0, 1.069315]
        """
        return 1 + self.beta * np.log1p(np.floor((np.asarray(positions, np.float64) + self.shift) / self.length))


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """Layers that share one positional scheme.

    Attributes:
      name: the layer type, as in `DecoderConfig.layer_types`; "full_attention" where all layers are alike.
      layers: indices of its layers.
      rotary: the unscaled rotary embedding, or None where nothing turns.
      rule: how its frequencies are scaled; where nothing turns, how those of the layers beside it are.
      bias: the bias that is added, or None.
      window: sliding window in tokens, or None.
      num_heads: query heads.
      head_dim: dimensions of a query or key head.
      chunked: whether the window is cut at its multiples: a query sees the tokens of its own chunk only (Llama 4).
      temperature: the factor on the logits by the query's position, or None.
    """

    name: str
    layers: tuple[int, ...]
    rotary: Rotary | None
    rule: Rule | LengthRule
    bias: BiasSpec | None
    window: int | None
    num_heads: int
    head_dim: int
    chunked: bool = False
    temperature: Temperature | None = None

    def scaled_at(self, length: int) -> Rotary | None:
        """Returns the scaled rotary embedding for sequences of `length` tokens; None where nothing turns."""
        return None if self.rotary is None else at_length(self.rule, length)(self.rotary)


@dataclasses.dataclass(frozen=True)
class PositionConfig:
    """All that positions depend on, read from one config.

    Attributes:
      model_type: the config's `model_type`.
      origin: the file or preset it was read from.
      groups: one a layer type, in order of first layer.
      original_length: tokens the model was trained on before any length extension.
      declared_length: tokens the config says it serves.
      dtype: the weights' declared dtype, or None.
      values: every value used, by a short name (`rope_theta`, `factor`, ...), with its source.
      without_effect: keys about positions that change nothing here, with the reason.
      findings: what looks wrong or risky, one line each.
    """

    model_type: str
    origin: str
    groups: tuple[LayerGroup, ...]
    original_length: int
    declared_length: int
    dtype: str | None
    values: Mapping[str, Sourced]
    without_effect: Mapping[str, str]
    findings: tuple[str, ...]

    @property
    def main_group(self) -> LayerGroup:
        """The layers that see the whole context: the first group without a window, or the first group."""
        return next((group for group in self.groups if group.window is None), self.groups[0])
