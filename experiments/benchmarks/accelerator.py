"""Attention on an accelerator: how far its values lie from float64, and its time beside cuDNN's kernel in `jax.nn`.

Anywhere but on a GPU `jax.nn` writes all logits out.

python experiments/benchmarks/accelerator.py
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rope_jax import biases, frequencies
from rope_jax.attention import attention
from rope_jax.scheme import Scheme, build

_HEADS, _DIM = 8, 128
_ROTARY = frequencies.rotary(_DIM, base=10000.0, original_length=4096)
_SIZES = ((4096, 1), (4096, 8), (16384, 1), (32768, 1))
_COMPARED = 1500  # tokens held against float64
_RUNS = 5


def schemes() -> dict[str, Scheme]:
    """Returns a scheme without a bias, one with a line, and one with buckets."""
    table = np.random.default_rng(0).normal(size=(_HEADS, 32)).astype(np.float32)
    made = {"none": None, "ALiBi": biases.alibi_paper(_HEADS), "T5": biases.t5_bias(table, max_distance=128)}
    return {name: build(_ROTARY, num_heads=_HEADS, head_dim=_DIM, bias=bias) for name, bias in made.items()}


def inputs(tokens: int, batch: int, dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns random queries, keys and values."""
    q, k, v = (jax.random.normal(jax.random.key(i), (batch, tokens, _HEADS, _DIM), dtype) for i in range(3))
    return q, k, v


def ours(scheme: Scheme, tokens: int, batch: int) -> Callable[..., Any]:
    """Returns causal attention under a scheme."""
    positions = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), (batch, tokens))
    return lambda q, k, v: attention(q, k, v, scheme, q_positions=positions, kv_positions=positions)


def in_float64(q, k, v, scheme: Scheme) -> np.ndarray:
    """Returns causal attention of the first sequence, by its definition."""
    q, k, v = (np.asarray(x, np.float64)[0] for x in (q, k, v))
    positions = np.arange(len(q))
    turns = np.exp(1j * positions[:, None] * np.asarray(_ROTARY.inverse_frequencies, np.float64))[:, None]
    half = _DIM // 2
    q, k = ((x[..., :half] + 1j * x[..., half:]) * turns for x in (q, k))
    logits = np.einsum("nhp,mhp->hnm", q, k.conj()).real / np.sqrt(_DIM)
    offsets = positions[:, None] - positions
    strip, reach = np.asarray(scheme.offset_bias, np.float64), scheme.max_offset
    logits -= np.asarray(scheme.slopes, np.float64)[:, None, None] * np.abs(offsets)
    logits += strip[:, np.clip(offsets, -reach, reach) + reach]
    logits = np.where(offsets >= 0, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.einsum("hnm,mhd->nhd", weights / weights.sum(axis=-1, keepdims=True), v)


def milliseconds(function: Callable[..., Any], arguments: Sequence[jax.Array], *, backward: bool) -> float:
    """Returns the median time of a compiled call, or of its gradients to all arguments."""
    summed = jax.grad(lambda *x: function(*x).astype(jnp.float32).sum(), (0, 1, 2))
    compiled = jax.jit(summed if backward else function)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Prints both tables."""
    if sys.argv[1:] not in ([], ["--quick"]):
        sys.exit(f"accelerator.py takes --quick or nothing, got {sys.argv[1:]}")
    quick = bool(sys.argv[1:])
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}\n")
    print("| products | bias | relative error |\n|---|---|---|")
    tokens = 200 if quick else _COMPARED
    for precision in ("highest", "default"):
        for name, scheme in schemes().items():
            arguments = inputs(tokens, 1, jnp.float32)
            with jax.default_matmul_precision(None if precision == "default" else precision):
                found = np.asarray(jax.jit(ours(scheme, tokens, 1))(*arguments)[0], np.float64)
            wanted = in_float64(*arguments, scheme)
            print(f"| {precision} | {name} | {np.linalg.norm(found - wanted) / np.linalg.norm(wanted):.1e} |")
    kernel: Literal["cudnn", "xla"] = "cudnn" if jax.default_backend() == "gpu" else "xla"
    print(f"\n| ms | tokens | batch | none | ALiBi | T5 | jax.nn ({kernel}), no bias, no rotation |")
    print("|---" * 7 + "|")
    for tokens, batch in ((256, 1),) if quick else _SIZES:
        for backward in (False, True) if tokens <= 4096 else (False,):
            arguments = inputs(tokens, batch, jnp.bfloat16)
            times = [
                milliseconds(ours(scheme, tokens, batch), arguments, backward=backward) for scheme in schemes().values()
            ]
            times.append(
                milliseconds(
                    lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kernel),
                    arguments,
                    backward=backward,
                )
            )
            shown = " | ".join(f"{one:.2f}" for one in times)
            print(
                f"| {'forward and backward' if backward else 'forward'} | {tokens:,} | {batch} | {shown} |", flush=True
            )


if __name__ == "__main__":
    main()
