"""The study at 4k -> 32k: what was kept of it fits the questions, and its report can be printed again."""

import importlib
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "experiments" / "benchmarks"))
study = importlib.import_module("long_study")


@pytest.fixture(scope="module")
def kept():
    return study.read()


def test_the_questions_are_those_of_the_study(kept):
    record, questions = kept
    counts = record["counts"]
    for asked in questions.values():
        letters = [sorted(row) for row in asked["asked"]]
        one = sorted("r" * counts["pairs"] + "b" * counts["bind_questions"] + "o" * counts["order_pairs"])
        assert letters == [one] * record["items"]["rows"]
        gap, order = np.array(asked["gap"]), np.array([list(row) for row in asked["asked"]]) == "o"
        assert (gap[~order] == 0).all()
        assert gap[order].min() >= counts["smallest_gap"] == 256
        assert gap[order].max() <= 2048
        assert (np.array(asked["choices"])[order] == 2).all()


def test_answers_fit_the_questions(kept):
    record, questions = kept
    for cell in record["cells"]:
        for reach, asked in questions.items():
            choices = np.array(asked["choices"])
            odds, picked = (np.asarray(cell[reach][name]) for name in ("log_odds", "picked"))
            assert odds.shape == picked.shape == choices.shape
            assert (picked < choices).all()
            # Whoever picks the answer holds it likelier than its distractors are on average.
            assert (odds[picked == 0] > 0).all()
            # Of two choices the likelier is picked.
            assert (odds[(choices == 2) & (picked != 0)] <= 0).all()


def test_a_context_counts_its_own_questions_of_a_task():
    questions = {reach: {"asked": ["rbo", "obr"]} for reach in ("short", "long")}
    kept = {"log_odds": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "picked": [[0, 1, 1], [0, 1, 0]]}
    panel = study.panel_of({"short": kept, "long": kept, "loss": {"short": [1.0], "long": [2.0]}}, questions)
    assert panel.log_odds["long"]["retrieval"].tolist() == [[1.0, 6.0]]
    assert panel.log_odds["short"]["order"].tolist() == [[3.0, 4.0]]
    assert panel.accuracy["long"]["binding"].tolist() == [[0.0, 0.0]]
    assert panel.loss["long"].tolist() == [[2.0]]


def test_order_and_binding_point_to_different_changes(kept):
    record, questions = kept
    biased = study.verdicts(record, study.panels_of(record, questions))[1]
    first = {name: ranking.places[0].option for name, ranking in biased.rankings.items()}
    assert (first["order"], first["binding"]) == ("1", "3")
    assert biased.probability_first < 0.95
    assert not any(place.option.startswith("scale by yarn") for place in biased.rankings["order"].places)


def test_the_report_says_what_the_readme_says(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["long_study.py"])
    study.main()
    printed = capsys.readouterr().out
    written = (ROOT / "experiments" / "README.md").read_text()
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 12 + 1 + 4
    assert all(row in written for row in rows)
    words = " ".join(written.split())  # the README breaks long lines
    said = [line.strip() for line in printed.splitlines() if line.startswith(("- ", "  - by "))]
    assert len(said) == 2 * (1 + 3)
    assert all(" ".join(line.split()) in words for line in said)
