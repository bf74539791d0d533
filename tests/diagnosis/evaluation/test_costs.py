"""What a row costs is timed several times, or said to have been timed once."""

import pytest
from cases import save_bundled_model, tiny_subject

from rope_jax.diagnosis.evaluation import costs
from rope_jax.diagnosis.evaluation.configurations import wanted
from rope_jax.diagnosis.evaluation.plan import PlanSettings, plan_of


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    subject = tiny_subject(save_bundled_model(tmp_path_factory.mktemp("model")))
    plan = plan_of([subject], PlanSettings((wanted("ntk+alibi"),), ()))
    return subject, {name: plan.schemes(name)[0] for name in ("none + none", "ntk + alibi")}


def test_the_median_lies_between_the_fastest_and_the_slowest(asked):
    for one in costs.costs_record(*asked):
        assert one["rounds"] == 5
        assert 0 < one["fastest"] <= one["milliseconds"] <= one["slowest"]


def test_a_single_round_tells_no_noise(asked, monkeypatch):
    monkeypatch.setattr(costs, "_SECONDS", 0.0)
    for one in costs.costs_record(*asked):
        assert (one["rounds"], one["fastest"], one["slowest"]) == (1, None, None)
