"""The pattern of a failure and what verdicts share: what is said is there, and nothing is said of noise."""

import dataclasses

import numpy as np
import population
import pytest

from rope_jax.biases import bucket_starts
from rope_jax.diagnosis.evaluation.probes import Answers
from rope_jax.diagnosis.tasks.contexts import FIRST, LAST, contexts
from rope_jax.diagnosis.tasks.registry import index_of
from rope_jax.diagnosis.verdict.agreement import agreement, shared_suspect
from rope_jax.diagnosis.verdict.decide import decide
from rope_jax.diagnosis.verdict.pattern import pattern

USED = ("retrieval", "binding", "order")
ITEMS = contexts(np.random.default_rng(0), rows=60, length=512)
ORDER, BINDING = (ITEMS.probe == index_of(task) for task in ("order", "binding"))


def answers(wrong=0.3, *, seed=0) -> Answers:
    """Answers that go wrong at random, in as many questions as asked."""
    rng = np.random.default_rng(seed)
    choices = (ITEMS.choices >= 0).sum(axis=-1)
    others = 1 + (rng.random(choices.shape) * (choices - 1)).astype(np.int32)
    picked = np.where(rng.random(choices.shape) < wrong, others, 0).astype(np.int32)
    odds = np.where(picked == 0, 2.0, -2.0) + 0.5 * rng.standard_normal(choices.shape)
    return Answers(odds, picked == 0, picked)


def with_picked(one: Answers, where, picked) -> Answers:
    picked = np.where(where, picked, one.picked).astype(np.int32)
    return Answers(np.where(picked == 0, 2.0, -2.0), picked == 0, picked)


def said(one: Answers, **more) -> str:
    return pattern([one], ITEMS, USED, **more)


def test_too_few_errors_say_nothing():
    assert said(answers(0.01)) == ""
    assert pattern([answers()], ITEMS, ()) == ""


def test_errors_at_random_lean_no_way():
    found = [said(answers(seed=seed)) for seed in range(20)]
    assert np.mean([text.startswith("Wrong answers lean no way that is significant") for text in found]) >= 0.85


@pytest.mark.parametrize("nearer", [True, False])
def test_a_pull_is_found_by_both_ways_of_asking(nearer):
    """The nearer event is wrong where the first is asked for, right where the last is: accuracy shows nothing."""
    pulled = ITEMS.asked == (FIRST if nearer else LAST)
    found = said(with_picked(answers(0.05), ORDER, np.where(pulled, 1, 0)))
    assert f"name the {'nearer' if nearer else 'farther'} event in 100 %" in found
    assert "50 % without a pull" in found


def test_lost_order_is_no_pull():
    guessed = np.random.default_rng(1).integers(0, 2, ORDER.shape)
    assert "event in" not in said(with_picked(answers(0.05), ORDER, guessed))


@pytest.mark.parametrize("places", [1, -1])
def test_drift_is_found_with_its_direction(places):
    offsets = ITEMS.choice_offsets
    wanted = np.clip(ITEMS.asked + places, 1, 8)
    picked = (offsets == wanted[..., None]).argmax(axis=-1)
    found = said(with_picked(answers(0.05), BINDING, picked))
    assert f"places {'after' if places > 0 else 'before'} the item asked for" in found


def test_growth_with_distance_is_found():
    one = answers()
    farther = dataclasses.replace(one, log_odds=one.log_odds - 0.5 * np.log2(ITEMS.distance))
    assert "Log-odds fall by 0.5" in said(farther)


def test_steps_at_bucket_edges_are_found_where_the_table_is_known():
    table, one = np.zeros((2, 16)), answers(0.2)
    starts = np.asarray(bucket_starts(16, 512))
    near, far = (np.searchsorted(starts, at, side="right") for at in (ITEMS.distance, ITEMS.distance + ITEMS.gap))
    stepped = dataclasses.replace(one, log_odds=np.where(ORDER, np.where(near != far, 2.0, -1.0), one.log_odds))
    assert "in different buckets than in one" in said(stepped, table=table, max_distance=512)
    assert "bucket" not in said(stepped, table=table)  # its edges are not known


VERDICT = decide(population.population().sample(np.random.default_rng(0), 60))


def renamed(name, **changes):
    return dataclasses.replace(VERDICT, deployed=name, **changes)


def test_models_that_agree_are_counted():
    other = dataclasses.replace(VERDICT, first="drop the bias")
    assert agreement([VERDICT]) == ""
    text = agreement([VERDICT, VERDICT, other])
    assert "'scale by llama3' for 2 of 3" in text
    assert "'drop the bias' for 1 of 3" in text
    assert "yes for 3 of 3" in text


def test_configurations_that_fail_alike_make_what_they_share_suspect():
    text = shared_suspect([renamed("ntk + alibi"), renamed("ntk + t5")])
    assert "'ntk + alibi' and 'ntk + t5' fail alike" in text
    assert "What they share is suspect: their ntk, the target length" in text
    assert "their" not in shared_suspect([renamed("ntk + alibi"), renamed("yarn + t5")]).split("suspect:")[1]


def test_nothing_is_suspect_where_one_fails_otherwise_or_alone():
    less = dataclasses.replace(VERDICT.regression, lost=("order",))
    assert shared_suspect([renamed("ntk + alibi"), renamed("ntk + t5", regression=less)]) == ""
    assert shared_suspect([VERDICT]) == ""
    kept = dataclasses.replace(VERDICT.regression, lost=())
    assert shared_suspect([renamed("a", regression=kept), renamed("b", regression=kept)]) == ""
    falls = {
        task: dataclasses.replace(fall, log_odds=dataclasses.replace(fall.log_odds, low=9.0, high=9.5))
        for task, fall in VERDICT.regression.falls.items()
    }
    far = dataclasses.replace(VERDICT.regression, falls=falls)
    assert shared_suspect([renamed("ntk + alibi"), renamed("ntk + t5", regression=far)]) == ""
