"""The experiments run as their first lines say; those that need no peer library, at their smallest."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "experiments" / "benchmarks"
pytestmark = pytest.mark.slow


def run(script: pathlib.Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_mesh_and_a_ring_give_the_result_of_one_device():
    printed = run(ROOT / "experiments" / "mesh_sharded.py")
    assert printed.count("largest difference") == 2


def test_pmap_gives_the_result_of_one_device():
    assert "largest difference" in run(ROOT / "experiments" / "pmap_data_parallel.py")


def test_the_sweep_compiles_once(tmp_path):
    run(BENCHMARKS / "sweep.py", "--quick", f"--out={tmp_path / 'sweep.json'}")
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    compilations = [row for row in rows if row["work"].startswith("compilations")]
    assert [row["measured"] for row in compilations] == [1]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("rotation.py", "rotation by given phases"),
        ("attention.py", "peak memory, forward + backward, t5  "),
        ("decode.py", "decode, batch 1, ours, rotated"),
        ("model.py", "prompt of a Llama"),
    ],
)
def test_benchmarks_run_and_skip_peers_that_are_not_installed(name, row):
    assert row in run(BENCHMARKS / name, "--quick")
