"""What other programs do with a config's rope keys that the config's own definition, transformers 5, does not.

A peer is a function from the keys of one layer type to those that transformers 5 would need for the same numbers, with
what it changed in words. What it changes nothing of, it reads alike. Each fact was read in the file and version that it
names; only the model types of `MODEL_TYPES` were looked at, all of which turn halves (half-split layout).
"""

from rope_jax.checkpoints.peer_llama_cpp import llama_cpp
from rope_jax.checkpoints.peer_records import Given, Keys, Peer, Read
from rope_jax.checkpoints.rope_types import ORIGINAL
from rope_jax.scaling import longrope_factor, yarn_mscale

MODEL_TYPES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
_UNSCALED = ("mixtral", "gemma", "gemma2")  # by SGLang and mlx-lm, whose classes take the base alone
_MLX_ORIGINAL = {"yarn": 4096, "llama3": 8192, "longrope": None}  # where the section lacks one; None: an error


def _transformers_4(given: Given) -> Read:
    file = f"models/{given.model_type.removesuffix('_text')}/configuration_{given.model_type.removesuffix('_text')}.py"
    found = _by_old_keys(given, theta={"gemma3_text": 1e6, "mixtral": 1e6}.get(given.model_type, 1e4), file=file)
    keys, file = dict(found.keys or {}), "modeling_rope_utils.py"
    scaled = keys["rope_type"] in ("dynamic", "yarn", "longrope", "llama3")
    if scaled and given.model_type in ("mistral", "mixtral") and given.content.get("head_dim") is None:
        return Read(None, (*found.reasons, f"TypeError: head_dim is None, and not derived ({file})"))
    if keys["rope_type"] != "longrope":
        return found
    reasons, outer = list(found.reasons), given.content.get(ORIGINAL)
    original = outer or given.declared
    factor = keys.get("factor") if outer is None else given.declared / outer
    if outer is None:
        reasons.append(
            f"{ORIGINAL} is read beside the rope section only: without it there it is max_position_embeddings ({file})"
        )
    elif "factor" in keys:
        reasons.append(f"factor is not read, but max_position_embeddings over {ORIGINAL} ({file})")
    attention = keys.get("attention_factor")
    if attention is None:
        if factor is None:
            return Read(None, (*reasons, f"TypeError: no factor ({file})"))
        attention = longrope_factor(factor=factor, original_length=original)
    name = "long_factor" if given.length > original else "short_factor"
    return Read(_one_list(keys, name, attention, original=given.original), tuple(reasons))


def _vllm(given: Given) -> Read:
    keys, kind = dict(given.keys), given.keys["rope_type"]
    folder = "model_executor/layers/rotary_embedding"
    if kind == "dynamic":
        why = (
            "nothing is scaled: the base is fixed when the model loads, for max_position_embeddings itself "
            f"({folder}/dynamic_ntk_scaling_rope.py)"
        )
        return Read({"rope_type": "default", "rope_theta": keys["rope_theta"]}, (why,))
    if kind == "longrope":
        name = "long_factor" if given.target > given.original else "short_factor"
        why = f"{name} for every sequence, by the length that is served ({folder}/phi3_long_rope_scaled_rope.py)"
        return _longrope(given, keys, name, f"{folder}/phi3_long_rope_scaled_rope.py", (why,))
    return Read(keys)


def _sglang(given: Given) -> Read:
    keys, kind = dict(given.keys), given.keys["rope_type"]
    folder = "srt/layers/rotary_embedding"
    if given.model_type == "gemma3_text":
        return Read(keys)  # by transformers' own functions, but on CPUs with AMX
    if given.model_type in _UNSCALED:
        found = _unscaled(Read(keys), f"srt/models/{given.model_type}.py")
        whole = float(int(keys["rope_theta"]))
        if given.model_type != "mixtral" or whole == keys["rope_theta"]:
            return found
        why = "the base is rounded down to a whole number (srt/models/mixtral.py)"
        return Read({"rope_type": "default", "rope_theta": whole}, (*found.reasons, why))
    if kind == "yarn":
        reasons = []
        factor, mscale, all_dim = float(keys["factor"]), keys.pop("mscale", None), keys.pop("mscale_all_dim", None)
        usual = mscale is None or all_dim is None
        attention = yarn_mscale(factor) if usual else yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
        if keys.pop("attention_factor", None) is not None:
            reasons.append(f"attention_factor is not read ({folder}/factory.py)")
        return Read(keys | {"attention_factor": attention}, tuple(reasons))
    if kind == "dynamic":
        factor = keys["factor"]
        why = (
            f"the base is fixed when the model loads, for {factor:g} times max_position_embeddings "
            f"({folder}/rope_variant.py)"
        )
        return Read(_of_another_base(keys, given, factor * factor - (factor - 1)), (why,))
    if kind == "longrope":
        name = "long_factor" if given.length > given.original else "short_factor"
        return _longrope(given, keys, name, f"{folder}/rope_variant.py", ())
    return Read(keys)


def _mlx(given: Given) -> Read:
    file = "models/rope_utils.py"
    found = Read(dict(given.keys))
    if given.model_type != "qwen3":  # its class alone has the key
        theta = {"mixtral": 1e6, "qwen2": 1e6, "gemma3_text": 1e6}.get(given.model_type, 1e4)
        name = {"mistral": "llama"}.get(given.model_type, given.model_type)
        found = _by_old_keys(given, theta=theta, file=f"models/{name}.py")
        if name in _UNSCALED:
            return _unscaled(found, f"models/{name}.py")
    elif given.content.get("rope_theta") is None and "rope_theta" not in (given.content.get("rope_parameters") or {}):
        return Read(None, ("ValueError: rope_theta is missing (models/qwen3.py)",))
    assert found.keys is not None
    keys, reasons, kind = found.keys, list(found.reasons), found.keys["rope_type"]
    raw = given.content.get("rope_scaling") or given.content.get("rope_parameters") or {}
    if kind in _MLX_ORIGINAL and ORIGINAL not in raw:
        if _MLX_ORIGINAL[kind] is None:
            return Read(None, (f"KeyError: {ORIGINAL} is looked for beside the factors ({file})",))
        keys[ORIGINAL] = _MLX_ORIGINAL[kind]
        reasons.append(f"{ORIGINAL}, missing beside the factor, is {keys[ORIGINAL]:,} ({file})")
    if kind == "yarn":
        factor = float(keys["factor"])
        if ("mscale" in keys) != ("mscale_all_dim" in keys):
            reasons.append(f"mscale is 1 and mscale_all_dim 0 where one is missing ({file})")
        attention = yarn_mscale(factor, keys.pop("mscale", 1.0)) / yarn_mscale(factor, keys.pop("mscale_all_dim", 0.0))
        reasons += [
            f"{key} is not read ({file})" for key in ("attention_factor", "truncate") if keys.pop(key, None) is not None
        ]
        keys["attention_factor"] = attention
    if kind == "longrope":
        name = "long_factor"
        return _longrope(given, keys, name, file, (*reasons, f"{name} for every sequence ({file})"), mscales=False)
    return Read(keys, tuple(reasons))


def _by_old_keys(given: Given, *, theta: float, file: str) -> Read:
    """Returns what a reader of `rope_theta` and `rope_scaling`, beside each other, makes of a config.

    Args:
      given: what it finds.
      theta: its base where `rope_theta` is missing.
      file: its file, which does not read `rope_parameters`.
    """
    content, reasons = given.content, []
    local = given.model_type == "gemma3_text" and given.layer_type == "sliding_attention"
    name, default = ("rope_local_base_freq", 1e4) if local else ("rope_theta", theta)
    base = float(content.get(name) or default)
    if content.get(name) is None:
        reasons.append(f"{name}, missing beside the other keys, is {default:,.0f} ({file})")
    if content.get("rope_parameters") is None or content.get("rope_scaling") is not None or local:
        return Read({**given.keys, "rope_theta": base}, tuple(reasons))
    return Read(
        {"rope_type": "default", "rope_theta": base}, (f"the key rope_parameters is not read ({file})", *reasons)
    )


def _unscaled(found: Read, file: str) -> Read:
    assert found.keys is not None
    why = () if found.keys["rope_type"] == "default" else (f"no scaling is read ({file})",)
    return Read({"rope_type": "default", "rope_theta": found.keys["rope_theta"]}, (*found.reasons, *why))


def _of_another_base(keys: Keys, given: Given, multiplier: float) -> Keys:
    base = keys["rope_theta"] * multiplier ** (given.head_dim / (given.head_dim - 2))
    return {"rope_type": "default", "rope_theta": base}


def _longrope(
    given: Given, keys: Keys, name: str, file: str, reasons: tuple[str, ...], *, mscales: bool = True
) -> Read:
    """Returns one list for all lengths, with the factor of `max_position_embeddings` over the original length."""
    usual = longrope_factor(factor=given.declared / given.original, original_length=given.original)
    stated = keys.get(name.replace("factor", "mscale")) if mscales else None
    unread = " and ".join(key for key in ("attention_factor", "factor") if key in keys)
    found = _one_list(keys, name, usual if stated is None else stated, original=given.original)
    said = (f"{unread}: not read, but max_position_embeddings over {ORIGINAL} ({file})",) if unread else ()
    return Read(found, (*reasons, *said))


def _one_list(keys: Keys, name: str, attention_factor: float, *, original: int) -> Keys:
    return {key: keys[key] for key in ("rope_type", "rope_theta")} | {
        ORIGINAL: original,
        "short_factor": keys[name],
        "long_factor": keys[name],
        "attention_factor": attention_factor,
        "factor": 1.0,
    }


PEERS = {
    "transformers": Peer("5.24", lambda given: Read(dict(given.keys))),
    "transformers4": Peer("4.57", _transformers_4),
    "vllm": Peer("0.33.0", _vllm),
    "sglang": Peer("0.5.23", _sglang),
    "mlx": Peer("0.32.2", _mlx),
    "llama.cpp": Peer("0c1e570", llama_cpp),
}
