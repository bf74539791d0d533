"""Contexts hold what their questions ask for: every answer is worked out anew from the tokens alone."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.contexts import (
    DIGITS,
    FILLER,
    FIRST,
    GROUP,
    LAST,
    MARKERS,
    PROBES,
    QUESTION,
    START,
    SYMBOLS,
    Counts,
)
from rope_jax.errors import InputError

PROMPT = {"retrieval": 1, "binding": 2, "order": 2}


def made(seed=0, *, rows=4, length=192, **kwargs):
    return contexts.contexts(np.random.default_rng(seed), rows=rows, length=length, **kwargs)


@dataclasses.dataclass
class Asked:
    """One question, read back from a row."""

    task: str
    sign: int
    prompt: list[int]
    answer: int
    others: list[int]
    at: int  # of what is asked about
    gap: int
    asked: int
    offsets: list[int]


def read(items, row) -> tuple[list[int], list[Asked]]:
    """Returns the part of a row before its questions, and the questions."""
    tokens = items.tokens[row].tolist()
    questions = []
    first = len(tokens)
    for q, index in enumerate(items.probe[row]):
        task, position = PROBES[index], int(items.position[row, q])
        start = position - PROMPT[task]
        first = min(first, start)
        choices = [c for c in items.choices[row, q].tolist() if c >= 0]
        assert items.choices[row, q].tolist() == choices + [-1] * (8 - len(choices))
        assert len(set(choices)) == len(choices) > 1
        assert tokens[position + 1] == choices[0]
        offsets = items.choice_offsets[row, q].tolist()
        questions.append(
            Asked(
                task, tokens[start], tokens[start + 1 : position + 1], choices[0], choices[1:],
                position - int(items.distance[row, q]), int(items.gap[row, q]), int(items.asked[row, q]), offsets,
            )
        )  # fmt: skip
    return tokens[:first], questions


def places(tokens, symbol):
    return [at for at, token in enumerate(tokens) if token == symbol]


def check_retrieval(tokens, q):
    assert q.sign == QUESTION["retrieval"]
    assert places(tokens, q.prompt[0]) == [q.at]
    assert tokens[q.at + 1] == q.answer
    assert all(len(places(tokens, value)) == 1 for value in (q.answer, *q.others))
    assert q.gap == q.asked == max(q.offsets) == 0


def check_binding(tokens, q):
    assert q.sign == QUESTION["binding"]
    marker, digit = q.prompt
    assert places(tokens, marker) == [q.at]
    assert digit == DIGITS[q.asked - 1]
    assert 1 <= q.asked <= GROUP
    for item, offset in zip((q.answer, *q.others), q.offsets, strict=True):
        assert tokens[q.at + offset] == item
    assert q.offsets[0] == q.asked
    assert sorted(q.offsets) == list(range(1, GROUP + 1))
    assert q.gap == 0


def check_order(tokens, q):
    assert len(q.others) == 1
    ((of_answer,), (of_other,)) = places(tokens, q.answer), places(tokens, q.others[0])
    assert set(q.prompt) == {q.answer, q.others[0]}
    assert q.sign == QUESTION["first" if q.asked == FIRST else "last"]
    # The answer to `first` is the earlier event, to `last` the later one.
    assert (of_answer < of_other) == (q.asked == FIRST)
    assert q.asked in (FIRST, LAST)
    assert abs(of_other - of_answer) == q.gap > 0
    assert q.at == max(of_answer, of_other)  # the nearer one
    assert max(q.offsets) == 0


CHECKS = {name: globals()[f"check_{name}"] for name in PROBES}


def check_all(items):
    seen = set()
    for row in range(len(items.tokens)):
        tokens, questions = read(items, row)
        assert tokens[0] == START
        for question in questions:
            CHECKS[question.task](tokens, question)
            seen.add(question.task)
    return seen


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.sampled_from([192, 256, 512, 2048]))
def test_every_answer_is_what_the_context_says(seed, length):
    items = made(seed, rows=2, length=length)
    assert items.tokens.shape == (2, length)
    assert {part.dtype for part in items} == {np.dtype(np.int32)}
    assert check_all(items) == set(PROBES)


def test_other_counts_are_kept_too():
    counts = Counts(pairs=8, markers=3, bind_questions=24, first_pairs=4, last_pairs=3)
    items = made(length=900, counts=counts)
    assert items.tokens.shape == (4, 900)
    assert check_all(items) == set(PROBES)
    assert (np.bincount(items.probe[0]) == [8, 24, 7]).all()
    no_order = Counts(first_pairs=0, last_pairs=0)
    assert check_all(made(length=120, counts=no_order)) == {"retrieval", "binding"}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.sampled_from([300, 700]),
    first=st.integers(0, 6),
    last=st.integers(0, 6),
)
def test_every_pair_of_events_is_asked_about_once_as_often_each_way_as_wanted(seed, length, first, last):
    counts = Counts(pairs=2, bind_questions=2, first_pairs=first, last_pairs=last)
    items = made(seed, rows=2, length=length, counts=counts)
    for row in range(2):
        tokens, questions = read(items, row)
        order = [q for q in questions if q.task == "order"]
        events = Counter(event for q in order for event in (q.answer, *q.others))
        # No event in two questions: neither a pair that is asked about twice, nor an answer that gives another away.
        assert set(events.values()) <= {1}
        # Every event of the context is asked about: what else stands there belongs to the other tasks.
        other = {s for q in questions if q.task != "order" for s in (*q.prompt, q.answer, *q.others)}
        found = set(tokens[1:]) - other - set(FILLER.tolist()) - set(MARKERS.tolist())
        assert found == set(events)
        ways = Counter(q.asked for q in order)
        assert (ways[FIRST], ways[LAST]) == (first, last)


def test_the_two_ways_ask_about_pairs_of_the_same_kind():
    """Which way is asked tells neither the gap, nor the distance, nor the order of the names."""
    items = made(rows=300, length=512)
    rows, columns = np.nonzero(items.probe == PROBES.index("order"))
    asked = items.asked[rows, columns]
    assert (asked == FIRST).sum() == (asked == LAST).sum() == 600
    named_first = items.tokens[rows, items.position[rows, columns] - 1] == items.choices[rows, columns, 0]
    for values in (np.log(items.gap[rows, columns]), items.distance[rows, columns], named_first.astype(float)):
        first, last = values[asked == FIRST], values[asked == LAST]
        error = np.sqrt(first.var() / len(first) + last.var() / len(last))
        assert abs(first.mean() - last.mean()) < 3 * error


def test_each_symbol_has_one_role_in_a_row():
    items = made(rows=8)
    for row in range(8):
        tokens, questions = read(items, row)
        roles: dict[int, set[str]] = {}
        for q in questions:
            for symbol in {"retrieval": q.prompt, "binding": q.prompt[:1], "order": q.prompt}[q.task]:
                roles.setdefault(symbol, set()).add(f"{q.task} asked")
            if q.task != "order":
                for symbol in (q.answer, *q.others):
                    roles.setdefault(symbol, set()).add(f"{q.task} answer")
        assert all(len(role) == 1 for role in roles.values())
        assert set(tokens[1:]) == set(roles) | (set(tokens[1:]) & set(FILLER.tolist()))


def facts_of(items, row):
    """Returns how many facts a row holds of each kind, whatever their symbols."""
    tokens, questions = read(items, row)
    order = [q for q in questions if q.task == "order"]
    return {
        "symbols": sum(token in SYMBOLS for token in tokens),
        "markers": sum(token in MARKERS for token in tokens),
        "events": len({event for q in order for event in q.prompt}),
        "asked": sorted(Counter((q.task, q.asked) for q in questions if q.task != "binding").items()),
        "offsets": sorted(q.asked for q in questions if q.task == "binding"),
        "choices": sorted(len(q.others) for q in questions),
    }


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.sampled_from([384, 1024, 2048]))
def test_a_context_of_the_target_length_holds_the_facts_of_a_short_one(seed, length):
    short, long = (made(seed, rows=2, length=tokens, largest_gap=50) for tokens in (192, length))
    for row in range(2):
        assert facts_of(short, row) == facts_of(long, row)


def test_only_distances_grow_with_the_length():
    short, long = (made(5, rows=20, length=length, largest_gap=50) for length in (192, 2048))
    for name, at in (("retrieval", 1), ("binding", 9), ("order", 1)):
        kind = PROBES.index(name)
        assert long.distance[long.probe == kind].mean() > 5 * short.distance[short.probe == kind].mean() > at
    gaps = [items.gap[items.probe == PROBES.index("order")].mean() for items in (short, long)]
    assert gaps[1] == pytest.approx(gaps[0], rel=0.2)


@pytest.mark.parametrize("largest", [16, 24, 128])
def test_gaps_of_events_stay_within_their_bounds(largest):
    items = made(rows=40, length=2048, largest_gap=largest)
    gaps = items.gap[items.probe == PROBES.index("order")]
    assert gaps.min() == contexts.SMALLEST_GAP
    assert 0.7 * largest < gaps.max() <= largest


def test_no_position_gives_an_answer_away():
    """Whoever guesses by place, by the order in a question, or by a digit is right no more often than chance."""
    items = made(rows=150, length=256, largest_gap=128)
    rows, columns = np.nonzero(items.probe == PROBES.index("order"))
    first_named = items.tokens[rows, items.position[rows, columns] - 1]
    right = (first_named == items.choices[rows, columns, 0]).mean()
    assert abs(right - 0.5) < 0.08
    asked = items.asked[items.probe == PROBES.index("binding")]
    assert abs(np.bincount(asked)[1:] / len(asked) - 1 / GROUP).max() < 0.04


def test_whoever_always_names_the_later_event_is_right_half_of_the_time():
    items = made(rows=30, length=256)
    rows, columns = np.nonzero(items.probe == PROBES.index("order"))
    right = []
    for row, column in zip(rows, columns, strict=True):
        tokens, (answer, other) = items.tokens[row].tolist(), items.choices[row, column, :2]
        right.append(tokens.index(answer) > tokens.index(other))
    assert np.mean(right) == 0.5


def test_a_guess_is_right_as_often_as_there_are_choices():
    items = made(rows=5)
    assert contexts.chance(items, "retrieval") == pytest.approx(1 / 6)
    assert contexts.chance(items, "binding") == pytest.approx(1 / 8)
    assert contexts.chance(items, "order") == pytest.approx(1 / 2)
    with pytest.raises(InputError, match="no question of order is asked"):
        contexts.chance(made(counts=Counts(first_pairs=0, last_pairs=0)), "order")


@pytest.mark.parametrize("length", [-5, 0, 1, 66, 68, 94])
def test_a_length_too_short_is_refused(length):
    with pytest.raises(InputError, match=f"a context of {length} tokens is too short"):
        made(length=length)


@pytest.mark.parametrize(
    ("counts", "what"),
    [
        (Counts(pairs=1), "pairs must be 0 or from 2 to 8"),
        (Counts(pairs=9), "pairs must be 0 or from 2 to 8"),
        (Counts(markers=1, bind_questions=9), "more questions"),
        (Counts(smallest_gap=0), "at least one token apart"),
        (Counts(first_pairs=44), "symbols and 1 markers are needed"),
        (Counts(last_pairs=44), "symbols and 1 markers are needed"),
        (Counts(markers=17), "17 markers are needed"),
    ],
)
def test_what_cannot_be_asked_is_refused(counts, what):
    with pytest.raises(InputError, match=what):
        made(length=2048, counts=counts)


def test_a_row_is_as_long_as_asked_even_where_nothing_is_asked():
    nothing = Counts(pairs=0, markers=0, bind_questions=0, first_pairs=0, last_pairs=0)
    items = made(length=40, counts=nothing)
    assert items.tokens.shape == (4, 40)
    assert items.probe.shape == (4, 0)


def test_the_same_randomness_gives_the_same_rows():
    first, again, other = made(3), made(3), made(4)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first.tokens != other.tokens).any()


def test_kinds_of_questions_leave_room_for_more():
    assert SYMBOLS[-1] + 1 == contexts.VOCAB_SIZE
    assert DIGITS[0] - max(QUESTION.values()) - 1 == 27
    signs = [START, *QUESTION.values(), *DIGITS, *FILLER, *MARKERS, *SYMBOLS]
    assert len(set(signs)) == len(signs)
