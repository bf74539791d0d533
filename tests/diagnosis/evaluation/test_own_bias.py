"""A team's own bias is read exactly, or refused in one line."""

import numpy as np
import pytest

from rope_jax.biases import T5, Alibi
from rope_jax.diagnosis.evaluation.own_bias import read_own_bias
from rope_jax.errors import RopeJaxError


def saved(tmp_path, values):
    file = tmp_path / "bias.npy"
    np.save(file, values)
    return file


def test_slopes_and_tables_are_taken_as_they_are(tmp_path):
    slopes = read_own_bias(saved(tmp_path, np.array([0.5, 0.25], np.float32)))
    assert isinstance(slopes, Alibi)
    np.testing.assert_array_equal(slopes.slopes, [0.5, 0.25])
    values = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    table = read_own_bias(saved(tmp_path, values), max_distance=64)
    assert isinstance(table, T5)
    np.testing.assert_array_equal(table.table, values)
    assert table.max_distance == 64


@pytest.mark.parametrize(
    ("values", "distance", "message"),
    [
        (np.zeros((2, 3, 4), np.float32), 64, "got float32 \\(2, 3, 4\\)"),
        (np.zeros(0, np.float32), 64, "needs floats"),
        (np.zeros(2, np.int32), 64, "got int32"),
        (np.array([0.5, np.nan]), 64, "nan at \\[1\\] is not finite"),
        (np.array([[0.5, 1e300]]), 64, "beyond float32"),
        (np.zeros((2, 8), np.float32), None, "a table needs the distance"),
        (np.zeros((2, 8), np.float32), 1, "max_distance must be above"),
        (np.zeros((2, 1), np.float32), 64, "num_buckets must be at least 2"),
    ],
)
def test_what_is_neither_is_refused_by_its_file_or_its_reason(tmp_path, values, distance, message):
    with pytest.raises(RopeJaxError, match=message):
        read_own_bias(saved(tmp_path, values), max_distance=distance)
