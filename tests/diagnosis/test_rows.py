"""Rows one by one and rows at once give the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax.diagnosis import rows


@pytest.fixture(params=[1, 3, 4, 7])
def at_once(request, monkeypatch):
    """So many rows of 8 tokens are held at once; one by one on a CPU, whatever would fit."""
    if request.param > 1:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(rows, "_TOKENS", 8 * request.param + 3)
        monkeypatch.setattr(rows, "_TOKENS_OF_GRADIENT", 8 * request.param + 3)
    return request.param


def test_every_row_is_answered_in_its_place(at_once):
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    seen = []

    def of_row(row):
        seen.append(row.shape)
        return {"sum": row.sum(), "row": 2 * row}

    found = rows.each_row(of_row, jnp.asarray(x), length=8)
    np.testing.assert_allclose(found["sum"], x.sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found["row"], 2 * x)
    assert set(seen) == {(8,)}


def test_gradients_of_all_rows_are_summed(at_once):
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=(6, 8)), jnp.float32) for _ in range(2))
    at = {"scale": jnp.asarray(rng.normal(size=8), jnp.float32)}

    def loss(at, row, weights):
        return (weights * jnp.tanh(at["scale"] * row)).sum()

    found = jax.jit(lambda at, *rest: rows.summed_gradient(loss, at, rest, length=8))(at, x, weights)
    wanted = jax.grad(lambda at: sum(loss(at, *row) for row in zip(x, weights, strict=True)))(at)
    np.testing.assert_allclose(found["scale"], wanted["scale"], rtol=1e-5, atol=1e-6)


def test_no_row_is_too_long():
    assert rows.each_row(lambda row: row.sum(), jnp.ones((2, 4)), length=2**30).shape == (2,)
