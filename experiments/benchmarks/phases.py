"""Exact phases against the float32 product that other libraries form: worst error and time.

Expected on two cores: exact stays below 1e-6 at every position to 2^24, and is faster than the
float32 product: about half its time with jax 0.10, a tenth with jax 0.12.

    python experiments/benchmarks/phases.py
"""

import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from rope_jax import double_float, phases
from rope_jax.frequencies import inverse_frequencies

_DIM = flags.DEFINE_integer("dim", 128, "Rotary dimension.")
_BASE = flags.DEFINE_float("base", 10000.0, "Base.")
_RUNS = flags.DEFINE_integer("runs", 21, "Interleaved timed runs of each contender.")
_JSON = flags.DEFINE_boolean("json", False, "One JSON object in place of the table.")

_LENGTHS = (2**15, 2**17, 2**20, 2**24)
_TIMED_TOKENS = 2**15


def main(argv: list[str]) -> None:
    """Prints both contenders' errors and times."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"phases.py takes no arguments, got {argv[1:]}")
    theta = inverse_frequencies(_DIM.value, base=_BASE.value)
    high, low = (jnp.asarray(half) for half in double_float.split(theta))
    # Frequencies are arguments, as they are in a scheme: as constants they would be folded away.
    exact = jax.jit(phases.cos_sin)
    as_float32 = jax.jit(lambda p, high: phases.cos_sin(p, high, phase="float32"))
    contenders = {"exact": lambda p: exact(p, high, low), "float32": lambda p: as_float32(p, high)}
    errors = {name: [_worst(run, theta, length) for length in _LENGTHS] for name, run in contenders.items()}
    milliseconds = _interleaved(contenders)
    record = {
        "dim": _DIM.value,
        "base": _BASE.value,
        "lengths": list(_LENGTHS),
        "worst_error": errors,
        "median_milliseconds": milliseconds,
        "exact_over_float32": milliseconds["exact"] / milliseconds["float32"],
        "timed_tokens": _TIMED_TOKENS,
        "jax": jax.__version__,
    }
    if _JSON.value:
        print(json.dumps(record))
        return
    print(
        f"worst error of cos and sin before a position, d = {_DIM.value}, base {_BASE.value:g}, jax {jax.__version__}"
    )
    print(f"{'before position':>16}{'exact':>12}{'float32':>12}")
    for at, length in enumerate(_LENGTHS):
        print(f"{length:>16,}{errors['exact'][at]:>12.1e}{errors['float32'][at]:>12.1e}")
    print(
        f"time for {_TIMED_TOKENS:,} positions: exact {milliseconds['exact']:.1f} ms, "
        f"float32 {milliseconds['float32']:.1f} ms, ratio {record['exact_over_float32']:.2f}"
    )


def _worst(run, theta: np.ndarray, length: int) -> float:
    """Largest difference from float64 at the last positions, at random ones, and at their negatives."""
    rng = np.random.default_rng(0)
    positions = np.concatenate([np.arange(length - 4096, length), rng.integers(0, length, 16384)])
    worst = 0.0
    for signed in (positions, -positions):
        angle = signed[:, None] * theta
        for got, exact in zip(run(jnp.asarray(signed, jnp.int32)), (np.cos(angle), np.sin(angle)), strict=True):
            worst = max(worst, float(np.abs(np.asarray(got) - exact).max()))
    return worst


def _interleaved(contenders) -> dict[str, float]:
    positions = jnp.arange(_TIMED_TOKENS)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        jax.block_until_ready(run(positions))
    for _ in range(_RUNS.value):
        for name, run in contenders.items():
            start = time.perf_counter()
            jax.block_until_ready(run(positions))
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


if __name__ == "__main__":
    app.run(main)
