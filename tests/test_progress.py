"""Progress in plain lines: at once, never thousands, never in the way of the work."""

import io
import sys
import time

import pytest

from rope_jax.commands.progress import Progress


@pytest.fixture
def clock():
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    return Clock()


def test_a_day_of_work_is_hundreds_of_lines_and_the_first_second_has_one(clock, capsys):
    shown = Progress(clock=clock)
    for second in range(24 * 3600):
        clock.now = float(second)
        shown(f"row {second}", second, 24 * 3600)
        shown.show()
        if second == 1:
            assert "row 0" in capsys.readouterr().err
    lines = capsys.readouterr().err.splitlines()
    assert 500 < len(lines) < 2000
    assert lines[-1].startswith("rope-jax: row 86")
    assert "of 86400 done) [23:5" in lines[-1]


def test_one_long_step_is_told_of_again_and_again(clock, capsys):
    shown = Progress("rope-jax diagnose", clock=clock)
    shown("compiling", 0, 1)
    for second in range(601):
        clock.now = float(second)
        shown.show()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "rope-jax diagnose: compiling [0:00:00]"
    assert lines[-1] == "rope-jax diagnose: compiling [0:10:00]"
    assert len(lines) == 11


def test_it_reports_by_itself_and_ends_with_the_work(capsys):
    with Progress() as progress:
        progress("reading", 0, 1)
        assert capsys.readouterr().err == ""  # what is refused at once stays one line
        time.sleep(1.2)
        assert "rope-jax: reading [0:00:0" in capsys.readouterr().err
    assert not progress._thread.is_alive()


class Closed(io.StringIO):
    def write(self, _):
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, Closed()])
def test_a_stream_that_is_gone_stops_no_work(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress() as progress:
        progress("reading", 0, 1)
        time.sleep(1.1)
        progress("reading", 1, 1)


def test_a_terminal_has_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = Progress()
    for done in range(3):
        shown("generation 1", done, 8)
        shown.show()
    assert "generation 1:  25%" in sys.stderr.getvalue()
    shown("generation 2", 1, 8)
    shown.show()
    assert "generation 2:  12%" in sys.stderr.getvalue()
    shown.__exit__()
