"""How a GGUF file says that frequencies are scaled, as the rope section of a config.

Keys name linear, yarn and longrope scaling. Llama 3's rule is no key but a tensor, `rope_freqs.weight`, whose entries
divide the frequencies; its hyperparameters are worked out from them.

Source: `load_hparams` and `get_rope_factors` of llama-model.cpp, the constructor of llama-context.cpp, and
`generate_extra_tensors` of the converter, in the llama.cpp that llama-cpp-python 0.3.36 carries.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float64

from rope_jax.checkpoints.gguf_keys import Keys
from rope_jax.checkpoints.gguf_layouts import Architecture
from rope_jax.checkpoints.gguf_tensors import read_vector
from rope_jax.checkpoints.ledger import close, integer, number, text
from rope_jax.checkpoints.rope_types import MAX_LENGTH
from rope_jax.errors import UnsupportedError
from rope_jax.frequencies import inverse_frequencies

__all__ = ["llama3_of", "put_scaling"]

FREQS = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_FACTOR = number(0.0, 1e6)
_ANY = number(-1e9, 1e9)
_SECTION = "rope_scaling"
_TYPE = f"{_SECTION}.rope_type"
_ORIGINAL = f"{_SECTION}.original_max_position_embeddings"


def put_scaling(keys: Keys, architecture: Architecture, *, dim: int, base: float, length: int) -> None:
    """Puts the rope section of the config.

    Args:
      keys: of the file.
      architecture: whose it is.
      dim: rotary dimensions.
      base: of the frequencies.
      length: tokens that the file says the model serves.

    Raises:
      ConfigError: if a value is missing, of the wrong type or out of range, or two contradict each other.
      UnsupportedError: for a scaling that no config can say.
    """
    kind = keys.take("rope.scaling.type", text, "linear" if _states_factor(keys) else "none")
    factor = keys.take("rope.scaling.factor", _FACTOR) or None
    legacy = keys.take("rope.scale_linear", _FACTOR) or None
    factor_key = "rope.scaling.factor" if factor is not None else "rope.scale_linear"
    if factor is not None and legacy is not None and not close(factor, legacy):
        raise keys.error("rope.scale_linear", f"contradicts {keys.full('rope.scaling.factor')} ({factor:g})")
    factor = legacy if factor is None else factor
    original = keys.take("rope.scaling.original_context_length", integer(0, MAX_LENGTH)) or None
    keys.switch("rope.scaling.finetuned", False)  # says that the weights were adapted, changes no formula
    attention = keys.take("rope.scaling.attn_factor", number(0.0, 1e3))
    _refuse_alpha(keys)
    tensors = [name for name in (FREQS, LONG, SHORT) if name in keys.file.tensors]
    if tensors and not architecture.frequency_tensors:
        raise UnsupportedError(
            f"{keys.file.path}: tensor {tensors[0]!r}: not read for architecture {keys.file.architecture!r}"
        )
    if kind == "longrope" or (LONG in tensors and keys.file.architecture == "phi3"):
        return _put_longrope(keys, dim=dim, factor=factor, original=original or length, attention=attention)
    stray = [name for name in (LONG, SHORT) if name in tensors]
    if stray:
        raise keys.error("rope.scaling.type", f"must be longrope beside the tensor {stray[0]!r}")
    if kind == "yarn":
        _put_yarn(keys, factor=factor, original=original, attention=attention, tensors=tensors)
        return None
    if attention not in (None, 1.0):
        raise keys.error("rope.scaling.attn_factor", f"understood for longrope and yarn, not {kind}", UnsupportedError)
    if kind not in ("none", "linear"):
        raise keys.error("rope.scaling.type", "unknown, known are none, linear, yarn, longrope")
    if kind == "none" and factor not in (None, 1.0):
        keys.findings.append(
            f"{keys.full(factor_key)} {factor:g} has no effect: {keys.full('rope.scaling.type')} is none"
        )
    scaled = kind == "linear" and factor not in (None, 1.0)
    if FREQS in tensors:
        if scaled:
            raise keys.error(factor_key, f"stands beside the tensor {FREQS!r}: no config says both", UnsupportedError)
        return _put_frequencies(keys, dim=dim, base=base, length=length, original=original)
    if scaled:
        keys.put(_TYPE, "linear", "rope.scaling.type")
        keys.put(f"{_SECTION}.factor", factor, factor_key)
        if original is not None:
            keys.put(_ORIGINAL, original, "rope.scaling.original_context_length")
        return None
    keys.put(_TYPE, "default", "rope.scaling.type")
    return None


def _states_factor(keys: Keys) -> bool:
    return any(keys.take(name, _FACTOR) for name in ("rope.scaling.factor", "rope.scale_linear"))


def _refuse_alpha(keys: Keys) -> None:
    if keys.take("rope.scaling.alpha", _ANY):
        raise keys.error("rope.scaling.alpha", "a fixed alpha in place of a factor is another base", UnsupportedError)


def _put_longrope(keys: Keys, *, dim: int, factor: float | None, original: int, attention: float | None) -> None:
    keys.put(_TYPE, "longrope", "rope.scaling.type")
    if FREQS in keys.file.tensors:
        raise keys.error("rope.scaling.type", f"longrope beside the tensor {FREQS!r}: no config says both")
    for name, key in ((SHORT, "short_factor"), (LONG, "long_factor")):
        keys.put(f"{_SECTION}.{key}", read_vector(keys.file, name, dim // 2).tolist(), f"tensor {name}")
    if factor is not None:
        keys.put(f"{_SECTION}.factor", factor, "rope.scaling.factor")
    keys.put(_ORIGINAL, original, "rope.scaling.original_context_length")
    # Where the file has none llama.cpp multiplies by 1; transformers would work one out.
    keys.put(f"{_SECTION}.attention_factor", attention or 1.0, "rope.scaling.attn_factor")


def _put_yarn(
    keys: Keys, *, factor: float | None, original: int | None, attention: float | None, tensors: list[str]
) -> None:
    if tensors:
        raise keys.error("rope.scaling.type", f"yarn beside the tensor {tensors[0]!r}: no config says both")
    if factor is None:
        raise keys.error("rope.scaling.factor", "missing, beside yarn")
    keys.put(_TYPE, "yarn", "rope.scaling.type")
    keys.put(f"{_SECTION}.factor", factor, "rope.scaling.factor")
    if original is not None:
        keys.put(_ORIGINAL, original, "rope.scaling.original_context_length")
    for name, key, default in (("beta_fast", "yarn_beta_fast", 32.0), ("beta_slow", "yarn_beta_slow", 1.0)):
        value = keys.take(f"rope.scaling.{key}", number(0.0, 1e6, above=True))
        keys.put(f"{_SECTION}.{name}", default if value is None else value, f"rope.scaling.{key}")
    mixed = keys.take("rope.scaling.yarn_ext_factor", _ANY)
    if mixed is not None and mixed >= 0 and mixed != 1:
        raise keys.error(
            "rope.scaling.yarn_ext_factor",
            "a share of YaRN, and configs have all or nothing of it",
            UnsupportedError,
        )
    logarithm = keys.take("rope.scaling.yarn_log_multiplier", _ANY)
    if logarithm:
        raise keys.error(
            "rope.scaling.yarn_log_multiplier",
            f"not read for architecture {keys.file.architecture!r}, by llama.cpp either",
            UnsupportedError,
        )
    computed = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    stored = keys.take("rope.scaling.yarn_attn_factor", number(0.0, 1e3, above=True))
    if stored is not None and not close(stored, computed):
        keys.findings.append(
            f"{keys.full('rope.scaling.yarn_attn_factor')} {stored:g} is overwritten by llama.cpp, which takes "
            f"{computed:g} from the factor, as is done here; a config.json with an attention_factor of {stored:g} "
            "means otherwise"
        )
    if attention not in (None, 0.0, 1.0):
        keys.put(f"{_SECTION}.attn_factor", attention, "rope.scaling.attn_factor")
    if keys.config.get("model_type") == "gpt_oss":
        keys.put(f"{_SECTION}.truncate", False, "default of gpt_oss")
        keys.findings.append("gpt_oss was trained with YaRN's ramp untruncated, as read here; llama.cpp truncates it")


def _put_frequencies(keys: Keys, *, dim: int, base: float, length: int, original: int | None) -> None:
    """Puts the rope section that divides frequencies as `rope_freqs.weight` does."""
    divisors = read_vector(keys.file, FREQS, dim // 2)
    source = f"tensor {FREQS}"
    if np.all(divisors == 1):
        return keys.put(_TYPE, "default", source)
    found = llama3_of(divisors, inverse_frequencies(dim, base=base), original_length=original)
    section: dict[str, Any]
    if found is not None:
        section = {"rope_type": "llama3", **found}
        if original is None:
            keys.findings.append(
                f"{FREQS} is Llama 3's rule with a factor of {found['factor']:g}; its hyperparameters are worked out "
                "from the entries, low_freq_factor taken as 1"
            )
    else:
        entries = divisors.tolist()
        section = {"rope_type": "longrope", "factor": 1.0, "short_factor": entries, "long_factor": entries}
        section |= {"original_max_position_embeddings": original or length, "attention_factor": 1.0}
        keys.findings.append(
            f"{FREQS} divides the frequencies by a list that is not Llama 3's rule; it is used as it is"
        )
    for name, value in section.items():
        keys.put(f"{_SECTION}.{name}", value, source)
    return None


def llama3_of(
    divisors: Float64[np.ndarray, " pairs"],
    theta: Float64[np.ndarray, " pairs"],
    *,
    original_length: int | None = None,
) -> dict[str, float | int] | None:
    r"""Returns the hyperparameters of Llama 3's rule that divides frequencies by `divisors`, or None if none does.

    .. math:: 1/d = (1 - s)/f + s, \quad s = \mathrm{clip}\big((L\,\theta/2\pi - l)/(h - l), 0, 1\big)

    The map depends on `L / l` and `h / l` alone, so that `l` is taken as 1 unless the length is known.

    Args:
      divisors: `d`, at least 1.
      theta: the frequencies before, radians per token.
      original_length: `L`, tokens, if it is known.

    Returns:
      `factor`, `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings`.
    """
    factor = float(np.float32(divisors.max()))
    if factor <= 1 or divisors.min() < 1 - 1e-6:
        return None
    share = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    between = (share > 1e-3) & (share < 1 - 1e-3)
    turns = theta / (2 * np.pi)
    if between.sum() < 2:
        return None
    slope, offset = np.polyfit(turns[between], share[between], 1)
    if not (slope > 0 and offset < 0):
        return None
    length, high = -slope / offset, 1 - 1 / offset
    low = 1.0 if original_length is None else original_length / length
    for digits in (2, 4, 8):
        lowest, highest = round(low, digits), round(high * low, digits)
        tokens = original_length or max(1, round(length))
        if np.allclose(_llama3(turns, factor, lowest, highest, tokens), divisors, rtol=1e-5, atol=0):
            return {
                "factor": factor,
                "low_freq_factor": lowest,
                "high_freq_factor": highest,
                "original_max_position_embeddings": tokens,
            }
    return None


def _llama3(
    turns: Float64[np.ndarray, " pairs"], factor: float, low: float, high: float, length: int
) -> Float64[np.ndarray, " pairs"]:
    if high <= low:
        return np.full_like(turns, np.nan)
    share = np.clip((length * turns - low) / (high - low), 0, 1)
    return 1 / ((1 - share) / factor + share)
