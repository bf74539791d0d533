"""A config with another scaling: what a rule asks for, written in the keys that transformers and servers read.

A rope type of theirs is used where it is exactly the same map. Any other static map of frequencies is a LongRoPE list,
`f_i = theta_i / theta'_i`, the same for short and long sequences and with its attention factor stated.
"""

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from rope_jax.checkpoints.dialects import LENGTHS
from rope_jax.checkpoints.extending import declares_scaling, length_before
from rope_jax.checkpoints.model_types import MODEL_TYPES, UNKNOWN
from rope_jax.checkpoints.positions import LayerGroup, PositionConfig
from rope_jax.checkpoints.rope_types import ORIGINAL
from rope_jax.errors import ScalingError, UnsupportedError
from rope_jax.frequencies import Rotary, inverse_frequencies
from rope_jax.length_rules import DynamicNtk, LengthRule, LongRope, at_length
from rope_jax.rules import Rule
from rope_jax.scaling import yarn_mscale
from rope_jax.scaling.registry import scaling_rule

PeerName = Literal["transformers", "vllm", "sglang", "mlx", "llama.cpp"]
PEER_NAMES: tuple[PeerName, ...] = get_args(PeerName)

# Their published code knows "default" and "longrope" only.
_LONGROPE_ONLY = {"phi3", "phi4", "phimoe"}
# vLLM turns neighbouring dimensions in these, and its longrope cannot.
_VLLM_INTERLEAVED = {"cohere", "cohere2", "glm", "glm4"}
_MULTIMODAL = ("mrope_section", "mrope_interleaved")
_LARGEST_BASE = 1e15  # that the reader accepts


@dataclasses.dataclass(frozen=True, eq=False)
class Wanted:
    """The scaling that an exported config is to declare.

    Attributes:
      group: the layers that are scaled.
      rotary: their unscaled record.
      rules: the new rule, after the config's own where it is composed with that; "none" is left out.
      trained_length: tokens up to which the model counts as trained before `rules` but for a declared one.
      target_length: `L'`, tokens.
      replaces: whether the new rule takes the place of the config's own.
    """

    group: LayerGroup
    rotary: Rotary
    rules: tuple[Rule | LengthRule, ...]
    trained_length: int
    target_length: int
    replaces: bool = False

    def at(self, length: int) -> Rotary:
        """Returns the scaled record for sequences of `length` tokens."""
        record = self.rotary
        for rule in self.rules:
            record = at_length(rule, length)(record)
        return record


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """An exported config, not yet read back.

    Attributes:
      config: the whole of it.
      overrides: the keys a current reader needs replaced to get the same from the old config.
      section: the rope parameters of the scaled layers.
      how: in which terms the scaling is stated, in words.
    """

    config: dict[str, Any]
    overrides: dict[str, Any]
    section: dict[str, Any]
    how: str


def wanted_scaling(
    positions: PositionConfig,
    scaling: str | Rule | LengthRule,
    *,
    trained_length: int,
    target_length: int,
    compose: bool = False,
) -> Wanted:
    r"""Returns a scaling in the place of what the config declares, or on top of it.

    .. math:: \theta' = rule(\theta), \quad \text{composed: } \theta' = rule(declared(\theta))

    Args:
      positions: what the config says.
      scaling: a name of the registry, or a rule; "none" keeps the declared one.
      trained_length: `L`, tokens.
      target_length: `L'`, tokens; the factor is taken against `extending.length_before`.
      compose: whether it comes on top of the declared one, as `rules.py` lets rules follow each other.

    Raises:
      InputError: if there is no such scaling.
      UnsupportedError: if no layer rotates, or layers of several types rotate in ways that one section cannot tell
        apart.
      ScalingError: if the declared rule leaves a composed one without a single meaning.
    """
    group = _scaled_group(positions)
    assert group.rotary is not None
    declared = group.rule
    before = length_before(positions, trained=trained_length, compose=compose)
    rule = scaling_rule(scaling, factor=target_length / before, original_length=before)
    if rule.name != "none" and declares_scaling(positions) and not compose:
        return Wanted(group, group.rotary, (rule,), before, target_length, replaces=True)
    if isinstance(declared, LongRope) and declared.short_factor == declared.long_factor:
        declared = declared.at(trained_length)
    rotary = group.rotary
    if declared.name == "none":
        rotary = dataclasses.replace(rotary, original_length=trained_length)
    rules = tuple(one for one in (declared, rule) if one.name != "none")
    wanted = Wanted(group, rotary, rules, trained_length, target_length)
    if len(rules) == 2:
        if not all(isinstance(one, Rule) for one in rules):
            raise ScalingError(
                f"{positions.origin} declares {declared.name}, and {rule.name} on top of it would depend on the length "
                "in a way that no rope type states"
            )
        try:
            wanted.at(target_length)
        except ScalingError as error:
            raise ScalingError(f"{positions.origin} declares {declared.name}: {error}") from None
    return wanted


def export_config(config: Mapping[str, Any], positions: PositionConfig, wanted: Wanted, *, peer: PeerName) -> Exported:
    """Returns the config with `wanted` declared; every key that is not about it stays as it is.

    Args:
      config: the content of a `config.json`; not changed.
      positions: what it says.
      wanted: from `wanted_scaling`.
      peer: who is to read it.

    Raises:
      UnsupportedError: if the model's code in `peer` would read no such section, or read it as something else.
      ScalingError: if the scaled frequencies are no finite multiples of the trained ones.
    """
    _check_layer_types(config, positions)
    stated, how = _state(wanted, peer, positions.model_type)
    section = {"rope_type": stated.pop("rope_type"), "rope_theta": stated.pop("rope_theta", wanted.rotary.base)}
    section |= stated
    partial = positions.values.get("partial_rotary_factor")
    if partial is not None:
        section["partial_rotary_factor"] = partial.value
    if peer == "vllm":
        _check_vllm(positions, section)
    new = copy.deepcopy(dict(config))
    inner = isinstance(config.get("text_config"), Mapping)
    top, old = (new["text_config"], config["text_config"]) if inner else (new, config)
    changes = _lengths(top, section, wanted, positions.model_type)
    legacy: dict[str, Any] = {}
    nested = [key for key in ("rope_parameters", "rope_scaling") if _is_nested(top.get(key))]
    if nested:
        for key in nested:
            changes[key] = {**top[key], wanted.group.name: section}
        if top.get("rope_theta") is not None:
            legacy["rope_theta"] = section["rope_theta"]
    else:
        for key in ("rope_parameters", "rope_scaling"):
            _keep_multimodal(top.get(key), section, positions)
        plain = section["rope_type"] == "default"
        scaling = {key: value for key, value in section.items() if key != "rope_theta"}
        legacy = {"rope_theta": section["rope_theta"], "rope_scaling": None if plain else copy.deepcopy(scaling)}
        if plain and any(key in section for key in _MULTIMODAL):
            legacy["rope_scaling"] = copy.deepcopy(scaling)
        if "rotary_emb_base" in top:
            legacy["rotary_emb_base"] = section["rope_theta"]
        changes["rope_parameters"] = section
    top.update(changes)
    top.update(legacy)
    if section["rope_type"] in ("default", "linear", "dynamic"):
        # There it would have no effect, or for one reader another than for the next.
        top.pop(ORIGINAL, None)
    if inner:  # what the outer config repeats must go on agreeing
        new.update({key: top[key] for key in top if key in config and key in old and config[key] == old[key]})
    return Exported(new, {"text_config": changes} if inner else changes, section, how)


def _scaled_group(positions: PositionConfig) -> LayerGroup:
    turning = [group for group in positions.groups if group.rotary is not None]
    if not turning:
        raise UnsupportedError(
            f"{positions.origin}: model_type {positions.model_type} has no rotary embedding to scale"
        )
    main = positions.main_group
    return main if main.rotary is not None else turning[0]


def _check_layer_types(config: Mapping[str, Any], positions: PositionConfig) -> None:
    """Raises `UnsupportedError` where several layer types turn and the config does not give each its own section."""
    turning = [group.name for group in positions.groups if group.rotary is not None]
    top = config["text_config"] if isinstance(config.get("text_config"), Mapping) else config
    sections = [top[key] for key in ("rope_parameters", "rope_scaling") if _is_nested(top.get(key))]
    name = _scaled_group(positions).name
    if (len(turning) > 1 or sections) and not (sections and all(name in section for section in sections)):
        raise UnsupportedError(
            f"{positions.origin}: layers of types {', '.join(turning)} turn, and rope_parameters has no section for "
            f"each: {name} layers cannot be scaled alone"
        )


def _is_nested(section: Any) -> bool:
    return isinstance(section, Mapping) and any(isinstance(value, Mapping) for value in section.values())


def _state(wanted: Wanted, peer: PeerName, model_type: str) -> tuple[dict[str, Any], str]:
    """Returns the rope keys that say `wanted`, without the base where that is the trained one, and how in words."""
    if not wanted.rules:
        return {"rope_type": "default"}, "the default rope type, nothing scaled"
    if len(wanted.rules) == 1:
        native = _native(wanted, wanted.rules[0], peer)
        if native is not None and (model_type not in _LONGROPE_ONLY or native["rope_type"] == "longrope"):
            kind = native["rope_type"]
            if kind == "longrope":
                _state_mscale(native, peer, model_type)
            return native, f"the {kind} rope type, which is this very map"
    if not all(isinstance(rule, Rule) for rule in wanted.rules):
        raise UnsupportedError(f"model_type {model_type} reads no rope type that depends on the length but longrope")
    new, old = wanted.at(wanted.target_length), wanted.rotary
    if new.logit_scale != 1:
        raise ScalingError(
            f"the declared scaling multiplies all logits by {new.logit_scale:g}: no factor list says that"
        )
    if new.cos_sin_factor == 1 and 1 < new.base <= _LARGEST_BASE:
        anew = inverse_frequencies(new.dim, base=new.base)
        if np.allclose(anew, new.inverse_frequencies, rtol=1e-9, atol=0):
            return {"rope_type": "default", "rope_theta": new.base}, "another rope_theta, of the default rope type"
    if not (new.inverse_frequencies > 0).all():
        raise ScalingError("a pair that does not rotate has no finite factor: no factor list says that")
    factors = (old.inverse_frequencies / new.inverse_frequencies).tolist()
    original, first = wanted.trained_length, wanted.rules[0]
    if len(wanted.rules) == 1 and isinstance(first, Rule):
        original = first.hyperparameters.get("original_length", original)  # a declared one keeps its own
    if peer == "mlx" and new.cos_sin_factor == 1:
        original = wanted.target_length  # mlx-lm makes the factor of these lengths, which must not be apart
    section = _longrope(wanted, factors, factors, original, new.cos_sin_factor)
    _state_mscale(section, peer, model_type)
    return section, f"a longrope list of {len(factors)} factors, the same for short and long sequences"


def _native(wanted: Wanted, rule: Rule | LengthRule, peer: PeerName) -> dict[str, Any] | None:
    """Returns the keys of the rope type that is exactly `rule` up to the target length, or None."""
    if isinstance(rule, DynamicNtk):
        return {"rope_type": "dynamic", "factor": rule.factor}
    if isinstance(rule, LongRope):
        return _longrope(
            wanted, list(rule.short_factor), list(rule.long_factor), rule.original_length, rule.attention_factor
        )
    given = rule.hyperparameters
    if rule.name == "proportional":
        return {"rope_type": "proportional"} | ({"factor": given["factor"]} if given["factor"] != 1 else {})
    original = given.get("original_length", wanted.rotary.original_length)
    if rule.name in ("by_parts", "llama3"):
        low, high = (
            (given["alpha"], given["beta"])
            if rule.name == "by_parts"
            else (given["low_freq_factor"], given["high_freq_factor"])
        )
        if low == high:  # a division by zero in transformers
            return None
        return {
            "rope_type": "llama3",
            "factor": given["factor"],
            "low_freq_factor": low,
            "high_freq_factor": high,
            ORIGINAL: original,
        }
    if rule.name not in ("linear", "yarn") or given["factor"] < 1:
        return None
    factor = given["factor"]
    attention_factor = float(rule(wanted.rotary).cos_sin_factor)
    usual = rule.name == "linear" or math.isclose(attention_factor, yarn_mscale(factor), rel_tol=1e-9)
    if peer != "transformers" and not usual:
        return None  # no key for it, or one that differs from one of their versions to the next
    if rule.name == "linear" or peer == "vllm":
        # Readers make room for factor * original tokens: rounding must not take one of them away.
        if original * factor < wanted.target_length <= original * factor * (1 + 1e-12):
            factor = math.nextafter(factor, math.inf)
        if original * factor < wanted.target_length:
            return None
    if rule.name == "linear":
        return {"rope_type": "linear", "factor": factor}
    section = {
        "rope_type": "yarn",
        "factor": factor,
        ORIGINAL: original,
        "attention_factor": attention_factor,
        "beta_fast": given["beta_fast"],
        "beta_slow": given["beta_slow"],
    }
    section |= {key: given[key] for key in ("mscale", "mscale_all_dim") if given[key] is not None}
    return section | ({} if given["truncate"] else {"truncate": False})


def _longrope(
    wanted: Wanted, short: list[float], long: list[float], original: int, attention_factor: float
) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "factor": wanted.target_length / original,
        ORIGINAL: original,
        "attention_factor": float(attention_factor),
        "short_factor": list(short),
        "long_factor": list(long),
    }


def _state_mscale(section: dict[str, Any], peer: PeerName, model_type: str) -> None:
    """Adds the names under which vLLM, SGLang and Phi-MoE's code read the attention factor of longrope."""
    if peer in ("vllm", "sglang") or model_type == "phimoe":
        section |= {"short_mscale": section["attention_factor"], "long_mscale": section["attention_factor"]}


def _check_vllm(positions: PositionConfig, section: Mapping[str, Any]) -> None:
    kind, model_type = section["rope_type"], positions.model_type
    why = None
    if kind == "dynamic":
        why = "vLLM fixes a dynamic base when it loads, at the trained one, so nothing would be scaled; export ntk"
    elif kind == "proportional":
        why = "it is not known to be read as transformers reads it"
    elif kind != "default" and MODEL_TYPES.get(model_type, UNKNOWN).latent:
        why = f"vLLM reads every scaling of model_type {model_type} as its deepseek_yarn"
    elif kind == "longrope" and model_type in _VLLM_INTERLEAVED:
        why = f"vLLM's longrope cannot turn the interleaved pairs of model_type {model_type}"
    elif kind == "longrope" and section["short_factor"] != section["long_factor"]:
        why = "vLLM would take long_factor for short sequences too"
    if why is not None:
        raise UnsupportedError(f"{positions.origin}: rope type {kind} cannot be exported to vllm: {why}")


def _lengths(top: Mapping[str, Any], section: Mapping[str, Any], wanted: Wanted, model_type: str) -> dict[str, Any]:
    """Returns the keys beside the rope section that say how long, under every name the config uses for it."""
    length, kind = wanted.target_length, section["rope_type"]
    if kind in ("linear", "dynamic") and ORIGINAL not in MODEL_TYPES.get(model_type, UNKNOWN).defaults:
        # Their code knows no other key for the trained length, and takes `factor` times this to be served.
        rule = wanted.rules[0]
        length = rule.original_length if isinstance(rule, DynamicNtk) else wanted.rotary.original_length
    lengths = {key: length for key in LENGTHS if top.get(key) is not None} or {LENGTHS[0]: length}
    original = section.get(ORIGINAL)
    if original is not None:
        # Transformers 4 reads longrope's at the top level, and transformers 5 prefers it there.
        names = [ORIGINAL] if kind == "longrope" or ORIGINAL in top else []
        names += [name for name in ("initial_context_length",) if name in top]
        lengths |= dict.fromkeys(names, original)
    return lengths


def _keep_multimodal(old: Any, section: dict[str, Any], positions: PositionConfig) -> None:
    kept = {key: old[key] for key in _MULTIMODAL if isinstance(old, Mapping) and key in old}
    if kept and section["rope_type"] != "default":
        raise UnsupportedError(
            f"{positions.origin}: mrope_section has no place beside rope type {section['rope_type']} in its reader"
        )
    section |= kept
