"""From one scheme to another in the middle of a sequence: by turning the cache, or by reading the tokens again.

What a token's key and value are made of depends on the scheme in every layer but the first: the hidden states below
were attended to under it. Turning the cached keys is therefore exact in the first layer and stale in the others;
`reprefill` is exact everywhere and costs a whole prompt; `migration_gap` says what the difference is on given tokens.
On 4 random layers, width 64, 48 tokens, from no scaling to YaRN of factor 4, keys of the second layer are 0.77 of their
size off and the next logits 0.34 of theirs; `pytest -s tests/decoder/test_migration.py -k gap` prints the figures.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Integer

from rope_jax import rotation
from rope_jax.decoder.cache import Cache, Cached
from rope_jax.decoder.cached_attention import Schemes
from rope_jax.decoder.config import DecoderConfig
from rope_jax.decoder.decoder import Decoder
from rope_jax.integers import as_int32
from rope_jax.scheme import Scheme


def migrate(cache: Cache, old: Schemes, new: Schemes, config: DecoderConfig) -> Cache:
    r"""Returns a cache that `new` can go on with; exact for the first layer, stale for the others.

    .. math:: R'_p R_p^{-1} k = \frac{a'}{a}\, R(p(\theta' - \theta))\, k

    Rotated keys turn once, by the difference of the angles and the ratio of the cos/sin factors, with one rounding to
    the cache's dtype. Unrotated keys serve any scheme as they are.

    Args:
      cache: keys turned by `old`, or unrotated ones.
      old: the scheme, or those of the layer types, that turned them.
      new: what is to come.
      config: of the decoder, for its layer types.

    Raises:
      ValueError: if the schemes pair dimensions differently.
    """
    if cache.cached == "unrotated":
        return cache
    keys = []
    for layer, store in enumerate(cache.keys):
        name = config.layer_types[layer]
        before, after = (x if isinstance(x, Scheme) else x[name] for x in (old, new))
        cos, sin = _difference(before, after, cache.positions)
        layout = (after if after.rotary_dim else before).layout
        turned = rotation.rotate(jnp.moveaxis(store, 3, 1), cos, sin, layout=layout)
        keys.append(jnp.moveaxis(turned, 1, 3))
    return dataclasses.replace(cache, keys=tuple(keys))


def _difference(
    old: Scheme, new: Scheme, positions: Int[Array, "batch slots"]
) -> tuple[Float32[Array, "batch slots pairs"], Float32[Array, "batch slots pairs"]]:
    """Returns cos and sin of the angle from one scheme to the other, times the ratio of their factors."""
    pairs = {scheme.rotary_dim // 2 for scheme in (old, new)} - {0}
    if len(pairs) > 1 or (pairs and old.rotary_dim and new.rotary_dim and old.layout != new.layout):
        raise ValueError(
            f"schemes of {old.rotary_dim} {old.layout} and {new.rotary_dim} {new.layout} rotary dimensions pair keys "
            "differently"
        )
    count = max(pairs, default=0)

    def unit(scheme: Scheme):
        """Returns cos and sin without their factor, and the factor."""
        if scheme.rotary_dim == 0:
            still = jnp.ones((*positions.shape, count), jnp.float32)
            return still, jnp.zeros_like(still), jnp.float32(1).reshape(1, 1, 1)
        one = jnp.ones_like(scheme.cos_sin_factor)
        cos, sin = dataclasses.replace(scheme, cos_sin_factor=one).cos_sin(positions)
        return cos, sin, scheme.cos_sin_factor.reshape(-1, 1, 1)

    c, s, a = unit(old)
    d, t, b = unit(new)
    return (d * c + t * s) * (b / a), (t * c - d * s) * (b / a)


def reprefill(
    decoder: Decoder,
    cache: Cache,
    tokens: Integer[Array | np.ndarray, "batch tokens"],
    scheme: Schemes,
    *,
    cached: Cached | None = None,
    dtype=jnp.float32,
) -> Cache:
    """Returns the cache that the tokens give under `scheme` from the start: exact in every layer.

    Args:
      decoder: the model.
      cache: one of the same tokens under another scheme, for capacity, positions and segments.
      tokens: those in the cache, slot by slot; any value where a slot is empty.
      scheme: the one to go on with.
      cached: whether to hold "rotated" or "unrotated" keys; as `cache` does where None.
      dtype: of the activations.

    Raises:
      ValueError: if the cache has room for fewer tokens.
    """
    count = tokens.shape[1]
    _, fresh = decoder.prefill(
        tokens,
        scheme,
        capacity=cache.capacity,
        positions=cache.positions[:, :count],
        segments=cache.segments[:, :count],
        cached=cache.cached if cached is None else cached,
        dtype=dtype,
    )
    return fresh


def migration_gap(
    decoder: Decoder, tokens: Integer[Array | np.ndarray, "batch tokens"], old: Schemes, new: Schemes
) -> dict[str, Float32[Array, "..."]]:
    """Returns how far a cache migrated from `old` to `new` is from one that `new` made, before the last token.

    Args:
      decoder: the model.
      tokens: token ids; the last one is the next step, the others are cached.
      old: the scheme that the tokens were read under.
      new: the scheme of the next step.

    Returns:
      "keys" and "values", one a layer: root mean square of the difference over that of the exact ones; "logits" the
      same of the next step's, and "largest" the largest difference of a logit. Keys and values of the first layer are
      0 but for rounding.
    """
    tokens = as_int32("tokens", tokens)
    before, last = tokens[:, :-1], tokens[:, -1:]
    count = before.shape[1]

    def read(scheme: Schemes) -> Cache:
        return decoder.prefill(before, scheme, capacity=count + 1, cached="rotated")[1]

    stale, exact = migrate(read(old), old, new, decoder.config), read(new)

    def apart(x: Array, y: Array) -> Float32[Array, ""]:
        return jnp.sqrt(jnp.mean((x - y) ** 2) / jnp.mean(y**2))

    position = jnp.full(last.shape, count, jnp.int32)
    moved, right = (decoder.extend(cache, last, new, positions=position)[0] for cache in (stale, exact))
    return {
        "keys": jnp.stack([apart(x, y) for x, y in zip(stale.keys, exact.keys, strict=True)]),
        "values": jnp.stack([apart(x, y) for x, y in zip(stale.values, exact.values, strict=True)]),
        "logits": apart(moved, right),
        "largest": jnp.abs(moved - right).max(),
    }
