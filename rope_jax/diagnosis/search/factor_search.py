"""A search for better factors, one a rotary pair: pure evolution, and what it is scored by.

Candidates, their order and their scores follow from the seed and the parents alone, so that a search that was cut off
and one that was not agree to the bit. Source: LongRoPE, Ding et al., arXiv 2402.13753, section 3.2.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float64
from scipy import optimize

from rope_jax import scaling
from rope_jax.biases import Bias
from rope_jax.decoder import Schemes
from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.panel import Panel
from rope_jax.diagnosis.evaluation.probes import ProbeProgram
from rope_jax.diagnosis.evaluation.runs import outcomes_of
from rope_jax.diagnosis.evaluation.schemes import SchemeMaker
from rope_jax.diagnosis.tasks.context_sizes import check_size
from rope_jax.diagnosis.tasks.contexts import Contexts
from rope_jax.diagnosis.tasks.subject import Reach, Subject
from rope_jax.errors import CheckpointError, InputError, ScalingError
from rope_jax.scaling.registry import SCALINGS

BOUND = 4.0
"""The largest factor is this times `s`: the smallest round bound within which all named rules lie."""

PENALTY = 100.0
"""Nats for each unit of short accuracy lost beyond the margin: one point more costs one nat."""

FRESH = 4
"""Fresh contexts for each one that is searched on."""

Factors = Float64[np.ndarray, " pairs"]
Asked = Mapping[Reach, Contexts]
"""Contexts of the trained and of the target length."""

# Streams of the seed; 0 and 1 belong to the diagnosis, so that its items are not those of the search.
_SEARCHED, _FRESH, _EVOLVED = 2, 3, 4
_REDRAWS = 100


def named_rules() -> tuple[str, ...]:
    """Returns the rules that a search starts from and is compared with: all maps without a temperature."""
    return tuple(name for name, one in SCALINGS.items() if one.kind in ("none", "base", "map"))


def items_of(subject: Subject, *, rows: int, seed: int) -> tuple[Asked, Asked]:
    """Returns what is searched on and what the result is judged on, `rows` and `FRESH * rows` contexts a length.

    Raises:
      InputError: if they are too many to fit into memory.
    """
    length, target = subject.trained_length, subject.target_length
    check_size(rows=(1 + FRESH) * rows, lengths=[length, target])

    def drawn(stream: int, count: int) -> Asked:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))
        lengths: dict[Reach, int] = {"short": length, "long": target}
        return {reach: subject.more_contexts(rng, rows=count, length=n) for reach, n in lengths.items()}

    return drawn(_SEARCHED, rows), drawn(_FRESH, FRESH * rows)


class FactorRuns:
    """Asks one model under any factors, with or without a bias, through one compiled program a length.

    Args:
      subject: the model and its lengths.
      rows: contexts a call of the program takes.

    Attributes:
      named: the factors of every one of `named_rules` that has a meaning on this model.
      omitted: why the others have none.
      largest: the largest factor a candidate may have, `BOUND * s`.
      maker: of the model's schemes, for fitting a bias.

    Raises:
      InputError: if some rotary pair does not rotate, so that it has no factor.
    """

    def __init__(self, subject: Subject, *, rows: int) -> None:
        self._rows, self._origin = rows, subject.checkpoint.origin
        self._program = ProbeProgram(subject.checkpoint.model)
        self.largest = BOUND * subject.factor
        self.maker = SchemeMaker(
            positions=subject.checkpoint.positions,
            layout=subject.checkpoint.layout,
            phase="exact",
            trained_length=subject.trained_length,
            target_length=subject.target_length,
        )
        trained = self.maker.original().rotary
        if not (trained.inverse_frequencies > 0).all():
            raise InputError(f"{self._origin}: some rotary pairs do not rotate: they have no factor to search for")
        self.named: dict[str, Factors] = {}
        self.omitted: dict[str, str] = {}
        for name in named_rules():
            try:
                scaled = self.maker.rule(name)(trained)
            except ScalingError as error:
                self.omitted[name] = str(error)
                continue
            factors = trained.inverse_frequencies / scaled.inverse_frequencies
            self.named[name] = admissible(factors, largest=self.largest)

    @property
    def compilations(self) -> int:
        """Programs compiled so far: one a length, whatever the factors, the bias and the contexts."""
        return self._program.compilations

    def unchanged(self, items: Asked) -> Panel:
        """Returns the outcomes of the model as trained."""
        return self._outcomes(self.maker(self.maker.original()), items)

    def __call__(self, factors: Factors, items: Asked, *, bias: Bias | None) -> Panel:
        """Returns the outcomes under `theta'_i = theta_i / f_i` and a bias.

        Raises:
          CheckpointError: if the model overflows float32 under them.
        """
        rule = scaling.per_pair(factors=factors.tolist())
        return self._outcomes(self.maker(dataclasses.replace(self.maker.original(), rule=rule, bias=bias)), items)

    def _outcomes(self, schemes: Schemes, items: Asked) -> Panel:
        answers = {}
        for reach, contexts in items.items():
            starts = range(0, len(contexts.tokens), self._rows)
            parts = [Contexts(*(column[at : at + self._rows] for column in contexts)) for at in starts]
            logits = np.concatenate([self._program(schemes, part) for part in parts])
            if not np.isfinite(logits).all():
                raise CheckpointError(f"{self._origin}: a scheme gives values beyond float32")
            answers[reach] = probes.answers(logits, contexts)
        return Panel(*outcomes_of([answers], items), {})


def objective(
    panel: Panel, unchanged: Panel, used: tuple[str, ...], *, margin: float
) -> Float64[np.ndarray, " contexts"]:
    r"""Returns what the search makes large, nats, as one number a context whose mean is the objective.

    .. math:: J(f) = \frac{1}{N} \sum_{n=1}^N \bar o_n(f) - \lambda \max\big(0,\; A_0 - A(f) - m\big)

    with `o_n` the clipped log-odds of long context `n`, mean over the tasks used, each task weighing alike; `A` the
    accuracy of the same tasks at the trained length, `A_0` that of the unchanged model; `lambda = PENALTY`. Where the
    penalty is at work, short context `n` carries its share of it; the two are independent draws.

    Args:
      panel: outcomes of a candidate.
      unchanged: of the model as trained, on the same contexts.
      used: tasks that the unchanged model has learned.
      margin: `m`, accuracy at the trained length that may be lost.
    """
    gained = mean_of(panel, "long", used)
    excess = short_loss(panel, unchanged, used) - margin
    return gained - PENALTY * excess if excess.mean() > 0 else gained


def short_loss(panel: Panel, unchanged: Panel, used: tuple[str, ...]) -> Float64[np.ndarray, " contexts"]:
    """Returns the fall of accuracy at the trained length against the unchanged model, a number a context."""
    return mean_of(unchanged, "short", used, accuracy=True) - mean_of(panel, "short", used, accuracy=True)


def mean_of(
    panel: Panel, reach: Reach, used: tuple[str, ...], *, accuracy: bool = False
) -> Float64[np.ndarray, " contexts"]:
    """Returns the mean log-odds in nats, or accuracy, of the tasks used, each weighing alike, a number a context."""
    outcomes = (panel.accuracy if accuracy else panel.log_odds)[reach]
    return np.mean([outcomes[task][0] for task in used], axis=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Scores factors on one set of contexts, remembering what it was asked before.

    Attributes:
      runs: the model.
      items: the contexts.
      unchanged: outcomes of the model as trained on them.
      used: tasks that it has learned.
      margin: accuracy at the trained length that may be lost.
      bias: what every candidate runs with.
    """

    runs: FactorRuns
    items: Asked
    unchanged: Panel
    used: tuple[str, ...]
    margin: float
    bias: Bias | None
    _known: dict[bytes, float] = dataclasses.field(default_factory=dict, init=False)

    def outcomes(self, factors: Factors) -> Panel:
        """Returns all that a candidate answered."""
        return self.runs(factors, self.items, bias=self.bias)

    def score(self, factors: Factors) -> float:
        """Returns the objective of a candidate, nats."""
        key = factors.tobytes()
        if key not in self._known:
            rows = objective(self.outcomes(factors), self.unchanged, self.used, margin=self.margin)
            self._known[key] = float(rows.mean())
        return self._known[key]


def admissible(factors: Factors, *, largest: float) -> Factors:
    r"""Returns the nearest factors that a candidate may have; factors that it may have come back as they are.

    .. math:: 1 \le f_0 \le f_1 \le \dots \le f_{d/2-1} \le f_{max}

    Nearest is meant in squared differences of `ln f`: slower pairs are never interpolated less than faster ones.

    Args:
      factors: one a pair, fastest pair first, each above zero.
      largest: `f_max`.
    """
    if (factors >= 1).all() and (factors <= largest).all() and (np.diff(factors) >= 0).all():
        return factors
    # The cut-off of the nearest sequence that does not fall is the nearest one within the bounds.
    return np.clip(np.exp(optimize.isotonic_regression(np.log(factors)).x), 1.0, largest)


@dataclasses.dataclass(frozen=True, eq=False)
class Population:
    """All that a search carries from one generation to the next.

    Attributes:
      generation: 0 for the start.
      factors: the candidates, best first.
      scores: of each, nats.
      history: of every generation so far: the best and the median score, and how many candidates were scored.
    """

    generation: int
    factors: Float64[np.ndarray, "candidates pairs"]
    scores: Float64[np.ndarray, " candidates"]
    history: tuple[Mapping[str, float], ...]


def evolve(
    score: Callable[[Factors], float],
    named: Mapping[str, Factors],
    *,
    population: int,
    generations: int,
    largest: float,
    seed: int,
    resume: Population | None = None,
    keep: Callable[[Population], None] = lambda population: None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Population:
    """Returns the last generation of a search, best candidate first.

    The first generation is the named factors and offspring of theirs. In every other one the best quarter stays, with
    its scores, and the rest is new: a child of one or two of the best half, cut together at a random pair, then
    changed by a smooth bump in the logarithm, of random place, width and height.

    Args:
      score: of a candidate, nats, the higher the better; the same whenever it is asked for the same.
      named: factors to start from, at most `population` of them.
      population: candidates of a generation.
      generations: after the first.
      largest: the largest factor; see `admissible`.
      seed: of all chance; generation `g` draws from its own stream of it.
      resume: a generation of the same search to go on from.
      keep: called with every finished generation.
      progress: called as work proceeds.
    """
    current = resume
    for generation in range(0 if current is None else current.generation + 1, generations + 1):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_EVOLVED, generation)))
        if current is None:
            parents = np.stack(list(named.values()))
            elders, scores, new = parents[:0], np.empty(0), [*parents]
        else:
            parents, kept = current.factors[: max(population // 2, 1)], max(population // 4, 1)
            elders, scores, new = current.factors[:kept], current.scores[:kept], []
        while len(elders) + len(new) < population:
            new.append(_child(rng, parents, np.stack([*parents, *elders, *new]), largest))
        found = []
        for done, candidate in enumerate(new, 1):
            progress(f"generation {generation}", done, len(new))
            found.append(score(candidate))
        factors, scores = np.stack([*elders, *new]), np.concatenate([scores, found])
        order = np.argsort(-scores, kind="stable")
        line = {"best": float(scores.max()), "median": float(np.median(scores)), "scored": len(new)}
        history = () if current is None else current.history
        current = Population(generation, factors[order], scores[order], (*history, line))
        keep(current)
    assert current is not None
    return current


def _child(rng: np.random.Generator, parents: np.ndarray, known: np.ndarray, largest: float) -> Factors:
    """Returns a candidate that is not among the known ones, as far as one turns up."""
    logs, pairs = np.log(parents), parents.shape[1]
    for _ in range(_REDRAWS):
        mother, father = rng.integers(len(parents), size=2)
        cut = rng.integers(pairs + 1)
        mixed = np.where(np.arange(pairs) < cut, logs[mother], logs[father])
        centre, width = rng.uniform(0, pairs - 1), np.exp(rng.uniform(np.log(0.5), np.log(pairs)))
        # From changes of the whole range of factors down to a thirtieth of it: no step size has to be tuned.
        height = rng.normal() * np.log(largest) / 2 * 10 ** -rng.uniform(0, 1.5)
        bump = height * np.exp(-(((np.arange(pairs) - centre) / width) ** 2) / 2)
        child = admissible(np.exp(mixed + bump), largest=largest)
        if not (known == child).all(axis=1).any():
            break
    return child
