"""Keys that change positions or attention say what is done anyway, or are refused by name, in both readers."""

import json
import pathlib
import sys
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.checkpoints import decoder_keys
from rope_jax.checkpoints.dialects import positions_of
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.checkpoints.mechanisms import MECHANISMS
from rope_jax.errors import ConfigError, UnsupportedError

sys.path.append(str(pathlib.Path(__file__).parents[1] / "golden"))
from logit_cases import CASES, write

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}
# What changes something, and what says the default, of keys as published.
CHANGES = {
    "use_logn_attn": (True, False),
    "llama_4_scaling_beta": (0.1, 0),
    "index_topk": (2048, None),
    "is_neox_style": (False, True),
    "interleaved": (True, False),
    "rope_interleaved": (True, False),
    "rope_interleave": (True, False),
    "causal": (False, True),
    "is_causal": (False, True),
    "attention_logit_cap": (30.0, None),
    "group_size_1": (8, 1),
    "grp_attn_n": (4, 1),
    "self_extend": (True, False),
    "condense_ratio": (8, 1),
    "factor": (8.0, 1.0),
    "scaling_factor": (4, 1),
    "attn_temperature_tuning": (True, False),
    "attn_soft_cap": (30.0, None),
    "logit_soft_cap": (30.0, None),
    "blocksparse_block_size": (64, None),
    "blocksparse_num_local_blocks": (16, None),
    "blocksparse_vert_stride": (8, None),
    "blocksparse_triton_kernel_block_size": (64, None),
    "blocksparse_homo_head_pattern": (True, False),
    "dense_attention_every_n_layers": (2, 1),
    "block_sparse": ({"stride": 8}, False),
    "embedding_type": ("alibi", "rotary"),
    "attention_bias_type": ("alibi", "none"),
    "linear_attn": (True, False),
    "linear_attn_config": ({"kda_layers": [1]}, None),
    "encoder_only": (True, False),
    "scale": (2.0, 1),
}


def read(**changes):
    return positions_of({**LLAMA, **changes}, origin="test.json")


def check(**changes):
    return decoder_keys.check_keys({**LLAMA, **changes}, pathlib.Path("test.json"))


@pytest.mark.parametrize("reader", [read, check])
@pytest.mark.parametrize("key", CHANGES)
def test_what_changes_something_is_refused_by_name(key, reader):
    on, off = CHANGES[key]
    with pytest.raises(UnsupportedError, match=rf"test\.json: {key}: .*, got ") as caught:
        reader(**{key: on})
    assert str(caught.value).isprintable()
    reader(**{key: off})
    reader(**{key: None})


@pytest.mark.parametrize("key", CHANGES)
def test_the_default_is_reported_as_such(key):
    off = CHANGES[key][1]
    assert read(**{key: off}).without_effect[key] in ("says what is done anyway", "null: not set")
    wrapped = {"model_type": "llava", "text_config": {**LLAMA, key: CHANGES[key][0]}}
    with pytest.raises(UnsupportedError, match=rf"text_config\.{key}: "):
        positions_of(wrapped, origin="test.json")


def test_a_temperature_in_the_rope_section_is_named_too():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e6}
    with pytest.raises(UnsupportedError, match=r"rope_parameters\.llama_4_scaling_beta: attention temperature: quer"):
        read(rope_theta=1e6, rope_parameters={**yarn, "llama_4_scaling_beta": 0.1})


def test_a_factor_inside_a_section_is_that_sections():
    assert read(rope_scaling={"rope_type": "linear", "factor": 4.0}).values["factor"].value == 4
    assert read(vision_config={"factor": 3}, quantization_config={"scaling_factor": 3})


@pytest.mark.parametrize("place", ["", "text_config"])
def test_code_of_its_own_is_a_finding(place):
    own = {"auto_map": {"AutoConfig": "configuration_x.XConfig"}}
    config = {**LLAMA, **own} if not place else {"model_type": "x", "text_config": {**LLAMA, **own}}
    found = [finding for finding in positions_of(config, origin="test.json").findings if "auto_map" in finding]
    path = f"{place}.auto_map" if place else "auto_map"
    assert found == [f"{path}: the model comes with code of its own, not read here: it may treat positions otherwise"]
    assert not any("auto_map" in finding for finding in read(auto_map=None).findings)


def test_the_readers_of_weights_accepts_what_the_reader_of_positions_does(tmp_path):
    write(tmp_path, CASES["llama-default"])
    file = tmp_path / "config.json"
    off = {key: value for key, (_, value) in CHANGES.items()}
    file.write_text(json.dumps({**json.loads(file.read_text()), **off, "auto_map": {"AutoConfig": "x.X"}}))
    findings = load_checkpoint(tmp_path).positions.findings
    assert any("code of its own" in finding for finding in findings)


def test_a_model_type_that_is_not_known_is_a_finding():
    assert any("'exaone9' is not known" in finding for finding in read(model_type="exaone9").findings)
    assert read().findings == ()


VALUES = st.sampled_from([None, True, False, 0, 1, 2, -1, 0.5, 1.0, "", "true", [], [1], {}, {"a": 1}, 10**9])


@given(key=st.sampled_from(sorted(MECHANISMS)), value=VALUES, nested=st.booleans())
@settings(deadline=None, max_examples=300)
def test_both_readers_agree_on_every_key_and_value(key, value, nested):
    """No value is passed over in silence: it is refused in both readers, or accounted for."""
    config = {**LLAMA, key: value}

    def refuses(reader) -> bool:
        try:
            reader()
        except ConfigError as error:
            return key in str(error) and str(error).isprintable()
        return False

    with tempfile.TemporaryDirectory() as folder:
        weights = refuses(lambda: decoder_keys.check_keys(config, pathlib.Path(folder)))
    inner = {"model_type": "x", "text_config": config} if nested else config
    assert refuses(lambda: positions_of(inner, origin="test.json")) == weights
    if not weights:
        assert f"{'text_config.' if nested else ''}{key}" in positions_of(inner, origin="test.json").without_effect
