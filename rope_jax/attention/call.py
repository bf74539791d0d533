"""What every implementation of attention is given: where tokens stand, what is visible, and how logits are made."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rope_jax.integers import LARGEST, as_int32
from rope_jax.scheme import Scheme

# The log-sum-exp of a query that sees nothing. Finite, so that a merge of parts by softmax never meets -inf.
NOTHING = -1e30


@dataclasses.dataclass(frozen=True)
class Settings:
    """The static side of a call; hashable.

    Attributes:
      scale: multiplies `q.k`, before the scheme's logit scale.
      causal: whether keys of later positions are hidden.
      window: keys at `window` or more positions are not seen; None for all.
      soft_cap: caps scaled logits at `soft_cap * tanh(logit / soft_cap)`, before the bias.
      skip_tiles: whether tiles that cannot change the output beyond float rounding may be left out.
    """

    scale: float
    causal: bool = True
    window: int | None = None
    soft_cap: float | None = None
    skip_tiles: bool = True


def checked(
    q: Float[Array, "batch queries heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads v_dim"],
    scheme: Scheme,
    sinks: Float[Array, " heads"] | None = None,
    *,
    window: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    soft_cap: float | None = None,
    skip_tiles: bool = True,
) -> Settings:
    """Returns the settings of a call.

    Raises:
      ValueError: if shapes do not fit each other or the scheme, or a number is out of range.
      TypeError: if an argument is of another kind than it must be.
    """
    _check_shapes(q, k, v, scheme, sinks)
    if window is not None:
        if isinstance(window, bool) or not isinstance(window, int | np.integer):
            raise TypeError(f"window must be an int or None, known before tracing; got {_shown(window)}")
        window = int(window)
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if window > LARGEST:  # no two int32 positions are so far apart
            window = None
    for name, flag in (("causal", causal), ("skip_tiles", skip_tiles)):
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, known before tracing; got {_shown(flag)}")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else _number("scale", scale)
    if soft_cap is not None:
        soft_cap = _number("soft_cap", soft_cap)
        if soft_cap <= 0:
            raise ValueError(f"soft_cap must be positive, got {soft_cap}")
    return Settings(scale, bool(causal), window, soft_cap, bool(skip_tiles))


def _check_shapes(q: Array, k: Array, v: Array, scheme: Scheme, sinks: Array | None) -> None:
    if not isinstance(scheme, Scheme):
        raise TypeError(f"scheme must be a Scheme, as rope_jax.scheme.build makes it; got {type(scheme).__name__}")
    for name, x in (("q", q), ("k", k), ("v", v), ("sinks", sinks)):
        if not isinstance(x, jax.Array | np.ndarray) and not (name == "sinks" and x is None):
            raise TypeError(f"{name} must be an array, got {type(x).__name__}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"{name} must be [batch, tokens, heads, dim], got shape {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating, got {x.dtype}")
        if 0 in x.shape[2:]:
            raise ValueError(f"{name} has no heads or no dimensions: shape {x.shape}")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k and v must have the same batch, keys and heads; got shapes {k.shape} and {v.shape}")
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"q and k must have the same batch, got shapes {q.shape} and {k.shape}")
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k must have the same dim, got shapes {q.shape} and {k.shape}")
    batch, _, heads, dim = q.shape
    if heads % k.shape[2]:
        raise ValueError(f"{heads} query heads do not divide into groups over {k.shape[2]} key heads")
    if scheme.num_heads != heads:
        raise ValueError(f"the scheme has {scheme.num_heads} heads, the queries {heads}")
    if scheme.rotary_dim > dim:
        raise ValueError(f"the scheme turns {scheme.rotary_dim} dimensions, a head has {dim}")
    _check_scheme(scheme, batch)
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"sinks must be one for each of {heads} heads, got shape {sinks.shape}")
    if sinks is not None and not jnp.issubdtype(sinks.dtype, jnp.floating):
        raise TypeError(f"sinks must be floating, got {sinks.dtype}")


def _check_scheme(scheme: Scheme, batch: int) -> None:
    """Raises `ValueError` unless every array of a scheme has the shape that its heads and pairs ask for."""
    pairs, heads, reach = scheme.rotary_dim // 2, scheme.num_heads, scheme.max_offset
    shapes: dict[str, tuple[int, ...]] = {"inverse_frequencies": (pairs,), "remainder": (pairs,)}
    shapes |= {"cos_sin_factor": (), "logit_scale": (), "slopes": (heads,), "offset_bias": (heads, 2 * reach + 1)}
    for name, shape in shapes.items():
        found = jnp.shape(getattr(scheme, name))
        if found not in (shape, (batch, *shape)):
            raise ValueError(f"scheme.{name} must have shape {shape}, or {(batch, *shape)} for q's batch; got {found}")


def _number(name: str, value: Any) -> float:
    """Returns a static, finite number."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} must be known before tracing (a factor of logits that is not: scheme.logit_scale)")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {_shown(value)}") from None
    if isinstance(value, bool | str) or not abs(number) <= float(np.finfo(np.float32).max):
        raise ValueError(f"{name} must be a finite number within float32, got {value!r}")
    return number


def _shown(value: Any) -> str:
    return "a traced value" if isinstance(value, jax.core.Tracer) else repr(value)


class Tokens(NamedTuple):
    """Where the queries or the keys of a call stand.

    Attributes:
      positions: int32 `[batch, tokens]`, in any order.
      segments: int32 `[batch, tokens]`; only equal ids attend, and negative ones to nothing. None for one segment.
    """

    positions: Array
    segments: Array | None = None

    @classmethod
    def of(cls, side: str, positions, segments, shape: tuple[int, ...]) -> "Tokens":
        """Returns the tokens of one side of a call, from what a caller gave for them.

        Args:
          side: "q" or "kv", for errors.
          positions: integers of any width, `[batch, tokens]`, or `[tokens]` for all sequences.
          segments: the same, or None.
          shape: batch and tokens.

        Raises:
          TypeError: if they are not integers.
          ValueError: if their shape is another.
        """
        ids = None if segments is None else _by_token(f"segment_ids of {side}", segments, shape)
        return cls(_by_token(f"{side}_positions", positions, shape), ids)


def both_sides(q: Array, k: Array, q_positions, kv_positions, segment_ids) -> tuple[Tokens, Tokens]:
    """Returns where queries and keys stand, from the arguments of a public call.

    Raises:
      TypeError: if positions or ids are not integers, or `segment_ids` is no pair.
      ValueError: if their shapes do not fit those of `q` and `k`.
    """
    if segment_ids is None:
        segment_ids = None, None
    elif not isinstance(segment_ids, tuple | list) or len(segment_ids) != 2 or any(x is None for x in segment_ids):
        raise TypeError("segment_ids must be None or a pair, the ids of queries and the ids of keys")
    return (
        Tokens.of("q", q_positions, segment_ids[0], q.shape[:2]),
        Tokens.of("kv", kv_positions, segment_ids[1], k.shape[:2]),
    )


def _by_token(name: str, value, shape: tuple[int, ...]) -> Array:
    x = as_int32(name, value)
    if x.shape not in (shape, shape[1:]):
        raise ValueError(f"{name} must have shape {shape} or {shape[1:]}, got {x.shape}")
    return jnp.broadcast_to(x[None] if x.ndim == 1 else x, shape)


def visible(queries: Tokens, keys: Tokens, *, causal: bool, window: int | None) -> Bool[Array, "*batch queries keys"]:
    """Returns which keys each query may see; a negative segment sees nothing and is seen by nothing."""
    offset = offsets(queries.positions, keys.positions)
    mask = offset >= 0 if causal else jnp.ones(offset.shape, bool)
    if window is not None:
        mask &= jnp.abs(offset) < window
    for tokens, axis in ((queries, -1), (keys, -2)):
        if tokens.segments is not None:
            mask &= jnp.expand_dims(tokens.segments >= 0, axis)
    if queries.segments is not None and keys.segments is not None:
        mask &= queries.segments[..., :, None] == keys.segments[..., None, :]
    return mask


def offsets(
    q_positions: Int[Array, "*batch queries"], kv_positions: Int[Array, "*batch keys"]
) -> Int[Array, "*batch queries keys"]:
    """Returns `i - j` for every query and key."""
    return q_positions[..., :, None] - kv_positions[..., None, :]


def without_padding(
    x: Float[Array, "batch tokens heads dim"], tokens: Tokens
) -> Float[Array, "batch tokens heads dim"]:
    """Returns `x` with zeros where a segment is negative: what lies there may be NaN, and `0 * NaN` would leak."""
    if tokens.segments is None:
        return x
    return jnp.where(tokens.segments[..., None, None] >= 0, x, 0)
