"""Only regular files are opened: what waits, or never ends, is named in one line."""

import hashlib
import os
import pathlib
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax import cli
from rope_jax.checkpoints import llama2c, strict_json
from rope_jax.checkpoints.dialects import positions_of, read_positions
from rope_jax.commands.export import read_factors
from rope_jax.diagnosis.tasks.array_files import read_npy
from rope_jax.diagnosis.tasks.text import read_chunks
from rope_jax.errors import CheckpointError, ConfigError, InputError, RopeJaxError
from rope_jax.regular_files import check_regular, open_regular, read_regular

# A regular file that opens, and whose reading fails.
FAILS = pathlib.Path("/proc/self/mem")


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


def _read(file, how):
    with file:
        return how(file)


READERS = {
    "all": lambda: _read(open_regular(FAILS, "weights"), lambda file: file.read()),
    "some": lambda: _read(open_regular(FAILS, "weights"), lambda file: file.read(5)),
    "one": lambda: _read(open_regular(FAILS, "weights"), lambda file: file.read1()),
    "into": lambda: _read(open_regular(FAILS, "weights"), lambda file: file.readinto(bytearray(10**6))),
    "digest": lambda: _read(open_regular(FAILS, "weights"), lambda file: hashlib.file_digest(file, "sha256")),
    "peek": lambda: _read(open_regular(FAILS, "weights"), lambda file: file.peek()),
    "lines": lambda: _read(open_regular(FAILS, "weights"), list),
    "whole": lambda: read_regular(FAILS, "weights"),
    "limited": lambda: read_regular(FAILS, "weights", limit=10),
    "JSON": lambda: strict_json.read(FAILS),
    "config": lambda: read_positions(FAILS),
    "factors": lambda: read_factors(FAILS),
    "llama2.c": lambda: llama2c.load(FAILS),
    "npy": lambda: read_npy(FAILS),
    "text": lambda: read_chunks(FAILS, length=8, max_chunks=1, vocab_size=9, tokenizer_file=FAILS, separator="x"),
}


@pytest.mark.skipif(not FAILS.exists(), reason="needs a regular file whose reading fails")
@pytest.mark.parametrize("reader", READERS)
def test_a_failure_in_the_middle_is_one_line(reader):
    with pytest.raises(RopeJaxError, match=f"^{FAILS}: cannot be read as [a-zA-Z .]+: Input/output error$") as caught:
        READERS[reader]()
    assert isinstance(caught.value, InputError | ConfigError | CheckpointError)


@pytest.mark.skipif(not FAILS.exists(), reason="needs a regular file whose reading fails")
def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["inspect", str(FAILS), "--target_length=4096"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "Input/output error" in err
    assert not list(tmp_path.iterdir())


@given(content=st.binary(max_size=300), limit=st.one_of(st.none(), st.integers(0, 300)))
@settings(deadline=None, max_examples=80)
def test_no_more_than_the_limit_is_read(tmp_path_factory, content, limit):
    file = tmp_path_factory.getbasetemp() / "limited"
    file.write_bytes(content)
    if limit is not None and len(content) > limit:
        with pytest.raises(ConfigError, match="larger than 0 MiB"):
            read_regular(file, "JSON", limit=limit, error=ConfigError)
    else:
        assert read_regular(file, "JSON", limit=limit) == content


@given(length=st.integers(400, 6000), key=st.integers(1, 6000))
@settings(deadline=None, max_examples=30)
def test_messages_about_content_shorten_names_too(length, key):
    for refuse in (
        lambda: strict_json.parse(b"{", origin="x" * length),
        lambda: strict_json.parse(b'{"a": NaN}', origin="x" * length),
        lambda: strict_json.parse('{"a": 1, "a": 2}'.replace("a", "k" * key), origin="f"),
        lambda: positions_of({"model_type": "llama", "rope_theta": 1}, origin="x" * length),
        lambda: strict_json.read("x/" * (length // 2)),
    ):
        with pytest.raises(ConfigError) as caught:
            refuse()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 700
