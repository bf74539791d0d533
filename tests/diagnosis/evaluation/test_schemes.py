"""Configurations become schemes: every layer that sees the whole context, and what a config declares."""

import types

import numpy as np
import pytest

from rope_jax import scaling
from rope_jax.biases import alibi_paper, t5_bias
from rope_jax.checkpoints.dialects import positions_of
from rope_jax.diagnosis.evaluation.schemes import SchemeMaker, offsets_of
from rope_jax.errors import InputError, ScalingError
from rope_jax.scheme import Retrofit

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2,
    "max_position_embeddings": 64, "rope_theta": 100.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def maker(config, **changes):
    given = {"layout": "half", "phase": "exact", "trained_length": 64, "target_length": 256} | changes
    return SchemeMaker(positions_of(config, origin="test.json"), **given)


def test_yarn_deployed_carries_its_attention_factor():
    make = maker(LLAMA)
    scheme = make(Retrofit(make.original().rotary, make.rule("yarn")))
    assert float(scheme.cos_sin_factor) == pytest.approx(0.1 * np.log(4) + 1)
    map_alone = make(Retrofit(make.original().rotary, make.rule("yarn_map")))
    assert float(map_alone.cos_sin_factor) == 1
    np.testing.assert_array_equal(map_alone.inverse_frequencies, scheme.inverse_frequencies)


def test_a_scaling_replaces_a_declared_one_unless_it_is_composed():
    declared = LLAMA | {"rope_scaling": LLAMA3}
    fresh = maker(LLAMA).original().rotary
    replaced = maker(declared)
    np.testing.assert_array_equal(
        replaced.scaled(Retrofit(replaced.original().rotary, replaced.rule("ntk"))).inverse_frequencies,
        scaling.ntk(factor=256 / 16)(fresh).inverse_frequencies,
    )
    composed = maker(declared, compose=True)
    trained = composed.original().rotary
    np.testing.assert_array_equal(
        composed.scaled(Retrofit(trained, composed.rule("linear"))).inverse_frequencies,
        trained.inverse_frequencies / 4,
    )
    with pytest.raises(ScalingError, match="ntk after llama3 has no single meaning"):
        composed(Retrofit(trained, composed.rule("ntk")))


def test_layers_with_a_window_keep_what_they_have():
    config = LLAMA | {
        "model_type": "mistral", "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16,
    }  # fmt: skip
    make = maker(config)
    original = make.original()
    before, after = make(original), make(Retrofit(original.rotary, make.rule("ntk"), alibi_paper(2)))
    assert set(before) == set(after)
    (windowed,) = [group.name for group in make.positions.groups if group.window is not None]
    (full,) = [group.name for group in make.positions.groups if group.window is None]
    np.testing.assert_array_equal(after[windowed].inverse_frequencies, before[windowed].inverse_frequencies)
    assert not np.asarray(after[windowed].slopes).any()
    assert (np.asarray(after[full].inverse_frequencies) != np.asarray(before[full].inverse_frequencies)).any()
    assert np.asarray(after[full].slopes).all()


def test_a_model_without_rotation_has_nothing_to_scale():
    bloom = {"model_type": "bloom", "n_layer": 2, "n_head": 2, "hidden_size": 32, "seq_length": 64}
    with pytest.raises(InputError, match=r"test\.json: nothing rotates in the layers"):
        maker(bloom).original()


def test_a_line_needs_no_table_and_a_bias_that_never_becomes_flat_all_of_it(without_type_checks):
    assert offsets_of(None, 256) == offsets_of(alibi_paper(2), 256) == 0
    table = t5_bias(np.zeros((2, 8), np.float32), max_distance=32)
    assert offsets_of(table, 256) == table.flat_from
    assert offsets_of(types.SimpleNamespace(num_heads=2), 256) == 255
