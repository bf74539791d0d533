"""Sampled offsets: every one of a short context, a bounded number of a long one, and predictions that still hold."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.checkpoints.dialects import positions_of
from rope_jax.diagnosis.theory import facts, resolution, thresholds
from rope_jax.diagnosis.theory.inspection import inspect, positions
from rope_jax.errors import InputError
from rope_jax.frequencies import rotary

BLOCK = resolution.BLOCK
CONFIG = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 128, "rope_theta": 200.0}


@settings(max_examples=60, deadline=None)
@given(reach=st.integers(1, 2**24), pairs=st.integers(1, resolution.MOST_PAIRS))
def test_both_ends_are_tried_and_the_work_is_bounded(reach, pairs):
    most = resolution.most_offsets(pairs)
    assert pairs * most <= 2**24
    blocks, offsets = resolution.evenly(reach, most=most)
    assert (np.diff(blocks) > 0).all()
    assert (np.diff(offsets) > 0).all()
    assert (offsets[0], offsets[-1]) == (0, reach - 1)
    assert len(offsets) <= most + 1
    assert (offsets // BLOCK == np.repeat(blocks, BLOCK)[: len(offsets)]).all()
    if reach <= most + 1:
        assert len(offsets) == reach
    else:
        quarter = most // BLOCK // 4 * BLOCK
        assert (offsets[:quarter] == np.arange(quarter)).all()


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 5000), data=st.data())
def test_a_sum_over_chosen_blocks_is_that_part_of_the_whole(length, data):
    rows = -(-length // BLOCK)
    blocks = np.array(sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1))))
    theta = rotary(16, base=200.0, original_length=128).inverse_frequencies
    coefficients = np.exp(1j * np.arange(16.0)).reshape(2, 8)
    offsets = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    offsets = offsets[offsets < length]
    whole = resolution.phase_sum(theta, coefficients, length)
    part = resolution.phase_sum(theta, coefficients, length, blocks=blocks)
    np.testing.assert_allclose(part, whole[:, offsets], atol=1e-12)


def test_estimates_from_samples_are_close_to_the_whole(monkeypatch):
    whole = inspect("llama-2-7b", target_length=2**17).record
    # As beyond the limit, at a quarter of the size.
    monkeypatch.setattr(resolution, "MOST_OFFSETS", 2**15)
    sampled = inspect("llama-2-7b", target_length=2**17).record
    assert sampled["thresholds"] == whole["thresholds"]  # its scan has a limit of its own
    for one, two in zip(whole["options"], sampled["options"], strict=True):
        for key in ("out_of_distribution_share", "fisher_ratio", "name"):
            assert one[key] == two[key]
        for before, after in zip(one["curve"], two["curve"], strict=True):
            assert after["coherence"] == before["coherence"]
            # Of fewer offsets the largest value is smaller, but never below the one in its place.
            assert after["coherence"] <= after["peak_coherence"] + 1e-9
            assert after["peak_coherence"] <= before["peak_coherence"] + 1e-9
        if one["scaling"] in ("none", "linear"):  # sharpest in its place, or stretched like everything
            for before, after in zip(one["curve"], two["curve"], strict=True):
                assert after["peak_offset"] == before["peak_offset"]


def test_a_dip_between_samples_makes_a_lower_bound(monkeypatch):
    theta = positions("llama-2-7b").main_group.rotary.inverse_frequencies
    whole = thresholds.non_negative_multiplier(theta, target_length=2**17)
    assert whole.offsets == 2**17 + 1
    monkeypatch.setattr(resolution, "MOST_OFFSETS", 2**13)
    sampled = thresholds.non_negative_multiplier(theta, target_length=2**17)
    assert sampled.offsets <= 2**16
    assert 1 < sampled.multiplier <= whole.multiplier
    assert "lower bounds" in inspect("llama-2-7b", target_length=2**17).table(details=True)


def test_memory_does_not_grow_with_the_target():
    tracemalloc.start()
    try:
        inspect("llama-2-7b", target_length=2**24)
        assert tracemalloc.get_traced_memory()[1] < 150e6  # bytes; 2e10 where every offset is worked out
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("head_dim", [2050, 16_000])  # beyond 16,384 the config itself is refused
def test_too_many_pairs_are_refused_with_their_size(head_dim, monkeypatch):
    model = positions_of({**CONFIG, "head_dim": head_dim}, origin="wide.json")
    monkeypatch.setattr(facts, "stars", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(InputError, match=rf"^wide\.json: a rotary dimension of {head_dim:,} makes .* [\d.]+ GB"):
        inspect(model, target_length=8192)


def test_wide_heads_are_inspected():
    record = inspect({**CONFIG, "head_dim": 2048}, target_length=2**15).record
    assert len(record["layer_groups"][0]["pairs"]) == 1024
