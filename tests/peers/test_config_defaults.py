"""A config that leaves all it can to its model type, as transformers fills it in and as it is read here."""

import importlib
import inspect
import pathlib
import sys
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, at import
    transformers = pytest.importorskip("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rope_jax.checkpoints.dialects import positions_of  # noqa: E402
from rope_jax.checkpoints.model_types import FULL, MODEL_TYPES, SLIDING, WRAPPERS  # noqa: E402
from rope_jax.length_rules import LengthRule  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parent))
from causal_defaults import STATED, difference, measured, silent  # noqa: E402

# Not alike: a key that says which layers there are, or a length, is theirs to state.
SAYS_MORE = (
    "cohere_compass_text",
    "granitemoehybrid",
    "lfm2_moe",
    "nemotron_h",
    "recurrent_gemma",
    "roformer",
    "zamba",
)
SAYS_MORE += ("bamba", "dots3_note_text", "zamba2")
# Parts of a larger model, that are in no mapping of models and cannot be built by themselves.
PARTS = ("ernie4_5_vl_moe_text", "hunyuan_vl_text", "qwen2_5_omni_text", "qwen2_5_vl", "qwen2_vl")
SAYS_MORE += PARTS
FIXED = {"gemma3n_text": {"num_kv_shared_layers": 0}}  # more than 7 layers
ROTARY = sorted(
    name
    for name, spec in MODEL_TYPES.items()
    if spec.scheme in ("rope", "falcon") and name in CONFIG_MAPPING and name not in SAYS_MORE
)
# 7 and 12: the last layer ends a pattern, and does not.
LAYERS = (7, 12)


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


def theirs(model_type, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CONFIG_MAPPING[model_type](**changes)


def least(config, **changes):
    """Returns the least that has to be said of a config of their defaults, with heads that divide its width."""
    stated = silent(config)
    heads = {} if stated["hidden_size"] % stated["num_attention_heads"] == 0 else {"num_attention_heads": 32}
    return {**stated, **heads, **changes}


def read(config):
    positions = positions_of(config, origin="config.json")
    return {layer: group for group in positions.groups for layer in group.layers}


def modeling(config):
    package = type(config).__module__.rpartition(".")[0]
    name = package.rpartition(".")[2]
    return importlib.import_module(f"{package}.modeling_{name}")


def inverse_frequencies(config, kind):
    """Returns what their rotary module holds for layers of a type."""
    classes = [
        one
        for name, one in inspect.getmembers(modeling(config), inspect.isclass)
        if name.endswith("RotaryEmbedding") and "Vision" not in name and "Audio" not in name
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffers = dict(classes[0](config).named_buffers())
    found = buffers.get(f"{kind}_inv_freq", buffers.get("inv_freq"))
    return found.numpy().astype(np.float64)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("model_type", ROTARY)
def test_layers_windows_heads_and_frequencies(model_type, layers):
    fixed = FIXED.get(model_type, {})
    stated = least(theirs(model_type, num_hidden_layers=layers, **fixed))
    config = theirs(model_type, **{key: stated[key] for key in STATED}, **fixed)
    positions = positions_of(stated, origin="config.json")
    assert difference(positions, measured(config), config) == ""


@pytest.mark.parametrize("model_type", PARTS)
def test_frequencies_of_parts_of_larger_models(model_type):
    config = theirs(model_type)
    text = config.get_text_config()
    positions = positions_of(config.to_dict(), origin="config.json")
    (group,) = positions.groups
    # Ernie keeps its list apart by axis, and puts it together again, in the usual order, for the angles.
    expected = np.sort(inverse_frequencies(text, "full_attention"))
    np.testing.assert_allclose(np.sort(group.rotary.inverse_frequencies), expected, rtol=1e-6)


# Their classes refuse these rope types for a model type, or raise on them; ours wants a section a layer type.
NOT_BOTH = ("mimo_v2_flash", "mixtral", "phi3", "phi4_multimodal", "phimoe", "llama4_text", "gptj", "codegen")
NOT_BOTH += ("mistral4",)
NESTED = tuple(name for name, spec in MODEL_TYPES.items() if spec.rope is not None and SLIDING in spec.rope)


@pytest.mark.parametrize("rope_type", ["linear", "yarn"])
@pytest.mark.parametrize("model_type", [name for name in ROTARY if name not in (*NOT_BOTH, *NESTED)])
def test_a_scaling_reaches_the_same_layers(model_type, rope_type):
    section = {"rope_type": rope_type, "factor": 4.0}
    if rope_type == "yarn":
        section["original_max_position_embeddings"] = 1024
    stated = least(theirs(model_type), num_hidden_layers=12)
    config = theirs(model_type, **{key: stated[key] for key in STATED}, rope_scaling=dict(section))
    positions = positions_of({**stated, "rope_scaling": section}, origin="config.json")
    assert difference(positions, measured(config), config) == ""


# Small enough to run: which layers turn is in their code only.
SMALL = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


SILENT: dict = {}
NO_WINDOW = {"sliding_window": None, "layer_types": [FULL] * 7}
RUN = ("llama", "qwen3", "gemma2", "gemma3_text", "olmo3", "cohere2", "smollm3", "exaone4", "granite")


@pytest.mark.parametrize(
    ("model_type", "changes"), [*((name, SILENT) for name in RUN), ("exaone4", NO_WINDOW), ("smollm3", NO_WINDOW)]
)
def test_which_layers_turn(model_type, changes, monkeypatch):
    config = theirs(model_type, num_hidden_layers=7, **SMALL, **changes)
    module = modeling(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModel.from_config(config, attn_implementation="eager")
    turned, at = set(), []
    for layer, block in enumerate(model.layers):
        block.register_forward_pre_hook(lambda *_, layer=layer: at.append(layer))
    rotate = module.apply_rotary_pos_emb

    def recorded(*arguments, **more):
        turned.add(at[-1])
        return rotate(*arguments, **more)

    monkeypatch.setattr(module, "apply_rotary_pos_emb", recorded)
    with torch.no_grad():
        model(torch.zeros((1, 3), dtype=torch.long))
    ours = read(least(config, **changes))
    assert {layer for layer, group in ours.items() if group.rotary is not None} == turned


def test_wrappers_name_the_model_types_that_they_hold():
    for wrapper, inner in WRAPPERS.items():
        if wrapper in CONFIG_MAPPING and MODEL_TYPES[inner].scheme == "rope":
            text = theirs(wrapper).get_text_config()
            assert WRAPPERS.get(text.model_type, text.model_type) == inner


WINDOWS = ("mistral", "mixtral", "starcoder2", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "exaone4", "gemma2")
WINDOWS += ("gemma3_text", "gemma4_text", "cohere2", "olmo3", "gpt_oss", "smollm3", "mimo_v2_flash")
PATTERNS = ("gemma2", "gemma3_text", "gemma4_text", "cohere2", "exaone4", "olmo3", "gpt_oss", "mimo_v2_flash")


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        *((name, {"use_sliding_window": False}) for name in WINDOWS),
        *((name, {"use_sliding_window": use, "sliding_window": 64}) for name in WINDOWS for use in (False, True)),
        ("qwen2_moe", {"use_sliding_window": True}),
        ("qwen3_moe", {"use_sliding_window": True}),
        ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 4}),
        ("qwen3_moe", {"use_sliding_window": True, "max_window_layers": 4}),
        *((name, {"sliding_window_pattern": 3}) for name in PATTERNS),
        *((name, {"partial_rotary_factor": 0.25}) for name in ("gemma4_text", "gemma4_unified_text")),
        ("gemma4_text", {"partial_rotary_factor": 0.5}),
        ("gpt_neox", {"partial_rotary_factor": 0.5}),
        ("gpt_neox", {"rotary_pct": 0.5}),
        ("gpt_neox", {"rope_theta": 50000.0}),
        ("gpt_neox", {"rotary_emb_base": 50000.0}),
    ],
)
def test_stated_keys_count_as_their_code_reads_them(model_type, changes):
    stated = least(theirs(model_type, num_hidden_layers=12), **changes)
    config = theirs(model_type, **{key: stated[key] for key in STATED}, **changes)
    kinds = getattr(config, "layer_types", None)
    for layer, group in read(stated).items():
        slides = kinds is None or kinds[layer] == SLIDING
        window = getattr(config, "sliding_window", None) if slides else None
        assert group.window == (window if window and window < stated["max_position_embeddings"] else None), layer
        if group.rotary is not None:
            expected = inverse_frequencies(config, FULL if kinds is None else kinds[layer])
            rule = group.rule.at(1) if isinstance(group.rule, LengthRule) else group.rule
            np.testing.assert_allclose(rule(group.rotary).inverse_frequencies, expected, rtol=2e-6, atol=0)
