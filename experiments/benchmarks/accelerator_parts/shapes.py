"""The shapes that attention is timed at, and what a time says of a speed."""

import dataclasses
from collections.abc import Iterator

from accelerator_parts.jobs import Found

_BACKWARD = 2.5  # products of a backward pass over those of a forward pass


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of queries, keys and values of one sequence."""

    dim: int
    heads: int
    tokens: int

    def case(self, bias: str) -> dict[str, str | int]:
        """Returns the case as it is kept."""
        return {"d": self.dim, "heads": self.heads, "tokens": self.tokens, "bias": bias}

    @property
    def array(self) -> tuple[int, int, int, int]:
        return 1, self.tokens, self.heads, self.dim


def shapes(quick: bool) -> list[Shape]:
    """Returns the shapes in order of worth."""
    if quick:
        return [Shape(64, 2, 256)]
    lengths = (16384, 32768, 4096)
    return [Shape(dim, heads, tokens) for dim, heads in ((128, 8), (128, 32), (64, 8), (64, 32)) for tokens in lengths]


def speeds(shape: Shape, forward: float, both: float | None = None) -> Iterator[Found]:
    """Yields a forward pass's time and speed, or with `both` those of the backward pass; products of a triangle count.

    Args:
      shape: of the call.
      forward: milliseconds of a forward pass.
      both: milliseconds of a forward and a backward pass.
    """
    products = 4 * shape.tokens**2 * shape.dim * shape.heads / 2
    if both is None:
        yield Found("forward", forward, "ms")
        yield Found("forward speed", products / forward / 1e9, "TFLOP/s")
        return
    yield Found("forward + backward", both, "ms")
    yield Found("backward", both - forward, "ms")
    if both > forward:
        yield Found("backward speed", _BACKWARD * products / (both - forward) / 1e9, "TFLOP/s")
