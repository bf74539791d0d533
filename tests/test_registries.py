"""Scalings and biases by name: one meaning a name, and a record says all that is shown of it."""

import re

import numpy as np
import pytest

from rope_jax import biases, frequencies, scaling
from rope_jax.biases.registry import BIASES, BiasRequest, bias_of, parse_bias
from rope_jax.diagnosis.report import labels
from rope_jax.errors import InputError
from rope_jax.length_rules import at_length
from rope_jax.rules import Rule
from rope_jax.scaling.registry import SCALINGS, scaling_rule

L, TARGET = 64, 512
ROTARY = frequencies.rotary(32, base=1000.0, original_length=L)
REQUEST = BiasRequest(4, L, TARGET)


@pytest.mark.parametrize("record", [*SCALINGS.values(), *BIASES.values()], ids=lambda one: one.name)
def test_a_record_says_all_that_is_shown(record):
    assert record.label
    assert re.fullmatch("#[0-9a-f]{6}", record.color)
    assert "\n" not in record.explanation.strip()
    assert len(record.explanation) > 10


@pytest.mark.parametrize("name", SCALINGS)
def test_what_a_rule_changes_is_what_its_kind_says(name):
    rule = at_length(scaling_rule(name, factor=8.0, original_length=L), TARGET)
    assert rule.name == name
    scaled = rule(ROTARY)
    moved = bool((scaled.inverse_frequencies != ROTARY.inverse_frequencies).any())
    sharper = scaled.cos_sin_factor**2 * scaled.logit_scale != 1
    kind = SCALINGS[name].kind
    assert moved == (kind != "none")
    assert sharper == (kind == "map and temperature")
    assert (not scaled.inverse_frequencies.any()) == (kind == "no rotation")


def test_yarn_is_yarn_and_yarn_map_its_map_alone():
    yarn, alone = (scaling_rule(name, factor=8.0, original_length=L)(ROTARY) for name in ("yarn", "yarn_map"))
    whole = scaling.yarn(factor=8.0, original_length=L)(ROTARY)
    np.testing.assert_array_equal(yarn.inverse_frequencies, whole.inverse_frequencies)
    assert yarn.cos_sin_factor == whole.cos_sin_factor > 1
    np.testing.assert_array_equal(alone.inverse_frequencies, yarn.inverse_frequencies)


def test_a_rule_is_taken_as_it_is_and_a_base_as_a_number():
    rule = Rule("mine", lambda rotary: rotary)
    assert scaling_rule(rule, factor=8.0, original_length=L) is rule
    anew = scaling_rule("explicit_base:5e5", factor=8.0, original_length=L)(ROTARY)
    assert anew.base == 5e5
    for wrong in ("explicit_base:", "explicit_base:x", "explicit_base:-1"):
        with pytest.raises(InputError, match=f"'{wrong}': explicit_base:B takes a positive number B"):
            scaling_rule(wrong, factor=8.0, original_length=L)
    with pytest.raises(InputError, match="unknown scaling 'magic'; there are: none"):
        scaling_rule("magic", factor=8.0, original_length=L)


def test_alibi_is_the_papers_slopes_and_a_multiple_says_so():
    paper = np.asarray(biases.paper_slopes(4))
    np.testing.assert_allclose(bias_of("alibi", REQUEST).slopes, paper, rtol=1e-6)
    np.testing.assert_allclose(bias_of("alibi*16", REQUEST).slopes, 16 * paper, rtol=1e-6)
    np.testing.assert_allclose(bias_of("alibi*0.5", REQUEST).slopes, paper / 2, rtol=1e-6)
    assert labels.label("alibi*16") == "ALiBi x16"
    assert bias_of("none", REQUEST) is None


@pytest.mark.parametrize("name", ["alibi*", "alibi*x", "alibi*0", "alibi*-1", "alibi*nan", "alibi*inf", "t5*2"])
def test_no_other_multiple_is_one(name):
    with pytest.raises(InputError, match="only alibi has multiples"):
        parse_bias(name)


def test_what_is_fitted_needs_weights_and_what_is_unknown_is_named():
    for name in ("alibi_star", "t5"):
        with pytest.raises(InputError, match="is fitted to a model's weights, and there are none"):
            bias_of(name, REQUEST)
    with pytest.raises(InputError, match="unknown bias 'magic'; there are: none, alibi"):
        bias_of("magic", REQUEST)
    assert (labels.label("ours"), labels.explanation("ours")) == ("ours", "")
