"""Damaged tokenizers end in one line, whether the library that reads them raises, panics, aborts or never returns."""

import copy
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rope_jax.diagnosis.tasks import tokenizer_file
from rope_jax.diagnosis.tasks.text import read_text
from rope_jax.diagnosis.tasks.tokenizer_file import encode_documents, read_tokenizer
from rope_jax.errors import InputError

WORDS = {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1, "b": 2}, "unk_token": "<unk>"}
GOOD = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": WORDS,
}


def bpe(vocab, **more):
    return {"model": {"type": "BPE", "vocab": vocab, "merges": ["a b"], **more}}


def template(token):
    return {"post_processor": {"type": "TemplateProcessing", "single": [token], "pair": [], "special_tokens": {}}}


def sixteen(name):
    return {"type": name, "pattern": {"String": "a"}, "content": "a" * 16}


# Each seen with tokenizers 0.23: what raises a panic, or ends the process, on reading or on encoding.
PANICS_ON_READING = {
    "merge of an absent token": bpe({"a": 0, "b": 1}),
    "prefix longer than a token": bpe({"a": 0, "b": 1, "ab": 2}, continuing_subword_prefix="long prefix"),
    "no character map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
}
ABORTS_ON_READING = {
    "character map of an absurd size": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
}
PANICS_ON_ENCODING = {
    "unknown special token": template({"SpecialToken": {"id": "Z", "type_id": 0}}),
    "second sequence of one": template({"Sequence": {"id": "B", "type_id": 0}}),
    "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
}
ABORTS_ON_ENCODING = {
    "text that grows without end": {"normalizer": {"type": "Sequence", "normalizers": [sixteen("Replace")] * 9}},
}
ON_READING = PANICS_ON_READING | ABORTS_ON_READING
ON_ENCODING = PANICS_ON_ENCODING | ABORTS_ON_ENCODING


def save(directory, content):
    file = directory / "tokenizer.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def one_line(caught):
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


def test_ids_are_those_of_the_library(tmp_path):
    file = save(tmp_path, GOOD)
    documents = ["a b c", "", "b" * 300, "b a\n a"]
    tokenizer = read_tokenizer(file)
    expected = [token for document in documents for token in tokenizer.encode(document).ids]
    np.testing.assert_array_equal(encode_documents(file, documents, origin="text"), expected)
    assert encode_documents(file, [], origin="text").size == 0


@pytest.mark.parametrize("case", ON_READING)
def test_what_crashes_on_reading_is_one_line(case, tmp_path):
    file = save(tmp_path, GOOD | ON_READING[case])
    for read in (lambda: read_tokenizer(file), lambda: encode_documents(file, ["a"], origin="text")):
        with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer: .") as caught:
            read()
        one_line(caught)


@pytest.mark.parametrize("case", ON_ENCODING)
def test_what_crashes_on_encoding_is_one_line(case, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_file, "_MEMORY", 2**30)
    file = save(tmp_path, GOOD | ON_ENCODING[case])
    text = tmp_path / "text.txt"
    text.write_text("a b a")
    with pytest.raises(InputError, match=r"text\.txt: .*tokenizer\.json cannot encode it: .") as caught:
        read_text(text, length=1, vocab_size=9, tokenizer_file=file, max_rows=1)
    one_line(caught)
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer: ."):
        read_tokenizer(file)


def test_a_tokenizer_that_does_not_know_the_sample_is_still_one(tmp_path):
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}
    file = save(tmp_path, GOOD | {"model": model})
    assert read_tokenizer(file).encode("a").ids == [0]


def test_one_that_never_returns_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_file, "_SECONDS", 1.0)
    file = save(tmp_path, GOOD | {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}})
    monkeypatch.setattr(tokenizer_file.tokenizer_process, "__file__", str(tmp_path / "waits.py"))
    (tmp_path / "waits.py").write_text("import time; time.sleep(60)")
    with pytest.raises(InputError, match="no answer in 1 seconds"):
        encode_documents(file, ["a"], origin="text")


def test_modules_of_the_working_directory_stand_in_for_nothing(tmp_path, monkeypatch):
    (tmp_path / "tokenizers.py").write_text("raise SystemExit('imported')")
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert encode_documents(save(tmp_path, GOOD), ["a b"], origin="text").tolist() == [1, 2]


def test_what_is_no_regular_file(tmp_path):
    fifo, text = tmp_path / "fifo.json", tmp_path / "text.txt"
    os.mkfifo(fifo)
    text.write_text("a")
    for file in (fifo, tmp_path / "absent.json", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be read as a tokenizer"):
            read_tokenizer(file)
        with pytest.raises(InputError, match="cannot be read as a tokenizer"):
            read_text(text, length=1, vocab_size=9, tokenizer_file=file, max_rows=1)
    with pytest.raises(InputError, match=r"fifo\.json: cannot be read as text: it is a FIFO"):
        read_text(fifo, length=1, vocab_size=9, tokenizer_file=save(tmp_path, GOOD), max_rows=1)


def test_an_absurd_size_is_refused_unread(tmp_path):
    file = tmp_path / "tokenizer.json"
    with file.open("wb") as opened:
        opened.truncate(tokenizer_file.MAX_BYTES + 1)  # a hole: takes no space
    with pytest.raises(InputError, match=r"268,435,457 bytes are no tokenizer; at most 268,435,456"):
        read_tokenizer(file)


@st.composite
def damaged(draw):
    """A tokenizer that may crash in several ways, changed in one more place, or its text cut or nested."""
    crash = draw(st.sampled_from([{}, *ON_READING.values(), *PANICS_ON_ENCODING.values()]))
    content = copy.deepcopy(GOOD | crash)
    node, key = content, draw(st.sampled_from(sorted(content)))
    while isinstance(node[key], dict) and node[key] and draw(st.booleans()):
        node = node[key]
        key = draw(st.sampled_from(sorted(node)))
    scalars = st.sampled_from([None, -1, 2**32 - 1, 2**64, 1e308, "", "(((((", "\ud800", [], {}, True, [[[]]]])
    node[key] = draw(scalars)
    text = json.dumps(content)
    kind = draw(st.sampled_from(["whole", "cut", "nested", "repeated"]))
    if kind == "cut":
        return text[: draw(st.integers(0, len(text)))]
    if kind == "nested":
        return '{"normalizer":' + '{"type":"Sequence","normalizers":[' * draw(st.sampled_from([1, 60, 5000]))
    return text * 2 if kind == "repeated" else text


@given(content=damaged())
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_one_line_or_a_tokenizer(content, tmp_path):
    file = save(tmp_path, content)
    message = None
    try:
        assert encode_documents(file, ["a b a"], origin="text").dtype == np.int64
    except InputError as error:
        message = str(error)
    if message is not None:
        assert message.isprintable()
        assert len(message) < 1000
