"""The accelerator benchmark goes on behind what hangs or breaks, and keeps what was measured."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "experiments" / "benchmarks"
sys.path.append(str(BENCHMARKS))

from accelerator_parts import parts, processes, records, report  # noqa: E402
from accelerator_parts.processes import Task  # noqa: E402
from accelerator_parts.records import LEFT, Record  # noqa: E402

BREAKING = """
import os, time
from accelerator_parts.jobs import Found, Job

def card():
    return "a card"

def check():
    pass

def measure():
    yield Found("time", 2.0, "ms")

def refuse():
    raise NotImplementedError("not here")
    yield

def fail():
    yield Found("time", 1.0, "ms")
    raise ValueError("no such tile")

def slowly():
    time.sleep(1.5)
    yield Found("time", 1500.0, "ms")

def jobs(*, quick):
    if quick:
        return [Job({"tokens": 8}, name, slowly) for name in ("first", "second", "third")]
    runs = {"measure": measure, "refuse": refuse, "fail": fail, "crash": lambda: os._exit(9),
            "hang": lambda: time.sleep(60), "last": measure}
    return [Job({"tokens": 8}, name, run) for name, run in runs.items()]
"""


def task(tmp_path, run: str = "one", *, quick: bool = False) -> Task:
    (tmp_path / "breaking.py").write_text(BREAKING)
    return Task("table", "breaking", tmp_path / "found.jsonl", run, quick, patience=5.0)


@pytest.fixture
def found(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    processes.run(task(tmp_path), 60)
    return tmp_path / "found.jsonl"


@pytest.mark.slow
def test_what_breaks_or_hangs_is_told_and_the_others_are_measured(found):
    by_name = {one.implementation: one for one in records.read(found)}
    assert by_name["measure"].value == by_name["last"].value == 2.0
    assert by_name["refuse"].error == "not here"
    assert by_name["fail"].error == "ValueError: no such tile"
    assert by_name["crash"].error == "its process ended with code 9"
    assert by_name["hang"].error == "ended after 5 s without an answer"
    assert by_name["breaking"].measure == LEFT
    assert by_name["breaking"].value == 0
    assert {one.card for one in by_name.values()} == {"a card"}


@pytest.mark.slow
def test_another_run_measures_only_what_has_no_number(found, tmp_path):
    with found.open("a") as file:
        file.write('{"part": "cut o')
    processes.run(task(tmp_path, run="two"), 60)
    again = [one.implementation for one in records.read(found) if one.run == "two"]
    assert again == ["refuse", "crash", "hang", "breaking"]


@pytest.mark.slow
def test_a_part_without_time_says_what_it_left(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    processes.run(task(tmp_path, quick=True), 2)
    first, left = records.read(tmp_path / "found.jsonl")
    assert (first.implementation, first.value) == ("first", 1500.0)
    assert (left.value, left.error) == (2, "8: second; 8: third")


def number(case, implementation, measure, value, **more):
    given = {"part": "table", "unit": "ms", "card": "a card", "versions": {"jax": "1"}, "run": "one"} | more
    return Record(case=case, implementation=implementation, measure=measure, value=value, **given)


def test_the_report_shows_the_last_number_beside_cudnn_and_every_reason_once():
    plain, biased = {"tokens": 4096, "bias": "none"}, {"tokens": 4096, "bias": "alibi"}
    told = report.report(
        [
            number(plain, "jax.nn (cuDNN)", "forward", 0.5),
            number(biased, "kernel", "forward", 9.0),
            number(biased, "kernel", "forward", 1.0, run="two"),
            number(plain, "other", "", None, error="not here"),
            number(biased, "other", "", None, error="not here"),
            number({}, "table", LEFT, 3, error="some"),
        ],
        ["table"],
    )
    assert "| 4,096 | alibi | kernel | 1 | 2.00 |" in told
    assert "9" not in told.replace("4,096", "")
    assert "- other (4,096, none and 1 more): not here" in told
    assert "Left for lack of time: 3 ms: some" in told


@pytest.mark.slow
def test_every_part_runs_in_miniature_and_is_not_measured_twice(tmp_path):
    out = tmp_path / "found.jsonl"

    def run(*arguments: str) -> str:
        command = [sys.executable, str(BENCHMARKS / "accelerator.py"), f"--out={out}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    printed = run("--quick")
    first = records.read(out)
    exact = [x for x in first if x.part == "correct" and "float32, highest" in x.case.values() and x.value is not None]
    assert {x.measure for x in exact} >= {"out", "d_q", "d_k", "d_v", "d_slopes", "d_table"}
    assert max(x.value for x in exact if x.measure != LEFT) < 5e-6
    assert {x.part for x in first if x.value} == {"correct", "table", "cache", "model", "study"}
    assert run("--report") == printed
    run("--quick", "--parts=correct")
    again = [json.loads(x) for x in out.read_text().splitlines()[len(first) :]]
    assert {x["measure"] for x in again if x["value"] is not None} == {LEFT}


@pytest.mark.parametrize(
    ("only", "modules"),
    [
        ([], ["table", "flex"]),
        (["mosaic_gpu"], ["table"]),
        (["FlexAttention"], ["flex"]),
        (["blockwise", "FlexAttention, bias learned"], ["table", "flex"]),
    ],
)
def test_time_goes_to_modules_that_are_asked(only, modules):
    assert [module for module in parts.PARTS["table"] if parts.asked(module, only)] == modules
