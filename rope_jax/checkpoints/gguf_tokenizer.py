"""The tokenizer of a GGUF file as a `tokenizer.json`, which the `tokenizers` library reads.

Two kinds are made: byte-level BPE ("gpt2"), whose text is cut as the pre-tokenizer named in the file does it, and
SentencePiece's BPE ("llama"), whose merges follow from the scores of its pieces.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

from rope_jax.checkpoints.gguf_file import GgufFile, read_gguf
from rope_jax.checkpoints.strict_json import show
from rope_jax.errors import UnsupportedError

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "merges_of", "tokenizer_json", "tokenizer_text"]

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "▁"
_PREFIX = "tokenizer.ggml."


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """How byte-level BPE cuts text before it merges.

    Attributes:
      patterns: regular expressions, applied one after the other; what they match is kept apart.
      own_pattern: whether the byte-level step cuts by GPT-2's expression afterwards.
      whole_words: whether a piece that is in the vocabulary is taken whole, whatever the merges say.
      begins: whether the token that begins a text is added where the file does not say.
    """

    patterns: tuple[str, ...] = ()
    own_pattern: bool = True
    whole_words: bool = False
    begins: bool = False


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PLAIN = PreTokenizer()
_DIGITS = PreTokenizer((r"\p{N}",))
_AS_LLAMA3 = PreTokenizer((_LLAMA3,), own_pattern=False, whole_words=True, begins=True)
_AS_QWEN2 = PreTokenizer((_QWEN2,), own_pattern=False)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "modern-bert"), _PLAIN),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0"), _AS_LLAMA3),
    "lfm2": _AS_LLAMA3,
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenizer((_LLAMA3,), own_pattern=False)),
    **dict.fromkeys(("glm4", "chatglm-bpe"), PreTokenizer((_LLAMA3,), own_pattern=False, whole_words=True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "solar-open"), _AS_QWEN2),
    "tekken": PreTokenizer((_TEKKEN,), own_pattern=False, whole_words=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), PreTokenizer((_GPT4O,), own_pattern=False)),
}
"""By `tokenizer.ggml.pre`. Source: `llm_tokenizer_bpe` and `llama_vocab::impl::load` of the llama.cpp that
llama-cpp-python 0.3.36 carries, the expressions in the form that the published tokenizer.json files have them."""


def tokenizer_text(path: str | os.PathLike[str]) -> str:
    """Returns the `tokenizer.json` of a GGUF file, as text; errors as of `read_gguf` and `tokenizer_json`."""
    return json.dumps(tokenizer_json(read_gguf(path)), ensure_ascii=False)


def tokenizer_json(file: GgufFile) -> dict[str, Any]:
    """Returns the `tokenizer.json` of a GGUF file.

    Raises:
      CheckpointError: if a key is missing, of the wrong type, or contradicts another.
      UnsupportedError: for a kind of tokenizer, or a pre-tokenizer, that is not made here.
    """
    kind = _text(file, "model")
    tokens = _listed(file, "tokens", str)
    if len(set(tokens)) != len(tokens):
        raise file.error(f"{_PREFIX}tokens", "a token is there twice")
    types = _listed(file, "token_type", int, like=tokens) or [_NORMAL] * len(tokens)
    if kind == "gpt2":
        parts, begins = _byte_level(file, tokens)
    elif kind == "llama":
        parts, begins = _sentencepiece(file, tokens, types)
    else:
        raise file.error(f"{_PREFIX}model", f"{show(kind)} is not read; gpt2 and llama are", UnsupportedError)
    ends = _switch(file, "add_eos_token", False)
    begins = _switch(file, "add_bos_token", begins)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, types),
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _template(
            _special(file, "bos_token_id", tokens) if begins else None,
            _special(file, "eos_token_id", tokens) if ends else None,
        ),
        "decoder": parts["decoder"],
        "model": parts["model"],
    }


def _byte_level(file: GgufFile, tokens: Sequence[str]) -> tuple[dict[str, Any], bool]:
    name = _text(file, "pre")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise file.error(f"{_PREFIX}pre", f"pre-tokenizer {show(name)} is not known; {known} are", UnsupportedError)
    cut, merges = PRE_TOKENIZERS[name], _listed(file, "merges", str)
    pairs = [merge.split(" ") for merge in merges]
    bad = next((merge for merge, pair in zip(merges, pairs, strict=True) if len(pair) != 2 or not all(pair)), None)
    if bad is not None:
        raise file.error(f"{_PREFIX}merges", f"{show(bad)} is no pair of pieces")
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in cut.patterns
    ]
    level = {"type": "ByteLevel", "add_prefix_space": _switch(file, "add_space_prefix", False), "trim_offsets": True}
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [*splits, {**level, "use_regex": cut.own_pattern}]}
    model = _bpe(tokens, pairs, unknown=None, whole_words=cut.whole_words)
    decoder = {**level, "add_prefix_space": True, "use_regex": True}
    return {"normalizer": None, "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model}, cut.begins


def _sentencepiece(file: GgufFile, tokens: Sequence[str], types: Sequence[int]) -> tuple[dict[str, Any], bool]:
    scores = _listed(file, "scores", float, like=tokens)
    if len(scores) != len(tokens):
        raise file.error(f"{_PREFIX}scores", "missing")
    prefix = _switch(file, "add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    steps = [{"type": "Prepend", "prepend": _SPACE}, replace] if prefix else [replace]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = _special(file, "unknown_token_id", tokens, default=0)
    pairs = merges_of(tokens, scores, types)
    model = _bpe(tokens, pairs, unknown=unknown[1], byte_fallback=True)
    parts = {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }
    return parts, True


def merges_of(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[list[str]]:
    """Returns the merges that pieces and their scores stand for: of every piece into two others, best score first."""
    known = {token for token, kind in zip(tokens, types, strict=True) if kind in (_NORMAL, _USER_DEFINED)}
    pieces = [place for place, kind in enumerate(types) if kind == _NORMAL and len(tokens[place]) > 1]
    pieces.sort(key=lambda place: -scores[place])
    return [
        [piece[:cut], piece[cut:]]
        for piece in (tokens[place] for place in pieces)
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def _bpe(
    tokens: Sequence[str],
    merges: list[list[str]],
    *,
    unknown: str | None,
    byte_fallback: bool = False,
    whole_words: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": whole_words,
        "vocab": {token: place for place, token in enumerate(tokens)},
        "merges": merges,
    }


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the tokens that are found in a text before anything else: control tokens, and what a user defined."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": place, "content": token, **plain, "special": kind == _CONTROL}
        for place, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED) and token
    ]


def _template(begin: tuple[int, str] | None, end: tuple[int, str] | None) -> dict[str, Any] | None:
    if begin is None and end is None:
        return None

    def around(sequence: str) -> list[dict[str, Any]]:
        first, last = ([] if one is None else [{"SpecialToken": {"id": one[1], "type_id": 0}}] for one in (begin, end))
        return [*first, {"Sequence": {"id": sequence, "type_id": 0}}, *last]

    named = {one[1]: {"id": one[1], "ids": [one[0]], "tokens": [one[1]]} for one in (begin, end) if one is not None}
    pair = [*around("A"), *around("B")]
    return {"type": "TemplateProcessing", "single": around("A"), "pair": pair, "special_tokens": named}


def _text(file: GgufFile, name: str) -> str:
    value = file.metadata.get(_PREFIX + name)
    if not isinstance(value, str):
        raise file.error(_PREFIX + name, f"must be given as text, got {show(value)}")
    return value


def _switch(file: GgufFile, name: str, default: bool) -> bool:
    value = file.metadata.get(_PREFIX + name, default)
    if not isinstance(value, bool):
        raise file.error(_PREFIX + name, f"must be true or false, got {show(value)}")
    return value


def _listed(file: GgufFile, name: str, kind: type, *, like: Sequence[Any] | None = None) -> list[Any]:
    """Returns a list of one type; of the length of `like`, or empty where it is absent."""
    value = file.metadata.get(_PREFIX + name, None if like is None else [])
    if not isinstance(value, list) or not all(type(entry) is kind for entry in value):
        raise file.error(_PREFIX + name, f"must be a list of {kind.__name__} values")
    if like is not None and value and len(value) != len(like):
        raise file.error(_PREFIX + name, f"has {len(value):,} entries for {len(like):,} tokens")
    return value


def _special(file: GgufFile, name: str, tokens: Sequence[str], default: int | None = None) -> tuple[int, str]:
    """Returns a token's id and text."""
    value: Any = file.metadata.get(_PREFIX + name, default)
    if type(value) is not int or not 0 <= value < len(tokens):
        raise file.error(_PREFIX + name, f"must be the id of a token, got {show(value)}")
    return value, tokens[value]
