"""The Hopper kernels, their tiles run by plain JAX, against the plain reference.

Nothing here says how the kernels do on a GPU: `experiments/benchmarks/accelerator.py` does, where there is one.
"""

import dataclasses
import functools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import mosaic_gpu_plain
import numpy as np
import pytest
from backend_suite import quick_compilation

from rope_jax import biases, frequencies
from rope_jax.attention import mosaic_gpu, mosaic_gpu_inputs, mosaic_gpu_spans, mosaic_gpu_tile, reference
from rope_jax.attention.call import NOTHING, Settings, Tokens
from rope_jax.attention.mosaic_gpu_tile import Inputs, Sizes
from rope_jax.attention.operands import operands_of
from rope_jax.scheme import build

DIM, HEADS, KV_HEADS = 16, 2, 1  # a tile has 64 dimensions, whatever a head has
SCALE = 1 / math.sqrt(DIM)
SINKS = jnp.asarray([0.5, -1.0])
LEAVES = ("q", "k", "v", "inverse_frequencies", "remainder", "cos_sin_factor", "logit_scale", "slopes", "offset_bias")


def make_scheme(bias=None, *, heads=HEADS, dim=DIM, rotary_dim=DIM, layout="half", max_offset=None, multiplier=1.0):
    rotary = frequencies.rotary(rotary_dim, base=10000.0, original_length=256) if rotary_dim else None
    rng = np.random.default_rng(0)
    bias = {
        None: None,
        "alibi": biases.alibi_paper(heads, multiplier=multiplier),
        "rising": biases.Alibi(jnp.full(heads, -0.01)),
        "t5": biases.t5_bias(rng.standard_normal((heads, 8)), max_distance=40),
        "kerple": biases.KerpleLogarithmic(jnp.full(heads, 0.7), jnp.full(heads, 0.3)),
    }[bias]
    return build(rotary, bias, num_heads=heads, head_dim=dim, layout=layout, max_offset=max_offset)


def drawn(queries, keys, *, heads=HEADS, kv_heads=KV_HEADS, dim=DIM, v_dim=None, batch=1, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (batch, queries, heads, dim), (batch, keys, kv_heads, dim), (batch, keys, kv_heads, v_dim or dim)
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes)


@functools.cache
def program(settings, way, sizes=None):
    """Returns a compiled function to outputs, log-sum-exps and the gradients of their weighted sum.

    Args:
      settings: of the call.
      way: "reference"; "kernels", their arithmetic; or "either", which has the choice of blockwise in it.
      sizes: of tiles.
    """
    run = reference.attend
    if way != "reference":
        run = functools.partial(mosaic_gpu.attend_with, tiles=sizes, kernels=mosaic_gpu_plain)

    def loss(q, k, v, scheme, sinks, queries, keys, weights):
        out, lse = run(q, k, v, scheme, sinks, queries, keys, settings)
        seen = jnp.where(lse > NOTHING, lse, 0.0)
        return jnp.sum(out.astype(jnp.float32) * weights[0]) + jnp.sum(seen * weights[1]), (out, lse)

    def both(q, k, v, scheme, sinks, *rest):
        of_all = jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)
        with mock.patch.object(mosaic_gpu, "_choose", jax.lax.cond if way == "either" else kernels_alone):
            gradients, (out, lse) = of_all(q, k, v, scheme, sinks, *rest)
        return out, lse, gradients

    return jax.jit(both, compiler_options=quick_compilation())


def kernels_alone(_, by_kernels, by_blocks):
    """Half of what there is to compile."""
    return by_kernels()


def distance(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-6)


def agree(data, scheme, queries, keys, settings, *, sinks=None, sizes=None, loose=(), regular=True):
    """Holds the kernels' arithmetic against the reference in float32 on the same bfloat16 numbers."""
    assert bool(mosaic_gpu_spans.in_slots(queries, keys)[1]) == regular
    rng = np.random.default_rng(1)
    shape = data[0].shape[:3]
    weights = tuple(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((*shape, data[2].shape[-1]), shape))
    ours = program(settings, "kernels" if regular else "either", sizes)(*data, scheme, sinks, queries, keys, weights)
    wide = tuple(x.astype(jnp.float32) for x in data)
    theirs = program(settings, "reference")(*wide, scheme, sinks, queries, keys, weights)
    assert ours[0].dtype == jnp.bfloat16
    names = ["out", "lse", *LEAVES, *([] if sinks is None else ["sinks"])]
    for name, a, b in zip(names, jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape, name
        assert np.isfinite(np.asarray(a, np.float32)).all(), name
        limit = 0.1 if name in loose else 0.012
        assert distance(a, b) < limit, (name, distance(a, b))
    return ours


def ones(tokens):
    return jnp.ones((1, tokens, HEADS, DIM)), jnp.ones((1, tokens, HEADS))


def counted(tokens, start=0, batch=1):
    return jnp.broadcast_to(start + jnp.arange(tokens, dtype=jnp.int32), (batch, tokens))


CAUSAL = Settings(scale=SCALE)
# A gradient that is a small difference of large sums, in which bfloat16's rounding stays.
SUMS = ("inverse_frequencies", "logit_scale", "slopes", "cos_sin_factor", "offset_bias")


@pytest.mark.parametrize("bias", [None, "alibi", "rising", "t5", "kerple"])
def test_biases(bias):
    at = Tokens(counted(300))
    agree(drawn(300, 300), make_scheme(bias, max_offset=70), at, at, CAUSAL, sinks=SINKS, loose=SUMS)


STARTS = (1, 77, 128, 300)


@pytest.mark.parametrize("start", STARTS)
def test_queries_after_a_prefix(start):
    scheme = make_scheme("t5", rotary_dim=DIM // 2, layout="interleaved")
    keys = 200 + max(STARTS)  # those after the last query are not seen
    agree(drawn(200, keys), scheme, Tokens(counted(200, 50 + start)), Tokens(counted(keys, 50)), CAUSAL, loose=SUMS)


def test_window_and_soft_cap():
    settings = Settings(scale=SCALE, window=90, soft_cap=2.0)
    at = Tokens(counted(400))
    agree(drawn(400, 400), make_scheme("t5"), at, at, settings, loose=SUMS)


def test_packed_documents_whose_positions_restart():
    segments = jnp.asarray(np.repeat([0, 1, 2, -1], [150, 70, 100, 20])[None])
    positions = jnp.concatenate([jnp.arange(150), jnp.arange(70), jnp.arange(100), jnp.zeros(20, jnp.int32)])
    at = Tokens(positions[None].astype(jnp.int32), segments.astype(jnp.int32))
    q, k, v = drawn(340, 340)
    q, k, v = (x.at[:, 320:].set(jnp.nan) for x in (q, k, v))
    ours = program(CAUSAL, "kernels")(q, k, v, make_scheme("t5"), SINKS, at, at, ones(340))
    assert np.isfinite(np.asarray(ours[0], np.float32)).all()
    q, k, v = (x.at[:, 320:].set(0) for x in (q, k, v))
    agree((q, k, v), make_scheme("t5"), at, at, CAUSAL, sinks=SINKS, loose=SUMS)


def test_positions_that_slots_do_not_tell_go_to_blockwise():
    rng = np.random.default_rng(2)
    at = Tokens(jnp.asarray(rng.permutation(300)[None].astype(np.int32)))
    agree(drawn(300, 300), make_scheme("t5"), at, at, CAUSAL, loose=SUMS, regular=False)


def test_sequences_of_their_own_starts_and_padding():
    positions = jnp.stack([jnp.arange(260), jnp.maximum(jnp.arange(260) - 40, 0)]).astype(jnp.int32)
    segments = jnp.stack([jnp.zeros(260, jnp.int32), jnp.where(jnp.arange(260) < 40, -1, 0)])
    at = Tokens(positions, segments)
    data = drawn(260, 260, batch=2)
    data = tuple(jnp.where(segments[..., None, None] < 0, 0, x) for x in data)
    agree(data, make_scheme("t5"), at, at, CAUSAL, loose=SUMS)


@pytest.mark.parametrize(
    ("dim", "v_dim", "sizes"), [(40, 48, None), (128, 128, None), (136, 40, None), (64, 64, Sizes(keys=64))]
)
def test_dims_and_sizes(dim, v_dim, sizes):
    scheme = make_scheme("alibi", dim=dim, rotary_dim=dim)
    at = Tokens(counted(256))
    data = drawn(256, 256, dim=dim, v_dim=v_dim)
    agree(data, scheme, at, at, Settings(scale=dim**-0.5), sizes=sizes, loose=SUMS)


def test_queries_that_see_nothing():
    keys = Tokens(counted(128, 140))
    queries = Tokens(counted(256))
    out, lse, gradients = program(CAUSAL, "kernels")(
        *drawn(256, 128), make_scheme("alibi"), None, queries, keys, ones(256)
    )
    assert (np.asarray(lse)[0, :140] == NOTHING).all()
    assert not np.asarray(out, np.float32)[0, :140].any()
    assert not np.asarray(gradients[0], np.float32)[0, :140].any()


def forwards(q, k, v, scheme, at, settings, sizes, kernels):
    """Returns outputs and log-sum-exps, without a way to gradients or to blockwise to compile."""

    def run(q, k, v, scheme, at):
        with mock.patch.object(mosaic_gpu, "_choose", kernels_alone):
            return mosaic_gpu.attend_with(q, k, v, scheme, None, at, at, settings, tiles=sizes, kernels=kernels)

    return jax.jit(run, compiler_options=quick_compilation())(q, k, v, scheme, at)


def test_tiles_that_cannot_matter_are_left_out():
    tokens = 640
    q, k, v = drawn(tokens, tokens)
    at = Tokens(counted(tokens))
    scheme = make_scheme("alibi", multiplier=4.0)
    seen = []

    class Watched:
        of_queries, of_keys = mosaic_gpu_plain.of_queries, mosaic_gpu_plain.of_keys

        @staticmethod
        def forward(plan, inputs, slots, spans, turn):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), spans)
            return mosaic_gpu_plain.forward(plan, inputs, slots, spans, turn)

    for skip in (True, False):
        settings = Settings(scale=SCALE, skip_tiles=skip)
        sizes = Sizes(skip_from=0)
        seen.append(forwards(q, k, v, scheme, at, settings, sizes, Watched))
    jax.effects_barrier()
    spans, with_skipping, all_spans, without = seen if isinstance(seen[0], np.ndarray) else seen[1:] + seen[:1]
    assert all_spans[0, 0, -1, 0] == 0 < spans[0, 0, -1, 0]
    np.testing.assert_array_equal(*(np.asarray(x[0], np.float32) for x in (with_skipping, without)))
    agree((q, k, v), scheme, at, at, CAUSAL, sizes=Sizes(skip_from=0), loose=SUMS)


@pytest.mark.parametrize("rotary_dim", [16, 64])
def test_bounds_of_queries_before_they_are_turned(rotary_dim):
    """They must be no tighter than those of turned ones, and should be nearly as tight."""
    tokens, dim = 640, 64
    scheme = make_scheme("alibi", dim=dim, rotary_dim=rotary_dim)
    scheme = dataclasses.replace(scheme, cos_sin_factor=jnp.float32(1.3), logit_scale=jnp.float32(0.8))
    at = Tokens(counted(tokens))
    operands = operands_of(*drawn(tokens, tokens, dim=dim, seed=5), scheme, SINKS, at, at)
    plan = mosaic_gpu_inputs.plan_of(operands, at, at, Settings(scale=0.2), Sizes())
    slots = mosaic_gpu_inputs.slots_of(jnp.zeros(1, jnp.int32), at, at)
    bias, _ = mosaic_gpu_inputs.bias_of(plan, tokens, operands.slopes, operands.strip, operands.sinks)
    turned, raw = (
        Inputs(*mosaic_gpu_inputs.tokens_of(plan, operands, at, at, "half", turn_queries=turns), *bias)
        for turns in (True, False)
    )
    turn, tiles = mosaic_gpu_inputs.query_turn(plan, operands), mosaic_gpu_spans.known(plan, slots, tokens)
    of = functools.partial(mosaic_gpu_spans.bounds, plan, tiles=tiles, strip=operands.strip)
    loose, tight = of(raw, turn=turn), of(turned)
    assert (loose >= tight).all()
    # The factor on cos and sin is taken for all dimensions.
    assert float((loose - tight).max()) < 0.32 * float(jnp.abs(tight).max())
    of = functools.partial(mosaic_gpu_spans.least_lse, plan, slots=slots, tokens=tokens, strip=operands.strip)
    sinks = jnp.full_like(operands.sinks, NOTHING)
    low, high = of(raw, sinks=sinks, turn=(turn, operands.k)), of(turned, sinks=sinks)
    assert (low <= high).all()
    assert float((high - low).max()) < 0.05 * float(jnp.abs(high).max())


def test_queries_turned_outside_are_those_of_the_kernel_to_the_bit():
    """Else the weights that the backward kernels make anew would not sum to 1 beside the forward kernel's."""
    scheme = dataclasses.replace(make_scheme(dim=64, rotary_dim=32), logit_scale=jnp.float32(0.77))
    at = Tokens(counted(256, 5))
    operands = operands_of(*drawn(256, 256, dim=64), scheme, None, at, at)
    plan = mosaic_gpu_inputs.plan_of(operands, at, at, Settings(scale=0.1), Sizes())
    outside, _, _ = mosaic_gpu_inputs.tokens_of(plan, operands, at, at, "half", turn_queries=True)
    cos, sin, factor = mosaic_gpu_inputs.query_turn(plan, operands)
    inside = mosaic_gpu_tile.turned(operands.q.astype(jnp.float32), cos[:, :, None], sin[:, :, None], factor[0])
    np.testing.assert_array_equal(*(np.asarray(x, np.float32) for x in (outside, inside.astype(jnp.bfloat16))))


def test_large_far_values_are_not_left_out():
    tokens = 640
    q, k, v = drawn(tokens, tokens)
    v = v.at[:, :64].multiply(1e30)
    at, scheme = Tokens(counted(tokens)), make_scheme("alibi", multiplier=4.0)
    outs = [
        forwards(q, k, v, scheme, at, settings, Sizes(skip_from=0), mosaic_gpu_plain)[0]
        for settings in (CAUSAL, Settings(scale=SCALE, skip_tiles=False))
    ]
    np.testing.assert_array_equal(*(np.asarray(x, np.float32) for x in outs))
    assert float(jnp.abs(outs[0][0, 500:]).max()) > 1e3


def test_gradients_that_nobody_asks_for_are_not_made():
    made = []

    class Watched:
        forward, of_keys = mosaic_gpu_plain.forward, mosaic_gpu_plain.of_keys

        @staticmethod
        def of_queries(*arguments, slopes):
            made.append(slopes)
            return mosaic_gpu_plain.of_queries(*arguments, slopes=slopes)

        @staticmethod
        def of_strip(*arguments):
            made.append("strip")
            return mosaic_gpu_plain.of_strip(*arguments)

    q, k, v = drawn(128, 128)
    at, scheme = Tokens(counted(128)), make_scheme("t5")

    def run(q, scheme):
        out = mosaic_gpu.attend_with(q, k, v, scheme, None, at, at, CAUSAL, kernels=Watched)[0]
        return out.astype(jnp.float32).sum()

    jax.make_jaxpr(jax.grad(run))(q, scheme)
    assert made == [False]
    jax.make_jaxpr(jax.grad(run, argnums=(0, 1)))(q, scheme)
    assert made == [False, True, "strip"]


@pytest.mark.parametrize(
    ("dim", "rotary_dim", "layout", "turns"),
    [(16, 16, "half", True), (80, 32, "half", True), (32, 8, "half", False), (16, 16, "interleaved", False)],
)
def test_kernels_turn_back_what_they_turned(dim, rotary_dim, layout, turns):
    """With gradients of queries, keys and values alone; the scheme's are asked for everywhere else."""
    seen = []

    class Watched:
        of_strip = mosaic_gpu_plain.of_strip

        @staticmethod
        def forward(*arguments):
            seen.append(arguments[-1] is not None)
            return mosaic_gpu_plain.forward(*arguments)

        @staticmethod
        def of_queries(*arguments, slopes):
            seen.append(arguments[-1] is not None)
            return mosaic_gpu_plain.of_queries(*arguments, slopes=slopes)

        @staticmethod
        def of_keys(*arguments):
            seen.append(arguments[-1] is not None)
            return mosaic_gpu_plain.of_keys(*arguments)

    scheme = make_scheme("t5", dim=dim, rotary_dim=rotary_dim, layout=layout)
    scheme = dataclasses.replace(scheme, logit_scale=jnp.float32(1.3), cos_sin_factor=jnp.float32(1.1))
    queries, keys = Tokens(counted(200, 1000)), Tokens(counted(300, 900))
    weights, _ = ones(200)
    weights = jnp.broadcast_to(weights[..., :1], (1, 200, HEADS, dim)) * jnp.cos(jnp.arange(200.0))[None, :, None, None]

    def gradients(q, k, v, attend):
        out = attend(q, k, v, scheme, None, queries, keys, Settings(scale=dim**-0.5))[0]
        return jnp.sum(out.astype(jnp.float32) * weights)

    data = drawn(200, 300, dim=dim)
    of = lambda attend: jax.jit(jax.grad(functools.partial(gradients, attend=attend), argnums=(0, 1, 2)))  # noqa: E731
    with mock.patch.object(mosaic_gpu, "_choose", kernels_alone):
        ours = of(functools.partial(mosaic_gpu.attend_with, kernels=Watched))(*data)
    theirs = of(reference.attend)(*(x.astype(jnp.float32) for x in data))
    assert seen == [turns] * 3
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == jnp.bfloat16
        assert distance(a, b) < 0.012


def test_span():
    sees = jnp.asarray([[0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]], bool)
    plain = jnp.asarray([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]], bool)
    assert mosaic_gpu_spans.span(sees, plain).tolist() == [[1, 2, 4, 5], [0, 0, 0, 0], [0, 3, 6, 6], [0, 3, 3, 3]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": jnp.float32}, "take bfloat16, q is float32"),
        ({"causal": False}, "are of causal attention"),
        ({"dim": 320}, "heads of up to 256, got 320"),
        ({"queries": 100}, "take 128 queries or more, got 100"),
    ],
)
def test_refusals(change, reason):
    dim, queries = change.get("dim", DIM), change.get("queries", 128)
    data = tuple(x.astype(change.get("dtype", jnp.bfloat16)) for x in drawn(queries, 128, dim=dim))
    settings = Settings(scale=SCALE, causal=change.get("causal", True))
    at = Tokens(counted(queries)), Tokens(counted(128))
    with pytest.raises(NotImplementedError, match=reason):
        mosaic_gpu.attend_with(*data, make_scheme(dim=dim), None, *at, settings, kernels=mosaic_gpu_plain)
