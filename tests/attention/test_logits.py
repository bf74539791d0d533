"""The logits of a tile: skewed strips, separated lines and masks against what they stand for, entry by entry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax.attention.call import Settings, Tokens, visible
from rope_jax.attention.logits import (
    Side,
    separated_line,
    skew,
    strip_gradient,
    sum_diagonals,
    tile_mask,
    written_bias,
)

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 3), (3, 5), (8, 8)]
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def side(positions, sign, segments=None, contiguous=None):
    positions = jnp.asarray(positions, jnp.int32)
    if contiguous is None:
        contiguous = bool(np.all(np.diff(np.asarray(positions)) == 1))
    segments = jnp.zeros_like(positions) if segments is None else jnp.asarray(segments, jnp.int32)
    return Side(positions, segments, jnp.asarray(contiguous), sign)


def tiles():
    """Rows and columns: contiguous ones at every offset that matters to a strip of 4, others in any order."""
    for start in (-9, -4, -1, 0, 2, 5, 20):
        yield side(np.arange(start, start + 6), 1), side(np.arange(9), -1)
        yield side(np.arange(9), -1), side(np.arange(start, start + 6), 1)  # keys as the rows
    yield side(RNG.integers(0, 30, 6), 1, contiguous=False), side(RNG.integers(0, 30, 9), -1, contiguous=False)
    yield side(RNG.permutation(9), -1), side(np.arange(6), 1)


def expected_bias(slopes, strip, rows, columns):
    slopes, strip = np.asarray(slopes, np.float64), np.asarray(strip, np.float64)
    offset = rows.sign * (np.asarray(rows.positions)[:, None] - np.asarray(columns.positions)[None, :])
    reach = strip.shape[1] // 2
    return offset, -slopes[:, None, None] * np.abs(offset) + strip[:, np.clip(offset, -reach, reach) + reach]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_skew_repeats_one_slot_earlier_in_each_row(rows, columns):
    diagonals = normal(2, rows + columns)
    tile = np.asarray(skew(diagonals, rows, columns))
    for r in range(rows):
        for c in range(columns):
            np.testing.assert_array_equal(tile[:, r, c], diagonals[:, rows - 1 - r + c])


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_sum_of_diagonals_is_the_transpose_of_skew(rows, columns):
    tile = normal(2, rows, columns)
    transposed = jax.linear_transpose(lambda d: skew(d, rows, columns), jnp.zeros((2, rows + columns)))
    np.testing.assert_allclose(sum_diagonals(tile), transposed(tile)[0], atol=1e-6)
    expected = np.zeros((2, rows + columns))
    for r in range(rows):
        for c in range(columns):
            expected[:, rows - 1 - r + c] += np.asarray(tile)[:, r, c]
    np.testing.assert_allclose(sum_diagonals(tile), expected, atol=1e-6)


@pytest.mark.parametrize("reach", [0, 1, 4, 30])
def test_written_bias_is_the_line_and_the_strip(reach):
    slopes, strip = jnp.asarray([0.5, -0.25, 0.0]), normal(3, 2 * reach + 1)
    for rows, columns in tiles():
        found = jax.jit(written_bias)(slopes, strip, rows, columns)
        np.testing.assert_allclose(found, expected_bias(slopes, strip, rows, columns)[1], atol=1e-6)


@pytest.mark.parametrize("reach", [0, 1, 4, 30])
def test_strip_gradient_gathers_each_offset(reach):
    strip = normal(3, 2 * reach + 1)
    for rows, columns in tiles():
        d_bias = normal(3, rows.positions.shape[0], columns.positions.shape[0])
        offset, _ = expected_bias(jnp.zeros(3), strip, rows, columns)
        expected = np.zeros(strip.shape)
        for group in range(3):
            np.add.at(expected[group], np.clip(offset, -reach, reach) + reach, np.asarray(d_bias, np.float64)[group])
        np.testing.assert_allclose(jax.jit(strip_gradient)(d_bias, strip, rows, columns), expected, atol=1e-5)


@pytest.mark.parametrize("reach", [0, 4])
def test_a_separated_line_adds_up_to_the_written_bias_of_a_plain_tile(reach):
    slopes, strip = jnp.asarray([0.5, -0.25, 0.0]), normal(3, 2 * reach + 1)
    positions = 100 + RNG.permutation(6)
    behind, ahead = 100 - reach - RNG.permutation(9), 105 + reach + RNG.permutation(9)
    of_query, of_key, which = separated_line(
        slopes, strip, jnp.asarray(positions), jnp.asarray(np.stack([behind, ahead]))
    )
    assert which.tolist() == [0, 1]
    for tile, kv_positions in enumerate((behind, ahead)):
        whole = of_query[which[tile]][:, :, None] + of_key[tile][:, None, :]
        _, expected = expected_bias(slopes, strip, side(positions, 1), side(kv_positions, -1))
        np.testing.assert_allclose(whole, expected, atol=1e-5)


def test_a_line_is_precise_far_from_position_zero():
    positions = 2**30 + np.arange(8)
    of_query, of_key, which = separated_line(
        jnp.asarray([1 / 3]), jnp.zeros((1, 1)), jnp.asarray(positions), jnp.asarray(positions[None] - 8)
    )
    whole = np.asarray(of_query[which[0]])[0][:, None] + np.asarray(of_key)[0, 0][None, :]
    distance = np.subtract.outer(positions, positions - 8)
    np.testing.assert_allclose(whole, -np.float64(np.float32(1 / 3)) * distance, rtol=3e-7)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 4])
def test_the_mask_of_a_tile_is_what_is_visible(causal, window):
    settings = Settings(1.0, causal=causal, window=window)
    queries = side(RNG.integers(0, 12, 6), 1, RNG.integers(-1, 2, 6))
    keys = side(RNG.integers(0, 12, 9), -1, RNG.integers(-1, 2, 9))
    expected = visible(*(Tokens(x.positions, x.segments) for x in (queries, keys)), causal=causal, window=window)
    np.testing.assert_array_equal(tile_mask(queries, keys, settings), expected)
    np.testing.assert_array_equal(tile_mask(keys, queries, settings), expected.T)
