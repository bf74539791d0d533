"""Real processes that run a command whose work is a few lines of Python, as the tests of streams and signals need."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PREAMBLE = """
import signal, sys, time, types
from rope_jax import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
module = types.ModuleType("fake")
module.SUMMARY, module.USAGE, module.define_flags = "s", "u", lambda flags: None
module.kept = lambda arguments, flags: "some of it is kept: go on"
def run(arguments, flags):
{body}
module.run = run
sys.modules["fake"] = module
cli.COMMANDS["fake"] = "fake"
sys.argv = ["rope-jax", "fake"]
cli.process()
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable}


def fake(body: str) -> list[str]:
    """Returns the command line of a process that runs `body` as a subcommand."""
    return [sys.executable, "-c", PREAMBLE.replace("{body}", "".join(f"    {line}\n" for line in body.splitlines()))]


def real(*arguments: str) -> list[str]:
    """Returns the command line of the command itself."""
    return [sys.executable, "-m", "rope_jax", *arguments]


def through_shell(command: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with a redirection of bash; the status is the command's own, whatever it is piped into."""
    script = f'set -o pipefail; "$@" {redirection}'
    return subprocess.run(
        ["bash", "-c", script, "bash", *command], capture_output=True, text=True, env=environment(), check=False
    )
