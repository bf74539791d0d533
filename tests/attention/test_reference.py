"""The oracle against itself, and the plain reference against the oracle."""

import dataclasses

import float64_oracle
import jax.numpy as jnp
import numpy as np
import pytest
from backend_suite import Checks, exactly
from float64_oracle import INPUTS
from problems import problem_of

from rope_jax.attention import reference
from rope_jax.attention.call import NOTHING

SMALL = {"tokens": 13, "heads": 4, "kv_heads": 2, "v_dim": 5, "bias": "line and strip", "max_offset": 6}


class TestReference(Checks):
    attend = staticmethod(reference.attend)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"segments": "strangers"},
            {"layout": "interleaved", "rotary_dim": 4, "causal": False, "window": 5, "soft_cap": 0.7, "sinks": True},
            {"each": True, "positions": "scattered"},
            {"tokens": 3, "keys": 17, "bias": "alibi"},
        ],
    )
    def test_equals_the_oracle(self, arguments):
        problem = problem_of(**{**SMALL, **arguments})
        exact, sizes = exactly(problem)
        for name, x in self.run(problem).items():
            # A few operations on at most a hundred terms, each off by a unit in the last place at most.
            np.testing.assert_allclose(x, exact[name], rtol=1e-6, atol=3e-6 * sizes[name], err_msg=name)

    def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient(self):
        problem = problem_of(**SMALL, segments="strangers")
        found = self.run(problem)
        for name in ("out", "q", "k", "v"):
            assert not np.any(found[name][1]), name
        assert np.all(found["lse"][1] == np.float32(NOTHING))

    def test_with_a_sink_it_gives_the_sink_alone(self):
        problem = problem_of(**SMALL, segments="strangers", sinks=True)
        found = self.run(problem)
        assert not np.any(found["out"][1])
        np.testing.assert_array_equal(found["lse"][1], np.broadcast_to(problem.sinks, found["lse"][1].shape))

    @pytest.mark.parametrize("sinks", [False, True])
    def test_cotangents_of_padded_slots_are_not_read(self, sinks):
        problem = problem_of(**SMALL, segments="ragged", sinks=sinks)
        clean, held = self.run(problem), problem.queries.segments >= 0
        assert not held.all()
        spoilt = dataclasses.replace(problem, d_out=jnp.where(held[..., None, None], problem.d_out, jnp.nan))
        for name, x in self.run(spoilt).items():
            np.testing.assert_array_equal(x, clean[name], err_msg=name)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sinks": True, "window": 9, "segments": "packed"},
        {"causal": False, "soft_cap": 0.7, "layout": "interleaved", "rotary_dim": 6, "sinks": True},
        {"each": True, "segments": "strangers", "soft_cap": 2.0},
    ],
)
def test_gradients_of_the_oracle_equal_its_finite_differences(arguments):
    problem = problem_of(**{**SMALL, **arguments})
    exact, _ = exactly(problem)
    numbers = problem.numbers
    some = float64_oracle.values(problem)["lse"] > NOTHING
    rng = np.random.default_rng(3)

    def loss(numbers):
        made = float64_oracle.values(problem, numbers)
        return np.sum(made["out"] * problem.d_out) + np.sum(made["lse"] * problem.d_lse, where=some)

    for name in INPUTS:
        if name == "sinks" and problem.sinks is None:
            continue
        for _ in range(3):
            direction = rng.standard_normal(exact[name].shape)
            if name in "qkv":
                direction *= numbers[name] != 0  # padded slots stay as they are
            step = 1e-5 * direction
            moved = [loss({**numbers, name: numbers[name] + sign * step}) for sign in (1, -1)]
            slope = (moved[0] - moved[1]) / 2e-5
            assert np.sum(exact[name] * direction) == pytest.approx(slope, rel=1e-6, abs=1e-5), name


def test_the_oracle_knows_attention_worked_out_by_hand():
    problem = problem_of(batch=1, tokens=2, heads=1, kv_heads=1, bias="none", rotary_dim=0, sinks=False)
    scheme = dataclasses.replace(
        problem.scheme,
        slopes=jnp.asarray([0.5]),
        offset_bias=jnp.zeros((1, 3)).at[0, 1:].set(jnp.asarray([0.25, 1.0])),
        logit_scale=jnp.float32(2.0),
    )
    ones = jnp.ones_like(problem.q)
    made = float64_oracle.values(dataclasses.replace(problem, q=ones, k=ones, scheme=scheme))
    product = 2.0 * np.sqrt(8)  # logit scale 2, dot product 8, scale 1 / sqrt(8)
    near, far = product + 0.25, product - 0.5 + 1.0
    weights = np.exp([far, near]) / np.exp([far, near]).sum()
    np.testing.assert_allclose(made["out"][0, 1, 0], weights @ np.asarray(problem.v, np.float64)[0, :, 0], rtol=1e-12)
    np.testing.assert_allclose(made["lse"][0, :, 0], [near, np.log(np.exp([far, near]).sum())], rtol=1e-12)
