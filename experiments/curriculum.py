"""What a test model is trained on, phase after phase: copied text first, then contexts in longer and longer rows."""

import concurrent.futures
import dataclasses
import math
import multiprocessing
from collections.abc import Iterator

import numpy as np

from rope_jax.diagnosis.tasks import contexts

KINDS = ("nothing", *contexts.PROBES, "copy")
"""What a next token is scored as."""

SHORTEST = 112
"""Tokens of the shortest row of contexts."""

_FIRST = 128  # what all tasks are learned at before rows grow
_STEPWISE = 256  # up to this length rows of several lengths are drawn; each length is a program of its own
_GROWTH = 4  # most times that rows grow from one phase to the next
_AHEAD = 4  # batches that every worker may be ahead


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the curriculum.

    Attributes:
      lengths: of rows; each step draws one.
      tokens: of a step.
      trained: the trained length that the base of the phase is matched to.
      copied: share of rows that are repeated text; the others are contexts.
      steps: most steps.
      until: accuracy at which the phase ends early; the rate falls in the last third of a phase that never does.
      judged: what that accuracy is the least of.
      counts: facts and questions of a context; each step draws one.
    """

    lengths: tuple[int, ...]
    tokens: int
    trained: int
    copied: float
    steps: int
    until: float | None = None
    judged: tuple[str, ...] = ("copy",)
    counts: tuple[contexts.Counts, ...] = ()

    @property
    def reach(self) -> int:
        """Most tokens between two events, and from a copy back to its source, where rows are long enough."""
        return max(_FIRST, self.trained // 2)


def asked_of(markers: int, length: int = _FIRST) -> contexts.Counts:
    """Returns the facts and questions of a context that a model trained at `length` is to know."""
    return contexts.Counts(markers=markers, smallest_gap=max(contexts.SMALLEST_GAP, length // 16))


def curriculum(length: int, steps: int, asked: contexts.Counts, tokens: int = 5376) -> list[Phase]:
    """Returns the phases: copying, then retrieval and binding, then order, first in short contexts.

    What is learned in 128 tokens is known in 256 within a few steps, at the base of that length, and costs half.
    Order comes last and slowest: half of the steps ask for twice as many pairs of events, and for less of the rest.

    Args:
      length: `L`, the longest row.
      steps: of the last phase.
      asked: what the trained model is to know.
      tokens: of a step; four times as many where rows are longer than 256, which hold fewer answers each.
    """
    first = min(length, _FIRST)
    one = asked_of(1)
    copied = tokens * 16 // 21
    phases = [
        Phase((32,), copied, first, 1.0, 1500, until=0.75),
        Phase((64,), copied, first, 1.0, 1500, until=0.93),
        Phase((SHORTEST,), tokens, first, 0.2, 2000, until=0.9, judged=("binding",), counts=(one,)),
    ]
    if length > first:
        # Which way is asked turns the answer round: from both at once nothing is learned before both are.
        forward = dataclasses.replace(one, first_pairs=4, last_pairs=0)
        for asked_here in (forward, one):
            counts = (asked_here, ordered(asked_here))
            phases.append(
                Phase((SHORTEST, first), tokens, first, 0.15, 4000, until=0.9, judged=("order",), counts=counts)
            )
    trained = first
    while _GROWTH * trained < length:
        trained *= _GROWTH
        known = asked_of(1, trained)
        phases.append(
            Phase(
                (trained,),
                4 * tokens,
                trained,
                0.15,
                300,
                until=0.9,
                judged=("retrieval", "binding", "order"),
                counts=(known,),
            )
        )
    if length > _STEPWISE:
        return [*phases, Phase((length,), 4 * tokens, length, 0.15, steps, counts=(asked, ordered(asked)))]
    lengths = tuple(max(SHORTEST, length * eighths // 8) for eighths in (6, 7, 8))
    return [*phases, Phase(lengths, tokens, length, 0.15, steps, counts=(asked, ordered(one)))]


def ordered(asked: contexts.Counts) -> contexts.Counts:
    """Returns counts that ask more about order and less about the rest."""
    more = {"first_pairs": 2 * asked.first_pairs, "last_pairs": 2 * asked.last_pairs}
    return dataclasses.replace(asked, pairs=3, bind_questions=4, **more)


def matched_base(length: int) -> float:
    """Returns the base at which `length` tokens span as much of the frequencies as 4,096 do at base 10,000."""
    return math.exp(math.log(length / (2 * math.pi)) * math.log(10000.0) / math.log(4096 / (2 * math.pi)))


def batch_of(rng: np.random.Generator, phase: Phase, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens `[rows, length]` and what each next token is scored as, `[rows, length - 1]`."""
    rows = phase.tokens // length
    copies = round(rows * phase.copied)
    tokens, kinds = [], []
    if copies:
        text = contexts.repeated_text(rng, rows=copies, length=length, farthest=min(phase.reach, length - 16))
        tokens.append(text.tokens)
        kinds.append((text.predictable * KINDS.index("copy")).astype(np.int32))
    if rows > copies:
        counts = phase.counts[int(rng.integers(len(phase.counts)))]
        asked = contexts.contexts(rng, rows=rows - copies, length=length, largest_gap=phase.reach, counts=counts)
        tokens.append(asked.tokens)
        answered = np.zeros((rows - copies, length - 1), np.int32)
        np.put_along_axis(answered, asked.position, asked.probe + 1, axis=1)
        kinds.append(answered)
    return np.concatenate(tokens), np.concatenate(kinds)


class Batches:
    """The batches of a training, each from a seed of its own, so that it is the same whoever makes it.

    Args:
      seed: words of the seed of all batches.
      workers: processes that make them ahead; 0 to make each when it is asked for.
    """

    def __init__(self, *seed: int, workers: int = 0) -> None:
        self._seed = seed
        self._ahead = _AHEAD * workers
        # Not forked: the devices' threads would be copied half.
        self._pool = (
            concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
            if workers
            else None
        )

    def of_phase(self, number: int, phase: Phase) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the batches of a phase, step by step."""
        made = [(*self._seed, number, step) for step in range(phase.steps)]
        if self._pool is None:
            yield from (_seeded(phase, seed) for seed in made)
            return
        waiting = [self._pool.submit(_seeded, phase, seed) for seed in made[: self._ahead]]
        try:
            for step in range(phase.steps):
                yield waiting.pop(0).result()
                if step + self._ahead < len(made):
                    waiting.append(self._pool.submit(_seeded, phase, made[step + self._ahead]))
        finally:  # a phase may end early
            for one in waiting:
                one.cancel()

    def close(self) -> None:
        """Stops the workers."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _seeded(phase: Phase, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return batch_of(rng, phase, int(rng.choice(phase.lengths)))
