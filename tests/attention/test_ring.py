"""Ring attention on 2, 4 and 8 virtual devices against the oracle on one: values, gradients, bits, who does the work.

Devices must be counted before JAX starts, so everything that needs several runs in a process of its own.
"""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_suite import quick_compilation
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from rope_jax import biases, frequencies, scaling
from rope_jax.attention import machine, reference, wide_tiles
from rope_jax.attention.call import NOTHING, Settings, Tokens
from rope_jax.attention.ring import ring_attention, unzigzag, zigzag
from rope_jax.attention.tiles import cut, meet
from rope_jax.scheme import build, stack

FLAG = "--xla_force_host_platform_device_count=8"
ALONE = FLAG not in os.environ.get("XLA_FLAGS", "")
on_devices = pytest.mark.skipif(ALONE, reason="run by test_on_virtual_devices, in a process with 8 of them")
BATCH, TOKENS, LONG, HEADS, KV_HEADS, DIM = 2, 96, 1536, 4, 2, 8
SETTINGS = {
    "causal": {},
    "window, cap and sinks": {"window": 20, "soft_cap": 2.0, "sinks": True},
    "both ways": {"causal": False, "sinks": True},
}


@pytest.mark.skipif(not ALONE, reason="is the process that the test starts")
def test_on_virtual_devices():
    root = pathlib.Path(__file__).resolve().parents[2]
    environment = os.environ | {"XLA_FLAGS": FLAG, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def make_scheme(bias, seed=0):
    rotary = scaling.yarn(factor=4.0, original_length=256)(frequencies.rotary(DIM, base=194.0, original_length=256))
    table = np.random.default_rng(seed).standard_normal((HEADS, 8))
    made = {
        "none": None,
        "alibi": biases.alibi_paper(HEADS),
        "t5": biases.t5_bias(table, max_distance=40, bidirectional=True),
    }[bias]
    # One size of strip for all: the bias is data, and one compiled program runs every one.
    return build(rotary, made, num_heads=HEADS, head_dim=DIM, max_offset=45)


def make_inputs(seed=0, tokens=TOKENS, v_dim=DIM):
    rng = np.random.default_rng(seed)
    shapes = (HEADS, DIM), (KV_HEADS, DIM), (KV_HEADS, v_dim)
    return tuple(jnp.asarray(rng.standard_normal((BATCH, tokens, *shape)), jnp.float32) for shape in shapes)


def make_segments(packed: bool, tokens=TOKENS):
    ids = np.zeros((BATCH, tokens), np.int32)
    if packed:
        ids[0, tokens // 3 :] = 1
        ids[1, 5 : tokens // 2] = 4
        ids[1, -tokens // 5 :] = -1  # padding, all of the last device's early tokens in one order
    return jnp.asarray(ids)


def positions_of(tokens=TOKENS):
    return jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[None], (BATCH, tokens))


def sharded(devices, settings, *, axes=("seq",), shape=None, specs=None, check_vma=True):
    """Returns `(q, k, v, scheme, sinks, positions, segments) -> (out, lse)`, the tokens sharded over `devices`."""
    kinds = (AxisType.Auto,) * len(axes)
    mesh = jax.make_mesh(shape or (devices,), axes, devices=jax.devices()[:devices], axis_types=kinds)
    by_tokens = P(None, "seq")
    in_specs, out_specs = specs or ((by_tokens,) * 3 + (P(), P()) + (by_tokens,) * 2, (by_tokens, by_tokens))
    arguments = {name: value for name, value in settings.items() if name != "sinks"}

    def of_shard(q, k, v, leaves, sinks, positions, segments):
        scheme = jax.tree.unflatten(structure, leaves)
        return ring_attention(
            q,
            k,
            v,
            scheme,
            axis_name="seq",
            q_positions=positions,
            kv_positions=positions,
            segment_ids=(segments, segments),
            sinks=sinks if settings.get("sinks") else None,
            return_lse=True,
            **arguments,
        )

    attend = jax.shard_map(of_shard, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma)
    structure = jax.tree.structure(make_scheme("none"))
    return lambda q, k, v, scheme, *rest: attend(q, k, v, jax.tree.leaves(scheme), *rest)


def plain(settings):
    arguments = {name: value for name, value in settings.items() if name != "sinks"}

    def attend(q, k, v, scheme, sinks, positions, segments):
        tokens = Tokens(positions, segments)
        sinks = sinks if settings.get("sinks") else None
        return reference.attend(q, k, v, scheme, sinks, tokens, tokens, Settings(DIM**-0.5, **arguments))

    return attend


def with_gradients(attend, compiler_options=None):
    """Returns outputs, log-sum-exps and the gradients of all that has one; `weights` are the cotangents."""

    def loss(arguments, positions, segments, weights):
        out, lse = attend(*arguments, positions, segments)
        seen = jnp.where(lse > NOTHING / 2, lse, 0.0)
        return jnp.sum(out * weights[..., :-1]) + jnp.sum(seen * weights[..., -1]), (out, lse)

    def run(q, k, v, scheme, sinks, positions, segments, weights):
        gradients, values = jax.grad(loss, has_aux=True)((q, k, v, scheme, sinks), positions, segments, weights)
        return values, gradients

    return jax.jit(run, compiler_options=compiler_options)


# Two devices run without the check of what varies, as some programs do.
ours = functools.cache(lambda devices, name: with_gradients(sharded(devices, SETTINGS[name], check_vma=devices != 2)))
theirs = functools.cache(lambda name: with_gradients(plain(SETTINGS[name])))


def make_weights(q, v):
    shape = (*q.shape[:3], v.shape[-1] + 1)
    return jnp.asarray(np.random.default_rng(9).standard_normal(shape), jnp.float32)


def in_ring_order(values, devices, reorder):
    """Returns everything that has tokens in the order of `reorder`; on the host, where nothing is compiled."""
    if devices is None:
        return values

    def of_leaf(x):
        if x.ndim < 2 or x.shape[1] not in (TOKENS, LONG):
            return x
        return np.asarray(x)[:, np.asarray(reorder(jnp.arange(x.shape[1]), devices, axis=0))]

    return jax.tree.map(of_leaf, values)


def assert_close(got, expected, tolerance=4e-6):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        name, size = jax.tree_util.keystr(path), max(1.0, np.abs(np.where(np.asarray(y) > NOTHING / 2, y, 0)).max())
        assert np.isfinite(x).all(), name
        np.testing.assert_allclose(x, y, rtol=5 * tolerance, atol=tolerance * size, err_msg=name)


CASES = [(2, "window, cap and sinks"), (4, "both ways"), (8, "causal")]


@on_devices
@pytest.mark.parametrize(("devices", "settings"), CASES)
def test_values_and_gradients_equal_the_oracles(devices, settings):
    q, k, v = make_inputs()
    sinks = jnp.asarray([0.5, -2.0, 3.0, 0.0])
    weights = make_weights(q, v)
    for bias, order, packed in [
        ("none", "zigzag", True),
        ("alibi", "zigzag", False),
        ("alibi", "plain", True),
        ("t5", "plain", False),
        ("t5", "zigzag", True),
    ]:
        arguments = (q, k, v, make_scheme(bias), sinks, positions_of(), make_segments(packed), weights)
        expected = theirs(settings)(*arguments)
        reordered = devices if order == "zigzag" else None
        run = lambda: ours(devices, settings)(*in_ring_order(arguments, reordered, zigzag))  # noqa: B023, E731
        first, second = run(), run()
        for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_array_equal(x, y)  # bit for bit
        assert_close(in_ring_order(first, reordered, unzigzag), expected)
        if packed:
            (out, lse), (of_q, of_k, of_v, *_) = in_ring_order(first, reordered, unzigzag)
            hole = np.asarray(make_segments(True)) < 0
            assert not any(np.any(np.asarray(x)[hole]) for x in (out, of_q, of_k, of_v))
            assert "sinks" in SETTINGS[settings] or (np.asarray(lse)[hole] == np.float32(NOTHING)).all()


@on_devices
def test_all_heads_in_a_tile(monkeypatch):
    """What runs off the CPU, on tiles of which a device has several."""
    monkeypatch.setattr(machine, "heads_at_once", lambda: True)
    monkeypatch.setattr(wide_tiles, "sizes", lambda *_: (16, 8))
    q, k, v = make_inputs()
    arguments = (q, k, v, make_scheme("t5"), jnp.zeros(HEADS), positions_of(), make_segments(True), make_weights(q, v))
    got = with_gradients(sharded(4, SETTINGS["both ways"]))(*in_ring_order(arguments, 4, zigzag))
    # As everywhere, sums of either sign: either plan is as far off as the other.
    assert_close(in_ring_order(got, 4, unzigzag), theirs("both ways")(*arguments), tolerance=1e-5)


@on_devices
def test_several_tiles_a_device():
    tokens, devices = LONG, 2
    q, k, v = make_inputs(tokens=tokens, v_dim=3)
    arguments = (q, k, v, make_scheme("t5"), jnp.zeros(HEADS), positions_of(tokens), make_segments(True, tokens))
    arguments = (*arguments, make_weights(q, v))
    got = ours(devices, "causal")(*in_ring_order(arguments, devices, zigzag))
    # The strip's far end sums a million pairs, in float32 on both sides.
    assert_close(in_ring_order(got, devices, unzigzag), theirs("causal")(*arguments), tolerance=4e-5)


@on_devices
def test_batch_and_heads_may_be_sharded_too_and_each_sequence_have_its_scheme():
    q, k, v = make_inputs()
    scheme = stack([make_scheme("t5", seed=1), make_scheme("alibi")])
    of_tokens, all_heads = P("data", "seq"), P("data", "seq", "model")
    # A scheme's leaves in order: frequencies, remainder, factor, logit scale; then the heads' slopes and strips.
    of_scheme = [P("data")] * 4 + [P("data", "model")] * 2
    specs = (all_heads,) * 3 + (of_scheme, P("model")) + (of_tokens,) * 2, (all_heads, all_heads)
    attend = sharded(8, SETTINGS["both ways"], axes=("data", "seq", "model"), shape=(2, 2, 2), specs=specs)
    arguments = (q, k, v, scheme, jnp.asarray([0.5, -2.0, 3.0, 0.0]), positions_of(), make_segments(True))
    arguments = (*arguments, make_weights(q, v))
    assert_close(with_gradients(attend)(*arguments), theirs("both ways")(*arguments))


@on_devices
@pytest.mark.parametrize("tokens", [512, 1024, 1300, 2048])
def test_long_rows_with_heads_sharded_too_far_from_position_0(tokens):
    """Positions do not differ along the heads' axis; and what reaches the frequencies must not grow with positions."""
    q, k, v = make_inputs(tokens=tokens)
    of_tokens, all_heads = P("data", "seq"), P("data", "seq", "model")
    of_scheme = [P()] * 4 + [P("model")] * 2
    specs = (all_heads,) * 3 + (of_scheme, P("model")) + (of_tokens,) * 2, (all_heads, all_heads)
    settings = {"window": 300, "sinks": True}
    attend = sharded(8, settings, axes=("data", "seq", "model"), shape=(2, 2, 2), specs=specs)
    rest = (make_segments(True, tokens), make_weights(q, v))
    arguments = (q, k, v, make_scheme("t5"), jnp.asarray([0.5, -2.0, 3.0, 0.0]))
    ours, theirs = (with_gradients(one, quick_compilation()) for one in (attend, plain(settings)))
    got = ours(*arguments, positions_of(tokens) + 10**6, *rest)
    # The strip's far end sums a million pairs, in float32 on both sides.
    assert_close(got, theirs(*arguments, positions_of(tokens), *rest), tolerance=4e-5)


@on_devices
def test_bfloat16_is_merged_in_float32():
    q, k, v = (x.astype(jnp.bfloat16) for x in make_inputs())
    arguments = (q, k, v, make_scheme("alibi"), None, positions_of(), make_segments(False))
    out, lse = jax.jit(sharded(8, {}))(*arguments)
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    wide = (x.astype(jnp.float32) for x in arguments[:3])
    expected, _ = jax.jit(plain({}))(*wide, *arguments[3:])
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=4e-2)


@on_devices
def test_chunks_of_the_future_are_not_read():
    q, k, v = make_inputs()
    arguments = (q, k, v, make_scheme("alibi"), None, positions_of(), make_segments(False))
    run = jax.jit(sharded(4, {}))
    out, _ = run(*arguments)
    chunk = TOKENS // 4
    poisoned, _ = run(q, k.at[:, chunk:].set(jnp.nan), v.at[:, chunk:].set(jnp.nan), *arguments[3:])
    # A product of a hidden key's zero weight with its value would be NaN: the first device must have computed none.
    np.testing.assert_array_equal(poisoned[:, :chunk], out[:, :chunk])
    assert np.isnan(poisoned[:, chunk:]).any()


@on_devices
def test_keys_that_do_not_differ_along_the_axis_are_an_error():
    q, k, v = make_inputs()
    at = positions_of()
    mesh = jax.make_mesh((2,), ("seq",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))

    def of_shard(q, q_positions):
        return ring_attention(q, k, v, make_scheme("none"), axis_name="seq", q_positions=q_positions, kv_positions=at)

    by_tokens = P(None, "seq")
    attend = jax.shard_map(of_shard, mesh=mesh, in_specs=(by_tokens, by_tokens), out_specs=by_tokens)
    with pytest.raises(ValueError, match="queries are sharded over 'seq', keys are not"):
        jax.eval_shape(attend, q, at)


def tiles_seen(devices, order, piece=512):
    """Returns how many pairs of tiles each device works on at each step of the ring."""
    positions = jnp.arange(2 * devices * piece, dtype=jnp.int32)
    positions = zigzag(positions, devices, axis=0) if order == "zigzag" else positions
    chunks = [cut(Tokens(chunk), piece) for chunk in positions.reshape(devices, -1)]
    seen = lambda i, j: int(meet(chunks[i], chunks[j], Settings(1.0), max_offset=0).sees.sum())  # noqa: E731
    return np.array([[seen(i, (i - step) % devices) for step in range(devices)] for i in range(devices)])


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_zigzag_gives_every_device_the_same_work_at_every_step(devices):
    balanced, plain_order = tiles_seen(devices, "zigzag"), tiles_seen(devices, "plain")
    np.testing.assert_array_equal(balanced[:, 0], 3)  # two diagonals and one between the pieces
    np.testing.assert_array_equal(balanced[:, 1:], 2)
    # The ring waits for the slowest device at each step. A diagonal tile counts as a whole one here.
    lockstep = lambda tiles: tiles.max(axis=0).sum() / tiles.mean(axis=0).sum()  # noqa: E731
    assert lockstep(balanced) == 1.0
    assert lockstep(plain_order) == pytest.approx((4 * devices - 1) / (2 * devices + 1))
    assert balanced.sum() == plain_order.sum()


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_zigzag_and_back(devices, axis):
    x = np.moveaxis(np.arange(48 * 2 * 3).reshape(48, 2, 3), 0, axis)
    there = zigzag(jnp.asarray(x), devices, axis)
    np.testing.assert_array_equal(unzigzag(there, devices, axis), x)
    pieces = np.split(np.moveaxis(x, axis, 0), 2 * devices)
    for device, held in enumerate(np.split(np.moveaxis(np.asarray(there), axis, 0), devices)):
        np.testing.assert_array_equal(held, np.concatenate([pieces[device], pieces[-1 - device]]))


def test_tokens_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="10 tokens do not divide into two pieces for each of 4 devices"):
        zigzag(jnp.zeros((1, 10)), 4)
