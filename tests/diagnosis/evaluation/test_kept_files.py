"""Kept files: what was written comes back bit for bit, and nothing else is ever taken for it."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

from rope_jax.diagnosis.evaluation import kept_files
from rope_jax.errors import InputError

KEY, OTHER = "a" * 64, "b" * 64
ARRAYS = {"losses": np.linspace(0, 1, 30, dtype=np.float32).reshape(5, 6), "count": np.asarray(3)}
STATE = {"generation": 2, "population": [[1.0, 1.5], [1.0, 0.1 + 0.2]], "history": [{"best": -1e-300}]}


class AnewError(Exception):
    """Nothing of use was kept."""


def taken(file, key=KEY, **limits):
    def make():
        raise AnewError

    try:
        return kept_files.taken_or_made(file.parent, file.name, key, make, **limits)
    except AnewError:
        return None


def arrays(file):
    kept_files.taken_or_made(file.parent, file.name, KEY, lambda: ARRAYS)
    return lambda key=KEY: taken(file, key)


def plain(file):
    kept_files.write_json(file, KEY, STATE)
    return lambda key=KEY: kept_files.read_json(file, key)


KINDS = pytest.mark.parametrize("write", [arrays, plain])


@settings(deadline=None, max_examples=50)
@given(
    kept=st.dictionaries(
        st.sampled_from("abcd"),
        drawn.arrays(
            st.one_of(drawn.floating_dtypes(), drawn.integer_dtypes(), drawn.boolean_dtypes()),
            drawn.array_shapes(min_dims=0, max_dims=3, min_side=0),
        ),
        max_size=3,
    )
)
def test_arrays_come_back_bit_for_bit(tmp_path_factory, kept):
    file = tmp_path_factory.mktemp("kept") / "deep" / "file.npz"
    assert kept_files.taken_or_made(file.parent, file.name, KEY, lambda: kept) is kept
    found = taken(file)
    assert found is not None
    assert found.keys() == kept.keys()
    for name, array in kept.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes()
    with np.load(file) as archive:  # anyone may look at it
        assert set(archive.files) == set(kept)
    assert [path.name for path in file.parent.iterdir()] == ["file.npz"]


@settings(deadline=None, max_examples=100)
@given(
    kept=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )
)
def test_plain_values_come_back_bit_for_bit(tmp_path_factory, kept):
    file = tmp_path_factory.mktemp("kept") / "state.json"
    kept_files.write_json(file, KEY, kept)
    assert kept_files.read_json(file, KEY) == kept
    assert json.loads(file.read_text())["kept"] == kept


@KINDS
def test_no_changed_byte_goes_unnoticed(write, tmp_path, capsys):
    file = tmp_path / "file"
    read = write(file)
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        assert read() is None, at
    for cut in (*range(0, len(whole), 7), len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert read() is None, cut
    capsys.readouterr()
    for content in (whole + b"\n", b"x" + whole, whole + whole, b"[" * 200_000, b"5\n", b"\x00" * 300):
        file.write_bytes(content)
        assert read() is None
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert err.startswith(f"rope-jax: {file}: ")
        assert err.endswith(": computed anew\n")
    file.write_bytes(whole)
    assert read() is not None
    assert capsys.readouterr().err == ""


@KINDS
def test_a_file_of_other_work_is_not_believed_under_this_name(write, tmp_path, capsys):
    read = write(tmp_path / "file")
    assert read(OTHER) is None
    assert "computed from something else" in capsys.readouterr().err
    # Nor with the key it was asked for written into it.
    content = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(content.replace(KEY.encode(), OTHER.encode()))
    assert read(OTHER) is None
    assert "does not match its checksum" in capsys.readouterr().err


@KINDS
def test_what_is_no_file_is_refused_before_the_work_and_not_replaced(write, tmp_path, capsys):
    file = tmp_path / "file"
    read = write(file)
    file.unlink()
    assert read() is None
    assert capsys.readouterr().err == ""
    for make in (os.mkfifo, os.mkdir):
        make(file)
        with pytest.raises(InputError, match=r"cannot keep finished work there: it is .*, not a regular file"):
            read()  # without waiting for a writer
        with pytest.raises(InputError, match="not a regular file"):
            write(file)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        file.unlink() if make is os.mkfifo else file.rmdir()


@KINDS
@pytest.mark.parametrize("size", [2**20, 300 * 2**30])
def test_a_file_that_was_blown_up_is_not_read_whole(write, size, tmp_path, capsys):
    file = tmp_path / "file"
    read = write(file)
    os.truncate(file, size)
    tracemalloc.start()
    try:
        assert read() is None
        assert tracemalloc.get_traced_memory()[1] < 2**19
    finally:
        tracemalloc.stop()
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith(": computed anew\n")


def test_arrays_beyond_what_was_asked_for_are_not_read(tmp_path, capsys):
    file = tmp_path / "file.npz"
    kept_files.taken_or_made(tmp_path, "file.npz", KEY, lambda: {"losses": np.zeros(2**15)})
    assert taken(file, largest=2**18) is not None
    assert taken(file, largest=2**12) is None
    assert f"{file.stat().st_size} bytes, of which it can have" in capsys.readouterr().err


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    read = plain(tmp_path / "file")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="cannot keep finished work there: No space left"):
        kept_files.write_json(tmp_path / "file", KEY, {})
    assert read() == STATE
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_arrays_are_made_once_and_kept(tmp_path):
    made = []

    def make():
        made.append(1)
        return ARRAYS

    for store, times in ((tmp_path / "deep", 1), (None, 3)):
        for _ in range(2):
            found = kept_files.taken_or_made(store, "file.npz", KEY, make)
            assert found.keys() == ARRAYS.keys()
            assert all((found[name] == ARRAYS[name]).all() for name in ARRAYS)
        assert len(made) == times
    kept_files.taken_or_made(tmp_path / "deep", "file.npz", OTHER, make)
    assert len(made) == 4


def test_it_says_how_much_is_kept(tmp_path):
    assert kept_files.what_is_kept(tmp_path / "none") is None
    assert kept_files.what_is_kept(tmp_path) is None
    arrays(tmp_path / "one.npz")
    plain(tmp_path / "two.json")
    (tmp_path / ".two.json.7.partial").write_text("")
    assert kept_files.what_is_kept(tmp_path) == (
        f"2 finished results are kept in {tmp_path}: what is of the same command is taken"
    )
