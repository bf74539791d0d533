"""Faults of continuous strength, as a user registers them: `faults_of` makes what `faults.register` takes.

A fault's strength is an array of the scheme that is run, never a constant of the program.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from planted_causes import Wrong, base_divisors

from rope_jax import double_float
from rope_jax.attention.api import attend
from rope_jax.attention.call import Settings, Tokens
from rope_jax.decoder import Schemes
from rope_jax.diagnosis.evaluation.faults import Fault, FaultMaker, FaultRequest
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


def fault_maker(name: str, wrong: Wrong) -> FaultMaker:
    """Returns what `faults.register` takes for a fault of some strengths."""

    def make(request: FaultRequest) -> Fault:
        attention = attend if wrong.grid is None and wrong.cached_base is None else run_wrongly

        def change(scheme: Schemes) -> Schemes:
            assert isinstance(scheme, Scheme)
            return _changed(scheme, wrong, request)

        return Fault(name, "a planted fault", change, attention)

    return make


def _changed(scheme: Scheme, wrong: Wrong, request: FaultRequest) -> Scheme:
    wide = np.asarray(scheme.inverse_frequencies, np.float64) + np.asarray(scheme.remainder, np.float64)
    if wrong.levels is not None:
        high, low = double_float.split(rounded_significands(wide, wrong.levels))
        scheme = dataclasses.replace(scheme, inverse_frequencies=jnp.asarray(high), remainder=jnp.asarray(low))
    if wrong.bias_step is not None:
        scheme = rounded_bias(scheme, length=request.length, step=wrong.bias_step)
    if wrong.grid is None and wrong.cached_base is None:
        return scheme
    high, low = double_float.split(wide / base_divisors(scheme.rotary_dim, wrong.cached_base or 1.0))
    return FaultyScheme(
        **_fields(scheme),
        grid=jnp.float32(wrong.grid or 0.5),
        cached_frequencies=jnp.asarray(high),
        cached_remainder=jnp.asarray(low),
        fresh=jnp.int32(request.fresh),
    )


def run_wrongly(
    q, k, v, scheme: FaultyScheme, sinks, queries: Tokens, keys: Tokens, settings: Settings, implementation=None
):
    """Computes a layer's attention under a `FaultyScheme`; the arguments are those of `attention.api.attend`."""
    exact = Scheme(**_fields(scheme))
    cached = dataclasses.replace(
        exact, inverse_frequencies=scheme.cached_frequencies, remainder=scheme.cached_remainder
    )

    def rotated(x: Float[Array, "B T H d"], positions: Int[Array, "B T"]) -> Float[Array, "B T H d"]:
        on_grid = rounded_positions(positions, scheme.grid)
        # Queries of the cached part too: what the cache holds was worked out under the old frequencies throughout.
        old = (positions < positions.shape[1] - scheme.fresh)[..., None, None]
        return jnp.where(old, cached.rotate(x, on_grid), exact.rotate(x, on_grid))

    # Only rotation is at fault: what is visible, and the bias, go by the true positions.
    q, k = rotated(q, queries.positions), rotated(k, keys.positions)
    return attend(q, k, v, without_rotation(exact), sinks, queries, keys, settings, implementation)


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
