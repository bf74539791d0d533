"""What a reader of configs finds of one layer type, and what it makes of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rope_jax.checkpoints.rope_types import ORIGINAL

Keys = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Given:
    """What a peer finds of one layer type.

    Attributes:
      model_type: of the text model.
      layer_type: the type of the layers.
      keys: their rope keys as transformers 5 writes them: `rope_type`, `rope_theta` and what the type takes.
      content: the config of the text model as it stands in the file.
      head_dim: all of which turns.
      declared: `max_position_embeddings`.
      target: tokens that the peer is told to serve.
      length: tokens of the sequence.
    """

    model_type: str
    layer_type: str
    keys: Mapping[str, Any]
    content: Mapping[str, Any]
    head_dim: int
    declared: int
    target: int
    length: int

    @property
    def original(self) -> int:
        return int(self.keys.get(ORIGINAL, self.declared))


@dataclasses.dataclass(frozen=True)
class Read:
    """What a peer makes of it.

    Attributes:
      keys: those that say the same to transformers 5; None where it stops with an error.
      reasons: what it does otherwise, each with the file that does it.
    """

    keys: Keys | None
    reasons: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Peer:
    """A program that reads configs.

    Attributes:
      version: whose files were read.
      read: what it does.
    """

    version: str
    read: Callable[[Given], Read]
