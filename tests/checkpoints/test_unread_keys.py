"""Keys that a model type's published code does not read change nothing, and are found; those that it reads count."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.checkpoints.dialects import positions_of
from rope_jax.checkpoints.model_types import MODEL_TYPES, UNKNOWN
from rope_jax.errors import ConfigError

FULL, SLIDING = "full_attention", "sliding_attention"
COMMON = {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 8, "max_position_embeddings": 8192}
LATENT = {"qk_nope_head_dim": 32, "qk_rope_head_dim": 32}
# Read off each published configuration class.
SWITCHED = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "smollm3")
WINDOWED = ("mistral", "mixtral", "starcoder2", "phi3", "phimoe", "exaone4", "gemma2", "gemma3_text", "gemma4_text")
WINDOWED += ("cohere2", "olmo3", "gpt_oss", "mimo_v2_flash")
NO_WINDOWS = ("llama", "granite", "cohere", "nemotron", "gemma", "olmo2", "glm4", "deepseek_v3")
IGNORES_PATTERN = {"gemma2": 2, "gemma4_text": 6, "gemma4_unified_text": 6, "olmo3": 4, "gpt_oss": 2}
READS_PATTERN = ("gemma3_text", "cohere2", "exaone4", "exaone_moe")


def positions(model_type, **changes):
    latent = LATENT if MODEL_TYPES.get(model_type, UNKNOWN).latent else {}
    theta = {} if model_type in MODEL_TYPES else {"rope_theta": 10000.0}
    return positions_of({"model_type": model_type, **COMMON, **latent, **theta, **changes}, origin="test.json")


def layers(read):
    of_layer = {layer: group for group in read.groups for layer in group.layers}
    return [(of_layer[i].window, of_layer[i].rotary and of_layer[i].rotary.dim) for i in range(8)]


def same(a, b):
    """Whether two readings agree on every layer: groups, heads, windows and frequencies."""

    def told(read):
        plain = [(group.name, group.layers, group.window, group.num_heads, group.head_dim) for group in read.groups]
        return plain, [group.rotary and group.rotary.inverse_frequencies.tolist() for group in read.groups]

    return told(a) == told(b)


def windows(model_type, **changes):
    return [window for window, _ in layers(positions(model_type, **changes))]


def about(read, key):
    return [finding for finding in read.findings if key in finding]


def refused(model_type, **changes):
    with pytest.raises(ConfigError) as caught:
        positions(model_type, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("qwen3_moe", {}, [4096] * 8),
        ("qwen3_moe", {"max_window_layers": 4}, [4096] * 8),
        ("qwen2_moe", {}, [4096, None] * 4),
        ("qwen2_moe", {"max_window_layers": 3, "sliding_window": 64}, [64, None, 64] + [None] * 5),
        ("qwen2", {"max_window_layers": 3}, [None] * 3 + [4096] * 5),
        ("smollm3", {"sliding_window": 64}, [None, None, None, 64] * 2),
        ("mistral", {}, [4096] * 8),
    ],
)
def test_a_window_that_is_asked_for_is_there(model_type, changes, expected):
    assert windows(model_type, use_sliding_window=True, **changes) == expected


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "starcoder2", "phi3", "smollm3", "granite", "novel"])
def test_a_window_without_a_size_is_an_error(model_type):
    message = refused(model_type, use_sliding_window=True)
    assert message.startswith("test.json: use_sliding_window: a window is asked for, and its size, sliding_window, is")
    assert message.isprintable()


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3_moe", "mistral"])
def test_a_window_of_null_tokens_is_found(model_type):
    read = positions(model_type, use_sliding_window=True, sliding_window=None)
    assert [window for window, _ in layers(read)] == [None] * 8
    assert about(read, "use_sliding_window is true, but sliding_window is null")


def test_max_window_layers_of_a_type_that_does_not_read_it():
    on = positions("qwen3_moe", use_sliding_window=True, max_window_layers=48)
    assert about(on, "max_window_layers 48 has no effect")
    off = positions("qwen3_moe", use_sliding_window=False, max_window_layers=48)
    assert not about(off, "max_window_layers")
    assert off.without_effect["max_window_layers"] == "no layer has a window"


@given(model_type=st.sampled_from(WINDOWED), window=st.one_of(st.just(...), st.integers(1, 8191)))
@settings(deadline=None, max_examples=80)
def test_the_switch_is_obeyed_where_it_is_read_only(model_type, window):
    stated = {} if window is ... else {"sliding_window": window}
    silent = positions(model_type, **stated)
    off = positions(model_type, **stated, use_sliding_window=False)
    assert same(off, silent)
    found = about(off, "use_sliding_window is false, but ")
    cuts = "sliding_window" in silent.values or any(group.window for group in silent.groups)
    assert bool(found) >= cuts
    if found:
        assert "vLLM obeys the key" in found[0]
        assert "does not read it" in off.without_effect["use_sliding_window"]


@given(model_type=st.sampled_from((*SWITCHED, "novel")), window=st.integers(1, 8191), null=st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_switch_is_obeyed_where_it_is_read(model_type, window, null):
    off = None if null and model_type != "novel" else False
    read = positions(model_type, sliding_window=window, use_sliding_window=off)
    assert [window for window, _ in layers(read)] == [None] * 8
    assert read.without_effect["sliding_window"] == "use_sliding_window is false"
    assert windows(model_type, use_sliding_window=False) == [None] * 8


@pytest.mark.parametrize("model_type", NO_WINDOWS)
def test_no_window_stays_none(model_type):
    for stated in ({}, {"sliding_window": 64}, {"sliding_window": None}):
        read = positions(model_type, **stated, use_sliding_window=False)
        assert {group.window for group in read.groups} == {None}
        assert same(read, positions(model_type))
    types = {"layer_types": [SLIDING, FULL] * 4, "sliding_window": 64}
    assert "sliding_window: off (use_sliding_window is false)" in refused("qwen2", **types)


@given(model_type=st.sampled_from(sorted(IGNORES_PATTERN)), pattern=st.integers(1, 9), listed=st.booleans())
@settings(deadline=None, max_examples=80)
def test_a_pattern_that_is_not_read_changes_nothing(model_type, pattern, listed):
    types = {"layer_types": [SLIDING, SLIDING, FULL, FULL] * 2} if listed else {}
    read = positions(model_type, sliding_window=64, sliding_window_pattern=pattern, **types)
    assert same(read, positions(model_type, sliding_window=64, **types))
    silent = not listed and pattern == IGNORES_PATTERN[model_type]
    assert bool(about(read, f"sliding_window_pattern {pattern} has no effect")) != silent
    assert "sliding_window_pattern" in read.without_effect


@given(model_type=st.sampled_from(READS_PATTERN), pattern=st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_a_pattern_that_is_read_counts(model_type, pattern):
    expected = [64 if (i + 1) % pattern else None for i in range(8)]
    assert windows(model_type, sliding_window=64, sliding_window_pattern=pattern) == expected


def test_a_pattern_that_repeats_the_list_is_no_finding():
    listed = {"layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 2, "sliding_window_pattern": 4}
    read = positions("gemma2", sliding_window=64, **listed)
    assert read.without_effect["sliding_window_pattern"] == "repeats layer_types"
    assert not about(read, "sliding_window_pattern")


@given(share=st.sampled_from((0.125, 0.25, 0.5, 1.0)), key=st.sampled_from(("partial_rotary_factor", "rotary_pct")))
@settings(deadline=None, max_examples=30)
def test_sliding_layers_of_gemma_4_turn_whole(share, key):
    silent = positions("gemma4_text")
    read = positions("gemma4_text", **{key: share})
    assert same(read, silent)
    assert layers(read)[0] == (512, 256)
    assert bool(about(read, f"{key} {share} has no effect")) == (share != 0.25)


def test_shares_in_the_sections_of_gemma_4():
    sliding = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    full = {"rope_type": "proportional", "rope_theta": 1e6}
    read = positions("gemma4_text", rope_parameters={FULL: full, SLIDING: sliding}, partial_rotary_factor=0.5)
    assert layers(read)[0] == (512, 256)
    assert about(read, "rope_parameters.sliding_attention.partial_rotary_factor 0.25 has no effect")
    stated = positions("gemma4_text", rope_parameters={FULL: {**full, "partial_rotary_factor": 0.5}, SLIDING: sliding})
    assert [group.rule(group.rotary).inverse_frequencies.tolist() for group in read.groups] == [
        group.rule(group.rotary).inverse_frequencies.tolist() for group in stated.groups
    ]
    both = {FULL: {**full, "rope_type": "default"}, SLIDING: sliding}
    whole = positions("gemma4_text", rope_parameters=both, partial_rotary_factor=0.5)
    assert {group.rotary.dim for group in whole.groups} == {256, 512}
    assert about(whole, "partial_rotary_factor 0.5 has no effect")


@pytest.mark.parametrize(
    ("changes", "dim", "base", "found"),
    [
        ({}, 16, 1e4, ""),
        ({"rotary_pct": 0.5}, 32, 1e4, ""),
        ({"partial_rotary_factor": 0.5}, 16, 1e4, "partial_rotary_factor 0.5 has no effect"),
        ({"partial_rotary_factor": 0.5, "rotary_pct": 0.5}, 32, 1e4, ""),
        ({"partial_rotary_factor": 0.25}, 16, 1e4, ""),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, 32, 1e4, ""),
        ({"rotary_emb_base": 5e4}, 16, 5e4, ""),
        ({"rope_theta": 5e4}, 16, 1e4, "rope_theta 50000.0 has no effect"),
    ],
)
def test_gpt_neox_reads_keys_of_its_own(changes, dim, base, found):
    read = positions("gpt_neox", **changes)
    assert (read.groups[0].rotary.dim, read.groups[0].rotary.base) == (dim, base)
    assert bool(about(read, "has no effect")) == bool(found)
    assert not found or about(read, found)
    assert "contradicts" in refused("gpt_neox", partial_rotary_factor=0.5, rotary_pct=0.25)
    assert "partial_rotary_factor: must be a number" in refused("gpt_neox", partial_rotary_factor="half")
