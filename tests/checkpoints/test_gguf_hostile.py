"""Damaged GGUF files: cut anywhere, bits flipped, types exchanged; each is read or ends in one line, and soon."""

import pathlib
import struct
import sys
import tracemalloc
from collections.abc import Callable

import gguf
import numpy as np
import pytest

from rope_jax.checkpoints.dialects import read_positions
from rope_jax.checkpoints.gguf_file import read_gguf
from rope_jax.checkpoints.gguf_metadata import translate
from rope_jax.checkpoints.gguf_tokenizer import tokenizer_json
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.errors import CheckpointError, RopeJaxError, UnsupportedError

sys.path.append(str(pathlib.Path(__file__).parents[1] / "golden"))
from gguf_models import write_gguf
from logit_cases import CASES, random_weights

CONFIG = {**CASES["llama-llama3"], "intermediate_size": 64, "num_hidden_layers": 1}


def tokens(writer, prefix):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"t{number}" for number in range(64)])
    writer.add_token_types([1] * 64)
    writer.add_token_merges(["t 1", "t 2"])
    writer.add_bos_token_id(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small file with every part: metadata, lists, a tokenizer, tensors of two kinds."""
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    write_gguf(path, CONFIG, random_weights(CONFIG), kind="Q8_0", change=tokens)
    return path.read_bytes()


def everything(path: pathlib.Path) -> None:
    """Reads all of a file, as the commands do."""
    found = read_gguf(path)
    tokenizer_json(found)
    read_positions(path)
    load_checkpoint(path, max_bytes=2**26)


def is_read(read: Callable[[pathlib.Path], object], path: pathlib.Path) -> bool:
    """Returns whether a file could be read; anything but a project error of one line fails the test."""
    message = ""
    try:
        read(path)
    except RopeJaxError as error:
        message = str(error)
    if message:
        assert message.isprintable()
        assert len(message) < 1500
        assert str(path) in message
    return not message


def all_but_weights(path: pathlib.Path) -> None:
    found = read_gguf(path)
    translate(found)
    tokenizer_json(found)


def header_of(content: bytes, path: pathlib.Path) -> int:
    """Returns where the tensors' data begin."""
    path.write_bytes(content)
    return min(info.start for info in read_gguf(path).tensors.values())


def test_a_file_that_is_cut_is_an_error_wherever_it_is_cut(whole, tmp_path):
    path = tmp_path / "cut.gguf"
    start = header_of(whole, path)
    everything(path)
    for length in [*range(0, start, 7), *range(start, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_gguf(path)


def test_flipped_bits_of_the_header(whole, tmp_path):
    path = tmp_path / "flipped.gguf"
    start, rng = header_of(whole, path), np.random.default_rng(0)
    read = 0
    for place in range(0, start, 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        read += is_read(all_but_weights, path)
    assert read  # names and the like: not every bit matters


def test_flipped_bits_of_the_data(whole, tmp_path):
    path = tmp_path / "flipped.gguf"
    start, rng = header_of(whole, path), np.random.default_rng(1)
    for place in rng.integers(start, len(whole), size=8):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        is_read(everything, path)


@pytest.mark.parametrize("kind", [0, 1, 4, 5, 6, 7, 8, 9, 10, 12, 13, 255, 2**32 - 1])
def test_every_key_with_every_type(kind, whole, tmp_path):
    """The type of one key after the other is exchanged; what follows is then read as what it is not."""
    path = tmp_path / "typed.gguf"
    path.write_bytes(whole)
    for key in read_gguf(path).metadata:
        name = key.encode()
        place = whole.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        path.write_bytes(whole[:place] + struct.pack("<I", kind) + whole[place + 4 :])
        is_read(all_but_weights, path)


# Where in the fixed part of the header a count lies, and a value that no file can hold.
@pytest.mark.parametrize("place", [8, 16, 24])
@pytest.mark.parametrize("count", [2**20, 2**32, 2**63, 2**64 - 1])
def test_a_count_beyond_the_file_takes_no_memory(place, count, whole, tmp_path):
    path = tmp_path / "counted.gguf"
    path.write_bytes(whole[:place] + struct.pack("<Q", count) + whole[place + 8 :])
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        read_gguf(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def one_tensor(path, *, dims=(4,), kind=0, offset=0, name="x", data=b"\0" * 16):
    encoded = name.encode()
    content = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    for text in ("general.architecture", "llama"):
        if text == "llama":
            content += struct.pack("<I", 8)
        content += struct.pack("<Q", len(text)) + text.encode()
    content += struct.pack("<Q", len(encoded)) + encoded + struct.pack("<I", len(dims))
    content += struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)
    content += b"\0" * (-len(content) % 32)
    path.write_bytes(content + data)
    return path


def test_tensors_are_placed_within_the_file(tmp_path):
    path = tmp_path / "one.gguf"
    assert read_gguf(one_tensor(path)).tensors["x"].shape == (4,)
    for changes, message in (
        ({"dims": (5,)}, "ends at byte"),
        ({"offset": 2**62}, "ends at byte"),
        ({"offset": 8}, "not aligned"),
        ({"dims": (0,)}, "not possible"),
        ({"dims": (2**62, 2**62)}, "not possible"),
        ({"dims": (2**40, 2**40)}, "ends at byte"),
        ({"dims": ()}, "has 0 dimensions"),
        ({"dims": (1,) * 5}, "has 5 dimensions"),
        ({"kind": 2}, "not possible as Q4_0"),
        ({"kind": 4}, "type 4, which is not known"),
        ({"kind": 10**6}, "which is not known"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_gguf(one_tensor(path, **changes))


def test_other_files_are_named(tmp_path, whole):
    path = tmp_path / "x.gguf"
    for content, message in (
        (b"", "4 more bytes are needed"),
        (b"PK\3\4" + b"\0" * 100, "does not begin as a GGUF file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "general.architecture"),
    ):
        path.write_bytes(content)
        with pytest.raises(RopeJaxError, match=message):
            load_checkpoint(path)
    renamed = tmp_path / "renamed.bin"
    renamed.write_bytes(whole)
    everything(renamed)  # a GGUF file under another name is known by its first bytes


def test_one_part_of_several_is_refused(tmp_path):
    def change(writer, prefix):
        writer.add_uint16("split.count", 3)

    with pytest.raises(UnsupportedError, match="one part of several files"):
        read_gguf(write_gguf(tmp_path / "m.gguf", CONFIG, random_weights(CONFIG), change=change))


def test_the_header_is_read_as_the_package_reads_it(whole, tmp_path):
    path = tmp_path / "same.gguf"
    path.write_bytes(whole)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    for key, value in ours.metadata.items():
        expected = theirs.get_field(key).contents()
        assert value == (pytest.approx(expected, rel=1e-7) if isinstance(value, float) else expected)
    assert {tensor.name: (tensor.data_offset, tensor.n_bytes) for tensor in theirs.tensors} == {
        info.name: (info.start, info.bytes) for info in ours.tensors.values()
    }
