"""Drawn calls of the Hopper kernels' arithmetic, run by plain JAX, against two oracles in float64.

`rounded_oracle` tells what bfloat16's rounding explains, number by number; `float64_oracle` what every implementation
is held to. Positions are anywhere, and padded slots hold anything.
"""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import mosaic_gpu_plain
import numpy as np
import pytest
import rounded_oracle
from backend_suite import Checks, exactly, plainly, quick_compilation
from drawn_calls import Sizes, Structure, draw_call, draw_structure
from float64_oracle import Problem
from test_drawn_calls import SEED
from test_mosaic_gpu import kernels_alone

from rope_jax import frequencies
from rope_jax.attention import blockwise, mosaic_gpu, mosaic_gpu_spans
from rope_jax.attention import mosaic_gpu_tile as tile
from rope_jax.attention.call import NOTHING, Settings, Tokens
from rope_jax.scheme import build, stack

TILES = Sizes(0, 0, 0, (129, 136, 192, 256, 300), (8, 64, 128, 136, 256, 384), (1, 2, 3))
GARBAGE = (0, -1, 2**31 - 1, -(2**31))  # positions of slots that hold nothing
STARTS = (0, 0, 7, -300, 100_000, 2**20, -(2**20), 2**30, 2**31 - 5000)


class Drawn(Checks):
    """Held to what bfloat16 loses."""

    rounding = 1e-3
    attend = staticmethod(
        functools.partial(mosaic_gpu.attend_with, tiles=tile.Sizes(skip_from=0), kernels=mosaic_gpu_plain)
    )


def draw_and_check(part: int, structures: int, calls: int) -> None:
    for which in range(structures):
        rng = np.random.default_rng([SEED, 7, part, which])
        structure = draw_structure(rng, TILES)
        structure = dataclasses.replace(
            structure,
            dtype="bfloat16",
            queries=max(structure.queries, tile.TILE),
            settings=dataclasses.replace(structure.settings, causal=True),
        )
        for number in range(calls):
            try:
                Drawn.check(draw_call(rng, structure))
            except AssertionError as error:
                raise AssertionError(f"{structure}, call {number} of structure {which}: {error}") from error
        jax.clear_caches()
        exactly.cache_clear()
        plainly.cache_clear()


def test_a_few():
    draw_and_check(0, 1, 6)


@pytest.mark.slow
@pytest.mark.parametrize("part", [1, 2])
def test_many(part):
    draw_and_check(part, 6, 12)


@dataclasses.dataclass(frozen=True)
class Sized(Structure):
    """What a compiled program depends on, sizes of tiles too."""

    sizes: tile.Sizes


def structure_of(rng: np.random.Generator) -> Sized:
    one_of = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    kv_heads, groups = one_of((1, 1), (1, 2), (1, 4), (2, 1))
    queries = one_of(128, 129, 191, 192, 200, 256, 320, 500)
    dim, v_dim = one_of((64, 64), (64, 64), (40, 64), (64, 40), (80, 16), (128, 192), (192, 64), (256, 8))
    return Sized(
        batch=one_of(1, 1, 2),
        queries=queries,
        keys=one_of(queries, queries, queries, 1, 100, 128, 300, 513),
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        dim=dim,
        v_dim=v_dim,
        rotary_dim=one_of(0, dim // 4 * 2, dim, dim),
        layout=one_of("half", "interleaved"),
        reach=one_of(0, 0, 1, 2, 63, 64, 127, 128, 129, 300),
        own_scheme=one_of(True, False, False, False),
        segments=one_of(True, False),
        sinks=one_of(True, False),
        dtype="bfloat16",
        settings=Settings(
            scale=dim**-0.5,
            window=one_of(None, None, 1, 2, 63, 64, 65, 127, 128, 129, 500),
            soft_cap=one_of(None, None, 2.0, 30.0),
            skip_tiles=one_of(True, True, False),
        ),
        sizes=tile.Sizes(keys=64 if max(dim, v_dim) > tile.TILE else one_of(64, 128), skip_from=one_of(0, 0, 8192)),
    )


def scheme_of(rng: np.random.Generator, of: Structure):
    one_of = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    normal = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    rotary = None
    if of.rotary_dim:
        rotary = frequencies.rotary(of.rotary_dim, base=one_of(50.0, 1e4, 5e5), original_length=64)
    slopes = one_of(
        np.zeros(of.heads),
        -0.02 * np.abs(normal(of.heads)),
        2.0 ** -np.arange(1, of.heads + 1),
        0.05 * normal(of.heads),
        1e-3 * normal(of.heads),
        np.full(of.heads, 4.0),
    )
    strip = one_of(0.0, 0.5, 1.0, 3.0) * normal(of.heads, 2 * of.reach + 1)
    scheme = build(rotary, None, num_heads=of.heads, head_dim=of.dim, layout=of.layout, max_offset=of.reach)
    return dataclasses.replace(
        scheme,
        cos_sin_factor=jnp.float32(one_of(1.0, 1.2)),
        logit_scale=jnp.float32(one_of(1.0, 0.8)),
        slopes=jnp.asarray(slopes, jnp.float32),
        offset_bias=jnp.asarray(strip, jnp.float32),
    )


def tokens_of(rng: np.random.Generator, of: Structure) -> tuple[Tokens, Tokens]:
    """Returns one sequence's positions and segments: a prefix, any base, or packed documents; padded anywhere."""
    one_of = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    counts = of.queries, of.keys
    packed = of.segments and of.queries == of.keys and rng.integers(3) == 0
    ids = [np.zeros(count, np.int64) for count in counts]
    if packed:
        cuts = np.sort(rng.integers(0, of.queries, one_of(1, 3, 6)))
        ids[0] = ids[1] = np.searchsorted(cuts, np.arange(of.queries), side="right")
        own = np.arange(of.queries) - np.concatenate([[0], cuts])[ids[0]] + one_of(0, 50)
        places = [own, own]
    else:
        start = one_of(*STARTS)
        near = 0, of.keys - of.queries, int(rng.integers(-of.queries, of.keys + 200)), of.keys, -of.queries
        far = 1000, 2**20, -(2**20), 2**30 - 1, -(2**30) + 1
        base = one_of(*near, *near, *far)
        if abs(start + base) > 2**31 - 1 - of.queries:
            start = 0
        places = [start + base + np.arange(of.queries), start + np.arange(of.keys)]
        if of.segments:
            for side in ids:
                side[rng.integers(side.size + 1) :] = one_of(0, 3)
    if of.segments:
        for side in range(1 if packed else 2):
            count = counts[side]
            many = int(rng.integers(0, count // 2 + 1))
            first = one_of(0, count - many, int(rng.integers(count - many + 1)))
            ids[side], places[side] = ids[side].copy(), places[side].copy()
            ids[side][first : first + many] = one_of(-1, -7)
            if rng.integers(2):
                places[side][first : first + many] = one_of(*GARBAGE)
        if packed:
            ids[1], places[1] = ids[0], places[0]
    make = lambda x: jnp.asarray(x, jnp.int32)  # noqa: E731
    queries, keys = (Tokens(make(at), make(which) if of.segments else None) for at, which in zip(places, ids))  # noqa: B905
    return queries, keys


def call_of(rng: np.random.Generator, of: Structure) -> Problem:
    one_of = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    normal = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    narrow = lambda x: jnp.asarray(x, jnp.bfloat16)  # noqa: E731
    rows = [tokens_of(rng, of) for _ in range(of.batch)]
    queries, keys = (jax.tree.map(lambda *x: jnp.stack(x), *side) for side in zip(*rows, strict=True))
    spoilt = lambda x, at: (  # noqa: E731
        x if at.segments is None else jnp.where(at.segments[..., None, None] < 0, jnp.nan, x)
    )
    schemes = [scheme_of(rng, of) for _ in range(of.batch if of.own_scheme else 1)]
    sinks = one_of(normal(of.heads), 10 * normal(of.heads) + 30, *(np.full(of.heads, x) for x in (NOTHING, 1e4, -1e4)))
    d_lse = one_of(0.0, 1.0) * normal(of.batch, of.queries, of.heads)
    return Problem(
        q=spoilt(narrow(one_of(0.3, 1.0, 1.0, 3.0) * normal(of.batch, of.queries, of.heads, of.dim)), queries),
        k=spoilt(narrow(normal(of.batch, of.keys, of.kv_heads, of.dim)), keys),
        v=spoilt(narrow(normal(of.batch, of.keys, of.kv_heads, of.v_dim)), keys),
        scheme=stack(schemes) if of.own_scheme else schemes[0],
        sinks=jnp.asarray(sinks, jnp.float32) if of.sinks else None,
        queries=queries,
        keys=keys,
        settings=of.settings,
        d_out=spoilt(narrow(normal(of.batch, of.queries, of.heads, of.v_dim)), queries),
        d_lse=jnp.asarray(d_lse, jnp.float32),
    )


@functools.cache
def program(settings: Settings, sizes: tile.Sizes):
    def run(arrays, queries, keys, cotangents):
        def call(arrays):
            return mosaic_gpu.attend_with(*arrays, queries, keys, settings, tiles=sizes, kernels=mosaic_gpu_plain)

        with mock.patch.object(mosaic_gpu, "_choose", kernels_alone):
            made, back = jax.vjp(call, arrays)
            return made, back(cotangents)[0]

    return jax.jit(run, compiler_options=quick_compilation())


def check(call: Problem, sizes: tile.Sizes) -> None:
    """Holds a call to what roundings explain."""
    assert bool(mosaic_gpu_spans.in_slots(call.queries, call.keys)[1])
    arrays = call.q, call.k, call.v, call.scheme, call.sinks
    (out, lse), gradients = program(call.settings, sizes)(arrays, call.queries, call.keys, (call.d_out, call.d_lse))
    found = {"out": out, "lse": lse} | dict(zip("qkv", gradients[:3], strict=True))
    found |= {name: getattr(gradients[3], name) for name in rounded_oracle.NAMES[5:]}
    if call.sinks is not None:
        found["sinks"] = gradients[4]
    exact = rounded_oracle.exactly(call)
    noise = rounded_oracle.noise(call, exact)
    for name, x in found.items():
        x = np.asarray(x).astype(np.float64)
        assert np.isfinite(x).all(), name
        if name == "lse":
            assert ((x == np.float32(NOTHING)) == (exact[name] == NOTHING)).all(), name
        error, size = (np.where(exact[name] == NOTHING, 0.0, y) for y in (x - exact[name], exact[name]))
        # The strip's last value gets what the others leave of a sum over all rows, in float32.
        floor = 2e-3 * np.linalg.norm(size) + (1e-3 if name in ("offset_bias", "lse") else 1e-5)
        far = 4 * noise[name] + floor
        assert np.linalg.norm(error) <= far, (name, np.linalg.norm(error), noise[name], np.linalg.norm(size))


def draw_rounded(part: int, structures: int, calls: int) -> None:
    for which in range(structures):
        rng = np.random.default_rng([SEED, 8, part, which])
        structure = structure_of(rng)
        for number in range(calls):
            try:
                check(call_of(rng, structure), structure.sizes)
            except AssertionError as error:
                raise AssertionError(f"{structure}, call {number} of structure {which}: {error}") from error
        jax.clear_caches()
        program.cache_clear()


def test_a_few_against_roundings():
    draw_rounded(0, 2, 6)


@pytest.mark.slow
@pytest.mark.parametrize("part", [1, 4])
def test_many_against_roundings(part):
    draw_rounded(part, 6, 10)


def test_slots_tell_all_offsets_wherever_a_call_is_said_to_be_regular():
    rng = np.random.default_rng(SEED)
    told = jax.jit(mosaic_gpu_spans.in_slots)
    regular = 0
    for _ in range(3000):
        count = 8
        cuts = np.sort(rng.integers(0, count + 1, 3))
        ids = [rng.choice([0, 0, 1, 2, -1], 4)[np.searchsorted(cuts, np.arange(count), side="right")] for _ in range(2)]
        places = [np.arange(count) + rng.choice([0, 3, -2, 2**30, 2**31 - 9, -(2**31)]) for _ in range(2)]
        for at, which in zip(places, ids, strict=True):
            kind = rng.integers(4)
            for one in np.unique(which) if kind == 1 else ():
                at[which == one] = np.arange((which == one).sum()) + rng.integers(2)
            if kind == 2:
                at[rng.integers(count)] += rng.integers(-2, 3)
            if kind == 3:
                at[which < 0] = rng.choice(GARBAGE)
        if rng.integers(2):
            places[1], ids[1] = places[0].copy(), ids[0].copy()
        places = [np.clip(at, -(2**31), 2**31 - 1) for at in places]
        sides = [Tokens(*(jnp.asarray(x[None], jnp.int32) for x in side)) for side in zip(places, ids, strict=True)]
        base, fits = told(*sides)
        if not fits:
            continue
        regular += 1
        same = (ids[0][:, None] == ids[1][None]) & (ids[0] >= 0)[:, None]
        offset = places[0][:, None] - places[1][None]
        same &= np.abs(offset) < 2**31
        slots = int(base[0]) + np.arange(count)[:, None] - np.arange(count)[None]
        assert (offset == slots)[same].all(), (places, ids)
    assert regular > 600


@pytest.mark.parametrize("value", [-1e9, -np.inf, -1e30])
@pytest.mark.parametrize("near", [False, True])
def test_a_strip_may_hide_keys(value, near):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, 300, 1, 64)), jnp.bfloat16) for _ in range(3))
    at, settings = Tokens(jnp.arange(300, dtype=jnp.int32)[None]), Settings(scale=0.125)
    scheme = build(None, None, num_heads=1, head_dim=64, max_offset=32)
    hidden = jnp.arange(35, 40) if near else jnp.asarray([0, 64])  # from offset 3 on, or all from offset 32 on
    strip = (scheme.offset_bias + jnp.asarray(rng.standard_normal((1, 65)), jnp.float32)).at[:, hidden].set(value)
    scheme = dataclasses.replace(scheme, offset_bias=strip)
    with mock.patch.object(mosaic_gpu, "_choose", kernels_alone):
        ours = mosaic_gpu.attend_with(q, k, v, scheme, jnp.zeros(1), at, at, settings, kernels=mosaic_gpu_plain)
    theirs = blockwise.attend(q, k, v, scheme, jnp.zeros(1), at, at, settings)
    for a, b, limit in zip(ours, theirs, (2e-2, 4e-3), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=limit)


@pytest.mark.parametrize("attend", [blockwise.attend, Drawn.attend], ids=["blockwise", "kernels"])
def test_the_cotangent_of_a_padded_slot_is_not_read_where_there_is_a_sink(attend):
    rng = np.random.default_rng(0)
    q, k, v, d_out = (jnp.asarray(rng.standard_normal((1, 128, 1, 64)), jnp.bfloat16) for _ in range(4))
    ids = jnp.where(jnp.arange(128) < 100, 0, -1).astype(jnp.int32)[None]
    at = Tokens(jnp.arange(128, dtype=jnp.int32)[None], ids)
    scheme = build(None, None, num_heads=1, head_dim=64)
    run = lambda q, k, v, sinks: attend(q, k, v, scheme, sinks, at, at, Settings(scale=0.125))  # noqa: E731
    _, back = jax.vjp(run, q, k, v, jnp.zeros(1))
    spoilt = jnp.where(ids[..., None, None] < 0, jnp.nan, d_out)
    for x in back((spoilt, jnp.zeros((1, 128, 1)))):
        assert np.isfinite(np.asarray(x, np.float32)).all()


def test_the_gradient_of_a_long_strip_takes_no_memory_of_offsets_squared():
    reach = 20_000
    plan = tile.Plan(Settings(scale=1.0), 1, 256, reach, False, tile.Sizes())
    tiles = jax.ShapeDtypeStruct((1, 1, tile.near_tiles(plan), tile.TILE, tile.TILE), jnp.float32)
    run = jax.jit(functools.partial(mosaic_gpu._by_offset, plan), compiler_options=quick_compilation())
    compiled = run.lower(tiles, jax.ShapeDtypeStruct((1,), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20 * reach * tile.TILE * 4
