"""Attention under every transformation that users have: the result is the one of the plain call.

Devices must be counted before JAX starts, so the tests run in a process of their own that has four; one for each
length, as a call takes another path beyond one tile of keys, and another where several tiles of queries go on together.
"""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_suite import quick_compilation
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rope_jax import biases, frequencies, scaling
from rope_jax.attention import attention, machine, wide_tiles
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.scheme import build, stack

FLAG = "--xla_force_host_platform_device_count=4"
ALONE = FLAG not in os.environ.get("XLA_FLAGS", "")
on_devices = pytest.mark.skipif(ALONE, reason="run by test_on_virtual_devices, in a process with 4 of them")
TOKENS = int(os.environ.get("ROPE_JAX_TOKENS", "20"))
BATCH, HEADS, KV_HEADS, DIM = 4, 4 if TOKENS < 100 else 16, 2, 8  # 8 heads to a key head: blocks from 1,024 tokens on
AXES = ("data", "model")
BY_HEAD = P("data", None, "model")


@pytest.mark.skipif(not ALONE, reason="is the process that the test starts")
@pytest.mark.parametrize("tokens", [20, *(pytest.param(n, marks=pytest.mark.slow) for n in (512, 1024, 1302, 2048))])
def test_on_virtual_devices(tokens):
    root = pathlib.Path(__file__).resolve().parents[2]
    flags = [FLAG]
    if tokens > 20:  # what runs is the same, and compiled in a fifth of the time
        flags += [f"--{name}={str(value).lower()}" for name, value in quick_compilation().items()]
    environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu", "ROPE_JAX_TOKENS": str(tokens)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def make_scheme(bias="t5", *, heads=HEADS, dim=DIM):
    rotary = scaling.yarn(factor=4.0, original_length=256)(frequencies.rotary(dim, base=194.0, original_length=256))
    table = np.random.default_rng(1).standard_normal((heads, 8))
    made = biases.alibi_paper(heads) if bias == "alibi" else biases.t5_bias(table, max_distance=16)
    return build(rotary, made, num_heads=heads, head_dim=dim, max_offset=16)


def make_arguments(seed=0):
    """Returns queries, keys, values, a scheme and sinks: what has a gradient."""
    rng = np.random.default_rng(seed)
    shapes = [(BATCH, TOKENS, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    q, k, v = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    return q, k, v, make_scheme(), jnp.resize(jnp.asarray([0.5, -2.0, 3.0, 0.0]), (HEADS,))


def positions_of(x):
    """Returns positions that have the sharding of `x`'s sequences, as data that comes from outside has."""
    return jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32)[None], x.shape[:2])


def attend(q, k, v, scheme, sinks):
    at = positions_of(np.empty(q.shape[:2]))
    return attention(q, k, v, scheme, q_positions=at, kv_positions=at, sinks=sinks)


def loss(arguments):
    return jnp.sum(jnp.sin(3 * attend(*arguments)))


@pytest.fixture(scope="module")
def expected():
    """The loss and its gradients from one plain, compiled call."""
    return jax.jit(jax.value_and_grad(loss))(make_arguments())


def assert_close(got, expected):
    """Compares arrays relative to their largest entry, a loss to what it adds up: terms of up to 1, of either sign."""
    terms = BATCH * TOKENS * HEADS * DIM
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        size = max(1.0, np.abs(np.asarray(y)).max(initial=0))
        atol = max(4e-6 * size, terms * 2.0**-23) if np.ndim(y) == 0 else 4e-6 * size
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(params=[False, True], ids=["one head at a time", "all heads in a tile"])
def plan(request, monkeypatch):
    """Either way in which `blockwise` may go; what was traced with the other is forgotten."""
    monkeypatch.setattr(machine, "heads_at_once", lambda: request.param)
    monkeypatch.setattr(wide_tiles, "sizes", lambda *_: (8, 8) if TOKENS < 100 else (256, 128))
    jax.clear_caches()
    yield
    jax.clear_caches()


def make_mesh(kind):
    return jax.make_mesh((2, 2), AXES, axis_types=(kind, kind))


# ---- one device


@on_devices
def test_without_jit(expected):
    assert_close(loss(make_arguments()), expected[0])


@on_devices
def test_checkpoint(expected):
    assert_close(jax.jit(jax.grad(jax.checkpoint(loss)))(make_arguments()), expected[1])


@on_devices
@pytest.mark.usefixtures("plan")
def test_vmap_over_queries_keys_and_values():
    several = [make_arguments(seed) for seed in range(3)]
    q, k, v = (jnp.stack(parts) for parts in list(zip(*several, strict=True))[:3])
    one = lambda q, k, v: loss((q, k, v, *several[0][3:]))  # noqa: E731
    got = jax.jit(jax.vmap(jax.value_and_grad(one, argnums=(0, 1, 2))))(q, k, v)
    alone = jax.jit(jax.value_and_grad(one, argnums=(0, 1, 2)))
    assert_close(got, jax.tree.map(lambda *parts: jnp.stack(parts), *(alone(*given[:3]) for given in several)))


@on_devices
def test_vmap_over_schemes():
    q, k, v, _, sinks = make_arguments()
    schemes = [make_scheme("t5"), make_scheme("alibi")]
    one = jax.value_and_grad(lambda scheme: loss((q, k, v, scheme, sinks)))
    got = jax.jit(jax.vmap(one))(stack(schemes))
    assert_close(got, jax.tree.map(lambda *parts: jnp.stack(parts), *map(jax.jit(one), schemes)))


@on_devices
def test_scan_over_layers():
    q, k, v, scheme, sinks = make_arguments()
    layers = jnp.stack([0.5 * k, 0.2 * k, -k])

    def layer(x, k):
        return x + attend(x, k, v, scheme, sinks), None

    def scanned(layers):
        return jnp.sum(jnp.sin(jax.lax.scan(layer, q, layers)[0]))

    def written_out(layers):
        x = q
        for k in layers:
            x, _ = layer(x, k)
        return jnp.sum(jnp.sin(x))

    run = lambda function: jax.jit(jax.value_and_grad(function))(layers)  # noqa: E731
    assert_close(run(scanned), run(written_out))


# ---- several devices


@on_devices
def test_pmap(expected):
    q, k, v, scheme, sinks = make_arguments()
    split = [x.reshape(4, 1, *x.shape[1:]) for x in (q, k, v)]

    def of_device(q, k, v, shared):
        value, (of_q, of_k, of_v, *of_shared) = jax.value_and_grad(loss)((q, k, v, *shared))
        return of_q, of_k, of_v, jax.lax.psum((value, of_shared), "data")

    run = jax.pmap(of_device, axis_name="data", in_axes=(0, 0, 0, None), out_axes=(0, 0, 0, None))
    *of_tokens, (value, of_shared) = run(*split, (scheme, sinks))
    joined = [x.reshape(-1, *x.shape[2:]) for x in of_tokens]
    assert_close((value, (*joined, *of_shared)), expected)


@on_devices
@pytest.mark.usefixtures("plan")
def test_shard_map_over_batch_and_heads(expected):
    # A scheme's leaves in order: frequencies, remainder, factor, logit scale; then the heads' slopes and strips.
    arguments = make_arguments()
    structure = jax.tree.structure(arguments)
    specs = [BY_HEAD] * 3 + [P()] * 4 + [P("model")] * 3

    def of_shard(*leaves):
        return jax.lax.psum(loss(jax.tree.unflatten(structure, leaves)), AXES)

    total = jax.shard_map(of_shard, mesh=make_mesh(AxisType.Auto), in_specs=tuple(specs), out_specs=P(), check_vma=True)
    got = jax.jit(jax.value_and_grad(lambda arguments: total(*jax.tree.leaves(arguments))))(arguments)
    assert_close(got, expected)


@on_devices
@pytest.mark.parametrize("kind", ["Auto", "Explicit", "Explicit, key heads on every device"])
def test_mesh(kind, expected):
    mesh = make_mesh(AxisType.Auto if kind == "Auto" else AxisType.Explicit)
    q, k, v, scheme, sinks = make_arguments()
    of_keys = P("data") if "every" in kind else BY_HEAD
    with jax.set_mesh(mesh):
        place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731
        arguments = (
            place(q, BY_HEAD),
            place(k, of_keys),
            place(v, of_keys),
            place(scheme, P()),
            place(sinks, P("model")),
        )
        value, gradients = jax.jit(jax.value_and_grad(loss))(arguments)
        if kind != "Auto":
            assert [jax.typeof(x) for x in jax.tree.leaves(gradients)] == [
                jax.typeof(x) for x in jax.tree.leaves(arguments)
            ]
    assert_close((value, gradients), expected)


@on_devices
def test_explicit_shardings_that_cannot_be_served_are_errors():
    q, k, v, *rest = make_arguments()
    mesh = make_mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))  # noqa: E731
        with pytest.raises(NotImplementedError, match="ring_attention"):
            attend(*(place(x, None, "data") for x in (q, k, v)), *rest)
        with pytest.raises(ValueError, match="reshard one like the other"):
            attend(q, place(k, "data"), place(v, "data"), *rest)


# ---- in the decoder

CONFIG = DecoderConfig(32, 16, 24, 2, 4, 2, 4, 1e-6)
COLUMNS, ROWS = ("'q'", "'k'", "'v'", "'gate'", "'up'"), ("'o'", "'down'")


@pytest.fixture(scope="module")
def model():
    """A decoder's graph and weights, a scheme, tokens; a loss of them all, and its plain value and gradients."""
    graph, weights = nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))
    scheme = make_scheme("alibi", heads=CONFIG.num_heads, dim=4)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (BATCH, TOKENS)), jnp.int32)

    def loss(weights, scheme, tokens):
        return jnp.mean(jnp.sin(nnx.merge(graph, weights)(tokens, scheme)))

    return loss, weights, scheme, tokens, jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(weights, scheme, tokens)


@on_devices
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_decoder_on_a_mesh(kind, model):
    loss, weights, scheme, tokens, expected = model
    mesh = make_mesh(getattr(AxisType, kind))

    def spec(path, _):
        name = jax.tree_util.keystr(path)
        if any(part in name for part in COLUMNS):
            return NamedSharding(mesh, P(None, "model"))
        return NamedSharding(mesh, P("model") if any(part in name for part in ROWS) else P())

    with jax.set_mesh(mesh):
        weights = jax.device_put(weights, jax.tree_util.tree_map_with_path(spec, weights))
        scheme = jax.device_put(scheme, NamedSharding(mesh, P()))
        tokens = jax.device_put(tokens, NamedSharding(mesh, P("data")))
        got = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(weights, scheme, tokens)
    assert_close(got, expected)


@on_devices
def test_decoder_in_a_data_parallel_shard_map(model):
    loss, weights, scheme, tokens, expected = model
    mesh = make_mesh(AxisType.Auto)

    def mean(weights, scheme, tokens):
        return jax.lax.pmean(loss(weights, scheme, tokens), AXES)

    total = jax.shard_map(mean, mesh=mesh, in_specs=(P(), P(), P(AXES)), out_specs=P(), check_vma=True)
    assert_close(jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(weights, scheme, tokens), expected)


@on_devices
def test_decoder_under_pmap(model):
    loss, weights, scheme, tokens, expected = model

    def of_device(weights, scheme, tokens):
        return jax.lax.pmean(jax.value_and_grad(loss, argnums=(0, 1))(weights, scheme, tokens), "data")

    run = jax.pmap(of_device, axis_name="data", in_axes=(None, None, 0), out_axes=None)
    assert_close(run(weights, scheme, tokens.reshape(4, 1, -1)), expected)
