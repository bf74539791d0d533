"""What a scheme costs to run: measured time and memory of reading one row, one by one through one program."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rope_jax.decoder import Schemes
from rope_jax.diagnosis.tasks.subject import Subject

_ROUNDS = 5
_SECONDS = 20.0  # after which no further round begins


def costs_record(subject: Subject, schemes: Mapping[str, Schemes]) -> list[dict[str, Any]]:
    """Returns what it costs on this machine to read one row of the target length under each configuration.

    Returns:
      plain values, in the order given: `configuration`; `milliseconds`, the median wall time of five interleaved
      rounds, so that a busy machine slows all alike, of fewer where they take long; `rounds`, how many; `fastest` and
      `slowest` of them, None where there was one only, which tells nothing of the noise; `mib`, temporary memory of
      the compiled program, the same for every scheme.
    """
    names = tuple(schemes)
    graph, state = nnx.split(subject.checkpoint.model)
    row = jnp.asarray(subject.items.text[:1], jnp.int32)

    # Arrays go in rather than schemes, which would be rebuilt around descriptions of arrays while lowering.
    structure = jax.tree.structure(schemes[names[0]])

    def read(state, leaves, row):
        return nnx.merge(graph, state).hidden(row, jax.tree.unflatten(structure, leaves))[:, -1]

    arguments = {name: jax.tree.leaves(schemes[name]) for name in names}
    program = jax.jit(read).lower(state, arguments[names[0]], row).compile()
    memory = program.memory_analysis()
    mebibytes = 0.0 if memory is None else memory.temp_size_in_bytes / 2**20
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    for round_number in range(_ROUNDS + 1):
        if round_number > 1 and time.perf_counter() - begun > _SECONDS:
            break
        for name in np.random.default_rng(round_number).permutation(len(names)):
            started = time.perf_counter()
            jax.block_until_ready(program(state, arguments[names[name]], row))
            if round_number:  # the first is for warming up
                seconds[names[name]].append(time.perf_counter() - started)
    return [
        {
            "configuration": name,
            "milliseconds": 1e3 * statistics.median(times),
            "rounds": len(times),
            "fastest": 1e3 * min(times) if len(times) > 1 else None,
            "slowest": 1e3 * max(times) if len(times) > 1 else None,
            "mib": mebibytes,
        }
        for name, times in seconds.items()
    ]
