"""Array files from anywhere: whole ones are read as numpy wrote them, damaged ones are one line that names the file."""

import io
import os
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

from rope_jax.diagnosis.tasks.array_files import read_float_npz, read_npy
from rope_jax.errors import InputError

ROWS = np.arange(4 * 96, dtype=np.int32).reshape(4, 96)
SHAPES = {"short": (2, 3, 8), "long": (2, 3, 8)}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(text: str, *, version=(1, 0)) -> bytes:
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text.encode("latin1")


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def observed() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def one_line(error: InputError, path) -> bool:
    return str(path) in str(error) and "\n" not in str(error) and str(error).isprintable()


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A few flipped bits, bytes overwritten, taken out, put in or cut off, most of them in the header or at the end."""
    found = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        near = min(len(found), [2**20, 140, 12][int(rng.integers(3))])
        at = int(rng.integers(near)) if rng.random() < 0.8 else max(len(found) - 1 - int(rng.integers(120)), 0)
        kind = int(rng.integers(6))
        if kind == 0:
            found[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            found[at : at + 4] = rng.bytes(4)
        elif kind == 2:
            del found[at : at + int(rng.integers(1, 9))]
        elif kind == 3:
            found[at:at] = b"()[]{}'\"\\,:9L0\x00\n\xff"[int(rng.integers(15)) :][:1] * int(rng.integers(1, 5))
        elif kind == 4:
            del found[at:]
        else:
            found[at : at + 1] = b"9999999999999999"
        if not found:
            return b""
    return bytes(found)


def all_damage_is_one_line(tmp_path, *, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    wholes = [
        (npy(ROWS), read_npy),
        (npy(ROWS.astype(">i8").T), read_npy),
        (npz(**observed()), lambda path: read_float_npz(path, SHAPES)),
    ]
    refused, path = 0, tmp_path / "damaged"
    for whole, read in wholes:
        path.write_bytes(whole)
        read(path)
    for number in range(count):
        whole, read = wholes[number % len(wholes)]
        path.write_bytes(damaged(whole, rng))
        try:
            read(path)
        except InputError as error:
            refused += one_line(error, path) or pytest.fail(str(error))
    assert refused > count / 2


def test_damage_is_one_line_whatever_it_is(tmp_path):
    all_damage_is_one_line(tmp_path, seed=0, count=900)


@pytest.mark.slow
def test_much_more_damage_is_one_line(tmp_path):
    all_damage_is_one_line(tmp_path, seed=1, count=15_000)


@settings(deadline=None, max_examples=60)
@given(
    array=drawn.arrays(
        st.one_of(
            drawn.integer_dtypes(endianness="="),
            drawn.floating_dtypes(endianness=">"),
            drawn.unsigned_integer_dtypes(),
            drawn.timedelta64_dtypes(),
            drawn.boolean_dtypes(),
        ),
        drawn.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    fortran=st.booleans(),
)
def test_whole_arrays_are_read_as_numpy_reads_them(tmp_path_factory, array, fortran):
    path = tmp_path_factory.mktemp("whole") / "array.npy"
    np.save(path, np.asfortranarray(array) if fortran else array)
    found, expected = read_npy(path), np.load(path)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


WHOLE = "{'descr': '<i4', 'fortran_order': False, 'shape': (4, 96), }"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (WHOLE.replace("(4, 96)", f"({2**60},)"), "declares int32"),
        (WHOLE.replace("(4, 96)", f"({2**60}, {2**60}, 0)"), "declares int32"),
        (WHOLE.replace("(4, 96)", f"({2**70},)"), "not a tuple of sizes"),
        (WHOLE.replace("(4, 96)", "(4, -96)"), "not a tuple of sizes"),
        (WHOLE.replace("(4, 96)", "(4, True)"), "not a tuple of sizes"),
        (WHOLE.replace("(4, 96)", "(4, 9)"), "declares int32"),
        (WHOLE.replace("(4, 96)", "(" * 5000), "not a description"),
        (WHOLE.replace("(4, 96)", "(4L, 96L)"), "not a description"),
        (WHOLE.replace("(4, 96)", f"{(1,) * 33}"), "33 dimensions"),
        (WHOLE.replace("'<i4'", "'<i3'"), "none of numpy's numbers"),
        (WHOLE.replace("'<i4'", "'O'"), "object"),
        (WHOLE.replace("'<i4'", "'<U1'"), "not numbers"),
        (WHOLE.replace("'<i4'", "[('a', '<i4')]"), "none of numpy's numbers"),
        (WHOLE.replace("'<i4'", "4"), "none of numpy's numbers"),
        (WHOLE.replace("False", "0"), "fortran_order"),
        (WHOLE.replace("'shape'", "'form'"), "does not give exactly"),
        ("[]", "does not give exactly"),
        ("x" * 10_001, "10001 bytes"),
        ("1 +\x00", "not a description"),
    ],
)
def test_a_header_that_lies_is_named(tmp_path, text, what):
    path = tmp_path / "rows.npy"
    path.write_bytes(header(text) + ROWS.tobytes())
    with pytest.raises(InputError, match=what) as caught:
        read_npy(path)
    assert one_line(caught.value, path)


def test_what_stands_behind_the_array_is_not_overlooked(tmp_path):
    path = tmp_path / "rows.npy"
    path.write_bytes(npy(ROWS) + npy(ROWS))
    with pytest.raises(InputError, match="1536 bytes; the file holds"):
        read_npy(path)


@pytest.mark.parametrize("read", [read_npy, lambda path: read_float_npz(path, SHAPES)])
def test_a_pipe_a_directory_and_nothing_are_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "no", "No such"),
        (tmp_path / ("n" * 300), "too long"),
    ):
        with pytest.raises(InputError, match=what) as caught:
            read(path)
        assert one_line(caught.value, path)


def encrypted() -> bytes:
    """An archive whose entries say that they are encrypted."""
    content = bytearray(npz(**observed()))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(signature, at + 4)
    return bytes(content)


def by_other_methods(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in observed().items():
            archive.writestr(f"{name}.npy", npy(array))
    return file.getvalue()


def bomb() -> bytes:
    """A gigabyte of zeros behind a header of the right shape, in a file of a megabyte."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("short.npy", "w") as member:
        member.write(npy(np.zeros(SHAPES["short"])))
        for _ in range(2**10):
            member.write(bytes(2**20))
    return file.getvalue()


def corrupt_in_the_middle() -> bytes:
    content = bytearray(npz(**observed()))
    content[300:320] = bytes(20)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (encrypted, "'short' is encrypted"),
        (lambda: by_other_methods(zipfile.ZIP_LZMA), "compressed by method 14"),
        (lambda: by_other_methods(zipfile.ZIP_BZIP2), "compressed by method 12"),
        (bomb, "does not hold the 384 bytes"),
        (corrupt_in_the_middle, "not a readable .npz archive"),
        (lambda: npy(ROWS), "it is a .npy array"),
        (lambda: b"", "not a zip file"),
        (lambda: npz(long=observed()["long"]), "has no array 'short'"),
        (lambda: npz(short=np.zeros(2**20), long=observed()["long"]), r"'short' needs floats \(2, 3, 8\), got float64"),
        (lambda: npz(short=np.zeros((2, 3, 8), np.int32), long=observed()["long"]), "got int32"),
        (lambda: npz(**observed(), logits=np.zeros(3)), "has an array 'logits', which nothing asks for: short, long"),
        (lambda: npz(short=np.zeros((2, 3, 8), "m8[s]"), long=observed()["long"]), "got timedelta64"),
    ],
)
def test_archives_that_cannot_be_used_are_named(tmp_path, content, what):
    path = tmp_path / "observed.npz"
    path.write_bytes(content())
    with pytest.raises(InputError, match=what) as caught:
        read_float_npz(path, SHAPES)
    assert one_line(caught.value, path)


def test_an_array_that_is_there_twice_is_not_chosen_among(tmp_path):
    path = tmp_path / "observed.npz"
    content = npy(observed()["short"])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("short.npy", content)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("short.npy", content)
    with pytest.raises(InputError, match="has 2 arrays 'short'"):
        read_float_npz(path, SHAPES)


def test_whole_archives_are_read_as_numpy_reads_them(tmp_path):
    path = tmp_path / "observed.npz"
    for dtype in (np.float16, np.float32, np.float64):
        path.write_bytes(npz(**{name: np.asfortranarray(x).astype(dtype) for name, x in observed().items()}))
        found = read_float_npz(path, SHAPES)
        with np.load(path) as archive:
            for name, array in found.items():
                np.testing.assert_array_equal(array, archive[name])
                assert array.dtype == dtype
