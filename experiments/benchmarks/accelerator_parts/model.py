"""Tokens a second of a whole decoder in bfloat16: a prompt read, tokens made, and a training step."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax_contenders import scheme_of

from accelerator_parts import on_jax
from accelerator_parts.jobs import Found, Job
from accelerator_parts.on_jax import card, check
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.scheme import Scheme

__all__ = ["card", "check", "jobs"]

_STEPS = 16  # tokens made at once, after one that is timed apart
Work = tuple[Callable[..., Any], tuple[Any, ...], int]  # a function, its arguments, and the tokens of a call


def jobs(*, quick: bool) -> Iterator[Job]:
    """Yields a job for each kind of work, length and bias, in order of worth."""
    config = _config(quick)
    for tokens in (256,) if quick else (8192, 16384, 32768):
        for bias in ("alibi",) if quick else ("none", "alibi", "t5"):
            first = _serving(config, tokens, bias)
            for name, work, by in (
                ("train step", _train, first),
                ("prefill", _prefill, first),
                ("decode", _decode, "decode"),
            ):
                case: dict[str, str | int] = {"work": name, "tokens": tokens, "bias": bias}
                yield Job(case, f"automatic: {by}", functools.partial(_speed, work, config, tokens, bias))


def _serving(config: DecoderConfig, tokens: int, bias: str) -> str:
    """Returns the name of the implementation that a layer's attention over a whole row is given to."""
    shapes = [(1, tokens, heads, config.head_dim) for heads in (config.num_heads, config.num_kv_heads)]
    q, k = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    return on_jax.serving(q, k, k, bias)


def _config(quick: bool) -> DecoderConfig:
    """Returns a decoder of some 100 million parameters, with four query heads to a key head."""
    hidden, layers, heads = (64, 1, 4) if quick else (1024, 8, 8)
    dim = hidden // heads if quick else 128
    return DecoderConfig(4096, hidden, 3 * hidden, layers, heads, heads // 4, dim, 1e-5, tie_embeddings=True)


@functools.lru_cache(maxsize=1)
def _model(config: DecoderConfig) -> tuple[Any, Any]:
    """Returns a decoder's structure, and random float32 weights."""
    return nnx.split(Decoder(config, rngs=nnx.Rngs(0)))


def _scheme(config: DecoderConfig, bias: str) -> Scheme:
    heads = config.num_heads
    return scheme_of(bias, on_jax.parameter_of(bias, heads), heads=heads, dim=config.head_dim, rotation=True)


def _given(config: DecoderConfig, tokens: int, bias: str, *, weights_dtype) -> tuple[Any, Any, Scheme, jax.Array]:
    graph, weights = _model(config)
    weights = jax.tree.map(lambda x: x.astype(weights_dtype), weights)
    return (
        graph,
        weights,
        _scheme(config, bias),
        jax.random.randint(jax.random.key(0), (1, tokens), 0, config.vocab_size),
    )


def _prefill(config: DecoderConfig, tokens: int, bias: str) -> Work:
    graph, weights, scheme, prompt = _given(config, tokens, bias, weights_dtype=jnp.bfloat16)

    def read(weights, scheme, prompt):
        model = nnx.merge(graph, weights)
        hidden, cache = model.prefill(prompt, scheme, capacity=tokens, cached="rotated", dtype=jnp.bfloat16)
        return model.unembed(hidden[:, -1:]), cache

    return read, (weights, scheme, prompt), tokens


def _decode(config: DecoderConfig, tokens: int, bias: str) -> Work:
    graph, weights, scheme, prompt = _given(config, tokens, bias, weights_dtype=jnp.bfloat16)

    def read(weights, scheme, prompt):
        capacity = tokens + -(-_STEPS // 64) * 64  # whole tiles of the kernel that reads a cache
        model = nnx.merge(graph, weights)
        return model.prefill(prompt, scheme, capacity=capacity, cached="rotated", dtype=jnp.bfloat16)[1]

    def make(weights, scheme, cache, last):
        model = nnx.merge(graph, weights)

        def step(carry, at):
            cache, last = carry
            logits, cache = model.extend(cache, last, scheme, positions=at[None, None], dtype=jnp.bfloat16)
            last = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            return (cache, last), last

        return jax.lax.scan(step, (cache, last), tokens + jnp.arange(_STEPS, dtype=jnp.int32))[1]

    cache = jax.jit(read)(weights, scheme, prompt)
    return make, (weights, scheme, cache, prompt[:, -1:]), _STEPS


def _train(config: DecoderConfig, tokens: int, bias: str) -> Work:
    graph, weights, scheme, rows = _given(config, tokens, bias, weights_dtype=jnp.float32)
    optimiser = optax.adamw(1e-4)

    def loss(weights, scheme, rows):
        logits = nnx.merge(graph, weights)(rows, scheme, dtype=jnp.bfloat16)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], rows[:, 1:]).mean()

    def step(weights, moments, scheme, rows):
        gradients = jax.grad(loss)(weights, scheme, rows)
        updates, moments = optimiser.update(gradients, moments, weights)
        return optax.apply_updates(weights, updates), moments

    return step, (weights, optimiser.init(weights), scheme, rows), tokens


def _speed(work: Callable[..., Work], config: DecoderConfig, tokens: int, bias: str) -> Iterator[Found]:
    function, arguments, count = work(config, tokens, bias)
    program = on_jax.compiled(function, arguments)
    time = on_jax.milliseconds(program, [arguments])
    yield Found("time", time, "ms")
    yield Found("speed", 1e3 * count / time, "tokens/s")
    yield on_jax.beside(program)
