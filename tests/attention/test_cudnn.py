"""cuDNN's path without a GPU, where plain attention by slots stands in for its kernel; and lines as channels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from slot_kernel import by_blocks, by_slots, call_of, check, compiled, gradients, nothing, operands, outputs

from rope_jax.attention import api, attention, cudnn, library_kernels, mosaic_gpu
from rope_jax.attention.line_channels import MOST_TOKENS, line_channels
from rope_jax.decoder.config import DecoderConfig
from rope_jax.decoder.decoder import Decoder
from rope_jax.scheme import build

attend = functools.partial(cudnn.attend_with, core=by_slots)
with_nothing = functools.partial(cudnn.attend_with, core=nothing)
SLOPES = np.float32([0.5, 2.0**-8, 2.0**-0.5, 0.0123, -0.03, 2.0, 0.0])


@pytest.mark.parametrize("tokens", [1, 255, 1000, MOST_TOKENS])
def test_channels_are_the_line_but_for_a_constant_in_each_row(tokens):
    of_queries, of_keys = line_channels(jnp.asarray(SLOPES), tokens)
    for x in (of_queries, of_keys):
        np.testing.assert_array_equal(x, x.astype(jnp.bfloat16).astype(jnp.float32))
    rows = np.unique(np.linspace(0, tokens - 1, 7).astype(int))
    a, b = (x.astype(jnp.bfloat16) for x in (of_queries[rows], of_keys))
    found = np.asarray(jnp.einsum("qhc,kc->hqk", a, b, preferred_element_type=jnp.float32), np.float64)
    found -= found[:, np.arange(rows.size), rows][:, :, None]
    slopes = np.float64(SLOPES)[:, None, None]
    wrong = found + slopes * (rows[:, None] - np.arange(tokens)[None, :])
    exact = np.isin(SLOPES, np.float32([0.5, 2.0**-8, 2.0, 0.0]))
    near = np.abs(rows[:, None] - np.arange(tokens)[None, :]) < 64
    assert np.all(wrong[exact][:, near] == 0)
    allowed = 2.0**-22 * np.abs(slopes) * (tokens + 1)
    assert np.all(np.abs(wrong) <= allowed)


def test_too_many_tokens_for_channels():
    with pytest.raises(ValueError, match="up to 131072 tokens, got 131073"):
        line_channels(jnp.ones(2), MOST_TOKENS + 1)


@pytest.mark.parametrize("bias", ["none", "alibi", "negative", "learned"])
def test_biases(bias):
    check(attend, call_of(bias=bias))


@pytest.mark.parametrize(
    "arguments",
    [
        {"positions": "far away"},
        {"window": 20},
        {"window": 1000, "v_dim": 5},
        {"each": True, "v_dim": 19, "kv_heads": 4},
        {"bias": "none", "causal": False, "keys": 40, "positions": "scattered"},
        {"layout": "interleaved", "rotary_dim": 6, "heads": 3, "kv_heads": 1},
        {"bias": "none", "rotary_dim": 0, "tokens": 17},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_settings_and_shapes(arguments):
    check(attend, call_of(**arguments))


RUNS = [
    ({"bias": "none"}, True),
    ({"bias": "alibi"}, True),
    ({"bias": "alibi", "positions": 131_000}, True),
    ({"bias": "alibi", "each": True}, True),
    ({"bias": "alibi", "positions": "permuted"}, False),
    ({"bias": "none", "positions": "restarting"}, False),
    ({"bias": "none", "positions": "scattered", "causal": False}, True),
    ({"bias": "alibi", "causal": False}, False),
]


@pytest.mark.parametrize(("arguments", "by_kernel"), RUNS)
def test_what_runs(arguments, by_kernel):
    problem = call_of(**arguments)
    found = outputs(with_nothing, problem)
    assert np.any(found) != by_kernel
    if not by_kernel:
        np.testing.assert_array_equal(found, outputs(by_blocks, problem))


def test_a_line_that_does_not_fit_beside_the_head_is_blockwise():
    for largest, by_kernel in ((16, True), (15, False)):
        assert np.any(outputs(functools.partial(with_nothing, largest_dim=largest), call_of())) != by_kernel


def test_where_the_scheme_is_differentiated_all_is_blockwise():
    problem = call_of(bias="learned")
    ours, theirs = (gradients(run, problem, of=(0, 3)) for run in (with_nothing, by_blocks))
    for pair in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(*pair)
    assert np.any(ours[1].slopes)


def test_the_strip_of_one_entry_changes_nothing():
    problem = call_of()
    higher = dataclasses.replace(problem.scheme, offset_bias=problem.scheme.offset_bias + 3.0)
    found = (outputs(attend, dataclasses.replace(problem, scheme=scheme)) for scheme in (problem.scheme, higher))
    np.testing.assert_array_equal(*found)


def test_vmap_and_recomputation():
    problem = call_of()

    @jax.checkpoint
    def loss(q, positions):
        queries, keys = (tokens._replace(positions=positions) for tokens in (problem.queries, problem.keys))
        out, _ = attend(q, problem.k, problem.v, problem.scheme, None, queries, keys, problem.settings)
        return jnp.sum(out.astype(jnp.float32) * problem.d_out)

    positions = jnp.stack([problem.keys.positions, problem.keys.positions[:, ::-1]])
    together = compiled(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(problem.q, positions)
    for found, at in zip(together, positions, strict=True):
        alone = compiled(jax.grad(loss))(problem.q, at)
        size = np.abs(np.asarray(alone, np.float32)).max()
        np.testing.assert_allclose(np.float32(found), np.float32(alone), atol=0.01 * size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float32"}, "cuDNN's kernel takes bfloat16, q is float32"),
        ({"dtype": "float16"}, "cuDNN's kernel takes bfloat16, q is float16"),
        ({"sinks": True}, "cuDNN's kernel takes no sinks"),
        ({"soft_cap": 2.0}, "cuDNN's kernel takes no soft_cap"),
        ({"segments": "one"}, "cuDNN's kernel takes no segment_ids"),
        ({"bias": "t5", "max_offset": 24}, "takes no bias but a line; the scheme's strip has max_offset 24"),
        ({"bias": "none", "causal": False, "window": 9}, "a window only of causal attention"),
        ({"tokens": 16}, "for more than 16 queries a sequence, got 16"),
        ({"keys": 80}, "masks by slots, and there are 70 queries for 80 keys"),
        ({"v_dim": 300}, "at most 256 dimensions here, got 300"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(NotImplementedError, match=message):
        outputs(attend, call_of(**arguments))


def test_it_refuses_what_the_kernel_refuses():
    def core(*arrays, **settings):
        raise RuntimeError("no such kernel")

    with pytest.raises(NotImplementedError, match="cuDNN refuses: no such kernel"):
        outputs(functools.partial(cudnn.attend_with, core=core), call_of())


def test_it_refuses_parts_of_a_sharded_array():
    mesh = jax.make_mesh((1,), ("x",), (jax.sharding.AxisType.Auto,))
    run = jax.shard_map(
        lambda *call: attend(*call, call_of().settings)[0],
        mesh=mesh,
        in_specs=(jax.sharding.PartitionSpec("x"),) * 3 + (jax.sharding.PartitionSpec(),) * 4,
        out_specs=jax.sharding.PartitionSpec("x"),
    )
    with pytest.raises(NotImplementedError, match=r"inside jax\.shard_map cuDNN's kernel needs check_vma=False"):
        run(*operands(call_of()))


def call(problem, **arguments):
    """Calls the public function afresh, whatever has been traced before."""
    jax.clear_caches()
    positions = {"q_positions": problem.queries.positions, "kv_positions": problem.keys.positions}
    return attention(problem.q, problem.k, problem.v, problem.scheme, **positions, **arguments)


def test_without_a_gpu_it_is_refused_and_never_chosen():
    if jax.default_backend() != "cpu":
        pytest.skip("there is a device")
    with pytest.raises(NotImplementedError, match="cuDNN's kernel needs a GPU, the default backend is cpu"):
        call(call_of(), implementation="cudnn")
    np.testing.assert_array_equal(call(call_of()), call(call_of(), implementation="blockwise"))


def with_a_gpu(monkeypatch, *capability):
    monkeypatch.setattr(library_kernels, "compute_capability", lambda library: capability)
    monkeypatch.setattr(library_kernels, "LEAST_JAX", (0, 0, 0))


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)])
def test_what_a_gpu_would_be_given(monkeypatch, capability):
    with_a_gpu(monkeypatch, *capability)
    if capability == (9, 0) and jax.default_backend() == "cpu":
        with pytest.raises(NotImplementedError, match="cuDNN refuses: cuDNN is not detected"):
            call(call_of(), implementation="cudnn")
    monkeypatch.setattr(cudnn, "_cudnn", nothing)
    assert np.any(call(call_of(), return_lse=True)[0])
    assert np.any(call(call_of())) == (capability == (7, 5))
    with pytest.raises(NotImplementedError, match="'cudnn' gives no log-sum-exps, and return_lse asks for them"):
        call(call_of(), implementation="cudnn", return_lse=True)


def test_it_needs_a_jax_whose_batch_rule_is_right(monkeypatch):
    with_a_gpu(monkeypatch, 8, 0)
    monkeypatch.setattr(library_kernels, "LEAST_JAX", (99, 0, 1))
    with pytest.raises(NotImplementedError, match=r"cuDNN's kernel needs jax >= 99\.0\.1, this is"):
        call(call_of(), implementation="cudnn")


def test_what_the_hopper_kernels_serve_is_theirs(monkeypatch):
    with_a_gpu(monkeypatch, 9, 0)
    monkeypatch.setattr(cudnn, "_cudnn", nothing)
    served = lambda q, k, v, *rest: (jnp.full_like(q, 5), jnp.zeros(q.shape[:3]))  # noqa: E731
    monkeypatch.setitem(api._IMPLEMENTATIONS, "mosaic_gpu", served)
    assert np.all(call(call_of(bias="none")) == 5)
    monkeypatch.setitem(api._IMPLEMENTATIONS, "mosaic_gpu", mosaic_gpu.attend)
    assert not np.any(call(call_of(bias="none"), causal=False))


def test_a_decoder_asks_for_no_log_sum_exps(monkeypatch):
    with_a_gpu(monkeypatch, 8, 0)
    asked = []
    monkeypatch.setattr(cudnn, "_cudnn", lambda *arrays, **settings: asked.append(settings) or nothing(*arrays))
    shapes = {"vocab_size": 5, "hidden_size": 16, "intermediate_size": 8, "num_layers": 1, "rms_norm_eps": 1e-6}
    model = Decoder(DecoderConfig(**shapes, num_heads=2, num_kv_heads=2, head_dim=8), rngs=nnx.Rngs(0))
    model.hidden(jnp.zeros((1, 20), jnp.int32), build(None, None, num_heads=2, head_dim=8), dtype=jnp.bfloat16)
    assert asked[0] == {"causal": True, "window": None}


# jax's own batch rules, which are there without a GPU.
@pytest.mark.skipif(jax.__version_info__ < library_kernels.LEAST_JAX, reason="this jax is refused")
@pytest.mark.parametrize("mapped", ["q", "k", "d_out", "slopes", "all"])
def test_the_batch_rules_of_jax_take_any_axis(monkeypatch, mapped):
    from jax._src.cudnn import fused_attention_stablehlo as library

    monkeypatch.setattr(library, "check_cudnn_version", lambda: 91500)
    monkeypatch.setattr(library, "check_compute_capability", lambda capability: True)
    problem = call_of()
    run = functools.partial(cudnn.attend_with, core=cudnn._cudnn)
    given = {"q": problem.q, "k": problem.k, "d_out": jnp.asarray(problem.d_out), "slopes": problem.scheme.slopes}

    def back(q, k, d_out, slopes):
        scheme = dataclasses.replace(problem.scheme, slopes=slopes)
        of = lambda q, k, v: run(q, k, v, scheme, None, problem.queries, problem.keys, problem.settings)[0]  # noqa: E731
        out, pull = jax.vjp(of, q, k, problem.v)
        return out, pull(d_out.astype(out.dtype))

    last = [x.ndim if name == mapped or mapped == "all" else None for name, x in given.items()]
    arrays = [
        x if axis is None else jnp.stack([x, x, x], axis=axis) for x, axis in zip(given.values(), last, strict=True)
    ]
    out, gradients = jax.eval_shape(jax.vmap(back, in_axes=last), *arrays)
    for found, x in zip((out, *gradients), (problem.q, problem.q, problem.k, problem.v), strict=True):
        assert found.shape == (3, *x.shape)
