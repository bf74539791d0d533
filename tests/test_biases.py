"""Slopes, buckets and kernels against published rules and values, and the gradient of every parameter."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax import biases
from rope_jax.biases import functions
from rope_jax.errors import ScalingError


def published_slopes(n):
    """The rule as Press et al. publish it: recursive, with the start of the series computed from the exponent."""

    def of_power_of_two(n):
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(n).is_integer():
        return of_power_of_two(n)
    closest = 2 ** math.floor(math.log2(n))
    return of_power_of_two(closest) + published_slopes(2 * closest)[0::2][: n - closest]


def test_slopes_of_every_head_count():
    for heads in range(1, 129):
        slopes = biases.paper_slopes(heads)
        assert slopes.shape == (heads,)
        np.testing.assert_allclose(slopes, published_slopes(heads), rtol=1e-12, err_msg=str(heads))
        if heads < 20:
            np.testing.assert_array_equal(biases.alibi_paper(heads).slopes, slopes.astype(np.float32))
        geometric = biases.geometric_slopes(heads)
        np.testing.assert_allclose(geometric, [2.0 ** (-8 * (h + 1) / heads) for h in range(heads)], rtol=1e-14)
        assert (heads & (heads - 1) == 0) == np.array_equal(slopes, geometric)


def test_geometric_variant_is_as_far_off_as_documented():
    paper, geometric = np.sort(biases.paper_slopes(40)), np.sort(biases.geometric_slopes(40))
    assert np.max(np.maximum(paper / geometric, geometric / paper)) == pytest.approx(2.3, abs=0.05)


def test_multiplier_and_inside_scale():
    np.testing.assert_allclose(biases.alibi_paper(6, multiplier=16.0).slopes, 16 * biases.paper_slopes(6), rtol=1e-6)
    inside = biases.alibi_inside_scale(8, head_dim=64, multiplier=2.0)
    np.testing.assert_allclose(inside.slopes, 2 * biases.paper_slopes(8) / 8, rtol=1e-6)
    np.testing.assert_allclose(biases.alibi_geometric(6).slopes, biases.geometric_slopes(6), rtol=1e-6)


def test_alibi_values_of_fairseq2_and_meta(real):
    golden = json.loads((real / "golden" / "alibi.json").read_text())
    printed = np.asarray(golden["fairseq2_4_heads_causal_4x4"]["printed_to_5_decimals"], np.float64)  # null: nan
    tokens = jnp.arange(4)
    ours = np.asarray(biases.alibi_paper(4)(tokens[:, None] - tokens[None]), np.float64)
    # They leave out what is constant in a row: theirs is m j, ours m (j - i).
    theirs = ours - ours[:, :, :1]
    seen = np.isfinite(printed)
    assert seen.sum() == 4 * 10
    np.testing.assert_allclose(theirs[seen], printed[seen], atol=6e-6)
    last_row = biases.alibi_paper(8)(jnp.arange(15, -1, -1))[-1]
    np.testing.assert_allclose(last_row, golden["meta_8_heads_seq16_last_head_last_row"], atol=6e-5)
    # Their 12 heads are sorted: the second and third steepest.
    steepest = np.sort(biases.paper_slopes(12))[::-1]
    for head, key in ((1, "head1_last_row"), (2, "head2_last_row")):
        expected = golden["meta_12_heads_seq16"][key]
        np.testing.assert_allclose(steepest[head] * np.arange(-15, 1), expected, atol=6e-5)


def test_alibi_is_symmetric_and_zero_at_zero():
    bias = biases.alibi_paper(4)(jnp.arange(-5, 6))
    np.testing.assert_array_equal(bias, bias[:, ::-1])
    assert not np.any(bias[:, 5])
    assert np.all(bias[:, :5] < 0)


# ---- T5


def test_a_looked_up_table_has_one_order_of_summation_and_the_same_numbers():
    rng = np.random.default_rng(0)
    table, weights = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 8), (3, 4, 50)))
    index = jnp.asarray(rng.integers(0, 8, (4, 50)), jnp.int32)

    def gradient(table):
        return jax.grad(lambda table: jnp.sum(functions._compared(table, index) * weights))(table)

    np.testing.assert_array_equal(functions._compared(table, index), table[:, index])
    expected = jax.grad(lambda table: jnp.sum(table[:, index] * weights))(table)
    np.testing.assert_allclose(gradient(table), expected, atol=1e-5)
    assert "scatter" not in jax.jit(gradient).lower(table).as_text()


def log_formula(offset, num_buckets, max_distance, bidirectional):
    """The published code in float64; exact only away from edges that fall on a whole number."""
    relative = -np.asarray(offset)
    found = np.zeros_like(relative)
    if bidirectional:
        num_buckets //= 2
        found += (relative > 0) * num_buckets
        relative = np.abs(relative)
    else:
        relative = -np.minimum(relative, 0)
    exact = num_buckets // 2
    with np.errstate(divide="ignore"):
        real = np.log(relative / exact) / np.log(max_distance / exact) * (num_buckets - exact)
    large = exact + np.where(relative > 0, real, 0).astype(int)
    return found + np.where(relative < exact, relative, np.minimum(large, num_buckets - 1)), real


SETTINGS = [(32, 128), (32, 32_768), (16, 64), (12, 10), (33, 128), (7, 1000), (2, 5), (64, 4096)]


@pytest.mark.parametrize(("num_buckets", "max_distance"), SETTINGS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_buckets_are_the_published_logarithms(num_buckets, max_distance, bidirectional):
    if bidirectional and (num_buckets % 2 or num_buckets < 4):
        return
    offset = np.arange(-2 * max_distance, 2 * max_distance + 1)
    ours = np.asarray(
        biases.bucket(
            jnp.asarray(offset), num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional
        )
    )
    theirs, real = log_formula(offset, num_buckets, max_distance, bidirectional)
    differs = ours != theirs
    # Only where the real number is whole may rounding of the logarithm decide; ours then takes the exact edge.
    assert np.all(np.abs(real[differs] - np.round(real[differs])) < 1e-9)
    one_side = num_buckets // 2 if bidirectional else num_buckets
    assert ours[offset >= max_distance].tolist() == [one_side - 1] * np.sum(offset >= max_distance)
    assert (ours.min(), ours.max()) == (0, num_buckets - 1)
    past = ours[offset >= 0]
    assert np.all(np.diff(past) >= 0)
    assert past[: one_side // 2].tolist() == list(range(one_side // 2))
    if bidirectional:
        np.testing.assert_array_equal(ours[offset < 0][::-1], past[1:] + one_side)
    else:
        assert not ours[offset < 0].any()


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 64), st.integers(2, 2**17))
def test_bucket_starts_are_exact(num_buckets, max_distance):
    if max_distance <= num_buckets // 2:
        return
    starts = biases.bucket_starts(num_buckets, max_distance)
    exact, rest = num_buckets // 2, num_buckets - num_buckets // 2
    assert len(starts) == num_buckets
    assert list(starts) == sorted(starts)
    for k, start in enumerate(starts[exact:]):
        # In whole numbers: (start / e)^m >= (D / e)^k and not so for start - 1.
        assert start**rest >= exact ** (rest - k) * max_distance**k
        assert (start - 1) ** rest < exact ** (rest - k) * max_distance**k


@pytest.mark.parametrize(
    ("num_buckets", "max_distance", "last"), [(32, 128, 113), (32, 1024, 790), (32, 32_768, 20_347)]
)
def test_the_last_bucket_starts_before_max_distance(num_buckets, max_distance, last):
    assert biases.bucket_starts(num_buckets, max_distance)[-1] == last
    assert biases.t5_bias(np.zeros((1, num_buckets)), max_distance=max_distance).flat_from == last
    edge = biases.bucket(jnp.asarray([last - 1, last, 10**6]), num_buckets=num_buckets, max_distance=max_distance)
    assert edge.tolist() == [num_buckets - 2, num_buckets - 1, num_buckets - 1]


def test_buckets_of_tensorflow_models_and_onnxruntime(real):
    golden = json.loads((real / "golden" / "t5_relative_bias.json").read_text())
    defaults = golden["tensorflow_models_bucket_defaults_32_128"]
    offset = -jnp.asarray(defaults["relative_position"], jnp.int32)
    for direction in ("bidirectional", "unidirectional"):
        ours = biases.bucket(offset, num_buckets=32, max_distance=128, bidirectional=direction == "bidirectional")
        assert ours.tolist() == defaults[direction]
        computed = golden["computed_not_published"]
        ours = biases.bucket(
            -jnp.arange(-140, 141), num_buckets=32, max_distance=128, bidirectional=direction == "bidirectional"
        )
        differs = np.flatnonzero(np.asarray(ours) != np.asarray(computed[direction]))
        assert set(np.abs(differs - 140)) <= {16, 32, 64, 128}  # edges on whole numbers
    assert len(golden["onnxruntime_bias_lookup"]) == 3
    for case in golden["onnxruntime_bias_lookup"]:
        bias = biases.t5_bias(
            np.asarray(case["bias_table_heads_by_buckets"], np.float32),
            max_distance=case["max_distance"],
            bidirectional=case["bidirectional"],
        )
        tokens = jnp.arange(case["seq_len"])
        assert bias(tokens[:, None] - tokens[None]).tolist() == case["expected_heads_q_k"]


def test_textbook_buckets():
    # Buckets 0 ... (n_b + 1)/2 - 1 hold one offset each, the rest are logarithmic: n_b + 1 in all.
    n_b = 31
    starts = biases.bucket_starts(biases.textbook_buckets(n_b), 128)
    assert starts == biases.bucket_starts(32, 128)
    assert starts[: (n_b + 1) // 2] == tuple(range((n_b + 1) // 2))
    with pytest.raises(ScalingError):
        biases.textbook_buckets(0)


# ---- the others


def test_kerple_and_per_offset_values():
    offset = jnp.asarray([0, 1, 9, 1000, -9])
    r1, r2 = np.array([0.5, 2.0]), np.array([0.1, 1.5])
    distance = np.abs(np.asarray(offset, np.float64))
    logarithmic = biases.KerpleLogarithmic(jnp.asarray(r1, jnp.float32), jnp.asarray(r2, jnp.float32))(offset)
    power = biases.KerplePower(jnp.asarray(r1, jnp.float32), jnp.asarray(r2, jnp.float32))(offset)
    np.testing.assert_allclose(logarithmic, -r1[:, None] * np.log1p(r2[:, None] * distance), rtol=1e-6)
    np.testing.assert_allclose(power, -r1[:, None] * distance ** r2[:, None], rtol=1e-5)
    table = np.arange(10, dtype=np.float32).reshape(2, 5)
    per_offset = biases.PerOffset(jnp.asarray(table))
    assert per_offset.flat_from == 4
    np.testing.assert_array_equal(per_offset(offset), table[:, [0, 1, 4, 4, 0]])


def random_biases(seed=0, heads=3):
    rng = np.random.default_rng(seed)
    positive = lambda: jnp.asarray(rng.uniform(0.2, 1.5, heads), jnp.float32)  # noqa: E731
    table = lambda size: jnp.asarray(rng.standard_normal((heads, size)), jnp.float32)  # noqa: E731
    return {
        "alibi": biases.Alibi(positive()),
        "t5": biases.t5_bias(table(8), max_distance=20),
        "t5 both ways": biases.t5_bias(table(8), max_distance=20, bidirectional=True),
        "per offset": biases.PerOffset(table(12)),
        "kerple logarithmic": biases.KerpleLogarithmic(positive(), positive()),
        "kerple power": biases.KerplePower(positive(), positive()),
    }


@pytest.mark.parametrize("name", random_biases())
def test_every_parameter_has_the_gradient_of_finite_differences(name):
    bias = random_biases()[name]
    offset = jnp.asarray([-7, -1, 0, 0, 1, 2, 5, 19, 40])
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((3, len(offset))), jnp.float32)
    loss = jax.jit(lambda bias: jnp.sum(weights * bias(offset)))
    gradient = jax.jit(jax.grad(loss))(bias)
    leaves, structure = jax.tree.flatten(bias)
    for which, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        assert np.isfinite(slope).all()
        for index in np.ndindex(leaf.shape):
            step = 1e-2
            up, down = (
                loss(jax.tree.unflatten(structure, [*leaves[:which], leaf.at[index].add(h), *leaves[which + 1 :]]))
                for h in (step, -step)
            )
            assert float(slope[index]) == pytest.approx(float(up - down) / (2 * step), rel=5e-3, abs=2e-3)


def test_a_bias_is_a_pytree_that_maps_and_stacks():
    for bias in random_biases().values():
        assert bias.num_heads == 3
        doubled = jax.tree.map(lambda leaf: 2 * leaf, bias)
        assert type(doubled) is type(bias)
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), bias, doubled)
        values = jax.jit(jax.vmap(lambda bias: bias(jnp.arange(6))))(both)
        np.testing.assert_allclose(values[0], bias(jnp.arange(6)), rtol=1e-6)
        np.testing.assert_allclose(values[1], doubled(jnp.arange(6)), rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: biases.paper_slopes(0),
        lambda: biases.geometric_slopes(-1),
        lambda: biases.bucket_starts(1, 128),
        lambda: biases.bucket_starts(32, 16),
        lambda: biases.bucket(jnp.arange(3), num_buckets=7, max_distance=128, bidirectional=True),
        lambda: biases.t5_bias(np.zeros((2, 1))),
        lambda: biases.t5_bias(np.zeros((2, 32)), max_distance=8),
        lambda: biases.t5_bias(np.zeros((2, 7)), bidirectional=True),
    ],
)
def test_errors_are_one_line(make):
    with pytest.raises(ScalingError) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", random_biases())
@pytest.mark.parametrize("width", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
def test_offsets_of_any_width_are_those_of_int32(name, width):
    bias, info = random_biases()[name], np.iinfo(width)
    values = np.array([max(info.min, -(2**31)), 0, 1, 15, min(info.max, 2**31 - 1)], np.int64)
    right = np.asarray(bias(jnp.asarray(values, jnp.int32)))
    np.testing.assert_array_equal(bias(values.astype(width)), right)
    if info.bits < 64:
        np.testing.assert_array_equal(bias(jnp.asarray(values.astype(width))), right)
    # The farthest offset that int32 has no absolute value of is as far as its neighbour.
    np.testing.assert_allclose(bias(np.array([-(2**31)])), bias(np.array([-(2**31) + 1])), rtol=1e-6)


@pytest.mark.parametrize("name", random_biases())
def test_offsets_that_are_no_integers_are_refused(name, without_type_checks):
    for dtype in (jnp.float32, jnp.bfloat16, jnp.bool_):
        with pytest.raises(TypeError, match=r"^offset must be integers"):
            random_biases()[name](jnp.ones(3, dtype))
