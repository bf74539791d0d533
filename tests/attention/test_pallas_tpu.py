"""The TPU kernel, run by the Pallas interpreter, against the plain reference: values and gradients.

A scheme, positions and segments are data, so one compiled program serves many cases; compiling is what takes time here.
"""

import functools
import importlib.util
import json
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax import biases, frequencies, scaling
from rope_jax.attention import pallas_tpu, pallas_tpu_backward, reference
from rope_jax.attention.call import NOTHING, Settings, Tokens
from rope_jax.scheme import build, stack

DIM, HEADS, KV_HEADS, BATCH = 16, 4, 2, 2
SCALE = 1 / math.sqrt(DIM)
REACH = 40
QUICKLY = {"xla_backend_optimization_level": 0}  # a program runs once or twice: compiling it is what takes time
LEAVES = ("q", "k", "v", "inverse_frequencies", "remainder", "cos_sin_factor", "logit_scale", "slopes", "offset_bias")


def make_scheme(bias=None, *, heads=HEADS, layout="half", rotary_dim=DIM, max_offset=REACH, seed=0):
    rotary = None
    if rotary_dim:
        rotary = frequencies.rotary(rotary_dim, base=194.0, original_length=256)
        rotary = scaling.yarn(factor=4.0, original_length=256)(rotary)
    rng = np.random.default_rng(seed)
    bias = {
        None: None,
        "alibi": biases.alibi_paper(heads),
        "t5": biases.t5_bias(rng.standard_normal((heads, 8)), max_distance=40),
        "both ways": biases.t5_bias(rng.standard_normal((heads, 8)), max_distance=40, bidirectional=True),
        "kerple": biases.KerpleLogarithmic(jnp.full(heads, 0.7), jnp.full(heads, 0.3)),
    }[bias]
    return build(rotary, bias, num_heads=heads, head_dim=DIM, layout=layout, max_offset=max_offset)


def inputs(queries, keys=None, *, heads=HEADS, kv_heads=KV_HEADS, v_dim=DIM, dtype=jnp.float32, batch=BATCH, seed=0):
    """Returns q, k, v, and weights of the outputs and the log-sum-exps in a loss."""
    rng = np.random.default_rng(seed)
    keys = queries if keys is None else keys
    shapes = (batch, queries, heads, DIM), (batch, keys, kv_heads, DIM), (batch, keys, kv_heads, v_dim)
    q, k, v = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    weights = (rng.standard_normal((batch, queries, heads, v_dim)), rng.standard_normal((batch, queries, heads)))
    return q, k, v, tuple(jnp.asarray(w, jnp.float32) for w in weights)


def counted(tokens, start=0, batch=BATCH):
    return jnp.broadcast_to(jnp.arange(start, start + tokens, dtype=jnp.int32)[None], (batch, tokens))


@functools.cache
def program(settings, tile):
    """Returns a compiled function to outputs, log-sum-exps and the gradients of their weighted sum."""
    run = reference.attend
    if tile is not None:
        run = functools.partial(pallas_tpu.attend_with, tile=tile, interpret=True)

    def loss(q, k, v, scheme, sinks, queries, keys, weights):
        out, lse = run(q, k, v, scheme, sinks, queries, keys, settings)
        seen = jnp.where(lse > NOTHING, lse, 0.0)
        return jnp.sum(out.astype(jnp.float32) * weights[0]) + jnp.sum(seen * weights[1]), (out, lse)

    def both(q, k, v, scheme, sinks, queries, keys, weights):
        of_all = jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)
        gradients, (out, lse) = of_all(q, k, v, scheme, sinks, queries, keys, weights)
        return out, lse, gradients

    return jax.jit(both, compiler_options=QUICKLY)


def agree(data, scheme, queries, keys, settings, *, tile=(128, 128), sinks=None, tolerance=3e-5):
    """Checks kernel against reference and returns what the kernel gave; errors count against the largest entry."""
    arguments = (*data[:3], scheme, sinks, queries, keys, data[3])
    ours = program(settings, tile)(*arguments)
    theirs = program(settings, None)(*arguments)
    names = ["out", "lse", *LEAVES, *([] if sinks is None else ["sinks"])]
    for name, a, b in zip(names, jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.isfinite(a).all(), name
        seen = b[b > NOTHING] if name == "lse" else b
        atol = tolerance * max(1.0, float(np.abs(seen).max(initial=0.0)))
        np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=name)
    return ours


CAUSAL = Settings(scale=SCALE)
TOKENS = 300
ONE_SEGMENT = jnp.zeros((BATCH, TOKENS), jnp.int32)
SINKS = jnp.asarray([0.5, -1.0, 2.0, 0.0])


def agree_causal(scheme, positions, segments=(ONE_SEGMENT, ONE_SEGMENT), kv_positions=None, data=None):
    """One compiled program: causal, grouped heads, a ragged length, sinks, a strip; half of the dimensions rotate."""
    data = inputs(TOKENS) if data is None else data
    kv_positions = positions if kv_positions is None else kv_positions
    return agree(data, scheme, Tokens(positions, segments[0]), Tokens(kv_positions, segments[1]), CAUSAL, sinks=SINKS)


def half_rotary(bias, seed=0):
    return make_scheme(bias, rotary_dim=DIM // 2, layout="interleaved", seed=seed)


def test_positions_of_slots_that_hold_nothing_do_not_matter():
    """What reaches the frequencies is counted from the middle of the sequence, which they must not move."""
    held = counted(TOKENS) < 250
    positions, segments = jnp.where(held, counted(TOKENS), 2**30), jnp.where(held, 0, -1)
    agree_causal(half_rotary(None), positions, (segments, segments))


@pytest.mark.parametrize("bias", [None, "alibi", "t5", "kerple"])
def test_biases(bias):
    gradients = agree_causal(half_rotary(bias), counted(TOKENS))[2]
    for leaf in jax.tree.leaves(gradients)[3:8]:
        assert np.any(leaf) == (leaf is not gradients[3].remainder)


def test_the_same_bits_from_run_to_run():
    arguments = (half_rotary("t5"), counted(TOKENS, start=1000))
    for a, b in zip(*(jax.tree.leaves(agree_causal(*arguments)) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_positions_in_any_order():
    rng = np.random.default_rng(3)
    positions = rng.permutation(3 * TOKENS)[: BATCH * TOKENS].reshape(BATCH, TOKENS)
    others = rng.integers(0, 2 * TOKENS, (BATCH, TOKENS))
    agree_causal(half_rotary("t5"), jnp.asarray(positions, jnp.int32), kv_positions=jnp.asarray(others, jnp.int32))


def test_packed_documents():
    ids = np.stack([np.repeat([0, 1, 5], [50, 200, 50]), np.repeat([2, 3, 9], [10, 7, 283])])
    within = np.stack([np.r_[0:50, 0:200, 0:50], np.r_[0:10, 0:7, 0:283]])
    segments, positions = jnp.asarray(ids, jnp.int32), jnp.asarray(within, jnp.int32)
    agree_causal(half_rotary("t5"), positions, (segments, segments))
    # Documents out of order, or keys that stand elsewhere than the queries, are not told apart by their slots.
    back = jnp.asarray(ids[:, ::-1].copy(), jnp.int32)
    agree_causal(half_rotary("t5"), jnp.asarray(within[:, ::-1].copy(), jnp.int32), (back, back))
    agree_causal(half_rotary("t5"), positions + 3 * segments, (segments, segments), kv_positions=positions)


def test_a_document_in_two_pieces_is_not_read_by_slots():
    ids = np.stack([np.repeat([0, -1, 0], [100, 50, 150]), np.repeat([0, 1, 0], [100, 50, 150])])
    within = np.stack([np.r_[0:100, 0:50, 100:250], np.r_[0:100, 0:50, 100:250]])
    segments, positions = jnp.asarray(ids, jnp.int32), jnp.asarray(within, jnp.int32)
    agree_causal(half_rotary("t5"), positions, (segments, segments))


def test_padding_and_rows_that_see_nothing():
    rng = np.random.default_rng(4)
    ids = np.sort(rng.integers(0, 3, (BATCH, TOKENS)), axis=1)
    ids[0, -140:] = -1
    others = ids.copy()
    others[1, :3] = 9  # the first queries of the second row see nothing
    segments = jnp.asarray(ids, jnp.int32), jnp.asarray(others, jnp.int32)
    q, k, v, weights = inputs(TOKENS)
    q, k, v, d_out = (x.at[0, -140:].set(jnp.nan) for x in (q, k, v, weights[0]))
    out, lse, (d_q, d_k, d_v, *_) = agree_causal(
        half_rotary("alibi"), counted(TOKENS), segments, data=(q, k, v, (d_out, weights[1]))
    )
    for x in (out, d_q, d_k, d_v):
        assert not np.any(x[0, -140:])
    assert not np.any(out[1, :3])
    assert not np.any(d_q[1, :3])
    np.testing.assert_allclose(lse[1, 0], SINKS, rtol=1e-6)  # nothing but the sinks


LOOKING_AHEAD = Settings(scale=SCALE, causal=False, window=100, soft_cap=1.5)


def test_windows_caps_and_looking_ahead():
    data, here = inputs(TOKENS), Tokens(counted(TOKENS))
    agree(data, make_scheme("both ways"), here, here, LOOKING_AHEAD, tile=(256, 128))
    alone = Tokens(counted(TOKENS, start=10_000))
    _, lse, (d_q, *_) = agree(data, make_scheme("both ways", seed=1), here, alone, LOOKING_AHEAD, tile=(256, 128))
    assert (np.asarray(lse) == np.float32(NOTHING)).all()
    assert not np.any(d_q)


def test_a_chunk_against_a_longer_cache_with_a_scheme_for_each_sequence():
    data = inputs(70, 290, v_dim=24)
    queries = Tokens(jnp.concatenate([counted(70, start=220, batch=1), counted(70, start=100, batch=1)]))
    schemes = stack([make_scheme("alibi", max_offset=0), make_scheme(None, max_offset=0)])
    agree(data, schemes, queries, Tokens(counted(290)), Settings(scale=SCALE, window=150), tile=(128, 256))


def test_one_query_without_rotation():
    scheme = make_scheme("alibi", rotary_dim=0, max_offset=0)
    agree(inputs(1, 140), scheme, Tokens(counted(1, start=139)), Tokens(counted(140)), CAUSAL)


def test_one_token():
    q, k, v, _ = inputs(1)
    run = functools.partial(pallas_tpu.attend_with, settings=CAUSAL, interpret=True)
    run = jax.jit(run, compiler_options=QUICKLY)
    out, lse = run(q, k, v, make_scheme("alibi", max_offset=0), None, Tokens(counted(1)), Tokens(counted(1)))
    np.testing.assert_allclose(out, jnp.repeat(v, HEADS // KV_HEADS, axis=2), atol=1e-6)
    expected = SCALE * (q[0, 0, 0] @ k[0, 0, 0]) * make_scheme().cos_sin_factor ** 2
    np.testing.assert_allclose(lse[0, 0, 0], expected, rtol=1e-5)


@pytest.mark.slow
def test_vmap_over_schemes_and_over_positions():
    q, k, v, _ = inputs(140)
    schemes = [make_scheme("alibi", max_offset=0), make_scheme(None, max_offset=0)]
    here = Tokens(counted(140))

    def over_schemes(run):
        return jax.vmap(lambda scheme: run(q, k, v, scheme, None, here, here, CAUSAL)[0])(stack(schemes))

    def over_positions(run):
        one = lambda p: run(q, k, v, schemes[0], None, Tokens(p), Tokens(p), CAUSAL)[0]  # noqa: E731
        return jax.vmap(one)(jnp.stack([counted(140), 3 * counted(140)]))

    run = functools.partial(pallas_tpu.attend_with, tile=(128, 128), interpret=True)
    for function in (over_schemes, over_positions):
        ours = jax.jit(functools.partial(function, run), compiler_options=QUICKLY)()
        theirs = jax.jit(functools.partial(function, reference.attend))()
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_bfloat16():
    q, k, v, weights = inputs(200, dtype=jnp.bfloat16)
    here, scheme = Tokens(counted(200)), make_scheme("alibi", max_offset=0)
    ours = program(CAUSAL, (256, 128))(q, k, v, scheme, None, here, here, weights)
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    exact = program(CAUSAL, None)(*wide, scheme, None, here, here, weights)
    assert all(x.dtype == jnp.bfloat16 for x in (ours[0], *ours[2][:3]))
    for name, a, b in zip(("out", "lse", *LEAVES), jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        # A frequency's gradient weighs every rounding with its position; the reference in bfloat16 is as far off.
        allowed = 4e-2 if name == "inverse_frequencies" else 1e-2
        a, b = np.asarray(a, np.float32), np.asarray(b)
        np.testing.assert_allclose(a, b, atol=allowed * max(1.0, np.abs(b).max()), rtol=0, err_msg=name)


@pytest.mark.slow
def test_heads_that_do_not_fit_together_and_sums_in_sequence(monkeypatch):
    monkeypatch.setattr(pallas_tpu_backward, "_TABLE_BYTES", 4 * 3 * 2000)
    monkeypatch.setattr(pallas_tpu_backward, "_PARTIAL_BYTES", 0)
    here = Tokens(counted(TOKENS))
    settings = Settings(scale=SCALE, window=170)
    agree(inputs(TOKENS), make_scheme("kerple", max_offset=200), here, here, settings, tile=(128, 256))


def test_what_it_refuses():
    q, k, v, _ = inputs(4)
    here = Tokens(counted(4))
    if jax.default_backend() != "tpu":
        with pytest.raises(NotImplementedError, match="needs a TPU"):
            pallas_tpu.attend(q, k, v, make_scheme(), None, here, here, CAUSAL)
    with pytest.raises(NotImplementedError, match="v is float16"):
        pallas_tpu.attend_with(q, k, v.astype(jnp.float16), make_scheme(), None, here, here, CAUSAL)


@pytest.mark.slow
def test_compiles_for_a_real_tpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    root = pathlib.Path(__file__).resolve().parents[2]
    script = "experiments/benchmarks/tpu_memory.py"
    flags = ("--json", "--topologies=v5e:2x2", "--lengths=4096", "--biases=t5", "--heads=4", "--kv_heads=2")
    done = subprocess.run([sys.executable, script, *flags], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)["rows"]
    assert [row["pass"] for row in rows] == ["forward", "fwd+bwd"]
    for row in rows:
        assert row["temporary_bytes"] < row["dense_logits_bytes"]  # of one head
