"""A command that is told to stop says what it kept, cleans up and ends at once, in real processes."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from streams_and_signals import environment, fake, real

from rope_jax import cli
from rope_jax.commands.termination import Terminated, raised_on_signals

BEGUN = "begun"
STATUS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}


def stopped(command: list[str], number: signal.Signals) -> tuple[int, str]:
    """Sends a signal once the process says that it has begun; returns its status and what it said on stderr."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), bufsize=1
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == f"{BEGUN}\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=1200)
    return process.returncode, said


@pytest.mark.parametrize("number", STATUS)
def test_says_what_is_kept_and_cleans_up(number, tmp_path):
    held = tmp_path / "held"
    body = f"open({str(held)!r}, 'w').close()\ntry:\n    print('{BEGUN}', flush=True)\n    time.sleep(3600)\n"
    body += f"except Exception:\n    pass\nfinally:\n    import os\n    os.unlink({str(held)!r})"
    how, status = STATUS[number]
    assert stopped(fake(body), number) == (status, f"rope-jax: {how}; some of it is kept: go on\n")
    assert not held.exists()


@pytest.mark.parametrize("number", STATUS)
def test_does_not_wait_for_threads_at_work(number):
    body = "import concurrent.futures\nwith concurrent.futures.ThreadPoolExecutor() as pool:\n"
    body += f"    pool.submit(time.sleep, 3600)\n    print('{BEGUN}', flush=True)"
    assert stopped(fake(body), number)[0] == STATUS[number][1]


@pytest.mark.parametrize("number", STATUS)
def test_ends_although_compiled_work_goes_on(number):
    # Sleeping through signals, as a compiled program does.
    body = "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.pthread_mutex_lock(lock := ctypes.create_string_buffer(64))\n"
    body += f"print('{BEGUN}', flush=True)\nlibc.pthread_mutex_lock(lock)"
    how, status = STATUS[number]
    assert stopped(fake(body), number) == (status, f"rope-jax: {how}; some of it is kept: go on\n")


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize(
    "dropping",
    [
        "import gc\ngc.callbacks.append(lambda *_: dawdle())\ngc.collect()",
        "class Held:\n    def __del__(self):\n        dawdle()\nHeld()",
        "try:\n    dawdle()\nexcept BaseException as error:\n    raise ImportError('own') from error",
    ],
)
def test_an_exception_that_is_dropped_or_turned_stops_the_run(number, dropping):
    # A callback of the garbage collector drops what is raised in it; an import may raise its own.
    body = "times = []\ndef dawdle():\n    times.append(0)\n    if len(times) == 1:\n"
    body += f"        print('{BEGUN}', flush=True)\n        time.sleep(60)\n"
    body += f"{dropping}\ntime.sleep(60)\nprint('went on')\nreturn 0"
    how, status = STATUS[number]
    start = time.monotonic()
    assert stopped(fake(body), number) == (status, f"rope-jax: {how}; some of it is kept: go on\n")
    assert time.monotonic() - start < 30


def test_other_reports_of_what_is_dropped_stay():
    class Held:
        def __del__(self):
            raise ValueError("seen")

    seen = []
    before, sys.unraisablehook = sys.unraisablehook, lambda dropped: seen.append(str(dropped.exc_value))
    ours = sys.unraisablehook
    try:
        with raised_on_signals(lambda number: None):
            Held()
        assert sys.unraisablehook is ours
    finally:
        sys.unraisablehook = before
    assert seen == ["seen"]


@pytest.mark.parametrize("number", STATUS)
def test_a_caller_keeps_its_own_handler(number):
    before = signal.getsignal(number), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before[1])
    assert cli.main(["--version"]) == 0
    assert (signal.getsignal(number), signal.set_wakeup_fd(before[1])) == before

    def own(number, frame):
        raise AssertionError

    signal.signal(number, own)
    try:
        with raised_on_signals(lambda number: None):
            assert signal.getsignal(number) is own
    finally:
        signal.signal(number, before[0])


def test_outside_the_main_thread_nothing_is_installed():
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(cli.main(["--version"])))
    thread.start()
    thread.join()
    assert statuses == [0]


def test_a_body_that_ends_in_time_is_not_ended():
    number = len(os.listdir("/dev/fd"))
    with pytest.raises(Terminated), raised_on_signals(lambda number: pytest.fail("the process was to end")):
        signal.raise_signal(signal.SIGTERM)
    assert len(os.listdir("/dev/fd")) == number


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("inspect", [], "keeps nothing: run it again"),
        ("export", [], "as it was, or whole: run it again"),
        ("diagnose", ["--out=out"], "no part was finished and nothing is kept: run it again"),
        ("search", ["--out=out"], "no generation was finished and nothing is kept: run it again"),
    ],
)
def test_every_command_says_what_it_keeps(name, flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def stop(*_):
        raise Terminated

    monkeypatch.setattr(f"rope_jax.commands.{name}.run", stop)
    assert cli.main([name, *flags]) == 143
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rope-jax: terminated; ")
    assert err.endswith(f"{said}\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("seed", ["--seed=0", "--seed=1"])
def test_where_finished_parts_lie_is_named_but_not_whose_they_are(seed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for file in ("out/finished/1.npz", "out/.rope-jax-x/1.npz", "out/mine/1.txt", "found/search-state.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")

    def stop(*_):
        raise KeyboardInterrupt

    what = "what this {} finished, if anything, is kept in {}: the same command goes on {}"
    for name, flag, said in (
        ("diagnose", "--out=out", what.format("run", "out/finished", "from there")),
        ("search", "--out=found", what.format("search", "found/search-state.json", "after it")),
    ):
        monkeypatch.setattr(f"rope_jax.commands.{name}.run", stop)
        assert cli.main([name, flag, seed]) == 130
        assert capsys.readouterr().err == f"rope-jax: interrupted; {said}\n"


@pytest.mark.slow
def test_a_real_diagnosis_is_told_to_stop(tmp_path):
    flags = ("--target_length=320", "--contexts=2", "--deployed=ntk+alibi", "--transforms=yarn_map", "--text_rows=1")
    process = subprocess.Popen(
        real("diagnose", *flags), stderr=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path
    )
    assert process.stderr is not None
    seen = ""
    while " done) [" not in seen:  # the first line of progress
        letter = process.stderr.read(1)
        assert letter, seen
        seen += letter
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=1200)
    assert process.returncode == 143
    assert said.splitlines()[-1].startswith("rope-jax: terminated; ")
    assert not list(tmp_path.rglob(".rope-jax-*"))
