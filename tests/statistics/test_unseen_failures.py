"""What was not seen may still happen: intervals of rows that all agree are as wide as the rule of three says."""

import numpy as np
import pytest

from rope_jax.statistics import intervals


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("rows", [1, 2, 20, 160])
def test_the_rule_of_three_is_the_share_that_stays_unseen_as_often_as_allowed(rows, confidence):
    share = intervals.rule_of_three(rows, confidence)
    np.testing.assert_allclose((1 - share) ** rows, 1 - confidence)
    if rows == 160 and confidence == 0.95:
        np.testing.assert_allclose(share, 3 / rows, rtol=0.02)


@pytest.mark.parametrize("shape", [(20,), (6,), (1, 20), (6, 20), (12, 20)])
def test_rows_that_all_agree_have_an_interval_either_way(shape):
    make = intervals.estimate if len(shape) == 1 else intervals.clustered
    value = make(np.full(shape, 0.5), unseen=1.0)
    floor = intervals.rule_of_three(shape[-1])
    np.testing.assert_allclose([value.low, value.mean, value.high], [0.5 - floor, 0.5, 0.5 + floor])
    assert make(np.full(shape, 0.5)).low == 0.5  # nothing is known of what was not seen: no width is made up


def test_rows_that_vary_more_are_not_widened():
    rows = np.random.default_rng(0).standard_normal(20)
    assert intervals.estimate(rows, unseen=0.1) == intervals.estimate(rows)


def test_one_row_has_no_interval_whatever_was_not_seen():
    assert intervals.estimate(np.ones(1), unseen=1.0) == intervals.Estimate(1.0, None, None)


@pytest.mark.parametrize(("worth", "rest"), [(1.0, 0.0), (4.6, 0.0), (4.6, 0.2)])
@pytest.mark.usefixtures("without_type_checks")
def test_one_row_in_twelve_that_fails_is_covered_at_twenty_rows(worth, rest):
    """Without the floor 83 % hold; with it no fewer than are meant, whether or not the other rows vary a little."""
    rng, draws = np.random.default_rng(3), 500
    fails = rng.random((draws, 20)) < 1 / 12
    rows = np.where(fails, -worth, 0.0) + rest * rng.standard_normal((draws, 20))
    held = {0.0: 0, worth: 0}
    for unseen in held:
        for row, failed in zip(rows, fails, strict=True):
            value = intervals.estimate(row, unseen=0.0 if failed.any() else unseen)
            held[unseen] += value.low - 1e-12 <= -worth / 12 <= value.high + 1e-12
    assert held[0.0] / draws < 0.87
    assert held[worth] / draws > 0.93
