"""Sequential sampling: nothing is asked in vain, the level is spent once, and what is observed can be asked on."""

import dataclasses

import numpy as np
import population
import pytest

from rope_jax.diagnosis.verdict.decide import decide
from rope_jax.diagnosis.verdict.sampling import ask_on, joined, number_of_looks, share_of_level


class World:
    """Parts of the contexts of a population, and what was asked of them."""

    def __init__(self, *, contexts=20, seed=0, **made):
        self.people, self.contexts, self.seed, self.asked = population.population(**made), contexts, seed, []

    def part(self, number):
        return self.people.sample(np.random.default_rng([self.seed, number]), self.contexts, 32)

    def __call__(self, number, open_):
        self.asked.append((number, tuple(open_)))
        part = self.part(number)
        return dataclasses.replace(part, changed={name: part.changed[name] for name in open_}, corners={})

    def verdict(self, looks=4, first=None):
        return ask_on(self.part(0) if first is None else first, self, looks=looks)


@pytest.mark.parametrize("looks", [1, 2, 4, 6])
def test_analyses_spend_the_level_once(looks):
    assert sum(share_of_level(2**k, looks) for k in range(looks)) == pytest.approx(1)
    assert number_of_looks(20, 20 * 2 ** (looks - 1)) == looks


def test_joined_evidence_is_that_of_all_contexts():
    world = World()
    both = joined(world.part(0), world.part(1))
    for reach in ("short", "long"):
        parts = [world.part(k).changed["ntk + none"].log_odds[reach]["order"] for k in (0, 1)]
        np.testing.assert_array_equal(
            both.changed["ntk + none"].log_odds[reach]["order"], np.concatenate(parts, axis=1)
        )
    assert both.as_deployed.loss["long"].shape == (1, 64)


def test_a_verdict_that_is_settled_asks_no_change_again():
    world = World(contexts=60)
    verdict = world.verdict()
    assert verdict.settled
    assert verdict.first == "scale by llama3"
    assert all(open_ == () for _, open_ in world.asked)  # only whether retrieval is kept was asked on
    assert verdict.regression.answer == "yes"


def test_a_close_second_is_asked_on_and_what_is_out_is_not():
    world = World(gains={"ntk + none": 0.3, "none + alibi": -1.6, "llama3 + alibi": 0.42})
    verdict = world.verdict()
    assert world.asked[0] == (1, ("llama3 + alibi", "ntk + none"))
    assert verdict.first == "scale by llama3"
    contexts = {change.configuration: change.contexts for change in verdict.changes}
    assert contexts["none + alibi"] == 20 < contexts["llama3 + alibi"] == contexts["ntk + none"]


def test_equal_changes_are_asked_on_to_the_last_analysis_and_left_open():
    world = World(gains={"ntk + none": 0.3, "none + alibi": -1.6, "llama3 + alibi": 0.3})
    verdict = world.verdict(looks=3)
    assert [number for number, _ in world.asked] == [1, 2, 3]
    assert verdict.contexts == 80
    assert verdict.confidence == pytest.approx(0.975)
    assert not verdict.settled


def test_one_analysis_is_the_verdict_on_the_first_part():
    world = World()
    assert world.verdict(looks=1) == decide(world.part(0))
    assert world.asked == []


def test_an_observed_deployment_is_asked_on_where_nothing_more_was_observed():
    """Further contexts were not observed: changes go on over the exact run, and what was observed stays."""
    gains = {"ntk + none": 0.3, "none + alibi": -1.6, "llama3 + alibi": 0.42}
    world = World(gains=gains)
    part = world.part(0)
    first = dataclasses.replace(part, as_deployed=part.changed["none + alibi"], exact=part.as_deployed)
    verdict = world.verdict(first=first)
    assert verdict.first == "repair"
    assert verdict.contexts > 20
    assert {change.configuration: change.contexts for change in verdict.changes}["llama3 + alibi"] > 20
    assert verdict.rankings["together"].places[0].option == "3"
    assert verdict.implementation.repair["order"].log_odds.mean > 1


@pytest.mark.slow
@pytest.mark.usefixtures("without_type_checks")
def test_analyses_err_no_more_often_than_one_would():
    """Two changes that are equal: either is called settled no more often than in one analysis of the same level."""
    gains = {"ntk + none": 0.3, "none + alibi": -1.6, "llama3 + alibi": 0.3}
    settled = [World(gains=gains, seed=seed).verdict().settled for seed in range(120)]
    assert np.mean(settled) <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 120)  # either way round, at 95 % one-sided
