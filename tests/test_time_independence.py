"""No test fails because a machine is busy: hypothesis has no deadline, with CI set or not."""

import ast
import os
import pathlib
import subprocess
import sys
import time

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

TESTS = pathlib.Path(__file__).resolve().parent


@given(st.just(0.25))
def test_an_example_may_take_long(seconds):
    time.sleep(seconds)  # hypothesis's own deadline is 0.2


@pytest.mark.parametrize("ci", [None, "true"])
def test_the_profile_does_not_depend_on_ci(ci):
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | ({"CI": ci} if ci else {})
    code = "import conftest, hypothesis; s = hypothesis.settings.default; print(s.deadline, s.derandomize, s.database)"
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "None True None\n"


def test_slow_examples_are_healthy():
    assert hypothesis.HealthCheck.too_slow in hypothesis.settings.default.suppress_health_check


def test_no_test_sets_a_deadline():
    found = [
        f"{path.relative_to(TESTS)}:{node.value.lineno}"
        for path in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "deadline" and ast.unparse(node.value) != "None"
    ]
    assert found == []
