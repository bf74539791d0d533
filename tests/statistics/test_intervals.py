import numpy as np
import pytest
from scipy import stats

from rope_jax.statistics import intervals


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


def test_another_confidence_is_students_t_at_that_confidence():
    value = intervals.estimate(np.array([1.0, 2.0, 3.0]), confidence=0.99)
    half = 9.924843 / np.sqrt(3)  # t(0.995, 2)
    np.testing.assert_allclose([value.low, value.high], [2 - half, 2 + half], rtol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (40,), (3, 24), (12, 24), (1, 24)])
def test_more_confidence_gives_a_wider_interval(shape):
    limits = intervals.limits(np.random.default_rng(3).standard_normal(shape))
    ends = np.array([limits(confidence) for confidence in (0.5, 0.8, 0.95, 0.99, 0.999)])
    assert (np.diff(ends[:, 0]) < 0).all()
    assert (np.diff(ends[:, 1]) > 0).all()


@pytest.mark.parametrize("shape", [(6,), (40,), (3, 24), (12, 24)])
def test_intervals_move_and_turn_with_the_values(shape):
    values = np.random.default_rng(4).exponential(size=shape)
    make = intervals.estimate if len(shape) == 1 else intervals.clustered
    plain, moved, turned = make(values), make(2 * values + 5), make(-values)
    np.testing.assert_allclose([moved.low, moved.high], [2 * plain.low + 5, 2 * plain.high + 5], rtol=1e-9)
    np.testing.assert_allclose([turned.low, turned.high], [-plain.high, -plain.low], rtol=1e-9)


@pytest.mark.parametrize("confidence", [0.95, 0.99, 0.999, 0.9999])
def test_resampled_intervals_of_normal_rows_are_as_wide_as_students_t(confidence):
    # A plain percentile bootstrap of 20 rows is 9 % narrower at 95 % and 12 % at 99 %.
    rng, ratios = np.random.default_rng(9), []
    for _ in range(100):
        rows = rng.standard_normal(20)
        value = intervals.estimate(rows, confidence=confidence)
        half = stats.t.ppf((1 + confidence) / 2, 19) * rows.std(ddof=1) / np.sqrt(20)
        ratios.append((value.high - value.low) / (2 * half))
    assert np.mean(ratios) == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, 95.0, float("nan")])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        intervals.estimate(np.array([1.0, 2.0]), confidence=confidence)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        intervals.estimate(np.zeros(0))
    with pytest.raises(ValueError, match="at least one row"):
        intervals.clustered(np.zeros((2, 0)))


def test_one_seed_is_judged_over_contexts_and_says_so():
    values = np.random.default_rng(5).standard_normal((1, 24))
    assert intervals.clustered(values) == intervals.estimate(values[0])
    assert "conditional on this one checkpoint" in intervals.clustered_method(1, 24)
    assert intervals.clustered(np.ones((1, 1))) == intervals.Estimate(1.0, None, None)


def test_one_context_is_judged_over_seeds_and_says_so():
    values = np.random.default_rng(5).standard_normal((4, 1))
    assert intervals.clustered(values) == intervals.estimate(values[:, 0])
    assert "conditional on this one context" in intervals.clustered_method(4, 1)


def test_few_seeds_are_students_t_on_seed_means_where_contexts_agree():
    # Seed means 1, 2, 3, as in the hand computation above; contexts do not vary.
    value = intervals.clustered(np.tile([[1.0], [2.0], [3.0]], (1, 24)))
    half = 4.302653 / np.sqrt(3)
    np.testing.assert_allclose([value.mean, value.low, value.high], [2, 2 - half, 2 + half], rtol=1e-6)
    assert "t intervals over 3 seed means" in intervals.clustered_method(3, 24)


def test_few_seeds_that_agree_still_vary_over_contexts():
    contexts = np.random.default_rng(6).standard_normal(12)
    value, alone = intervals.clustered(np.tile(contexts, (3, 1))), intervals.estimate(contexts)
    np.testing.assert_allclose([value.low, value.high], [alone.low, alone.high])


def test_many_seeds_are_resampled_with_the_contexts():
    values = np.random.default_rng(6).standard_normal((40, 1)) + np.random.default_rng(7).standard_normal((1, 60))
    value = intervals.clustered(values)
    assert value == intervals.clustered(values)
    error = np.sqrt(values.mean(1).var(ddof=1) / 40 + values.mean(0).var(ddof=1) / 60)
    np.testing.assert_allclose(value.high - value.low, 2 * 1.96 * error, rtol=0.1)
    assert "40 seeds and 60 contexts together" in intervals.clustered_method(40, 60)


def _log_odds(rng, shape):
    """Mostly near the limit, as those of a probe that is well learned."""
    return np.clip(rng.normal(6, 5, shape), -9.21, 9.21)


def _paired(rng, shape):
    """Falls of clipped log-odds: bounded and skewed."""
    before = np.clip(rng.normal(7, 4, shape), -9.21, 9.21)
    return before - np.clip(before - rng.exponential(2, shape), -9.21, 9.21)


WORLDS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "log_odds": _log_odds,
    "paired": _paired,
    "accuracy": lambda rng, shape: rng.binomial(16, 0.9, shape) / 16,
}


# By how much intervals of skewed values hold the truth less often than they say, as documented: six rows, more rows.
SHORT = {"normal": (0.0, 0.0), "log_odds": (0.02, 0.0), "paired": (0.08, 0.03), "accuracy": (0.03, 0.0)}


def _coverage(make, draw, truth, *, draws, confidence):
    rng = np.random.default_rng(7)
    values = [make(draw(rng), confidence=confidence) for _ in range(draws)]
    return np.mean([value.low <= truth <= value.high for value in values])


@pytest.mark.parametrize(("rows", "confidence"), [(6, 0.95), (24, 0.95), (40, 0.95), (6, 0.99), (32, 0.99)])
@pytest.mark.parametrize("world", WORLDS)
def test_coverage_is_the_stated_confidence(world, rows, confidence):
    draw, draws = WORLDS[world], 400
    truth = draw(np.random.default_rng(1), 1_000_000).mean()
    got = _coverage(intervals.estimate, lambda rng: draw(rng, rows), truth, draws=draws, confidence=confidence)
    slack = 3 * np.sqrt(confidence * (1 - confidence) / draws)
    assert confidence - slack - SHORT[world][rows > 6] <= got <= confidence + slack


@pytest.mark.parametrize("spread", [(0.5, 0.5, 0.5), (0.1, 0.5, 0.5), (0.5, 0.1, 0.5), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize(("seeds", "contexts"), [(2, 24), (3, 24), (12, 24), (12, 64)])
def test_coverage_over_seeds_and_contexts(seeds, contexts, spread):
    """Spread of seeds, of contexts, and of what is left; never short, and wide where only the last counts."""

    def draw(rng):
        parts = (rng.standard_normal(shape) for shape in ((seeds, 1), (1, contexts), (seeds, contexts)))
        return sum(s * part for s, part in zip(spread, parts, strict=True))

    got = _coverage(intervals.clustered, draw, 0, draws=200, confidence=0.95)
    assert got >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)


def test_coverage_over_seeds_of_bounded_values():
    """Three models and clipped log-odds; the truth is that of all models and contexts."""

    def draw(rng):
        return np.clip(
            6 + rng.normal(0, 1, (3, 1)) + rng.normal(0, 3, (1, 24)) + rng.normal(0, 3, (3, 24)), -9.21, 9.21
        )

    rng = np.random.default_rng(2)
    truth = np.clip(rng.normal(6, np.sqrt(19), 2_000_000), -9.21, 9.21).mean()
    assert _coverage(intervals.clustered, draw, truth, draws=500, confidence=0.95) >= 0.92


def test_one_checkpoint_is_covered_conditionally_and_not_beyond():
    """The interval of one model holds that model's own mean, and not that of all models."""
    rng, own, population, draws = np.random.default_rng(8), 0, 0, 400
    for _ in range(draws):
        seed_effect = rng.standard_normal()
        value = intervals.clustered(seed_effect + rng.standard_normal((1, 24)))
        own += value.low <= seed_effect <= value.high
        population += value.low <= 0 <= value.high
    assert abs(own / draws - 0.95) <= 3 * np.sqrt(0.95 * 0.05 / draws)
    assert population / draws < 0.6
