"""The benchmark of planted causes: its rule of truth, its table, its intervals and its file, without a model."""

import importlib
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rope_jax.diagnosis.verdict.verdict import Margins
from scipy import stats

from rope_jax import frequencies
from rope_jax.attention.api import attend
from rope_jax.attention.call import Settings, Tokens
from rope_jax.biases import alibi_paper
from rope_jax.scheme import build

ROOT = pathlib.Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "experiments" / "benchmarks"
sys.path.append(str(BENCHMARKS))
causes = importlib.import_module("planted_causes")
faults = importlib.import_module("planted_faults")
record = importlib.import_module("planted_record")
true = importlib.import_module("planted_truth")

MARGINS = Margins()
ROTARY = frequencies.rotary(32, base=194.0, original_length=256)


def effect(gain, retrieval=0.0, short=0.0, text=0.0):
    return true.Effect(gain, retrieval, short, text, 240)


def truth(effects, drop=2.0):
    return true.truth(effects, drop, MARGINS)


# The truth.


def test_the_best_option_is_right_and_so_is_one_within_the_margin_of_it():
    found = truth({"option 1": effect(1.0), "option 3: llama3": effect(0.75), "option 2": effect(0.5)})
    assert found.right == {"option 1", "option 3: llama3"}
    assert not found.null
    assert not found.edge


def test_an_option_that_loses_something_is_not_right_and_does_not_set_the_best():
    for loss in ({"retrieval": 0.5}, {"short": 0.1}, {"text": 0.1}):
        assert truth({"option 1": effect(2.0, **loss), "option 2": effect(0.5)}).right == {"option 2"}


def test_what_is_right_where_nothing_helps():
    assert truth({"option 1": effect(0.1)}).right == {"outside these options"}
    assert truth({"option 1": effect(0.1)}, drop=0.1).right == {"no fault found"}
    assert truth({"option 1": effect(0.1)}).null


def test_a_gain_that_costs_too_much_is_no_null():
    found = truth({"option 1": effect(2.0, retrieval=1.0)})
    assert found.right == {"outside these options"}
    assert not found.null


def test_the_exact_run_is_right_by_its_own_gain():
    found = truth({"implementation": effect(0.5), "option 3: yarn": effect(1.5)})
    assert found.right == {"implementation", "option 3: yarn"}
    assert truth({"implementation": effect(0.1), "option 1": effect(0.0)}, drop=0.0).right == {"no fault found"}


@pytest.mark.parametrize(
    ("one", "drop", "edge"),
    [
        (effect(0.31), 2.0, True),
        (effect(0.29), 2.0, True),
        (effect(1.0, retrieval=0.31), 2.0, True),
        (effect(0.31, retrieval=2.0), 2.0, False),  # no small change makes it a fix
        (effect(1.0), 0.3, False),  # the drop decides nothing
        (effect(0.0), 0.31, True),
    ],
)
def test_the_edge(one, drop, edge):
    assert truth({"option 1": one}, drop=drop).edge == edge


def rows(gain=0.0, spread=0.1, count=48, retrieval=2.0, short=1.0, seed=0):
    noise = spread * np.random.default_rng(seed).standard_normal(count)
    return true.Rows(gain + noise, np.full(count, retrieval), np.full(count, short), np.full(16, 0.1))


def standing(changed, drop=2.0):
    before = rows(spread=0.0)
    return true.standing(changed, before, before.precision + drop, MARGINS)


def test_what_is_far_from_every_margin_is_settled():
    found = standing({"option 1": rows(2.0), "option 2": rows(0.0), "option 3: yarn": rows(3.0, retrieval=0.0)})
    assert found == true.Standing(("option 1",), True)
    assert standing({"option 1": rows(0.0)}) == true.Standing((), True)


def test_what_is_close_to_a_margin_stays_open():
    assert standing({"option 1": rows(2.0), "option 2": rows(0.31)}).open == ("option 1",)
    found = standing({"option 1": rows(0.31), "option 2": rows(-1.0)})
    assert found == true.Standing(("option 1",), False)
    # Which of two is the best by more than a margin is not known.
    found = standing({"option 1": rows(2.0), "option 2": rows(1.7, seed=1)})
    assert found == true.Standing(("option 1", "option 2"), False)
    # It costs too much, but whether it gains decides what is a null.
    assert not standing({"option 1": rows(0.31, retrieval=0.0)}).settled
    assert not standing({"option 1": rows(0.0, spread=1.0)}, drop=0.3).settled


def test_the_exact_run_stays_open_however_much_another_wins():
    found = standing({"implementation": rows(0.31), "option 3: yarn": rows(3.0)})
    assert found == true.Standing(("implementation", "option 3: yarn"), False)


# The table.


def test_outcomes_need_the_truth_and_the_family():
    right = ["option 2", "option 3: llama3"]
    allowed = causes.ALLOWED["scaling_base"]
    assert true.outcome("option 3: llama3", right, allowed) == "right"
    assert true.outcome("option 3: linear", right, allowed) == "wrong"
    assert true.outcome("undetermined", right, allowed) == "undetermined"
    assert true.outcome("option 2", right, causes.ALLOWED["implementation"]) == "wrong"


def test_no_family_blames_what_was_not_planted():
    assert set(causes.ALLOWED) == set(causes.FAMILIES)
    blaming = {family for family, allowed in causes.ALLOWED.items() if "implementation" in allowed}
    assert blaming == {"implementation"}
    assert all({"no fault found", "outside these options"} <= allowed for allowed in causes.ALLOWED.values())
    assert not any("undetermined" in allowed for allowed in causes.ALLOWED.values())


def case(verdict, right, *, null=False, family="both", baseline="option 1", seed=0, edge=False):
    return {
        "model_sha": "0" * 64,
        "seed": seed,
        "settings": "abc",
        "given": {},
        "family": family,
        "kind": "some",
        "strengths": {"slopes": 0.1},
        "verdict": verdict,
        "baseline": baseline,
        "right": right,
        "null": null,
        "edge": edge,
        "used": ["ret", "bind"],
        "learned": ["ret", "bind", "ord"] if edge else ["ret", "bind"],
        "haystacks": 96 if verdict == "undetermined" else 48,
        "settled": verdict != "undetermined",
        "seconds": {"tool": 1.0, "truth": 2.0},
    }


CASES = [
    case("option 1", ["option 1"]),
    case("option 2", ["option 1"], edge=True),
    case("undetermined", ["option 1"]),
    case("no fault found", ["no fault found"], null=True),
    case("option 2", ["outside these options"], null=True),
    case("no fault found", ["outside these options"], null=True),
]


def test_counts_keep_nulls_apart():
    assert record.counts(CASES, "verdict") == {
        "right": (1, 3),
        "wrong": (1, 3),
        "undetermined": (1, 3),
        "false alarms": (1, 3),
        "nulls right": (1, 3),
    }
    assert record.counts(CASES, "baseline")["right"] == (3, 3)
    assert record.counts(CASES, "baseline")["false alarms"] == (3, 3)


def test_the_report_says_what_went_wrong():
    printed = record.report(CASES)
    assert "| both | best arm | 3 | 3 | 3: 100.0% [29.2%, 100.0%]" in printed
    assert "right >= 90%: missed" in printed
    assert printed.count("said option 2") == 2
    assert "1 cases hang on a number within 20 %" in printed
    assert "in 1 cases other probes passed the gate" in printed
    assert "took: 48 in 5 cases, 96 in 1 cases; 1 verdicts were still open at the last look" in printed
    assert record.report([]) == "no finished cases"


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (1, 7), (90, 100), (3, 200)])
def test_clopper_pearson(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(method="exact")
    np.testing.assert_allclose(record.clopper_pearson(successes, trials), tuple(expected), atol=1e-9)


def test_clopper_pearson_without_trials():
    assert record.clopper_pearson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="2 of 1"):
        record.clopper_pearson(2, 1)


# The file.


def test_a_file_is_read_back_and_a_line_that_was_cut_off_is_not(tmp_path):
    file = tmp_path / "planted.jsonl"
    assert record.read(file) == []
    record.append(file, case("option 1", ["option 1"], seed=1))
    record.append(file, case("option 1", ["option 1"], seed=2))
    file.write_text(file.read_text()[:-20])
    assert [found["seed"] for found in record.read(file)] == [1]
    record.append(file, case("option 2", ["option 1"], seed=2))
    assert [found["seed"] for found in record.read(file)] == [1, 2]


def test_a_case_counts_once_and_its_key_tells_settings_apart(tmp_path):
    file = tmp_path / "planted.jsonl"
    for verdict in ("option 1", "option 2"):
        record.append(file, case(verdict, ["option 1"]))
    record.append(file, case("option 1", ["option 1"]) | {"settings": "def"})
    assert [(found["settings"], found["verdict"]) for found in record.read(file)] == [
        ("abc", "option 2"),
        ("def", "option 1"),
    ]
    assert record.settings_hash({"a": 1, "b": 2}) == record.settings_hash({"b": 2, "a": 1})
    assert record.settings_hash({"a": 1}) != record.settings_hash({"a": 2})


# What is planted.


def draw(family, seed):
    rng = np.random.default_rng(seed)
    return causes.draw(family, rng, rotary=ROTARY, num_heads=4, ratio=2.0, long_ratio=8.0)


@pytest.mark.parametrize("family", causes.FAMILIES)
def test_draws_are_of_their_family_and_come_again_from_their_seed(family):
    drawn = [draw(family, seed) for seed in range(30)]
    again = draw(family, 3)
    assert dict(again.strengths) == dict(drawn[3].strengths)
    np.testing.assert_array_equal(again.divisors, drawn[3].divisors)
    assert {plant.small for plant in drawn} == {False, True}
    assert all((plant.wrong is not None) == (family == "implementation") for plant in drawn)
    assert all(np.isfinite(plant.divisors).all() and plant.divisors.min() > 0 for plant in drawn)
    assert all(math.isfinite(value) for plant in drawn for value in plant.strengths.values())
    json.dumps([dict(plant.strengths) for plant in drawn])
    # No two cases share a strength, and no scaling lies on an arm.
    assert len({tuple(plant.divisors) for plant in drawn}) == len(drawn)


def test_a_scaling_is_applied_as_a_rule():
    plant = draw("scaling_pairs", 0)
    scaled = plant.rule(ROTARY)
    np.testing.assert_allclose(scaled.inverse_frequencies, ROTARY.inverse_frequencies / plant.divisors)


def test_positions_fall_on_a_grid_and_on_whole_tokens():
    positions = jnp.arange(12)[None]
    np.testing.assert_array_equal(faults.rounded_positions(positions, jnp.float32(0.99)), positions)
    rounded = faults.rounded_positions(positions, jnp.float32(2.5))
    np.testing.assert_array_equal(rounded[0, :8], [0, 0, 2, 2, 5, 5, 5, 8])


def attended(attention, scheme):
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 12, 2, 32)).astype(np.float32)
    tokens = Tokens(jnp.arange(12, dtype=jnp.int32)[None])
    arrays = (jnp.asarray(x) for x in (q, k, v))
    return attention(*arrays, scheme, None, tokens, tokens, Settings(scale=0.5))[0]


def test_faults_are_arguments_and_without_one_attention_is_exact():
    scheme = build(ROTARY, alibi_paper(2), num_heads=2, head_dim=32)
    other = build(causes.scaled_by(np.full(16, 3.0))(ROTARY), alibi_paper(2), num_heads=2, head_dim=32)
    traced = 0

    @jax.jit
    def run(faulty):
        nonlocal traced
        traced += 1
        return attended(faults.run_wrongly, faulty)

    exact = attended(attend, scheme)
    np.testing.assert_allclose(run(faults.faulty(scheme)), exact, atol=1e-5)
    np.testing.assert_allclose(run(faults.faulty(scheme, cached=other, fresh=12)), exact, atol=1e-5)
    # All of it cached under the other scheme is the other scheme; its first tokens are so either way.
    np.testing.assert_allclose(run(faults.faulty(scheme, cached=other, fresh=0)), attended(attend, other), atol=1e-5)
    stale = np.asarray(run(faults.faulty(scheme, cached=other, fresh=4)))
    np.testing.assert_allclose(stale[:, :8], attended(attend, other)[:, :8], atol=1e-5)
    assert np.abs(stale - exact)[:, 8:].max() > 1e-3
    assert np.abs(run(faults.faulty(scheme, grid=3.3)) - exact).max() > 1e-3
    assert traced == 1


def test_significands_keep_powers_of_two_and_round_the_rest():
    values = np.array([1.0, 1.4, 1.6, 0.35, 0.01])
    np.testing.assert_allclose(faults.rounded_significands(values, 1.0), [1.0, 1.0, 2.0, 0.25, 0.0078125])
    np.testing.assert_allclose(faults.rounded_significands(values, 2.0**30), values, rtol=1e-9)


def test_a_rounded_bias_is_a_staircase():
    scheme = build(ROTARY, alibi_paper(2), num_heads=2, head_dim=32)
    rounded = faults.rounded_bias(scheme, length=9, step=0.15)
    offsets = jnp.arange(9)[None]
    bias = np.asarray(scheme.bias(offsets))
    np.testing.assert_allclose(rounded.bias(offsets), np.round(bias / 0.15) * 0.15, atol=1e-6)


@pytest.mark.slow
def test_the_benchmark_runs_and_goes_on_where_it_was(tmp_path):
    out = tmp_path / "planted.jsonl"
    command = [sys.executable, str(BENCHMARKS / "planted.py"), "--quick", f"--out={out}"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    for new_cases in (2, 0):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert done.stdout.count(": said ") == new_cases
        assert "2 cases of 1 models" in done.stdout
    assert len(out.read_text().splitlines()) == 2
