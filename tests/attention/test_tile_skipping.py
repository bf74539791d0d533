"""Leaving tiles out: never beyond rounding, whatever the slopes and values; and that tiles really are left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_suite import Checks, exactly
from problems import problem_of

from rope_jax.attention import blockwise, blockwise_backward, online_softmax, operands

ROWS, COLUMNS = 64, 32
TOKENS = 384
V_DIM = 7  # tells tiles of values from others
SHAPE = {"tokens": TOKENS, "v_dim": V_DIM, "max_offset": 0, "bias": "none"}
ROUNDING = 2.0**-24


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(operands, "ROWS", ROWS)
    monkeypatch.setattr(operands, "COLUMNS", COLUMNS)
    monkeypatch.setattr(operands, "LEAST_BLOCKS", 1)


class Skipping(Checks):
    attend = staticmethod(blockwise.attend)


def with_slopes(problem, slopes, **changes):
    scheme = dataclasses.replace(problem.scheme, slopes=jnp.asarray(slopes, jnp.float32))
    return dataclasses.replace(problem, scheme=scheme, **changes)


def far_is(problem, *, times, near=1.0):
    """Returns the problem with the values of the first half of the keys multiplied."""
    half = jnp.arange(problem.v.shape[1])[None, :, None, None] < problem.v.shape[1] // 2
    return dataclasses.replace(problem, v=problem.v * jnp.where(half, times, near))


def check(problem):
    """Holds output and gradients, tiles left out, to those with all of them, and both to the oracle."""
    whole = dataclasses.replace(problem, settings=dataclasses.replace(problem.settings, skip_tiles=False))
    Skipping.check(problem)
    _, sizes = exactly(problem)
    some, all_of_them = Skipping.run(problem), Skipping.run(whole)
    for name, x in some.items():
        # What is left out is at most half a unit in the last place of a row, and moves the last bit of sums.
        np.testing.assert_allclose(x, all_of_them[name], rtol=0, atol=4 * ROUNDING * sizes[name], err_msg=name)
    rows = np.abs(all_of_them["out"]).max(axis=-1)
    wrong = np.abs(some["out"] - all_of_them["out"]).max(axis=-1)
    assert (wrong <= 4 * ROUNDING * rows).all()  # row by row too: a large row does not excuse a small one


SLOPES = {
    "paper": [0.25, 0.0625, 0.015625, 0.00390625],
    "steep": [2.0, 2.0, 0.5, 0.5],
    "of one group apart": [1.0, 1e-3, 3.0, 0.0],
    "negative": [-0.5, -0.1, -0.01, -2.0],
    "zero": [0.0, 0.0, 0.0, 0.0],
    "learned": [0.7, -0.02, 1.3, 0.4],
}


@pytest.mark.parametrize("slopes", SLOPES.values(), ids=SLOPES)
def test_slopes(slopes):
    check(with_slopes(problem_of(**SHAPE), slopes))


@pytest.mark.parametrize("slopes", [SLOPES["steep"], SLOPES["learned"]], ids=["steep", "learned"])
@pytest.mark.parametrize(("times", "near"), [(1e6, 1.0), (1e6, 1e-6), (1e-6, 1.0), (1e20, 1e-10)])
def test_values_far_away_of_another_size(slopes, times, near):
    check(far_is(with_slopes(problem_of(**SHAPE), slopes), times=times, near=near))


def test_values_of_zero_nearby():
    check(far_is(with_slopes(problem_of(**SHAPE), SLOPES["steep"]), times=1.0, near=0.0))


def test_a_key_far_away_that_stands_out():
    problem = with_slopes(problem_of(**SHAPE), SLOPES["steep"])
    keys = problem.k.at[:, 5].multiply(300.0)  # worth more than its distance costs
    check(dataclasses.replace(problem, k=keys))
    assert np.any(np.abs(Skipping.run(dataclasses.replace(problem, k=keys))["v"][:, 5]) > 1e-3)


@pytest.mark.parametrize("segments", ["ragged", "packed", "strangers"])
def test_segments(segments):
    check(with_slopes(problem_of(**SHAPE, segments=segments), SLOPES["steep"]))


def test_permuted_positions():
    check(with_slopes(problem_of(**SHAPE, positions="permuted"), SLOPES["steep"]))


def test_sinks_and_caps():
    check(with_slopes(problem_of(**SHAPE, sinks=True, soft_cap=2.0), SLOPES["steep"]))


def test_both_ways_with_a_strip():
    problem = problem_of(**{**SHAPE, "max_offset": 24, "bias": "line and strip"}, causal=False)
    check(with_slopes(problem, SLOPES["steep"]))


def test_a_small_part_of_a_row_is_kept_to_the_size_of_that_row():
    """One dimension of the values is all but nothing nearby: what is lost there is rounding of the row's largest."""
    problem = with_slopes(problem_of(**SHAPE), SLOPES["steep"])
    check(dataclasses.replace(problem, v=problem.v.at[:, TOKENS // 2 :, :, 0].multiply(1e-9)))


def visits(problem, *, skip_tiles):
    """Returns how many tiles the forward and the backward pass compute, over sequences and key heads."""
    counts = {"forward": 0, "backward": 0}

    def counted(which, at):
        def count(x, index):
            # Each tile that is computed reads its values, or backward the gradients of its outputs, once.
            if x.ndim == 3 and x.shape[-1] == V_DIM:
                jax.debug.callback(lambda _: counts.update({which: counts[which] + 1}), index)
            return at(x, index)

        return count

    class Counting(Checks):  # a class of its own has a program of its own, traced with the counters in place
        attend = staticmethod(blockwise.attend)

    settings = dataclasses.replace(problem.settings, skip_tiles=skip_tiles)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operands, "LEAST_BLOCKS", TOKENS)  # one tile of queries at a time, so that tiles can be counted
        patch.setattr(online_softmax, "at", counted("forward", operands.at))
        patch.setattr(blockwise_backward, "at", counted("backward", operands.at))
        Counting.run(dataclasses.replace(problem, settings=settings))
        jax.effects_barrier()
    return counts["forward"], counts["backward"]


TWO_HEADS = {"batch": 1, "heads": 2, "kv_heads": 2}
TILES = range(TOKENS // ROWS)
ALL = sum((i + 1) * ROWS // COLUMNS for i in TILES)  # the tiles of one head that reach below the diagonal


def test_all_tiles_are_computed_where_nothing_may_be_left_out():
    problem = problem_of(**SHAPE, **TWO_HEADS)
    assert visits(with_slopes(problem, [2.0, 2.0]), skip_tiles=False) == (2 * ALL, 2 * ALL)


def test_where_all_keys_count_alike_nothing_is_left_out():
    problem = problem_of(**SHAPE, **TWO_HEADS)
    assert visits(with_slopes(problem, [0.0, 0.0]), skip_tiles=True) == (2 * ALL, 2 * ALL)


def test_tiles_far_from_the_diagonal_are_left_out():
    """Of a falling line each tile of queries meets two tiles of keys on the diagonal, and at most one more."""
    problem = with_slopes(problem_of(**SHAPE, **TWO_HEADS), [2.0, 0.0])
    for count in visits(problem, skip_tiles=True):
        assert ALL + 2 * len(TILES) <= count < ALL + 3 * len(TILES)


def test_a_line_that_rises_with_distance_is_followed_to_its_end():
    forward, backward = visits(with_slopes(problem_of(**SHAPE, **TWO_HEADS), [-1.0, -1.0]), skip_tiles=True)
    assert forward == 2 * ALL  # what counts is met last
    assert backward < 2 * ALL  # by then it is known that what lies near does not count
