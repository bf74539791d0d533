"""Every printed interval of a verdict holds the truth as often as it says, on draws from a population of 400."""

from collections import defaultdict

import numpy as np
import population
import pytest
from population import GAINS, OPTIONS

from rope_jax.diagnosis.evaluation.panel import Option
from rope_jax.diagnosis.verdict.decide import decide

pytestmark = pytest.mark.usefixtures("without_type_checks")  # thousands of verdicts
FAMILY = (*OPTIONS, Option("3", "scale by yarn's map", "yarn_map + alibi"), Option("", "undo both", "none + none"))
CEILING = ("retrieval", "short_accuracy")
"""What is at its ceiling: where no context failed, intervals are as wide as the rule of three, on the safe side."""


def printed(verdict):
    """Returns every interval of a verdict by what it is of."""
    found = {"pull": verdict.regression.pull}
    for task, fall in verdict.regression.falls.items():
        found |= {("fall", task, "log-odds"): fall.log_odds, ("fall", task, "accuracy"): fall.accuracy}
    for change in verdict.changes:
        name = change.configuration
        found |= {("together", name): change.together.log_odds, ("together, accuracy", name): change.together.accuracy}
        for task, gain in change.gain.items():
            found |= {("gain", name, task, "log-odds"): gain.log_odds, ("gain", name, task, "accuracy"): gain.accuracy}
        for against in ("against_deployed", "against_original"):
            price = getattr(change, against)
            for measure in ("short_accuracy", "short_loss", "long_loss"):
                found[against, name, measure] = getattr(price, measure)
    for task, parts in verdict.cause.by_task.items():
        found |= {("cause", task, part): value for part, value in parts.items()}
    for by, ranking in verdict.rankings.items():
        found |= {("place", by, place.option): place.gain for place in (*ranking.places, *ranking.outside)}
    return found


def held(people, draws, contexts=20, rows=64, seed=1):
    """Returns, by interval, in which draws it held the truth."""
    whole, rng = decide(people.everything()), np.random.default_rng(seed)
    truth = {what: value.mean for what, value in printed(whole).items()}
    of_change = {
        (by, change.words): (change.together if by == "together" else change.gain[by]).log_odds.mean
        for change in whole.changes
        for by in ("order", "binding", "together")
    }
    result = defaultdict(list)
    for _ in range(draws):
        verdict = decide(people.sample(rng, contexts, rows))
        for by, ranking in verdict.rankings.items():  # a place is of the change that it names
            truth |= {("place", by, one.option): of_change[by, one.change] for one in ranking.places}
        for what, value in printed(verdict).items():
            result[what].append(value.low - 1e-9 <= truth[what] <= value.high + 1e-9)
    return result


def at_ceiling(what):
    return any(part in CEILING for part in what)


POPULATIONS = {
    "as measured": {"gains": GAINS | {"yarn_map + alibi": 0.38}},
    "one context in twelve fails": {"gains": GAINS | {"yarn_map + alibi": 0.2}, "failing": {"llama3 + alibi": 12}},
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_printed_intervals_hold_as_often_as_they_say(name):
    """All of them together; each by itself in the larger simulation."""
    found = held(population.population(options=FAMILY, **POPULATIONS[name]), 30)
    usual = [np.mean(values) for what, values in found.items() if not at_ceiling(what)]
    assert 0.93 <= np.mean(usual) <= 0.97
    assert min(np.mean(values) for what, values in found.items() if at_ceiling(what)) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", POPULATIONS)
def test_each_printed_interval_holds_as_often_as_it_says(name):
    draws = 800
    found = held(population.population(options=FAMILY, **POPULATIONS[name]), draws)
    noise = 2.5 * np.sqrt(0.95 * 0.05 / draws)
    same = ("against_original", "none + none")  # the original by another name: zero, as is known
    for what, values in found.items():
        if what[:2] == same:
            assert np.mean(values) == 1, what
            continue
        assert np.mean(values) >= 0.93 - noise, what
        assert at_ceiling(what) or np.mean(values) <= 0.97 + noise, what
