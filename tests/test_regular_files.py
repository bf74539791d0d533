"""Only regular files are opened: what waits, or never ends, is named in one line."""

import os
import pathlib
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.errors import CheckpointError, InputError
from rope_jax.regular_files import check_regular, open_regular


def test_a_regular_file_is_read(tmp_path):
    file = tmp_path / "factors.json"
    file.write_bytes(b"[1]")
    link = tmp_path / "link"
    link.symlink_to(file)
    for path in (file, str(file), link):
        assert check_regular(path, "factors").st_size == 3
        with open_regular(path, "factors") as opened:
            assert opened.read() == b"[1]"


@pytest.mark.parametrize("kind", ["FIFO", "character device", "directory", "socket"])
def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path, kind, monkeypatch):
    path = tmp_path / "model.safetensors"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "character device":
        path = pathlib.Path("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        monkeypatch.chdir(tmp_path)  # a socket's name may have about a hundred bytes only
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    for read in (open_regular, check_regular):
        with pytest.raises(CheckpointError, match=f"cannot be read as weights: it is a {kind}, not a regular file"):
            read(path, "weights", error=CheckpointError)


def test_a_file_that_turns_into_a_fifo_is_not_waited_for(tmp_path, monkeypatch):
    file = tmp_path / "factors.json"
    os.mkfifo(file)
    regular = os.stat(__file__)
    monkeypatch.setattr("rope_jax.regular_files.os.stat", lambda path: regular)
    with pytest.raises(InputError, match="a FIFO"):
        open_regular(file, "factors")


@given(
    name=st.one_of(
        st.text(min_size=1, max_size=30),
        st.integers(200, 6000).map("x".__mul__),
        st.sampled_from(["a\0b", "a\nb", "\ud800", "é" * 200]),
    )
)
@settings(deadline=None, max_examples=60)
def test_any_name_gives_one_line(name):
    path = os.path.join("no such folder", name)
    for read in (open_regular, check_regular):
        with pytest.raises(InputError) as caught:
            read(path, "factors")
        message = str(caught.value)
        assert message.isprintable()
        assert len(message) < 700
        assert "cannot be read as factors" in message
