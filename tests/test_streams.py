"""Exit statuses survive any stream: broken pipes, full disks and closed descriptors, in real processes."""

import json

import pytest
from streams_and_signals import fake, real, through_shell

INSPECT = ("inspect", "--preset=llama-2-7b", "--target_length=8192")
EXPORT = ("export", "--preset=llama-2-7b", "--to=vllm", "--scaling=yarn", "--target_length=8192", "--out=out.json")
GATE = "print('result\\n' * 20000)\nprint('gate')\nreturn {status}"
LEFT = "| true"  # a reader that leaves at once
UNWRITTEN = "rope-jax: error: cannot write to standard output: "


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "redirection", [LEFT, "| head -n 3", ">&-", ">/dev/full", "2>&-", ">&- 2>&- <&-", "2>/dev/full"]
)
@pytest.mark.parametrize("status", [3, 4])
def test_a_gate_keeps_its_status(status, redirection):
    assert through_shell(fake(GATE.format(status=status)), redirection).returncode == status


@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        (LEFT, 0, ""),
        ("| head -n 3", 0, ""),
        (">&-", 74, f"{UNWRITTEN}Bad file descriptor\n"),
        (">/dev/full", 74, f"{UNWRITTEN}No space left on device\n"),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">/dev/full 2>&-", 74, ""),
    ],
)
@pytest.mark.parametrize("command", [fake(GATE.format(status=0)), real(*INSPECT), real(*EXPORT), real("--version")])
def test_a_result_that_cannot_be_written_is_said(command, redirection, status, said, workdir):
    done = through_shell(command, redirection)
    assert (done.returncode, done.stderr) == (status, said)
    if EXPORT[0] in command:
        assert json.loads((workdir / "out.json").read_text())["rope_parameters"]["factor"] == 2.0


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&-", ">/dev/full", ">&- 2>&- <&-", LEFT])
@pytest.mark.parametrize("name", ["inspect", "diagnose", "export", "search"])
def test_bad_input_keeps_its_status_and_its_stream(name, redirection):
    done = through_shell(real(name, "--nonsense"), redirection)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("nonsense") == ("2>" not in redirection)


def test_a_bug_keeps_its_traceback():
    done = through_shell(fake("print('result')\nraise ZeroDivisionError"), ">/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


def test_nothing_to_print_is_no_failure():
    assert through_shell(fake("return 0"), ">&-").returncode == 0


def test_files_never_get_the_place_of_a_closed_stream(workdir):
    body = "import os\nnumber = os.open('file', os.O_CREAT | os.O_WRONLY)\nos.write(1, b'x') if number == 1 else None"
    through_shell(fake(f"{body}\nreturn 0"), ">&- 2>&- <&-")
    assert (workdir / "file").read_text() == ""


def test_progress_on_a_broken_stderr_does_not_end_a_run():
    body = "from rope_jax.commands.progress import Progress\nwith Progress() as progress:\n"
    body += "    [progress('work', n, 100) or time.sleep(0.02) for n in range(1, 101)]\nprint('done')\nreturn 4"
    done = through_shell(fake(body), "2> >(true)")
    assert (done.returncode, done.stdout) == (4, "done\n")


@pytest.mark.slow
def test_the_gate_of_a_real_diagnosis_survives_a_pipe(workdir):
    small = ("--target_length=320", "--contexts=2", "--deployed=ntk+alibi", "--transforms=yarn_map", "--text_rows=1")
    command = real("diagnose", *small, "--fail_if=short_loss_rise>0.02")
    expected = through_shell(command, "").returncode
    assert expected in (3, 4)
    for redirection in (LEFT, ">&-", ">/dev/full"):
        assert through_shell(command, redirection).returncode == expected
    assert (workdir / "rope-jax-diagnosis" / "diagnosis.json").exists()
