"""What a call of attention takes and refuses: shapes, numbers, integers of any width, calls with nothing in them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import problem_of

from rope_jax.attention import api, attention, blockwise
from rope_jax.attention.call import NOTHING
from rope_jax.scheme import stack

B, N, S, H, K, D = 2, 12, 20, 4, 2, 8
PROBLEM = problem_of(batch=B, tokens=N, keys=S, heads=H, kv_heads=K, bias="line and strip", sinks=True)
SIDES = {"q_positions": PROBLEM.queries.positions, "kv_positions": PROBLEM.keys.positions}

pytestmark = pytest.mark.usefixtures("without_type_checks")


def call(**changes):
    arguments = {"q": PROBLEM.q, "k": PROBLEM.k, "v": PROBLEM.v, "scheme": PROBLEM.scheme, **SIDES} | changes
    return attention(**arguments)


def changed_scheme(**changes):
    return dataclasses.replace(PROBLEM.scheme, **changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"v": jnp.zeros((B, S + 1, K, D))}, ValueError, r"k and v must have the same batch, keys and heads"),
        ({"v": jnp.zeros((B, S - 1, K, D))}, ValueError, r"k and v must have the same batch, keys and heads"),
        ({"v": jnp.zeros((B, S, 1, D))}, ValueError, r"k and v must have the same batch, keys and heads"),
        ({"v": jnp.zeros((1, S, K, D))}, ValueError, r"k and v must have the same batch, keys and heads"),
        ({"q": jnp.zeros((1, N, H, D))}, ValueError, r"q and k must have the same batch"),
        ({"q": jnp.zeros((B, N, H, D + 1))}, ValueError, r"q and k must have the same dim"),
        ({"q": jnp.zeros((N, H, D))}, ValueError, r"q must be \[batch, tokens, heads, dim\], got shape"),
        ({"k": jnp.zeros((B, S, K, D), jnp.int32)}, TypeError, "k must be floating, got int32"),
        ({"k": jnp.zeros((B, S, 0, D)), "v": jnp.zeros((B, S, 0, D))}, ValueError, "k has no heads"),
        ({"sinks": jnp.zeros(H + 1)}, ValueError, "sinks must be one for each of 4 heads"),
        ({"scheme": stack([PROBLEM.scheme] * 3)}, ValueError, r"scheme.inverse_frequencies has leading axes \(3,\)"),
        ({"q_positions": jnp.zeros((B, 1), int)}, ValueError, r"q_positions must have shape \(2, 12\) or \(12,\)"),
        ({"kv_positions": jnp.zeros((1, S), int)}, ValueError, r"kv_positions must have shape \(2, 20\) or \(20,\)"),
        ({"kv_positions": jnp.zeros((), int)}, ValueError, r"kv_positions must have shape \(2, 20\) or \(20,\)"),
        ({"q_positions": np.zeros((B, N)) + 0.5}, TypeError, "q_positions must be integers, got float64"),
        ({"q_positions": jnp.zeros((B, N), jnp.bfloat16)}, TypeError, "q_positions must be integers, got bfloat16"),
        ({"kv_positions": jnp.ones((B, S), bool)}, TypeError, "kv_positions must be integers, got bool"),
        ({"kv_positions": np.full((B, S), 2**31)}, ValueError, "kv_positions must fit into int32"),
        ({"segment_ids": jnp.zeros((B, N), int)}, TypeError, "segment_ids must be a pair"),
        (
            {"segment_ids": (jnp.zeros((B, N), int), jnp.zeros((B, N), int))},
            ValueError,
            r"segment_ids of kv must have shape \(2, 20\)",
        ),
        ({"window": 2.5}, TypeError, "window must be an int or None, known before tracing; got 2.5"),
        ({"window": True}, TypeError, "window must be an int or None, known before tracing; got True"),
        ({"window": jnp.int32(3)}, TypeError, "window must be an int or None, known before tracing"),
        ({"soft_cap": float("nan")}, ValueError, "soft_cap must be a finite number, got nan"),
        ({"soft_cap": float("inf")}, ValueError, "soft_cap must be a finite number, got inf"),
        ({"scale": float("nan")}, ValueError, "scale must be a finite number, got nan"),
        ({"scale": float("-inf")}, ValueError, "scale must be a finite number, got -inf"),
        ({"scale": "large"}, TypeError, "scale must be a number, got 'large'"),
    ],
)
def test_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message) as caught:
        call(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["window", "scale", "soft_cap"])
def test_a_static_number_that_is_traced_is_refused_by_name(name):
    with pytest.raises(TypeError, match=f"^{name} must be"):
        jax.jit(lambda value: call(**{name: value}))(3)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("implementation", ["blockwise", "decode"])
def test_positions_and_ids_of_every_width(dtype, implementation):
    """Queries stand before some keys: where a difference wraps, these would be seen, or their bias read elsewhere."""
    at, of = np.arange(N) + 3, np.arange(S)
    ids = np.zeros(N), np.zeros(S)
    expected = call(q_positions=at, kv_positions=of, implementation=implementation)
    narrow = {"q_positions": at.astype(dtype), "kv_positions": of.astype(dtype)}
    narrow["segment_ids"] = tuple(x.astype(dtype) for x in ids)
    np.testing.assert_array_equal(call(**narrow, implementation=implementation), expected)
    traced = jax.jit(lambda given: call(**given, implementation=implementation))(narrow)
    np.testing.assert_allclose(traced, expected, atol=2e-6)


def test_narrow_positions_whose_difference_does_not_fit_them():
    at, of = np.full((B, N), 100, np.int8), np.full((B, S), -100, np.int8)
    for implementation in ("blockwise", "decode"):
        narrow = call(q_positions=at, kv_positions=of, window=150, implementation=implementation)
        assert not np.any(narrow)  # 200 apart
        wide = call(q_positions=at, kv_positions=of, implementation=implementation)
        whole = {"q_positions": at.astype(int), "kv_positions": of.astype(int)}
        np.testing.assert_array_equal(wide, call(**whole, implementation=implementation))


def test_positions_for_all_sequences():
    at, of = np.arange(N) + 8, np.arange(S)
    both = call(q_positions=np.tile(at, (B, 1)), kv_positions=np.tile(of, (B, 1)))
    np.testing.assert_array_equal(call(q_positions=at, kv_positions=of), both)


@pytest.mark.parametrize("window", [2**31 - 1, 2**31, 2**40, np.int64(2**31)])
def test_a_window_wider_than_all_positions_hides_nothing(window):
    np.testing.assert_array_equal(call(window=window), call())


@pytest.mark.parametrize("implementation", [None, "blockwise", "decode"])
@pytest.mark.parametrize("empty", ["batch", "queries", "keys"])
def test_calls_with_nothing_in_them(empty, implementation):
    batch, queries, keys = (0 if empty == name else size for name, size in (("batch", B), ("queries", N), ("keys", S)))
    q, k = jnp.ones((batch, queries, H, D)), jnp.ones((batch, keys, K, D))
    given = {"q_positions": jnp.zeros((batch, queries), int), "kv_positions": jnp.zeros((batch, keys), int)}

    def run(q, k, v, sinks):
        return call(q=q, k=k, v=v, sinks=sinks, return_lse=True, implementation=implementation, **given)

    out, lse = run(q, k, k, None)
    assert out.shape == (batch, queries, H, D)
    assert lse.shape == (batch, queries, H)
    assert not np.any(out)
    assert np.all(lse == np.float32(NOTHING))
    sinks = jnp.arange(4.0)
    (_, lse), back = jax.vjp(run, q, k, k, sinks)
    np.testing.assert_array_equal(lse, jnp.broadcast_to(sinks, lse.shape))
    *of_tokens, of_sinks = back((jnp.ones_like(out), jnp.ones_like(lse)))
    assert not any(np.any(x) for x in of_tokens)
    np.testing.assert_array_equal(of_sinks, np.full(4, batch * queries))


def test_an_eager_call_is_compiled_once(monkeypatch):
    """The second call of a kind traces nothing, whatever its values."""
    traced = []

    def count(*arguments):
        traced.append(arguments)
        return blockwise.attend(*arguments)

    monkeypatch.setattr(api, "_IMPLEMENTATIONS", {"counted": count})
    call()
    call(q=PROBLEM.q + 1, q_positions=SIDES["q_positions"] + 1)
    assert len(traced) == 1
    call(window=5)
    assert len(traced) == 2
