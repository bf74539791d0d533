"""Keys about positions that nothing has read: known to change nothing, or an error."""

import re
from typing import Any

from rope_jax.checkpoints.ledger import Ledger, Section, is_off
from rope_jax.checkpoints.model_types import HARMLESS, refusal

__all__ = ["settle_leftovers"]


def settle_leftovers(ledger: Ledger, top: Section) -> None:
    """Accounts for every key about positions that was not used, or raises."""
    for path, key, value in list(ledger.leftovers()):
        if value is None:
            ledger.account(path, "null: not set")
            continue
        if key in HARMLESS and _accepts(key, value):
            ledger.account(path, HARMLESS[key][1])
            continue
        if top.prefix and path == key and key in top.content and _same(top.content[key], value):
            ledger.account(path, f"repeats {top.prefix}{key}")
            continue
        if key in _BASES and any(value == used.value for name, used in ledger.values.items() if "rope_theta" in name):
            ledger.account(path, "repeats rope_theta")
            continue
        if _switched_off(key, value):
            ledger.account(path, f"{value}: off")
            continue
        section = Section(ledger, {key: value}, path[: len(path) - len(key)])
        if key == "attention_chunk_size":
            raise refusal(section, key, "chunked attention")
        if key in ("alibi", "use_alibi") and value is True:
            raise refusal(section, key, "unknown dialect")
        what = "is about positions and not understood" if key not in HARMLESS else "has a value that is not understood"
        raise section.error(key, what)


# Other names of the base, which no published code of a known model type reads: understood if they repeat it.
_BASES = ("theta", "rope_base", "rotary_base")
# What a false or a 0 of these would say is more than that something unusual is off.
_MORE_THAN_OFF = re.compile(r"rope|rotary|theta|base|nope|causal|neox|position|freq|offset|index|scale|scaling|factor")


def _switched_off(key: str, value: Any) -> bool:
    """Returns whether a key that is not understood says no more than that what it is about is off."""
    if not is_off(value) or isinstance(value, str):
        return False
    plain = key.lower().startswith("no_") or not _MORE_THAN_OFF.search(key.lower())
    return not isinstance(value, (bool, int, float)) or plain


def _accepts(key: str, value: Any) -> bool:
    return not (isinstance(value, bool) and key in ("full_attn_mod", "interpolate_factor")) and HARMLESS[key][0](value)


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b
