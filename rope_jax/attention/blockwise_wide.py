"""The forward pass of blockwise attention with all heads in a tile: on GPUs, and wherever else is no CPU.

Rows first meet, in the general form, the tile of keys that is nearest to them and every one with a mask or a bias of
its own. The largest logit so far is then a reference against which the rest, as far as a bound shows that nothing can
overflow, is summed without a maximum: a plain pair of tiles is read once. What is left goes the general way again.

Axes as in `wide_tiles`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from rope_jax import rotation
from rope_jax.attention.call import NOTHING, Settings, Tokens
from rope_jax.attention.logits import capped
from rope_jax.attention.online_softmax import MARGIN, margin_of
from rope_jax.attention.operands import ROUNDING, Operands
from rope_jax.attention.wide_loops import over_pairs
from rope_jax.attention.wide_tiles import Call, by_token, slots, with_slots

LOGITS = 2**23  # of a tile, over all heads


class Sums(NamedTuple):
    """What all rows have gathered."""

    reference: Array  # [B, K, G, N], nats
    weight: Array  # [B, K, G, N], sum of exp(logit - reference)
    mixed: Array  # [B, N, K, G, e], the same sum over values


def forward(
    operands: Operands, queries: Tokens, keys: Tokens, settings: Settings, layout: rotation.Layout
) -> tuple[
    Float32[Array, "batch queries heads v_dim"],
    Float32[Array, "batch queries heads"],
    Float32[Array, "batch queries heads"],
]:
    """Returns outputs, log-sum-exps, and what weights taken from these must be multiplied by."""
    batch, tokens, heads, _ = operands.q.shape
    call = Call.of(operands, queries, keys, settings, layout, logits=LOGITS)
    sums = _all_pairs(call)
    some = sums.weight > 0
    weight = jnp.where(some, sums.weight, 1.0)
    lse = jnp.where(some, sums.reference + jnp.log(weight), NOTHING)
    above = jnp.minimum(lse - sums.reference, 2 * MARGIN)  # at most e^MARGIN for each of fewer keys than e^MARGIN
    correction = jnp.where(some, jnp.exp(above) / weight, 1.0)
    weight, lse, correction = (jnp.moveaxis(x, 3, 1) for x in (weight, lse, correction))
    results = sums.mixed / weight[..., None], lse, correction
    out, lse, correction = (x.reshape(batch, -1, heads, *x.shape[4:])[:, :tokens] for x in results)
    return out, lse, correction


def _all_pairs(call: Call) -> Sums:
    """Returns the sums of all rows after every pair of tiles that can matter."""
    shape = (*call.heads, call.q.shape[1])
    reference = jnp.broadcast_to(call.sinks[..., None], shape)
    start = Sums(
        reference,
        jnp.where(reference > NOTHING, 1.0, 0.0),
        call.zeros(*call.q.shape[:4], call.v.shape[-1]),
    )
    sees = call.pairs.sees
    if call.tiles == (1, 1):
        return _general(call, jnp.int32(0), jnp.int32(0), jnp.bool_(True), start)
    bounds, v_sizes = call.bounds(call.key_norms()), call.value_sizes()
    # A sequence that sees nothing of a tile takes no part in it, and may be left out of a plain pair.
    plain = (call.pairs.plain | ~sees).all(axis=0)
    distance = jnp.where(sees, call.pairs.nearest, jnp.iinfo(jnp.int32).max).min(axis=0)
    nearest = jnp.arange(call.tiles[1])[None] == jnp.argmin(distance, axis=1)[:, None]

    def turn(number: Array, state: tuple[Array, Sums]) -> tuple[Array, Sums]:
        left, sums = state
        now = left & (~plain | nearest | (number > 0))
        sums = over_pairs(lambda *pair: _general(call, *pair), now, sums)
        left &= ~now
        if call.settings.skip_tiles:
            left &= ~_void(call, bounds, v_sizes, sums)
        steady = left & _steady(call, bounds, v_sizes, sums)
        sums = over_pairs(lambda *pair: _plain(call, *pair), steady, sums)
        return left & ~steady, sums

    return jax.lax.fori_loop(0, 2, turn, (sees.any(axis=0), start))[1]


def _general(call: Call, i: Array, j: Array, valid: Array, sums: Sums) -> Sums:
    """Returns the sums after any pair of tiles, mask and bias written out."""
    before = slots(sums.reference, i, call.rows, 3)
    mask = call.mask(i, j) & valid
    s = jnp.where(mask, _capped(call, i, j) + call.bias(i, j), NOTHING)
    reference = jnp.maximum(before, s.max(axis=-1))
    p = jnp.where(mask, jnp.exp(s - reference[..., None]), 0.0)
    sums = sums._replace(reference=with_slots(sums.reference, reference, i, call.rows, 3))
    return _add(call, i, j, p, jnp.exp(before - reference), sums)


def _plain(call: Call, i: Array, j: Array, valid: Array, sums: Sums) -> Sums:
    """Returns the sums after a plain pair of tiles, whose logits are known not to overflow."""
    reference = slots(sums.reference, i, call.rows, 3)
    shift, of_column = call.plain_bias(call.row_parts(i) - reference[None], i, j, valid)
    p = jnp.exp(_capped(call, i, j) + of_column[..., None, :] + shift[..., None])
    return _add(call, i, j, p, jnp.ones_like(reference), sums)


def _capped(call: Call, i: Array, j: Array) -> Float32[Array, "batch kv_heads groups rows keys"]:
    return capped(call.logits(call.query_tile(i), call.key_tile(j)), call.settings.soft_cap)[0]


def _add(call: Call, i: Array, j: Array, p: Array, kept: Array, sums: Sums) -> Sums:
    """Returns the sums with the weights `p` of a pair of tiles added to what is `kept` of those before."""
    weights = p.astype(call.dtype).reshape(*call.heads[:2], -1, call.columns)
    mixed = jnp.einsum("bkrc,bkce->bkre", weights, call.value_tile(j), preferred_element_type=jnp.float32)
    before = slots(sums.mixed, i, call.rows) * jnp.moveaxis(kept, 3, 1)[..., None]
    weight = slots(sums.weight, i, call.rows, 3) * kept + p.sum(axis=-1)
    return sums._replace(
        weight=with_slots(sums.weight, weight, i, call.rows, 3),
        mixed=with_slots(sums.mixed, before + by_token(mixed, call.rows), i, call.rows),
    )


def _steady(call: Call, bounds: Array, v_sizes: Array, sums: Sums) -> Bool[Array, "q_tiles k_tiles"]:
    """Returns which pairs of tiles are plain and may be summed against the references that there are."""
    margin = margin_of(call.k.shape[1], v_sizes.max(axis=-1))[:, :, None, None, None]
    low = bounds - call.lowest(sums.reference)[..., None] <= margin
    return (low.all(axis=(1, 2)) & call.pairs.plain | ~call.pairs.sees).all(axis=0)


def _void(call: Call, bounds: Array, v_sizes: Array, sums: Sums) -> Bool[Array, "q_tiles k_tiles"]:
    """Returns which pairs of tiles, even all of them together, would be lost to rounding in every head.

    All keys at the bound of such a pair vanish beside each row's own sum, and times the tile's largest value beside
    each row's own output.
    """
    lse = jnp.where(sums.weight > 0, sums.reference + jnp.log(sums.weight), NOTHING)
    of_output = sums.reference + jnp.log(jnp.moveaxis(jnp.abs(sums.mixed).max(axis=-1), 1, 3))
    excess = bounds + jnp.log(call.k.shape[1] / ROUNDING)
    lost = excess <= call.lowest(lse)[..., None]
    lost &= excess + jnp.log(v_sizes)[:, :, None, None, :] <= call.lowest(of_output)[..., None]
    return (lost.all(axis=(1, 2)) | ~call.pairs.sees).all(axis=0)
