"""The factor on a query's logits by its position, as the model types that have one read it from the config."""

from rope_jax.checkpoints.ledger import Section, Wrong, integer, is_off, number
from rope_jax.checkpoints.positions import Temperature
from rope_jax.checkpoints.rope_sections import RopeSections
from rope_jax.checkpoints.type_record import ModelType

__all__ = ["BETA", "temperature_of"]

BETA = "llama_4_scaling_beta"
_LENGTH = integer(1, 2**31 - 1)
_GROWTH = number(0, 1e3)
_SWITCH = "attn_temperature_tuning"


def temperature_of(top: Section, sections: RopeSections, spec: ModelType, *, turns: bool) -> Temperature | None:
    """Returns the temperature of layers that turn or do not, or None.

    Args:
      top: the model's section.
      sections: its rope sections; Ministral 3's growth stands in them.
      spec: the model type.
      turns: whether the layers turn: Llama 4 has it where they do not, Ministral 3 in all.

    Raises:
      ConfigError: if a value is out of range.
    """
    if spec.temperature == "llama4":
        return None if turns else _llama4(top)
    if spec.temperature == "beta":
        return _ministral3(top, sections.flat)
    return None


def _llama4(top: Section) -> Temperature | None:
    on = top.read(_SWITCH, check=_switch, off=True)
    length = top.read("floor_scale", check=_LENGTH)
    beta = top.read("attn_scale", check=_GROWTH)
    if not on:
        for name in (_SWITCH, "floor_scale", "attn_scale"):
            top.ledger.void(name, "the temperature is off")
        return None
    found = Temperature(beta, length, shift=1)
    top.ledger.find(
        f"attention temperature: layers without rotation multiply queries by 1 + {beta:g} ln(1 + floor((position + 1) "
        f"/ {length})), which is 1 up to position {length - 2}"
    )
    return found


def _ministral3(top: Section, rope: Section) -> Temperature | None:
    beta = rope.read(BETA, check=_GROWTH, off=True)
    if beta is None or beta == 0:
        return None
    length = rope.need("original_max_position_embeddings", check=_LENGTH, name="original_length")
    top.ledger.find(
        f"attention temperature: queries are multiplied by 1 + {beta:g} ln(1 + floor(position / {length})), which is 1 "
        f"before position {length}"
    )
    return Temperature(beta, length)


def _switch(value: object) -> bool:
    """The check for a switch that older files write as a whole number."""
    if isinstance(value, bool) or (isinstance(value, int) and 0 <= value <= 100):
        return not is_off(value)
    raise Wrong("must be true or false")
