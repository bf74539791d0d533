"""One forward and backward pass of a decoder on a mesh (data x model), against the same on one device.

Weights are sharded by heads and by the MLP's inner dimension, the batch by sequences; `jit` does the rest. Then one
attention with its sequence sharded over all devices, as a ring in the balanced order. Loss and gradients must equal
those of one device; exit status 1 if they do not. Takes half a minute on two cores, most of it compilation; virtual
devices share the cores, so their times say nothing about speed.

    python experiments/mesh_sharded.py
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rope_jax import biases, frequencies, scaling
from rope_jax.attention import attention
from rope_jax.attention.ring import ring_attention, unzigzag, zigzag
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.scheme import Scheme, build

_DATA = flags.DEFINE_integer("data", 2, "Devices along the data axis.")
_MODEL = flags.DEFINE_integer("model", 2, "Devices along the model axis; divides the 4 query and 2 key heads.")
_VIRTUAL = flags.DEFINE_boolean("virtual", True, "Make the devices virtual ones of the CPU.")
_TOKENS = flags.DEFINE_integer("tokens", 128, "Tokens a sequence; a multiple of twice the devices.")
# The gradient of a factor is one number, a sum over all tokens, heads and dimensions that nearly cancels: float32,
# summed in another order, is some 3e-5 of it off, while arrays agree to 3e-6.
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-4, "Largest difference, relative to each array's largest entry.")

_CONFIG = DecoderConfig(256, 64, 128, 2, num_heads=4, num_kv_heads=2, head_dim=16, rms_norm_eps=1e-6)
# Which dimension of a weight lies along the model axis.
_BY_COLUMN, _BY_ROW = ("'q'", "'k'", "'v'", "'gate'", "'up'"), ("'o'", "'down'")


def main(argv: list[str]) -> None:
    """Prints differences and times of the mesh and of the ring."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"mesh_sharded.py takes no arguments, got {argv[1:]}")
    devices = _DATA.value * _MODEL.value
    if _VIRTUAL.value:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    if jax.device_count() < devices:
        sys.exit(f"mesh_sharded.py needs {devices} devices, here are {jax.device_count()}")
    print(f"jax {jax.__version__}, {devices} devices ({jax.default_backend()}), {_TOKENS.value} tokens a sequence")
    worst = max(_decoder_on_mesh(), _ring(devices))
    if not worst <= _TOLERANCE.value:
        sys.exit(f"the results differ by {worst:.1e}, more than {_TOLERANCE.value:.1e}")


def _scheme() -> Scheme:
    rotary = frequencies.rotary(_CONFIG.head_dim, base=10000.0, original_length=64)
    rotary = scaling.yarn(factor=4.0, original_length=64)(rotary)
    table = np.random.default_rng(2).standard_normal((_CONFIG.num_heads, 32))
    bias = biases.t5_bias(table, max_distance=64)
    return build(rotary, bias, num_heads=_CONFIG.num_heads, head_dim=_CONFIG.head_dim)


def _decoder_on_mesh() -> float:
    graph, weights = nnx.split(Decoder(_CONFIG, rngs=nnx.Rngs(0)))
    shape = (2 * _DATA.value, _TOKENS.value)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, _CONFIG.vocab_size, shape), jnp.int32)
    scheme = _scheme()

    def loss(weights, scheme, tokens):
        logits = nnx.merge(graph, weights)(tokens, scheme)[:, :-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1).mean()

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    expected, alone = _timed(step, weights, scheme, tokens)

    devices = jax.devices()[: _DATA.value * _MODEL.value]
    shape = (_DATA.value, _MODEL.value)
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    on_mesh = lambda *spec: NamedSharding(mesh, P(*spec))  # noqa: E731

    def sharding(path, _) -> NamedSharding:
        name = jax.tree_util.keystr(path)
        if any(part in name for part in _BY_COLUMN):
            return on_mesh(None, "model")
        return on_mesh("model") if any(part in name for part in _BY_ROW) else on_mesh()

    weights = jax.device_put(weights, jax.tree_util.tree_map_with_path(sharding, weights))
    scheme, tokens = jax.device_put(scheme, on_mesh()), jax.device_put(tokens, on_mesh("data"))
    got, sharded = _timed(step, weights, scheme, tokens)
    return _report("decoder, data x model", got, expected, sharded, alone)


def _ring(devices: int) -> float:
    rng = np.random.default_rng(1)
    heads = _CONFIG.num_heads, _CONFIG.num_kv_heads, _CONFIG.num_kv_heads
    shapes = [(2, _TOKENS.value, count, _CONFIG.head_dim) for count in heads]
    q, k, v = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    positions = jnp.broadcast_to(jnp.arange(_TOKENS.value, dtype=jnp.int32)[None], (2, _TOKENS.value))
    mesh = jax.make_mesh((devices,), ("sequence",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    by_tokens = P(None, "sequence")

    def of_device(q, k, v, scheme, at):
        return ring_attention(q, k, v, scheme, axis_name="sequence", q_positions=at, kv_positions=at)

    spread = jax.shard_map(
        of_device, mesh=mesh, in_specs=(by_tokens, by_tokens, by_tokens, P(), by_tokens), out_specs=by_tokens
    )

    def as_ring(q, k, v, scheme):
        return unzigzag(spread(*(zigzag(x, devices) for x in (q, k, v)), scheme, zigzag(positions, devices)), devices)

    def on_one(q, k, v, scheme):
        return attention(q, k, v, scheme, q_positions=positions, kv_positions=positions)

    def step(attend):
        return jax.jit(
            jax.value_and_grad(lambda *arguments: jnp.sum(jnp.sin(attend(*arguments))), argnums=(0, 1, 2, 3))
        )

    expected, alone = _timed(step(on_one), q, k, v, _scheme())
    got, sharded = _timed(step(as_ring), q, k, v, _scheme())
    return _report("attention, ring", got, expected, sharded, alone)


def _timed(step, *arguments):
    """Returns a step's result and the milliseconds of its second run; the first compiles."""
    jax.block_until_ready(step(*arguments))
    start = time.perf_counter()
    result = jax.block_until_ready(step(*arguments))
    return result, 1000 * (time.perf_counter() - start)


def _report(name: str, got, expected, sharded: float, alone: float) -> float:
    (loss, gradients), (expected_loss, expected_gradients) = got, expected
    by_loss, by_gradient = _difference(loss, expected_loss), _difference(gradients, expected_gradients)
    print(f"{name}: loss {float(loss):.6f}, one device {float(expected_loss):.6f}")
    print(
        f"  largest difference, relative to each array's largest entry: loss {by_loss:.1e}, gradients {by_gradient:.1e}"
    )
    print(f"  {sharded:.1f} ms, one device {alone:.1f} ms")
    return max(by_loss, by_gradient)


def _difference(got, expected) -> float:
    worst = [0.0]
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(x), np.asarray(y)
        worst.append(float(np.abs(a - b).max(initial=0.0)) / max(float(np.abs(b).max(initial=0.0)), 1e-3))
    return float(np.max(worst))


if __name__ == "__main__":
    app.run(main)
