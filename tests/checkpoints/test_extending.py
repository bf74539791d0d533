"""What a new scaling does to a declared one, the same in inspect, diagnose and export."""

import numpy as np
import pytest

from rope_jax import inspect, scaling
from rope_jax.checkpoints.dialects import positions_of
from rope_jax.checkpoints.exporting import wanted_scaling
from rope_jax.checkpoints.extending import (
    declares_scaling,
    extension_rule,
    length_before,
    trained_length,
    trained_rotary,
)
from rope_jax.checkpoints.presets import preset
from rope_jax.diagnosis.evaluation.schemes import SchemeMaker
from rope_jax.errors import ScalingError
from rope_jax.scheme import Retrofit

TARGET = 262_144
LLAMA = {
    "model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2,
    "max_position_embeddings": 4096, "rope_theta": 10000.0,
}  # fmt: skip
LINEAR = {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}


def positions(config):
    return positions_of(config, origin="test.json")


def extended(config, name, target, *, compose=False):
    """Frequencies of a named scaling on what the config's weights were trained with."""
    read = positions(config)
    trained = trained_length(read)
    rotary = trained_rotary(read.main_group, length=target, compose=compose)
    return extension_rule(name, read, trained=trained, target=target, compose=compose)(rotary)


@pytest.mark.parametrize("name", ["ntk", "yarn", "llama3"])
def test_inspect_diagnose_and_export_agree_on_llama_3_1_at_262144(name):
    """Its llama3 rule serves 131,072 tokens from 8,192: a new scaling replaces it, with s = 32."""
    config = dict(preset("llama-3.1-8b"))
    read = positions(config)
    trained = trained_length(read)
    assert (trained, read.original_length) == (131_072, 8192)
    fresh = read.main_group.rotary
    given = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if name == "llama3" else {}
    named = given | ({} if name == "ntk" else {"original_length": 8192})
    expected = getattr(scaling, name)(factor=32.0, **named)(fresh)
    maker = SchemeMaker(read, "half", "exact", trained, TARGET)
    diagnosed = maker.scaled(Retrofit(maker.original().rotary, maker.rule(name)))
    exported = wanted_scaling(read, name, trained_length=trained, target_length=TARGET).at(TARGET)
    inspected = inspect(config, target_length=TARGET, scaling=name).record
    pairs = inspected["layer_groups"][0]["pairs"]
    for found in (diagnosed, exported):
        np.testing.assert_array_equal(found.inverse_frequencies, expected.inverse_frequencies)
        assert found.cos_sin_factor == expected.cos_sin_factor
    np.testing.assert_allclose(
        [pair["scaled_wavelength"] for pair in pairs], 2 * np.pi / expected.inverse_frequencies, rtol=1e-9
    )


def test_what_was_trained_includes_the_declared_scaling():
    plain, declared = positions(LLAMA), positions(LINEAR)
    assert (declares_scaling(plain), declares_scaling(declared)) == (False, True)
    assert trained_length(plain) == 4096
    assert trained_length(declared) == declared.declared_length
    trained = trained_rotary(declared.main_group, length=1)
    np.testing.assert_array_equal(trained.inverse_frequencies, plain.main_group.rotary.inverse_frequencies / 4)


def test_none_keeps_what_was_trained_and_any_other_rule_replaces_it():
    target = 8 * 4096
    kept = extended(LINEAR, "none", target)
    np.testing.assert_array_equal(
        kept.inverse_frequencies, trained_rotary(positions(LINEAR).main_group, length=1).inverse_frequencies
    )
    read = positions(LINEAR)
    factor = target / read.original_length
    assert length_before(read, trained=trained_length(read)) == read.original_length
    for name, rule in (
        ("linear", scaling.linear(factor=factor)),
        ("by_parts", scaling.by_parts(factor=factor, original_length=read.original_length)),
    ):
        fresh = rule(read.main_group.rotary)
        np.testing.assert_array_equal(extended(LINEAR, name, target).inverse_frequencies, fresh.inverse_frequencies)


def test_composed_it_comes_on_top_with_the_factor_against_the_trained_length():
    target = 8 * 4096
    read = positions(LINEAR)
    trained = trained_length(read)
    assert length_before(read, trained=trained, compose=True) == trained
    on_top = extended(LINEAR, "linear", target, compose=True)
    before = trained_rotary(read.main_group, length=1)
    np.testing.assert_allclose(on_top.inverse_frequencies, before.inverse_frequencies * trained / target)
    with pytest.raises(ScalingError, match="yarn after linear has no single meaning"):
        extended(LINEAR, "yarn", target, compose=True)


def test_which_pairs_rotate_is_no_scaling_and_stays():
    for factor, declares in ((1.0, False), (8.0, True)):
        rope = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "factor": factor, "rope_theta": 10000.0}
        config = {key: value for key, value in LLAMA.items() if key != "rope_theta"} | {"rope_parameters": rope}
        read = positions(config)
        assert declares_scaling(read) is declares
        for name in ("ntk", "by_parts", "linear"):
            rotates = extended(config, name, 8 * 4096).inverse_frequencies > 0
            np.testing.assert_array_equal(rotates, np.arange(32) < 8)
