"""The inspection record: the case it is for, the models it must not trip over, and its documented keys."""

import json
import math

import pytest

from rope_jax.checkpoints.dialects import positions_of
from rope_jax.checkpoints.presets import PRESETS, preset
from rope_jax.diagnosis.evaluation.scalings import scaling_rule
from rope_jax.diagnosis.theory.keys import KEYS, STATUS, key_paths
from rope_jax.diagnosis.theory.options import stars
from rope_jax.diagnosis.theory.plot import draw
from rope_jax.diagnosis.theory.record import inspect_positions, plain, read_model
from rope_jax.diagnosis.theory.table import table_text, tokens
from rope_jax.errors import InputError

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "rope_theta": 200.0,
    "torch_dtype": "bfloat16",
}
T5 = {
    "model_type": "t5",
    "d_model": 64,
    "d_kv": 32,
    "d_ff": 128,
    "num_heads": 2,
    "num_layers": 2,
    "relative_attention_num_buckets": 32,
    "n_positions": 512,
}


def small(**changes):
    return positions_of({**SMALL, **changes}, origin="a small model")


@pytest.fixture(scope="module")
def case():
    return inspect_positions(read_model(preset="llama-2-7b"), target_length=32768)


def option(record, name):
    return next(item for item in record["options"] if item["name"] == name)


def test_the_case(case):
    assert case["status"] == STATUS
    assert case["settings"]["scaling"] == "ntk"
    assert case["settings"]["bias"] == "alibi"
    (group,) = case["layer_groups"]
    assert group["classes"] == {"interpolated": 1, "extrapolated": 45, "out of distribution": 17, "unchanged": 1}
    assert len(group["pairs"]) == 64
    assert group["pairs"][63]["growth"] == pytest.approx(8)
    assert case["bias"]["gentlest_slope"] == 2.0**-8
    assert max(case["bias"]["horizons"]) == 5120
    assert case["bias"]["cost_at_original"] == pytest.approx(16, abs=0.01)
    assert case["entropy_cost"] == pytest.approx(math.log(8))


def test_every_option_of_the_case_is_there(case):
    options = {(item["option"], item["name"]) for item in case["options"]}
    assert options == {
        ("status quo", "ntk + alibi"),
        ("1", "ntk + no bias"),
        ("2", "none + alibi"),
        *(("3", f"{name} + alibi") for name in ("linear", "by_parts", "yarn", "llama3")),
        ("3", "ntk, lambda 18.06 + alibi"),
        ("3", "ntk, lambda 63 + alibi"),
    }
    assert [item["rank"] for item in case["options"]] == list(range(1, 10))
    scores = [item["score"] for item in case["options"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_the_score_weighs_old_and_new_offsets_alike(case):
    for item in case["options"]:
        assert item["score"] == pytest.approx((item["score_trained"] + item["score_new"]) / 2)
        kept = [point["retained_mass"] for point in item["curve"] if not point["trained"]]
        assert item["score_new"] == pytest.approx(sum(kept) / len(kept))
    # Undoing the scaling keeps what was trained and fails beyond it: neither half may hide the other.
    undone = option(case, "none + alibi")
    assert undone["score_trained"] > 0.9 > 0.1 > undone["score_new"]


@pytest.mark.parametrize(("seen", "reach"), [(4096, 32768), (8192, 16384), (8192, 8193), (112, 256), (2, 3), (1, 2)])
def test_a_longer_context_is_always_looked_at(seen, reach):
    found = stars(seen, reach)
    assert found == sorted(set(found))
    assert seen <= found[-1] < reach
    assert stars(seen, seen)[-1] < max(seen, 2)


def test_curves_of_the_case(case):
    curve = {point["offset"]: point for point in option(case, "ntk + no bias")["curve"]}
    assert list(curve) == [16, 64, 256, 1024, 4096, 16384]
    assert [curve[at]["peak_offset"] for at in (16, 64, 256)] == [18, 103, 496]
    assert curve[16]["peak_coherence"] == pytest.approx(0.918, abs=1e-3)
    assert curve[4096]["coherence"] is None
    assert not curve[4096]["trained"]
    # The bias, not the scaling, hides what is far: dropping it brings g50 back to a token.
    assert curve[16384]["g50"] <= 2
    assert option(case, "ntk + alibi")["curve"][-1]["g50"] > 10_000


def test_yarn_is_scored_with_its_attention_factor(case):
    assert option(case, "yarn + alibi")["effective_amplitude"] == pytest.approx(20 * (1 + 0.1 * math.log(8)) ** 2)


def test_faults_of_an_implementation_are_named():
    config = small()
    record = inspect_positions(config, target_length=32768)
    messages = {item["fault"]: item["message"] for item in record["warnings"]}
    assert "steps of 128 tokens beyond offset 16,384" in messages["bias tensor in low precision"]
    assert "beyond 256" in messages["low-precision phases"]
    assert "32,767" in messages["float32 phases"]
    assert "stale rotated cache" not in messages
    dynamic = inspect_positions(config, target_length=256, scaling_name="dynamic_ntk", bias_name="none")
    faults = [item["fault"] for item in dynamic["warnings"]]
    assert "stale rotated cache" in faults
    assert "bias tensor in low precision" not in faults


def test_what_the_config_declares_comes_first():
    declared = {"rope_type": "linear", "factor": 2.0}
    config = small(rope_scaling=declared)
    record = inspect_positions(config, target_length=config.original_length * 4)
    assert record["settings"]["scaling"] == "linear"
    assert record["settings"]["scaling_source"] == "declared by the config"
    assert record["layer_groups"][0]["hyperparameters"]["factor"] == 2.0
    assert "scaling for a shorter context" in [item["fault"] for item in record["warnings"]]
    asked = inspect_positions(config, target_length=config.original_length * 4, scaling_name="yarn")
    assert asked["settings"]["scaling"] == "yarn"


def test_options_that_change_nothing_are_left_out_and_named():
    record = inspect_positions(small(), target_length=512, scaling_name="none", bias_name="none")
    assert {item["option"] for item in record["options"]} == {"status quo", "3"}
    assert [item["name"] for item in record["not_applicable"]] == [
        "option 1: drop the bias",
        "option 2: undo the scaling",
    ]


def test_the_trained_length_itself_is_allowed():
    record = inspect_positions(small(), target_length=128)
    assert record["model"]["factor"] == 1
    assert record["entropy_cost"] == 0
    assert record["thresholds"]["no_cell_out_of_distribution"] == 1


def test_windowed_layers_keep_their_scaling_and_reach():
    record = inspect_positions(
        read_model(preset="gemma-3-4b"), target_length=40960, scaling_name="ntk", bias_name="none"
    )
    local, main = record["layer_groups"]
    assert (local["window"], local["reach"], local["seen"], local["scaling"]) == (1024, 1024, 1024, "none")
    assert local["out_of_distribution_share"] == 0
    assert (main["window"], main["reach"], main["scaling"]) == (None, 40960, "ntk")


def test_a_model_without_rotary():
    record = inspect_positions(read_model(preset="mpt-7b"), target_length=8192)
    assert record["options"] == []
    assert record["thresholds"] is None
    assert record["bias"]["kind"] == "alibi"
    assert len(record["not_applicable"]) == 3
    assert "no rotary embedding" in table_text(record)
    with pytest.raises(InputError, match="no rotary embedding"):
        inspect_positions(read_model(preset="mpt-7b"), target_length=8192, scaling_name="yarn")


def test_a_t5_bias_is_said_to_be_unknown():
    record = inspect_positions(small(), target_length=512, bias_name="t5")
    assert record["bias"]["last_bucket_start"] == 113
    assert "zeros" in record["bias"]["note"]
    assert option(record, "ntk + t5")["score"] == option(record, "ntk + no bias")["score"]


def test_a_t5_model():
    record = inspect_positions(positions_of(T5, origin="a T5"), target_length=1024)
    assert record["bias"]["kind"] == "t5"
    assert record["options"] == []
    assert "zeros" in table_text(record)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_read(name):
    config = read_model(preset=name)
    assert config.origin == f"preset {name}"
    assert config.original_length <= config.declared_length


def test_a_preset_is_a_copy():
    preset("llama-3.1-8b")["rope_scaling"]["factor"] = 0
    assert preset("llama-3.1-8b")["rope_scaling"]["factor"] == 8.0


@pytest.mark.parametrize(
    ("config", "target", "arguments"),
    [
        ("llama-2-7b", 32768, {}),
        ("gpt-oss-20b", 8192, {}),
        ("mpt-7b", 4096, {}),
        ("pythia-410m", 4096, {"bias_name": "t5"}),
        ("gemma-2-2b", 16384, {"scaling_name": "none", "bias_name": "none"}),
    ],
)
def test_every_key_is_documented_and_the_record_is_json(config, target, arguments):
    record = inspect_positions(read_model(preset=config), target_length=target, **arguments)
    assert set(key_paths(record)) <= set(KEYS)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert max(map(len, table_text(record).splitlines())) <= 100
    assert STATUS in table_text(record)


def test_every_documented_key_occurs(case):
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "factor": 4.0}
    config = small(rope_scaling={**longrope, "original_max_position_embeddings": 128}, max_position_embeddings=512)
    seen = set(key_paths(case)) | set(key_paths(inspect_positions(config, target_length=512)))
    seen |= set(key_paths(inspect_positions(small(), target_length=256, bias_name="t5")))
    assert set(KEYS) == seen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_length": 127}, "below the 128 tokens"),
        ({"target_length": 2**24 + 1}, "must lie in"),
        ({"target_length": 256, "amplitude": 0.0}, "amplitude"),
        ({"target_length": 256, "amplitude": math.nan}, "amplitude"),
        ({"target_length": 256, "scaling_name": "ropey"}, "unknown scaling 'ropey'"),
        ({"target_length": 256, "bias_name": "kerple"}, "unknown bias 'kerple'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        inspect_positions(small(), **arguments)


def test_dynamic_ntk_at_the_target_is_ntk():
    rule = scaling_rule("dynamic_ntk", factor=8.0, original_length=4096)
    assert rule.at(32768).hyperparameters["length"] == 32768
    case = read_model(preset="llama-2-7b").main_group.rotary
    ntk = scaling_rule("ntk", factor=8.0, original_length=4096)
    assert rule.at(32768)(case).inverse_frequencies == pytest.approx(ntk(case).inverse_frequencies)


def test_plain():
    assert plain({"a": (1, math.inf), 2: None}) == {"a": [1, None], "2": None}


def test_tokens_fit_their_column():
    for value in (None, 0.5, 6.28, 99.99, 32768, 999_999, 1_048_576, 2.5e9, 1e15):
        assert len(tokens(value)) <= 7


def test_the_plot_is_drawn_in_both_kinds(case):
    assert b"predicted, not measured" in draw(case, kind="svg")
    assert draw(case, kind="svg") == draw(case, kind="svg")
    assert draw(case, kind="png").startswith(b"\x89PNG")
    none = inspect_positions(read_model(preset="mpt-7b"), target_length=4096)
    assert b"nothing rotates" in draw(none, kind="svg")
