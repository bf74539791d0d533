"""Queries and keys taken out of a forward pass make the very logits that attention would."""

import jax.numpy as jnp
import numpy as np
import pytest
from cases import BASE, DIM, HEADS, TRAINED, tiny_decoder

from rope_jax import frequencies, scaling
from rope_jax.diagnosis.prediction.own_heads import heads_of, products
from rope_jax.scheme import build

ROTARY = frequencies.rotary(DIM, base=BASE, original_length=TRAINED)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_products_turned_by_the_offset_are_the_logits(layout):
    scaled = scaling.yarn(factor=4.0, original_length=TRAINED)(ROTARY)  # its temperature is in cos and sin
    scheme = build(scaled, num_heads=HEADS, head_dim=DIM, layout=layout)
    rows = np.random.default_rng(0).integers(0, 128, (1, 24)).astype(np.int32)
    (heads,) = heads_of(tiny_decoder(num_kv_heads=1), scheme, rows)
    assert heads.q.shape == heads.k.shape == (1, 24, HEADS, DIM // 2)
    at, to = np.array([20, 21]), np.array([3, 4])
    coefficients = products(heads, at, to)
    turned = np.exp(1j * (at - to)[0] * np.asarray(scaled.inverse_frequencies))
    logits = (coefficients * turned).real.sum(axis=-1)[0]

    def rotated(pairs, positions):
        x = np.zeros((2, HEADS, DIM))
        half = layout == "half"
        x[..., : DIM // 2 if half else None : 1 if half else 2] = pairs.real
        x[..., DIM // 2 if half else 1 :: 1 if half else 2] = pairs.imag
        return np.asarray(scheme.rotate(jnp.asarray(x, jnp.float32), jnp.asarray(positions, jnp.int32)), np.float64)

    q, k = rotated(heads.q[0, at], at), rotated(heads.k[0, to], to)
    expected = float(scheme.logit_scale) * DIM**-0.5 * (q * k).sum(axis=-1).mean(axis=0)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
