"""The rotation: its inverse, its layouts, its complex and matrix forms, and the sinusoids it is made of."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax import double_float, frequencies, phases, rotation

LAYOUTS = ("half", "interleaved")
DIM = 16
COS_SIN = jax.jit(phases.cos_sin)


def cos_sin(positions, dim=DIM, base=1e4):
    high, low = double_float.split(frequencies.inverse_frequencies(dim, base=base))
    return COS_SIN(jnp.asarray(positions, jnp.int32), jnp.asarray(high), jnp.asarray(low))


def vectors(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


POSITIONS = [0, 1, 7, 4095, 1_000_003, -12]


def by_definition(x, positions, layout):
    """Each pair turned by a 2 x 2 matrix, in float64."""
    theta = frequencies.inverse_frequencies(DIM, base=1e4)
    out = np.array(x, np.float64)
    for token, position in enumerate(positions):
        for i, frequency in enumerate(theta):
            a, b = (i, i + DIM // 2) if layout == "half" else (2 * i, 2 * i + 1)
            c, s = np.cos(position * frequency), np.sin(position * frequency)
            first, second = np.array(x[token, :, a], np.float64), np.array(x[token, :, b], np.float64)
            out[token, :, a], out[token, :, b] = c * first - s * second, s * first + c * second
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotation_is_its_definition(layout):
    x = vectors((6, 3, DIM))
    np.testing.assert_allclose(
        rotation.rotate(x, *cos_sin(POSITIONS), layout=layout), by_definition(x, POSITIONS, layout), atol=3e-6
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inverse_turns_back(layout):
    x = vectors((6, 3, DIM))
    cos, sin = cos_sin(POSITIONS)
    there = rotation.rotate(x, cos, sin, layout=layout)
    assert np.max(np.abs(there - x)) > 0.1
    np.testing.assert_allclose(rotation.rotate(there, cos, -sin, layout=layout), x, atol=2e-6)
    back = rotation.rotate(there, *cos_sin([-p for p in POSITIONS]), layout=layout)
    np.testing.assert_allclose(back, x, atol=2e-6)


def test_the_layouts_permute_into_each_other():
    x = vectors((6, 3, DIM))
    to_half, to_interleaved = rotation.interleaved_to_half(DIM), rotation.half_to_interleaved(DIM)
    assert to_half[to_interleaved].tolist() == list(range(DIM))
    interleaved = rotation.rotate(x, *cos_sin(POSITIONS), layout="interleaved")
    half = rotation.rotate(x[..., to_half], *cos_sin(POSITIONS), layout="half")
    np.testing.assert_array_equal(interleaved[..., to_half], half)
    np.testing.assert_array_equal(half[..., to_interleaved], interleaved)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_complex_form(layout):
    x = vectors((6, 3, DIM))
    cos, sin = cos_sin(POSITIONS)
    z = rotation.as_complex(x, layout=layout)
    np.testing.assert_array_equal(rotation.from_complex(z, layout=layout), x)
    turned = rotation.from_complex(z * (cos + 1j * sin)[:, None, :], layout=layout)
    np.testing.assert_allclose(rotation.rotate(x, cos, sin, layout=layout), turned, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_matrix_form(layout):
    x = vectors((6, 3, DIM))
    cos, sin = cos_sin(POSITIONS)
    matrices = rotation.rotation_matrix(cos, sin, layout=layout)
    assert matrices.shape == (6, DIM, DIM)
    turned = np.einsum("tij,thj->thi", matrices, x)
    np.testing.assert_allclose(rotation.rotate(x, cos, sin, layout=layout), turned, atol=2e-6)
    np.testing.assert_allclose(np.einsum("tij,tkj->tik", matrices, matrices), [np.eye(DIM)] * 6, atol=2e-6)
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_offset_matters(layout):
    q, k = vectors((1, 1, DIM), 1), vectors((1, 1, DIM), 2)
    logits = [
        jnp.sum(
            rotation.rotate(q, *cos_sin([i]), layout=layout) * rotation.rotate(k, *cos_sin([i - 37]), layout=layout)
        )
        for i in (37, 38, 5000, 2**20, -4)
    ]
    np.testing.assert_allclose(logits, logits[0], atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_partial_rotation_passes_the_rest_through(layout):
    x = vectors((6, 3, DIM + 10))
    turned = rotation.rotate(x, *cos_sin(POSITIONS), layout=layout)
    np.testing.assert_array_equal(turned[..., DIM:], x[..., DIM:])
    np.testing.assert_array_equal(turned[..., :DIM], rotation.rotate(x[..., :DIM], *cos_sin(POSITIONS), layout=layout))


def test_no_pairs_turn_nothing_and_too_many_are_an_error():
    x = vectors((6, 3, DIM))
    nothing = jnp.zeros((6, 0))
    np.testing.assert_array_equal(rotation.rotate(x, nothing, nothing, layout="half"), x)
    with pytest.raises(ValueError, match="32 rotary dimensions do not fit into a head of 16"):
        rotation.rotate(x, *cos_sin(POSITIONS, 32), layout="half")


@pytest.mark.parametrize("pairs", [0, DIM // 2])
def test_a_misspelt_layout_is_refused_with_the_names(pairs, without_type_checks):
    table = jnp.ones((6, pairs))
    for call in (
        lambda: rotation.rotate(vectors((6, 3, DIM)), table, table, layout="halves"),
        lambda: rotation.sinusoidal(table, table, layout="halves"),
        lambda: rotation.rotation_matrix(table, table, layout="halves"),
        lambda: rotation.as_complex(vectors((6, DIM)), layout="halves"),
    ):
        with pytest.raises(ValueError, match="layout must be 'half' or 'interleaved', got 'halves'"):
            call()


@pytest.mark.parametrize(
    ("x", "cos", "sin"),
    [
        ((6, 3, DIM), (1, 8), (1, 8)),  # one token's angles would broadcast over all
        ((6, 3, DIM), (6, 8), (1, 8)),
        ((2, 6, 3, DIM), (3, 6, 8), (3, 6, 8)),
        ((6, 3, DIM), (2, 6, 8), (2, 6, 8)),
        ((6, 3, DIM), (8,), (8,)),
        ((6, DIM), (6, 8), (6, 8)),
    ],
)
def test_cos_and_sin_that_are_not_one_a_token_are_refused(x, cos, sin, without_type_checks):
    with pytest.raises(ValueError, match=r"must be .*batch, tokens, pairs"):
        rotation.rotate(jnp.ones(x), jnp.ones(cos), jnp.ones(sin), layout="half")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_any_dtype_is_turned_in_float32_and_kept(layout, dtype):
    x = vectors((6, 3, DIM), dtype=dtype)
    turned = rotation.rotate(x, *cos_sin(POSITIONS), layout=layout)
    assert turned.dtype == dtype
    wide = rotation.rotate(x.astype(jnp.float32), *cos_sin(POSITIONS), layout=layout)
    np.testing.assert_array_equal(turned.astype(jnp.float32), wide.astype(dtype).astype(jnp.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cotangents_are_turned_back(layout):
    # The transpose of a rotation is its inverse.
    x, cotangent = vectors((6, 3, DIM), 1), vectors((6, 3, DIM), 2)
    cos, sin = cos_sin(POSITIONS)
    _, pull = jax.vjp(lambda x: rotation.rotate(x, cos, sin, layout=layout), x)
    expected = rotation.rotate(cotangent, cos, -sin, layout=layout)
    np.testing.assert_allclose(pull(cotangent)[0], expected, atol=1e-6)


def test_leading_axes_broadcast():
    x = vectors((2, 6, 3, DIM))
    cos, sin = cos_sin(POSITIONS)
    together = rotation.rotate(x, cos[None], sin[None], layout="half")
    alone = jnp.stack([rotation.rotate(row, cos, sin, layout="half") for row in x])
    np.testing.assert_array_equal(together, alone)


def test_sinusoidal_of_the_paper():
    # Vaswani et al., section 3.5: PE(p, 2i) = sin(p / 10000^(2i/d)), PE(p, 2i+1) = cos of the same.
    embedding = rotation.sinusoidal(*cos_sin(range(50)), layout="interleaved")
    for p in (0, 1, 49):
        for i in range(DIM // 2):
            angle = p / 10000 ** (2 * i / DIM)
            np.testing.assert_allclose(embedding[p, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], atol=1e-6)


def test_sinusoidal_of_fairseq2(real):
    golden = json.loads((real / "golden" / "fairseq2_sinusoidal.json").read_text())
    expected = np.asarray(golden["expected_freqs"])
    assert not expected[0].any()  # their padding row; position p is row p + 1
    high, low = double_float.split(10000.0 ** (-np.arange(16) / 15))
    positions = jnp.arange(len(expected) - 1, dtype=jnp.int32)
    embedding = rotation.sinusoidal(*COS_SIN(positions, jnp.asarray(high), jnp.asarray(low)), layout="half")
    np.testing.assert_allclose(embedding, expected[1:], atol=6e-6)  # they print five significant digits
