"""Rotation of queries and keys, phases included, against a copy of the same bytes.

Every contender is one jitted program on float32 queries and keys, `[1, tokens, 8, dim]`, that writes new arrays as long
as its inputs. The copy is `jnp.copy` under `jit`; that it gives other memory than its input is checked. NumPy's copy
stands beside it: the system may give NumPy larger pages, and new pages are most of what a copy costs.

    python experiments/benchmarks/rotation.py [--length=32768] [--dims=64,128] [--runs=21] [--out=FILE.json]
"""

import sys
from typing import Any, Literal

import interleaved
import report
from absl import app, flags, logging
from interleaved import Contender, Race, ratio
from report import Row
from worker import Prepared

Layout = Literal["half", "interleaved"]

_LENGTH = flags.DEFINE_integer("length", 32768, "Tokens.")
_DIMS = flags.DEFINE_list("dims", ["64", "128"], "Head dimensions.")
_RUNS = flags.DEFINE_integer("runs", 21, "Interleaved timed rounds.")
_SEED = flags.DEFINE_integer("seed", None, "Seed of the inputs; a fresh one where absent.")
_QUICK = flags.DEFINE_boolean("quick", False, "2048 tokens and one round: shows that everything runs.")
_OUT = flags.DEFINE_string("out", None, "File for the results as JSON.")
_JSON = flags.DEFINE_boolean("json", False, "One JSON object in place of the table.")

_HEADS = 8
_CONTENDERS = (
    Contender("rotation, phases included", "rotation:program", {"kind": "rotate"}),
    Contender("rotation by given phases", "rotation:program", {"kind": "turn"}),
    Contender("phases alone", "rotation:program", {"kind": "phases"}),
    Contender("interleaved, phases included", "rotation:program", {"kind": "rotate", "layout": "interleaved"}),
    Contender("copy", "rotation:program", {"kind": "copy"}),
    Contender("NumPy copy", "rotation:numpy_copy"),
)


def main(argv: list[str]) -> None:
    """Prints the times of all contenders and the ratio to the copy."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"rotation.py takes no arguments, got {argv[1:]}")
    if not all(dim.isdigit() and int(dim) > 0 and int(dim) % 2 == 0 for dim in _DIMS.value):
        sys.exit("--dims takes even positive numbers, separated by commas")
    if min(_LENGTH.value, _RUNS.value) < 1:
        sys.exit("--length and --runs must be at least 1")
    seed = interleaved.fresh_seed() if _SEED.value is None else _SEED.value
    length, rounds = (2048, 1) if _QUICK.value else (_LENGTH.value, _RUNS.value)
    rows, races = [], []
    with Race(_CONTENDERS) as race:
        for dim in map(int, _DIMS.value):
            arguments = {"length": length, "dim": dim, "seed": seed}
            results = race.run(arguments, rounds=rounds)
            for name, at_most in (("rotation, phases included", 1.3), ("interleaved, phases included", None)):
                note = report.why(results, name, "copy")
                measured = float("nan") if note else ratio(results, name, "copy")
                rows.append(Row(f"{name}, its time", "copy", length, dim, measured, at_most=at_most, note=note))
            if not _JSON.value:
                print(report.times(f"\nrotation, {length:,} tokens, {_HEADS} heads, d = {dim}", results), flush=True)
            races.append((arguments, results))
    report.finish(rows, races, {"seed": seed, "runs": rounds}, out=_OUT.value, as_json=_JSON.value)


def program(*, length: int, dim: int, seed: int, kind: str, layout: Layout = "half") -> Prepared:
    """Returns one jitted program on queries and keys: "rotate", "turn" (phases given), "phases" or "copy"."""
    import jax
    import jax.numpy as jnp

    from rope_jax.frequencies import rotary
    from rope_jax.rotation import rotate
    from rope_jax.scheme import build

    q, k = (jnp.asarray(x) for x in _arrays(length, dim, seed))
    positions = jnp.arange(length, dtype=jnp.int32)[None]
    turned = rotary(dim, base=10000.0, original_length=4096)
    scheme = build(turned, num_heads=_HEADS, head_dim=dim, layout=layout)
    cos, sin = jax.jit(scheme.cos_sin)(positions)
    works: dict[str, Any] = {
        # Scheme and positions are arguments, as in a model: as constants they would be folded away.
        "rotate": (lambda q, k, at, scheme: (scheme.rotate(q, at), scheme.rotate(k, at)), (q, k, positions, scheme)),
        "turn": (lambda q, k, c, s: tuple(rotate(x, c, s, layout=layout) for x in (q, k)), (q, k, cos, sin)),
        "phases": (lambda at, scheme: scheme.cos_sin(at), (positions, scheme)),
        "copy": (lambda q, k: (jnp.copy(q), jnp.copy(k)), (q, k)),
    }
    work, inputs = works[kind]
    compiled = {}

    def compile_it() -> None:
        compiled["run"] = jax.jit(work).lower(*inputs).compile()
        if kind == "copy":
            copied = compiled["run"](q, k)
            if any(a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer() for a, b in zip(copied, (q, k), strict=True)):
                raise RuntimeError("the copy is no copy: it gives its input back")

    return Prepared(
        run=lambda: jax.block_until_ready(compiled["run"](*inputs)),
        compile=compile_it,
        input_bytes=q.nbytes + k.nbytes,
        output_bytes=q.nbytes + k.nbytes,
        notes=lambda: {"versions": {"jax": jax.__version__}},
    )


def numpy_copy(*, length: int, dim: int, seed: int) -> Prepared:
    """Returns NumPy's copy of the same arrays, on one core."""
    arrays = _arrays(length, dim, seed)
    return Prepared(run=lambda: [x.copy() for x in arrays])


def _arrays(length: int, dim: int, seed: int):
    import numpy as np

    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1, length, _HEADS, dim), np.float32) for _ in range(2)]


if __name__ == "__main__":
    app.run(main)
