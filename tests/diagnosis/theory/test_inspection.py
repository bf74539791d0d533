"""`inspect`: the case it is for, the models it must not trip over, what is asked of it, and its documented keys."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax import scaling
from rope_jax.biases import Alibi, KerpleLogarithmic
from rope_jax.biases.registry import BiasRecord
from rope_jax.checkpoints.presets import PRESETS, preset
from rope_jax.diagnosis.theory.details import tokens
from rope_jax.diagnosis.theory.inspection import inspect, plain, positions
from rope_jax.diagnosis.theory.keys import KEYS, STATUS, key_paths
from rope_jax.errors import InputError, ScalingError
from rope_jax.frequencies import inverse_frequencies, period_matched_base
from rope_jax.rules import Rule
from rope_jax.scaling.registry import SCALINGS, Scaling

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
LINEAR = {**SMALL, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}


@pytest.fixture(scope="module")
def case():
    return inspect("llama-2-7b", target_length=32768, bias="alibi").record


def rows(record):
    return {(option["change"], option["scaling"], option["bias"]) for option in record["options"]}


def heading(record, name):
    return next(item["text"] for item in record["summary"] if item["heading"] == name)


def test_the_case(case):
    assert case["status"] == STATUS
    assert case["deployed"]["scaling"] == "ntk"
    (group,) = case["layer_groups"]
    assert group["classes"] == {"interpolated": 1, "extrapolated": 45, "out of distribution": 17, "unchanged": 1}
    assert (group["pairs_out"], group["pairs_unchanged"], len(group["pairs"])) == (17, 1, 64)
    assert group["pairs"][63]["growth"] == pytest.approx(8)
    assert max(case["bias"]["horizons"]) == 5120
    assert (case["bias"]["taken_at_trained"], case["bias"]["taken_at_target"]) == (4095 / 256, 32767 / 256)
    assert case["entropy_cost"] == pytest.approx(math.log(8))


def test_the_base_to_set_for_each_threshold(case):
    bases = {key: item["base"] for key, item in case["thresholds"].items()}
    assert bases["period_match"] == period_matched_base(1e4, factor=8.0, dim=128) == pytest.approx(82_685, abs=1)
    assert bases["no_pair_out_of_distribution"] == pytest.approx(1e4 * (32767 / 4095) ** (64 / 46))
    assert bases["content_never_negative"] == pytest.approx(63e4, rel=1e-4)
    text = inspect("llama-2-7b", target_length=32768).table()
    assert all(f"set {base:,.0f} so that" in text for base in bases.values())
    # What they are said to do.
    for base, out in ((bases["period_match"], 17), (math.ceil(bases["no_pair_out_of_distribution"]), 0)):
        record = inspect("llama-2-7b", target_length=32768, scaling=f"explicit_base:{base}").record
        assert record["layer_groups"][0]["pairs_out"] == out
        assert record["layer_groups"][0]["base_after"] == base
    theta = inverse_frequencies(128, base=bases["content_never_negative"])
    assert all(np.cos(m * theta).sum() >= 0 for m in range(0, 32769, 7))


def test_no_bias_is_made_up():
    record = inspect("llama-2-7b", target_length=32768).record
    assert record["bias"]["name"] == "none"
    changes = {(change, name) for change, name, bias in rows(record) if bias == "none"}
    assert len(changes) == len(record["options"])
    named = {name for name, one in SCALINGS.items() if one.kind in ("base", "map", "map and temperature")} - {"ntk"}
    bases = {"explicit_base:180552", "explicit_base:629979"}
    expected = {("deployed", "ntk"), ("2 undo scaling", "none")}
    assert changes == expected | {("3 change scaling", name) for name in named | bases}


def test_combinations_are_listed_and_nothing_is_ranked(case):
    expected = {
        ("deployed", "ntk", "alibi"),
        ("1 drop bias", "ntk", "none"),
        ("2 undo scaling", "none", "alibi"),
        ("1+2 revert all", "none", "none"),
        ("3 change scaling", "yarn", "alibi"),
        ("1+3 both", "yarn", "none"),
    }
    assert expected <= rows(case)
    assert not {"rank", "score"} & {key for option in case["options"] for key in option}
    text = inspect("llama-2-7b", target_length=32768).table()
    assert "Not ranked" in text
    assert "0.19" in text


def test_curves_of_the_case(case):
    curve = {point["offset"]: point for point in case["options"][0]["curve"]}
    assert [curve[at]["peak_offset"] for at in (16, 64, 256)] == [18, 103, 496]
    assert curve[16]["peak_coherence"] == pytest.approx(0.918, abs=1e-3)
    assert max(curve) < 4096


def test_a_declared_scaling_is_replaced_with_a_factor_against_the_first_length():
    record = inspect("llama-3.1-8b", target_length=262144).record
    assert (record["model"]["original_length"], record["model"]["trained_length"]) == (8192, 131072)
    assert record["layer_groups"][0]["hyperparameters"]["factor"] == record["deployed"]["factor"] == 32
    assert record["layer_groups"][0]["largest_growth"] == pytest.approx(4)  # 32 in place of 8
    assert (record["model"]["ratio"], record["entropy_cost"]) == (2, pytest.approx(math.log(2)))
    composed = inspect("llama-3.1-8b", target_length=262144, scaling="linear", compose=True).record
    assert composed["deployed"]["factor"] == composed["layer_groups"][0]["least_growth"] == 2
    assert "--compose" in composed["next"]
    replaced = inspect(LINEAR, target_length=1024, scaling="linear").record
    assert replaced["deployed"]["factor"] == 1024 / 128
    with pytest.raises(ScalingError, match="yarn after llama3"):
        inspect("llama-3.1-8b", target_length=262144, scaling="yarn", compose=True)
    with pytest.raises(InputError, match="name the scaling"):
        inspect("llama-3.1-8b", target_length=262144, compose=True)


def test_up_to_the_native_length_nothing_is_extended():
    for target in (65536, 131072):
        found = inspect("llama-3.1-8b", target_length=target)
        assert not found.record["model"]["extended"]
        assert "nothing is extended" in heading(found.record, "CHANGES")
        assert found.record["thresholds"] is None
        assert found.record["entropy_cost"] == 0
        assert len(found.record["options"]) == 1
        assert "500,000 as trained" in found.table()
        assert len(found.record["layer_groups"][0]["pairs"]) == 64
    named = inspect(SMALL, target_length=64, scaling="yarn").record
    assert "yarn has nothing to do" in heading(named, "CHANGES")


def test_a_window_that_no_query_sees_beyond_takes_no_scaling():
    record = inspect("mistral-7b-v0.1", target_length=65536).record
    assert (record["model"]["extended"], record["deployed"]["scaling"]) == (False, "none")


def test_windowed_layers_keep_their_scaling_and_reach():
    record = inspect("gemma-3-4b", target_length=300_000, scaling="ntk").record
    local, main = record["layer_groups"]
    assert (local["window"], local["reach"], local["seen"], local["scaling"]) == (1024, 1024, 1024, "none")
    assert local["out_of_distribution_share"] == 0
    assert (main["window"], main["reach"], main["scaling"]) == (None, 300_000, "ntk")


def test_what_the_model_was_trained_with_can_be_told():
    record = inspect(SMALL, target_length=1024, trained_length=256, trained_base=500.0).record
    assert (record["model"]["trained_length"], record["deployed"]["factor"]) == (256, 4)
    assert record["layer_groups"][0]["base_before"] == 500
    assert record["thresholds"]["period_match"]["base"] == period_matched_base(500, factor=4.0, dim=32)
    assert "--trained_length=256" in record["next"]


def test_a_rule_and_a_bias_of_ones_own():
    rule = Rule("mine", scaling.linear(factor=4.0).transform, {"factor": 4.0})
    kerple = KerpleLogarithmic(jnp.full(2, 8.0), jnp.array([1.0, 2.0]))
    record = inspect(SMALL, target_length=512, scaling=rule, bias=kerple).record
    assert record["layer_groups"][0]["least_growth"] == 4
    assert record["deployed"]["bias"] == "kerplelogarithmic"
    assert record["bias"]["taken_at_target"] == pytest.approx(8 * math.log(512), rel=1e-6)
    # exp(20 / 8) - 1 = 11.2 tokens, on a grid of eighths of an octave.
    assert 11.2 < record["bias"]["horizons"][0] < 11.2 * 2**0.25
    made = Scaling("halved", lambda s, length: scaling.linear(factor=s / 2), "halved", "#000000", "half of s")
    slopes = BiasRecord("sloped", lambda request: Alibi(jnp.full(2, 0.5)), "sloped", "#000000", "slopes")
    record = inspect(SMALL, target_length=512, scaling=made, bias=slopes).record
    assert record["layer_groups"][0]["least_growth"] == 2
    assert record["bias"]["horizons"] == [40, 40]
    with pytest.raises(InputError, match="2 heads, the model 32"):
        inspect("llama-2-7b", target_length=8192, bias=kerple)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target_length": 384.5}, "target length must be a whole number, got 384.5"),
        ({"target_length": None}, "target length must be a whole number, got None"),
        ({"trained_length": "x"}, "trained length must be a whole number, got 'x'"),
        ({"trained_base": "x"}, "trained base must be a number, got 'x'"),
        ({"amplitude": "x"}, "amplitude must be a number, got 'x'"),
        ({"scaling": 5}, "scaling: 5 is neither a name, a rule nor a record"),
        ({"bias": 5}, "bias int is 5, not a Bias"),
        ({"model": None}, "a model is a preset's name, a path, a config or its positions, got None"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(without_type_checks, given, message):
    with pytest.raises(InputError, match=message):
        inspect(**{"model": SMALL, "target_length": 512} | given)


def test_multiples_of_alibi():
    one, many = (inspect(SMALL, target_length=512, bias=name).record for name in ("alibi", "alibi*16"))
    assert many["bias"]["slopes"] == [16 * slope for slope in one["bias"]["slopes"]]
    assert many["next"].endswith("--deployed=ntk+alibi*16")


def test_faults_of_an_implementation_are_named():
    def faults(**arguments):
        return {item["fault"]: item["message"] for item in inspect(SMALL, **arguments).record["faults"]}

    messages = faults(target_length=32768, bias="alibi")
    assert "steps of 128 tokens beyond offset 16,384" in messages["bias tensor in low precision"]
    assert "beyond 256" in messages["low-precision phases"]
    assert "32,767" in messages["float32 phases"]
    assert "stale rotated cache" not in messages
    dynamic = faults(target_length=256, scaling="dynamic_ntk")
    assert "stale rotated cache" in dynamic
    assert "bias tensor in low precision" not in dynamic
    short = faults(target_length=512, scaling=scaling.linear(factor=2.0))
    assert "covers 256 tokens, not 512" in short["scaling for a shorter context"]


def test_a_model_without_rotary():
    record = inspect("mpt-7b", target_length=8192).record
    assert record["options"] == []
    assert record["thresholds"] is None
    assert (record["bias"]["name"], record["bias"]["declared"]) == ("alibi", True)
    with pytest.raises(InputError, match="no rotary embedding"):
        inspect("mpt-7b", target_length=8192, scaling="yarn")
    with pytest.raises(InputError, match="no rotary embedding"):
        inspect("mpt-7b", target_length=8192, trained_base=1e4)


def test_a_t5_table_is_said_to_be_unknown():
    for record in (inspect(SMALL, target_length=512, bias="t5").record, inspect(T5, target_length=1024).record):
        assert record["bias"]["name"] == "t5"
        assert "zeros" in record["bias"]["note"]
    assert record["bias"]["last_bucket_start"] == 113


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("ratio", [0.5, 2])
def test_every_preset_runs_and_reads_well_on_a_narrow_terminal(name, ratio):
    config = positions(name)
    found = inspect(name, target_length=int(ratio * config.declared_length))
    assert set(key_paths(found.record)) <= set(KEYS)
    assert json.loads(found.to_json()) == found.record
    text = found.table()
    assert max(map(len, text.splitlines())) <= 80
    assert f"preset {name}" in text
    assert STATUS in text
    summary = text.split("\n\n")[0].splitlines()
    assert len(summary) <= 16
    assert len(inspect(name, target_length=config.declared_length, bias="alibi*0.1").table(width=120)) > 0
    assert max(map(len, found.table(details=True).splitlines())) <= 100


def test_the_case_is_said_in_twelve_lines():
    summary = inspect("llama-2-7b", target_length=32768).table().split("\n\n")[0]
    assert len(summary.splitlines()) <= 13
    for needed in ("4,096 tokens", "10,000 -> 82,685", "17 of 64 pairs", "6.6 %", "2.08 nats", "--deployed=ntk+none"):
        assert needed in summary


def test_every_documented_key_occurs(case):
    seen = set(key_paths(case)) | set(key_paths(inspect(SMALL, target_length=256, bias="t5").record))
    seen |= set(key_paths(inspect("mpt-7b", target_length=8192).record))
    assert set(KEYS) == seen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_length": 1}, "must lie in"),
        ({"target_length": 2**24 + 1}, "must lie in"),
        ({"target_length": 256, "trained_length": 1}, "trained length must lie in"),
        ({"target_length": 256, "amplitude": 0.0}, "amplitude"),
        ({"target_length": 256, "amplitude": math.nan}, "amplitude"),
        ({"target_length": 256, "scaling": "ropey"}, "unknown scaling 'ropey'"),
        ({"target_length": 64, "scaling": "ropey"}, "unknown scaling 'ropey'"),
        ({"target_length": 256, "scaling": "explicit_base:x"}, "positive number"),
        ({"target_length": 256, "bias": "kerple"}, "unknown bias 'kerple'"),
        ({"target_length": 256, "bias": "alibi_star"}, "fitted to a model's weights"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        inspect(SMALL, **arguments)


def test_models_are_taken_as_presets_paths_and_contents(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    for model in (tmp_path, str(tmp_path / "config.json"), SMALL):
        assert inspect(model, target_length=256).record["model"]["trained_length"] == 128
    assert f"diagnose {tmp_path} " in inspect(tmp_path / "config.json", target_length=256).record["next"]
    with pytest.raises(InputError, match="no such config file: nowhere; presets: llama-2-7b"):
        inspect("nowhere", target_length=256)


def test_a_preset_is_a_copy():
    preset("llama-3.1-8b")["rope_scaling"]["factor"] = 0
    assert preset("llama-3.1-8b")["rope_scaling"]["factor"] == 8.0


def test_in_a_notebook():
    assert inspect(SMALL, target_length=256)._repr_html_().startswith("<pre>the given config (llama)")


def test_plain():
    assert plain({"a": (1, math.inf), 2: None}) == {"a": [1, None], "2": None}


def test_tokens_fit_their_column():
    for value in (None, 0.5, 6.28, 99.99, 32768, 999_999, 1_048_576, 2.5e9, 1e15):
        assert len(tokens(value)) <= 7


def test_the_plot_is_drawn_in_both_kinds():
    found = inspect("llama-2-7b", target_length=8192)
    assert b"predicted, not measured" in found.plot()
    assert found.plot() == found.plot()
    assert found.plot(kind="png").startswith(b"\x89PNG")
    assert b"nothing rotates" in inspect("mpt-7b", target_length=4096).plot()
