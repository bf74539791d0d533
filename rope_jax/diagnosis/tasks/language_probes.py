"""The tasks in English, for a checkpoint that reads it: facts between clauses of a contract, questions at the end.

| task | in the context | question | answer |
|---|---|---|---|
| retrieval | The code word of the Alder account is tiger. | The code word of the Alder account is | the word |
| binding | Schedule Maple lists, in this order: rice, steel, … | The third item of Schedule Maple is | the item |
| order | The parties then signed the lease. | Which came first, the sale or the lease? The | the earlier |
| order | The heirs then agreed to the sale. | Which came last, the sale or the lease? The | the later |

Every sentence is tokenized on its own, as it stands after another sentence, and rows are put together from whole
sentences. One is cut: a context begins somewhere inside its first clause, like an excerpt, so that the row has exactly
the length asked for.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence

import numpy as np
import tokenizers

from rope_jax.diagnosis.tasks import contract_text
from rope_jax.diagnosis.tasks.context_sizes import check_size
from rope_jax.diagnosis.tasks.contexts import FIRST, GROUP, LAST, Contexts, Counts, Question, answer_first, asked_row
from rope_jax.diagnosis.tasks.tokenizer_file import first_line
from rope_jax.errors import InputError

STATUS = "plumbing tested, not validated"
"""What every report on these questions prints: no model has yet been seen to answer them as it should."""

LANGUAGE_COUNTS = Counts(pairs=4, markers=2, bind_questions=4, first_pairs=2, last_pairs=2)
"""Facts and questions that fit 512 tokens with a tokenizer that has common English words whole."""

_CHOICES = 8


def language_contexts(
    rng: np.random.Generator,
    tokenizer: tokenizers.Tokenizer,
    *,
    rows: int,
    length: int,
    largest_gap: int = 128,
    counts: Counts = LANGUAGE_COUNTS,
) -> Contexts:
    """Returns English contexts of `length` tokens, the questions at the end of each in random order.

    As `contexts.contexts`; distance and gap are between the first tokens of sentences, and the prompt of a question.
    Only the first token of an answer is scored, and words are chosen so that it tells the choices apart. Generators in
    the same state ask the same at every length: only places and filler differ.

    Args:
      rng: the only source of randomness; rows are drawn from what it spawns.
      tokenizer: of the checkpoint; where it puts special tokens before a text, they stand before each row.
      rows: how many.
      length: tokens of each, questions and answers included.
      largest_gap: most tokens between two events of `order`; the same short and long, so that only distance grows.
      counts: facts and questions. `smallest_gap` is passed over: no two events share a sentence.

    Raises:
      InputError: if so many facts or rows do not fit, or the tokenizer cannot tell enough words apart.
    """
    if counts.pairs == 1:
        raise InputError(f"retrieval: pairs must be 0 or at least 2, so that there are others to choose from: {counts}")
    if counts.bind_questions > counts.markers * GROUP:
        raise InputError(f"binding: more questions than there is to ask about: {counts}")
    check_size(rows=rows, lengths=[length])
    writer = _Writer(tokenizer)
    words = _words(writer, counts)
    made = [_row(row, writer, words, length, largest_gap, counts) for row in rng.spawn(rows)]
    return Contexts(*(np.stack(column) for column in zip(*made, strict=True)))


class _Writer:
    """Turns sentences into tokens as they stand inside a text: after another sentence."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        saved = tokenizer.to_str()
        model = json.loads(saved)["model"]
        self.name = f"the {model['type']} tokenizer of {tokenizer.get_vocab_size()} tokens"
        self._tokenizer = tokenizers.Tokenizer.from_str(saved)
        # What a tokenizer was saved with would cut every sentence, or fill it up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        unknown = model.get("unk_token")
        self._unknown = model.get("unk_id") if unknown is None else tokenizer.token_to_id(unknown)
        self._opening = self._encode(contract_text.OPENING).ids
        whole = self._encode(contract_text.OPENING, special=True)
        special = zip(whole.ids, whole.special_tokens_mask, strict=True)
        self.prefix = [token for token, _ in itertools.takewhile(lambda pair: pair[1], special)]

    def _encode(self, text: str, special: bool = False) -> tokenizers.Encoding:
        try:
            return self._tokenizer.encode(text, add_special_tokens=special)
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{self.name} cannot encode {text!r}: {first_line(error)}") from error

    def write(self, text: str) -> list[int]:
        """Returns the tokens of a text that follows a sentence."""
        ids, start = self._encode(f"{contract_text.OPENING} {text}").ids, len(self._opening)
        if ids[:start] != self._opening:
            raise InputError(f"{self.name} does not keep sentences apart: it joins {text!r} to the one before")
        if len(ids) == start or self._unknown in ids[start:]:
            raise InputError(f"{self.name} has no tokens for some of {text!r}")
        return ids[start:]

    def complete(self, prompt: str, word: str) -> list[int]:
        """Returns the tokens with which a word and a full stop follow a prompt.

        Raises:
          InputError: if prompt and word share a token, or the word begins otherwise where no full stop follows.
        """
        before, bare, whole = self.write(prompt), self.write(f"{prompt} {word}"), self.write(f"{prompt} {word}.")
        end = len(before)
        if not before == bare[:end] == whole[:end] or not bare[end:] or bare[end] != whole[end]:
            raise InputError(f"{self.name} does not keep {word!r} apart after {prompt!r}")
        return whole[end:]


@dataclasses.dataclass(frozen=True)
class _Words:
    """Words that the tokenizer tells apart by their first token; names by all of theirs."""

    names: tuple[str, ...]
    codes: tuple[str, ...]
    items: tuple[str, ...]
    events: tuple[str, ...]


def _words(writer: _Writer, counts: Counts) -> _Words:
    text = contract_text
    names = _names(writer, counts.pairs + counts.markers)

    def apart(task: str, prompts: Sequence[str], words: Sequence[str], needed: int) -> tuple[str, ...]:
        return _apart(writer, task, prompts, names[0], words, needed) if needed else ()

    pairs = {"first": counts.first_pairs, "last": counts.last_pairs}
    order_prompts = [prompt for way, prompt in text.ORDER_PROMPTS.items() if pairs[way]]
    return _Words(
        names=names,
        codes=apart("retrieval", [text.RETRIEVAL_PROMPT], text.CODES, counts.pairs),
        items=apart("binding", [text.BINDING_PROMPT], text.ITEMS, GROUP if counts.markers else 0),
        events=apart("order", order_prompts, tuple(text.EVENTS), 2 * counts.order_pairs),
    )


def _apart(
    writer: _Writer, task: str, prompts: Sequence[str], name: str, words: Sequence[str], needed: int
) -> tuple[str, ...]:
    """Words that differ in the first token, the same after each prompt; only those of one token where they suffice."""
    usable: dict[int, tuple[bool, str]] = {}
    reason = ""
    for word in words:
        named = {"name": name, "ordinal": contract_text.ORDINALS[0], "one": word, "other": word}
        befores = [prompt.format(**named) for prompt in prompts]
        try:
            first, *others = (writer.complete(before, word)[0] for before in befores)
        except InputError as error:
            reason = f"; {error}"
            continue
        if any(other != first for other in others):
            reason = f"; {word!r} begins otherwise after {befores[-1]!r}"
            continue
        whole = len(writer.write(f"{befores[0]} {word}")) == len(writer.write(befores[0])) + 1
        if first not in usable or (whole and not usable[first][0]):
            usable[first] = (whole, word)
    whole_words = tuple(word for whole, word in usable.values() if whole)
    found = whole_words if len(whole_words) >= needed else tuple(word for _, word in usable.values())
    if len(found) < needed:
        raise InputError(
            f"{task}: by their first token {writer.name} tells {len(found)} of {len(words)} answers apart, "
            f"{needed} are needed{reason}"
        )
    return found


def _names(writer: _Writer, needed: int) -> tuple[str, ...]:
    usable: dict[tuple[int, ...], str] = {}
    reason = ""
    for name in contract_text.NAMES:
        try:
            usable.setdefault(tuple(writer.write(f"The {name} account")), name)
        except InputError as error:
            reason = f"; {error}"
    if len(usable) < max(needed, 1):
        raise InputError(
            f"retrieval, binding: {writer.name} tells {len(usable)} of {len(contract_text.NAMES)} names apart, "
            f"{max(needed, 1)} are needed{reason}"
        )
    return tuple(usable.values())


@dataclasses.dataclass(eq=False)
class _Sentence:
    tokens: list[int]
    start: int = -1  # position of its first token, once it has a place


class _Contents:
    """What a row says and asks; the sentences of a group stand in their order, those of a pair near each other.

    A question comes with the sentences it is about.
    """

    def __init__(self, rng: np.random.Generator, writer: _Writer, words: _Words, counts: Counts) -> None:
        self._rng, self._writer = rng, writer
        self.groups: list[list[_Sentence]] = []
        self.pairs: list[tuple[_Sentence, _Sentence]] = []
        self.questions: list[tuple[Question, list[_Sentence]]] = []
        names = rng.permutation(words.names).tolist()
        markers, keys = names[: counts.markers], names[counts.markers :][: counts.pairs]
        self._binding(markers, self._drawn(words.items, GROUP if markers else 0), counts.bind_questions)
        self._order(self._drawn(words.events, 2 * counts.order_pairs), counts.first_pairs)
        self._retrieval(keys, self._drawn(words.codes, counts.pairs))
        self.questions = [self.questions[i] for i in rng.permutation(len(self.questions))]

    def tokens(self) -> int:
        """How many tokens it takes."""
        sentences = [sentence for group in (*self.groups, *self.pairs) for sentence in group]
        return sum(len(one.tokens) for one in sentences) + sum(len(q.prompt) + len(q.answer) for q, _ in self.questions)

    def _binding(self, markers: list[str], items: list[str], questions: int) -> None:
        orders = [self._rng.permutation(items).tolist() for _ in markers]
        for name, order in zip(markers, orders, strict=True):
            listed = f"{', '.join(order[:-1])} and {order[-1]}"
            self.groups.append([self._sentence(contract_text.BINDING_FACT.format(name=name, items=listed))])
        for pick in self._rng.permutation(len(markers) * GROUP)[:questions]:
            group, offset = divmod(int(pick), GROUP)
            prompt = contract_text.BINDING_PROMPT.format(ordinal=contract_text.ORDINALS[offset], name=markers[group])
            choices, places = (answer_first(values, offset) for values in (orders[group], range(1, GROUP + 1)))
            self._ask("binding", prompt, choices, self.groups[group], asked=offset + 1, choice_offsets=places)

    def _order(self, events: list[str], first_pairs: int) -> None:
        for index, pair in enumerate(zip(events[::2], events[1::2], strict=True)):
            first, second = (self._sentence(contract_text.EVENTS[event]) for event in pair)
            self.pairs.append((first, second))
            one, other = pair if self._rng.random() < 0.5 else pair[::-1]
            way, asked, choices = ("first", FIRST, pair) if index < first_pairs else ("last", LAST, pair[::-1])
            prompt = contract_text.ORDER_PROMPTS[way].format(one=one, other=other)
            self._ask("order", prompt, choices, [first, second], asked=asked)

    def _retrieval(self, keys: list[str], values: list[str]) -> None:
        for index, name in enumerate(keys):
            fact = self._sentence(contract_text.RETRIEVAL_FACT.format(name=name, word=values[index]))
            self.groups.append([fact])
            prompt = contract_text.RETRIEVAL_PROMPT.format(name=name)
            self._ask("retrieval", prompt, answer_first(values, index), [fact])

    def _drawn(self, words: tuple[str, ...], count: int) -> list[str]:
        return self._rng.choice(words, count, replace=False).tolist() if count else []

    def _sentence(self, text: str) -> _Sentence:
        return _Sentence(self._writer.write(text))

    def _ask(self, task: str, prompt: str, choices: Sequence[str], about: list[_Sentence], **more) -> None:
        ends = [self._writer.complete(prompt, choice) for choice in choices[:_CHOICES]]
        firsts = [end[0] for end in ends]
        if len(set(firsts)) < len(firsts):
            raise InputError(f"{task}: {self._writer.name} does not tell {', '.join(choices)} apart after {prompt!r}")
        self.questions.append((Question(task, self._writer.write(prompt), ends[0], firsts, **more), about))


def _row(
    rng: np.random.Generator, writer: _Writer, words: _Words, length: int, largest_gap: int, counts: Counts
) -> tuple[np.ndarray, ...]:
    for_contents, for_places, for_filler = rng.spawn(3)
    contents = _Contents(for_contents, writer, words, counts)
    heading = writer.write(contract_text.QUESTIONS_FOLLOW)
    room = length - len(writer.prefix) - contents.tokens() - len(heading)
    if room < 1:
        raise InputError(f"a context of {length} tokens is too short: {counts} takes {length - room + 1} tokens here")
    filler = _filler(for_filler, writer, room)
    for _ in range(100):
        line = _placed(for_places, filler, contents, largest_gap)
        start = len(writer.prefix)
        for sentence in line:
            sentence.start = start
            start += len(sentence.tokens)
        if all(second.start - first.start <= largest_gap for first, second in contents.pairs):
            break
    else:
        raise InputError(f"order: no place for {counts} in {length} tokens with gaps of at most {largest_gap}")
    tokens = [*writer.prefix, *(token for sentence in line for token in sentence.tokens), *heading]
    for question, about in contents.questions:
        starts = [sentence.start for sentence in about]
        question.at, question.gap = max(starts), max(starts) - min(starts)
    return asked_row(tokens, [question for question, _ in contents.questions])


def _filler(rng: np.random.Generator, writer: _Writer, room: int) -> list[_Sentence]:
    """Clauses of `room` tokens together; the first is cut at its beginning."""
    backwards: list[_Sentence] = []
    while room > 0:
        tokens = writer.write(contract_text.clause(rng))[-room:]
        backwards.append(_Sentence(tokens))
        room -= len(tokens)
    return backwards[::-1]


def _placed(
    rng: np.random.Generator, filler: list[_Sentence], contents: _Contents, largest_gap: int
) -> list[_Sentence]:
    line = list(filler)
    for group in contents.groups:
        places = np.sort(rng.integers(1, len(line) + 1, len(group)))  # never before the clause that is cut
        for place, sentence in zip(places[::-1], group[::-1], strict=True):
            line.insert(int(place), sentence)
    for first, second in contents.pairs:
        lengths = np.asarray([len(sentence.tokens) for sentence in line])
        width = len(first.tokens)
        most = max(width, min(largest_gap, int(lengths.sum()) // 2))
        between = np.exp(rng.uniform(np.log(width), np.log(most))) - width
        after = lengths[::-1].cumsum()[::-1]
        places = np.flatnonzero(after[1:] >= between) + 1
        place = int(rng.choice(places)) if len(places) else 1
        stops = np.concatenate([[0], lengths[place:].cumsum()])
        other = place + int(np.abs(stops[stops <= most - width] - between).argmin())
        line.insert(other, second)
        line.insert(place, first)
    return line
