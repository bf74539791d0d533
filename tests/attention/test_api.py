"""The one function that models call: what it passes on, what it returns, and what it refuses."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_suite import quick_compilation
from problems import DIM, problem_of, scheme_of

from rope_jax.attention import api, attention
from rope_jax.attention.call import Settings

PROBLEM = problem_of(tokens=12, heads=4, kv_heads=2, segments="packed", sinks=True)


def call(problem=PROBLEM, *, heads=slice(None), **arguments):
    return attention(
        problem.q[:, :, heads],
        problem.k,
        problem.v,
        problem.scheme,
        q_positions=problem.queries.positions,
        kv_positions=problem.keys.positions,
        **arguments,
    )


def recorder(monkeypatch, **implementations):
    """Puts implementations in place of the real ones; each gives its own number and writes its calls down."""
    calls = []

    def one(name, refusal):
        def attend(q, k, v, scheme, sinks, queries, keys, settings):
            calls.append((name, sinks, queries, keys, settings))
            if refusal is not None:
                raise NotImplementedError(refusal)
            return jnp.full((*q.shape[:3], v.shape[-1]), 2.0), jnp.full(q.shape[:3], 3.0)

        return attend

    monkeypatch.setattr(api, "_IMPLEMENTATIONS", {name: one(name, why) for name, why in implementations.items()})
    return calls


def test_the_arguments_reach_the_implementation(monkeypatch):
    calls = recorder(monkeypatch, blockwise=None)
    segments = PROBLEM.queries.segments, PROBLEM.keys.segments
    with jax.disable_jit():  # so that what arrives has values
        call(
            sinks=PROBLEM.sinks, segment_ids=segments, window=5, causal=False, scale=0.3, soft_cap=2.0, skip_tiles=False
        )
    [(_, sinks, queries, keys, settings)] = calls
    np.testing.assert_array_equal(sinks, PROBLEM.sinks)
    np.testing.assert_array_equal(queries.positions, PROBLEM.queries.positions)
    np.testing.assert_array_equal(keys.segments, PROBLEM.keys.segments)
    assert settings == Settings(scale=0.3, causal=False, window=5, soft_cap=2.0, skip_tiles=False)


def test_what_is_not_said(monkeypatch):
    calls = recorder(monkeypatch, blockwise=None)
    call()
    [(_, sinks, queries, keys, settings)] = calls
    assert sinks is None
    assert queries.segments is None
    assert keys.segments is None
    assert settings == Settings(scale=1 / math.sqrt(DIM), causal=True, window=None, soft_cap=None, skip_tiles=True)


def test_the_log_sum_exps_come_when_asked_for(monkeypatch):
    recorder(monkeypatch, blockwise=None)
    assert np.all(call() == 2.0)
    out, lse = call(return_lse=True)
    assert np.all(out == 2.0)
    assert lse.shape == PROBLEM.q.shape[:3]
    assert np.all(lse == 3.0)


def test_the_first_that_can_is_taken(monkeypatch):
    calls = recorder(monkeypatch, pallas_tpu="there is no TPU", blockwise=None)
    assert np.all(call() == 2.0)
    assert [name for name, *_ in calls] == ["pallas_tpu", "blockwise"]


def test_a_named_one_is_the_only_one_tried(monkeypatch):
    calls = recorder(monkeypatch, pallas_tpu=None, blockwise="not today")
    with pytest.raises(NotImplementedError, match="not today"):
        call(implementation="blockwise")
    assert [name for name, *_ in calls] == ["blockwise"]


def test_where_none_can_every_refusal_is_told(monkeypatch):
    recorder(monkeypatch, pallas_tpu="there is no TPU", blockwise="not today")
    with pytest.raises(NotImplementedError, match=r"(?s)there is no TPU.*not today"):
        call()


def test_a_name_that_is_unknown():
    with pytest.raises((ValueError, TypeError)):  # a TypeError from the type checker of the tests
        call(implementation="nonesuch")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": slice(3)}, "3 query heads do not divide into groups over 2"),
        ({"heads": slice(2)}, "the scheme has 4 heads, the queries 2"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": -3}, "window must be at least 1, got -3"),
        ({"soft_cap": 0.0}, "soft_cap must be positive, got 0"),
        ({"soft_cap": -1.0}, "soft_cap must be positive, got -1"),
    ],
)
def test_refused_at_the_door(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)


def test_the_scheme_may_not_turn_more_than_a_head_has():
    wide = scheme_of("none", 4)
    with pytest.raises(ValueError, match=r"turns 8 dimensions, a head has 6|8 rotary dimensions do not fit"):
        attention(
            PROBLEM.q[..., :6],
            PROBLEM.k[..., :6],
            PROBLEM.v,
            wide,
            q_positions=PROBLEM.queries.positions,
            kv_positions=PROBLEM.keys.positions,
        )


def test_the_default_runs_here_and_equals_the_named_one():
    run = lambda **chosen: jax.jit(  # noqa: E731
        lambda: call(sinks=PROBLEM.sinks, return_lse=True, **chosen), compiler_options=quick_compilation()
    )()
    for ours, named in zip(run(), run(implementation="blockwise"), strict=True):
        np.testing.assert_array_equal(ours, named)
        assert np.isfinite(ours).all()


def test_every_implementation_takes_the_same_arguments():
    signatures = {tuple(inspect.signature(attend).parameters)[:8] for attend in api._IMPLEMENTATIONS.values()}
    assert signatures == {("q", "k", "v", "scheme", "sinks", "queries", "keys", "settings")}
