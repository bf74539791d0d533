"""The study at 4k -> 32k: what was kept of it fits the questions, and its report can be printed again."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "experiments" / "benchmarks"))
study = importlib.import_module("long_study")


@pytest.fixture(scope="module")
def record():
    return json.loads(study.KEPT.read_text())


@pytest.fixture(scope="module")
def items(record):
    return study.items_of(record)


def test_the_questions_are_those_of_the_study(record, items):
    assert items.short.tokens.shape == (12, 4096)
    assert items.long.tokens.shape == (12, 32768)
    gaps = items.long.gap[items.long.gap > 0]
    assert gaps.min() >= record["counts"]["smallest_gap"] == 256
    assert 1024 < gaps.max() <= 2048


def test_answers_fit_the_questions(record, items):
    for cell in record["cells"]:
        for reach, asked in items.asked.items():
            odds, picked = (np.asarray(cell[reach][name]) for name in ("log_odds", "picked"))
            assert odds.shape == picked.shape == asked.probe.shape
            assert (picked < (asked.choices >= 0).sum(axis=-1)).all()
            # Whoever picks the answer holds it likelier than its distractors are on average.
            assert (odds[picked == 0] > 0).all()
            # Of two choices the likelier is picked.
            two = (asked.choices >= 0).sum(axis=-1) == 2
            assert (odds[two & (picked != 0)] <= 0).all()


def test_the_report_says_what_the_readme_says(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["long_study.py"])
    study.main()
    printed = capsys.readouterr().out
    written = (ROOT / "experiments" / "README.md").read_text()
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 12 + 1 + 4
    assert all(row in written for row in rows)
    words = " ".join(written.split())  # the README breaks long lines
    said = [line.strip() for line in printed.splitlines() if line.strip().startswith("- ")]
    assert len(said) == 2 + 2 + 7 + 5 + 2 + 1
    assert all(line in words for line in said)
