"""An exported config read back: how far it is from the scaling that was asked for, over every layer."""

import math
from collections.abc import Iterable

import numpy as np

from rope_jax.checkpoints.exporting import Wanted
from rope_jax.checkpoints.positions import PositionConfig
from rope_jax.frequencies import Rotary


def largest_difference(
    before: PositionConfig, wanted: Wanted, after: PositionConfig, *, lengths: Iterable[int]
) -> float:
    """Returns the largest relative difference of frequencies, cos/sin factor and logit scale over all layers.

    Args:
      before: what the config said.
      wanted: what the layers of `wanted.group` were to become; all others were to stay.
      after: what the exported config says.
      lengths: sequences to compare at, for rules that depend on the length.

    Returns:
      infinity where a layer turns other dimensions, or only on one side.
    """
    found = {layer: group for group in after.groups for layer in group.layers}
    worst = 0.0
    for group in before.groups:
        for layer in group.layers:
            other = found.pop(layer, None)
            if other is None or (other.num_heads, other.head_dim) != (group.num_heads, group.head_dim):
                return math.inf
            for length in lengths:
                expected = wanted.at(length) if group is wanted.group else group.scaled_at(length)
                worst = max(worst, _relative(other.scaled_at(length), expected))
    return worst if not found else math.inf


def _relative(found: Rotary | None, expected: Rotary | None) -> float:
    if found is None or expected is None:
        return 0.0 if found is expected else math.inf
    if found.dim != expected.dim:
        return math.inf
    a, b = (
        np.array([*record.inverse_frequencies, record.cos_sin_factor, record.logit_scale])
        for record in (found, expected)
    )
    if ((a == 0) != (b == 0)).any():
        return math.inf
    return float(np.max(np.abs(a - b) / np.where(b == 0, 1.0, np.abs(b))))
