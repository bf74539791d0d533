"""Bands of rotary pairs add up to the head's logit, and a scheme moves only the bands that it scales."""

import dataclasses

import numpy as np
import pytest
from cases import TARGET, TRAINED, save_bundled_model, tiny_subject

from rope_jax.diagnosis.evaluation.case_setup import Settings, fitted_schemes, needed_cells
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell
from rope_jax.diagnosis.prediction import own_heads
from rope_jax.diagnosis.prediction.bands import TURNS, far_bands
from rope_jax.diagnosis.theory import resolution

SETTINGS = Settings(status_quos=(Cell("llama3", "alibi"),), transforms=("ntk",))


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return tiny_subject(save_bundled_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def maker(subject):
    return fitted_schemes(subject, SETTINGS, needed_cells(SETTINGS))[1]


@pytest.fixture(scope="module")
def own(subject, maker):
    return own_heads.own_heads(subject.checkpoint.model, maker(UNCHANGED), subject.unseen_items)


def test_bands_add_up_to_the_logit_at_every_stretch(own, maker):
    for cell in needed_cells(SETTINGS):
        scheme = maker(cell)
        found = far_bands(own, scheme, target_length=TARGET)
        products = own_heads.sharpness(own, scheme) * own_heads.far_products(own)
        (whole,) = resolution.phase_sum(own_heads.frequencies_of(scheme), products[None], TARGET)
        assert found.logits.shape == (len(TURNS) + 1, len(found.edges) - 1)
        for low, high, together in zip(found.edges[:-1], found.edges[1:], found.logits.sum(axis=0), strict=True):
            np.testing.assert_allclose(together, whole[int(low) : int(high)].mean(), atol=1e-9)


def test_fast_bands_are_left_alone_by_a_ramp_and_slow_ones_are_not(own, maker):
    turns = TRAINED * own.trained / (2 * np.pi)
    held = [band for band in (2, 3) if (np.digitize(turns, TURNS) == band).any()]
    plain, ramp = (far_bands(own, maker(Cell(name, "none")), target_length=TARGET) for name in ("none", "llama3"))
    assert held
    np.testing.assert_allclose(ramp.logits[held], plain.logits[held], atol=1e-9)
    assert np.abs(ramp.logits[0] - plain.logits[0]).max() > 0.5 * np.abs(plain.logits[0]).max()


def test_the_bias_stands_beside_them(own, maker):
    scheme = maker(Cell("none", "alibi"))
    found = far_bands(own, scheme, target_length=TARGET)
    middle = [(low + high - 1) / 2 for low, high in zip(found.edges[:-1], found.edges[1:], strict=True)]
    np.testing.assert_allclose(found.bias_nats, -float(scheme.slopes[own.far.head]) * np.array(middle), rtol=1e-6)
    hotter = dataclasses.replace(scheme, logit_scale=2 * scheme.logit_scale)
    doubled = far_bands(own, hotter, target_length=TARGET)
    np.testing.assert_allclose(doubled.logits, 2 * found.logits, rtol=1e-6)
    np.testing.assert_array_equal(doubled.bias_nats, found.bias_nats)


def test_a_factor_the_model_was_trained_under_counts_once(subject, maker):
    plain = maker(UNCHANGED)
    trained = dataclasses.replace(plain, logit_scale=2 * plain.logit_scale)
    own = own_heads.own_heads(subject.checkpoint.model, trained, subject.unseen_items)
    assert own_heads.sharpness(own, trained) == 1
    assert own_heads.sharpness(own, plain) == 0.5
    (whole,) = resolution.phase_sum(own_heads.frequencies_of(trained), own_heads.far_products(own)[None], TARGET)
    found = far_bands(own, trained, target_length=TARGET)
    last = slice(int(found.edges[-2]), int(found.edges[-1]))
    np.testing.assert_allclose(found.logits[:, -1].sum(), whole[last].mean(), atol=1e-9)
