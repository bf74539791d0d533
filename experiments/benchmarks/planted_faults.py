"""Faults of continuous strength, as data: one compiled program runs a scheme with any of them.

A fault's strength is an array of the scheme that is run, never a constant of the program.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rope_jax.attention.api import attend
from rope_jax.attention.call import Settings, Tokens
from rope_jax.scheme import Scheme, without_rotation


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("inverse_frequencies", "remainder", "cos_sin_factor", "logit_scale", "slopes", "offset_bias"),
        *("grid", "cached_frequencies", "cached_remainder", "fresh"),
    ],
    meta_fields=["layout", "phase"],
)
@dataclasses.dataclass(frozen=True)
class FaultyScheme(Scheme):
    """A scheme and how it is run wrongly; `run_wrongly` is the attention that reads it.

    Attributes:
      grid: `[]`, tokens: rotation sees positions rounded to its multiples, and these to whole tokens; below 1, none is.
      cached_frequencies: inverse frequencies under which all but the last tokens were read, `[pairs]`.
      cached_remainder: what float32 rounding left of them, `[pairs]`.
      fresh: `[]`, how many tokens at a row's end are run under the scheme's own frequencies.
    """

    grid: Array = dataclasses.field(default_factory=lambda: jnp.float32(0.5))
    cached_frequencies: Array = dataclasses.field(default_factory=lambda: jnp.zeros(0))
    cached_remainder: Array = dataclasses.field(default_factory=lambda: jnp.zeros(0))
    fresh: Array = dataclasses.field(default_factory=lambda: jnp.int32(0))


def faulty(scheme: Scheme, *, grid: float = 0.5, cached: Scheme | None = None, fresh: int = 0) -> FaultyScheme:
    """Returns a scheme with a fault; with none of the arguments it does what the scheme does.

    Args:
      scheme: what runs.
      grid: see `FaultyScheme`.
      cached: the scheme whose frequencies the cache was filled under; its bias does not matter.
      fresh: see `FaultyScheme`.
    """
    cached = cached or scheme
    return FaultyScheme(
        **_fields(scheme),
        grid=jnp.float32(grid),
        cached_frequencies=cached.inverse_frequencies,
        cached_remainder=cached.remainder,
        fresh=jnp.int32(fresh),
    )


def run_wrongly(
    q, k, v, scheme: FaultyScheme, sinks, queries: Tokens, keys: Tokens, settings: Settings, implementation=None
):
    """Computes a layer's attention under a `FaultyScheme`; the arguments are those of `attention.api.attend`."""
    exact = Scheme(**_fields(scheme))
    cached = dataclasses.replace(
        exact, inverse_frequencies=scheme.cached_frequencies, remainder=scheme.cached_remainder
    )

    def turned(x: Float[Array, "B T H d"], positions: Int[Array, "B T"]) -> Float[Array, "B T H d"]:
        on_grid = rounded_positions(positions, scheme.grid)
        # Queries of the cached part too: what the cache holds was worked out under the old frequencies throughout.
        old = (positions < positions.shape[1] - scheme.fresh)[..., None, None]
        return jnp.where(old, cached.rotate(x, on_grid), exact.rotate(x, on_grid))

    turned_q, turned_k = turned(q, queries.positions), turned(k, keys.positions)
    # Only rotation is at fault: what is visible, and the bias, go by the true positions.
    return attend(turned_q, turned_k, v, without_rotation(exact), sinks, queries, keys, settings, implementation)


def _fields(scheme: Scheme) -> dict:
    return {field.name: getattr(scheme, field.name) for field in dataclasses.fields(Scheme)}


def rounded_positions(positions: Int[Array, "B T"], grid: Float[Array, ""]) -> Int[Array, "B T"]:
    """Returns positions on a grid of any spacing, to the nearest whole token."""
    spaced = jnp.round(positions.astype(jnp.float32) / grid) * grid
    return jnp.where(grid < 1, positions, jnp.round(spaced).astype(positions.dtype))


def rounded_significands(values: np.ndarray, levels: float) -> np.ndarray:
    """Returns values whose significands are rounded to `levels` steps between two powers of two.

    >>> rounded_significands(np.array([1.3, 0.65]), 2.0).tolist()
    [1.5, 0.75]
    """
    _, exponents = np.frexp(values)
    power = np.ldexp(1.0, exponents - 1)
    return np.round(values / power * levels) / levels * power


def rounded_bias(scheme: Scheme, *, length: int, step: float) -> Scheme:
    """Returns the scheme with its whole bias rounded to multiples of `step` nats, offset by offset up to `length`."""
    offsets = jnp.arange(-(length - 1), length, dtype=jnp.int32)
    written = np.asarray(scheme.bias(offsets[:, None])[..., 0], np.float64)
    rounded = jnp.asarray(np.round(written / step) * step, jnp.float32)
    return dataclasses.replace(scheme, slopes=jnp.zeros_like(scheme.slopes), offset_bias=rounded)
