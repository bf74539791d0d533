"""Blockwise attention where a plan is at its edge: few keys for many queries, and numbers near what a dtype holds."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_suite import Checks, quick_compilation
from problems import problem_of

from rope_jax import biases
from rope_jax.attention import attention, blockwise, decode, machine, reference, wide_tiles
from rope_jax.attention.call import Settings, Tokens
from rope_jax.scheme import build

AT_ONCE = pytest.mark.parametrize("wide", [False, True], ids=["one head at a time", "all heads in a tile"])


class TestFewKeys(Checks):
    """A prefix or a memory that all of many queries see: one tile of keys, which no block may count twice."""

    attend = staticmethod(blockwise.attend)

    @pytest.mark.parametrize("keys", [8, 64, 512, 520])
    @pytest.mark.parametrize("queries", [1016, 1024, 1100])
    def test_both_sides_of_where_tiles_go_on_together(self, queries, keys):
        self.check(
            problem_of(
                batch=1,
                tokens=queries,
                keys=keys,
                heads=8,
                kv_heads=1,
                causal=False,
                bias="none",
                max_offset=0,
                sinks=True,
            )
        )


def test_a_memory_of_equal_keys_has_the_log_sum_exp_of_their_number():
    q, k = jnp.ones((1, 1024, 8, 8)), jnp.ones((1, 64, 1, 8))
    scheme = build(None, num_heads=8, head_dim=8)
    run = lambda v: attention(  # noqa: E731
        q, k, v, scheme, q_positions=np.arange(64, 1088), kv_positions=np.arange(64), return_lse=True
    )
    (_, lse), back = jax.vjp(run, k)
    np.testing.assert_allclose(lse, math.sqrt(8) + math.log(64), rtol=1e-6)
    [of_v] = back((jnp.ones((1, 1024, 8, 8)), jnp.zeros_like(lse)))
    np.testing.assert_allclose(of_v, 1024 * 8 / 64, rtol=1e-5)


@AT_ONCE
def test_gradients_where_far_keys_outweigh_the_reference_by_more_than_its_margin(wide, monkeypatch):
    """512 keys, each 29 nats above the near ones: their sum is beyond e^30 against a reference made near."""
    monkeypatch.setattr(machine, "heads_at_once", lambda: wide)
    monkeypatch.setattr(wide_tiles, "sizes", lambda *_: (512, 512))
    jax.clear_caches()
    scheme = build(None, biases.Alibi(jnp.asarray([-2.9e-4])), num_heads=1, head_dim=8)
    q, k = jnp.zeros((1, 512, 1, 8)), jnp.zeros((1, 1024, 1, 8))
    keys = np.r_[np.arange(512), 100_000 + np.arange(512)]
    run = lambda v: attention(q, k, v, scheme, q_positions=200_000 + np.arange(512), kv_positions=keys)  # noqa: E731
    [of_v] = jax.vjp(run, k)[1](jnp.ones((1, 512, 1, 8)))
    np.testing.assert_allclose(of_v.sum(axis=1), 512.0, rtol=1e-5)  # every query's weights add up to one


def extreme(dtype, size):
    """Returns a call whose weights grow with distance, so that references are older than the largest logits."""
    problem = problem_of(batch=1, tokens=1536, heads=2, kv_heads=1, bias="none", max_offset=0)
    scheme = build(None, biases.Alibi(jnp.asarray([-0.02, -0.03])), num_heads=2, head_dim=8)
    arrays = {name: getattr(problem, name).astype(dtype) for name in "qk"}
    return dataclasses.replace(problem, scheme=scheme, v=(problem.v * size).astype(dtype), **arrays)


@AT_ONCE
@pytest.mark.parametrize("attend", [blockwise.attend, decode.attend])
@pytest.mark.parametrize(
    ("dtype", "size", "tolerance"),
    [("float16", 1, 2e-3), ("bfloat16", 1, 2e-2), *(("float32", x, 1e-5) for x in (1e-30, 1e27, 1e33))],
)
def test_large_values_and_narrow_dtypes(attend, dtype, size, tolerance, wide, monkeypatch):
    monkeypatch.setattr(machine, "heads_at_once", lambda: wide)
    monkeypatch.setattr(wide_tiles, "sizes", lambda *_: (512, 512))
    if attend is decode.attend and size > 1e30:
        pytest.skip("a cache's values are read once, and summed as they are")
    problem = extreme(dtype, size)
    rows = slice(None) if attend is blockwise.attend else slice(-16, None)
    queries = Tokens(problem.queries.positions[:, rows])
    settings = Settings(1.0)

    def run(attend, cotangent, *arrays):
        def call(q, k, v):
            return attend(q, k, v, problem.scheme, None, queries, Tokens(problem.keys.positions), settings)[0]

        out, back = jax.vjp(call, *arrays)
        return out, *back(cotangent)

    arrays = problem.q[:, rows], problem.k, problem.v
    arrays = jnp.ones((1, queries.positions.shape[1], 2, 8), dtype), *arrays
    compiled = jax.jit(run, static_argnums=0, compiler_options=quick_compilation())
    found, expected = compiled(attend, *arrays), compiled(reference.attend, *(x.astype("float32") for x in arrays))
    assert found[0].dtype == dtype
    for name, ours, theirs in zip(("out", "q", "k", "v"), found, expected, strict=True):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        assert np.isfinite(ours).all(), name
        np.testing.assert_allclose(ours, theirs, atol=4 * tolerance * np.abs(theirs).max(), err_msg=name)
