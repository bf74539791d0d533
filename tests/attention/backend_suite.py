"""One suite for every implementation of attention: subclass `BackendSuite` and name its `attend`.

What float32 may lose is measured, not guessed: at most twice what plain attention, with every logit written out, loses
on the same input against the float64 oracle. The floor beneath it is one or two units in the last place, and one of
what a weight is the exponential of. Gradients have more, as a backward pass knows the weights from log-sum-exps, and
whatever those round away every weight is off by.
"""

import dataclasses
import functools

import float64_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_oracle import Problem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import problem_of

from rope_jax.attention import reference
from rope_jax.attention.call import NOTHING, Settings, Tokens

FLOOR = 1e-7  # of the largest sum of magnitudes that makes up an entry
LAST_PLACE = 2.0**-23
TINY = 2.0**-116  # a thousand numbers of which each is below the smallest normal one, and may count as zero
ROUGH = {jnp.dtype("bfloat16"): 1e-2, jnp.dtype("float16"): 2e-3}  # of the same, for dtypes that lose more than float32


@functools.cache
def quick_compilation() -> dict[str, bool | int]:
    """Returns options that compile a loop within a loop five times faster; those of them that this XLA knows."""
    known = {}
    for option in ({"xla_backend_optimization_level": 0}, {"xla_cpu_use_fusion_emitters": False}):
        try:
            jax.jit(lambda x: x + 1).lower(jnp.float32(0)).compile(option)
        except jax.errors.JaxRuntimeError:
            continue
        known |= option
    return known


@functools.cache
def _program(owner: type, settings: Settings, with_gradients: bool):
    def run(arrays, queries, keys, cotangents):
        call = lambda arrays: owner.attend(*arrays, queries, keys, settings)  # noqa: E731
        if not with_gradients:
            return call(arrays), None
        made, back = jax.vjp(call, arrays)
        return made, back((cotangents[0].astype(made[0].dtype), cotangents[1]))[0]

    return jax.jit(run, compiler_options=owner.compiler_options())


class Checks:
    """What tests of an implementation are made of.

    Attributes:
      may_refuse: whether a call that the implementation refuses by `NotImplementedError` is skipped; else it fails.
      rounding: what a sum over narrow inputs may be off by where it is zero by definition, not by arithmetic.
      absolute: whether it is given turned keys, so that the gradient of frequencies must be summed over positions.
    """

    may_refuse = False
    rounding = 0.0
    absolute = False

    @staticmethod
    def attend(q, k, v, scheme, sinks, queries, keys, settings):
        raise AssertionError("name the implementation")

    @staticmethod
    def compiler_options():
        return quick_compilation()

    @classmethod
    def run(cls, problem: Problem, *, with_gradients: bool = True) -> dict[str, np.ndarray]:
        """Returns outputs, log-sum-exps and all gradients; the same settings and shapes share one program."""
        arrays = problem.q, problem.k, problem.v, problem.scheme, problem.sinks
        program = _program(cls, problem.settings, with_gradients)
        try:
            (out, lse), gradients = program(arrays, problem.queries, problem.keys, (problem.d_out, problem.d_lse))
        except NotImplementedError as refusal:
            if cls.may_refuse:
                pytest.skip(str(refusal))
            raise
        assert out.dtype == problem.v.dtype
        assert lse.dtype == jnp.float32
        found = {"out": out, "lse": lse}
        if with_gradients:
            assert not np.any(gradients[3].remainder)
            found |= zip(("q", "k", "v", "sinks"), (*gradients[:3], gradients[4]), strict=True)
            found |= {name: getattr(gradients[3], name) for name in float64_oracle.SCHEME}
        return {name: np.asarray(x).astype(np.float32) for name, x in found.items() if x is not None}

    @classmethod
    def check(cls, problem: Problem) -> dict[str, np.ndarray]:
        """Holds an implementation to the error of plain attention; returns what it found."""
        found = cls.run(problem)
        exact, sizes = exactly(problem)
        plain = plainly(problem)
        if cls.absolute:
            plain = plain | {"inverse_frequencies": plain["frequencies, absolute"]}
            sizes = sizes | {"inverse_frequencies": sizes["frequencies, absolute"]}
        for name, ours in found.items():
            assert ours.shape == exact[name].shape, name
            assert np.isfinite(ours).all(), name
            if name == "lse":
                nothing = exact[name] == NOTHING
                np.testing.assert_array_equal(ours[nothing], np.float32(NOTHING))
                wrong, allowed = (np.where(nothing, 0.0, x - exact[name]) for x in (ours, plain[name]))
            else:
                wrong, allowed = ours - exact[name], plain[name] - exact[name]
            if problem.q.dtype in ROUGH:
                last = float(jnp.finfo(problem.q.dtype).eps) / 4
                floor = (ROUGH[problem.q.dtype] + last * sizes["logits"]) * sizes[name] + cls.rounding
                assert worst(wrong) <= 2 * worst(allowed) + floor, (name, worst(wrong), worst(allowed), floor)
                continue
            weights = sizes["logits"] + (0.0 if name in ("out", "lse") else sizes["lse"])
            floor = TINY + FLOOR * sizes[name] + LAST_PLACE * weights * (1.0 if name == "lse" else sizes[name])
            for measure in (worst, root_mean_square):
                assert measure(wrong) <= 2 * measure(allowed) + floor, (name, measure(wrong), measure(allowed), floor)
        return found


class Plain(Checks):
    attend = staticmethod(reference.attend)


def worst(error: np.ndarray) -> float:
    return np.abs(error).max(initial=0.0)


def root_mean_square(error: np.ndarray) -> float:
    return np.sqrt(np.square(error).sum() / max(error.size, 1))


@functools.cache
def plainly(problem: Problem) -> dict[str, np.ndarray]:
    found = Plain.run(problem)
    # Plain attention sums the gradient of a frequency over positions: near 0 it loses least.
    sides = problem.queries, problem.keys
    first = functools.reduce(jnp.minimum, (tokens.positions.min(axis=1, keepdims=True) for tokens in sides))
    near = (tokens._replace(positions=tokens.positions - first) for tokens in sides)
    near_zero = Plain.run(dataclasses.replace(problem, **dict(zip(("queries", "keys"), near, strict=True))))
    relative = {"inverse_frequencies": near_zero["inverse_frequencies"]}
    return found | {"frequencies, absolute": found["inverse_frequencies"]} | relative


@functools.cache
def exactly(problem: Problem) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    made = float64_oracle.values(problem)
    gradients, sizes = float64_oracle.gradients(problem)
    results = {"out": made["out"], "lse": made["lse"]}
    lse = made["lse"][made["lse"] > NOTHING]
    return results | gradients, sizes | {"out": np.abs(made["out"]).max(), "lse": np.abs(lse).max(initial=1.0)}


def named(**cases: dict):
    """Parametrises a test by arguments of `problem_of`."""
    return pytest.mark.parametrize("arguments", [pytest.param(c, id=n.replace("_", "-")) for n, c in cases.items()])


BOTH_WAYS = {"causal": False, "sinks": True}
SHAPES = {"batch": 1, "heads": 2, "kv_heads": 1}


class BackendSuite(Checks):
    """The tests. Cases that differ in numbers only share one compiled program."""

    @pytest.mark.parametrize(
        "bias", ["none", "alibi", "negative", "learned", "t5", "kerple", "per offset", "line and strip"]
    )
    def test_biases(self, bias):
        self.check(problem_of(bias=bias))

    @pytest.mark.parametrize("bias", ["none", "alibi", "negative", "learned"])
    def test_lines_without_a_strip(self, bias):
        self.check(problem_of(bias=bias, max_offset=0, sinks=True))

    @pytest.mark.parametrize("positions", ["far away", "scattered", "permuted", "restarting"])
    def test_positions(self, positions):
        segments = "packed" if positions == "restarting" else "one"
        self.check(problem_of(bias="line and strip", positions=positions, segments=segments))

    @pytest.mark.parametrize("keys", [24, 96])
    def test_queries_that_are_all_far_behind_the_keys(self, keys):
        """Every tile is plain, and of the smaller call there is one."""
        problem = problem_of(bias="line and strip", tokens=40, keys=keys, sinks=True)
        positions = problem.queries.positions + 1000
        self.check(dataclasses.replace(problem, queries=problem.queries._replace(positions=positions)))

    @pytest.mark.parametrize("window", [None, 9])
    @pytest.mark.parametrize("start", [10**6, 2**24])
    def test_the_gradient_to_frequencies_does_not_lose_by_where_counting_begins(self, start, window):
        self.check(problem_of(bias="line and strip", positions=start, window=window))

    @pytest.mark.parametrize("segments", ["packed", "ragged", "strangers"])
    def test_segments(self, segments):
        self.check(problem_of(bias="line and strip", segments=segments))

    @named(
        window={"window": 37},
        soft_cap={"soft_cap": 0.8, "sinks": True},
        both_ways=dict(**BOTH_WAYS, bias="t5 both ways"),
        both_ways_line=dict(**BOTH_WAYS, bias="learned", max_offset=0, soft_cap=2.0),
        both_ways_window=dict(**BOTH_WAYS, bias="line and strip", window=50, kv_heads=4, segments="ragged"),
        scheme_for_each={"each": True, "segments": "absent"},
        one_head_to_a_key={"kv_heads": 4, "bias": "line and strip", "segments": "strangers"},
        three_to_one={
            "batch": 1,
            "heads": 3,
            "kv_heads": 1,
            "layout": "interleaved",
            "rotary_dim": 6,
            "v_dim": 5,
            "bias": "learned",
        },
        no_rotation=dict(**SHAPES, rotary_dim=0, bias="alibi"),
    )
    def test_settings_and_shapes(self, arguments):
        self.check(problem_of(**arguments))

    @named(
        one={"tokens": 1},
        one_of_many={"tokens": 1, "keys": 200},
        a_chunk={"tokens": 20, "keys": 200, "bias": "line and strip"},
        some_of_few={"tokens": 200, "keys": 24, "positions": "scattered"},
        whole_tiles={"tokens": 128},
        one_too_many={"tokens": 129},
    )
    def test_lengths(self, arguments):
        self.check(problem_of(**SHAPES, **arguments))

    def test_bfloat16(self):
        self.check(problem_of(dtype="bfloat16", sinks=True))

    def test_rows_that_see_nothing(self):
        problem = problem_of(bias="line and strip", segments="strangers")
        found = self.run(problem)
        alone = np.s_[0, :50], np.s_[0, 51:100], np.s_[1]
        for rows in alone:
            for name in ("out", "q"):
                assert not np.any(found[name][rows]), name
            assert np.all(found["lse"][rows] == np.float32(NOTHING))
        for rows in (np.s_[0, :9], np.s_[1]):
            assert not np.any(found["k"][rows])
            assert not np.any(found["v"][rows])
        assert np.any(found["out"][0, 50])

    @pytest.mark.parametrize("sinks", [False, True])
    def test_what_lies_in_a_padded_slot_does_not_matter(self, sinks):
        problem = problem_of(bias="line and strip", segments="ragged", sinks=sinks)
        clean = self.run(problem)
        spoil = lambda x, tokens: jnp.where(tokens.segments[..., None, None] >= 0, x, jnp.nan)  # noqa: E731
        spoilt = dataclasses.replace(
            problem,
            q=spoil(problem.q, problem.queries),
            k=spoil(problem.k, problem.keys),
            v=spoil(problem.v, problem.keys),
            d_out=spoil(problem.d_out, problem.queries),
        )
        for name, x in self.run(spoilt).items():
            np.testing.assert_array_equal(x, clean[name], err_msg=name)
        for name, tokens in (("q", problem.queries), ("k", problem.keys), ("v", problem.keys)):
            assert not np.any(clean[name][np.asarray(tokens.segments) < 0]), name

    def test_the_same_again_bit_for_bit(self):
        problem = problem_of()
        first = self.run(problem)
        for _ in range(2):
            for name, x in self.run(problem).items():
                np.testing.assert_array_equal(x, first[name], err_msg=name)

    def test_packed_documents_equal_each_alone(self):
        packed = problem_of(segments="packed", positions="restarting")
        whole = self.run(packed, with_gradients=False)["out"]
        cut = packed.queries.positions.shape[1] - packed.queries.positions.shape[1] // 3
        for part in (slice(0, cut), slice(cut, None)):
            # The others are still there, as padding, so that the program is the same.
            inside = np.zeros(packed.q.shape[:2], int) - 1
            inside[:, part] = 0
            tokens = Tokens(packed.queries.positions, jnp.asarray(inside, jnp.int32))
            alone = self.run(dataclasses.replace(packed, queries=tokens, keys=tokens), with_gradients=False)["out"]
            np.testing.assert_allclose(alone[:, part], whole[:, part], atol=2e-6)

    def test_the_order_of_keys_does_not_matter(self):
        problem = problem_of(bias="line and strip", positions="scattered")
        order = np.random.default_rng(1).permutation(problem.k.shape[1])
        keys = Tokens(problem.keys.positions[:, order], problem.keys.segments[:, order])
        other = dataclasses.replace(problem, k=problem.k[:, order], v=problem.v[:, order], keys=keys)
        found, moved = self.run(problem), self.run(other)
        for name in ("out", "lse", "q"):
            np.testing.assert_allclose(moved[name], found[name], atol=2e-6 * np.abs(found[name]).max())
        for name in ("k", "v"):
            np.testing.assert_allclose(moved[name], found[name][:, order], atol=2e-6 * np.abs(found[name]).max())

    def test_the_future_is_not_seen(self):
        problem = problem_of()
        before = self.run(problem, with_gradients=False)
        for at in (1, 63, 130):
            changed = {name: getattr(problem, name).at[:, at:].set(1e3) for name in "qkv"}
            after = self.run(dataclasses.replace(problem, **changed), with_gradients=False)
            for name in ("out", "lse"):
                np.testing.assert_allclose(after[name][:, :at], before[name][:, :at], atol=2e-6)

    @pytest.mark.parametrize("slope", [1e4, -1e4])
    def test_large_numbers(self, slope):
        problem = problem_of(bias="none", seed=1)
        slopes = jnp.asarray([slope, slope / 100, 0.0, slope / 10], jnp.float32)
        self.check(
            dataclasses.replace(
                problem,
                q=100 * problem.q,
                k=30 * problem.k,
                v=1e5 * problem.v,
                scheme=dataclasses.replace(problem.scheme, slopes=slopes),
            )
        )

    @settings(max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test_any_call(self, data):
        heads, kv_heads = data.draw(st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2)]), "heads")
        draw = lambda name, values: data.draw(st.sampled_from(values), name)  # noqa: E731
        tokens, keys = data.draw(st.tuples(st.integers(1, 140), st.integers(1, 140)), "lengths")
        counted = tokens <= keys
        problem = problem_of(
            batch=draw("batch", [1, 2]),
            tokens=tokens,
            keys=keys,
            heads=heads,
            kv_heads=kv_heads,
            v_dim=draw("v_dim", [1, 8, 13]),
            bias=draw("bias", ["none", "learned", "t5", "line and strip"]),
            rotary_dim=draw("rotary_dim", [0, 4, 8]),
            layout=draw("layout", ["half", "interleaved"]),
            positions=draw("positions", ["counted", "permuted", "scattered"] if counted else ["scattered"]),
            segments=draw("segments", ["absent", "one", "packed"]),
            sinks=draw("sinks", [False, True]),
            causal=draw("causal", [False, True]),
            window=draw("window", [None, 1, 30]),
            soft_cap=draw("soft_cap", [None, 1.5]),
            skip_tiles=draw("skip_tiles", [False, True]),
            seed=data.draw(st.integers(0, 99), "seed"),
        )
        self.check(problem)
