"""What is deployed and what may be changed in it: one thing at a time, temperatures included."""

import dataclasses

import numpy as np
import pytest

from rope_jax import scaling
from rope_jax.biases import alibi_paper
from rope_jax.diagnosis.evaluation.configurations import corners_of, options_of, temperature_of, wanted
from rope_jax.errors import InputError
from rope_jax.frequencies import rotary
from rope_jax.scaling.registry import SCALINGS
from rope_jax.scheme import Retrofit, scheme_of

L, TARGET, HEADS, DIM = 64, 256, 2, 16
ROTARY = rotary(DIM, base=100.0, original_length=L)
FACTOR = TARGET / L
NTK = Retrofit(ROTARY, scaling.ntk(factor=FACTOR), alibi_paper(HEADS), bias_name="alibi")
YARN = dataclasses.replace(NTK, rule=scaling.yarn(factor=FACTOR, original_length=L))
TRANSFORMS = [SCALINGS[name].make(FACTOR, L) for name in ("llama3", "yarn_map", "by_parts")]


def options(deployed):
    found = options_of(deployed, transforms=TRANSFORMS, temperature=temperature_of(FACTOR), length=TARGET)
    for option, retrofit in found:
        assert option.configuration == retrofit.name
    return {option.words: retrofit for option, retrofit in found}


def logit_factor(retrofit):
    """What a configuration multiplies the logits of rotary dimensions by."""
    scheme = scheme_of(retrofit, num_heads=HEADS, head_dim=DIM)
    return float(scheme.cos_sin_factor) ** 2 * float(scheme.logit_scale)


def test_a_name_an_object_and_a_whole_configuration_are_wanted_alike():
    assert wanted("ntk+alibi*16")[:3] == ("ntk", "alibi*16", False)
    assert wanted("yarn+none+temperature").sharpened
    assert wanted("explicit_base:500000+alibi").scaling == "explicit_base:500000"
    rule, bias = scaling.ntk(factor=3.0), alibi_paper(HEADS)
    assert wanted((rule, bias))[:2] == (rule, bias)
    assert wanted((rule, None)).name == "ntk + none"
    assert wanted(("ntk", bias)).name == "ntk + own"  # not the name of the package's own slopes
    assert wanted(dataclasses.replace(NTK, temperature=1.5)).name == "ntk + alibi + temperature 1.5"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ntk", "'ntk' is not SCALING\\+BIAS"),
        ("ntk+", "is not SCALING\\+BIAS"),
        ("magic+alibi", "unknown scaling 'magic'; there are: none, linear, ntk"),
        ("ntk+magic", "unknown bias 'magic'; there are: none, alibi"),
        ("ntk+alibi*0", "only alibi has multiples, by a positive number"),
        ("ntk+t5*2", "only alibi has multiples"),
        ("explicit_base:x+alibi", "explicit_base:B takes a positive number B"),
        (("magic", None), "unknown scaling 'magic'"),
    ],
)
def test_what_is_unknown_is_refused_by_its_name(given, message):
    with pytest.raises(InputError, match=message):
        wanted(given)


def test_each_option_changes_one_thing():
    found = options(NTK)
    assert list(found)[:5] == [
        "drop the bias", "undo the scaling", "scale by llama3 instead", "scale by yarn_map instead",
        "scale by by_parts instead",
    ]  # fmt: skip
    assert found["drop the bias"].rule == NTK.rule
    assert found["drop the bias"].bias is None
    assert found["undo the scaling"].bias is NTK.bias
    assert found["undo the scaling"].scaling == "none"
    assert found["scale by llama3 instead"].bias is NTK.bias
    assert found["undo both"].name == "none + none"
    assert found["drop the rotation"].scaling == "no_rotation"
    assert {logit_factor(retrofit) for words, retrofit in found.items() if words != "sharpen the logits"} == {1.0}


def test_undo_the_scaling_carries_no_temperature_of_yarn():
    assert logit_factor(YARN) == pytest.approx(temperature_of(FACTOR))
    found = options(YARN)
    assert logit_factor(found["undo the scaling"]) == 1
    assert logit_factor(found["undo both"]) == 1


def test_the_corners_carry_no_temperature_but_the_last():
    for deployed in (YARN, dataclasses.replace(NTK, temperature=1.3)):
        corners = corners_of(deployed)
        assert logit_factor(corners[frozenset()]) == logit_factor(corners[frozenset({"bias"})]) == 1
        alone = logit_factor(dataclasses.replace(deployed, temperature=1.0))
        assert logit_factor(corners[frozenset({"scaling"})]) == alone
        assert corners[frozenset({"scaling", "bias"})] is deployed


def test_option_3_of_yarn_changes_its_map_alone():
    """The temperature is a change of its own, outside the three."""
    found = options(YARN)
    assert "scale by yarn_map instead" not in found  # it scales as the deployed rule does
    for name in ("llama3", "by_parts"):
        after = found[f"scale by {name} instead"]
        assert logit_factor(after) == pytest.approx(logit_factor(YARN), rel=1e-6)
        bare = SCALINGS[name].make(FACTOR, L)(ROTARY)
        np.testing.assert_array_equal(after.rule(ROTARY).inverse_frequencies, bare.inverse_frequencies)
    assert logit_factor(found["drop the temperature"]) == pytest.approx(1, rel=1e-6)
    assert "sharpen the logits" not in found


def test_without_a_bias_or_a_scaling_there_is_less_to_change():
    bare = dataclasses.replace(NTK, bias=None, bias_name=None)
    assert not {"drop the bias", "undo both"} & set(options(bare))
    assert corners_of(bare) == {}
    unscaled = dataclasses.replace(NTK, rule=scaling.none())
    assert not {"undo the scaling", "undo both"} & set(options(unscaled))
    assert corners_of(unscaled) == {}
