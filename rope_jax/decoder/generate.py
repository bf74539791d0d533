"""Text generation with a cache of unrotated keys, under a fixed scheme or one that follows the sequence's length."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from rope_jax.decoder.cache import EMPTY, empty_cache
from rope_jax.decoder.decoder import Decoder, Schemes
from rope_jax.errors import InputError
from rope_jax.scheme import Scheme

SchemesAt = Callable[[Int[Array, " batch"]], Schemes]


def generate(
    decoder: Decoder,
    scheme: Schemes | SchemesAt,
    prompt: Int[Array, "batch tokens"],
    *,
    max_new_tokens: int,
    lengths: Int[Array, " batch"] | None = None,
    temperature: float = 0.0,
    key: Array | None = None,
    dtype=jnp.float32,
) -> Int[Array, "batch new_tokens"]:
    """Returns `max_new_tokens` tokens after each prompt.

    Args:
      decoder: the model.
      scheme: a scheme (or one a layer type), or a function from each sequence's current length to them, as
        `scheme.per_length` makes: every step then scores all cached keys under the frequencies of that length.
      prompt: token ids, right-padded where `lengths` are shorter.
      max_new_tokens: tokens to make for every sequence.
      lengths: tokens of each prompt that count; all of them where None.
      temperature: 0 takes the likeliest token.
      key: a PRNG key, needed above temperature 0.
      dtype: of activations and cache.

    Raises:
      InputError: if a length or the temperature is out of range, or the key is missing.
    """
    batch, width = prompt.shape
    if width < 1 or max_new_tokens < 1:
        raise InputError(f"generate needs a prompt and max_new_tokens >= 1, got {width} tokens and {max_new_tokens}")
    if temperature < 0 or (temperature > 0 and key is None):
        raise InputError(f"temperature must be >= 0, and above 0 needs a key; got {temperature}")
    known = np.full((batch,), width) if lengths is None else np.asarray(lengths)
    if known.shape != (batch,) or known.min() < 1 or known.max() > width:
        raise InputError(f"lengths must be one a prompt, from 1 to {width}, got {known.tolist()}")
    graph, state = nnx.split(decoder)
    fixed: Schemes | None = None
    scheme_at: SchemesAt | None = None
    if isinstance(scheme, Scheme):
        fixed = scheme
    elif isinstance(scheme, Mapping):
        fixed = dict(scheme)
    else:
        scheme_at = scheme
    return _run(
        state,
        fixed,
        jnp.asarray(prompt, jnp.int32),
        jnp.asarray(known, jnp.int32),
        jax.random.key(0) if key is None else key,
        jnp.float32(temperature),
        graph=graph,
        scheme_at=scheme_at,
        max_new_tokens=max_new_tokens,
        greedy=temperature == 0,
        dtype=dtype,
    )


# A scheme is an argument here, so that another one runs in the same compiled program; a function of the length is part
# of the program, which is kept as long as the same function is passed.
@functools.partial(jax.jit, static_argnames=("graph", "scheme_at", "max_new_tokens", "greedy", "dtype"))
def _run(state, scheme, prompt, lengths, key, temperature, *, graph, scheme_at, max_new_tokens, greedy, dtype):
    model = nnx.merge(graph, state)
    scheme_at = (lambda _: scheme) if scheme_at is None else scheme_at
    batch, width = prompt.shape

    def choose(logits: Float[Array, "batch vocab"], key: Array) -> Int[Array, " batch"]:
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.random.categorical(key, logits / temperature, axis=-1).astype(jnp.int32)

    cache = empty_cache(model.config, batch=batch, capacity=width + max_new_tokens, dtype=dtype)
    positions = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None], prompt.shape)
    segments = jnp.where(positions < lengths[:, None], 0, EMPTY)
    logits, cache = model.extend(cache, prompt, scheme_at(lengths), positions=positions, segments=segments, dtype=dtype)
    last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]
    first_key, key = jax.random.split(key)

    def step(carry, key):
        cache, token, lengths = carry
        logits, cache = model.extend(
            cache, token[:, None], scheme_at(lengths + 1), positions=lengths[:, None], dtype=dtype
        )
        chosen = choose(logits[:, 0], key)
        return (cache, chosen, lengths + 1), chosen

    first = choose(last, first_key)
    _, rest = jax.lax.scan(step, (cache, first, lengths), jax.random.split(key, max_new_tokens - 1))
    return jnp.concatenate([first[:, None], jnp.moveaxis(rest, 0, 1)], axis=1)
