"""Scaling x bias on the same weights and the same rows: what each cell costs short, gains long, and why."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from rope_jax.biases import Bias
from rope_jax.decoder import Schemes
from rope_jax.diagnosis.evaluation.arms import Arms
from rope_jax.diagnosis.tasks.subject import short_and_long
from rope_jax.diagnosis.tasks.text import Rows
from rope_jax.statistics.intervals import Estimate, estimate

Cell = tuple[str, str]  # scaling arm, bias arm
Losses = Mapping[Cell, Float32[np.ndarray, "rows positions"]]


def run_cells(
    program: Callable[[Schemes, Rows], np.ndarray],
    arms: Arms,
    rows: Rows,
    *,
    scalings: Sequence[str],
    biases: Mapping[str, Sequence[Bias | None]],
    on_start: Callable[[str], None] = lambda what: None,
) -> Losses:
    """Returns the losses `[rows, tokens - 1]` of every cell; a row is done in all of them before the next one begins.

    Args:
      program: losses of the frozen decoder, a `LossProgram` or `KeptLosses`; every cell runs the same compiled one.
      arms: makes the schemes.
      rows: the evaluated rows, the same in every cell.
      scalings: names of the scaling arms.
      biases: for each bias arm one bias a row, since a fitted one may differ from row to row (cross-fitting).
      on_start: called before each row of each cell, with their names.
    """
    per_row: dict[Cell, list[np.ndarray]] = {(scaling, bias): [] for bias in biases for scaling in scalings}
    for at, row in enumerate(rows):
        for (scaling, bias), found in per_row.items():
            on_start(f"row {at + 1} of {len(rows)}, {scaling} x {bias}")
            found.append(program(arms.schemes(scaling, biases[bias][at]), row[None])[0])
    return {cell: np.stack(found) for cell, found in per_row.items()}


def position_bins(trained_length: int, length: int) -> list[tuple[int, int]]:
    """Returns half-open bins of the columns of next-token losses: two of short ones, then one a doubling.

    Column `t` is the loss of token `t + 1`, as in `short_and_long`: no bin holds both short and long ones.

    >>> position_bins(512, 4096)
    [(0, 255), (255, 511), (511, 1023), (1023, 2047), (2047, 4095)]
    """
    tokens = [1, max(trained_length // 2, 2)]
    edge = trained_length
    while tokens[-1] < length:
        tokens.append(min(edge, length))
        edge *= 2
    return [(first - 1, end - 1) for first, end in itertools.pairwise(tokens)]


@dataclasses.dataclass(frozen=True)
class CellResult:
    """One cell's losses, in nats a token.

    Attributes:
      by_bin: the loss in each position bin.
      short: the loss of tokens below the trained length; see `short_and_long`.
      long: the loss of all later ones.
      short_cost: rise of the short loss over the unchanged model, paired by row; positive is worse.
      long_gain: fall of the long loss below the unchanged model, paired by row; positive is better.
    """

    by_bin: list[Estimate]
    short: Estimate
    long: Estimate
    short_cost: Estimate
    long_gain: Estimate


def cell_results(losses: Losses, *, trained_length: int, bins: Sequence[tuple[int, int]]) -> dict[Cell, CellResult]:
    """Returns every cell's result against the cell ("none", "none")."""
    short, long = _row_means(losses, trained_length)
    unchanged = ("none", "none")
    return {
        cell: CellResult(
            by_bin=[estimate(loss[:, low:high].mean(axis=1, dtype=np.float64)) for low, high in bins],
            short=estimate(short[cell]),
            long=estimate(long[cell]),
            short_cost=estimate(short[cell] - short[unchanged]),
            long_gain=estimate(long[unchanged] - long[cell]),
        )
        for cell, loss in losses.items()
    }


@dataclasses.dataclass(frozen=True)
class Effects:
    """Effects on one loss (short or long), in nats a token; positive is worse.

    Attributes:
      scaling: each scaling against none, averaged over the bias arms.
      bias: each bias against none, averaged over the scaling arms.
      interaction: for a scaling and a bias together, what their separate effects do not explain:
        `l(s, b) - l(s, none) - l(none, b) + l(none, none)`.
    """

    scaling: dict[str, Estimate]
    bias: dict[str, Estimate]
    interaction: dict[Cell, Estimate]


def effects(losses: Losses, *, trained_length: int) -> dict[str, Effects]:
    """Returns main effects and interactions on the short and on the long loss, paired by row."""
    result = {}
    for name, means in zip(("short", "long"), _row_means(losses, trained_length), strict=True):
        scalings = list(dict.fromkeys(scaling for scaling, _ in means))
        biases = list(dict.fromkeys(bias for _, bias in means))
        result[name] = Effects(
            scaling={
                s: estimate(np.mean([means[s, b] - means["none", b] for b in biases], axis=0))
                for s in scalings
                if s != "none"
            },
            bias={
                b: estimate(np.mean([means[s, b] - means[s, "none"] for s in scalings], axis=0))
                for b in biases
                if b != "none"
            },
            interaction={
                (s, b): estimate(means[s, b] - means[s, "none"] - means["none", b] + means["none", "none"])
                for s in scalings
                for b in biases
                if s != "none" and b != "none"
            },
        )
    return result


def _row_means(losses: Losses, trained_length: int) -> tuple[dict[Cell, np.ndarray], dict[Cell, np.ndarray]]:
    short, long = (
        {cell: loss[:, columns].mean(axis=1, dtype=np.float64) for cell, loss in losses.items()}
        for columns in short_and_long(trained_length).values()
    )
    return short, long
