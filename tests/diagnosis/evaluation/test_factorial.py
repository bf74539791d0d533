import numpy as np
import pytest

from rope_jax.diagnosis.evaluation import factorial
from rope_jax.diagnosis.tasks.subject import short_and_long

RNG = np.random.default_rng(0)
SCALINGS, BIASES = ("none", "ntk", "yarn"), ("none", "alibi")


@pytest.fixture
def losses():
    """An additive world with one planted interaction, on 4 rows of 9 tokens, trained at 4."""
    rows = RNG.standard_normal((4, 1))
    scaling = {"none": 0.0, "ntk": 1.0, "yarn": -0.5}
    bias = {"none": 0.0, "alibi": 2.0}
    long = np.arange(1, 9) >= 4  # the tokens whose losses these are
    made = {}
    for s in SCALINGS:
        for b in BIASES:
            together = 0.75 if (s, b) == ("ntk", "alibi") else 0.0
            made[s, b] = (3 + rows + np.where(long, scaling[s] + bias[b] + together, 0.1 * bias[b])).astype(np.float32)
    return made


def test_effects_recover_what_was_planted(losses):
    long = factorial.effects(losses, trained_length=4)["long"]
    # A main effect averages over the other factor: half of ntk's interaction falls on it, a third on alibi.
    assert long.scaling["ntk"].mean == pytest.approx(1.0 + 0.75 / 2, abs=1e-5)
    assert long.scaling["yarn"].mean == pytest.approx(-0.5, abs=1e-5)
    assert long.bias["alibi"].mean == pytest.approx(2.0 + 0.75 / 3, abs=1e-5)
    assert long.interaction["ntk", "alibi"].mean == pytest.approx(0.75, abs=1e-5)
    assert long.interaction["yarn", "alibi"].mean == pytest.approx(0.0, abs=1e-5)


def test_pairing_by_row_removes_what_rows_share(losses):
    long = factorial.effects(losses, trained_length=4)["long"]
    value = long.interaction["ntk", "alibi"]
    assert value.high - value.low < 1e-4  # rows differ by about 1, yet the paired difference is constant


def test_cells_are_compared_with_the_unchanged_model(losses):
    cells = factorial.cell_results(losses, trained_length=4, bins=[(0, 3), (3, 8)])
    assert cells["none", "none"].short_cost.mean == 0
    assert cells["none", "none"].long_gain.mean == 0
    assert cells["none", "alibi"].short_cost.mean == pytest.approx(0.2, abs=1e-5)
    assert cells["yarn", "none"].long_gain.mean == pytest.approx(0.5, abs=1e-5)
    loss = losses["ntk", "none"]
    assert cells["ntk", "none"].by_bin[1].mean == pytest.approx(loss[:, 3:].mean(), abs=1e-5)


@pytest.mark.parametrize(
    ("trained", "length", "expected"),
    [
        (512, 4096, [(0, 255), (255, 511), (511, 1023), (1023, 2047), (2047, 4095)]),
        (512, 1000, [(0, 255), (255, 511), (511, 999)]),
        (64, 65, [(0, 31), (31, 63), (63, 64)]),
        (33, 70, [(0, 15), (15, 32), (32, 65), (65, 69)]),
    ],
)
def test_bins_partition_the_losses_and_hold_short_or_long_ones(trained, length, expected):
    bins = factorial.position_bins(trained, length)
    assert bins == expected
    covered = [position for low, high in bins for position in range(low, high)]
    assert covered == list(range(length - 1))
    short = short_and_long(trained)["short"].stop
    assert all(high <= short or low >= short for low, high in bins)
