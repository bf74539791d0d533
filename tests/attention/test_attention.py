"""Attention by query blocks against the plain reference, and both against an oracle written here in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax import attention as package
from rope_jax import biases, frequencies, scaling, testing
from rope_jax.attention.reference import attention_reference
from rope_jax.scheme import build, stack

DIM = 8


def make_scheme(heads, bias=None, *, layout="half", dim=DIM, seed=0, **arguments):
    rotary = frequencies.rotary(dim, base=194.0, original_length=256)
    rotary = scaling.yarn(factor=4.0, original_length=256)(rotary)
    rng = np.random.default_rng(seed)
    bias = {
        None: None,
        "alibi": biases.alibi_paper(heads),
        "t5": biases.t5_bias(rng.standard_normal((heads, 8)), max_distance=40),
        "kerple": biases.KerpleLogarithmic(jnp.full(heads, 0.7), jnp.full(heads, 0.3)),
    }[bias]
    return build(rotary, bias, num_heads=heads, head_dim=DIM, layout=layout, **arguments)


def inputs(batch, queries, heads, kv_heads, keys=None, seed=0, v_dim=DIM):
    rng = np.random.default_rng(seed)
    keys = queries if keys is None else keys
    shapes = (batch, queries, heads, DIM), (batch, keys, kv_heads, DIM), (batch, keys, kv_heads, v_dim)
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


def oracle(q, k, v, scheme, *, q_positions, kv_positions, segment_ids=None, window=None, causal=True, soft_cap=None):
    """One query and one head at a time, nothing shared with the library but the scheme's numbers."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    theta = np.asarray(scheme.inverse_frequencies, np.float64) + np.asarray(scheme.remainder, np.float64)
    strip, slopes = np.asarray(scheme.offset_bias, np.float64), np.asarray(scheme.slopes, np.float64)
    reach = strip.shape[1] // 2

    def turn(x, positions):
        z = x.copy()
        for i, frequency in enumerate(theta):
            a, b = (i, i + len(theta)) if scheme.layout == "half" else (2 * i, 2 * i + 1)
            w = (x[..., a] + 1j * x[..., b]) * np.exp(1j * frequency * positions)[..., None]
            z[..., a], z[..., b] = w.real, w.imag
        z[..., : 2 * len(theta)] *= float(scheme.cos_sin_factor)
        return z

    turned_q, turned_k = turn(q, np.asarray(q_positions)), turn(k, np.asarray(kv_positions))
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b in range(q.shape[0]):
        offset = np.asarray(q_positions)[b][:, None] - np.asarray(kv_positions)[b][None]
        seen = offset >= 0 if causal else np.full(offset.shape, True)
        if window is not None:
            seen &= np.abs(offset) < window
        if segment_ids is not None:
            ids, others = (np.asarray(part)[b] for part in segment_ids)
            seen &= (ids[:, None] == others[None]) & (ids[:, None] >= 0)
        for h in range(q.shape[2]):
            shared = h // (q.shape[2] // k.shape[2])
            logits = turned_q[b, :, h] @ turned_k[b, :, shared].T / math.sqrt(DIM) * float(scheme.logit_scale)
            if soft_cap is not None:
                logits = soft_cap * np.tanh(logits / soft_cap)
            logits = logits - slopes[h] * np.abs(offset) + strip[h][np.clip(offset, -reach, reach) + reach]
            for i in range(len(logits)):
                if seen[i].any():
                    weights = np.exp(logits[i][seen[i]] - logits[i][seen[i]].max())
                    out[b, i, h] = weights / weights.sum() @ v[b, seen[i], shared]
    return out


@functools.partial(jax.jit, static_argnames=("window", "causal", "soft_cap"))
def attend(q, k, v, scheme, q_positions, kv_positions, segment_ids=None, **settings):
    return package.attention(
        q, k, v, scheme, q_positions=q_positions, kv_positions=kv_positions, segment_ids=segment_ids, **settings
    )


@functools.partial(jax.jit, static_argnames=("window", "causal", "soft_cap"))
def refer(q, k, v, scheme, q_positions, kv_positions, segment_ids=None, *, window=None, causal=True, soft_cap=None):
    return attention_reference(
        q,
        k,
        v,
        scheme,
        q_positions=q_positions,
        kv_positions=kv_positions,
        segments=segment_ids,
        window=window,
        causal=causal,
        scale=1 / math.sqrt(DIM),
        soft_cap=soft_cap,
    )


def positions_of(batch, tokens, start=0):
    return jnp.broadcast_to(jnp.arange(start, start + tokens, dtype=jnp.int32)[None], (batch, tokens))


def agree(q, k, v, scheme, q_positions, kv_positions, segment_ids=None, **settings):
    expected = oracle(
        q, k, v, scheme, q_positions=q_positions, kv_positions=kv_positions, segment_ids=segment_ids, **settings
    )
    arguments = (q, k, v, scheme, q_positions, kv_positions, segment_ids)
    ours, plain = attend(*arguments, **settings), refer(*arguments, **settings)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=5e-6)
    np.testing.assert_allclose(plain, expected, atol=5e-6)
    return ours


@pytest.mark.parametrize("tokens", [1, 255, 256, 257, 600])
def test_lengths_around_the_block(tokens):
    q, k, v = inputs(1, tokens, 2, 1)
    agree(q, k, v, make_scheme(2, "t5"), positions_of(1, tokens), positions_of(1, tokens))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("bias", [None, "alibi", "t5"])
def test_groups_of_heads_and_biases(heads, kv_heads, bias):
    q, k, v = inputs(2, 40, heads, kv_heads, v_dim=5)
    agree(q, k, v, make_scheme(heads, bias, layout="interleaved"), positions_of(2, 40), positions_of(2, 40))


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 7},
        {"soft_cap": 0.8},
        {"causal": False},
        {"window": 1},
        {"window": 9, "causal": False, "soft_cap": 3.0},
    ],
)
def test_windows_caps_and_looking_ahead(settings):
    q, k, v = inputs(1, 300, 2, 2)
    scheme = make_scheme(2, "kerple", max_offset=400)
    agree(q, k, v, scheme, positions_of(1, 300), positions_of(1, 300), **settings)


def test_partial_rotation_and_no_rotation():
    q, k, v = inputs(1, 30, 2, 2)
    agree(q, k, v, make_scheme(2, "alibi", dim=4), positions_of(1, 30), positions_of(1, 30))
    still = build(None, biases.alibi_paper(2), num_heads=2, head_dim=DIM)
    agree(q, k, v, still, positions_of(1, 30), positions_of(1, 30))


def test_positions_in_any_order_and_more_keys_than_queries():
    q, k, v = inputs(2, 20, 2, 1, keys=70)
    rng = np.random.default_rng(3)
    q_positions = jnp.asarray(rng.integers(0, 5000, (2, 20)), jnp.int32)
    kv_positions = jnp.asarray(rng.permutation(5000)[:140].reshape(2, 70), jnp.int32)
    out = agree(q, k, v, make_scheme(2, "t5"), q_positions, kv_positions)
    order = rng.permutation(70)
    shuffled = attend(q, k[:, order], v[:, order], make_scheme(2, "t5"), q_positions, kv_positions[:, order])
    np.testing.assert_allclose(shuffled, out, atol=2e-6)


def test_segments_and_rows_that_see_nothing():
    tokens = 280
    q, k, v = inputs(2, tokens, 2, 1)
    rng = np.random.default_rng(4)
    ids = np.sort(rng.integers(0, 3, (2, tokens)), axis=1)
    ids[0, -9:] = -1  # padding
    ids[1, 5] = 7  # alone, but sees itself
    segments = jnp.asarray(ids, jnp.int32)
    other_keys = segments.at[1, :3].set(9)  # the first queries of the second row see nothing
    scheme = make_scheme(2, "alibi")
    positions = positions_of(2, tokens)
    out = agree(q, k, v, scheme, positions, positions, (segments, other_keys))
    assert not np.any(out[0, -9:])
    assert not np.any(out[1, :3])

    def loss(q, k, v, scheme):
        return jnp.sum(attend(q, k, v, scheme, positions, positions, (segments, other_keys)) ** 2)

    by_q, by_k, by_v, by_scheme = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, k, v, scheme)
    for leaf in jax.tree.leaves((by_q, by_k, by_v, by_scheme)):
        assert np.isfinite(leaf).all()
    for gradient in (by_q, by_k, by_v):
        assert not np.any(gradient[0, -9:])
    assert not np.any(by_q[1, :3])
    np.testing.assert_allclose(by_q[0, 0], 0.0, atol=1e-5)  # the first token sees only itself: softmax of one
    assert np.any(by_v[0, 0])


def test_packing_equals_the_documents_alone():
    q, k, v = inputs(1, 60, 2, 1)
    scheme = make_scheme(2, "t5")
    positions = jnp.concatenate([positions_of(1, 25), positions_of(1, 35)], axis=1)
    segments = jnp.asarray([[0] * 25 + [1] * 35])
    packed = attend(q, k, v, scheme, positions, positions, (segments, segments))
    alone = [
        attend(q[:, at], k[:, at], v[:, at], scheme, positions[:, at], positions[:, at])
        for at in (slice(0, 25), slice(25, 60))
    ]
    np.testing.assert_allclose(packed, jnp.concatenate(alone, axis=1), atol=2e-6)


@pytest.mark.parametrize(("tokens", "settings"), [(40, {}), (300, {"window": 30, "soft_cap": 2.0})])
def test_gradients_equal_the_references(tokens, settings):
    q, k, v = inputs(2, tokens, 4, 2)
    scheme = make_scheme(4, "t5")
    positions = positions_of(2, tokens)
    weights = jnp.asarray(np.random.default_rng(5).standard_normal(q.shape), jnp.float32)

    def gradient(function):
        loss = lambda q, k, v, s: jnp.sum(weights * function(q, k, v, s, positions, positions, **settings))  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, k, v, scheme)

    ours, theirs = gradient(attend), gradient(refer)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * max(1.0, float(jnp.abs(b).max())))
    of_scheme = ours[3]
    for name in ("inverse_frequencies", "cos_sin_factor", "logit_scale", "slopes", "offset_bias"):
        assert np.any(getattr(of_scheme, name)), name
    assert not np.any(of_scheme.remainder)


def test_gradients_equal_finite_differences_of_the_oracle():
    q, k, v = inputs(1, 12, 2, 1)
    scheme = make_scheme(2, "t5")
    positions = positions_of(1, 12)
    rng = np.random.default_rng(6)
    weights = rng.standard_normal((1, 12, 2, DIM))

    def loss(q, k, v, scheme):
        return jnp.sum(jnp.asarray(weights, jnp.float32) * attend(q, k, v, scheme, positions, positions))

    def loss64(arguments):
        return np.sum(weights * oracle(*arguments, q_positions=positions, kv_positions=positions))

    arguments = (q, k, v, scheme)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arguments)
    leaves, structure = jax.tree.flatten(arguments)
    remainder = 4  # q, k, v, inverse frequencies, remainder: a constant under differentiation
    for which, (leaf, gradient) in enumerate(zip(leaves, jax.tree.leaves(gradients), strict=True)):
        if which == remainder:
            continue
        direction = rng.standard_normal(leaf.shape)
        moved = []
        for step in (1e-2, -1e-2):
            shifted = jnp.asarray(np.asarray(leaf) + step * direction, jnp.float32)
            moved.append(loss64(jax.tree.unflatten(structure, [*leaves[:which], shifted, *leaves[which + 1 :]])))
        assert np.sum(np.asarray(gradient) * direction) == pytest.approx(
            (moved[0] - moved[1]) / 2e-2, rel=1e-2, abs=2e-2
        )


@pytest.mark.parametrize("bias", [None, "alibi", "t5"])
def test_only_offsets_matter(bias):
    q, k, v = inputs(1, 20, 2, 1)
    scheme = make_scheme(2, bias)
    testing.assert_shift_invariant(
        lambda positions: attend(q, k, v, scheme, positions, positions), tokens=20, shifts=(1, 1000, 2**20), atol=2e-5
    )


@pytest.mark.parametrize("at", [1, 13, 299])
def test_the_future_is_not_seen(at):
    _, k, v = inputs(1, 300, 2, 2)
    q = k
    scheme = make_scheme(2, "alibi")

    def model(x):
        x = x.reshape(1, 300, 2, DIM)
        return attend(q, x, x + v, scheme, positions_of(1, 300), positions_of(1, 300))[0]

    testing.assert_causal(model, k.reshape(300, 2 * DIM), at=at)


def test_a_scheme_for_each_sequence():
    q, k, v = inputs(2, 30, 2, 1)
    schemes = [make_scheme(2, "t5", seed=1), make_scheme(2, None, max_offset=5)]
    positions = positions_of(2, 30)
    together = attend(q, k, v, stack(schemes), positions, positions)
    for row, scheme in enumerate(schemes):
        alone = attend(*(x[row : row + 1] for x in (q, k, v)), scheme, positions[:1], positions[:1])
        np.testing.assert_allclose(together[row], alone[0], atol=2e-6)


def test_bfloat16_stays_near_and_keeps_its_dtype():
    q, k, v = inputs(1, 40, 2, 1)
    positions = positions_of(1, 40)
    narrow = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)), make_scheme(2, "t5"), positions, positions)
    assert narrow.dtype == jnp.bfloat16
    wide = attend(q, k, v, make_scheme(2, "t5"), positions, positions)
    np.testing.assert_allclose(narrow.astype(jnp.float32), wide, atol=5e-2)


def test_large_logits_and_large_slopes_stay_finite():
    q, k, v = inputs(1, 40, 2, 2)
    positions = positions_of(1, 40)
    scheme = build(None, biases.Alibi(jnp.asarray([1e4, -1e4])), num_heads=2, head_dim=DIM)
    out = attend(1e3 * q, 1e3 * k, v, scheme, positions, positions)
    np.testing.assert_allclose(
        out, oracle(1e3 * q, 1e3 * k, v, scheme, q_positions=positions, kv_positions=positions), atol=1e-2
    )


def test_heads_that_do_not_group_are_an_error():
    q, k, v = inputs(1, 4, 3, 2)
    with pytest.raises(ValueError, match="3 query heads do not divide into groups over 2"):
        attend(q, k, v, make_scheme(3), positions_of(1, 4), positions_of(1, 4))
    q, k, v = inputs(1, 4, 4, 2)
    with pytest.raises(ValueError, match="the scheme has 3 heads, the queries 4"):
        attend(q, k, v, make_scheme(3), positions_of(1, 4), positions_of(1, 4))
