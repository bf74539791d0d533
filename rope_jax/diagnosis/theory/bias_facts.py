"""The bias of an inspected configuration, as far as it is known without weights: slopes, bucket edges, reach."""

import dataclasses
import itertools
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from rope_jax.biases.host import Bias, bucket_starts, paper_slopes
from rope_jax.biases.registry import BiasRecord, BiasRequest, bias_of, parse_bias
from rope_jax.checkpoints.positions import BiasSpec, LayerGroup
from rope_jax.errors import InputError

NUM_BUCKETS = 32
UNKNOWN_TABLE = "a config does not hold the learned table: zeros are assumed, only the bucket edges are known"


_IF_KNOWN = (
    "horizons", "heads_that_reach_target", "taken_at_trained", "taken_at_target", "slopes", "num_buckets",
    "max_distance", "last_bucket_start", "bucket_widths", "note",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class DeployedBias:
    """A bias and what is known about it.

    Attributes:
      name: as flags have it, "none" for none.
      source: why that bias.
      declared: whether the config declares it, so that the weights were trained with it.
      slopes: of ALiBi, nats per token, `[heads]`, or None.
      buckets: of T5, whose table is unknown, or None.
      other: any other bias.
    """

    name: str
    source: str
    declared: bool = False
    slopes: Float64[np.ndarray, " heads"] | None = None
    buckets: BiasSpec | None = None
    other: Bias | None = None

    def at(self, offsets: Int64[np.ndarray, " offsets"]) -> Float64[np.ndarray, "heads offsets"]:
        """Returns the bias at offsets, nats, a head a row; one row of zeros where nothing is known or added."""
        if self.slopes is not None:
            return -self.slopes[:, None] * offsets
        if self.other is not None:
            return np.asarray(self.other(offsets.astype(np.int32)), np.float64)
        return np.zeros((1, len(offsets)))

    def weakest(self, offsets: Int64[np.ndarray, " offsets"]) -> Float64[np.ndarray, " offsets"]:
        """Returns the bias of the head that loses least at the last of `offsets`, nats."""
        values = self.at(offsets)
        return values[int(np.argmax(values[:, -1] - values[:, 0]))]

    def horizons(self, *, amplitude: float, target_length: int) -> Float64[np.ndarray, " heads"]:
        """Returns the offset a head from which on the bias outweighs `amplitude` nats; infinite where none is met.

        For slopes `A / m`; of any other bias the first of the powers of 2^(1/8) below the target length.
        """
        if self.slopes is not None:
            return amplitude / self.slopes
        steps = 2 ** np.arange(0, np.log2(target_length), 1 / 8)
        grid = np.unique(np.concatenate([[0], steps.astype(np.int64), [target_length - 1]]))
        values = self.at(grid)
        hidden = values[:, :1] - values > amplitude
        return np.where(hidden.any(1), grid[hidden.argmax(1)].astype(np.float64), np.inf)

    def record(self, *, amplitude: float, trained_length: int, target_length: int) -> dict[str, Any]:
        """Returns `bias.*` of `keys.KEYS`."""
        record: dict[str, Any] = {"name": self.name, "source": self.source, "declared": self.declared}
        record.update(dict.fromkeys(_IF_KNOWN))
        if self.slopes is not None or self.other is not None:
            ends = np.array([0, trained_length - 1, target_length - 1])
            values = self.weakest(ends)
            horizons = self.horizons(amplitude=amplitude, target_length=target_length)
            record.update(
                slopes=self.slopes,
                horizons=horizons,
                heads_that_reach_target=int((horizons >= target_length).sum()),
                taken_at_trained=values[0] - values[1],
                taken_at_target=values[0] - values[2],
            )
        if self.buckets is not None:
            spec = self.buckets
            assert spec.num_buckets is not None
            assert spec.max_distance is not None
            starts = bucket_starts(spec.num_buckets // 2 if spec.bidirectional else spec.num_buckets, spec.max_distance)
            record.update(
                num_buckets=spec.num_buckets,
                max_distance=spec.max_distance,
                last_bucket_start=starts[-1],
                bucket_widths=[after - before for before, after in itertools.pairwise(starts)],
                note=UNKNOWN_TABLE,
            )
        return record


def deployed_bias(
    bias: str | Bias | BiasRecord | None, main: LayerGroup, *, trained_length: int, target_length: int
) -> DeployedBias:
    """Returns the bias that is asked for, or the one that the config declares; none is made up.

    Args:
      bias: a name, a multiple, a bias or a record of one; None for the config's own.
      main: layers that see the whole context.
      trained_length: `L`, tokens.
      target_length: `L'`, tokens.

    Raises:
      InputError: if there is no such bias, it needs weights, or it has another number of heads.
    """
    declared = main.bias
    if bias is None or (bias == "t5" and declared is not None and declared.kind == "t5"):
        return _declared(declared, main)
    request = BiasRequest(main.num_heads, trained_length, target_length)
    if isinstance(bias, str):
        record, multiplier = parse_bias(bias)
        if record.name == "none":
            return DeployedBias("none", "asked for")
        if record.name == "alibi":
            return DeployedBias(bias, "asked for", slopes=paper_slopes(main.num_heads) * (multiplier or 1.0))
        if record.name == "t5":
            spec = BiasSpec("t5", num_buckets=NUM_BUCKETS, max_distance=max(target_length, NUM_BUCKETS))
            return DeployedBias("t5", f"asked for; {NUM_BUCKETS} buckets up to the target length", buckets=spec)
    if isinstance(bias, str | BiasRecord):
        name, made = bias if isinstance(bias, str) else bias.name, bias_of(bias, request)
    else:
        name, made = type(bias).__name__.lower(), bias
    if made is None:
        return DeployedBias(name, "asked for")
    if not callable(made) or not hasattr(made, "num_heads"):
        raise InputError(f"bias {name} is {made!r}, not a Bias")
    if made.num_heads != main.num_heads:
        raise InputError(f"bias {name} has {made.num_heads} heads, the model {main.num_heads}")
    slopes = getattr(made, "slopes", None)
    if slopes is not None:
        return DeployedBias(name, "asked for", slopes=np.asarray(slopes, np.float64))
    return DeployedBias(name, "asked for", other=made)


def _declared(spec: BiasSpec | None, main: LayerGroup) -> DeployedBias:
    if spec is None:
        return DeployedBias("none", "the config declares none")
    if spec.kind == "alibi":
        name = "alibi" if spec.slopes_scale == 1 else f"alibi*{spec.slopes_scale:.4g}"
        slopes = paper_slopes(main.num_heads) * spec.slopes_scale
        return DeployedBias(name, "declared by the config", declared=True, slopes=slopes)
    return DeployedBias("t5", "declared by the config", declared=True, buckets=spec)
