"""Sampled offsets: every one of a short context, a bounded number of a long one, and predictions that still hold."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.checkpoints.dialects import positions_of
from rope_jax.diagnosis.theory import offset_samples, options, resolution, thresholds
from rope_jax.diagnosis.theory.record import inspect_positions, read_model
from rope_jax.diagnosis.theory.table import table_text
from rope_jax.errors import InputError
from rope_jax.frequencies import rotary

BLOCK = resolution.BLOCK
CONFIG = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 128, "rope_theta": 200.0}


def check(samples, reach, *, most):
    """Every offset is stood for once, by a sample of its own neighbourhood; the work is bounded."""
    blocks, offsets, edges = samples.blocks, samples.offsets, samples.edges
    assert (np.diff(blocks) > 0).all()
    assert (offsets == (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)[: len(offsets)]).all()
    assert (edges[0], edges[-1], offsets[0], offsets[-1]) == (0, reach, 0, reach - 1)
    assert (np.diff(edges) >= 1).all()
    begin, end = edges[:-1][::BLOCK], np.append(edges[:-1][BLOCK::BLOCK], reach)
    assert (begin <= offsets[::BLOCK]).all()
    assert (offsets[::BLOCK] < end).all()
    assert len(offsets) <= most
    if len(offsets) == reach:
        assert (edges == np.arange(reach + 1)).all()


@settings(max_examples=60, deadline=None)
@given(reach=st.integers(1, 2**24), pairs=st.integers(1, offset_samples.MOST_PAIRS), data=st.data())
def test_all_offsets_are_stood_for_and_the_work_is_bounded(reach, pairs, data):
    centres = data.draw(st.lists(st.integers(0, reach - 1), max_size=12))
    most = offset_samples.most_offsets(pairs)
    assert pairs * most <= 2**24
    samples = offset_samples.around(centres, reach, pairs=pairs)
    check(samples, reach, most=max(8 * most, 2**18))
    assert all(samples.offsets[samples.index(centre)] == centre for centre in centres)
    if reach <= most:
        assert len(samples.offsets) == reach
    spread = offset_samples.evenly(reach, pairs=pairs)
    check(spread, reach, most=8 * most + 1)
    if reach <= 8 * most + 1:
        assert len(spread.offsets) == reach


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 5000), data=st.data())
def test_a_sum_over_chosen_blocks_is_that_part_of_the_whole(length, data):
    rows = -(-length // BLOCK)
    blocks = np.array(sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1))))
    theta = rotary(16, base=200.0, original_length=128).inverse_frequencies
    first_out = np.array(data.draw(st.lists(st.integers(0, 2 * length), min_size=8, max_size=8)))
    coefficients = np.exp(1j * np.arange(16.0)).reshape(2, 8)
    offsets = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    offsets = offsets[offsets < length]
    for out in (None, first_out):
        whole = resolution.phase_sum(theta, coefficients, length, first_out=out)
        part = resolution.phase_sum(theta, coefficients, length, first_out=out, blocks=blocks)
        np.testing.assert_allclose(part, whole[:, offsets], atol=1e-12)
    out = resolution.weight_out(resolution.uniform_weights(8), first_out, np.arange(length))
    np.testing.assert_allclose(out, (first_out[:, None] <= np.arange(length)).mean(0), atol=1e-12)


def test_a_sample_that_stands_for_one_offset_changes_nothing():
    logits = np.random.default_rng(0).normal(size=700)
    edges = np.arange(701.0)
    for star in (0, 3, 350, 699):
        assert resolution.g50(logits, star, edges=edges) == resolution.g50(logits, star)
        assert resolution.mass_within(logits, star, 9, edges=edges) == resolution.mass_within(logits, star, 9)


def test_estimates_from_samples_are_close_to_the_whole(monkeypatch):
    model = read_model(preset="llama-2-7b")
    whole = inspect_positions(model, target_length=2**17)
    # As beyond the limit, at a quarter of the size.
    monkeypatch.setattr(offset_samples, "MOST_OFFSETS", 2**15)
    sampled = inspect_positions(model, target_length=2**17)
    assert whole["settings"]["offsets"] == 2**17
    assert sampled["settings"]["offsets"] < 2**16.5
    assert "estimates from" in table_text(sampled)
    assert "estimates from" not in table_text(whole)
    assert "lower bound" not in table_text(whole)
    assert sampled["thresholds"] == whole["thresholds"]  # its scan has a limit of its own
    by_name = {option["name"]: option for option in sampled["options"]}
    for option in whole["options"]:
        other = by_name[option["name"]]
        for key in ("score", "score_trained", "score_new"):
            assert other[key] == pytest.approx(option[key], abs=0.02)
        for key in ("out_of_distribution_share", "fisher_ratio", "just_noticeable_difference"):
            assert other[key] == option[key]
        for one, two in zip(option["curve"], other["curve"], strict=True):
            assert two["coherence"] == pytest.approx(one["coherence"], abs=1e-12)
            assert two["g50"] == pytest.approx(one["g50"], rel=0.25, abs=4)


def test_a_dip_between_samples_makes_a_lower_bound(monkeypatch):
    theta = read_model(preset="llama-2-7b").main_group.rotary.inverse_frequencies
    whole = thresholds.non_negative_multiplier(theta, target_length=2**17)
    assert whole.offsets == 2**17 + 1
    monkeypatch.setattr(offset_samples, "MOST_OFFSETS", 2**13)
    sampled = thresholds.non_negative_multiplier(theta, target_length=2**17)
    assert sampled.offsets <= 2**16
    assert 1 < sampled.multiplier <= whole.multiplier


def test_memory_does_not_grow_with_the_target():
    tracemalloc.start()
    try:
        inspect_positions(read_model(preset="llama-2-7b"), target_length=2**24)
        assert tracemalloc.get_traced_memory()[1] < 150e6  # bytes; it was 1.5e9 at 2^20, 2e10 here
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("head_dim", [2050, 16_000])  # beyond 16,384 the config itself is refused
def test_too_many_pairs_are_refused_with_their_size(head_dim, monkeypatch):
    model = positions_of({**CONFIG, "head_dim": head_dim}, origin="wide.json")
    monkeypatch.setattr(options, "stars", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(InputError, match=rf"^wide\.json: a rotary dimension of {head_dim:,} makes .* [\d.]+ GB"):
        inspect_positions(model, target_length=8192)


def test_wide_heads_are_inspected():
    model = positions_of({**CONFIG, "head_dim": 2048}, origin="wide.json")
    record = inspect_positions(model, target_length=2**15)
    assert record["settings"]["offsets"] < 2**15
    assert len(record["layer_groups"][0]["pairs"]) == 1024
