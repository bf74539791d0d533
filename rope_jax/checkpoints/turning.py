"""Which layers of a model turn at all, as its published code or a key of the config says."""

from rope_jax.checkpoints.ledger import Section, boolean, integer, list_of, text
from rope_jax.checkpoints.type_record import FULL, ModelType

__all__ = ["listed_turning", "turning_layers"]

_COUNT = integer(1, 100_000)
_DENSE_PREFIX = "prefix_dense_sliding_window_pattern"


def turning_layers(
    top: Section, spec: ModelType, kinds: tuple[str, ...], window: int | None, *, known: bool
) -> tuple[bool, ...]:
    """Returns whether each layer turns at all.

    Args:
      top: the model's section.
      spec: the model type.
      kinds: the type of every layer.
      window: the stated window, or None.
      known: whether the model type is; `no_rope_layers` of one that is not is read as those that know it do.
    """
    if spec.rotation == "none":
        if top.read("mla_use_nope", check=boolean) is False:
            raise top.error("mla_use_nope", f"{top.ledger.defaults_of}'s published code rotates in no layer")
        return (False,) * len(kinds)
    if spec.rotation == "if asked":
        asked = _asked(top)
        return (asked,) * len(kinds)
    if spec.rotation == "no full" or (spec.rotation == "no full beside windows" and window is not None):
        dense = _dense_prefix(top, len(kinds))
        return tuple(kind != FULL or i in dense for i, kind in enumerate(kinds))
    if spec.rotation == "listed" or not known:
        return listed_turning(top, len(kinds))
    return (True,) * len(kinds)


def _asked(top: Section) -> bool:
    """Returns whether a hybrid's attention turns, which it does if a key says so."""
    kind = top.read("position_embedding_type", check=text)
    switch = top.read("use_mem_rope", check=boolean)
    if kind not in (None, "rope", "nope"):
        raise top.error("position_embedding_type", "must be 'rope', 'nope' or null")
    if kind is None and switch is None:
        top.ledger.find(f"attention does not turn: {top.ledger.defaults_of} has rotation where a key asks for it only")
    return kind == "rope" or switch is True


def _dense_prefix(top: Section, layers: int) -> set[int]:
    """Returns the dense layers before the mixtures of experts, which turn whatever their type (Cohere 2)."""
    if top.read(_DENSE_PREFIX, check=_COUNT) != 1:
        return set()
    dense = {
        i for i, kind in enumerate(top.read("mlp_layer_types", check=list_of(text, layers)) or ()) if kind == "dense"
    }
    top.ledger.void("mlp_layer_types", "which layers are mixtures of experts")
    count: int | None = top.read("first_k_dense_replace", check=integer(0, 100_000))
    return dense if count is None else dense | set(range(min(count, layers)))


def listed_turning(top: Section, layers: int) -> tuple[bool, ...]:
    """Returns whether each layer turns, as a list or an interval says (SmolLM 3, Llama 4)."""
    every = top.read("no_rope_layer_interval", check=_COUNT, off=True)
    # 1 where the layer does turn
    listed = top.read("no_rope_layers", check=list_of(integer(0, 1), layers), off=True)
    if listed is not None:
        top.ledger.void("no_rope_layer_interval", "no_rope_layers names every layer")
        return tuple(entry == 1 for entry in listed)
    return tuple(every is None or (i + 1) % every != 0 for i in range(layers))
