"""A diagnosis that is killed leaves what was finished, and the same command goes on to the same bytes."""

import signal
import subprocess
import sys
import time

import pytest
from cases import TARGET, save_bundled_model

FLAGS = (
    f"--target_length={TARGET}", "--contexts=3", "--text_rows=2", "--deployed=ntk+alibi_star", "--transforms=llama3",
    "--margins=learned=0",
)  # fmt: skip


def kept(out):
    finished = out / "finished"
    names = finished.iterdir() if finished.is_dir() else ()
    return {file.name: file.read_bytes() for file in names if not file.name.startswith(".")}


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_what_was_finished(tmp_path, by):
    model = save_bundled_model(tmp_path / "model")

    def command(out):
        return [sys.executable, "-m", "rope_jax", "diagnose", str(model), f"--out={tmp_path / out}", *FLAGS]

    with open(tmp_path / "stderr", "w") as stderr:
        run = subprocess.Popen(command("parts"), stdout=subprocess.DEVNULL, stderr=stderr)
        deadline = time.monotonic() + 300
        while len(kept(tmp_path / "parts")) < 4 and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        run.send_signal(by)
        assert run.wait(60) != 0
    left = kept(tmp_path / "parts")
    assert len(left) >= 4
    assert not (tmp_path / "parts" / "diagnosis.json").exists()
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said
    if by == signal.SIGTERM:
        assert "goes on from there" in said
    for out in ("parts", "whole"):
        subprocess.run(command(out), capture_output=True, timeout=300, check=True)
    whole = kept(tmp_path / "whole")
    assert left.items() <= whole.items()
    assert kept(tmp_path / "parts") == whole
    for name in ("diagnosis.json",):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
