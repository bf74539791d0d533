import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rope_jax.statistics import ranks

RNG = np.random.default_rng(0)


def _measured(base, noise, clusters, rng=RNG):
    """Cells share what a context does to all of them, and have noise of their own."""
    cells, groups = base.shape
    shared = rng.standard_normal((clusters, 1, groups))
    return base + shared + noise * rng.standard_normal((clusters, cells, groups))


def test_it_is_scipys_spearman_of_the_means_in_each_group():
    predicted, measured = RNG.standard_normal((7, 3)), RNG.standard_normal((5, 7, 3))
    got = ranks.within_group_spearman(predicted, measured)
    each = [stats.spearmanr(predicted[:, g], measured[..., g].mean(axis=0)).statistic for g in range(3)]
    assert got.correlation.mean == pytest.approx(np.mean(each))
    assert (got.groups, got.constant) == (3, 0)
    assert -1 <= got.correlation.low <= got.correlation.mean <= got.correlation.high <= 1


def test_ties_share_their_middle_rank():
    predicted = np.array([[1.0], [1.0], [2.0], [3.0]])
    measured = np.array([[[0.2], [0.5], [0.5], [0.9]]] * 2)
    got = ranks.within_group_spearman(predicted, measured)
    assert got.correlation.mean == pytest.approx(stats.spearmanr([1, 1, 2, 3], [0.2, 0.5, 0.5, 0.9]).statistic)


def test_equal_means_of_other_parts_are_ties():
    # 0.1 + 0.2 and 0.3 + 0.0 differ in the last digit.
    measured = np.array([[[0.1], [0.3], [0.9]], [[0.2], [0.0], [0.9]]])
    got = ranks.within_group_spearman(np.array([[1.0], [2.0], [3.0]]), measured)
    assert got.correlation.mean == pytest.approx(stats.spearmanr([1, 2, 3], [1, 1, 2]).statistic)


def test_groups_without_an_order_are_left_out_and_counted():
    predicted, measured = RNG.standard_normal((6, 4)), RNG.standard_normal((5, 6, 4))
    predicted[:, 1] = 2.0
    measured[:, :, 3] = RNG.standard_normal((5, 1))  # the same in every cell of a context
    got = ranks.within_group_spearman(predicted, measured)
    assert got == ranks.RankAgreement(
        ranks.within_group_spearman(predicted[:, [0, 2]], measured[:, :, [0, 2]]).correlation, 2, 2
    )


def test_nothing_to_rank_has_no_correlation():
    assert ranks.within_group_spearman(np.ones((4, 2)), RNG.standard_normal((3, 4, 2))) == ranks.RankAgreement(
        None, 0, 2
    )
    assert ranks.within_group_spearman(np.ones((1, 2)), np.ones((3, 1, 2))).correlation is None


def test_one_cluster_has_no_interval():
    got = ranks.within_group_spearman(RNG.standard_normal((4, 2)), RNG.standard_normal((1, 4, 2)))
    assert got.correlation.low is None
    assert got.correlation.high is None


def test_a_resample_without_an_order_does_not_break_the_interval():
    # Only where both clusters are drawn do the cells differ in one group.
    measured = np.zeros((2, 3, 1))
    measured[0, :, 0] = [0, 1, 2]
    got = ranks.within_group_spearman(np.array([[1.0], [2.0], [3.0]]), measured)
    assert (got.correlation.mean, got.correlation.high) == (1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    measured = np.ones((2, 3, 1))
    measured[0, 1, 0] = bad
    with pytest.raises(ValueError, match="finite"):
        ranks.within_group_spearman(np.ones((3, 1)), measured)


def test_no_clusters_are_refused():
    with pytest.raises(ValueError, match="at least one cluster"):
        ranks.within_group_spearman(np.ones((3, 1)), np.ones((0, 3, 1)))


@given(st.integers(0, 1000))
def test_only_the_order_counts_and_turning_it_turns_the_sign(seed):
    rng = np.random.default_rng(seed)
    predicted, measured = rng.standard_normal((5, 2)), rng.standard_normal((4, 5, 2))
    plain = ranks.within_group_spearman(predicted, measured)
    assert ranks.within_group_spearman(np.exp(predicted), measured) == plain
    offsets = rng.standard_normal(2)  # far is harder than near in every cell
    moved = ranks.within_group_spearman(predicted, measured + offsets)
    assert moved.correlation.mean == pytest.approx(plain.correlation.mean)
    turned = ranks.within_group_spearman(-predicted, measured)
    np.testing.assert_allclose(
        [turned.correlation.mean, turned.correlation.low, turned.correlation.high],
        [-plain.correlation.mean, -plain.correlation.high, -plain.correlation.low],
        atol=1e-12,
    )


@pytest.mark.parametrize(("noise", "clip"), [(0.5, None), (2.0, None), (5.0, None), (2.0, 1.0)])
@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_coverage_of_what_as_many_contexts_give(rho, noise, clip):
    clusters, cells, groups, draws = 24, 8, 4, 150
    rng = np.random.default_rng(5)
    base = rng.standard_normal((cells, groups))
    predicted = rho * base + np.sqrt(1 - rho**2) * rng.standard_normal((cells, groups))

    def draw():
        measured = _measured(base, noise, clusters, rng)
        return measured if clip is None else np.clip(measured, -clip, clip)

    truth = np.mean(
        [
            np.mean(ranks._correlations(ranks._centred_ranks(predicted), draw().mean(axis=0)))
            for _ in range(1500)
        ]
    )  # fmt: skip
    inside = 0
    for _ in range(draws):
        value = ranks.within_group_spearman(predicted, draw()).correlation
        inside += value.low <= truth <= value.high
    assert inside / draws >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / draws)
