"""Blockwise attention: the suite on small tiles, so that a few hundred tokens make many; and a little at full size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_suite import SHAPES, BackendSuite, Checks, named, quick_compilation
from jax.extend.core import jaxprs_in_params
from problems import problem_of

from rope_jax.attention import (
    blockwise,
    blockwise_wide_backward,
    machine,
    operands,
    wide_loops,
    wide_tiles,
)


class OnSmallTiles:
    """Tiles of 64 queries and 32 keys; a class has compiled programs of its own, so what is traced here stays here."""

    attend = staticmethod(blockwise.attend)

    @pytest.fixture(autouse=True)
    def _small_tiles(self, monkeypatch):
        monkeypatch.setattr(operands, "ROWS", 64)
        monkeypatch.setattr(operands, "COLUMNS", 32)


class TestBlockwise(OnSmallTiles, BackendSuite):
    def test_the_tiles_are_small_and_some_of_them_plain(self):
        problem = problem_of(**SHAPES)
        sizes = []

        @functools.partial(jax.jit, compiler_options=quick_compilation())
        def pairs():
            scheme = problem.scheme
            turns = (operands.turns_of_fixed(scheme, tokens) for tokens in (problem.queries, problem.keys))
            arrays = problem.q, problem.k, problem.v
            call = operands.Operands.of(*arrays, scheme, None, *turns, scheme.inverse_frequencies)
            _, _, row, plan = operands.prepare(call, problem.queries, problem.keys, problem.settings)
            sizes.append(plan[:2])
            return row.pairs.plain, row.pairs.sees

        plain, sees = pairs()
        assert sizes == [(64, 32)]
        assert plain.sum() == 1 + 3  # of the second and third tile of queries; the fourth has padding
        assert sees.sum() == 2 + 4 + 6 + 7


class TestInBlocks(OnSmallTiles, Checks):
    """Several tiles of queries that go along far keys together."""

    @pytest.fixture(autouse=True)
    def _blocks(self, monkeypatch):
        monkeypatch.setattr(operands, "LEAST_BLOCKS", 1)
        monkeypatch.setattr(blockwise, "BLOCK", 3)

    @pytest.mark.parametrize("bias", ["none", "learned", "t5", "line and strip"])
    @pytest.mark.parametrize("kv_heads", [2, 4])
    def test_biases(self, bias, kv_heads):
        self.check(problem_of(bias=bias, kv_heads=kv_heads, tokens=500))

    @named(
        both_ways={"causal": False, "bias": "line and strip", "sinks": True},
        window={"window": 150, "soft_cap": 1.5},
        ragged={"segments": "ragged"},
        permuted={"positions": "permuted"},
        restarting={"positions": "restarting", "bias": "alibi"},
        later={"tokens": 200, "keys": 700},
        all_tiles={"skip_tiles": False, "bias": "alibi"},
    )
    def test_settings_and_positions(self, arguments):
        self.check(problem_of(**{"tokens": 500, **arguments}))

    def test_references_that_grow_with_distance(self):
        """Each farther tile outgrows the references by more than they bear, so that no tile stays plain."""
        problem = problem_of(**SHAPES, tokens=500, bias="none", max_offset=0)
        scheme = dataclasses.replace(problem.scheme, slopes=jnp.asarray([-1.5, -0.9]))
        self.check(dataclasses.replace(problem, scheme=scheme))


class TestWide(BackendSuite):
    """All heads in a tile, as off a CPU: tiles of 64 queries and 32 keys, and two of keys to a block."""

    attend = staticmethod(blockwise.attend)

    @pytest.fixture(autouse=True)
    def _wide(self, monkeypatch):
        monkeypatch.setattr(machine, "heads_at_once", lambda: True)
        monkeypatch.setattr(wide_tiles, "sizes", lambda *_: (64, 32))
        monkeypatch.setattr(blockwise_wide_backward, "BLOCK", 2 * 32 * 2 * 2 * 16)

    @pytest.mark.parametrize("block", [1, 2, 3, 100])
    @pytest.mark.parametrize("steps", [1, 3])
    def test_blocks_of_keys_and_steps_at_a_time(self, block, steps, monkeypatch):
        class OfThisSize(Checks):  # a class of its own has programs of its own
            attend = staticmethod(blockwise.attend)

        monkeypatch.setattr(blockwise_wide_backward, "BLOCK", block * 32 * 2 * 2 * 16)
        monkeypatch.setattr(wide_loops, "STEPS", steps)
        OfThisSize.check(problem_of(bias="line and strip", segments="packed"))

    @pytest.mark.parametrize("segments", ["one", "ragged", "strangers"])
    @pytest.mark.parametrize("bias", ["learned", "line and strip"])
    def test_groups_of_heads(self, bias, segments):
        self.check(problem_of(bias=bias, segments=segments, sinks=True))

    def test_a_sequence_whose_positions_do_not_count_on(self):
        """Where one sequence alone does not, the strip's gradient is scattered in all."""
        self.check(problem_of(bias="line and strip", positions="some permuted"))

    def test_references_that_grow_with_distance(self):
        problem = problem_of(**SHAPES, tokens=500, bias="none", max_offset=0)
        scheme = dataclasses.replace(problem.scheme, slopes=jnp.asarray([-1.5, -0.9]))
        self.check(dataclasses.replace(problem, scheme=scheme))

    @pytest.mark.parametrize(("bias", "reach"), [("none", 0), ("line and strip", 24)])
    def test_bfloat16_products(self, bias, reach):
        self.check(problem_of(dtype="bfloat16", bias=bias, max_offset=reach, tokens=300, window=200))


class TestAtFullSize(Checks):
    """Tiles as they are, compiled as users have them compiled."""

    attend = staticmethod(blockwise.attend)

    @staticmethod
    def compiler_options():
        return {}

    @pytest.mark.parametrize("bias", ["alibi", "line and strip"])
    def test_several_tiles_and_a_rest(self, bias):
        self.check(problem_of(**SHAPES, tokens=1301, bias=bias))

    def test_a_chunk_of_a_long_prefill(self):
        self.check(problem_of(**SHAPES, tokens=100, keys=1500, bias="learned", max_offset=0))


@pytest.mark.parametrize("wide", [False, True])
def test_no_array_grows_with_queries_times_keys(wide, monkeypatch):
    """The largest array of the program, forward and backward, is one of tokens or one of a tile."""
    monkeypatch.setattr(machine, "heads_at_once", lambda: wide)
    monkeypatch.setattr(wide_tiles, "sizes", lambda *_: (operands.ROWS, operands.COLUMNS))
    problem = problem_of(batch=1, heads=1, kv_heads=1, tokens=4096)

    def loss(q, k, v):
        return blockwise.attend(q, k, v, problem.scheme, None, problem.queries, problem.keys, problem.settings)[0].sum()

    program = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1, 2)))(problem.q, problem.k, problem.v)
    largest = max(np.prod(shape, dtype=int) for shape in _shapes(program.jaxpr))
    assert largest <= 2 * operands.ROWS * operands.COLUMNS


def _shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (getattr(x.aval, "shape", ()) for x in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _shapes(inner)
