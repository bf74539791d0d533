import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rope_jax.statistics import intervals, multiplicity

P_VALUES = st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8)


def test_holm_by_hand():
    # Sorted .01, .02, .03, .04 times 4, 3, 2, 1: .04, .06, .06, .04, and never less than the one before.
    got = multiplicity.holm({"a": 0.03, "b": 0.01, "c": 0.04, "d": 0.02})
    assert list(got) == ["a", "b", "c", "d"]
    np.testing.assert_allclose(list(got.values()), [0.06, 0.04, 0.06, 0.06])


def test_holm_of_nothing_and_of_one():
    assert multiplicity.holm({}) == {}
    assert multiplicity.holm({("ntk", "alibi"): 0.2}) == {("ntk", "alibi"): 0.2}


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(ValueError, match="of a must be from 0 to 1"):
        multiplicity.holm({"a": p})


@given(P_VALUES)
def test_adjusted_values_are_larger_in_the_same_order_and_below_bonferroni(p_values):
    adjusted = multiplicity.holm(p_values)
    for name, p in p_values.items():
        assert p <= adjusted[name] <= min(1, len(p_values) * p)
        assert all(adjusted[name] <= adjusted[other] for other in p_values if p < p_values[other])
        assert all(adjusted[name] == adjusted[other] for other in p_values if p == p_values[other])


@given(P_VALUES, st.data())
def test_a_smaller_p_value_never_makes_an_adjusted_one_larger(p_values, data):
    smaller = {name: data.draw(st.floats(0, p)) for name, p in p_values.items()}
    before, after = multiplicity.holm(p_values), multiplicity.holm(smaller)
    assert all(after[name] <= before[name] for name in p_values)


def test_the_family_errs_in_no_more_than_five_of_a_hundred():
    """Eight comparisons of one thing with the same rows, so dependent, none of them real."""
    rng, errors, draws = np.random.default_rng(0), 0, 250
    for _ in range(draws):
        rows = rng.standard_normal((8, 12)) - rng.standard_normal(12)
        p_values = {arm: multiplicity.mean_p_value(row) for arm, row in enumerate(rows)}
        errors += min(multiplicity.holm(p_values).values()) <= 0.05
    assert errors / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


def test_few_rows_give_the_t_test():
    rows = np.random.default_rng(1).normal(0.5, 1, 12)
    assert multiplicity.mean_p_value(rows) == pytest.approx(stats.ttest_1samp(rows, 0).pvalue, abs=1e-6)


@pytest.mark.parametrize("shape", [(6,), (40,), (3, 24), (12, 24), (1, 30)])
@pytest.mark.parametrize("draw", range(5))
def test_p_values_agree_with_the_interval(shape, draw):
    values = np.random.default_rng(draw).normal(0.3, 1, shape)
    p = multiplicity.mean_p_value(values)
    make = intervals.estimate if len(shape) == 1 else intervals.clustered
    for confidence in (0.5, 0.8, 0.9, 0.95, 0.99, 0.999):
        value = make(values, confidence=confidence)
        assert (value.low > 0 or value.high < 0) == (p < 1 - confidence)


def test_p_values_are_even_where_nothing_is_there():
    rng = np.random.default_rng(2)
    p_values = np.array([multiplicity.mean_p_value(np.clip(rng.normal(0, 8, 32), -9.21, 9.21)) for _ in range(300)])
    for level in (0.05, 0.2, 0.5):
        assert abs((p_values <= level).mean() - level) <= 3.5 * np.sqrt(level * (1 - level) / 300)


def test_what_cannot_be_tested_is_never_significant():
    assert multiplicity.mean_p_value(np.array([3.0])) == 1
    assert multiplicity.mean_p_value(np.zeros(30)) == 1
    assert multiplicity.mean_p_value(np.zeros((3, 8))) == 1


def test_no_p_value_is_smaller_than_the_resampling_can_tell():
    assert multiplicity.mean_p_value(np.random.default_rng(3).normal(9, 1, 50)) == multiplicity.SMALLEST
    assert multiplicity.mean_p_value(np.full(8, 2.0)) == multiplicity.SMALLEST


def test_simultaneous_intervals_hold_together():
    assert multiplicity.simultaneous_confidence(1) == pytest.approx(0.95)
    confidence = multiplicity.simultaneous_confidence(7)
    assert confidence == pytest.approx(1 - 0.05 / 7)
    rng, together, draws = np.random.default_rng(4), 0, 200
    for _ in range(draws):
        values = [intervals.estimate(rng.standard_normal(24), confidence=confidence) for _ in range(7)]
        together += all(value.low <= 0 <= value.high for value in values)
    assert together / draws >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / draws)


def test_no_intervals_are_not_simultaneous():
    with pytest.raises(ValueError, match="1 or more"):
        multiplicity.simultaneous_confidence(0)
