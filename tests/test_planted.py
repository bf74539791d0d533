"""The benchmark of planted causes: its truths, its scores, its file and its faults, without a trained model."""

import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rope_jax import frequencies
from rope_jax.attention.api import attend
from rope_jax.attention.call import Settings, Tokens
from rope_jax.biases import alibi_paper
from rope_jax.diagnosis.evaluation.faults import FaultRequest
from rope_jax.diagnosis.evaluation.panel import Evidence, Option, Panel
from rope_jax.diagnosis.verdict.decide import decide
from rope_jax.scaling import llama3, ntk
from rope_jax.scheme import build

ROOT = pathlib.Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "experiments" / "benchmarks"
sys.path.append(str(BENCHMARKS))
cases = importlib.import_module("planted_cases")
causes = importlib.import_module("planted_causes")
faults = importlib.import_module("planted_faults")
scores = importlib.import_module("planted_scores")

ROTARY = frequencies.rotary(32, base=194.0, original_length=256)
BEST = llama3(factor=2.0, original_length=256, low_freq_factor=1.0, high_freq_factor=4.0)
GIVEN = {"margins": {"gain": 0.3}}


def a_record(**changes):
    """A case in which a bias was planted, named and mended."""
    return {
        **{"model": "m0", "model_sha": "m0", "seed": 0, "settings": "s", "given": GIVEN, "family": "bias_line"},
        **{"kind": "line", "strengths": {"slopes": 1.0}, "contexts": 24, "settled": True, "seconds": {"tool": 1.0}},
        **{"implementation": "exact", "first": "drop the bias", "probability_first": 1.0, "option": "1"},
        **{"gain": {"mean": 1.0, "low": 0.8, "high": 1.2}, "outside": ["undo both", 0.0], "cause": "bias"},
        **{"seen": {"repair": 0.0, "drop the bias": 0.9, "scale by llama3 instead": 0.2}},
        **{"removed": {"bias": 1.0}},
        **{"gains": {"repair": 0.0, "drop the bias": 1.0, "scale by llama3 instead": 0.2}},
    } | changes


def test_a_plant_that_is_named_and_mended_is_right():
    found = scores.outcomes(a_record(), "verdict")
    assert found == {"component named": True, "recovers most": True, "wrong": False}


def test_half_of_what_can_be_recovered_is_most_of_it():
    assert scores.outcomes(a_record(removed={"bias": 1.9}), "verdict")["recovers most"]
    found = scores.outcomes(a_record(removed={"bias": 2.1}), "verdict")
    assert not found["recovers most"]
    assert found["wrong"]


def test_what_is_not_sure_is_not_wrong():
    unsure = a_record(removed={"bias": 2.1}, probability_first=0.7)
    assert not scores.outcomes(unsure, "verdict")["wrong"]


def test_a_repair_is_sure_where_it_significantly_exceeds_the_margin():
    record = a_record(first="repair", implementation="repair may help", removed={"implementation": 1.0})
    assert scores.named(record)[1:3] == ("implementation", False)
    assert scores.named({**record, "implementation": "repair first"})[1:3] == ("implementation", True)


def test_of_two_plants_either_is_right_where_both_matter():
    one = a_record(removed={"bias": 1.0, "scaling": 0.3})
    assert scores.components(one) == {"bias"}
    both = a_record(removed={"bias": 1.0, "scaling": 0.6}, cause="both")
    assert scores.components(both) == {"bias", "scaling", "both"}
    assert scores.outcomes(both, "verdict")["component named"]


def test_an_unclear_cause_leaves_the_kind_of_the_first_change():
    record = a_record(cause="not resolved", first="scale by llama3 instead", option="3")
    assert scores.named(record)[1] == "scaling"
    cooled = a_record(cause="not resolved", outside=["drop the temperature", 0.99])
    assert scores.named(cooled)[:2] == ("drop the temperature", "temperature")
    assert scores.named(a_record(outside=["undo both", 0.99]))[0] == "drop the bias"


def test_a_null_is_where_nothing_wins_back_the_margin():
    null = a_record(removed={"bias": 0.2}, gains={"repair": 0.0, "drop the bias": 0.2})
    assert scores.outcomes(null, "verdict") == {"false alarms": True}  # its interval lies above the margin
    quiet = {**null, "gain": {"mean": 0.4, "low": 0.29, "high": 0.5}}
    assert scores.outcomes(quiet, "verdict") == {"false alarms": False}
    # Something else is better than what was there before the plant: neither recoverable nor a null.
    better = a_record(removed={"bias": 0.2}, gains={"repair": 0.0, "scale by llama3 instead": 0.5})
    assert scores.outcomes(better, "verdict") == {}


def test_constant_answers_are_scored_by_the_same_truth():
    record = a_record()
    assert scores.outcomes(record, "always drop the bias")["recovers most"]
    assert scores.outcomes(record, "largest mean")["component named"]
    found = scores.outcomes(record, "always scale by llama3")
    assert found == {"component named": False, "recovers most": False, "wrong": True}
    assert scores.outcomes(record, "always repair")["wrong"]


# The truth, from panels that are made by hand.


def panel(order):
    values = np.full((1, 8), float(order)) + np.linspace(-0.1, 0.1, 8)
    tasks = {"retrieval": np.full((1, 8), 3.0) + values / 100, "binding": values, "order": values}
    right = {task: (of > 0).astype(float) for task, of in tasks.items()}
    loss = {"short": np.array([[1.0, 1.1, 1.2]]), "long": np.array([[1.0, 1.1, 1.2]])}
    return Panel({"short": tasks, "long": tasks}, {"short": right, "long": right}, loss)


def an_evidence(*, exact=None):
    options = (Option("1", "drop the bias", "a"), Option("3", "scale by llama3 instead", "b"))
    return Evidence(
        deployed="planted + alibi",
        as_deployed=panel(0.5),
        exact=exact,
        original=panel(2.0),
        options=options,
        changed={"a": panel(1.5), "b": panel(0.7)},
        corners={},
        used=("retrieval", "binding", "order"),
        faults={},
        nearest={},
    )


def test_gains_of_changes_do_not_contain_the_repair():
    assert cases.mean_gains(an_evidence()) == pytest.approx(
        {"repair": 0.0, "drop the bias": 1.0, "scale by llama3 instead": 0.2}
    )
    assert cases.mean_gains(an_evidence(exact=panel(1.4))) == pytest.approx(
        {"repair": 0.9, "drop the bias": 0.1, "scale by llama3 instead": -0.7}
    )


def test_a_verdict_in_words_is_scored_as_it_is_said():
    said = cases.in_words(decide(an_evidence()))
    record = a_record(**said)
    assert scores.named(record)[:3] == ("drop the bias", "bias", True)
    assert json.loads(json.dumps(said)) == said


# What is planted.


def draw(family, seed=0):
    costs = []

    def cost(planted, without):
        costs.append((planted, without))
        return float(np.log(alibi_cost(planted) + 1))

    drawn = causes.Draw(np.random.default_rng(seed), rotary=ROTARY, num_heads=4, ratio=2.0, best=BEST, cost=cost).plant(
        family
    )
    return drawn, costs


def alibi_cost(pair):
    rule, bias = pair
    stretched = np.log(ROTARY.inverse_frequencies / rule(ROTARY).inverse_frequencies).sum()
    return abs(stretched) + (0.0 if bias is None else float(jnp.abs(bias(jnp.asarray([200]))).sum()))


@pytest.mark.parametrize("family", causes.FAMILIES)
def test_a_seed_gives_one_case_whose_plant_can_be_removed(family):
    for seed in range(4):
        plant, _ = draw(family, seed)
        again, _ = draw(family, seed)
        assert plant.strengths == again.strengths
        assert json.loads(json.dumps(plant.strengths)) == plant.strengths
        for part, (rule, bias) in plant.removed.items():
            same_rule = np.array_equal(rule(ROTARY).inverse_frequencies, plant.deployed[0](ROTARY).inverse_frequencies)
            same_bias = bias is plant.deployed[1]
            assert {
                "bias": bias is None and same_rule,
                "scaling": same_bias and not same_rule,
                "implementation": same_rule and same_bias and plant.wrong is not None,
                "temperature": same_rule
                and same_bias
                and rule(ROTARY).logit_scale == 1 > plant.strengths.get("cooling", 1),
            }[part]


def test_beside_a_bias_of_the_best_families_no_other_scaling_is_better():
    for family in ("bias_line_best", "bias_buckets_best"):
        assert draw(family)[0].deployed[0] is BEST
    assert draw("bias_line")[0].deployed[0].name == "planted"


def test_a_null_is_weakened_until_it_costs_what_was_drawn():
    for seed in range(6):
        plant, costs = draw("null", seed)
        assert len(costs) == 7
        assert causes.NULL_COST[0] <= plant.strengths["wanted cost"] <= causes.NULL_COST[1]
    drawn = causes.Draw(
        np.random.default_rng(0), rotary=ROTARY, num_heads=4, ratio=2.0, best=BEST, cost=lambda planted, without: 0.0
    )
    found = drawn._weakened(1e-3, 3.0, lambda strength: strength - 0.1)
    assert abs(np.log(found / 0.1)) < np.log(3e3) / 2**7


def test_base_scaling_is_a_larger_base():
    scaled = causes.scaled_by(causes.base_divisors(32, 8.0))(ROTARY)
    np.testing.assert_allclose(scaled.inverse_frequencies, ntk(multiplier=8.0)(ROTARY).inverse_frequencies)


# Faults.


def of_wrong(wrong, scheme, **request):
    return faults.fault_maker("planted", wrong)(FaultRequest(**({"length": 24} | request)))


@functools.cache
def program(attention):
    """One compiled program of an attention, whatever the strength of a fault."""
    tokens = Tokens(jnp.arange(24, dtype=jnp.int32)[None], None)
    return jax.jit(lambda q, k, v, scheme: attention(q, k, v, scheme, None, tokens, tokens, Settings(scale=0.5))[0])


def attended(scheme, attention):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, 24, 2, 8)), jnp.float32) for _ in range(3))
    return np.asarray(program(attention)(q, k, v, scheme))


SMALL = build(frequencies.rotary(8, base=20.0, original_length=16), alibi_paper(2), num_heads=2, head_dim=8)


def test_faults_of_no_strength_change_nothing():
    for wrong in (causes.Wrong(grid=0.5), causes.Wrong(cached_base=1.0)):
        fault = of_wrong(wrong, SMALL, fresh=4)
        np.testing.assert_allclose(
            attended(fault.scheme(SMALL), fault.attention), attended(SMALL, attend), rtol=2e-5, atol=2e-5
        )


def test_a_grid_of_two_doubles_places_and_a_cache_spoils_only_what_reads_it():
    on_grid = of_wrong(causes.Wrong(grid=2.0), SMALL)
    assert np.abs(attended(on_grid.scheme(SMALL), on_grid.attention) - attended(SMALL, attend)).max() > 1e-3
    stale = of_wrong(causes.Wrong(cached_base=4.0), SMALL, fresh=24)
    np.testing.assert_allclose(
        attended(stale.scheme(SMALL), stale.attention), attended(SMALL, attend), rtol=2e-5, atol=2e-5
    )


def test_rounded_numbers_are_run_by_exact_attention():
    rounded = of_wrong(causes.Wrong(levels=1.0), SMALL)
    assert rounded.attention is attend
    powers = np.log2(np.asarray(rounded.scheme(SMALL).inverse_frequencies))
    np.testing.assert_allclose(powers, powers.round(), atol=1e-6)
    stepped = of_wrong(causes.Wrong(bias_step=0.5), SMALL).scheme(SMALL)
    bias = np.asarray(stepped.bias(jnp.arange(24)[:, None] - jnp.arange(24)[None]))
    np.testing.assert_array_equal(bias, np.round(bias / 0.5) * 0.5)


# The file and the tables.


def test_a_cut_off_line_is_left_out_and_run_again(tmp_path):
    file = tmp_path / "planted.jsonl"
    for seed in range(2):
        scores.append(file, a_record(seed=seed))
    file.write_bytes(file.read_bytes()[:-20])
    assert [record["seed"] for record in scores.read(file)] == [0]
    scores.append(file, a_record(seed=1))
    scores.append(file, a_record(seed=1, first="repair"))  # the last of a key counts
    assert [(record["seed"], record["first"]) for record in scores.read(file)] == [(0, "drop the bias"), (1, "repair")]
    assert scores.read(tmp_path / "none") == []


def test_intervals_over_models_are_those_of_their_shares():
    outcomes = [("a", True)] * 9 + [("a", False)] + [("b", True)] * 8 + [("b", False)] * 2
    mean, half = 0.85, stats.t.ppf(0.975, 1) * 0.05
    assert scores._over_models(outcomes) == f"{mean:.1%} [{max(0, mean - half):.1%}, {min(1, mean + half):.1%}]"
    assert scores._over_models(outcomes[:10]) == "-"


def test_intervals_of_shares_are_exact():
    for successes, trials in ((0, 10), (3, 10), (10, 10)):
        low, high = scores.clopper_pearson(successes, trials)
        if successes:
            assert stats.binom.sf(successes - 1, trials, low) == pytest.approx(0.025)
        if successes < trials:
            assert stats.binom.cdf(successes, trials, high) == pytest.approx(0.025)
    with pytest.raises(ValueError, match="3 of 2"):
        scores.clopper_pearson(3, 2)


def test_the_report_is_made_from_the_file_alone(tmp_path):
    file = tmp_path / "planted.jsonl"
    for seed in range(8):
        removed = {"bias": 1.0 if seed < 6 else 0.2}
        gains = {"repair": 0.0, "drop the bias": removed["bias"]}
        scores.append(file, a_record(seed=seed, model_sha=f"m{seed % 2}", removed=removed, gains=gains))
    printed = scores.report(scores.read(file))
    assert "8 cases of 2 models" in printed
    assert "| bias_line | 8 | 6 | 2 | 6: 100.0% [54.1%, 100.0%] |" in printed
    assert "| always drop the bias | cases | 6: 100.0%" in printed
    assert "component named >= 85%: met" in printed
    assert "false alarms <= 5%: missed" in printed


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_cut_off(tmp_path):
    out = tmp_path / "planted.jsonl"
    command = [sys.executable, str(BENCHMARKS / "planted.py"), "--quick", f"--out={out}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def run():
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout

    assert run().count(" case ") == 2
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    out.write_text(lines[0] + lines[1][:100])
    printed = run()
    assert "case 1, implementation" in printed
    assert "case 0" not in printed
    again = [{**json.loads(line), "seconds": 0} for line in (lines[0], out.read_text().splitlines()[-1])]
    assert again == [{**json.loads(line), "seconds": 0} for line in lines]
