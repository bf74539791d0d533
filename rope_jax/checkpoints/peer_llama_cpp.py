"""What llama.cpp makes of a config: its converter writes a GGUF file, of which the program reads what it knows.

Read in the llama.cpp that llama-cpp-python 0.3.36 carries. Its converter asks for transformers 4.57, whose defaults
stand in for keys that are missing.
"""

from collections.abc import Mapping
from typing import Any

from rope_jax.checkpoints.peer_records import Given, Keys, Read
from rope_jax.checkpoints.rope_types import ORIGINAL
from rope_jax.scaling import yarn_mscale

_BASES = {"mixtral": 1e6, "gemma3_text": 1e6}  # where rope_theta is missing; of all others 10,000
_BASE_UNWRITTEN = ("gemma", "gemma2")
_LLAMA3_FACTORS = ("llama", "mistral", "mixtral")  # whose converter makes a tensor of Llama 3's rule
_LOCAL = "sliding_attention"
_CONVERTER = "conversion/base.py"


def llama_cpp(given: Given) -> Read:
    """Returns what the converter and the program make of a layer type's keys."""
    if given.model_type in _BASE_UNWRITTEN:
        why = "the base is 10,000 and nothing scaled: the converter writes no rope keys (conversion/gemma.py)"
        return Read(_default(1e4), (why,))
    section, nested = _section(given)
    if given.model_type == "gemma3_text" and given.layer_type == _LOCAL:
        stated = section.get("rope_theta") if nested else given.content.get("rope_local_base_freq")
        return Read(_default(float(stated or 1e4)))
    base = section.get("rope_theta")
    if base is None and not nested:
        base = given.content.get("rope_theta")
    base = float(_BASES.get(given.model_type, 1e4) if base is None else base)
    kind = section.get("rope_type", None if nested else section.get("type"))
    original = section.get(ORIGINAL, None if nested else given.content.get(ORIGINAL))
    if kind in (None, "default"):
        unread = given.keys["rope_type"] != "default"
        return Read(_default(base), (f"rope_scaling is not read beside rope_parameters ({_CONVERTER})",) * unread)
    if kind == "linear":
        return Read({"rope_type": "linear", "rope_theta": base, "factor": section["factor"]})
    if kind == "yarn":
        return _yarn(section, base, original)
    if kind == "llama3" and given.model_type in _LLAMA3_FACTORS:
        return _llama3(section, base, original)
    why = {
        "dynamic": f"nothing is scaled: the converter leaves rope type dynamic out ({_CONVERTER})",
        "llama3": "nothing is scaled: the converter makes rope_freqs for Llama's class alone (conversion/llama.py)",
        "longrope": "nothing is scaled: the converter makes factor tensors for Phi-3's class alone (conversion/phi.py)",
    }[kind]
    return Read(_default(base), (why,))


def _section(given: Given) -> tuple[Mapping[str, Any], bool]:
    """Returns the rope section that the converter finds, and whether it is one of several."""
    content = given.content
    stated = content["rope_parameters"] if "rope_parameters" in content else content.get("rope_scaling")
    stated = stated or {}
    nested = any(isinstance(value, Mapping) for value in stated.values())
    return (stated.get(given.layer_type) or {}, True) if nested else (stated, False)


def _default(base: float) -> Keys:
    return {"rope_type": "default", "rope_theta": base}


def _yarn(section: Mapping[str, Any], base: float, original: Any) -> Read:
    if original is None:
        return Read(None, (f"KeyError: {ORIGINAL} is looked for beside the factor ({_CONVERTER})",))
    factor = float(section["factor"])
    reasons = []
    if section.get("attention_factor") is not None:
        reasons.append("attention_factor is replaced by 1 + 0.1 ln(factor) (src/llama-context.cpp)")
    if any(section.get(key) is not None for key in ("mscale", "mscale_all_dim")):
        reasons.append(f"mscale and mscale_all_dim are not read ({_CONVERTER})")
    if section.get("truncate") is False:
        reasons.append("truncate is not read: the ramp begins and ends at whole pairs (ggml/src/ggml.c)")
    keys = {key: section[key] for key in ("beta_fast", "beta_slow") if section.get(key) is not None}
    keys |= {"rope_type": "yarn", "rope_theta": base, "factor": factor, ORIGINAL: original}
    return Read(keys | {"attention_factor": yarn_mscale(factor)}, tuple(reasons))


def _llama3(section: Mapping[str, Any], base: float, original: Any) -> Read:
    """Returns what becomes of Llama 3's rule, whose original length the config's own definition asks for too."""
    keys = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} | {
        key: section[key] for key in ("low_freq_factor", "high_freq_factor") if section.get(key) is not None
    }
    return Read(keys | {"rope_type": "llama3", "rope_theta": base, "factor": section["factor"], ORIGINAL: original})
