"""The configurations of one model: names, biases made and fitted, and what has no meaning."""

import dataclasses

import numpy as np
import pytest
from cases import HEADS, TARGET, save_bundled_model, save_checkpoint, tiny_subject

from rope_jax import scaling
from rope_jax.biases import Alibi, alibi_paper, paper_slopes, t5_bias
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.diagnosis.evaluation import fitter
from rope_jax.diagnosis.evaluation.configurations import ORIGINAL, wanted
from rope_jax.diagnosis.evaluation.fitter import FitSettings
from rope_jax.diagnosis.evaluation.plan import PlanSettings, plan_of
from rope_jax.errors import InputError, ScalingError
from rope_jax.scheme import Retrofit

FIT = FitSettings(num_buckets=8, steps=1)
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}  # fmt: skip


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return tiny_subject(save_bundled_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def declared(subject, tmp_path_factory):
    """The same model, shipped with a llama3 rule."""
    directory = save_checkpoint(tmp_path_factory.mktemp("declared"), rope_scaling=LLAMA3)
    return dataclasses.replace(subject, checkpoint=load_checkpoint(directory))


def plan(subject, *deployed, **settings):
    made = PlanSettings(tuple(map(wanted, deployed)), settings.pop("transforms", ("llama3",)), fit=FIT, **settings)
    return plan_of([subject], made)


@pytest.fixture
def told(monkeypatch):
    """Fits nothing; gives the schemes that a table would have been fitted under."""
    seen = []

    def fit(decoder, schemes_with, rows, counted, *, num_buckets, max_distance, **_):
        seen.append(schemes_with(t5_bias(np.zeros((HEADS, num_buckets), np.float32), max_distance=max_distance)))
        table = np.full((HEADS, num_buckets), len(seen), np.float32)
        return {"table": table, "reached": num_buckets, "before": 2.0, "after": 1.0}

    monkeypatch.setattr(fitter, "fit_t5_table", fit)
    return seen


def test_what_is_run_is_what_the_verdict_needs(subject):
    found = plan(subject, "ntk+alibi")
    assert next(iter(found.retrofits)) == ORIGINAL
    assert set(found.retrofits) == {
        ORIGINAL, "ntk + alibi", "ntk + none", "none + alibi", "llama3 + alibi", "ntk + alibi + temperature 1.14",
        "no_rotation + alibi",
    }  # fmt: skip
    assert found.deployed == ("ntk + alibi",)
    assert [option.number for option in found.options["ntk + alibi"]] == ["1", "2", "3", "", "", ""]
    assert found.corners["ntk + alibi"] == {
        frozenset(): ORIGINAL, frozenset({"scaling"}): "ntk + none", frozenset({"bias"}): "none + alibi",
        frozenset({"scaling", "bias"}): "ntk + alibi",
    }  # fmt: skip


def test_alibi_is_the_papers_slopes_and_alibi_times_16_sixteen_times_them(subject):
    found = plan(subject, "ntk+alibi", "ntk+alibi*16")
    once, more = (found.schemes(name)[0].slopes for name in found.deployed)
    np.testing.assert_allclose(once, paper_slopes(HEADS), rtol=1e-6)
    np.testing.assert_allclose(more, 16 * np.asarray(paper_slopes(HEADS)), rtol=1e-6)


def test_t5_is_fitted_under_the_deployed_scaling(subject, told):
    found = plan(subject, "ntk+t5", "yarn+t5")
    assert found.deployed == ("ntk + t5 under ntk", "yarn + t5 under yarn")
    for name, scheme in zip(found.deployed, told, strict=True):
        (deployed,) = found.schemes(name)
        np.testing.assert_array_equal(deployed.inverse_frequencies, scheme.inverse_frequencies)
        assert deployed.cos_sin_factor == scheme.cos_sin_factor
    assert "steps under ntk" in found.found["t5 under ntk"]


def test_t5_is_fitted_under_a_declared_llama3_rule(declared, told):
    """Whatever is deployed, in its place or on top of it."""
    for deployed, compose in (("ntk+t5", False), ("none+t5", False), ("linear+t5", True)):
        found = plan(declared, deployed, transforms=(), compose=compose)
        (scheme,) = found.schemes(found.deployed[0])
        np.testing.assert_array_equal(scheme.inverse_frequencies, told[-1].inverse_frequencies)
    assert len(told) == 3


def test_option_2_keeps_the_table_that_was_fitted_even_in_a_full_run(subject, told):
    found = plan(subject, "ntk+t5", every=True)
    assert len(told) == 1
    tables = {name: np.asarray(several[0].bias.table) for name, several in found.retrofits.items() if several[0].bias}
    assert {"none + t5", "llama3 + t5", "llama3 + t5 + temperature 1.14"} <= set(tables)
    assert all((table == tables["ntk + t5"]).all() for table in tables.values())
    assert len(found.retrofits) == 3 * 2 * 2 + 1  # scalings, biases, sharpened or not; and no rotation


def test_every_configuration_has_one_shape(subject, told):
    found = plan(subject, "ntk+t5", "ntk+alibi")
    shapes = {scheme.offset_bias.shape for name in found.retrofits for scheme in found.schemes(name)}
    assert len(shapes) == 1


def test_the_largest_safe_slopes_cost_no_more_than_the_margin(subject):
    found = plan(subject, "ntk+alibi_star", transforms=())
    assert "times the paper's slopes: the most that raises" in found.found["alibi_star"]
    (scheme,) = found.schemes("ntk + alibi_star")
    ratio = np.asarray(scheme.slopes) / np.asarray(paper_slopes(HEADS))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_objects_are_taken_where_names_are(subject):
    rule = scaling.ntk(factor=3.0)
    steep = Alibi(8 * alibi_paper(HEADS).slopes)
    found = plan(subject, (rule, steep), transforms=(scaling.linear(factor=2.0),))
    assert found.deployed == ("ntk + own",)
    (scheme,) = found.schemes("ntk + own")
    np.testing.assert_allclose(scheme.slopes, steep.slopes)
    rotary = found.maker.original().rotary
    np.testing.assert_allclose(scheme.inverse_frequencies, rule(rotary).inverse_frequencies, rtol=1e-6)
    assert "linear + own" in found.retrofits


def test_a_configuration_given_whole_keeps_its_temperature_and_its_name(subject):
    rotary = subject.checkpoint.positions.main_group.rotary
    given = Retrofit(rotary, scaling.ntk(factor=2.0), alibi_paper(HEADS), temperature=1.5, bias_name="ours")
    found = plan(subject, given)
    assert found.deployed == ("ntk + ours + temperature 1.5",)
    assert float(found.schemes(found.deployed[0])[0].logit_scale) == 1.5
    other = dataclasses.replace(given, rotary=scaling.linear(factor=2.0)(rotary))
    with pytest.raises(InputError, match="not the one that the model was trained with"):
        plan(subject, other)


def test_two_configurations_of_one_name_are_refused_and_one_named_twice_is_one(subject):
    assert plan(subject, "ntk+alibi", "ntk+alibi").deployed == ("ntk + alibi",)
    steep, flat = (Alibi(factor * alibi_paper(HEADS).slopes) for factor in (2, 0.5))
    with pytest.raises(InputError, match=r"deployed: two configurations are called 'ntk \+ own'"):
        plan(subject, ("ntk", steep), ("ntk", flat))
    with pytest.raises(InputError, match="bias own has 3 heads, the model 2"):
        plan(subject, ("ntk", alibi_paper(3)))


def test_what_has_no_meaning_is_left_out_with_the_reason(declared):
    found = plan(declared, "yarn+alibi", "linear+alibi", transforms=("by_parts",), compose=True)
    assert found.deployed == ("linear + alibi",)
    assert set(found.omitted) == {"yarn + alibi", "by_parts"}
    assert "yarn after llama3 has no single meaning" in found.omitted["yarn + alibi"]
    with pytest.raises(ScalingError, match="yarn after llama3"):
        plan(declared, "yarn+alibi", compose=True)
    # In the place of the declared rule both have one.
    assert plan(declared, "yarn+alibi").omitted == {}


def test_each_fold_has_a_bias_of_its_own(subject, told):
    other = dataclasses.replace(subject, fit_text=subject.fit_text[::-1])
    settings = PlanSettings((wanted("ntk+t5"),), ("llama3",), fit=FIT)
    found = plan_of([subject, other], settings)
    for several in found.retrofits.values():
        assert len(several) == 2
    one, two = (np.asarray(retrofit.bias.table) for retrofit in found.retrofits["llama3 + t5"])
    assert (one != two).all()
    assert found.maker.target_length == TARGET
