"""What layers have of their own: published defaults, layers written out one by one, and the names of head_dim."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.checkpoints.dialects import positions_of
from rope_jax.checkpoints.shapes import HEAD_DIM, MAX_HEAD
from rope_jax.errors import ConfigError

FULL, SLIDING = "full_attention", "sliding_attention"
COMMON = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 8, "max_position_embeddings": 4096}


def read(model_type, **changes):
    positions = positions_of({"model_type": model_type, **COMMON, **changes}, origin="test.json")
    return {layer: group for group in positions.groups for layer in group.layers}


def refused(model_type, **changes):
    with pytest.raises(ConfigError) as caught:
        read(model_type, **changes)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith("test.json: ")
    return message


@pytest.mark.parametrize(
    ("model_type", "own"), [("gemma3_text", "rope_local_base_freq"), ("mimo_v2_flash", "swa_rope_theta")]
)
@pytest.mark.parametrize("main", [{}, {"rope_theta": 5e5}])
@pytest.mark.parametrize("scaling", [{}, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}])
@pytest.mark.parametrize("wrapped", [False, True])
def test_sliding_layers_have_a_base_of_their_own(model_type, own, main, scaling, wrapped):
    def bases(**changes):
        config = {"model_type": model_type, **COMMON, "sliding_window": 64, **main, **scaling, **changes}
        config = {"model_type": "outer", "text_config": config} if wrapped else config
        return {group.window: group.rotary.base for group in positions_of(config, origin="test.json").groups}

    assert bases()[64] == 10000.0
    assert bases()[None] == main.get("rope_theta", {"gemma3_text": 1e6, "mimo_v2_flash": 5e6}[model_type])
    assert bases(**{own: 2e4})[64] == 2e4


@pytest.mark.parametrize("pattern", [{}, {"sliding_window_pattern": "LLLG"}, {"sliding_window_pattern": 4}])
@pytest.mark.parametrize("listed", [False, True])
def test_exaone_4_turns_only_beside_a_window(pattern, listed):
    types = {"layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 2} if listed else {}
    layers = read("exaone4", **pattern, **types, sliding_window=64)
    assert [layers[i].rotary is None for i in range(8)] == [False, False, False, True] * 2
    assert [layers[i].window for i in range(8)] == [64, 64, 64, None] * 2
    without = read("exaone4", sliding_window=None)
    assert all(group.rotary is not None and group.window is None for group in without.values())


@given(letters=st.text("LG", min_size=1, max_size=9))
@settings(deadline=None, max_examples=60)
def test_letters_repeat_and_end_in_a_full_layer(letters):
    layers = read("exaone4", sliding_window_pattern=letters, sliding_window=64)
    expected = [letters[i % len(letters)] for i in range(8)]
    expected[-1] = "G"
    assert ["G" if layers[i].window is None else "L" for i in range(8)] == expected


@pytest.mark.parametrize("pattern", ["", "LXG", "lg", "4", "L" * 300, ["L"], 0])
def test_a_pattern_that_is_none(pattern):
    assert "sliding_window_pattern: " in refused("exaone4", sliding_window_pattern=pattern)


GEMMA4 = {"head_dim": 16, "sliding_window": 64, "layer_types": [SLIDING, FULL] * 4}
EACH = {f"{layer:02}": {"head_dim": 32} for layer in (1, 3, 5, 7)}


@pytest.mark.parametrize("model_type", ["gemma4_text", "gemma4_unified_text", "gemma4_unified"])
def test_heads_of_the_full_layers_of_gemma_4(model_type):
    for changes, width in (
        ({}, 512),
        ({"global_head_dim": 32}, 32),
        ({"per_layer_config": EACH}, 32),
        ({"per_layer_config": EACH, "global_head_dim": 32}, 32),
        ({"per_layer_config": {}}, 16),
    ):
        layers = read(model_type, **GEMMA4, **changes)
        assert [layers[i].head_dim for i in range(8)] == [16, width] * 4
        assert layers[1].rotary.dim == width


def test_layers_written_out_in_any_model_type():
    layers = read("llama", head_dim=16, rope_theta=1e4, per_layer_config={str(i): {"head_dim": 32} for i in range(8)})
    assert {group.head_dim for group in layers.values()} == {32}
    more = {"03": {"num_key_value_heads": 1, "intermediate_size": 8}}
    assert read("llama", head_dim=16, rope_theta=1e4, per_layer_config=more)[3].head_dim == 16


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({**EACH, "1": {"head_dim": 32}}, "twice"),
        ({"8": {}}, "must be the number of a layer, 0 to 7"),
        ({"x": {}}, "must be the number of a layer"),
        ({"1": 3}, "must be an object"),
        ({"1": {"sliding_window": 5}}, "not understood"),
        ({"1": {"rope_theta": 5}}, "not understood"),
        ({"1": {"no_rope_layers": [1]}}, "not understood"),
        ([1], "must be an object"),
        ({"1": {"head_dim": 0}}, "must be a whole number"),
    ],
)
def test_layers_written_out_wrongly(own, words):
    message = refused("gemma4_text", **GEMMA4, per_layer_config=own)
    assert "per_layer_config" in message
    assert words in message


def test_two_statements_about_a_layers_heads_must_agree():
    assert "contradicts" in refused("gemma4_text", **GEMMA4, per_layer_config=EACH, global_head_dim=64)


@pytest.mark.parametrize("key", HEAD_DIM)
def test_every_name_of_a_heads_width_is_read(key):
    assert read("llama", rope_theta=1e4, **{key: 32})[0].head_dim == 32
    both = {"head_dim": 16, key: 32}
    if key != "head_dim":
        assert "contradicts" in refused("llama", rope_theta=1e4, **both)
    assert read("bloom", **{key: 32})[0].head_dim == 32


@pytest.mark.parametrize("key", ["global_head_dim", "swa_head_dim", "rope_head_dim", "perLayerConfig"])
def test_a_heads_width_under_another_name_is_not_passed_over(key):
    assert f"{key}: is about positions and not understood" in refused("llama", rope_theta=1e4, **{key: 32})


@pytest.mark.parametrize("model_type", ["llama", "gemma4_text", "bloom", "deepseek_v3"])
@given(width=st.integers(MAX_HEAD + 1, 10**6))
@settings(deadline=None, max_examples=10)
def test_an_absurd_width_is_refused_with_its_number(model_type, width):
    key = "qk_nope_head_dim" if model_type == "deepseek_v3" else "head_dim"
    changes = GEMMA4 if model_type == "gemma4_text" else {"rope_theta": 1e4}
    message = refused(model_type, **changes | {key: width})
    assert f"{key}: heads of " in message
    assert f"at most {MAX_HEAD:,}" in message
    hidden = {**COMMON, "hidden_size": width, "num_attention_heads": 1}
    with pytest.raises(ConfigError, match=f"heads of {width:,} dimensions"):
        positions_of({"model_type": "llama", "rope_theta": 1e4, **hidden}, origin="test.json")


@pytest.mark.parametrize("keys", [{}, {"swa_head_dim": 16}, {"swa_head_dim": 16, "swa_rope_theta": 1e5}])
def test_keys_of_a_layer_type_that_no_layer_has_change_nothing(keys):
    pattern = {"hybrid_layer_pattern": [0] * 8, "sliding_window": 64}
    positions = positions_of({"model_type": "mimo_v2_flash", **COMMON, **pattern, **keys}, origin="test.json")
    assert len(positions.groups) == 1
    assert {key: positions.without_effect[key] for key in keys} == dict.fromkeys(keys, "no layer has this type")
    layers = read("gemma4_text", **{**GEMMA4, "layer_types": [FULL] * 8})
    assert {group.head_dim for group in layers.values()} == {512}


def test_gemma_4_ends_in_a_full_layer_whatever_is_listed():
    layers = read("gemma4_text", head_dim=16, sliding_window=64, layer_types=[SLIDING] * 8)
    assert [layers[i].window for i in range(8)] == [64] * 7 + [None]
    assert layers[7].head_dim == 512
