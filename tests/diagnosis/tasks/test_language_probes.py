import dataclasses
import itertools
import re

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from rope_jax.diagnosis.tasks import contract_text
from rope_jax.diagnosis.tasks.contexts import FIRST, LAST, PROBES, Counts
from rope_jax.diagnosis.tasks.language_probes import LANGUAGE_COUNTS, STATUS, language_contexts
from rope_jax.errors import InputError

FACTS = {
    "retrieval": r"The code word of the (\w+) account is (\w+)\.",
    "binding": r"Schedule (\w+) lists, in this order: ([\w, ]+)\.",
}
PROMPTS = {
    "retrieval": r"The code word of the (?P<name>\w+) account is$",
    "binding": r"The (?P<nth>\w+) item of Schedule (?P<name>\w+) is$",
    "order": r"Which came (?P<way>first|last), the (?P<one>\w+) or the (?P<other>\w+)\? The$",
}
NTH = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]
ANSWERS = {*contract_text.CODES, *contract_text.ITEMS}


def corpus():
    """Enough text to train a tokenizer that has every word of the tasks."""
    rng = np.random.default_rng(0)
    yield from (contract_text.clause(rng) for _ in range(1500))
    for _ in range(4):
        yield from (f"The word is {word}." for word in sorted(ANSWERS))
        yield from (f"The {name} account: a code word of the {name} office." for name in contract_text.NAMES)
        yield from contract_text.EVENTS.values()
        yield "Which came first, the code of the Schedule or the item? Which came last, the item or the code? The"
        yield "In this order: " + ", ".join(contract_text.ORDINALS)
        yield "Schedule lists in this order. " + contract_text.OPENING + " " + contract_text.QUESTIONS_FOLLOW


def by_words() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=4000, special_tokens=["[UNK]", "[BOS]", "[EOS]"])
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return tokenizer


def by_bytes(vocab_size: int = 2500) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def by_pieces() -> tokenizers.Tokenizer:
    words = sorted({word for sentence in corpus() for word in re.findall(r"\w+", sentence)})
    pieces = [("<unk>", 0.0), ("<s>", 0.0), *((f"▁{word}", -8.0) for word in words)]
    pieces += [(letter, -12.0) for letter in sorted(set("▁.,:?".join(words)))]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.fixture(scope="module", params=[by_words, by_bytes, by_pieces])
def tokenizer(request):
    return request.param()


@pytest.fixture(scope="module")
def words():
    return by_words()


@pytest.fixture(scope="module")
def stories(real):
    path = real / "models" / "stories260K" / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"no tokenizer at {path}")
    return tokenizers.Tokenizer.from_file(str(path))


def made(tokenizer, seed=0, **changes):
    arguments = {"rows": 3, "length": 768} | changes
    return language_contexts(np.random.default_rng(seed), tokenizer, **arguments)


def read(tokenizer, ids) -> str:
    """The text of tokens, without the spaces that a word-level decoder puts before punctuation."""
    return re.sub(r"\s+([.,:?])", r"\1", tokenizer.decode([int(one) for one in ids], skip_special_tokens=True)).strip()


def listed(items: str) -> list[str]:
    return re.split(r", | and ", items)


def expected(context: str, task: str, asked: dict[str, str]) -> tuple[str, str]:
    """The answer to a question and the last sentence it rests on, found by reading the context."""
    if task == "order":
        sentences = {name: contract_text.EVENTS[name] for name in (asked["one"], asked["other"])}
        first, second = sorted(sentences, key=lambda name: context.index(sentences[name]))
        return {"first": first, "last": second}[asked["way"]], sentences[second]
    (fact,) = (fact for fact in re.finditer(FACTS[task], context) if fact[1] == asked["name"])
    return (listed(fact[2])[NTH.index(asked["nth"])] if task == "binding" else fact[2]), fact[0]


def check(tokenizer, items):
    """Reads every row and compares what it says with what is recorded of it."""
    seen = set()
    for row, tokens in enumerate(items.tokens):
        context = read(tokenizer, tokens).split(contract_text.QUESTIONS_FOLLOW)[0]
        events = []
        for q in range(items.probe.shape[1]):
            position, distance, gap, asked = (
                int(field[row, q]) for field in (items.position, items.distance, items.gap, items.asked)
            )
            task = PROBES[items.probe[row, q]]
            prompt = re.search(PROMPTS[task], read(tokenizer, tokens[: position + 1]))
            assert prompt is not None
            answer, fact = expected(context, task, prompt.groupdict())
            after = read(tokenizer, tokens[position + 1 :])
            assert after.startswith(f"{answer}.")
            choices = items.choices[row, q]
            choices = choices[choices >= 0]
            assert tokens[position + 1] == choices[0]
            assert len(set(choices)) == len(choices)
            assert read(tokenizer, tokens[position - distance :]).startswith(fact)
            if task == "order":
                assert gap > 0
                earlier = ({prompt["one"], prompt["other"]} - {answer}).pop() if prompt["way"] == "last" else answer
                assert read(tokenizer, tokens[position - distance - gap :]).startswith(contract_text.EVENTS[earlier])
                assert len(choices) == 2
                assert asked == {"first": FIRST, "last": LAST}[prompt["way"]]
                events += [prompt["one"], prompt["other"]]
            else:
                assert gap == 0
                assert asked == (NTH.index(prompt["nth"]) + 1 if task == "binding" else 0)
            if task == "binding":
                said = listed(re.search(FACTS["binding"], fact)[2])
                tokens_by_offset = dict(zip(items.choice_offsets[row, q], choices, strict=True))
                assert sorted(tokens_by_offset) == list(range(1, 9))
                assert items.choice_offsets[row, q, 0] == asked
                for offset, token in tokens_by_offset.items():
                    assert said[offset - 1].startswith(read(tokenizer, [token]))
            else:
                assert not items.choice_offsets[row, q].any()
            seen.add(task)
        # Every event happens once, and every pair is asked about once.
        assert len(set(events)) == len(events)
        happened = [name for name, sentence in contract_text.EVENTS.items() if sentence in context]
        assert sorted(happened) == sorted(events)
    return seen


@pytest.mark.parametrize("length", [512, 2000])
def test_every_row_says_what_is_recorded_of_it(tokenizer, length):
    contexts = made(tokenizer, length=length, rows=4)
    assert contexts.tokens.shape == (4, length)
    assert {part.dtype for part in contexts} == {np.dtype(np.int32)}
    assert check(tokenizer, contexts) == set(PROBES)


def test_other_counts(words):
    counts = Counts(pairs=12, markers=3, bind_questions=9, first_pairs=5, last_pairs=2)
    contexts = made(words, length=1500, counts=counts)
    assert check(words, contexts) == set(PROBES)
    assert (np.bincount(contexts.probe[0]) == [12, 9, 7]).all()
    only = Counts(pairs=2, markers=0, bind_questions=0, first_pairs=0, last_pairs=0)
    assert check(words, made(words, length=80, counts=only)) == {"retrieval"}


def test_order_is_asked_each_way_as_often_as_wanted_and_nothing_else_tells_which(words):
    contexts = made(words, rows=40, length=700)
    rows, columns = np.nonzero(contexts.probe == PROBES.index("order"))
    asked, answers = contexts.asked[rows, columns], contexts.choices[rows, columns, 0]
    assert (asked == FIRST).sum() == (asked == LAST).sum() == 80
    # The event that is named last is the answer half of the time, whichever way is asked.
    before = contexts.tokens[rows, contexts.position[rows, columns] - 2]
    for way in (FIRST, LAST):
        assert 0.3 < (before == answers)[asked == way].mean() < 0.7
    gaps = np.log(contexts.gap[rows, columns])
    assert gaps[asked == FIRST].mean() == pytest.approx(gaps[asked == LAST].mean(), abs=0.5)


def test_only_filler_grows_with_the_length(tokenizer):
    short, long = (made(tokenizer, seed=5, length=length, rows=6) for length in (512, 4096))
    for field in ("probe", "choices", "asked", "choice_offsets"):
        np.testing.assert_array_equal(getattr(short, field), getattr(long, field))
    said = [
        [sorted(found[0] for found in re.finditer("|".join(facts()), read(tokenizer, row))) for row in contexts.tokens]
        for contexts in (short, long)
    ]
    assert said[0] == said[1]
    assert long.distance.mean() > 5 * short.distance.mean()
    assert max(short.gap.max(), long.gap.max()) <= 128


def facts() -> list[str]:
    return [*FACTS.values(), *(re.escape(sentence) for sentence in contract_text.EVENTS.values())]


def test_gaps_stay_below_the_largest(words):
    for largest in (16, 60):
        contexts = made(words, length=2048, largest_gap=largest, rows=8)
        gaps = contexts.gap[contexts.probe == PROBES.index("order")]
        assert gaps.max() <= largest
        assert gaps.min() >= 6


def test_the_rng_decides_everything(words):
    first, same, other = (made(words, seed=seed) for seed in (1, 1, 2))
    for one, two in zip(first, same, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first.tokens != other.tokens).any()
    assert (first.tokens[0] != first.tokens[1]).any()


def test_a_row_is_tokenized_as_its_text_is(tokenizer):
    for row in made(tokenizer, length=1024).tokens:
        text = read(tokenizer, row)
        rest = text[text.index(". ") + 2 :]  # the first clause is cut
        opening = tokenizer.encode(contract_text.OPENING, add_special_tokens=False).ids
        again = tokenizer.encode(f"{contract_text.OPENING} {rest}", add_special_tokens=False).ids[len(opening) :]
        np.testing.assert_array_equal(row[-len(again) :], again)
        assert 1024 - len(again) < 60


def test_special_tokens_stand_only_before_a_row(words):
    tokens = made(words).tokens
    assert (tokens[:, 0] == words.token_to_id("[BOS]")).all()
    assert not np.isin(tokens[:, 1:], [words.token_to_id(name) for name in ("[BOS]", "[EOS]", "[UNK]")]).any()


def test_saved_truncation_and_padding_are_passed_over(words):
    plain = made(words)
    changed = tokenizers.Tokenizer.from_str(words.to_str())
    changed.enable_truncation(max_length=5)
    changed.enable_padding(length=50)
    np.testing.assert_array_equal(made(changed).tokens, plain.tokens)
    assert changed.truncation is not None
    assert changed.padding is not None


def test_whole_words_are_preferred_as_answers():
    tokenizer = by_bytes()
    contexts = made(tokenizer, rows=8)
    asked = contexts.choices[contexts.choices >= 0]
    known = {*ANSWERS, *contract_text.EVENTS}
    assert {read(tokenizer, [token]) for token in asked} <= known


def test_filler_holds_no_answer_and_hardly_repeats():
    rng = np.random.default_rng(0)
    clauses = [contract_text.clause(rng) for _ in range(1800)]  # about 32k tokens
    found = {word for clause in clauses for word in re.findall(r"\w+", clause.lower())}
    names = {name.lower() for name in contract_text.NAMES}
    taken = ANSWERS | names | {*contract_text.EVENTS} | {*contract_text.ORDINALS}
    assert not found & (taken | {"account", "schedule", "then", "last", "came"})
    assert all(clause[0].isupper() and clause.endswith(".") and "{" not in clause for clause in clauses)
    assert len(set(clauses)) > 0.97 * len(clauses)
    rng = np.random.default_rng(0)
    assert clauses[:50] == [contract_text.clause(rng) for _ in range(50)]


def test_lists_of_words_do_not_overlap():
    lists = [contract_text.CODES, contract_text.ITEMS]
    lists += [tuple(contract_text.EVENTS), tuple(name.lower() for name in contract_text.NAMES)]
    every = list(itertools.chain(*lists))
    assert len(set(every)) == len(every)


def test_it_does_not_claim_to_be_validated():
    assert STATUS == "plumbing tested, not validated"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"length": 200}, "too short"),
        ({"length": 1}, "too short"),
        ({"counts": dataclasses.replace(LANGUAGE_COUNTS, pairs=1)}, "retrieval: pairs must be 0 or at least 2"),
        ({"counts": dataclasses.replace(LANGUAGE_COUNTS, bind_questions=17)}, "binding: more questions"),
        ({"counts": dataclasses.replace(LANGUAGE_COUNTS, pairs=60)}, "names apart, 62 are needed"),
        ({"largest_gap": 3}, "order: no place"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words, changes, what):
    with pytest.raises(InputError) as caught:
        made(words, **changes)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def without(tokenizer, missing) -> tokenizers.Tokenizer:
    vocabulary = {word: index for word, index in tokenizer.get_vocab().items() if word not in missing}
    result = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    result.pre_tokenizer = pre_tokenizers.Whitespace()
    return result


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        (contract_text.CODES[3:], "retrieval: .* WordLevel tokenizer of .* tells 3 of 52 answers apart, 4 are needed"),
        (contract_text.ITEMS[7:], "binding: .* tells 7 of"),
        (tuple(contract_text.EVENTS)[5:], "order: .* tells 5 of"),
        (contract_text.NAMES[2:], "retrieval, binding: .* tells 2 of .* names apart"),
        (("last",), "order: .* tells 0 of .*no tokens for some of 'Which came last"),
    ],
)
def test_a_tokenizer_that_lacks_words_is_named_with_the_probe(words, missing, what):
    with pytest.raises(InputError, match=what):
        made(without(words, missing))


def test_a_tokenizer_that_has_no_word_for_the_unknown_is_named(words):
    bare = tokenizers.Tokenizer(models.WordLevel({"This": 0}, unk_token="[UNK]"))
    with pytest.raises(InputError, match="the WordLevel tokenizer of 1 tokens cannot encode"):
        made(bare)


def test_a_tokenizer_that_joins_sentences_is_refused():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    tokenizer.train_from_iterator([f"{contract_text.OPENING} The code word."] * 50, trainer)
    with pytest.raises(InputError, match="does not keep sentences apart"):
        made(tokenizer)


def test_a_small_real_tokenizer(stories):
    contexts = made(stories, length=2048)
    assert check(stories, contexts) == set(PROBES)
    assert (contexts.tokens[:, 0] == 1).all()
