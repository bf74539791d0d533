"""What is refused by name because of a key or a name, before anything about positions is read."""

import re

from rope_jax.checkpoints.ledger import Ledger, Section
from rope_jax.checkpoints.mechanisms import INTERLEAVED, OWN_CODE, RECURRENT, SPARSE, TEMPERATURE, mechanism_of
from rope_jax.checkpoints.model_types import MODEL_TYPES, ModelType, refusal
from rope_jax.errors import UnsupportedError

__all__ = ["refuse_by_key", "refuse_relatives"]


def refuse_by_key(ledger: Ledger, top: Section, spec: ModelType) -> None:
    """Refuses mechanisms that a key switches on whatever the model type, and notes code that comes with the model."""
    if top.content.get("use_bidirectional_attention") in (True, "all"):
        raise refusal(top, "use_bidirectional_attention", "bidirectional attention")
    if spec.encoder and top.content.get("is_decoder") is not True:
        raise refusal(top, "is_decoder", "bidirectional attention")
    if top.content.get("prefix_lm") is True:
        raise refusal(top, "prefix_lm", "prefix attention")
    if any(top.holds(key) for key in ("d_rel", "rel_extent")):
        raise refusal(top, "d_rel" if top.holds("d_rel") else "rel_extent", "relative embeddings")
    if top.holds("position_embedding_type") and top.content["position_embedding_type"] in ("absolute", "learned"):
        raise refusal(top, "position_embedding_type", "learned positions")
    for path, key, value in ledger.entries():
        prefix = path[: len(path) - len(key)]
        if key == OWN_CODE and value:
            ledger.find(
                f"{path}: the model comes with code of its own, not read here: it may treat positions otherwise"
            )
        mechanism = mechanism_of(key, top=prefix in ("", top.prefix))
        if mechanism is None or _expected(mechanism.says, key, spec, top):
            continue
        if mechanism.says == SPARSE and spec.sparse:
            ledger.account(path, "picks the keys that a query reads")
            ledger.find(
                f"{SPARSE}; positions are as said, and what an attention over all keys does is not what it does"
            )
            continue
        if not mechanism.off(value):
            raise Section(ledger, {key: value}, prefix).error(key, mechanism.says, UnsupportedError)
        ledger.account(path, "null: not set" if value is None else "says what is done anyway")
    if spec.sparse:
        for path, key, _ in ledger.entries():
            if key in ("keep_window_size", "index_head_dim", "indexer_head_dim"):
                ledger.account(path, "picks the keys that a query reads")


def _expected(says: str, key: str, spec: ModelType, top: Section) -> bool:
    """Returns whether what a key switches on is read for this model type."""
    latent = spec.latent or all(top.holds(name) for name in ("qk_nope_head_dim", "qk_rope_head_dim"))
    if key in spec.own_names.values():
        return True
    if says == INTERLEAVED:
        return latent and key == "rope_interleave"
    if says == TEMPERATURE:
        return bool(spec.temperature) and key in ("attn_temperature_tuning", "llama_4_scaling_beta")
    return says == RECURRENT and key == "linear_attn_config" and spec.latent


def refuse_relatives(outer: Section, top: Section, model_type: str) -> None:
    """Refuses a model type that is not known, but goes by the name of a family with layers that do not turn."""
    if any(top.holds(key) for key in ("no_rope_layers", "no_rope_layer_interval")):
        return  # it says itself which do
    classes = outer.content.get("architectures")
    names = [name.partition("For")[0] for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in (model_type, *names)]
    for family, spec in MODEL_TYPES.items():
        if spec.rotation != "all" and any(
            name.startswith(family.removesuffix("_text").replace("_", "")) for name in plain
        ):
            section = top if top.holds("model_type") else outer
            raise section.error(
                "model_type",
                f"not known here, and by its name or its architectures of the family of {family}, whose published code "
                "leaves layers without rotation: which of them turn is not known",
                UnsupportedError,
            )
