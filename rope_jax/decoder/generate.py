"""Text generation from a cache, under a fixed scheme or one that follows the sequence's length."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Integer

from rope_jax.attention.machine import hopper_lacks
from rope_jax.attention.mosaic_gpu_decode import COLUMNS
from rope_jax.decoder.arguments import check_count, check_dtype, check_ids, check_sampling
from rope_jax.decoder.cache import EMPTY, Cache, Cached, empty_cache
from rope_jax.decoder.cached_attention import Schemes, append_turns, turns_of
from rope_jax.decoder.decoder import Decoder
from rope_jax.errors import InputError
from rope_jax.integers import as_int32
from rope_jax.scheme import Scheme

SchemesAt = Callable[[Int[Array, " batch"]], Schemes]


def generate(
    decoder: Decoder,
    scheme: Schemes | SchemesAt,
    prompt: Integer[Array | np.ndarray, "batch tokens"],
    *,
    max_new_tokens: int,
    lengths: Integer[Array | np.ndarray, " batch"] | None = None,
    temperature: float = 0.0,
    key: Array | None = None,
    cached: Cached | None = None,
    chunk: int | None = None,
    dtype=jnp.float32,
) -> Int[Array, "batch new_tokens"]:
    """Returns `max_new_tokens` tokens after each prompt.

    Args:
      decoder: the model.
      scheme: a scheme (or one a layer type), or a function from each sequence's current length to them, as
        `scheme.per_length` makes: every step then scores all cached keys under the frequencies of that length. Other
        libraries, transformers among them, keep each cached key as the frequencies of its own step rotated it: under
        such a rule their cached output differs from this one. The program is kept as long as the same function is
        passed, so make it once.
      prompt: token ids, right-padded where `lengths` are shorter; what stands in the padding does not matter.
      max_new_tokens: tokens to make for every sequence.
      lengths: tokens of each prompt that count; all of them where None.
      temperature: 0 takes the likeliest token.
      key: a PRNG key, needed above temperature 0.
      cached: whether the cache holds "rotated" or "unrotated" keys; rotated ones for a fixed scheme where None, which
        are the quickest to read. A scheme that follows the length needs unrotated ones.
      chunk: tokens of the prompts that are worked on at once; all where None. Bounds the memory of a long prompt.
      dtype: of activations and cache.

    Raises:
      TypeError: if ids or lengths are not integers.
      InputError: if a known id is outside of the vocabulary, a length, a count or the temperature is out of range, the
        key is missing, or a scheme by length is asked to cache rotated keys.
    """
    prompt = as_int32("prompt", prompt)
    if prompt.ndim != 2 or 0 in prompt.shape:
        raise InputError(f"prompt must be of shape [batch, tokens], with a token at least, got {prompt.shape}")
    batch, width = prompt.shape
    check_count("max_new_tokens", max_new_tokens)
    check_sampling(temperature, key)
    check_dtype(dtype)
    known = np.full((batch,), width, np.int32) if lengths is None else np.asarray(as_int32("lengths", lengths))
    if known.shape != (batch,) or known.min() < 1 or known.max() > width:
        raise InputError(f"lengths must be one a prompt, from 1 to {width}, got {known.tolist()}")
    check_ids("prompt", prompt, decoder.config.vocab_size, counts=jnp.arange(width)[None] < known[:, None])
    if chunk is not None:
        check_count("chunk", chunk)
    fixed, scheme_at = _fixed_or_not(scheme)
    cached = ("unrotated" if fixed is None else "rotated") if cached is None else cached
    if cached not in ("rotated", "unrotated") or (cached == "rotated" and fixed is None):
        raise InputError(
            f"a scheme by length needs cached='unrotated', a fixed one takes 'rotated' too; got {cached!r}"
        )
    graph, state = nnx.split(decoder)
    return _run(
        state,
        fixed,
        prompt,
        jnp.asarray(known),
        jax.random.key(0) if key is None else key,
        jnp.float32(temperature),
        graph=graph,
        scheme_at=scheme_at,
        max_new_tokens=max_new_tokens,
        greedy=temperature == 0,
        cached=cached,
        chunk=None if chunk is None or chunk >= width else chunk,
        dtype=dtype,
    )


def continue_from(
    decoder: Decoder,
    scheme: Schemes | SchemesAt,
    cache: Cache,
    tokens: Integer[Array | np.ndarray, " batch"],
    lengths: Integer[Array | np.ndarray, " batch"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    key: Array | None = None,
    dtype=jnp.float32,
) -> tuple[Int[Array, "batch new_tokens"], Cache]:
    """Returns `max_new_tokens` tokens after one that the cache does not hold yet, and the cache with all but the last.

    The cache is written in place: the one passed in cannot be used again.

    Args:
      decoder: the model.
      scheme: as in `generate`.
      cache: what came before.
      tokens: the last token of each sequence.
      lengths: tokens of each sequence before that one, which is its position.
      max_new_tokens: tokens to make for every sequence; the cache needs room for as many.
      temperature: 0 takes the likeliest token.
      key: a PRNG key, needed above temperature 0.
      dtype: of the activations.

    Raises:
      TypeError: if ids or lengths are not integers.
      InputError: if the tokens do not fit, a known id is outside of the vocabulary, a number is out of range, the key
        is missing, or a scheme by length meets rotated keys.
    """
    tokens, lengths = as_int32("tokens", tokens), as_int32("lengths", lengths)
    batch = cache.positions.shape[0]
    for name, given in (("tokens", tokens), ("lengths", lengths)):
        if given.shape != (batch,):
            raise InputError(f"{name} must be one a sequence of the cache, ({batch},), got {given.shape}")
    check_ids("tokens", tokens, decoder.config.vocab_size)
    check_count("max_new_tokens", max_new_tokens)
    check_dtype(dtype)
    if int(cache.filled) + max_new_tokens > cache.capacity:
        raise InputError(
            f"{max_new_tokens} tokens do not fit into a cache of {cache.capacity} with {int(cache.filled)} in use"
        )
    check_sampling(temperature, key)
    fixed, scheme_at = _fixed_or_not(scheme)
    if fixed is None and cache.cached == "rotated":
        raise InputError("a scheme by length needs a cache of unrotated keys, got rotated ones")
    graph, state = nnx.split(decoder)
    return _continue(
        cache,
        state,
        fixed,
        tokens,
        lengths,
        jax.random.key(0) if key is None else key,
        jnp.float32(temperature),
        graph=graph,
        scheme_at=scheme_at,
        max_new_tokens=max_new_tokens,
        greedy=temperature == 0,
        dtype=dtype,
    )


def _fixed_or_not(scheme: Schemes | SchemesAt) -> tuple[Schemes | None, SchemesAt | None]:
    if isinstance(scheme, Scheme):
        return scheme, None
    if not callable(scheme) and not isinstance(scheme, Mapping):
        raise InputError(f"scheme must be a Scheme, a mapping of them, or a function of lengths, got {scheme!r}")
    return (dict(scheme), None) if isinstance(scheme, Mapping) else (None, scheme)


class _Way(NamedTuple):
    """How tokens are made; `scheme` where one serves all lengths."""

    model: Decoder
    scheme: Schemes | None
    scheme_at: SchemesAt | None
    temperature: Array
    greedy: bool
    dtype: Any

    def at(self, lengths: Int[Array, " batch"]) -> Schemes:
        if self.scheme_at is not None:
            return self.scheme_at(lengths)
        assert self.scheme is not None
        return self.scheme

    def choose(self, hidden: Float[Array, "batch dim"], key: Array) -> Int[Array, " batch"]:
        logits = self.model.unembed(hidden[:, None])[:, 0]
        if self.greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        below = logits - logits.max(axis=-1, keepdims=True)  # at any temperature the likeliest stays finite
        return jax.random.categorical(key, below / self.temperature, axis=-1).astype(jnp.int32)


# A scheme is an argument of the two programs, so that another one runs in the same; a function of the length is part of
# the program, which is kept as long as the same function is passed.
@functools.partial(
    jax.jit, static_argnames=("graph", "scheme_at", "max_new_tokens", "greedy", "cached", "chunk", "dtype")
)
def _run(
    state, scheme, prompt, lengths, key, temperature, *, graph, scheme_at, max_new_tokens, greedy, cached, chunk, dtype
):
    way = _Way(nnx.merge(graph, state), scheme, scheme_at, temperature, greedy, dtype)
    last, cache = _read(way, prompt, lengths, prompt.shape[1] + max_new_tokens, cached, chunk)
    first_key, key = jax.random.split(key)
    first = way.choose(last, first_key)
    rest, _ = _steps(way, cache, first, lengths, jax.random.split(key, max_new_tokens - 1))
    return jnp.concatenate([first[:, None], rest], axis=1)


@functools.partial(
    jax.jit, static_argnames=("graph", "scheme_at", "max_new_tokens", "greedy", "dtype"), donate_argnums=0
)
def _continue(
    cache, state, scheme, tokens, lengths, key, temperature, *, graph, scheme_at, max_new_tokens, greedy, dtype
):
    way = _Way(nnx.merge(graph, state), scheme, scheme_at, temperature, greedy, dtype)
    return _steps(way, cache, tokens, lengths, jax.random.split(key, max_new_tokens))


def _read(way: _Way, prompt, lengths, capacity: int, cached: Cached, chunk: int | None):
    """Returns the last hidden state of each prompt, and the cache with all of them."""
    batch, width = prompt.shape
    if chunk is not None:
        padding = -width % chunk
        prompt = jnp.pad(prompt, ((0, 0), (0, padding)))
        capacity += padding
    if hopper_lacks() is None:
        capacity += -capacity % COLUMNS  # whole tiles of the kernel that reads it
    positions = jnp.broadcast_to(jnp.arange(prompt.shape[1], dtype=jnp.int32)[None], prompt.shape)
    segments = jnp.where(positions < lengths[:, None], 0, EMPTY)
    last = (lengths - 1)[:, None, None]
    scheme = way.at(lengths)
    if chunk is None:
        hidden, cache = way.model.prefill(
            prompt,
            scheme,
            capacity=capacity,
            positions=positions,
            segments=segments,
            cached=cached,
            dtype=way.dtype,
        )
        return jnp.take_along_axis(hidden, last, axis=1)[:, 0], cache

    def read(carry, part):
        cache, found = carry
        tokens, positions, segments = part
        hidden, cache = way.model.advance(
            cache, tokens, scheme, positions=positions, segments=segments, dtype=way.dtype
        )
        here = jnp.clip(last - positions[:, :1, None], 0, chunk - 1)
        inside = (last[:, :, 0] >= positions[:, :1]) & (last[:, :, 0] <= positions[:, -1:])
        return (cache, jnp.where(inside, jnp.take_along_axis(hidden, here, axis=1)[:, 0], found)), None

    cache = empty_cache(way.model.config, batch=batch, capacity=capacity, dtype=way.dtype, cached=cached)
    parts = tuple(jnp.swapaxes(x.reshape(batch, -1, chunk), 0, 1) for x in (prompt, positions, segments))
    nothing = jnp.zeros((batch, way.model.config.hidden_size), way.dtype)
    (cache, found), _ = jax.lax.scan(read, (cache, nothing), parts)
    return found, cache


def _steps(way: _Way, cache: Cache, tokens, lengths, keys):
    """Returns a token for each key, and the cache with `tokens` and all that were made but the last."""
    kept = way.scheme if cache.cached == "unrotated" else None  # a scheme whose turns are worth keeping
    turns: Any = None if kept is None else turns_of(kept, cache.positions)

    def step(carry, key):
        cache, turns, tokens, lengths = carry
        positions = lengths[:, None]
        if kept is not None:
            turns = append_turns(turns, kept, positions, cache.filled)
        hidden, cache = way.model.advance(
            cache, tokens[:, None], way.at(lengths + 1), positions=positions, turns=turns, dtype=way.dtype
        )
        chosen = way.choose(hidden[:, 0], key)
        return (cache, turns, chosen, lengths + 1), chosen

    end, made = jax.lax.scan(step, (cache, turns, tokens, lengths), keys)
    return jnp.moveaxis(made, 0, 1), end[0]
