"""Drawn calls of the Hopper kernels' arithmetic, run by plain JAX, against the float64 oracle."""

import dataclasses
import functools

import jax
import mosaic_gpu_plain
import numpy as np
import pytest
from backend_suite import Checks, exactly, plainly
from drawn_calls import Sizes, draw_call, draw_structure
from test_drawn_calls import SEED

from rope_jax.attention import mosaic_gpu
from rope_jax.attention import mosaic_gpu_tile as tile

TILES = Sizes(0, 0, 0, (129, 136, 192, 256, 300), (8, 64, 128, 136, 256, 384), (1, 2, 3))


class Drawn(Checks):
    """Held to what bfloat16 loses."""

    rounding = 1e-3
    attend = staticmethod(
        functools.partial(mosaic_gpu.attend_with, tiles=tile.Sizes(skip_from=0), kernels=mosaic_gpu_plain)
    )


def draw_and_check(part: int, structures: int, calls: int) -> None:
    for which in range(structures):
        rng = np.random.default_rng([SEED, 7, part, which])
        structure = draw_structure(rng, TILES)
        structure = dataclasses.replace(
            structure,
            dtype="bfloat16",
            queries=max(structure.queries, tile.TILE),
            settings=dataclasses.replace(structure.settings, causal=True),
        )
        for number in range(calls):
            try:
                Drawn.check(draw_call(rng, structure))
            except AssertionError as error:
                raise AssertionError(f"{structure}, call {number} of structure {which}: {error}") from error
        jax.clear_caches()
        exactly.cache_clear()
        plainly.cache_clear()


def test_a_few():
    draw_and_check(0, 1, 6)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 4))
def test_many(part):
    draw_and_check(part, 6, 12)
