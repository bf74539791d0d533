"""Attention against its peers: PyTorch SDPA and FlexAttention, and `jax.nn`, on causal float32 with 8 heads.

One process a contender, run in turn; ratios are medians over the rounds of the ratio within a round. Inputs are random
normal, the same numbers for all contenders of a row; the seed is printed. All contenders get turned queries and keys,
but for the row "with rotation", where ours turns them too.

    python experiments/benchmarks/attention.py                       # d = 64; a quarter of an hour on two idle cores
    python experiments/benchmarks/attention.py --dims=64,128         # three quarters of an hour
    python experiments/benchmarks/attention.py --quick               # a minute; says only that everything runs
    python experiments/benchmarks/attention.py --rows=forward --lengths=4096,8192 --dims=128 --out=forward.json
    python experiments/benchmarks/attention.py --rows=backward --lengths=8192       # peers take many GB
    python experiments/benchmarks/attention.py --rows=trained --checkpoint=DIRECTORY --text=TOKENS.npy

With the bias written out, peers take N x N arrays: they run up to 8192 tokens.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import interleaved
import report
from absl import app, flags, logging
from interleaved import Contender, Memory, Race, Result, ratio
from problem import HEADS
from report import Row

GROUPS = ("forward", "long", "backward", "memory", "trained")
_ROWS = flags.DEFINE_list("rows", list(GROUPS), f"What to run, of {', '.join(GROUPS)}.")
_LENGTHS = flags.DEFINE_list("lengths", None, "Tokens, for every group that is run; each has its own by default.")
_DIMS = flags.DEFINE_list("dims", ["64"], "Head dimensions; memory is measured at the first.")
_RUNS = flags.DEFINE_integer("runs", 7, "Interleaved timed rounds.")
_SEED = flags.DEFINE_integer("seed", None, "Seed of the inputs; a fresh one where absent.")
_QUICK = flags.DEFINE_boolean("quick", False, "512 tokens and one round: shows that everything runs.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A model for the group trained: its own queries and keys.")
_TEXT = flags.DEFINE_string("text", None, "Token ids for it, .npy; read as one sequence.")
_LAYER = flags.DEFINE_integer("layer", -1, "The layer whose queries and keys are taken.")
_OUT = flags.DEFINE_string("out", None, "File for the results as JSON.")
_JSON = flags.DEFINE_boolean("json", False, "One JSON object in place of the tables.")

_DEFAULT_LENGTHS = {
    "forward": [4096, 8192],
    "long": [16384, 32768],
    "backward": [4096],
    "memory": [32768],
    "trained": [4096, 16384],
}
_WRITTEN = 8192  # the longest sequence for an N x N bias
_MEGABYTE = 1e6

_PEERS = {
    "torch": Contender("torch", "torch_contenders:sdpa"),
    "torch+alibi": Contender("torch+alibi", "torch_contenders:sdpa_written_bias", {"bias": "alibi"}),
    "torch+t5": Contender("torch+t5", "torch_contenders:sdpa_written_bias", {"bias": "t5"}),
    "flex+alibi": Contender("flex+alibi", "torch_contenders:flex", {"bias": "alibi"}),
    "flex+t5": Contender("flex+t5", "torch_contenders:flex", {"bias": "t5"}),
    "jax.nn+alibi": Contender("jax.nn+alibi", "jax_contenders:jax_nn", {"bias": "alibi"}),
    "jax.nn+t5": Contender("jax.nn+t5", "jax_contenders:jax_nn", {"bias": "t5"}),
}
_OURS: dict[str, dict[str, Any]] = {
    "none": {"bias": "none"},
    "alibi": {"bias": "alibi"},
    "t5": {"bias": "t5"},
    "none, no skipping": {"bias": "none", "skip_tiles": False},
    "alibi, no skipping": {"bias": "alibi", "skip_tiles": False},
    "t5, no skipping": {"bias": "t5", "skip_tiles": False},
    "none, with rotation": {"bias": "none", "rotation": True},
}
_CONTENDERS = {name: Contender(name, "jax_contenders:ours", how) for name, how in _OURS.items()} | _PEERS
_ENTRANTS = {
    "forward": list(_CONTENDERS),
    "long": ["none", "alibi", "torch"],
    "backward": ["none", "alibi", "t5", "torch", "torch+alibi", "torch+t5", "jax.nn+alibi", "jax.nn+t5"],
    "trained": ["none", "alibi", "torch"],
}


def main(argv: list[str]) -> None:
    """Runs the groups that were asked for, prints their tables, and says which goals are met."""
    logging.set_verbosity(logging.WARNING)
    _check(argv)
    seed = interleaved.fresh_seed() if _SEED.value is None else _SEED.value
    settings = {"seed": seed, "runs": _rounds()}
    rows: list[Row] = []
    races: list[tuple[dict, dict[str, Result]]] = []
    _say(f"seed {seed}, {interleaved.cores()} cores, {_rounds()} rounds")
    for group in _ROWS.value:
        if group == "long" and _QUICK.value:
            continue  # the same contenders as in forward
        if group == "memory":
            rows += _memory(seed)
            continue
        saved = _trained_arrays() if group == "trained" else None
        if group == "trained" and saved is None:
            continue
        names = _entrants(group)
        with Race([_contender(name, group, saved) for name in names]) as race:
            for dim in [_dim_of(saved)] if saved else _dims():
                for length in _lengths(group):
                    arguments = {"length": length, "dim": dim, "seed": seed}
                    title = f"{group}, {length:,} tokens, d = {dim}"
                    _say(title, to=sys.stderr)
                    fit = [name for name in names if _takes_part(name, length)]
                    results = race.run(arguments, rounds=_rounds(), names=fit)
                    _say(report.times(f"\n{title}", results, gigaflop=_gigaflop(group, length, dim)))
                    rows += _judged(group, results, length, dim)
                    races.append(({"group": group, **arguments}, results))
                    report.save(rows, races, settings, out=_OUT.value)  # a long run may be stopped
        if saved:
            os.unlink(saved)
    report.finish(rows, races, settings, out=_OUT.value, as_json=_JSON.value)


def _gigaflop(group: str, length: int, dim: int) -> float:
    """Returns the products of the lower triangle: two forward, five more backward."""
    products = 7 if group == "backward" else 2
    return products * length**2 * dim * HEADS / 1e9


def _judged(group: str, results: dict[str, Result], length: int, dim: int) -> list[Row]:
    """Returns a race's rows, each with the goal that the project set itself."""

    def faster(work: str, against: str, mine: str, theirs: str, at_least: float | None = None) -> Row:
        """Their time over ours, and a word if the same sums gave other numbers."""
        note = report.why(results, mine, theirs)
        measured = float("nan") if note else ratio(results, theirs, mine)
        if not note and kind(mine) == kind(theirs):
            apart = interleaved.difference(results, mine, theirs)
            note = ", ".join(f"{name} differs by {x:.0e}" for name, x in apart.items() if x > 1e-4)
        entered[work, against] = {mine, theirs}
        return Row(work, against, length, dim, measured, at_least=at_least, note=note)

    def kind(name: str) -> str:
        return next((bias for bias in ("alibi", "t5") if bias in name), "rotation" if "rotation" in name else "none")

    entered: dict[tuple[str, str], set[str]] = {("T5, its time", "own, no bias"): {"t5", "none"}}
    long_goal = {16384: 2.0, 32768: 3.5}.get(length)
    if group == "backward":
        work = "forward + backward, "
        rows = [
            faster(work + "no bias", "torch, no bias", "none", "torch", 0.8),
            faster(work + "ALiBi", "torch, no bias", "alibi", "torch", 0.8),
            faster(work + "T5 and its table", "torch, no bias", "t5", "torch", 0.8),
            faster(work + "ALiBi and its slopes", "torch, bias written out", "alibi", "torch+alibi", 3.0),
            faster(work + "T5 and its table", "torch, bias written out", "t5", "torch+t5", 3.0),
            faster(work + "ALiBi and its slopes", "jax.nn, bias written out", "alibi", "jax.nn+alibi"),
            faster(work + "T5 and its table", "jax.nn, bias written out", "t5", "jax.nn+t5"),
        ]
    elif group in ("long", "trained"):
        on = " on trained q and k" if group == "trained" else ""
        rows = [
            faster("no bias" + on, "torch, no bias", "none", "torch", None if on else 0.9),
            faster("ALiBi" + on, "torch, no bias", "alibi", "torch", None if on else long_goal),
        ]
    else:
        note = report.why(results, "t5", "none")
        t5_time = float("nan") if note else ratio(results, "t5", "none")
        rows = [
            faster("no bias", "torch, no bias", "none", "torch", 0.9),
            faster("no bias, with rotation", "torch, no bias, no rotation", "none, with rotation", "torch"),
            faster("ALiBi, skipping off", "FlexAttention", "alibi, no skipping", "flex+alibi", 2.2),
            faster("ALiBi", "torch, no bias", "alibi", "torch", long_goal),
            faster("ALiBi", "torch, bias written out", "alibi", "torch+alibi"),
            faster("ALiBi", "jax.nn, bias written out", "alibi", "jax.nn+alibi"),
            Row("T5, its time", "own, no bias", length, dim, t5_time, at_most=1.08, note=note),
            faster("T5", "FlexAttention reading the table", "t5", "flex+t5", 2.5),
            faster("T5", "torch, bias written out", "t5", "torch+t5"),
            faster("T5", "jax.nn, bias written out", "t5", "jax.nn+t5"),
        ]
    return [row for row in rows if entered[row.work, row.against] <= set(_entrants(group))]


def _memory(seed: int) -> list[Row]:
    """Returns what this library, and PyTorch without a bias, take beside inputs and outputs, compilation included."""
    rows = []
    for length in _lengths("memory"):
        for dim in _dims()[:1]:
            for backward in (False, True):
                for name in ["t5"] if _QUICK.value else ["none", "alibi", "t5", "torch"]:
                    work = f"peak memory, {'forward + backward' if backward else 'forward'}, {name}"
                    _say(f"{work}, {length} tokens, d = {dim}", to=sys.stderr)
                    entrant = _contender(name, "backward" if backward else "forward", None)
                    found = interleaved.peak_memory(entrant, {"length": length, "dim": dim, "seed": seed})
                    rows.append(_memory_row(work, length, dim, found, None if name == "torch" else 256))
    return rows


def _memory_row(work: str, length: int, dim: int, found: Memory | str, at_most: float | None) -> Row:
    against = "beside inputs and outputs"
    if isinstance(found, str):
        return Row(work, against, length, dim, float("nan"), "MB", at_most=at_most, note=found)
    running = max(found.running - found.outputs, 0) / _MEGABYTE
    given = (found.inputs + found.outputs) / _MEGABYTE
    note = f"inputs + outputs {given:.0f} MB; without compilation {running:.0f} MB"
    return Row(work, against, length, dim, found.beside / _MEGABYTE, "MB", at_most=at_most, note=note)


def _contender(name: str, group: str, saved: str | None) -> Contender:
    entrant = _CONTENDERS[name]
    extra: dict = {"backward": True} if group == "backward" else {}
    if saved:
        extra["saved"] = saved
    return Contender(entrant.name, entrant.factory, {**entrant.arguments, **extra})


def _entrants(group: str) -> list[str]:
    quick = {
        "forward": ["none", "alibi, no skipping", "torch", "flex+alibi", "jax.nn+alibi"],
        "backward": ["t5", "torch+t5"],
    }
    return quick.get(group, _ENTRANTS[group]) if _QUICK.value else _ENTRANTS[group]


def _takes_part(name: str, length: int) -> bool:
    if name.startswith("jax.nn"):
        return length <= (_WRITTEN if _LENGTHS.value else _WRITTEN // 2)  # slow: the longer one only when asked for
    return name not in ("torch+alibi", "torch+t5") or length <= _WRITTEN


def _trained_arrays() -> str | None:
    """Returns a file with queries, keys and values of a real model, made by a process of its own; None without one."""
    if _CHECKPOINT.value is None or _TEXT.value is None:
        _say("\ntrained: skipped, it needs --checkpoint and --text")
        return None
    handle, path = tempfile.mkstemp(suffix=".npz")
    os.close(handle)
    longest = max(_lengths("trained"))
    script = Path(__file__).with_name("trained.py")
    made = subprocess.run(
        [sys.executable, str(script), _CHECKPOINT.value, _TEXT.value, str(longest), str(_LAYER.value), path],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_TRACEBACK_FILTERING": "off"},  # so that the last line is the reason
    )
    if made.returncode:
        os.unlink(path)
        lines = made.stderr.strip().splitlines()
        _say(f"\ntrained: skipped, {lines[-1] if lines else 'no queries and keys were made'}")
        return None
    return path


def _dim_of(saved: str) -> int:
    import numpy as np

    with np.load(saved) as file:
        return int(file["q"].shape[-1])


def _dims() -> list[int]:
    return [64] if _QUICK.value else [int(dim) for dim in _DIMS.value]


def _lengths(group: str) -> list[int]:
    if _QUICK.value:
        return [512]
    return [int(length) for length in _LENGTHS.value] if _LENGTHS.value else _DEFAULT_LENGTHS[group]


def _rounds() -> int:
    return 1 if _QUICK.value else _RUNS.value


def _check(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"attention.py takes no arguments, got {argv[1:]}")
    unknown = set(_ROWS.value) - set(GROUPS)
    if unknown:
        sys.exit(f"--rows knows {', '.join(GROUPS)}; got {', '.join(sorted(unknown))}")
    if not all(x.isdigit() and int(x) > 0 for x in [*(_LENGTHS.value or []), *_DIMS.value]):
        sys.exit("--lengths and --dims take positive whole numbers, separated by commas")
    if _RUNS.value < 1:
        sys.exit(f"--runs must be at least 1, got {_RUNS.value}")


def _say(text: str, to=None) -> None:
    if to is None and _JSON.value:
        return
    print(text, file=to or sys.stdout, flush=True)


if __name__ == "__main__":
    app.run(main)
