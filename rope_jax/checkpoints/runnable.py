"""What a config may say of positions that is read and inspected, but that the decoder here does not run."""

from rope_jax.checkpoints.positions import PositionConfig
from rope_jax.errors import UnsupportedError

__all__ = ["check_runs"]


def check_runs(positions: PositionConfig) -> None:
    """Raises where running the model would leave something out that its config says of positions.

    Args:
      positions: of the model.

    Raises:
      UnsupportedError: if layers see chunks of the context only, or queries have a temperature by their position.
    """
    for group in positions.groups:
        if group.chunked:
            raise UnsupportedError(
                f"{positions.origin}: chunked attention: layers of type {group.name} see their own chunk of "
                f"{group.window} tokens only, which the decoder here does not run"
            )
        if group.temperature is not None:
            beta, length, shift = group.temperature.beta, group.temperature.length, group.temperature.shift
            place = "position" if shift == 0 else f"(position + {shift})"
            raise UnsupportedError(
                f"{positions.origin}: attention temperature: layers of type {group.name} multiply queries by 1 + "
                f"{beta:g} ln(1 + floor({place} / {length:g})), which the decoder here does not run"
            )
