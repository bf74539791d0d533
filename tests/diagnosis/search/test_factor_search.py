"""The search for factors: what a candidate may be, what it is scored by, and that chance comes from the seed alone."""

import dataclasses
import json

import numpy as np
import pytest
from cases import save_bundled_model

from rope_jax import frequencies
from rope_jax.biases import alibi_paper
from rope_jax.diagnosis.evaluation.panel import Panel
from rope_jax.diagnosis.search import factor_search
from rope_jax.diagnosis.search.factor_search import FactorRuns, Population, admissible, evolve, objective
from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.subject import read_bundled_model
from rope_jax.scaling.registry import SCALINGS

USED = ("retrieval", "binding")
LARGEST = 32.0
NAMED = {"none": np.ones(6), "linear": np.full(6, 8.0)}
WANTED = np.log([1.0, 1.0, 1.5, 4.0, 8.0, 12.0])


def closeness(factors):
    return -float(((np.log(factors) - WANTED) ** 2).sum())


def searched(**changed):
    arguments = {"population": 12, "generations": 20, "largest": LARGEST, "seed": 0} | changed
    return evolve(closeness, NAMED, **arguments)


def test_the_nearest_admissible_factors():
    np.testing.assert_array_equal(admissible(np.array([1.0, 2.0, 2.0, 32.0]), largest=LARGEST), [1, 2, 2, 32])
    # Two that are out of order meet halfway, in the logarithm.
    np.testing.assert_allclose(admissible(np.array([2.0, 8.0, 2.0, 64.0]), largest=LARGEST), [2, 4, 4, 32], rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_no_admissible_factors_are_nearer(seed):
    rng = np.random.default_rng(seed)
    given = np.exp(rng.normal(1, 2, 7))
    found = admissible(given, largest=LARGEST)
    assert found[0] >= 1
    assert found[-1] <= LARGEST
    assert (np.diff(found) >= 0).all()
    # The condition of a projection onto a convex set: no way inside leads closer to what was given.
    for _ in range(50):
        other = np.sort(rng.uniform(0, np.log(LARGEST), 7))
        assert (np.log(given) - np.log(found)) @ (other - np.log(found)) <= 1e-9


def test_finds_better_than_what_it_starts_from():
    found = searched()
    assert found.scores[0] > max(closeness(factors) for factors in NAMED.values()) / 10
    assert (np.diff(found.scores) <= 0).all()
    best = [line["best"] for line in found.history]
    assert best == sorted(best)
    assert [line["scored"] for line in found.history] == [12] + 20 * [9]
    assert (found.factors >= 1).all()
    assert (found.factors <= LARGEST).all()
    assert (np.diff(found.factors, axis=1) >= 0).all()
    assert len(np.unique(found.factors, axis=0)) == 12


def test_the_start_holds_every_named_rule():
    start = searched(generations=0).factors
    for factors in NAMED.values():
        assert (start == factors).all(axis=1).any()


def test_one_seed_gives_one_search_and_another_another():
    np.testing.assert_array_equal(searched().factors, searched().factors)
    assert (searched(seed=1).factors != searched().factors).any()


@pytest.mark.parametrize("stopped", [0, 7, 20])
def test_a_search_that_goes_on_is_the_search_that_was_not_stopped(stopped):
    part = searched(generations=stopped)
    state = json.loads(json.dumps([part.factors.tolist(), part.scores.tolist(), list(part.history)]))
    again = Population(stopped, np.array(state[0]), np.array(state[1]), tuple(state[2]))
    on, whole = searched(resume=again), searched()
    np.testing.assert_array_equal(on.factors, whole.factors)
    np.testing.assert_array_equal(on.scores, whole.scores)
    assert on.history == whole.history


def panel(log_odds, accuracy):
    rows = {name: np.array([log_odds]) for name in ("retrieval", "binding", "order")}
    right = {name: np.array([accuracy]) for name in ("retrieval", "binding")}
    return Panel({"short": {}, "long": rows}, {"short": right, "long": {}}, {})


def test_the_objective_by_hand():
    unchanged = panel([0.0, 0.0], [1.0, 0.9])
    free = objective(panel([1.0, 3.0], [0.98, 0.9]), unchanged, USED, margin=0.02)
    np.testing.assert_allclose(free, [1, 3])
    # 0.05 lost, 0.03 of it beyond the margin.
    worse = objective(panel([1.0, 3.0], [0.9, 0.9]), unchanged, USED, margin=0.02)
    assert worse.mean() == pytest.approx(2 - factor_search.PENALTY * 0.03)
    better = objective(panel([1.0, 3.0], [1.0, 1.0]), unchanged, USED, margin=0.02)
    np.testing.assert_allclose(better, [1, 3])


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    directory = save_bundled_model(tmp_path_factory.mktemp("tiny"))
    return read_bundled_model(directory).asked(rows=1, target_length=384, text_rows=1)


@pytest.fixture(scope="module")
def runs(subject):
    return FactorRuns(subject, rows=2)


def test_every_map_without_a_temperature_is_named():
    for name in factor_search.named_rules():
        rotary = SCALINGS[name].make(8.0, 64)(frequencies.rotary(16, base=100.0, original_length=64))
        assert (rotary.cos_sin_factor, rotary.logit_scale) == (1, 1)
    assert {"none", "linear", "ntk", "by_parts", "yarn_map", "llama3", "ntk4"} <= set(factor_search.named_rules())
    assert not {"yarn", "dynamic_ntk", "no_rotation"} & set(factor_search.named_rules())


def test_named_factors(runs):
    assert set(runs.named) | set(runs.omitted) == set(factor_search.named_rules())
    np.testing.assert_array_equal(runs.named["none"], np.ones(4))
    np.testing.assert_allclose(runs.named["linear"], np.full(4, 2.0))
    np.testing.assert_allclose(runs.named["ntk"][[0, -1]], [1, 2])
    np.testing.assert_allclose(runs.named["ntk4"][-1], 2 * 4 ** (6 / 8))
    assert all(factors.max() <= runs.largest for factors in runs.named.values())


def test_it_searches_on_what_the_model_was_trained_to_answer(subject):
    known = contexts.Counts(first_pairs=3, last_pairs=1)
    searched, fresh = factor_search.items_of(dataclasses.replace(subject, counts=known), rows=2, seed=0)
    for items in (*searched.values(), *fresh.values()):
        assert {contexts.PROBES[probe] for probe in np.unique(items.probe)} == {"retrieval", "binding", "order"}


def test_factors_answer_as_their_rule_and_compile_once_a_length(subject, runs):
    searched, fresh = factor_search.items_of(subject, rows=2, seed=0)
    assert [len(fresh["short"].tokens), len(fresh["long"].tokens)] == [8, 8]
    assert not set(map(bytes, searched["long"].tokens)) & set(map(bytes, fresh["long"].tokens))
    unchanged = runs.unchanged(searched)
    same = runs(runs.named["none"], searched, bias=None)
    ntk = runs.maker(dataclasses.replace(runs.maker.original(), rule=runs.maker.rule("ntk")))
    by_rule = runs._outcomes(ntk, searched)
    by_factors = runs(runs.named["ntk"], searched, bias=None)
    biased = runs(runs.named["ntk"], fresh, bias=alibi_paper(2))
    for got, want in ((same, unchanged), (by_factors, by_rule)):
        for name in contexts.PROBES:
            np.testing.assert_allclose(got.log_odds["long"][name], want.log_odds["long"][name], atol=1e-5)
    short_of = by_factors.log_odds["long"]["retrieval"]
    assert np.abs(biased.log_odds["long"]["retrieval"][:, :2] - short_of).max() > 0
    assert runs.compilations == 2
