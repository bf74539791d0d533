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
        ({"scheme": stack([PROBLEM.scheme] * 3)}, ValueError, r"scheme.inverse_frequencies must have shape \(4,\)"),
        ({"scheme": None}, TypeError, "scheme must be a Scheme"),
        ({"scheme": changed_scheme(offset_bias=jnp.ones((H, 2)))}, ValueError, r"offset_bias must have shape \(4, 3\)"),
        ({"scheme": changed_scheme(offset_bias=jnp.ones((1, 3)))}, ValueError, r"offset_bias must have shape \(4, 3\)"),
        ({"scheme": changed_scheme(offset_bias=jnp.ones((H, 0)))}, ValueError, r"offset_bias must have shape \(4, 1\)"),
        ({"scheme": changed_scheme(remainder=jnp.ones(3))}, ValueError, r"scheme.remainder must have shape \(4,\)"),
        ({"scheme": changed_scheme(cos_sin_factor=jnp.ones(5))}, ValueError, r"cos_sin_factor must have shape \(\)"),
        ({"q": [[1.0]]}, TypeError, "q must be an array, got list"),
        ({"sinks": [0.0] * H}, TypeError, "sinks must be an array, got list"),
        ({"sinks": jnp.zeros(H, int)}, TypeError, "sinks must be floating, got int32"),
        ({"causal": "no"}, TypeError, "causal must be True or False"),
        ({"causal": None}, TypeError, "causal must be True or False"),
        ({"skip_tiles": 1}, TypeError, "skip_tiles must be True or False"),
        ({"window": np.array([2])}, TypeError, "window must be an int or None"),
        ({"scale": 1e300}, ValueError, r"scale must be a finite number within float32, got 1e\+300"),
        ({"segment_ids": (None, jnp.zeros((B, S), int))}, TypeError, "segment_ids must be None or a pair"),
        ({"q_positions": jnp.zeros((B, 1), int)}, ValueError, r"q_positions must have shape \(2, 12\) or \(12,\)"),
        ({"kv_positions": jnp.zeros((1, S), int)}, ValueError, r"kv_positions must have shape \(2, 20\) or \(20,\)"),
        ({"kv_positions": jnp.zeros((), int)}, ValueError, r"kv_positions must have shape \(2, 20\) or \(20,\)"),
        ({"q_positions": np.zeros((B, N)) + 0.5}, TypeError, "q_positions must be integers, got float64"),
        ({"q_positions": jnp.zeros((B, N), jnp.bfloat16)}, TypeError, "q_positions must be integers, got bfloat16"),
        ({"kv_positions": jnp.ones((B, S), bool)}, TypeError, "kv_positions must be integers, got bool"),
        ({"kv_positions": np.full((B, S), 2**31)}, ValueError, "kv_positions must fit into int32"),
        ({"segment_ids": jnp.zeros((B, N), int)}, TypeError, "segment_ids must be None or a pair"),
        (
            {"segment_ids": (jnp.zeros((B, N), int), jnp.zeros((B, N), int))},
            ValueError,
            r"segment_ids of kv must have shape \(2, 20\)",
        ),
        ({"window": 2.5}, TypeError, "window must be an int or None, known before tracing; got 2.5"),
        ({"window": True}, TypeError, "window must be an int or None, known before tracing; got True"),
        ({"window": jnp.int32(3)}, TypeError, "window must be an int or None, known before tracing"),
        ({"soft_cap": float("nan")}, ValueError, "soft_cap must be a finite number within float32, got nan"),
        ({"soft_cap": float("inf")}, ValueError, "soft_cap must be a finite number within float32, got inf"),
        ({"scale": float("nan")}, ValueError, "scale must be a finite number within float32, got nan"),
        ({"scale": float("-inf")}, ValueError, "scale must be a finite number within float32, got -inf"),
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


def test_wide_positions_that_are_known_where_a_program_is_traced():
    at, of = jnp.arange(N, dtype=jnp.uint32) + 8, jnp.arange(S, dtype=jnp.uint32)
    run = jax.jit(lambda q: call(q=q, q_positions=at, kv_positions=of))
    np.testing.assert_allclose(run(PROBLEM.q), call(q_positions=at, kv_positions=of), atol=2e-6)


@pytest.mark.parametrize("implementation", ["blockwise", "decode"])
def test_keys_of_one_tile_may_be_as_far_apart_as_int32_holds(implementation):
    """The gradient of the frequencies against each key's phase gradient times its position, in float64."""
    flat = changed_scheme(offset_bias=jnp.zeros((H, 1)), slopes=jnp.zeros(H))
    still = dataclasses.replace(flat, cos_sin_factor=jnp.float32(1.0), inverse_frequencies=jnp.zeros(4))
    still = dataclasses.replace(still, remainder=jnp.zeros(4))

    def attend(**given):
        out = call(q_positions=np.zeros(N, int), causal=False, implementation=implementation, **given)
        return jnp.sum(jnp.sin(3 * out))

    @jax.jit
    def of_frequencies(theta, keys):
        return attend(scheme=dataclasses.replace(flat, inverse_frequencies=theta), kv_positions=keys)

    @jax.jit
    def of_phases(angles, keys):
        x, y = jnp.split(flat.rotate(PROBLEM.k, jnp.broadcast_to(keys, (B, S))), 2, axis=-1)
        cos, sin = (turn(angles)[None, :, None] for turn in (jnp.cos, jnp.sin))
        turned = jnp.concatenate([x * cos - y * sin, y * cos + x * sin], axis=-1)
        q = flat.rotate(PROBLEM.q, jnp.zeros((B, N), int))
        return attend(q=q, k=turned, scheme=still, kv_positions=np.zeros(S, int))

    for apart in (10**9, 2**31 - 1):
        keys = np.tile([-apart, apart, 3], 7)[:S]
        each = np.asarray(jax.grad(of_phases)(jnp.zeros((S, 4)), keys), np.float64) * keys[:, None]
        gradient = jax.grad(of_frequencies)(flat.inverse_frequencies, keys)
        np.testing.assert_allclose(gradient, each.sum(axis=0), rtol=1e-4, atol=1e-4 * np.abs(each).max())


def test_where_jax_has_64_bits_too():
    attend = lambda q, k, v: call(q=q, k=k, v=v)  # noqa: E731
    expected, back = jax.vjp(attend, PROBLEM.q, PROBLEM.k, PROBLEM.v)
    with jax.enable_x64(True):
        found, back_too = jax.vjp(attend, PROBLEM.q, PROBLEM.k, PROBLEM.v)
        gradients = back_too(jnp.ones_like(found))
    for ours, plain in zip((found, *gradients), (expected, *back(jnp.ones_like(expected))), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, plain, atol=1e-5)


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
