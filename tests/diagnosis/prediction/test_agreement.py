"""Predictions from short contexts, beside what the long ones gave."""

import dataclasses

import numpy as np
import pytest
from cases import TARGET, save_bundled_model, tiny_subject

from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.configurations import ORIGINAL, wanted
from rope_jax.diagnosis.evaluation.plan import PlanSettings, plan_of
from rope_jax.diagnosis.evaluation.runs import Runs
from rope_jax.diagnosis.prediction import agreement, own_heads
from rope_jax.diagnosis.prediction.agreement import prediction_of
from rope_jax.diagnosis.tasks.contexts import PROBES, SYMBOLS
from rope_jax.statistics.intervals import Estimate
from rope_jax.statistics.ranks import within_group_spearman

DEPLOYED = "ntk + alibi"
USED = ("retrieval", "binding", "order")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return tiny_subject(save_bundled_model(tmp_path_factory.mktemp("model")), rows=4)


@pytest.fixture(scope="module")
def schemes(subject):
    plan = plan_of([subject], PlanSettings((wanted("ntk+alibi"),), ("llama3",)))
    return {name: plan.schemes(name) for name in plan.retrofits}


@pytest.fixture(scope="module")
def answers(subject, schemes):
    run = Runs(subject)
    return {name: [run(several).answers["long"]] for name, several in schemes.items()}


@pytest.fixture(scope="module")
def found(subject, schemes, answers):
    return prediction_of([subject], schemes, answers, USED)


def test_every_configuration_is_predicted_and_measured(found, schemes):
    assert [one["name"] for one in found["configurations"]] == list(schemes)
    for one in found["configurations"]:
        for errors in (one["predicted"], one["measured"]):
            assert len(errors) == 8
            assert all(0 <= error <= 1 for error in errors)
    assert set(found["by_task"]) == set(USED)
    assert "rank correlation within places of the n-th item" in found["text"]


def test_a_scheme_that_changes_nothing_leaves_the_heads_as_they_were(found):
    figures = {one["name"]: one for one in found["configurations"]}
    original, biased = figures[ORIGINAL], figures[DEPLOYED]
    np.testing.assert_allclose(np.abs(original["coherence"]), 1, atol=1e-6)  # negative where a head looks away
    assert original["horizon"] is None  # there is no line
    assert original["step"] == 0
    assert biased["horizon"] > 0
    assert 0 < found["heads"][0]["local"]["mass"] <= 1


def test_twice_the_slope_halves_the_horizon(subject, schemes):
    own = own_heads.own_heads(subject.checkpoint.model, schemes[ORIGINAL][0], subject.unseen_items)
    once = schemes[DEPLOYED][0]
    twice = dataclasses.replace(once, slopes=2 * once.slopes)
    one, two = (own_heads.head_figures(own, scheme, target_length=TARGET) for scheme in (once, twice))
    np.testing.assert_allclose(two["horizon"], one["horizon"] / 2, rtol=1e-5)


def test_models_without_contexts_are_not_predicted(subject, schemes, answers):
    full = subject.unseen_items._replace(tokens=np.full_like(subject.unseen_items.tokens, SYMBOLS[0]))
    for items in (None, full):
        bare = dataclasses.replace(subject, unseen_items=items)
        assert prediction_of([bare], schemes, answers, USED) is None
    by_type = {name: [{"full": several[0], "sliding": several[0]}] for name, several in schemes.items()}
    assert prediction_of([subject], by_type, answers, USED) is None


def test_it_is_read_by_its_interval():
    def said(low, mean, high, ceiling=None):
        return agreement._text(Estimate(mean, low, high), ceiling)

    assert said(0.85, 0.9, 0.95).endswith("the prediction may be read")
    assert said(0.1, 0.2, 0.3).endswith("cannot be trusted for this model")
    assert said(0.7, 0.85, 0.9).endswith("is open")
    assert "about 0.93 is the most" in said(0.85, 0.9, 0.95, ceiling=0.93)
    assert "nothing is known" in agreement._text(None, None)


def test_the_ceiling_is_that_of_the_noise():
    rng = np.random.default_rng(0)
    configurations = rng.uniform(0, 1, (12, 8))
    noisy = configurations + 0.5 * rng.standard_normal((40, 12, 8))
    assert agreement._ceiling(np.repeat(configurations[None], 6, axis=0)) == pytest.approx(1)
    reached = within_group_spearman(configurations, noisy).correlation.mean
    assert agreement._ceiling(noisy) == pytest.approx(reached, abs=0.05)
    assert agreement._ceiling(noisy[:3]) is None


def test_a_place_that_few_contexts_ask_counts_as_often_as_it_is_asked(subject):
    items = subject.items.long
    asked = (items.probe == PROBES.index("binding")) & (items.asked == 1)
    fewer = items._replace(asked=np.where(asked & (np.arange(len(asked)) > 1)[:, None], 2, items.asked))
    wrong = probes.Answers(*(np.zeros(items.probe.shape, kind) for kind in (float, bool, np.int32)))
    np.testing.assert_allclose(agreement._errors([wrong], fewer).mean(axis=0), 1)
