"""Tokenizers from metadata: the same ids as the tokenizer that was written, and as a plain reading of SentencePiece."""

import itertools
import json
import pathlib
import re

import gguf
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from rope_jax.checkpoints.gguf_file import GgufFile
from rope_jax.checkpoints.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_json
from rope_jax.diagnosis.tasks.tokenizer_file import encode_documents, read_tokenizer
from rope_jax.errors import InputError, RopeJaxError, UnsupportedError

TEXT = (
    "The 3rd key of box 27 is blue; it was found in 1994.\n\n\tWhat's the KEY?  We'LL see: can't\r\n  wait...   \n"
    "L'été, naïve café — 1234567 ½ ٣٤ 漢字かな 🤗👍🏽 foo_bar(x=1)  # y\u00a0z\n \n   end "
)


def read(metadata):
    file = GgufFile(pathlib.Path("x.gguf"), {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, {})
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(file)))


def byte_level(*first, use_regex):
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([*first, level])


# The pre-tokenizers of published tokenizer.json files: of GPT-2, SmolLM2, Llama 3 and Qwen2.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED = {
    "gpt-2": byte_level(use_regex=True),
    "smollm": byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "llama-bpe": byte_level(
        pre_tokenizers.Split(tokenizers.Regex(_SPLIT % "{1,3}"), behavior="isolated"), use_regex=False
    ),
    "qwen2": byte_level(pre_tokenizers.Split(tokenizers.Regex(_SPLIT % ""), behavior="isolated"), use_regex=False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_byte_level_ids_are_those_of_the_tokenizer_that_was_written(name):
    written = tokenizers.Tokenizer(models.BPE())
    written.pre_tokenizer = PUBLISHED[name]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    written.train_from_iterator([TEXT * 3], trainer)
    state = json.loads(written.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    metadata = {
        "model": "gpt2",
        "pre": name,
        "tokens": tokens,
        "token_type": [3, 3] + [1] * (len(tokens) - 2),
        "merges": [" ".join(pair) for pair in state["merges"]],
        "bos_token_id": 0,
        "add_bos_token": False,
    }
    found = read(metadata)
    for text in (TEXT, TEXT[::-1], "", " ", "a</s>b", "12345", "\n\n\n"):
        assert found.encode(text).ids == written.encode(text).ids
        assert found.decode(found.encode(text).ids, skip_special_tokens=False) == text
    assert read({**metadata, "add_bos_token": True}).encode("a").ids[0] == 0
    assert read({**metadata, "add_eos_token": True, "eos_token_id": 1}).encode("a").ids[-1] == 1


def pieces(rng, alphabet="abc▁", count=80):
    """Returns pieces in the order of their scores, each two joined earlier ones, as training makes them."""
    found = list(alphabet)
    while len(found) < count:
        joined = "".join(rng.choice(found, 2))
        if joined not in found and len(joined) < 8:
            found.append(joined)
    return found


def by_best_pair(text, scores):
    """Returns the pieces that SentencePiece's BPE gives: the best scored pair is joined, the leftmost of equal ones."""
    parts = list(text)
    while True:
        joined = [(scores.get(a + b, -np.inf), -i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        if not joined or max(joined)[0] == -np.inf:
            return parts
        place = -max(joined)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]


@pytest.mark.parametrize("prefix", [False, True])
def test_sentencepiece_ids_are_those_of_the_best_pairs(prefix):
    rng = np.random.default_rng(0)
    own = pieces(rng)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "  ", "<tool>"]
    tokens = [*special, *own]
    types = [2, 3, 3, *[6] * 256, 4, 4, *[1] * len(own)]
    scores = [0.0] * len(special) + [-float(rank) for rank in range(len(own))]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": types,
        "bos_token_id": 1,
        "unknown_token_id": 0,
        "add_space_prefix": prefix,
    }
    found, by_score = read(metadata), dict(zip(own, scores[len(special) :], strict=True))
    for _ in range(50):
        text = re.sub(" +", " ", "".join(rng.choice(list("abcabcabc "), 30)))
        marked = (("▁" if prefix else "") + text).replace(" ", "▁")
        expected = [1, *(tokens.index(piece) for piece in by_best_pair(marked, by_score))]
        assert found.encode(text).ids == expected
    encoded = found.encode("a<tool>é  b</s>", add_special_tokens=False)
    assert tokens.index("<tool>") in encoded.ids
    assert [tokens.index("<0xC3>"), tokens.index("<0xA9>")] == [i for i in encoded.ids if types[i] == 6]
    assert tokens.index("  ") in encoded.ids
    assert encoded.ids[-1] == 2


def test_a_file_is_a_tokenizer_for_text(tmp_path):
    own = pieces(np.random.default_rng(0))
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", *own])
    writer.add_token_scores([0.0, 0.0, *(-float(rank) for rank in range(len(own)))])
    writer.add_token_types([2, 3, *[1] * len(own)])
    writer.add_bos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = read_tokenizer(path)
    ids = encode_documents(path, ["abc ab", "cab"], origin="text")
    assert ids.tolist() == tokenizer.encode("abc ab").ids + tokenizer.encode("cab").ids
    assert ids[0] == 1
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"m\.gguf"):
        read_tokenizer(path)


GOOD = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"], "token_type": [1, 1, 1]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "bert"}, UnsupportedError, "'bert' is not read; gpt2 and llama are"),
        ({"model": "t5"}, UnsupportedError, "'t5' is not read"),
        ({"pre": "default"}, UnsupportedError, "pre-tokenizer 'default' is not known"),
        ({"pre": None}, RopeJaxError, "must be given as text"),
        ({"model": 3}, RopeJaxError, "must be given as text"),
        ({"tokens": ["a", "a", "b"]}, RopeJaxError, "a token is there twice"),
        ({"tokens": [1, 2, 3]}, RopeJaxError, "must be a list of str values"),
        ({"token_type": [1]}, RopeJaxError, "has 1 entries for 3 tokens"),
        ({"merges": ["ab"]}, RopeJaxError, "is no pair of pieces"),
        ({"merges": ["a  b"]}, RopeJaxError, "is no pair of pieces"),
        ({"add_bos_token": True}, RopeJaxError, "bos_token_id: must be the id of a token, got None"),
        ({"add_bos_token": True, "bos_token_id": 3}, RopeJaxError, "must be the id of a token, got 3"),
        ({"add_bos_token": 1}, RopeJaxError, "must be true or false"),
        ({"model": "llama"}, RopeJaxError, "scores"),
    ],
)
def test_what_is_not_understood_is_named(change, error, message):
    assert read(GOOD).encode("ab").ids == [2]
    with pytest.raises(error, match=message) as caught:
        read({**GOOD, **change})
    assert str(caught.value).isprintable()


def test_pre_tokenizers_are_expressions_that_the_library_reads():
    for name in PRE_TOKENIZERS:
        assert read({**GOOD, "pre": name, "bos_token_id": 0}).encode("ab", add_special_tokens=False).ids == [2]
