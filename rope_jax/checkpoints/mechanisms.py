"""Keys that change positions or attention beyond what any scheme here says: refused by name, in both readers.

One list for the reader of positions and the reader of weights. A key that holds the value at which nothing changes is
no reason to refuse.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from rope_jax.checkpoints.ledger import is_off

__all__ = [
    "INTERLEAVED",
    "MECHANISMS",
    "OWN_CODE",
    "RECURRENT",
    "SPARSE",
    "TEMPERATURE",
    "Mechanism",
    "mechanism_of",
]

# Not a mechanism but a warning: where the config names it, published code is not what is known of the model type.
OWN_CODE = "auto_map"


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """What a key switches on.

    Attributes:
      says: what it does and why that is refused, for the message.
      off: whether a value leaves everything as it is.
      top_only: whether the key means this at a model's top level only.
    """

    says: str
    off: Callable[[Any], bool]
    top_only: bool = False


def _true(value: Any) -> bool:
    return value is None or value is True


def _one(value: Any) -> bool:
    return is_off(value) or (not isinstance(value, bool) and isinstance(value, (int, float)) and value == 1)


def _rotary(value: Any) -> bool:
    return is_off(value) or value in ("none", "rope", "rotary")


TEMPERATURE = (
    "attention temperature: queries are scaled by a function of their position, as in 1 + beta ln(1 + floor(position / "
    "original length)), which no scheme here expresses"
)
INTERLEAVED = "interleaved layout: neighbouring dimensions pair, and weights are read as half-split ones"
_BIDIRECTIONAL = "bidirectional attention: every token sees the ones after it, so a causal context has no meaning"
_GROUPED = "grouped positions (Self-Extend): far tokens share positions, which is no map of frequencies"
SPARSE = "sparse attention: a query reads some of the keys only, which neither a window nor full attention is"
RECURRENT = "linear attention: a state that is carried on stands in place of attention over all keys"
_OTHER_BIAS = (
    "positions enter otherwise than by rotation alone (as with alibi), by a key that no published code of a known "
    "model type reads"
)
_FACTOR = "a scaling factor outside the rope section: which rule it belongs to is not stated"

MECHANISMS: dict[str, Mechanism] = {
    **dict.fromkeys(
        ("use_logn_attn", "logn_attn", "use_logn", "attn_temperature_tuning"), Mechanism(TEMPERATURE, is_off)
    ),
    "llama_4_scaling_beta": Mechanism(TEMPERATURE, is_off),
    **dict.fromkeys(
        (
            "blocksparse_block_size",
            "blocksparse_num_local_blocks",
            "blocksparse_vert_stride",
            "blocksparse_triton_kernel_block_size",
            "blocksparse_params",
        ),
        Mechanism(SPARSE, is_off),
    ),
    **dict.fromkeys(
        (
            "blocksparse_homo_head_pattern",
            "blocksparse",
            "block_sparse",
            "use_block_sparse",
            "block_sparse_attention",
            "use_block_sparse_attention",
        ),
        Mechanism(SPARSE, is_off),
    ),
    "dense_attention_every_n_layers": Mechanism(SPARSE, _one),
    **dict.fromkeys(
        ("linear_attn", "use_linear_attn", "use_linear_attention", "linear_attn_config"), Mechanism(RECURRENT, is_off)
    ),
    "linear_attention": Mechanism(RECURRENT, is_off, top_only=True),  # elsewhere it is a layer type
    **dict.fromkeys(
        ("embedding_type", "attention_bias_type", "attn_bias_type", "pe", "pe_type"), Mechanism(_OTHER_BIAS, _rotary)
    ),
    **dict.fromkeys(("encoder_only", "is_encoder_only"), Mechanism(_BIDIRECTIONAL, is_off)),
    **dict.fromkeys(("index_topk", "sparse_attention_topk"), Mechanism(SPARSE, is_off)),
    **dict.fromkeys(("use_sparse_attention", "sparse_attention"), Mechanism(SPARSE, is_off)),
    **dict.fromkeys(("is_neox_style", "is_neox", "neox_style"), Mechanism(INTERLEAVED, _true)),
    **dict.fromkeys(
        ("interleaved", "rope_interleaved", "rope_interleave", "rotary_interleaved", "is_interleaved"),
        Mechanism(INTERLEAVED, is_off),
    ),
    **dict.fromkeys(("causal", "is_causal"), Mechanism(_BIDIRECTIONAL, _true)),
    **dict.fromkeys(
        (
            "attention_logit_cap",
            "attn_logit_cap",
            "attention_logits_cap",
            "attn_logits_cap",
            "attn_soft_cap",
            "attention_soft_cap",
            "logit_soft_cap",
            "logits_soft_cap",
            "attn_logit_soft_cap",
            "attn_logits_soft_cap",
            "attention_logit_soft_cap",
        ),
        Mechanism(
            "a cap on attention's logits whose form is not known for this name: attn_logit_softcapping is", is_off
        ),
    ),
    **dict.fromkeys(
        ("group_size_1", "group_size_2", "grp_attn_n", "grp_attn_w", "grp_attn_size", "self_extend", "use_self_extend"),
        Mechanism(_GROUPED, _one),
    ),
    **dict.fromkeys(
        ("condense_ratio", "rope_condense_ratio", "rotary_condense_ratio"),
        Mechanism("condensed positions: state rope_scaling of type linear with this factor instead", _one),
    ),
    **dict.fromkeys(
        ("factor", "scaling_factor", "rope_factor", "position_scaling_factor", "scale"),
        Mechanism(_FACTOR, _one, top_only=True),
    ),
}


def mechanism_of(key: str, *, top: bool) -> Mechanism | None:
    """Returns what a key switches on, or None where it is not in the list.

    Args:
      key: its name, in snake_case or camelCase.
      top: whether it stands at the top level of the model.

    >>> mechanism_of("useLognAttn", top=False).off(False), mechanism_of("factor", top=False)
    (True, None)
    """
    mechanism = MECHANISMS.get(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower())
    return None if mechanism is None or (mechanism.top_only and not top) else mechanism
