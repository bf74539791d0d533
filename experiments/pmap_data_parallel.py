"""One forward and backward pass of a decoder under `pmap`, each device its own sequences, against one device.

Weights and scheme are the same on every device; gradients are averaged. Loss and gradients must equal those of one
device with the whole batch; exit status 1 if they do not. Takes half a minute on two cores, most of it compilation;
virtual devices share the cores, so their times say nothing about speed.

    python experiments/pmap_data_parallel.py
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import nnx

from rope_jax import biases, frequencies, scaling
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.scheme import build

_DEVICES = flags.DEFINE_integer("devices", 4, "Devices.")
_VIRTUAL = flags.DEFINE_boolean("virtual", True, "Make the devices virtual ones of the CPU.")
_TOKENS = flags.DEFINE_integer("tokens", 128, "Tokens a sequence.")
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-5, "Largest difference, relative to each array's largest entry.")

_CONFIG = DecoderConfig(256, 64, 128, 2, num_heads=4, num_kv_heads=2, head_dim=16, rms_norm_eps=1e-6)


def main(argv: list[str]) -> None:
    """Prints the differences and the times."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"pmap_data_parallel.py takes no arguments, got {argv[1:]}")
    if _VIRTUAL.value:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    if jax.device_count() < _DEVICES.value:
        sys.exit(f"pmap_data_parallel.py needs {_DEVICES.value} devices, here are {jax.device_count()}")

    graph, weights = nnx.split(Decoder(_CONFIG, rngs=nnx.Rngs(0)))
    rotary = frequencies.rotary(_CONFIG.head_dim, base=10000.0, original_length=64)
    rotary = scaling.yarn(factor=4.0, original_length=64)(rotary)
    bias = biases.t5_bias(np.random.default_rng(2).standard_normal((_CONFIG.num_heads, 32)), max_distance=64)
    scheme = build(rotary, bias, num_heads=_CONFIG.num_heads, head_dim=_CONFIG.head_dim)
    shape = (_DEVICES.value, 2, _TOKENS.value)
    tokens = np.random.default_rng(0).integers(0, _CONFIG.vocab_size, shape).astype(np.int32)

    def loss(weights, scheme, tokens):
        logits = nnx.merge(graph, weights)(tokens, scheme)[:, :-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1).mean()

    step = jax.value_and_grad(loss, argnums=(0, 1))
    on_one = jax.jit(step)
    # Weights and scheme are passed once and go to every device; the averaged results come back once.
    in_parallel = jax.pmap(
        lambda *arguments: jax.lax.pmean(step(*arguments), "data"),
        axis_name="data",
        in_axes=(None, None, 0),
        out_axes=None,
        devices=jax.devices()[: _DEVICES.value],
    )
    expected, alone = _timed(on_one, weights, scheme, jnp.asarray(tokens.reshape(-1, _TOKENS.value)))
    got, parallel = _timed(in_parallel, weights, scheme, tokens)

    by_loss, by_gradient = _difference(got[0], expected[0]), _difference(got[1], expected[1])
    print(
        f"jax {jax.__version__}, {_DEVICES.value} devices ({jax.default_backend()}), {_TOKENS.value} tokens a sequence"
    )
    print(f"loss {float(got[0]):.6f}, one device {float(expected[0]):.6f}")
    print(
        f"largest difference, relative to each array's largest entry: loss {by_loss:.1e}, gradients {by_gradient:.1e}"
    )
    print(f"{parallel:.1f} ms, one device {alone:.1f} ms")
    if not max(by_loss, by_gradient) <= _TOLERANCE.value:
        sys.exit(f"the results differ by more than {_TOLERANCE.value:.1e}")


def _timed(step, *arguments):
    """Returns a step's result and the milliseconds of its second run; the first compiles."""
    jax.block_until_ready(step(*arguments))
    start = time.perf_counter()
    result = jax.block_until_ready(step(*arguments))
    return result, 1000 * (time.perf_counter() - start)


def _difference(got, expected) -> float:
    worst = [0.0]
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(x), np.asarray(y)
        worst.append(float(np.abs(a - b).max(initial=0.0)) / max(float(np.abs(b).max(initial=0.0)), 1e-3))
    return float(np.max(worst))


if __name__ == "__main__":
    app.run(main)
