"""What a scheme costs to run: measured time and memory of reading one row, cell by cell through one program."""

import dataclasses
import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell, CellSchemes
from rope_jax.diagnosis.tasks.subject import Subject

_ROUNDS = 3
_SECONDS = 20.0  # after which no further round begins


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of reading one row of the target length.

    Attributes:
      milliseconds: median wall time of three interleaved rounds, so that a busy machine slows all cells alike; of fewer
        where they take long.
      mebibytes: temporary memory of the compiled program, the same for every scheme.
    """

    milliseconds: float
    mebibytes: float


def costs_record(subject: Subject, schemes: CellSchemes, cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Returns what each cell costs, the unchanged model first, as plain numbers."""
    cells = dict.fromkeys([UNCHANGED, *cells])
    return [
        {
            "scaling": cell.scaling,
            "bias": cell.bias,
            "temperature": cell.temperature,
            "milliseconds": cost.milliseconds,
            "mib": cost.mebibytes,
        }
        for cell, cost in measure(subject, schemes, tuple(cells)).items()
    ]


def measure(subject: Subject, schemes: CellSchemes, cells: tuple[Cell, ...]) -> Mapping[Cell, Cost]:
    """Returns what each cell costs on this machine."""
    graph, state = nnx.split(subject.checkpoint.model)
    row = jnp.asarray(subject.items.text[:1], jnp.int32)

    # Arrays go in rather than schemes, which would be rebuilt around descriptions of arrays while lowering.
    structure = jax.tree.structure(schemes(cells[0]))

    def read(state, leaves, row):
        return nnx.merge(graph, state).hidden(row, jax.tree.unflatten(structure, leaves))[:, -1]

    arguments = {cell: jax.tree.leaves(schemes(cell)) for cell in cells}
    program = jax.jit(read).lower(state, arguments[cells[0]], row).compile()
    memory = program.memory_analysis()
    mebibytes = 0.0 if memory is None else memory.temp_size_in_bytes / 2**20
    seconds: dict[Cell, list[float]] = {cell: [] for cell in cells}
    begun = time.perf_counter()
    for round_number in range(_ROUNDS + 1):
        if round_number > 1 and time.perf_counter() - begun > _SECONDS:
            break
        for cell in np.random.default_rng(round_number).permutation(len(cells)):
            started = time.perf_counter()
            jax.block_until_ready(program(state, arguments[cells[cell]], row))
            if round_number:  # the first is for warming up
                seconds[cells[cell]].append(time.perf_counter() - started)
    return {cell: Cost(1e3 * statistics.median(times), mebibytes) for cell, times in seconds.items()}
