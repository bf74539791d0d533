"""What transformers' own code does with the default config of every causal model type, beside what is read here.

    python tests/peers/causal_defaults.py [--write] [MODEL_TYPE ...]

prints one line a model type and the counts; `--write` keeps them in `tests/data/causal_defaults.json`. Each model is
built without memory for its weights (torch's meta device); its rotary modules alone are real, and the functions that
rotate queries and keys are replaced by ones that write down, layer by layer, the cos and sin they are given.
"""

import argparse
import collections
import contextlib
import dataclasses
import inspect
import json
import pathlib
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, at import
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rope_jax.checkpoints.dialects import positions_of
from rope_jax.checkpoints.positions import LayerGroup, PositionConfig
from rope_jax.errors import ConfigError
from rope_jax.length_rules import at_length

FILE = pathlib.Path(__file__).resolve().parents[1] / "data" / "causal_defaults.json"
TOKENS = 4
_ROTARY = re.compile(r"Rotary|RoPE|Rope")
_ROTATES = re.compile(r"apply_(multimodal_|interleaved_)?(rotary|rope|mrope)|rotary_emb|apply_rot")
_OTHER = re.compile(r"[Vv]ision|[Vv]isual|[Aa]udio|[Ii]mage|[Ee]ncoder\.|expert|mtp|depth")
_LAYERS = re.compile(r"(^|\.)(layers|h|blocks|block|layer)$")


def _with(config: Any, **changes: Any) -> Any:
    for key, value in changes.items():
        setattr(config, key, value)
    return config


# A default config that its own class cannot build as it is, and the least that lets it.
FIXES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "dbrx": lambda c: {"attn_config": _with(c.attn_config, rope_theta=c.rope_parameters["rope_theta"], clip_qkv=8.0)},
    "dots1": lambda c: {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": lambda c: {"head_dim": c.hidden_size // c.num_attention_heads},
    "hunyuan_v1_moe": lambda c: {"head_dim": c.hidden_size // c.num_attention_heads},
    "minimax": lambda c: {"head_dim": c.head_dim or c.hidden_size // c.num_attention_heads},
    "ministral": lambda c: {"head_dim": c.hidden_size // c.num_attention_heads},
    "nemotron": lambda c: {"num_key_value_heads": c.num_attention_heads},
    "qwen4_exp_text": lambda c: {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 64,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
}
# Their first lines read values of the weights, before anything turns; all their layers call the one rotary module.
UNREACHED = ("jetmoe",)


@dataclasses.dataclass(frozen=True)
class Turning:
    """What one layer rotates by: `frequencies` in radians a token, and the factor on cos and sin."""

    frequencies: np.ndarray
    factor: float


@dataclasses.dataclass(frozen=True)
class Layer:
    """What is measured of one layer: what it rotates by, None for nothing, and the width of its heads, where told."""

    turning: Turning | None
    head_dim: int | None


def default_config(name: str) -> Any:
    """Returns the default config of a model type; a wrapper's text config where that is a causal model itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CONFIG_MAPPING[name]()
    text = config.get_text_config()
    alone = text.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return (
        text
        if alone or transformers.AutoModelForCausalLM._model_mapping[type(config)].config_class is type(text)
        else config
    )


def measured(config: Any) -> list[Layer]:
    """Returns what each layer of a config's model does.

    Raises:
      RuntimeError: if a pass does not come to its end, or stops in a layer before it could have rotated.
    """
    config._attn_implementation = "sdpa" if config.model_type == "falcon" else "eager"  # its own needs a mask
    for key, value in FIXES.get(config.model_type, lambda c: {})(config).items():
        setattr(config, key, value)
    for extra in ((), (None,), (None, None)):  # what their layers return beside the hidden states
        layers, error = _run(config, extra)
        if "not enough values to unpack" not in error:
            break
    if error:
        raise RuntimeError(error)
    return layers


def _run(config: Any, extra: tuple[None, ...]) -> tuple[list[Layer], str]:
    model_class = _class_of(config)
    module = sys.modules[model_class.__module__]
    calls: dict[int, dict[str, Any]] = {}
    tables: list[Any] = []
    at: list[int] = []
    attended: set[int] = set()
    failed: set[int] = set()
    with _recording(module, calls, tables, at, attended), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            model = model_class(config).eval()
        blocks = _blocks(model)
        for index, block in enumerate(blocks):
            block.forward = _tolerant(block.forward, index, at, failed, extra)
        error = ""
        try:
            with torch.device("meta"):
                model(input_ids=torch.zeros((1, TOKENS), dtype=torch.long), use_cache=False)
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"[:200]
    if config.model_type in UNREACHED and not calls:
        calls = {index: {"table": None} for index in range(len(blocks))}
    types_of = getattr(config, "layer_types", None) or ["full_attention"] * len(blocks)
    still = {i for i, kind in enumerate(types_of) if kind not in ("linear_attention", "conv", "mlp", "moe")}
    lost = sorted((failed & still) - attended - set(calls))
    if lost and not error:
        error = f"layers {lost} stop before their attention"
    return [
        Layer(_turning(calls[i], tables) if i in calls else None, _head_dim(block)) for i, block in enumerate(blocks)
    ], error


def _head_dim(block: Any) -> int | None:
    for name in ("qk_head_dim", "head_dim", "head_size"):
        for module in block.modules():
            if "ttention" in type(module).__name__ and isinstance(getattr(module, name, None), int):
                return getattr(module, name)
    return None


def _class_of(config: Any) -> Any:
    mapping = transformers.AutoModelForCausalLM._model_mapping
    if type(config) in mapping:
        return mapping[type(config)]
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if name in config.model_type and mapping[CONFIG_MAPPING[name]].config_class is type(config):
            return mapping[CONFIG_MAPPING[name]]
    if config.model_type == "step3p5":  # in no mapping by itself
        from transformers.models.step3p7 import modeling_step3p7

        return modeling_step3p7.Step3p7TextModel
    return transformers.AutoModel._model_mapping[type(config)]


def _blocks(model: Any) -> Any:
    lists = [
        found
        for name, found in model.named_modules()
        if isinstance(found, torch.nn.ModuleList) and _LAYERS.search(name) and not _OTHER.search(name)
    ]
    return max(lists, key=len)


def _tolerant(forward: Callable, index: int, at: list[int], failed: set[int], extra: tuple[None, ...]) -> Callable:
    """Returns a layer's pass that goes on after an error: experts, for one, cannot be picked without values."""

    def run(*arguments: Any, **named: Any) -> Any:
        at.append(index)
        try:
            return forward(*arguments, **named)
        except Exception:
            failed.add(index)
            states = arguments[0] if arguments else named["hidden_states"]
            return (states, *extra) if extra else states
        finally:
            at.pop()

    return run


@contextlib.contextmanager
def _recording(
    module: types.ModuleType, calls: dict, tables: list, at: list[int], attended: set[int]
) -> Iterator[None]:
    """Makes a modeling module's rotary classes real and its rotating functions write down what they are given."""
    undo: list[tuple[Any, str, Any]] = []

    def put(holder: Any, name: str, value: Any) -> None:
        undo.append((holder, name, getattr(holder, name)))
        setattr(holder, name, value)

    for name, found in list(vars(module).items()):
        if inspect.isclass(found) and issubclass(found, torch.nn.Module):
            if _ROTARY.search(name) and not _OTHER.search(name):
                put(found, "__init__", _on_cpu(found.__init__))
                put(found, "forward", _valued(found.forward, tables))
        elif isinstance(found, types.FunctionType) and found.__module__ == module.__name__ and _ROTATES.search(name):
            put(module, name, _writer(found, calls, at))
        elif isinstance(found, types.FunctionType) and re.match("create_.*mask", name):
            put(module, name, lambda *a, **k: None)
        elif name == "eager_attention_forward":
            put(module, name, _noting(found, at, attended))
    try:
        yield
    finally:
        for holder, name, value in reversed(undo):
            setattr(holder, name, value)


def _noting(attend: Callable, at: list[int], attended: set[int]) -> Callable:
    def run(*arguments: Any, **named: Any) -> Any:
        attended.update(at[-1:])
        return attend(*arguments, **named)

    return run


def _on_cpu(init: Callable) -> Callable:
    def build(*arguments: Any, **named: Any) -> None:
        with torch.device("cpu"):
            init(*arguments, **named)

    return build


def _valued(forward: Callable, tables: list) -> Callable:
    def real(value: Any) -> Any:
        if not (isinstance(value, torch.Tensor) and value.is_meta):
            return value
        if not value.is_floating_point():
            return torch.arange(value.shape[-1], device="cpu").expand(value.shape).clone()
        return torch.zeros((1, 1, 1), device="cpu")

    def run(self: Any, *arguments: Any, **named: Any) -> Any:
        with torch.device("cpu"):
            out = forward(self, *map(real, arguments), **{key: real(value) for key, value in named.items()})
        tables.append(out)
        return out

    return run


def _writer(rotate: Callable, calls: dict, at: list[int]) -> Callable:
    signature = inspect.signature(rotate)

    def write(*arguments: Any, **named: Any) -> Any:
        bound = signature.bind(*arguments, **named).arguments
        if at:
            calls.setdefault(at[-1], dict(bound))
        values = list(bound.values())
        pair = len(values) > 1 and isinstance(values[1], torch.Tensor) and values[1].is_meta
        return (values[0], values[1]) if pair and not list(bound)[1].startswith(("cos", "freqs")) else values[0]

    return write


def _turning(call: dict[str, Any], tables: list) -> Turning:
    given = [value for value in call.values() if isinstance(value, torch.Tensor) and not value.is_meta]
    pairs = [value for value in call.values() if isinstance(value, tuple)]
    if "cos" in call and not call["cos"].is_meta:
        cos, sin = call["cos"], call["sin"]
    elif given and given[0].is_complex():
        cos, sin = given[0].real, given[0].imag
    elif pairs and isinstance(pairs[0][0], torch.Tensor):
        cos, sin = pairs[0]
    else:  # moved to the meta device on its way; told by there being one table only
        (table,) = tables[:1] if len({id(table) for table in tables}) == 1 else [None]
        cos, sin = table if isinstance(table, tuple) else (table.real, table.imag)
    cos, sin = (value.reshape(-1, *value.shape[-2:])[0].double().numpy() for value in (cos, sin))
    assert cos.shape[0] == TOKENS, cos.shape
    angle = np.arctan2(sin[1], cos[1])
    half = len(angle) // 2
    if len(angle) % 2 == 0 and np.array_equal(angle[:half], angle[half:]):
        angle = angle[:half]
    elif len(angle) % 2 == 0 and np.array_equal(angle[::2], angle[1::2]):
        angle = angle[::2]
    return Turning(angle, float(cos[0, 0]))


def difference(positions: PositionConfig, layers: list[Layer], config: Any) -> str:
    """Returns how a reading differs from what was measured, "" where it does not."""
    of_layer = {layer: group for group in positions.groups for layer in group.layers}
    types_of = getattr(config, "layer_types", None)
    apart = len(of_layer) and max(of_layer) + 1 > len(layers)
    for layer, found in enumerate(layers):
        turning = found.turning
        group = of_layer.get(2 * layer if apart else layer)  # Dory counts its other half of layers too
        rotary = None if group is None or group.rotary is None else at_length(group.rule, TOKENS)(group.rotary)
        if (rotary is None) != (turning is None):
            return f"layer {layer}: read as {'still' if rotary is None else 'turning'}, it is not"
        if rotary is not None and turning is not None:
            ours = rotary.inverse_frequencies
            if ours.shape != turning.frequencies.shape:
                return f"layer {layer}: {len(ours)} pairs, not {len(turning.frequencies)}"
            if not np.allclose(ours, turning.frequencies, rtol=3e-6, atol=1e-9):
                return f"layer {layer}: frequencies to {ours[-1]:.4g}, not {turning.frequencies[-1]:.4g}"
            if abs(rotary.cos_sin_factor - turning.factor) > 1e-6:
                return f"layer {layer}: factor {rotary.cos_sin_factor}, not {turning.factor}"
        if group is not None and found.head_dim is not None and group.head_dim != found.head_dim:
            return f"layer {layer}: heads of {group.head_dim}, not {found.head_dim}"
        if types_of is not None and group is not None:
            stated = getattr(config, "sliding_window", None)
            slides = types_of[layer] in ("sliding_attention", "hybrid_sliding")
            expected = stated if slides and stated and stated < positions.declared_length else None
            if group.window != expected and not group.chunked:
                return f"layer {layer}: window {group.window}, not {expected}"
    return ""


def reading(name: str) -> dict[str, Any]:
    """Returns what is read of a default config, or why it is refused."""
    try:
        return {"read": [told_of(group) for group in _positions(name).groups]}
    except ConfigError as refusal:
        return {"refused": str(refusal).removeprefix("config.json: ").partition(", got ")[0]}


def _positions(name: str) -> PositionConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stated = CONFIG_MAPPING[name]().to_dict()
        except Exception:
            stated = {"model_type": name}  # it has no default, or one that its own class refuses
        return positions_of(stated, origin="config.json")


def outcome(name: str) -> dict[str, Any]:
    """Returns what `reading` does, and how it differs from what the model does, if it does."""
    found = reading(name)
    if "refused" in found:
        return found
    positions = _positions(name)
    if positions.groups[0].bias is not None:
        return {**found, "by": "bias"}
    config = default_config(name)
    try:
        wrong = difference(positions, measured(config), config)
    except Exception as caught:
        return {**found, "not measured": f"{type(caught).__name__}: {caught}"[:160]}
    return {**found, **({"wrong": wrong} if wrong else {})}


# What no model type here has a default for, and must be stated.
STATED = ("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings")


def silent(config: Any) -> dict[str, Any]:
    """Returns the least that has to be said of a config: no more than its model type's published code fills in."""
    saved = config.to_dict()
    return {
        "model_type": config.model_type,
        **{key: saved[key] if key in saved else getattr(config, key) for key in STATED},
    }


def told_of(group: LayerGroup) -> str:
    """Returns one line about a group."""
    parts = [f"{group.name} x{len(group.layers)}", f"heads {group.num_heads} of {group.head_dim}"]
    if group.rotary is None:
        parts.append("no rotation" if group.bias is None else group.bias.kind)
    else:
        parts.append(f"{group.rule.name} of base {group.rotary.base:.10g}, {group.rotary.dim} dimensions")
    if group.window is not None:
        parts.append(f"{'chunks' if group.chunked else 'window'} of {group.window}")
    if group.temperature is not None:
        parts.append(f"temperature {group.temperature.beta:g} by {group.temperature.length:g}")
    return ", ".join(parts)


def main() -> int:
    """Prints what is read of every default config; returns 1 while any is read wrongly."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("model_types", nargs="*")
    flags = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    found = {name: outcome(name) for name in flags.model_types or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    counts: collections.Counter[str] = collections.Counter()
    for name, entry in found.items():
        kind = next((k for k in ("refused", "wrong", "not measured") if k in entry), "right")
        counts[kind] += 1
        print(f"{name:28} {kind:12} {entry.get(kind, ' | '.join(entry.get('read', ())))}"[:220], flush=True)
    print(f"{len(found)} model types of transformers {transformers.__version__}: {dict(counts)}")
    if flags.write and not flags.model_types:
        content = {"made by": f"tests/peers/causal_defaults.py --write, transformers {transformers.__version__}"}
        FILE.write_text(json.dumps({**content, "model_types": found}, indent=1) + "\n")
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
