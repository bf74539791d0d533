"""Rows one by one and rows at once give the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import tiny_decoder

from rope_jax.diagnosis.evaluation import rows

CONFIG = dataclasses.replace(tiny_decoder().config, intermediate_size=10, num_layers=2, layer_types=(), windows=())
SIZE = {"config": CONFIG, "length": 8}


@pytest.fixture(params=[1, 3, 4, 7])
def at_once(request, monkeypatch):
    """So many rows of 8 tokens fit; on a CPU they are taken one by one all the same."""
    if request.param > 1:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(rows, "_ELEMENTS", 80 * request.param + 3)
    monkeypatch.setattr(rows, "_ELEMENTS_OF_GRADIENT", 160 * request.param + 3)
    return request.param


def steps(function, *arguments) -> list[int]:
    """Returns the lengths of all loops over rows in a function."""
    return [eqn.params["length"] for eqn in jax.make_jaxpr(function)(*arguments).eqns if eqn.primitive.name == "scan"]


def test_every_row_is_answered_in_its_place(at_once):
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)

    def of_rows(x):
        return rows.each_row(lambda row: {"sum": row.sum(), "row": 2 * row}, x, **SIZE)

    found = of_rows(jnp.asarray(x))
    np.testing.assert_allclose(found["sum"], x.sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found["row"], 2 * x)
    # Six rows in threes, or in fours and what is left, or all at once.
    assert steps(of_rows, x) == {1: [6], 3: [2], 4: [1], 7: []}[at_once]


def test_gradients_of_all_rows_are_summed(at_once):
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=(6, 8)), jnp.float32) for _ in range(2))
    at = {"scale": jnp.asarray(rng.normal(size=8), jnp.float32)}

    def loss(at, row, weights):
        return (weights * jnp.tanh(at["scale"] * row)).sum()

    def of_rows(at, *rest):
        return rows.summed_gradient(loss, at, rest, **SIZE)

    found = jax.jit(of_rows)(at, x, weights)
    wanted = jax.grad(lambda at: sum(loss(at, *row) for row in zip(x, weights, strict=True)))(at)
    np.testing.assert_allclose(found["scale"], wanted["scale"], rtol=1e-5, atol=1e-6)
    assert steps(of_rows, at, x, weights) == {1: [6], 3: [2], 4: [2], 7: [1]}[at_once]  # groups of one size


def test_no_row_is_too_long(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    size = {"config": CONFIG, "length": 2**30}
    assert rows.each_row(lambda row: row.sum(), jnp.ones((2, 4)), **size).shape == (2,)
    assert rows.rows_of_gradient(5, **size) == 1
