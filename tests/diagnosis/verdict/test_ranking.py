"""The ranking: the true first option is named first, P(first) means what it says, and no family is favoured."""

import dataclasses

import numpy as np
import population
import pytest
from population import GAINS, OPTIONS, USED, each

from rope_jax.diagnosis.evaluation.panel import Option
from rope_jax.diagnosis.verdict.contrasts import Contrasts
from rope_jax.diagnosis.verdict.ranking import contest

SIMULATED = pytest.mark.usefixtures("without_type_checks")
CONTRASTS = Contrasts(USED, 0.95)
TRANSFORMS = tuple(Option("3", f"scale by rule {k}", f"rule{k} + alibi") for k in range(6))


def ranked(evidence, lost=None):
    return contest(evidence, lost or {}, CONTRASTS, retrieval_margin=0.3).rankings


def shares(draws, contexts, seed=1):
    """Returns how often each option is named first, over draws from the population of 400."""
    people, rng = population.population(), np.random.default_rng(seed)
    firsts = [
        [ranking.places[0].option for ranking in ranked(people.sample(rng, contexts)).values()] for _ in range(draws)
    ]
    return {by: np.mean([first[k] == "3" for first in firsts]) for k, by in enumerate(("order", "binding", "together"))}


@SIMULATED
def test_the_true_first_option_is_named_first_at_twenty_contexts():
    found = shares(40, 20)
    assert found["together"] >= 0.97
    assert found["binding"] >= 0.97  # eight questions a context
    assert found["order"] >= 0.9  # four


@SIMULATED
@pytest.mark.slow
def test_the_true_first_option_is_named_first_in_most_of_many_draws():
    assert shares(400, 20)["together"] >= 0.97
    assert shares(200, 8)["together"] >= 0.95


def calibration(populations, draws, contexts, spread):
    """Returns P(first) and whether it was first, of every option, where gaps are drawn anew for each population."""
    rng, said, held = np.random.default_rng(9), [], []
    for seed in range(populations):
        gains = spread * rng.standard_normal(3)
        names = [option.configuration for option in OPTIONS]
        people = population.population(100 + seed, gains=dict(zip(names, gains, strict=True)))
        best = OPTIONS[int(gains.argmax())].number
        for _ in range(draws):
            for place in ranked(people.sample(rng, contexts))["together"].places:
                said.append(place.probability_first)
                held.append(place.option == best)
    return np.array(said), np.array(held)


def bins_of(said, held):
    which = np.minimum((5 * said).astype(int), 4)
    return [(said[which == k].mean(), held[which == k].mean(), int((which == k).sum())) for k in range(5)]


@SIMULATED
def test_the_probability_of_being_first_is_calibrated():
    said, held = calibration(20, 4, 20, 0.2)
    for expected, observed, count in bins_of(said, held):
        assert abs(expected - observed) <= 0.05 + 3 * np.sqrt(0.25 / count)
    assert abs(said.mean() - held.mean()) < 1e-9  # each adds up to one over the options


@SIMULATED
@pytest.mark.slow
@pytest.mark.parametrize("contexts", [8, 20])
def test_the_probability_of_being_first_is_calibrated_within_five_points(contexts):
    """Gaps of a tenth to four tenths of a nat; five bins, each within 5 points beside the noise of the simulation."""
    parts = [calibration(100, 12, contexts, spread) for spread in (0.1, 0.2, 0.4)]
    said, held = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    for expected, observed, count in bins_of(said, held):
        # Twelve draws of one population err together.
        assert abs(expected - observed) <= 0.05 + 2 * np.sqrt(0.25 / (count / 4))


@SIMULATED
def test_a_family_of_equal_changes_gains_what_one_of_them_does():
    """The largest of six means exceeds the truth; what is valued where it was not chosen does not."""
    equal = {option.configuration: 0.2 for option in TRANSFORMS}
    people = population.population(3, gains=GAINS | equal, options=(OPTIONS[0], *TRANSFORMS))
    rng, gains, largest = np.random.default_rng(2), [], []
    for _ in range(60):
        evidence = people.sample(rng, 20)
        (family,) = (place for place in ranked(evidence)["together"].places if place.option == "3")
        gains.append(family.gain.mean)
        largest.append(
            max(
                CONTRASTS.together(evidence.changed[o.configuration], evidence.as_deployed).values.mean()
                for o in TRANSFORMS
            )
        )
        assert family.gain.low < family.gain.mean < family.gain.high
    assert np.mean(largest) > 0.25
    assert np.mean(gains) == pytest.approx(0.2, abs=0.03)


@SIMULATED
def test_six_equal_transforms_are_no_likelier_first_than_a_single_change_that_is_as_good():
    equal = {option.configuration: 0.2 for option in (OPTIONS[0], *TRANSFORMS)}
    people = population.population(4, gains=GAINS | equal, options=(OPTIONS[0], *TRANSFORMS))
    rng = np.random.default_rng(2)
    said = [
        next(
            place.probability_first
            for place in ranked(people.sample(rng, 20))["together"].places
            if place.option == "3"
        )
        for _ in range(60)
    ]
    assert np.mean(said) == pytest.approx(0.5, abs=0.12)


def test_rankings_use_the_same_resamples_and_add_up_to_one():
    evidence = population.population().sample(np.random.default_rng(0), 20)
    one, two = ranked(evidence), ranked(evidence)
    assert one == two
    for ranking in one.values():
        assert sum(place.probability_first for place in ranking.places) == pytest.approx(1)
        assert sum(ranking.weights.values()) == 1
        chances = [place.probability_first for place in ranking.places]
        assert chances == sorted(chances, reverse=True)


def test_only_retrieval_that_is_significantly_lost_puts_a_change_behind_others():
    evidence = population.population().sample(np.random.default_rng(0), 20)
    lost = ranked(evidence, {"llama3 + alibi": "yes"})["together"].places
    assert [place.option for place in lost] == ["1", "2", "3"]
    assert lost[-1].demoted
    assert lost[-1].probability_first == 0
    assert not lost[0].demoted
    assert ranked(evidence, {"llama3 + alibi": "not resolved"})["together"].places[0].option == "3"
    every = ranked(evidence, {option.configuration: "yes" for option in OPTIONS})["together"].places
    assert [place.option for place in every] == ["3", "1", "2"]  # among equals the gain decides again


def test_a_family_is_judged_by_its_changes_that_keep_retrieval():
    gains = GAINS | {"rule0 + alibi": 0.3}
    people = population.population(gains=gains, options=(*OPTIONS, TRANSFORMS[0]))
    first = ranked(people.sample(np.random.default_rng(0), 20), {"llama3 + alibi": "yes"})["together"].places[0]
    assert (first.option, first.change, first.demoted) == ("3", "scale by rule 0", "")


def test_changes_outside_the_three_are_placed_beside_them():
    outside = Option("", "undo both", "none + none")
    sharper = Option("", "sharpen the logits", "ntk + alibi, sharpened")
    people = population.population(gains=GAINS | {"ntk + alibi, sharpened": 1.5}, options=(*OPTIONS, outside, sharper))
    ranking = ranked(people.sample(np.random.default_rng(0), 20))["together"]
    assert [place.option for place in ranking.places] == ["3", "1", "2"]
    assert [place.option for place in ranking.outside] == ["sharpen the logits", "undo both"]
    assert ranking.outside[0].probability_first > 0.99  # of beating all of the three
    assert sum(place.probability_first for place in ranking.places) == pytest.approx(1)


def test_a_change_that_was_not_asked_on_is_ranked_by_the_contexts_it_shares():
    evidence = population.population().sample(np.random.default_rng(0), 40)
    short = evidence.changed["none + alibi"]
    fewer = each(short, lambda values: values[:, :12])
    found = ranked(dataclasses.replace(evidence, changed={**evidence.changed, "none + alibi": fewer}))["together"]
    assert [place.option for place in found.places] == ["3", "1", "2"]
    alone = CONTRASTS.together(fewer, evidence.as_deployed)
    assert alone.units == 12
    assert found.places[-1].gain.mean == pytest.approx(alone.values.mean())


def test_one_context_tells_no_spread_and_every_option_is_as_likely():
    places = ranked(population.population().sample(np.random.default_rng(0), 1))["together"].places
    assert {place.probability_first for place in places} == {1 / 3}
    assert all(place.gain.low is None for place in places)


def test_text_ranks_where_nothing_was_learned():
    evidence = population.population().sample(np.random.default_rng(0), 20)
    rankings = contest(evidence, {}, Contrasts((), 0.95), retrieval_margin=0.3).rankings
    assert set(rankings) == {"long loss of text"}
    assert rankings["long loss of text"].places[-1].option == "2"
