"""Calls of attention to test with: random inputs under every bias, order of positions and kind of segments, by name."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from float64_oracle import Problem

from rope_jax import biases, frequencies, scaling
from rope_jax.attention.call import Settings, Tokens
from rope_jax.scheme import Scheme, build, stack

DIM = 8
REACH = 24  # offsets that a strip tells apart


def scheme_of(bias: str, heads: int, *, max_offset=REACH, rotary_dim=DIM, layout="half", seed=0) -> Scheme:
    """Returns a scheme by the name of its bias, with every factor away from 1."""
    rng = np.random.default_rng(seed)
    rotary = None
    if rotary_dim:
        rotary = scaling.yarn(factor=4.0, original_length=256)(
            frequencies.rotary(rotary_dim, base=194.0, original_length=256)
        )
    made = {
        "none": lambda: None,
        "alibi": lambda: biases.alibi_paper(heads),
        "negative": lambda: biases.Alibi(jnp.linspace(-0.1, -0.01, heads)),
        "learned": lambda: biases.Alibi(jnp.resize(jnp.asarray([0.3, -0.03, 0.0, 2.0]), (heads,))),
        "t5": lambda: biases.t5_bias(rng.standard_normal((heads, 8)), max_distance=REACH),
        "t5 both ways": lambda: biases.t5_bias(
            rng.standard_normal((heads, 12)), max_distance=REACH, bidirectional=True
        ),
        "kerple": lambda: biases.KerpleLogarithmic(jnp.full(heads, 0.7), jnp.full(heads, 0.3)),
        "per offset": lambda: biases.PerOffset(jnp.asarray(rng.standard_normal((heads, 20)), jnp.float32)),
        "line and strip": lambda: None,
    }[bias]()
    scheme = build(rotary, made, num_heads=heads, head_dim=DIM, layout=layout, max_offset=max_offset)
    changes = {"logit_scale": 1.3 * scheme.logit_scale, "cos_sin_factor": 0.9 * scheme.cos_sin_factor}
    if bias == "line and strip":
        strip = jnp.asarray(rng.standard_normal((heads, 2 * max_offset + 1)), jnp.float32)
        changes |= {"slopes": jnp.linspace(0.2, -0.01, heads), "offset_bias": strip}
    return dataclasses.replace(scheme, **changes)


def positions_of(kind: str | int, batch: int, tokens: int, keys: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions of queries and keys; where the keys are counted, the queries are the last of them.

    A number is where counting begins.
    """
    last = np.tile(np.arange(keys - tokens, keys), (batch, 1))
    if kind == "counted":
        return last, np.tile(np.arange(keys), (batch, 1))
    if kind == "far away":  # a different start for each sequence
        start = 100_000 * (1 + np.arange(batch))[:, None]
        return start + last, start + np.arange(keys)
    if isinstance(kind, int):
        return kind + last, kind + np.tile(np.arange(keys), (batch, 1))
    if kind == "scattered":
        return rng.integers(0, 900, (batch, tokens)), rng.integers(0, 900, (batch, keys))
    if kind in ("permuted", "some permuted"):
        keys_in_order = np.stack([rng.permutation(keys) for _ in range(batch)])
        if kind == "some permuted":
            keys_in_order[0] = np.arange(keys)
        return keys_in_order[:, :tokens] if tokens <= keys else rng.permuted(last, axis=1), keys_in_order
    assert kind == "restarting"  # two documents in one row
    again = lambda count: np.tile(np.r_[np.arange(count - count // 3), np.arange(count // 3)], (batch, 1))  # noqa: E731
    return again(tokens), again(keys)


def segments_of(kind: str, batch: int, tokens: int, keys: int) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    if kind == "absent":
        return None, None
    of_queries, of_keys = np.zeros((batch, tokens), int), np.zeros((batch, keys), int)
    if kind == "packed":
        of_queries[:, tokens - tokens // 3 :], of_keys[:, keys - keys // 3 :] = 5, 5
    elif kind == "ragged":  # each sequence of its own length, and a hole
        for row in range(batch):
            of_queries[row, tokens - 11 - 40 * row :] = of_keys[row, keys - 11 - 40 * row :] = -1
        of_queries[0, 3:7] = of_keys[0, 3:7] = -1
    elif kind == "strangers":  # rows with nothing to attend to, and a whole sequence of them
        of_queries[0, : tokens // 2], of_queries[0, tokens // 4] = 3, 0
        of_queries[1:], of_keys[1:] = 1, 2
        of_keys[0, :9] = 8  # seen by nobody
    else:
        assert kind == "one"
    return of_queries, of_keys


@functools.cache
def problem_of(
    *,
    batch=2,
    tokens=200,
    keys=None,
    heads=4,
    kv_heads=2,
    v_dim=DIM,
    bias="t5",
    max_offset=REACH,
    rotary_dim=DIM,
    layout="half",
    each=False,
    positions="counted",
    segments="one",
    sinks=False,
    dtype="float32",
    seed=0,
    causal=True,
    window=None,
    soft_cap=None,
    skip_tiles=True,
) -> Problem:
    """Returns random inputs of a call; equal arguments give the same object."""
    rng = np.random.default_rng(seed)
    keys = tokens if keys is None else keys
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
    make = lambda seed, bias: scheme_of(  # noqa: E731
        bias, heads, max_offset=max_offset, rotary_dim=rotary_dim, layout=layout, seed=seed
    )
    q, k, v = draw(batch, tokens, heads, DIM), draw(batch, keys, kv_heads, DIM), draw(batch, keys, kv_heads, v_dim)
    tokens_of = lambda where, which: Tokens(  # noqa: E731
        jnp.asarray(where, jnp.int32), None if which is None else jnp.asarray(which, jnp.int32)
    )
    sides = zip(positions_of(positions, batch, tokens, keys, rng), segments_of(segments, batch, tokens, keys))  # noqa: B905
    queries, kept = (tokens_of(*side) for side in sides)
    return Problem(
        q,
        k,
        v,
        stack([make(row, bias if row == 0 else "line and strip") for row in range(batch)]) if each else make(0, bias),
        jnp.linspace(-1.0, 2.0, heads) if sinks else None,
        queries,
        kept,
        Settings(1 / np.sqrt(DIM).item(), causal, window, soft_cap, skip_tiles),
        np.asarray(rng.standard_normal((batch, tokens, heads, v_dim)), np.float32),
        np.asarray(rng.standard_normal((batch, tokens, heads)), np.float32),
    )
