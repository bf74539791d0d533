"""The ablation: its contrasts against hand values, its answers, its tables and its file, without a trained model."""

import importlib
import pathlib
import sys

import numpy as np
import pytest
from scipy import stats

from rope_jax.statistics.intervals import Estimate

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "experiments" / room) for room in ("ablation", "benchmarks")]
ablation = importlib.import_module("ablation")
summary = importlib.import_module("summary")

TASKS = ("retrieval", "binding", "order", "order, first asked", "order, last asked")
SIZES = {"contexts": 8, "text_rows": 4, "fit_steps": 2}


def result(model, ratio, name, order, *, learned=1.0):
    """The result of one configuration in which binding is one nat above order."""
    long = {**dict.fromkeys(TASKS, order), "binding": order + 1, "order, last asked": order + 0.4}
    return {
        **{"model": model, "model_sha": model, "ratio": ratio, "trained": 256, "target": round(256 * ratio)},
        **{"configuration": name, "settings": "s", "given": SIZES, "fitted": "", "seconds": 1.0},
        "log_odds": {"short": dict.fromkeys(TASKS, 4.0), "long": long},
        "accuracy": {
            "short": {**dict.fromkeys(TASKS, 1.0), "order": learned},
            "long": dict.fromkeys(TASKS, 0.75),
        },
        "loss": {"short": 1.0, "long": 2.0},
        "standard_error": dict.fromkeys(TASKS, 0.1),
    }


def order_of(name, number):
    """Log-odds of order: llama3 is half a nat better, a bias costs a nat, 0.4 more under ntk, and models vary."""
    scaling, bias = name.split("+")[:2]
    worse = 1.4 if scaling == "ntk" else 1.0
    # The costs of a model, not only its level, differ from those of another.
    return 2.0 + 0.5 * (scaling == "llama3") - worse * (bias != "none") * (1 + 0.01 * number) + 0.1 * number


def records(models=6, names=ablation.CONFIGURATIONS, ratios=(2.0,)):
    return [
        result(f"m{number}", ratio, name, order_of(name, number))
        for number in range(models)
        for ratio in ratios
        for name in names
    ]


def test_contrasts_are_those_of_the_protocol():
    values = {"ntk+none": 3.0, "ntk+alibi_star": 1.0, "llama3+none": 3.5, "llama3+alibi_star": 2.5}
    found = summary.contrasts(lambda name: np.array([values[name]]))
    assert {name: float(of[0]) for name, of in found.items()} == {"scaling": 1.0, "bias": 1.5, "interaction": 1.0}


def test_tests_are_of_models_and_corrected_over_six():
    tests = summary.primary(summary.results_of(records()), 2.0)
    assert len(tests) == 6
    per_model = np.array([0.5 + 0.2 * (1 + 0.01 * number) for number in range(6)])
    found = tests["order", "scaling"]
    half = stats.t.ppf(1 - 0.05 / 12, 5) * per_model.std(ddof=1) / np.sqrt(6)
    assert found.estimate.mean == pytest.approx(per_model.mean())
    assert found.estimate.high - found.estimate.mean == pytest.approx(half)
    assert found.models == 6
    assert found.answer == "matters: llama3 better"
    assert tests["order", "bias"].answer == "matters: better without it"
    assert tests["order", "interaction"].answer == "each other worse"
    assert summary.first_change(tests, "order") == "drop the bias first"


def test_a_model_that_has_not_learned_a_task_does_not_count_for_it():
    rows = records()
    rows[0]["accuracy"]["short"]["order"] = 0.89  # the unchanged model of m0
    assert rows[0]["configuration"] == summary.ORIGINAL
    tests = summary.primary(summary.results_of(rows), 2.0)
    assert tests["order", "bias"].models == 5
    assert tests["binding", "bias"].models == 6
    assert "do not count: m0 (order)" in summary.tables(summary.results_of(rows), 2.0)


@pytest.mark.parametrize(
    ("estimate", "p", "answer"),
    [
        (Estimate(0.5, 0.1, 0.9), 0.01, "matters: llama3 better"),
        (Estimate(-0.5, -0.9, -0.1), 0.01, "matters: ntk better"),
        (Estimate(0.5, -0.1, 1.1), 0.06, "not resolved"),
        (Estimate(0.2, 0.1, 0.3), 0.01, "does not matter"),
        (Estimate(0.2, 0.05, 0.35), 0.01, "significant, below the margin"),
    ],
)
def test_what_counts_as_which_answer(estimate, p, answer):
    assert summary.answer_of("scaling", estimate, p) == answer


@pytest.mark.parametrize(
    ("scaling", "bias", "first"),
    [
        ((0.9, 0.01), (0.4, 0.01), "change the scaling first"),
        ((0.4, 0.01), (0.9, 0.01), "drop the bias first"),
        ((0.9, 0.01), (0.8, 0.01), "either"),
        ((0.4, 0.01), (0.9, 0.20), "not resolved"),  # the bias may cost more, and is not known to
        ((0.2, 0.01), (-0.9, 0.01), "not resolved"),
    ],
)
def test_what_the_tests_put_first(scaling, bias, first):
    def of(mean, p):
        return summary.Test(Estimate(mean, mean - 0.1, mean + 0.1), p, "", 10)

    tests = {("order", "scaling"): of(*scaling), ("order", "bias"): of(*bias)}
    assert summary.first_change(tests, "order") == first


def test_unfinished_models_and_other_ratios_leave_the_rest_readable():
    few = records(2, ("none+none", "ntk+alibi_star"), (2.0, 4.0))
    printed = summary.tables(summary.results_of(few), 2.0)
    assert "No primary test" in printed
    assert printed.count("| ntk+alibi_star |") == 2
    assert summary.tables(summary.results_of([]), 2.0) == "no results"


def test_options_are_counted_in_models():
    lines = summary.options_table(summary.results_of(records(3)))
    row = next(line for line in lines if line.startswith("| ntk+alibi_star | 2 | order |"))
    assert row.endswith("| 1: 3, 2: 0, 3: 0 |")


def test_settings_are_not_mixed():
    other = {**result("m9", 2.0, "none+none", 1.0), "settings": "other"}
    with pytest.raises(ValueError, match="several settings"):
        summary.results_of([*records(2), other])


def test_the_figure_is_drawn_from_the_results(tmp_path):
    file = tmp_path / "ablation.svg"
    summary.figure(summary.results_of(records(3, ratios=(1.25, 2.0, 4.0))), file)
    assert file.read_text().count("<svg") == 1


def test_results_are_kept_a_line_each_and_a_cut_off_one_is_missing(tmp_path):
    file = tmp_path / "ablation.jsonl"
    rows = records(1, ("none+none", "ntk+none"))
    for row in rows:
        ablation.append(file, row)
    assert ablation.read(file) == rows
    file.write_bytes(file.read_bytes()[:-9])
    assert ablation.read(file) == rows[:1]
    ablation.append(file, rows[1])
    assert ablation.read(file) == rows


def test_every_configuration_has_a_name_that_the_library_knows():
    assert len(ablation.CONFIGURATIONS) == len(set(ablation.CONFIGURATIONS)) == 22
    for name in ablation.CONFIGURATIONS:
        assert ablation.wanted(name)[:2] == tuple(name.split("+")[:2])


def test_what_is_done_is_not_run_again(tmp_path):
    importlib.import_module("planted_cases").tiny_model(tmp_path)
    model = ablation.read_bundled_model(tmp_path)
    settings = ablation.Settings(contexts=2, text_rows=2, fit_steps=1)
    names = ("none+none", "ntk+alibi")
    ran = list(ablation.missing(model, 1.25, settings, done=set(), store=None, configurations=names))
    assert [one["configuration"] for one in ran] == list(names)
    assert {"short", "long"} == set(ran[0]["loss"])
    assert set(ran[0]["log_odds"]["long"]) == set(TASKS)
    done = {ablation.key_of(ran[0])}
    again = list(ablation.missing(model, 1.25, settings, done=done, store=None, configurations=names))
    assert [{**one, "seconds": 0} for one in again] == [{**ran[1], "seconds": 0}]
