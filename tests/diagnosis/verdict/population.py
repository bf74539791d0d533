"""A made-up population of contexts: what configurations answer to them, as correlated and as clipped as real answers.

Every question has a latent log-odds: a part of its context, a part of its own, both the same in all configurations, and
a part of the configuration; answers are those cut off at 4.6 nats. One number a task is shifted until the population
mean of the clipped values is the one asked for, so that gaps between options are exact.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from rope_jax.diagnosis.evaluation.panel import Evidence, Option, Panel

LIMIT = 4.6
QUESTIONS = {"retrieval": 6, "order": 4, "binding": 8}
USED = ("retrieval", "binding", "order")
OPTIONS = (
    Option("1", "drop the bias", "ntk + none"),
    Option("2", "undo the scaling", "none + alibi"),
    Option("3", "scale by llama3", "llama3 + alibi"),
)
GAINS = {"ntk + none": 0.05, "none + alibi": -1.6, "llama3 + alibi": 0.42}
"""Of order and binding, nats, as measured once."""


def each(panel: Panel, change: Callable[[np.ndarray], np.ndarray]) -> Panel:
    """Returns a panel with every array changed."""

    def of(values):
        return {key: of(value) if isinstance(value, dict) else change(value) for key, value in values.items()}

    return Panel(of(panel.log_odds), of(panel.accuracy), of(panel.loss))


def clipped(rng: np.random.Generator, shared: np.ndarray, mean: float, own: float = 0.8) -> np.ndarray:
    """Returns `[contexts, questions]` of clipped log-odds with the population mean asked for."""
    latent = shared + own * rng.standard_normal(shared.shape)
    low, high = -20.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(latent + middle, -LIMIT, LIMIT).mean() < mean else (low, middle)
    return np.clip(latent + low, -LIMIT, LIMIT)


@dataclasses.dataclass(frozen=True)
class Population:
    """Log-odds `[contexts, questions]` by configuration, reach and task; losses `[rows]` by configuration and reach."""

    log_odds: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
    loss: Mapping[str, Mapping[str, np.ndarray]]
    options: tuple[Option, ...]

    def panel(self, name: str, contexts: np.ndarray, rows: np.ndarray) -> Panel:
        """Returns what a configuration answers to a sample of contexts and rows."""
        odds: dict = {}
        right: dict = {}
        for reach, of_task in self.log_odds[name].items():
            odds[reach] = {task: values[contexts].mean(1)[None] for task, values in of_task.items()}
            right[reach] = {task: (values[contexts] > 0).mean(1)[None] for task, values in of_task.items()}
            order = of_task["order"][contexts]
            for way, part in (("first", order[:, ::2]), ("last", order[:, 1::2])):
                odds[reach][f"order, {way} asked"] = part.mean(1)[None]
                right[reach][f"order, {way} asked"] = (part > 0).mean(1)[None]
        return Panel(odds, right, {reach: values[rows][None] for reach, values in self.loss[name].items()})

    def evidence(self, contexts: np.ndarray, rows: np.ndarray) -> Evidence:
        """Returns the evidence of a sample."""
        panels = {name: self.panel(name, contexts, rows) for name in self.log_odds}
        return Evidence(
            deployed="ntk + alibi",
            as_deployed=panels["ntk + alibi"],
            exact=None,
            original=panels["none + none"],
            options=self.options,
            changed={option.configuration: panels[option.configuration] for option in self.options},
            corners={
                frozenset(): panels["none + none"],
                frozenset({"scaling"}): panels["ntk + none"],
                frozenset({"bias"}): panels["none + alibi"],
                frozenset({"scaling", "bias"}): panels["ntk + alibi"],
            },
            used=USED,
            faults={},
            nearest={},
        )

    def sample(self, rng: np.random.Generator, contexts: int = 20, rows: int = 64) -> Evidence:
        """Returns the evidence of a random sample, drawn with replacement."""
        size = len(self.log_odds["ntk + alibi"]["long"]["order"])
        texts = len(self.loss["ntk + alibi"]["long"])
        return self.evidence(rng.integers(0, size, contexts), rng.integers(0, texts, rows))

    def everything(self) -> Evidence:
        """Returns the evidence of the whole population: its means are the truth."""
        size = len(self.log_odds["ntk + alibi"]["long"]["order"])
        return self.evidence(np.arange(size), np.arange(len(self.loss["ntk + alibi"]["long"])))


def population(
    seed: int = 0,
    *,
    gains: Mapping[str, float] | None = None,
    options: tuple[Option, ...] = OPTIONS,
    size: int = 400,
    failing: Mapping[str, int] | None = None,
) -> Population:
    """Returns a population.

    Args:
      seed: of everything.
      gains: of order and binding, by configuration, nats.
      options: changes of "ntk + alibi".
      size: contexts, and rows of text.
      failing: by configuration, that one context in so many loses all of its retrieval at the target length.
    """
    rng = np.random.default_rng(seed)
    gains = GAINS if gains is None else gains
    failing = failing or {}
    long_mean = {"order": 1.1, "binding": 1.6, "retrieval": 4.3}
    names = ["none + none", "ntk + alibi", "ntk + none", "none + alibi", *(option.configuration for option in options)]
    log_odds: dict = {name: {} for name in names}
    for reach in ("short", "long"):
        shared = {
            task: 1.0 * rng.standard_normal((size, 1)) + 2.2 * rng.standard_normal((size, count))
            for task, count in QUESTIONS.items()
        }
        for name in dict.fromkeys(names):
            log_odds[name][reach] = {}
            for task in QUESTIONS:
                if reach == "short":
                    mean = 4.3
                elif name == "none + none":
                    mean = -1.0
                else:
                    mean = long_mean[task] + (0 if task == "retrieval" else gains.get(name, 0.0))
                log_odds[name][reach][task] = clipped(rng, shared[task], mean)
            if reach == "long" and name in failing:
                fails = rng.permutation(size)[: size // failing[name]]
                log_odds[name][reach]["retrieval"][fails] = rng.normal(-1.5, 0.5, (len(fails), 6))
    text = {reach: 2.0 + 0.5 * rng.standard_normal(size) for reach in ("short", "long")}
    rise = {"none + none": (0.0, 1.5), "ntk + alibi": (0.03, 0.4), "none + alibi": (0.01, 1.2)}
    loss = {
        name: {
            reach: text[reach] + by + 0.05 * rng.standard_normal(size)
            for reach, by in zip(("short", "long"), rise.get(name, (0.04, 0.35)), strict=True)
        }
        for name in names
    }
    return Population(log_odds, loss, options)
