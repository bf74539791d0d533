"""How new tokens attend to a cache: written into it first, then few by the decoding loop and many tile by tile."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rope_jax.attention import decode
from rope_jax.attention.api import outputs
from rope_jax.attention.call import Settings, Tokens, without_padding
from rope_jax.attention.decode import Turn, turn_of
from rope_jax.decoder.cache import Cache, write_keys, write_values
from rope_jax.scheme import Scheme, without_rotation

Schemes = Scheme | Mapping[str, Scheme]
Turns = Turn | Mapping[str, Turn]  # of all cached keys; one for each scheme


def each_scheme(change: Callable[[Scheme], Scheme], schemes: Schemes) -> Schemes:
    """Returns one scheme changed, or each of several."""
    if isinstance(schemes, Scheme):
        return change(schemes)
    return {name: change(scheme) for name, scheme in schemes.items()}


def turns_of(scheme: Schemes, positions: Int[Array, "batch slots"]) -> Turns:
    """Returns cos and sin at the positions of a cache's slots, which all layers of one scheme share."""
    if isinstance(scheme, Mapping):
        return {name: turn_of(one, positions) for name, one in scheme.items()}
    return turn_of(scheme, positions)


def append_turns(turns: Turns, scheme: Schemes, positions: Int[Array, "batch tokens"], at: Array) -> Turns:
    """Returns the turns with those of new tokens in the slots from `at` on; nothing else is worked out again."""
    new = turns_of(scheme, positions)
    return jax.tree.map(lambda store, x: jax.lax.dynamic_update_slice(store, x, (0, 0, at)), turns, new)


def attend(
    q: Float[Array, "batch tokens heads dim"],
    k: Float[Array, "batch tokens kv_heads dim"],
    v: Float[Array, "batch tokens kv_heads dim"],
    scheme: Scheme,
    tokens: Tokens,
    cache: Cache,
    layer: int,
    settings: Settings,
    *,
    turn: Turn | None,
    fresh: bool,
) -> tuple[Float[Array, "batch tokens heads dim"], tuple[Array, Array]]:
    """Returns what new tokens make of themselves and all that the cache holds, and the layer's keys and values.

    Args:
      q: new queries, unrotated.
      k: new keys, unrotated.
      v: new values.
      scheme: of this layer.
      tokens: where the new tokens stand.
      cache: with the new tokens' positions in it already.
      layer: which of its keys and values to use.
      settings: how logits are made, from `checked`.
      turn: cos and sin at every slot of an unrotated cache; made here if it is needed and None.
      fresh: whether the cache held nothing before, so that there is nothing to read from it.
    """
    k, v = without_padding(k, tokens), without_padding(v, tokens)
    rotated = cache.cached == "rotated"
    new = scheme.rotate(k, tokens.positions) if rotated else k
    keys = write_keys(cache.keys[layer], new, cache.filled)
    values = write_values(cache.values[layer], v, cache.filled)
    slots = Tokens(cache.positions, cache.segments)
    if q.shape[1] <= decode.QUERIES:
        if not rotated and turn is None:
            turn = turn_of(scheme, cache.positions)
        turn = None if rotated else turn
        out, _ = decode.over_cache(q, keys, values, scheme, None, tokens, slots, settings, turn=turn)
        return out, (keys, values)
    if fresh:
        slots, from_slots = tokens, (k, v)
    else:
        from_slots = jnp.moveaxis(keys, 3, 1).astype(q.dtype), jnp.moveaxis(values, 2, 1).astype(q.dtype)
        if rotated:
            q, scheme = scheme.rotate(q, tokens.positions), without_rotation(scheme)
    return outputs(q, *from_slots, scheme, None, tokens, slots, settings), (keys, values)
