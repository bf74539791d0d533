"""Synthetic contexts: facts of several kinds spread over filler, and questions at the end about all of them.

The number of facts is fixed; only filler grows with the length, so that a short and a long context ask the same.

| task | in the context | question | answer |
|---|---|---|---|
| retrieval | pairs `key value` | `? key` | the value |
| binding | a marker and eight items after it, the same eight after every marker | `? marker n` | item n |
| order | events, each once | `first? a b` or `last? a b` | whichever came first, or last |
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32

from rope_jax.diagnosis.tasks.context_sizes import check_size
from rope_jax.diagnosis.tasks.registry import PROBES, TASKS, index_of
from rope_jax.errors import InputError

__all__ = [
    "DIGITS", "FILLER", "FIRST", "GROUP", "LAST", "MARKERS", "PROBES", "QUESTION", "SMALLEST_GAP", "START", "SYMBOLS",
    "TRAINING", "VOCAB_SIZE", "Contexts", "Counts", "Question", "Reach", "Text", "answer_first", "asked_row", "chance",
    "contexts", "first_asked", "repeated_text", "shortest_with_copy", "widest_gap",
]  # fmt: skip

TRAINING = "training.json"
"""What `experiments/train.py` leaves beside weights that know these contexts."""

VOCAB_SIZE = 152
START = 0
QUESTION = {"retrieval": 1, "binding": 2, "first": 3, "last": 4}
"""The token that opens each kind of question; up to 31 are for kinds to come."""
FIRST, LAST = 1, 2
"""What a question of `order` asks for, in `Contexts.asked`."""
DIGITS = np.arange(32, 40)
FILLER = np.arange(40, 56)
MARKERS = np.arange(56, 72)
SYMBOLS = np.arange(72, VOCAB_SIZE)

GROUP = 8  # items after a marker
SMALLEST_GAP = 16  # tokens between two events that are asked about; closer ones a small model hardly tells apart
_CHOICES = 8
_SHORTEST_SEGMENT, _LONGEST_SEGMENT = 8, 32  # tokens of repeated text


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many facts of each kind stand in a context, and how many questions are asked about them.

    Attributes:
      pairs: key-value pairs, each asked for once.
      markers: markers with eight items each.
      bind_questions: questions about them, each another (marker, offset); eight ask for every offset once.
      first_pairs: pairs of events of which the first is asked for; no event is in two pairs, so no answer gives another
        away.
      last_pairs: pairs of events of which the last is asked for.
      smallest_gap: fewest tokens between two events of `order`, where there is room.
    """

    pairs: int = 6
    markers: int = 1
    bind_questions: int = 8
    first_pairs: int = 2
    last_pairs: int = 2
    smallest_gap: int = SMALLEST_GAP

    @property
    def order_pairs(self) -> int:
        """Pairs of events, each asked about once."""
        return self.first_pairs + self.last_pairs


Reach = Literal["short", "long"]
"""Short is what a model was trained on, long is what comes beyond."""


class Contexts(NamedTuple):
    """Rows of tokens and their questions; `Q` questions a row, in the order in which they are asked.

    Attributes:
      tokens: `[rows, length]`.
      probe: number of the task, as `index_of` gives it, `[rows, Q]`.
      position: of the last token of the question: the next token is the answer, `[rows, Q]`.
      choices: the answer first, then its distractors, -1 where there are fewer, `[rows, Q, 8]`.
      distance: tokens from what is asked about (the nearer one of two) to the question, `[rows, Q]`.
      gap: tokens between the two events asked about; 0 elsewhere, `[rows, Q]`.
      asked: the place asked for, from 1, or `FIRST` or `LAST`; 0 for `retrieval`, `[rows, Q]`.
      choice_offsets: for `binding`, the offset after the marker at which each choice stands; 0 elsewhere,
        `[rows, Q, 8]`.
    """

    tokens: Int32[np.ndarray, "rows length"]
    probe: Int32[np.ndarray, "rows Q"]
    position: Int32[np.ndarray, "rows Q"]
    choices: Int32[np.ndarray, "rows Q 8"]
    distance: Int32[np.ndarray, "rows Q"]
    gap: Int32[np.ndarray, "rows Q"]
    asked: Int32[np.ndarray, "rows Q"]
    choice_offsets: Int32[np.ndarray, "rows Q 8"]


class Text(NamedTuple):
    """Rows in which random segments come again: the bundled test models' own text, for a loss by position.

    Attributes:
      tokens: `[rows, length]`.
      predictable: 1 where the next token is a copy of an earlier one and can be known, else 0, `[rows, length - 1]`.
    """

    tokens: Int32[np.ndarray, "rows length"]
    predictable: Float64[np.ndarray, "rows next"]


@dataclasses.dataclass
class Question:
    """A question about a context, before it has its place in a row; see `Contexts` for what is not said here.

    Attributes:
      task: its name.
      prompt: tokens of the question.
      answer: tokens that follow it; the first is the first choice.
      choices: the answer first, then its distractors.
      at: position of what is asked about, of the nearer one of two.
    """

    task: str
    prompt: list[int]
    answer: list[int]
    choices: list[int]
    at: int = -1
    gap: int = 0
    asked: int = 0
    choice_offsets: Sequence[int] = ()


def asked_row(tokens: list[int], questions: Sequence[Question]) -> tuple[np.ndarray, ...]:
    """Returns a row of every array of `Contexts`: a context, then questions about it with their answers."""
    tokens = list(tokens)
    columns: list[list] = [[] for _ in Contexts._fields[1:]]
    for question in questions:
        tokens += question.prompt
        position = len(tokens) - 1
        values = (
            index_of(question.task),
            position,
            [*question.choices, *[-1] * (_CHOICES - len(question.choices))],
            position - question.at,
            question.gap,
            question.asked,
            [*question.choice_offsets, *[0] * (_CHOICES - len(question.choice_offsets))],
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
        tokens += question.answer
    return tuple(np.asarray(column, np.int32) for column in (tokens, *columns))


def answer_first(values: Sequence, index: int) -> list:
    """Returns the values with that at `index`, the answer, before all others."""
    return [values[index], *values[:index], *values[index + 1 :]]


def contexts(
    rng: np.random.Generator, *, rows: int, length: int, largest_gap: int = 128, counts: Counts | None = None
) -> Contexts:
    """Returns random contexts of `length` tokens, the questions at the end of each in random order.

    Args:
      rng: the only source of randomness.
      rows: how many.
      length: tokens of each, questions and answers included.
      largest_gap: most tokens between two events of `order`, at most `widest_gap`; to be the same short and long, so
        that only distance grows.
      counts: facts and questions; the defaults fit from 192 tokens on.

    Raises:
      InputError: if so many facts do not fit or cannot be asked about, or so many rows do not fit into memory.
    """
    counts = counts or Counts()
    _check(counts)
    check_size(rows=rows, lengths=[length])
    made = [_row(rng, length, largest_gap, counts) for _ in range(rows)]
    return Contexts(*(np.stack(column) for column in zip(*made, strict=True)))


def chance(items: Contexts, task: str) -> float:
    """Returns the accuracy of a guess in a task, mean over all its questions.

    Args:
      items: contexts that ask it.
      task: its name.

    Raises:
      InputError: if there is no such task, or these contexts do not ask it.
    """
    choices = (items.choices[items.probe == index_of(task)] >= 0).sum(axis=-1)
    if not len(choices):
        raise InputError(f"no question of {task} is asked")
    return float(np.mean([TASKS[task].chance(int(count)) for count in choices]))


def widest_gap(length: int, counts: Counts) -> int:
    """Returns the most tokens between two events in a context of `length`: half of what precedes its questions."""
    return (length - _asked_tokens(counts)) // 2


def first_asked(items: Contexts) -> Int32[np.ndarray, " rows"]:
    """Returns where the questions of every row begin, or one token before where the first asks for a key."""
    return items.position.min(axis=1) - 2


def _asked_tokens(counts: Counts) -> int:
    """Returns the tokens of all questions and their answers."""
    return 3 * counts.pairs + 4 * counts.bind_questions + 4 * counts.order_pairs


def _check(counts: Counts) -> None:
    if counts.pairs == 1 or counts.pairs > _CHOICES:
        raise InputError(f"pairs must be 0 or from 2 to {_CHOICES}, so that there are others to choose from: {counts}")
    if counts.smallest_gap < 1:
        raise InputError(f"events stand at least one token apart: {counts}")
    if counts.bind_questions > counts.markers * GROUP:
        raise InputError(f"more questions than there is to ask about: {counts}")
    symbols = 2 * counts.pairs + 2 * counts.order_pairs + (GROUP if counts.markers else 0)
    if symbols > len(SYMBOLS) or counts.markers > len(MARKERS):
        raise InputError(
            f"{symbols} symbols and {counts.markers} markers are needed, there are {len(SYMBOLS)} and "
            f"{len(MARKERS)}: {counts}"
        )


def _row(rng: np.random.Generator, length: int, largest_gap: int, counts: Counts) -> tuple[np.ndarray, ...]:
    for _ in range(100):
        try:
            return _attempt(rng, length, largest_gap, counts)
        except _FullError:
            continue
    raise InputError(f"a context of {length} tokens is too short for {counts}")


class _FullError(Exception):
    """No room was left for the next fact."""


class _Room:
    """The context's tokens, and which of them are still filler."""

    def __init__(self, rng: np.random.Generator, length: int) -> None:
        if length < 2:
            raise _FullError
        self.tokens = rng.choice(FILLER, length)
        self.tokens[0] = START
        self._taken = np.zeros(length + 1, np.int64)
        self._taken[0] = 1
        self._rng = rng

    def place(self, block: list[int], also: int | None = None) -> int:
        """Writes a block where there is room, at random, and its first token again `also` tokens later if asked."""
        width = len(block)
        taken = np.concatenate([[0], np.cumsum(self._taken[:-1])])
        free = taken[width:] == taken[:-width]
        if also is not None:
            free = free[:-also] & (self._taken[also : also + len(free) - also] == 0) if also < len(free) else free[:0]
        candidates = np.flatnonzero(free)
        if not len(candidates):
            raise _FullError
        start = int(self._rng.choice(candidates))
        self.write(start, block)
        return start

    def write(self, start: int, block: list[int]) -> None:
        """Writes a block at a place that `place` has found free."""
        self.tokens[start : start + len(block)] = block
        self._taken[start : start + len(block)] = 1


def _attempt(rng: np.random.Generator, length: int, largest_gap: int, counts: Counts) -> tuple[np.ndarray, ...]:
    symbols = iter(rng.permutation(SYMBOLS))
    take: Callable[[int], list[int]] = lambda count: [int(next(symbols)) for _ in range(count)]  # noqa: E731
    room = _Room(rng, length - _asked_tokens(counts))
    questions = [
        *_binding(rng, room, take, counts),
        *_order(rng, room, take, counts, min(largest_gap, widest_gap(length, counts))),
        *_retrieval(room, take, counts),
    ]
    return asked_row(room.tokens.tolist(), [questions[index] for index in rng.permutation(len(questions))])


def _question(
    task: str, prompt: list[int], choices: list[int], at: int, *, kind: str | None = None, **more
) -> Question:
    return Question(task, [QUESTION[kind or task], *prompt], choices[:1], choices, at, **more)


def _binding(rng, room: _Room, take, counts: Counts) -> list[Question]:
    markers = [int(marker) for marker in rng.choice(MARKERS, counts.markers, replace=False)]
    items = take(GROUP if counts.markers else 0)
    groups = [[items[i] for i in rng.permutation(GROUP)] for _ in markers]
    starts = [room.place([marker, *group]) for marker, group in zip(markers, groups, strict=True)]
    questions = []
    # Every offset is asked for once before any is asked for again, then of the next marker.
    first = rng.integers(max(counts.markers, 1), size=GROUP)
    order = [(int(offset), turn) for turn in range(counts.markers) for offset in rng.permutation(GROUP)]
    for offset, turn in order[: counts.bind_questions]:
        group = int(first[offset] + turn) % counts.markers
        prompt, choices = [markers[group], int(DIGITS[offset])], answer_first(groups[group], offset)
        places = answer_first(range(1, GROUP + 1), offset)
        questions.append(_question("binding", prompt, choices, starts[group], asked=offset + 1, choice_offsets=places))
    return questions


def _order(rng, room: _Room, take, counts: Counts, largest_gap: int) -> list[Question]:
    questions = []
    smallest = counts.smallest_gap
    for index in range(counts.order_pairs):
        earlier, later = pair = take(2)
        gap = round(np.exp(rng.uniform(np.log(smallest), np.log(max(largest_gap, smallest)))))
        start = room.place([earlier], also=gap)
        room.write(start + gap, [later])
        named = pair if rng.random() < 0.5 else pair[::-1]
        kind, asked, choices = ("first", FIRST, pair) if index < counts.first_pairs else ("last", LAST, pair[::-1])
        questions.append(_question("order", named, choices, start + gap, kind=kind, gap=gap, asked=asked))
    return questions


def _retrieval(room: _Room, take, counts: Counts) -> list[Question]:
    keys, values = take(counts.pairs), take(counts.pairs)
    starts = [room.place([key, value]) for key, value in zip(keys, values, strict=True)]
    return [
        _question("retrieval", [key], answer_first(values, i), start)
        for i, (key, start) in enumerate(zip(keys, starts, strict=True))
    ]


def shortest_with_copy(length: int, farthest: int) -> int:
    """Returns from which length on every row of `repeated_text` holds a copied token beyond its first `length`.

    Args:
      length: tokens.
      farthest: of `repeated_text`; at least 2.
    """
    segment = min(_LONGEST_SEGMENT, farthest)
    # The first three segments may all be fresh. Later at most one is before a copy, whose first token does not count.
    return max(length, 1 + 3 * segment) + segment + 2


def repeated_text(rng: np.random.Generator, *, rows: int, length: int, farthest: int = 128, subset: int = 56) -> Text:
    """Returns rows of random segments, half of them copies of what stands up to `farthest` tokens before.

    Args:
      rng: the only source of randomness.
      rows: how many.
      length: tokens of each.
      farthest: most tokens from a copied token back to its source.
      subset: symbols that a row draws from.

    Raises:
      InputError: if they are too many to fit into memory.
    """
    check_size(rows=0, lengths=[length], text_rows=rows)
    tokens = np.empty((rows, length), np.int32)
    predictable = np.zeros((rows, length - 1))
    for row in range(rows):
        symbols = rng.choice(SYMBOLS, subset, replace=False)
        # Whole permutations, so that two tokens in a row rarely stand twice within reach unless one is a copy.
        fresh = np.concatenate([rng.permutation(symbols) for _ in range(-(-length // subset))])
        line = tokens[row]
        line[0], filled, used, copy = START, 1, 0, False
        while filled < length:
            most = max(_SHORTEST_SEGMENT, min(_LONGEST_SEGMENT, length // 2 - 1))
            width = min(int(rng.integers(_SHORTEST_SEGMENT, most + 1)), length - filled, farthest)
            if copy and filled > width:
                source = int(rng.integers(max(1, filled - farthest), filled - width + 1))
                line[filled : filled + width] = line[source : source + width]
                # The first token of a copy cannot be known.
                predictable[row, filled : filled + width - 1] = 1
            else:
                line[filled : filled + width] = fresh[used : used + width]
                used += width
            filled += width
            copy = not copy
    return Text(tokens, predictable)
