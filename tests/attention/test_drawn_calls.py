"""Thousands of drawn calls against the float64 oracle: outputs, log-sum-exps and all gradients, under both plans.

`ROPE_JAX_FUZZ_SEED=N python -m pytest -m slow tests/attention/test_drawn_calls.py` draws others.
"""

import os

import jax
import numpy as np
import pytest
from backend_suite import Checks, exactly, plainly
from drawn_calls import FEW, FULL, SMALL, draw_call, draw_structure

from rope_jax.attention import blockwise, blockwise_wide_backward, decode, machine, operands, wide_tiles

SEED = int(os.environ.get("ROPE_JAX_FUZZ_SEED", "41"))
PARTS, STRUCTURES, CALLS = 5, 12, 14  # under each plan: 1,680 calls of small tiles; few queries add 280, whole tiles 48


def draw_and_check(attend, part: int, sizes, structures: int, calls: int, monkeypatch, *, wide: bool) -> int:
    """Checks `calls` calls of each of several structures; returns how many there were."""
    monkeypatch.setattr(operands, "ROWS", sizes.rows)
    monkeypatch.setattr(operands, "COLUMNS", sizes.columns)
    monkeypatch.setattr(operands, "LEAST_BLOCKS", sizes.least_blocks)
    monkeypatch.setattr(machine, "heads_at_once", lambda: wide)
    monkeypatch.setattr(wide_tiles, "sizes", lambda *_: (sizes.rows, sizes.columns))
    monkeypatch.setattr(blockwise_wide_backward, "BLOCK", 40 * sizes.columns)  # one to four tiles of keys
    monkeypatch.setattr(decode, "CHUNK", 128)

    class Drawn(Checks):  # a class has compiled programs of its own
        pass

    Drawn.attend = staticmethod(attend)
    made = 0
    for which in range(structures):
        rng = np.random.default_rng([SEED, part, which, int(wide), sizes.rows])
        structure = draw_structure(rng, sizes)
        for number in range(calls):
            problem = draw_call(rng, structure)
            made += 1
            try:
                Drawn.check(problem)
            except AssertionError as error:
                raise AssertionError(f"{structure}, call {number} of structure {which}: {error}") from error
        jax.clear_caches()
        exactly.cache_clear()
        plainly.cache_clear()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("wide", [False, True], ids=["one head at a time", "all heads in a tile"])
@pytest.mark.parametrize("part", range(PARTS))
def test_small_tiles(part, wide, monkeypatch):
    calls = draw_and_check(blockwise.attend, part, SMALL, STRUCTURES, CALLS, monkeypatch, wide=wide)
    assert calls == STRUCTURES * CALLS


@pytest.mark.slow
@pytest.mark.parametrize("wide", [False, True], ids=["one head at a time", "all heads in a tile"])
def test_tiles_as_they_are(wide, monkeypatch):
    draw_and_check(blockwise.attend, 0, FULL, 4, 6, monkeypatch, wide=wide)


@pytest.mark.slow
def test_few_queries(monkeypatch):
    draw_and_check(decode.attend, 0, FEW, 20, CALLS, monkeypatch, wide=False)


@pytest.mark.parametrize("wide", [False, True], ids=["one head at a time", "all heads in a tile"])
def test_a_few(wide, monkeypatch):
    draw_and_check(blockwise.attend, 100, SMALL, 3, 10, monkeypatch, wide=wide)
