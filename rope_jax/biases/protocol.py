"""What a bias must offer to become part of a scheme."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable  # tests check annotations
class Bias(Protocol):
    """A pytree that gives every head's bias at an offset.

    A bias that is one constant from some offset on also has `flat_from`, that offset; one without it (KERPLE) changes
    forever. A bias whose attention has no `1 / sqrt(head_dim)` has `unscaled_logits = True`.
    """

    @property
    def num_heads(self) -> int:
        """Query heads."""

    def __call__(self, offset: Any, /) -> Any:
        """Returns float32 `[heads, *offset.shape]`, nats, at `offset = i - j`, query minus key position."""
