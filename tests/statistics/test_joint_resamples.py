import numpy as np
import pytest
from scipy import stats

from rope_jax.statistics.joint_resamples import joint_resamples


@pytest.mark.parametrize("contexts", [2, 3, 4, 7, 20])
def test_weights_of_either_half_add_up_to_one(contexts):
    drawn = joint_resamples(contexts, resamples=200)
    for weights in (*drawn.plain, *drawn.halves):
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        assert weights.min() >= 0
    assert sum(drawn.sizes) == 1


@pytest.mark.parametrize("contexts", [4, 7, 20])
def test_halves_share_no_context_and_hold_all(contexts):
    drawn = joint_resamples(contexts, resamples=200)
    (first, second), (one, other) = drawn.plain, drawn.halves
    assert not ((first > 0) & (second > 0)).any()
    assert ((first > 0) | (second > 0)).all()
    assert not ((one > 0) & (first == 0)).any()  # what is valued on is a resample of its own half
    assert not ((other > 0) & (second == 0)).any()


@pytest.mark.parametrize("contexts", [2, 3, 6, 20, 80])
def test_stretched_means_of_normal_values_are_spread_as_students_t(contexts):
    drawn = joint_resamples(contexts)
    rng, held = np.random.default_rng(1), []
    for _ in range(150):
        values = rng.standard_normal((1, contexts, 1))
        halves = [drawn.mean(weights, values)[:, 0] for weights in drawn.halves]
        mean = sum(size * half for size, half in zip(drawn.sizes, halves, strict=True))
        spread = values.mean() + (mean - values.mean()) * drawn.stretch
        low, high = np.quantile(spread, [0.1, 0.9])
        held.append(low <= 0 <= high)
    assert np.mean(held) == pytest.approx(0.8, abs=0.1 if contexts > 3 else 0.2)
    assert np.mean(drawn.stretch > 1) > 0.5


def test_deviations_have_the_tails_of_students_t():
    stretch = joint_resamples(20).stretch / np.sqrt(10 / 9)
    normal = np.random.default_rng(0).standard_normal(len(stretch))
    assert stats.kstest(normal * stretch, stats.t(19).cdf).pvalue > 0.01


def test_values_on_the_first_contexts_are_weighted_by_them_alone():
    drawn = joint_resamples(20, resamples=50)
    values = np.random.default_rng(0).standard_normal((1, 8, 2))
    padded = np.concatenate([values, np.full((1, 12, 2), np.nan)], axis=1)
    part = drawn.mean(drawn.plain[0], values)
    weights = drawn.plain[0][:, :8]
    seen = weights.sum(axis=1) > 0
    assert seen.any()
    expected = (weights[seen] @ padded[0, :8]) / weights[seen].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(part[seen], expected)
    np.testing.assert_allclose(part[~seen], np.broadcast_to(values[0].mean(axis=0), part[~seen].shape))


def test_several_models_are_resampled_beside_the_contexts():
    drawn = joint_resamples(30, 6)
    values = np.random.default_rng(0).standard_normal((6, 1, 1)) * np.ones((6, 30, 1))
    means = drawn.mean(drawn.halves[0], values)[:, 0]
    np.testing.assert_allclose(means.std(), values[:, 0, 0].std() / np.sqrt(6), rtol=0.1)
    one = drawn.mean(drawn.halves[0], np.ones((6, 30, 1)))
    np.testing.assert_allclose(one, 1)


def test_one_context_is_refused():
    with pytest.raises(ValueError, match="does not vary"):
        joint_resamples(1)
