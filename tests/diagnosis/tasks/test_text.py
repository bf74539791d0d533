import numpy as np
import pytest

from rope_jax.diagnosis.tasks.text import chunks, read_chunks, read_text, without_overlap
from rope_jax.errors import InputError


def read(path, **changes):
    arguments = {"length": 8, "vocab_size": 50, "tokenizer_file": None, "max_rows": 4} | changes
    return read_text(path, **arguments)


def save(tmp_path, array):
    path = tmp_path / "rows.npy"
    np.save(path, array)
    return path


def test_rows_are_cut_and_the_rest_is_left_over(tmp_path):
    rows = np.arange(60, dtype=np.int64).reshape(6, 10) % 50
    text = read(save(tmp_path, rows))
    np.testing.assert_array_equal(text.rows, rows[:4, :8])
    np.testing.assert_array_equal(text.leftover, rows[4:].reshape(-1))
    assert text.rows.dtype == np.int32


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((2, 8), np.float32), "integer"),
        (np.zeros((2, 8), "m8[s]"), "integer array, got timedelta64[s] (2, 8)"),
        (np.zeros((2, 8), "M8[D]"), "integer"),
        (np.zeros((2, 8), bool), "integer"),
        (np.zeros(8, np.int32), "2-D"),
        (np.zeros((0, 8), np.int32), "non-empty"),
        (np.zeros((2, 7), np.int32), "fewer than the target length 8"),
        (np.full((2, 8), 50, np.int32), "vocabulary has 50"),
        (np.full((2, 8), -1, np.int32), "from -1"),
    ],
)
def test_bad_rows_are_named_in_one_line(tmp_path, array, what):
    path = save(tmp_path, array)
    with pytest.raises(InputError) as caught:
        read(path)
    assert what in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_damaged_npy_is_one_line(tmp_path, content):
    path = tmp_path / "rows.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a readable \.npy"):
        read(path)


def test_pickles_are_not_loaded(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not a readable"):
        read(path)


def make_tokenizer(tmp_path):
    import tokenizers

    model = tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "<s>": 3}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_documents_are_packed_each_with_its_special_tokens(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b a<|endoftext|>\n b b a \n<|endoftext|>  <|endoftext|>a a a a")
    text = read(path, tokenizer_file=make_tokenizer(tmp_path), length=4)
    np.testing.assert_array_equal(text.rows, [[3, 1, 2, 1], [3, 2, 2, 1], [3, 1, 1, 1]])
    np.testing.assert_array_equal(text.leftover, [1])


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "empty"), (b" <|endoftext|> \n", "empty"), (b"\xff\xfe\x00", "UTF-8"), (b"a b", "do not fill one row")],
)
def test_bad_text_is_one_line(tmp_path, content, what):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=what):
        read(path, tokenizer_file=make_tokenizer(tmp_path))


def test_text_without_a_tokenizer_says_what_to_pass(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b")
    with pytest.raises(InputError, match=r"pass a \.npy"):
        read(path)


def test_a_broken_tokenizer_is_named(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b")
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer"):
        read(path, tokenizer_file=broken)


def test_what_a_tokenizer_cannot_encode_is_one_line(tmp_path):
    import tokenizers

    path = tmp_path / "text.txt"
    path.write_text("a c")
    strict = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="<unk>")).save(str(strict))
    with pytest.raises(InputError, match=r"tokenizer\.json cannot encode it"):
        read(path, tokenizer_file=strict)


def test_truncation_and_padding_saved_in_a_tokenizer_touch_no_text(tmp_path):
    import tokenizers

    path = tmp_path / "text.txt"
    path.write_text("a b a b a b<|endoftext|>b")
    file = make_tokenizer(tmp_path)
    expected = read(path, tokenizer_file=file, length=3)
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding()
    tokenizer.save(str(file))
    found = read(path, tokenizer_file=file, length=3)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.leftover, expected.leftover)


def test_an_archive_in_place_of_an_array_is_one_line(tmp_path):
    np.savez(tmp_path / "rows.npz", a=np.zeros((2, 8), np.int32))
    (tmp_path / "rows.npz").rename(tmp_path / "rows.npy")
    with pytest.raises(InputError, match="npz archive"):
        read(tmp_path / "rows.npy")


def test_chunks_to_fit_on_take_all_of_a_row_and_cross_none(tmp_path):
    rows = np.arange(60, dtype=np.int64).reshape(3, 20) % 50
    path = save(tmp_path, rows)
    arguments = {"vocab_size": 50, "tokenizer_file": None}
    found = read_chunks(path, length=8, max_chunks=5, **arguments)
    np.testing.assert_array_equal(found, np.concatenate([rows[:, :8], rows[:, 8:16]], axis=1).reshape(-1, 8)[:5])
    with pytest.raises(InputError, match="20 tokens do not fill one chunk of the trained length 21"):
        read_chunks(path, length=21, max_chunks=5, **arguments)
    with pytest.raises(InputError, match="vocabulary has 40"):
        read_chunks(path, length=8, max_chunks=5, **arguments | {"vocab_size": 40})


def test_overlapping_chunks_are_found_at_any_offset():
    rng = np.random.default_rng(0)
    evaluated = rng.integers(0, 500, (3, 400)).astype(np.int32)
    fresh = rng.integers(0, 500, (4, 128)).astype(np.int32)
    copied = fresh[:1].copy()
    copied[0, 64:128] = evaluated[1, 37:101]  # not aligned in the evaluated row
    kept = without_overlap(np.concatenate([fresh, copied]), evaluated)
    np.testing.assert_array_equal(kept, fresh)


def test_chunks_are_whole():
    np.testing.assert_array_equal(chunks(np.arange(7), 3), [[0, 1, 2], [3, 4, 5]])
    assert chunks(np.zeros((2, 7), np.int32), 3).shape == (4, 3)
    assert chunks(np.zeros(2, np.int32), 3).shape == (0, 3)
