import numpy as np
import pytest

from rope_jax.diagnosis import intervals


def test_one_row_has_no_interval_and_says_so():
    value = intervals.estimate(np.array([1.5]))
    assert (value.mean, value.low, value.high) == (1.5, None, None)
    assert "no interval" in intervals.method(1)


def test_few_rows_use_students_t_and_say_so():
    # Hand computation: mean 2, standard deviation 1, n 3, t(0.975, 2) = 4.302653.
    value = intervals.estimate(np.array([1.0, 2.0, 3.0]))
    half = 4.302653 / np.sqrt(3)
    np.testing.assert_allclose([value.mean, value.low, value.high], [2, 2 - half, 2 + half], rtol=1e-6)
    assert "t interval over 3 rows" in intervals.method(3)


def test_many_rows_are_resampled_whole_and_the_same_each_time():
    rows = np.random.default_rng(0).standard_normal(100)
    first, second = intervals.estimate(rows, seed=1), intervals.estimate(rows, seed=1)
    assert first == second
    assert first.low < first.mean < first.high
    np.testing.assert_allclose(first.high - first.low, 2 * 1.96 * rows.std() / 10, rtol=0.1)
    assert "whole rows" in intervals.method(100)


@pytest.mark.parametrize("rows", [6, 40])
def test_coverage_is_near_the_stated_confidence(rows):
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(300):
        value = intervals.estimate(rng.standard_normal(rows))
        inside += value.low <= 0 <= value.high
    # Three binomial standard errors of 300 draws are 0.038; the percentile bootstrap is slightly short at 40 rows.
    assert 0.90 <= inside / 300 <= 0.99
