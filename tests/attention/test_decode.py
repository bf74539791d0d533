"""Decoding from keys as a call has them, and from a cache of rotated and of unrotated keys."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import mosaic_gpu_plain
import numpy as np
import pytest
from backend_suite import Checks, Plain, named, quick_compilation
from problems import DIM, problem_of, scheme_of

from rope_jax import biases, frequencies
from rope_jax.attention import decode, machine, mosaic_gpu_decode
from rope_jax.attention.call import NOTHING, Settings, Tokens, without_padding
from rope_jax.attention.operands import Operands
from rope_jax.scheme import build, stack

SLOTS = 300
problem_of = functools.partial(problem_of, tokens=1, keys=SLOTS)


@pytest.fixture(autouse=True)
def _three_chunks(monkeypatch):
    """Makes caches of two sequences three chunks long, the last of them not whole."""
    monkeypatch.setattr(decode, "CHUNK", 256)


def from_cache(cached):
    """Returns an implementation that keeps its keys in a cache."""

    def attend(q, k, v, scheme, sinks, queries, keys, settings):
        if cached == "rotated":  # as the decoder does, which puts nothing but zeros into slots that hold no token
            k = scheme.rotate(without_padding(k, keys), keys.positions)
        k, v = jnp.moveaxis(k, 1, 3), jnp.moveaxis(v, 1, 2)
        turn = decode.turn_of(scheme, keys.positions) if cached == "unrotated" else None
        return decode.over_cache(q, k, v, scheme, sinks, queries, keys, settings, turn=turn)

    return attend


def ragged(problem, lengths=(290, 137)):
    """Returns the same call at the ends of sequences of unequal length; NaN in every slot that holds nothing."""
    few, slots = problem.q.shape[1], problem.k.shape[1]
    last = jnp.asarray(lengths, jnp.int32)[:, None]
    queries = Tokens(last - few + jnp.arange(few)[None, :], jnp.zeros(problem.q.shape[:2], jnp.int32))
    held = jnp.arange(slots)[None, :] < last
    spoil = lambda x: jnp.where(held[..., None, None], x, jnp.nan)  # noqa: E731
    keys = Tokens(problem.keys.positions, jnp.where(held, 0, -1))
    return dataclasses.replace(problem, k=spoil(problem.k), v=spoil(problem.v), queries=queries, keys=keys)


class DecodeSuite(Checks):
    """What every way of keeping the keys must do."""

    @pytest.mark.parametrize("bias", ["none", "negative", "t5", "line and strip"])
    def test_biases_at_the_ends_of_ragged_sequences(self, bias):
        self.check_ragged(problem_of(bias=bias))

    @named(
        few={"tokens": 5, "layout": "interleaved", "v_dim": 5},
        most={"tokens": 16, "bias": "line and strip"},
        one_head_to_a_key={"kv_heads": 4, "sinks": True},
        three_to_one={"heads": 3, "kv_heads": 1, "rotary_dim": 6, "layout": "interleaved", "bias": "learned"},
        part_of_a_head={"rotary_dim": 4, "tokens": 2},
        no_rotation={"rotary_dim": 0, "bias": "alibi", "max_offset": 0},
        short_window={"window": 7},
        window={"window": 200, "tokens": 3, "bias": "line and strip"},
        soft_cap={"soft_cap": 0.8, "sinks": True, "tokens": 3},
        both_ways={"causal": False, "window": 150, "soft_cap": 2.0, "tokens": 3, "bias": "t5 both ways"},
        scheme_for_each={"each": True, "tokens": 2},
    )
    def test_settings_and_shapes(self, arguments):
        self.check_ragged(problem_of(**arguments))

    @named(
        scattered={"positions": "scattered", "tokens": 9},
        far_away={"positions": "far away", "tokens": 9},
        without_segments={"segments": "absent", "tokens": 9},
        strangers={"segments": "strangers", "tokens": 9, "positions": "scattered"},
    )
    def test_positions_and_segments(self, arguments):
        self.check(problem_of(**arguments, bias="line and strip"))

    def test_bfloat16(self):
        self.check_ragged(problem_of(dtype="bfloat16"))

    def test_an_empty_cache(self):
        problem = ragged(problem_of(), lengths=(0, 0))
        found = self.run(dataclasses.replace(problem, q=jnp.full_like(problem.q, jnp.nan)))
        assert not np.any(found.pop("out"))
        assert np.all(found.pop("lse") == np.float32(NOTHING))
        for name, gradient in found.items():
            assert not np.any(gradient), name

    def test_the_same_again_bit_for_bit(self):
        problem = ragged(problem_of())
        first = self.run(problem)
        for name, x in self.run(problem).items():
            np.testing.assert_array_equal(x, first[name], err_msg=name)

    def check_ragged(self, problem):
        """Checks numbers, with zeros where nothing lies; then NaN there changes no bit."""
        spoilt = ragged(problem)
        clean = dataclasses.replace(spoilt, k=jnp.nan_to_num(spoilt.k), v=jnp.nan_to_num(spoilt.v))
        found = self.check(clean)
        for name, x in self.run(spoilt).items():
            np.testing.assert_array_equal(x, found[name], err_msg=name)


class TestFromKeysOfACall(DecodeSuite):
    attend = staticmethod(decode.attend)


class TestUnrotatedCache(DecodeSuite):
    attend = staticmethod(from_cache("unrotated"))

    @pytest.mark.parametrize("slots", [1, 127, 129, 256])
    def test_capacities(self, slots):
        self.check(problem_of(keys=slots, bias="line and strip"))

    def test_as_users_compile_it(self):
        problem = ragged(problem_of(bias="line and strip"))
        call = jax.jit(self.attend, static_argnums=7)
        found = call(
            problem.q,
            problem.k,
            problem.v,
            problem.scheme,
            problem.sinks,
            problem.queries,
            problem.keys,
            problem.settings,
        )
        plain = Plain.run(dataclasses.replace(problem, k=jnp.nan_to_num(problem.k), v=jnp.nan_to_num(problem.v)))
        np.testing.assert_allclose(found[0], plain["out"], atol=2e-6)
        np.testing.assert_allclose(found[1], plain["lse"], rtol=2e-6)


class TestRotatedCache(DecodeSuite):
    attend = staticmethod(from_cache("rotated"))
    absolute = True


class TestHopperParts(DecodeSuite):
    """The parts of a cache as the Hopper kernel goes along them, in plain JAX, five to a key head."""

    attend = staticmethod(from_cache("rotated"))
    absolute = True

    @pytest.fixture(autouse=True)
    def _by_parts(self, monkeypatch):
        def kernel_for(operands, settings):
            return mosaic_gpu_plain.parts if settings.causal else None

        monkeypatch.setattr(mosaic_gpu_decode, "kernel_for", kernel_for)
        monkeypatch.setattr(mosaic_gpu_decode, "_cores", lambda: 20)

    @pytest.mark.parametrize("slots", [1, 63, 64, 65, 256])
    def test_capacities(self, slots):
        self.check(problem_of(keys=slots, bias="line and strip"))


@pytest.mark.parametrize("value", [-1e6, -1e9, -1e30, -np.inf])
def test_a_strip_may_hide_far_keys(value, monkeypatch):
    rng = np.random.default_rng(0)
    narrow = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)  # noqa: E731
    q, keys, values = 3 * narrow(1, 1, 2, 64), narrow(1, 1, 64, 256), narrow(1, 1, 256, 64)
    sides = Tokens(jnp.full((1, 1), 255, jnp.int32)), Tokens(jnp.arange(256, dtype=jnp.int32)[None])
    strip = jnp.asarray(rng.standard_normal((2, 65)), jnp.float32).at[:, jnp.asarray([0, 64])].set(value)
    scheme = build(None, None, num_heads=2, head_dim=64, max_offset=32)
    scheme = dataclasses.replace(scheme, offset_bias=strip)

    def run(kernel):
        monkeypatch.setattr(mosaic_gpu_decode, "kernel_for", lambda *_: kernel)
        return decode.over_cache(q, keys, values, scheme, None, *sides, Settings(0.125), turn=None)

    for ours, theirs, limit in zip(run(mosaic_gpu_plain.parts), run(None), (2e-2, 4e-3), strict=True):
        np.testing.assert_allclose(np.asarray(ours, np.float32), np.asarray(theirs, np.float32), atol=limit)


@pytest.mark.skipif(machine.unwritten() is not None, reason="the kernel is of another version of jax")
@pytest.mark.parametrize(("groups", "few"), [(4, 1), (1, 16), (8, 3)])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_the_hopper_kernel_lowers_for_cuda(dim, groups, few):
    from rope_jax.attention import mosaic_gpu_decode_kernel

    batch, kv_heads, slots = 2, 2, 1024
    heads = kv_heads * groups
    rotary = frequencies.rotary(dim, base=10000.0, original_length=256)
    scheme = build(rotary, biases.t5_bias(np.ones((heads, 8))), num_heads=heads, head_dim=dim)
    settings = Settings(dim**-0.5, window=500, soft_cap=30.0)

    def run(q, keys, values, positions, segments, here):
        nothing = jnp.zeros((batch, 0, slots))
        turn, frequencies = scheme.cos_sin(here), scheme.inverse_frequencies[:0]
        operands = Operands.of(q, keys, values, scheme, None, turn, (nothing, nothing), frequencies)
        assert mosaic_gpu_decode.cannot(operands, settings) is None
        sides = Tokens(here), Tokens(positions, segments)
        return mosaic_gpu_decode.forward(operands, *sides, settings, "half", mosaic_gpu_decode_kernel.parts)

    shaped = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    at = jax.ShapeDtypeStruct((batch, slots), jnp.int32)
    arguments = (
        shaped(batch, few, heads, dim),
        shaped(batch, kv_heads, dim, slots),
        shaped(batch, kv_heads, slots, dim),
        at,
        at,
        jax.ShapeDtypeStruct((batch, few), jnp.int32),
    )
    assert "rope_jax_decode" in jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": jnp.float32}, "takes queries and a cache of bfloat16"),
        ({"q_dtype": jnp.float32}, "takes queries and a cache of bfloat16"),
        ({"slots": 1000}, "slots of a multiple of 64"),
        ({"dim": 80}, "heads of a multiple of 64"),
        ({"heads": 256}, "takes 64 queries of a key head"),
        ({"turn": 8}, "keys that are rotated already"),
        ({"causal": False}, "of causal attention"),
    ],
)
def test_what_the_hopper_kernel_does_not_take(change, reason):
    given = {"dtype": jnp.bfloat16, "slots": 1024, "dim": 64, "heads": 4, "turn": 0, "causal": True} | change
    scheme = build(None, num_heads=given["heads"], head_dim=given["dim"])
    keys = jnp.zeros((1, 2, given["dim"], given["slots"]), given["dtype"])
    turn = jnp.zeros((1, given["turn"], given["slots"]))
    q = jnp.zeros((1, 1, given["heads"], given["dim"]), given.get("q_dtype", given["dtype"]))
    operands = Operands.of(q, keys, jnp.swapaxes(keys, 2, 3), scheme, None, (turn, turn), (turn, turn), jnp.zeros(0))
    settings = Settings(1.0, causal=given["causal"])
    assert reason in mosaic_gpu_decode.cannot(operands, settings)
    assert mosaic_gpu_decode.kernel_for(operands, settings) is None


@pytest.mark.parametrize("implementation", [decode.attend, from_cache("rotated")])
def test_many_queries_are_refused(implementation):
    problem = problem_of(tokens=17, bias="none")
    with pytest.raises(NotImplementedError, match="at most 16 queries a sequence, got 17"):
        implementation(
            problem.q, problem.k, problem.v, problem.scheme, None, problem.queries, problem.keys, problem.settings
        )


def test_vmap_over_schemes_equals_one_at_a_time():
    problem = ragged(problem_of())
    schemes = stack([scheme_of("t5", 4, seed=seed) for seed in range(3)])
    settings = Settings(1 / math.sqrt(DIM))

    def attend(scheme):
        return decode.attend(problem.q, problem.k, problem.v, scheme, None, problem.queries, problem.keys, settings)[0]

    together = jax.jit(jax.vmap(attend), compiler_options=quick_compilation())(schemes)
    for n in range(3):
        alone = attend(jax.tree.map(lambda leaf, n=n: leaf[n], schemes))
        np.testing.assert_allclose(together[n], alone, atol=2e-6)
