"""Calls of attention drawn at random: shapes on both sides of every size at which a plan changes, positions anywhere.

A *structure* is what a compiled program depends on, and a *call* is one filling of it with numbers, so that many calls
share a program.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from float64_oracle import Problem

from rope_jax import frequencies
from rope_jax.attention.call import Settings, Tokens
from rope_jax.scheme import build, stack


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers of queries and of keys to draw from, and how a plan cuts them.

    Attributes:
      rows: `ROWS` of the plan, queries and heads of a tile.
      columns: `COLUMNS`, keys of a tile.
      least_blocks: `LEAST_BLOCKS`, below which tiles of queries go on alone.
      queries: of which one or another is drawn, give or take one or a few.
      keys: the same.
      groups: query heads to a key head.
    """

    rows: int
    columns: int
    least_blocks: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    groups: tuple[int, ...]


SMALL = Sizes(64, 32, 2, (1, 8, 64, 128, 192, 256, 320), (1, 8, 24, 32, 64, 96, 200), (1, 1, 2, 3, 8))
FEW = Sizes(64, 32, 2, (1, 3, 8, 11), (1, 32, 128, 256, 300), (1, 2, 8))  # for decoding, in chunks of 128 keys
FULL = Sizes(512, 512, 8, (512, 1024, 1088), (8, 64, 512, 1024), (8, 8, 16))


@dataclasses.dataclass(frozen=True)
class Structure:
    """What a compiled program depends on."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    dim: int
    v_dim: int
    rotary_dim: int
    layout: str
    reach: int
    own_scheme: bool
    segments: bool
    sinks: bool
    dtype: str
    settings: Settings


def draw_structure(rng: np.random.Generator, sizes: Sizes) -> Structure:
    """Returns a random structure."""
    one_of = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    near = lambda value: max(1, value + one_of(-8, -1, 0, 0, 0, 1, 5))  # noqa: E731
    kv_heads = one_of(1, 1, 2) if sizes is not FULL else 1
    heads = kv_heads * one_of(*sizes.groups)
    dim = one_of(4, 8, 10)
    keys = near(one_of(*sizes.keys))
    return Structure(
        batch=one_of(1, 1, 2),
        queries=near(one_of(*sizes.queries)),
        keys=keys,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        v_dim=one_of(1, 5, 8),
        rotary_dim=one_of(0, 2, dim, dim),
        layout=one_of("half", "interleaved"),
        reach=one_of(0, 0, 3, 24, 700),
        own_scheme=bool(rng.integers(4) == 0),
        segments=bool(rng.integers(2)),
        sinks=bool(rng.integers(2)),
        dtype=one_of("float32", "float32", "float32", "float32", "bfloat16", "float16"),
        settings=Settings(
            scale=one_of(1 / math.sqrt(dim), 1.0),
            causal=bool(rng.integers(2)),
            window=one_of(None, None, 1, 9, 70, 10_000),
            soft_cap=one_of(None, None, None, 1.5, 30.0),
            skip_tiles=bool(rng.integers(4)),
        ),
    )


def draw_call(rng: np.random.Generator, of: Structure) -> Problem:
    """Returns a random call of a structure."""
    normal = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    size = lambda: float(rng.choice([0.1, 1.0, 1.0, 1.0, 4.0]))  # noqa: E731
    array = lambda x: jnp.asarray(x, of.dtype)  # noqa: E731
    q, k = normal(of.batch, of.queries, of.heads, of.dim), normal(of.batch, of.keys, of.kv_heads, of.dim)
    if rng.integers(4) == 0:  # all alike: logits reach their bound, and no key stands out
        q, k = np.ones_like(q) * np.sign(q[:, :1]), np.ones_like(k) * np.sign(q[:, :1, :1])
    values = float(rng.choice([1.0, 1.0, 1.0, 1e-6, 1e3] + [1e27] * (of.dtype == "float32")))
    values = values if of.dtype == "float32" else 1.0
    schemes = [draw_scheme(rng, of) for _ in range(of.batch if of.own_scheme else 1)]
    (queries, keys) = draw_tokens(rng, of)
    return Problem(
        array(q * size()),
        array(k * size()),
        array(normal(of.batch, of.keys, of.kv_heads, of.v_dim) * values),
        stack(schemes) if of.own_scheme else schemes[0],
        jnp.asarray(normal(of.heads) * rng.choice([1.0, 10.0]), jnp.float32) if of.sinks else None,
        queries,
        keys,
        of.settings,
        np.asarray(normal(of.batch, of.queries, of.heads, of.v_dim) / values, np.float32),
        np.asarray(normal(of.batch, of.queries, of.heads), np.float32),
    )


def draw_scheme(rng: np.random.Generator, of: Structure):
    """Returns a scheme with slopes of any sign and size, and a strip of any height."""
    rotary = None
    if of.rotary_dim:
        rotary = frequencies.rotary(of.rotary_dim, base=float(rng.choice([50.0, 1e4, 5e5])), original_length=64)
    slopes = rng.choice([0.0, 1.0, 1.0]) * rng.standard_normal(of.heads) * rng.choice([1e-4, 0.01, 0.3, 5.0])
    slopes = np.abs(slopes) if rng.integers(2) else slopes
    offsets = np.arange(-of.reach, of.reach + 1)
    strip = rng.choice([0.0, 1.0, 1.0]) * rng.standard_normal((of.heads, offsets.size)) * rng.choice([0.5, 3.0])
    if rng.integers(4) == 0:  # near keys count little, far ones much
        strip = strip - 29.0 * (np.abs(offsets) < of.reach)
    return dataclasses.replace(
        build(rotary, None, num_heads=of.heads, head_dim=of.dim, layout=of.layout, max_offset=of.reach),
        cos_sin_factor=jnp.float32(rng.choice([1.0, 0.9, 1.3])),
        logit_scale=jnp.float32(rng.choice([1.0, 0.7])),
        slopes=jnp.asarray(slopes, jnp.float32),
        offset_bias=jnp.asarray(strip, jnp.float32),
    )


def draw_tokens(rng: np.random.Generator, of: Structure) -> tuple[Tokens, Tokens]:
    """Returns positions in any order, anywhere, and segments."""
    origin = int(rng.choice([0, 0, 0, -40, 100_000, 1_000_000, 2**24]))
    counts = of.queries, of.keys
    # Queries behind all keys, beside them, among them, or before them.
    shifts = int(rng.choice([of.keys, of.keys - of.queries, 0, of.keys // 2, 1000, -of.queries])), 0
    positions = [origin + shift + np.tile(np.arange(count), (of.batch, 1)) for shift, count in zip(shifts, counts)]  # noqa: B905
    kind = rng.choice(["counted", "counted", "counted", "scattered", "permuted", "reversed", "restarting", "strided"])
    for i, (side, count) in enumerate(zip(positions, counts)):  # noqa: B905
        if kind == "scattered":
            positions[i] = origin + rng.integers(0, 3 * max(counts), side.shape)
        elif kind == "permuted":
            positions[i] = rng.permuted(side, axis=1)
        elif kind == "reversed":
            positions[i] = side[:, ::-1]
        elif kind == "restarting":
            positions[i] = np.where(np.arange(count) < count - count // 3, side, side - side[:, :1] + origin)
        elif kind == "strided":
            positions[i] = origin + (side - origin) * int(rng.choice([2, 17]))
    if not of.segments:
        ids = [None, None]
    else:
        kind = rng.choice(["one", "two", "two", "padded", "padded", "strangers", "none"])
        ids = [np.zeros((of.batch, count), int) for count in counts]
        for side in ids:
            count = side.shape[1]
            if kind == "two":
                side[:, rng.integers(count + 1) :] = 5
            elif kind == "padded":
                side[:, rng.integers(1, count + 1) :] = -1
                side[rng.integers(of.batch), rng.integers(count)] = -2
            elif kind == "strangers":
                side[:] = rng.integers(-1, 3, side.shape)
            elif kind == "none":
                side[:] = -1
    make = lambda x: None if x is None else jnp.asarray(x, jnp.int32)  # noqa: E731
    sides = zip(positions, ids)  # noqa: B905
    queries, keys = (Tokens(make(where), make(which)) for where, which in sides)
    return queries, keys
