"""Every dependency has a lower bound that can be pinned, and the versions at hand are not below it."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci" / "lower_bounds.py"


def printed(script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)


def release(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])]


def test_every_dependency_is_pinned_to_its_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["test"]]
    at = wanted.index("rope_jax[gguf]")
    wanted[at : at + 1] = extras["gguf"]
    pins = printed().stdout.splitlines()
    assert [pin.replace("==", ">=") for pin in pins] == [one.replace("==", ">=") for one in wanted]


def test_what_is_installed_is_not_below_the_bounds():
    for pin in printed().stdout.splitlines():
        name, bound = pin.split("==")
        assert release(importlib.metadata.version(name)) >= release(bound), name


@pytest.mark.parametrize("requirement", ["numpy", "numpy<3", "numpy~=2.0", "numpy>=2.0,<3"])
def test_a_dependency_without_a_bound_is_an_error(requirement, tmp_path):
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    lines = ["[project]", f'dependencies = ["{requirement}"]', "[project.optional-dependencies]", "test = []"]
    (tmp_path / "pyproject.toml").write_text("\n".join(lines))
    done = printed(script)
    assert done.returncode == 1
    assert f"{requirement!r} has no lower bound" in done.stderr
