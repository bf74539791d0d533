"""Contexts hold what their questions ask for: every answer is worked out anew from the tokens alone."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.contexts import (
    DIGITS,
    DISTANCES,
    FILLER,
    GROUP,
    PROBES,
    QUESTION,
    START,
    SYMBOLS,
    Counts,
)
from rope_jax.errors import InputError

PROMPT = {"ret": 1, "bind": 2, "ord": 2, "dist": 1, "ith": 2, "count": 1}


def made(seed=0, *, rows=4, length=192, **kwargs):
    return contexts.contexts(np.random.default_rng(seed), rows=rows, length=length, **kwargs)


@dataclasses.dataclass
class Asked:
    """One question, read back from a row."""

    probe: str
    prompt: list[int]
    answer: int
    others: list[int]
    at: int  # of what is asked about
    gap: int
    asked: int
    offsets: list[int]


def read(items, row) -> tuple[list[int], list[Asked]]:
    """Returns the context part of a row and its questions."""
    tokens = items.tokens[row].tolist()
    questions = []
    first = len(tokens)
    for q, index in enumerate(items.probe[row]):
        probe, position = PROBES[index], int(items.position[row, q])
        start = position - PROMPT[probe]
        assert tokens[start] == QUESTION[probe]
        first = min(first, start)
        choices = [c for c in items.choices[row, q].tolist() if c >= 0]
        assert items.choices[row, q].tolist() == choices + [-1] * (8 - len(choices))
        assert len(set(choices)) == len(choices) > 1
        assert tokens[position + 1] == choices[0]
        offsets = items.choice_offsets[row, q].tolist()
        questions.append(
            Asked(
                probe, tokens[start + 1 : position + 1], choices[0], choices[1:],
                position - int(items.distance[row, q]), int(items.gap[row, q]), int(items.asked[row, q]), offsets,
            )
        )  # fmt: skip
    return tokens[:first], questions


def places(tokens, symbol):
    return [at for at, token in enumerate(tokens) if token == symbol]


def check_ret(tokens, q):
    assert places(tokens, q.prompt[0]) == [q.at]
    assert tokens[q.at + 1] == q.answer
    assert all(len(places(tokens, value)) == 1 for value in (q.answer, *q.others))


def check_bind(tokens, q):
    marker, digit = q.prompt
    assert places(tokens, marker) == [q.at]
    assert digit == DIGITS[q.asked - 1]
    assert 1 <= q.asked <= GROUP
    for item, offset in zip((q.answer, *q.others), q.offsets, strict=True):
        assert tokens[q.at + offset] == item
    assert q.offsets[0] == q.asked
    assert sorted(q.offsets) == list(range(1, GROUP + 1))


def check_ord(tokens, q):
    ((first,), (second,)) = places(tokens, q.answer), places(tokens, q.others[0])
    assert set(q.prompt) == {q.answer, q.others[0]}
    assert second - first == q.gap > 0
    assert q.at == second  # the nearer one


def check_dist(tokens, q):
    first, second = places(tokens, q.prompt[0])
    assert second - first == q.gap
    assert q.at == second
    nearest = min(range(len(DISTANCES)), key=lambda kind: abs(np.log(q.gap / DISTANCES[kind])))
    assert q.answer == DIGITS[nearest]
    assert abs(q.gap - DISTANCES[nearest]) <= 0.2 * DISTANCES[nearest] + 0.5
    assert sorted((q.answer, *q.others)) == DIGITS[: len(DISTANCES)].tolist()


def check_ith(tokens, q):
    symbol, digit = q.prompt
    found = places(tokens, symbol)
    assert digit == DIGITS[q.asked - 1]
    assert found[q.asked - 1] == q.at
    assert tokens[q.at + 1] == q.answer
    assert sorted(tokens[at + 1] for at in found) == sorted((q.answer, *q.others))


def check_count(tokens, q):
    found = places(tokens, q.prompt[0])
    assert len(found) == q.asked
    assert q.answer == DIGITS[q.asked - 1]
    assert found[-1] == q.at


CHECKS = {name: globals()[f"check_{name}"] for name in PROBES}


def check_all(items):
    seen = set()
    for row in range(len(items.tokens)):
        tokens, questions = read(items, row)
        assert tokens[0] == START
        for question in questions:
            CHECKS[question.probe](tokens, question)
            seen.add(question.probe)
    return seen


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.sampled_from([192, 256, 512, 2048]))
def test_every_answer_is_what_the_context_says(seed, length):
    items = made(seed, rows=2, length=length)
    assert items.tokens.shape == (2, length)
    assert {part.dtype for part in items} == {np.dtype(np.int32)}
    assert check_all(items) == set(PROBES)


def test_other_counts_are_kept_too():
    counts = Counts(
        pairs=8, markers=3, bind_questions=24, order_pairs=6, distances=3, repeats=8, ith_questions=8, counted=4
    )
    items = made(length=900, counts=counts)
    assert items.tokens.shape == (4, 900)
    assert check_all(items) == set(PROBES)
    assert (np.bincount(items.probe[0]) == [8, 24, 6, 3, 8, 4]).all()
    no_repeats = Counts(repeats=0, ith_questions=0, counted=0, distances=0)
    assert check_all(made(length=150, counts=no_repeats)) == {"ret", "bind", "ord"}


def test_each_symbol_has_one_role_in_a_row():
    items = made(rows=8)
    for row in range(8):
        tokens, questions = read(items, row)
        roles: dict[int, set[str]] = {}
        for q in questions:
            named = {
                "ret": [*q.prompt], "bind": q.prompt[:1], "ord": q.prompt, "dist": q.prompt, "ith": q.prompt[:1],
                "count": q.prompt,
            }[q.probe]  # fmt: skip
            for symbol in named:
                roles.setdefault(symbol, set()).add(f"{q.probe} asked")
            if q.probe in ("ret", "bind", "ith"):
                for symbol in (q.answer, *q.others):
                    roles.setdefault(symbol, set()).add(f"{q.probe} answer")
        assert all(len(role) == 1 for role in roles.values())
        others = set(tokens[1:]) - set(roles) - set(FILLER.tolist())
        assert len(others) <= 1  # a marker that no question happens to be about
        assert all(token in SYMBOLS and len(places(tokens, token)) == 1 for token in others)
        order = [tuple(sorted(q.prompt)) for q in questions if q.probe == "ord"]
        events = [event for pair in order for event in pair]
        assert len(events) == len(set(events)) == 8  # no event in two pairs


def test_only_filler_grows_with_the_length():
    short, long = (made(5, rows=3, length=length, largest_gap=50) for length in (192, 2048))
    facts = [np.sort([(row >= SYMBOLS[0]).sum() for row in items.tokens]) for items in (short, long)]
    questions = [np.sort(items.probe, axis=1) for items in (short, long)]
    np.testing.assert_array_equal(*questions)
    # Counted symbols stand one to five times; all else stands equally often.
    assert abs(facts[0] - facts[1]).max() <= 2 * 4
    for name, at in (("ret", 1), ("bind", 9)):
        kind = PROBES.index(name)
        assert long.distance[long.probe == kind].mean() > 5 * short.distance[short.probe == kind].mean() > at


@pytest.mark.parametrize("largest", [16, 24, 128])
def test_gaps_of_events_stay_within_their_bounds(largest):
    items = made(rows=40, length=2048, largest_gap=largest)
    gaps = items.gap[items.probe == PROBES.index("ord")]
    assert gaps.min() == contexts.SMALLEST_GAP
    assert 0.7 * largest < gaps.max() <= largest


def test_no_position_gives_an_answer_away():
    """Whoever guesses by place, by the order in a question, or by a digit is right no more often than chance."""
    items = made(rows=150, length=256, largest_gap=128)
    rows, columns = np.nonzero(items.probe == PROBES.index("ord"))
    first_named = items.tokens[rows, items.position[rows, columns] - 1]
    right = (first_named == items.choices[rows, columns, 0]).mean()
    assert abs(right - 0.5) < 0.08
    for name, options in (("dist", 4), ("count", 5)):
        answers = items.choices[items.probe == PROBES.index(name)][:, 0]
        share = np.bincount(answers)[DIGITS[:options]] / len(answers)
        assert abs(share - 1 / options).max() < 0.1
    asked = items.asked[items.probe == PROBES.index("bind")]
    assert abs(np.bincount(asked)[1:] / len(asked) - 1 / GROUP).max() < 0.04


@pytest.mark.parametrize("length", [-5, 0, 1, 77, 79, 100])
def test_a_length_too_short_is_refused(length):
    with pytest.raises(InputError, match=f"a context of {length} tokens is too short"):
        made(length=length)


@pytest.mark.parametrize(
    ("counts", "what"),
    [
        (Counts(pairs=1), "pairs must be 0 or from 2 to 8"),
        (Counts(pairs=9), "pairs must be 0 or from 2 to 8"),
        (Counts(repeats=9), "repeats must be 0 or from 2 to 8"),
        (Counts(repeats=0), "more questions"),
        (Counts(markers=1, bind_questions=9), "more questions"),
        (Counts(order_pairs=44), "symbols are needed"),
    ],
)
def test_what_cannot_be_asked_is_refused(counts, what):
    with pytest.raises(InputError, match=what):
        made(length=2048, counts=counts)


def test_a_row_is_as_long_as_asked_even_where_no_distance_fits():
    few = Counts(pairs=0, markers=0, bind_questions=0, order_pairs=0, repeats=0, ith_questions=0, counted=0)
    assert made(length=40, counts=few).tokens.shape == (4, 40)
    with pytest.raises(InputError, match="too short"):
        made(length=11, counts=few)


def test_the_same_randomness_gives_the_same_rows():
    first, again, other = made(3), made(3), made(4)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first.tokens != other.tokens).any()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.sampled_from([16, 32, 64, 200, 700]),
    farthest=st.sampled_from([4, 16, 128]),
)
def test_predictable_tokens_are_copies_of_what_stood_before(seed, length, farthest):
    text = contexts.repeated_text(np.random.default_rng(seed), rows=3, length=length, farthest=farthest)
    assert text.tokens.shape == (3, length)
    assert text.predictable.shape == (3, length - 1)
    assert (text.tokens[:, 0] == START).all()
    for line, weights in zip(text.tokens, text.predictable, strict=True):
        assert set(line[1:]) <= set(SYMBOLS)
        assert set(weights) <= {0.0, 1.0}
        for at in np.flatnonzero(weights):
            # The pair (this token, the next) stood up to `farthest` tokens before.
            before = range(max(1, at - farthest), at)
            assert any((line[b : b + 2] == line[at : at + 2]).all() for b in before)


def test_half_of_a_long_text_is_copied_and_little_of_it_is_in_doubt():
    text = contexts.repeated_text(np.random.default_rng(0), rows=20, length=1024, farthest=128)
    assert 0.42 < text.predictable.mean() < 0.53
    # What followed these two tokens when they last stood within reach is nearly always what follows now.
    right = []
    for line, weights in zip(text.tokens, text.predictable, strict=True):
        for at in np.flatnonzero(weights):
            before = [b for b in range(max(2, at - 128), at) if (line[b - 1 : b + 1] == line[at - 1 : at + 1]).all()]
            if before:
                right.append(np.mean([line[b + 1] == line[at + 1] for b in before]))
    assert len(right) > 0.9 * text.predictable.sum()
    assert np.mean(right) > 0.95


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), farthest=st.integers(2, 130), length=st.integers(2, 300))
def test_a_copied_token_comes_within_what_is_promised(seed, farthest, length):
    whole = contexts.shortest_with_copy(length, farthest)
    text = contexts.repeated_text(np.random.default_rng(seed), rows=20, length=whole, farthest=farthest)
    assert text.predictable[:, length - 1 :].any(axis=1).all()
