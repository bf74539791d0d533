"""What every implementation of attention is given: where tokens stand, what is visible, and how logits are made."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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
    scheme: Scheme,
    *,
    window: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    soft_cap: float | None = None,
    skip_tiles: bool = True,
) -> Settings:
    """Returns the settings of a call.

    Raises:
      ValueError: if the heads do not group, differ from the scheme's, or a number is out of range.
    """
    heads, kv_heads = q.shape[-2], k.shape[-2]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not divide into groups over {kv_heads} key heads")
    if scheme.num_heads != heads:
        raise ValueError(f"the scheme has {scheme.num_heads} heads, the queries {heads}")
    if scheme.rotary_dim > q.shape[-1]:
        raise ValueError(f"the scheme turns {scheme.rotary_dim} dimensions, a head has {q.shape[-1]}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if soft_cap is not None and soft_cap <= 0:
        raise ValueError(f"soft_cap must be positive, got {soft_cap}")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    return Settings(scale, causal, window, soft_cap, skip_tiles)


class Tokens(NamedTuple):
    """Where the queries or the keys of a call stand.

    Attributes:
      positions: int32 `[batch, tokens]`, in any order.
      segments: int32 `[batch, tokens]`; only equal ids attend, and negative ones to nothing. None for one segment.
    """

    positions: Array
    segments: Array | None = None


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
