"""Schemes as data: lowering is exact, gradients pass, one program serves every retrofit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rope_jax import biases, frequencies, length_rules, scaling, scheme
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.errors import ScalingError

HEADS, DIM, L = 4, 8, 64
ROTARY = frequencies.rotary(DIM, base=194.0, original_length=L)
build = functools.partial(scheme.build, num_heads=HEADS, head_dim=DIM)


def frequencies_of(one):
    return np.asarray(one.inverse_frequencies, np.float64) + np.asarray(one.remainder, np.float64)


def all_biases(seed=0):
    rng = np.random.default_rng(seed)
    table = lambda size: jnp.asarray(rng.standard_normal((HEADS, size)), jnp.float32)  # noqa: E731
    positive = lambda: jnp.asarray(rng.uniform(0.2, 1.5, HEADS), jnp.float32)  # noqa: E731
    return {
        "none": None,
        "alibi": biases.alibi_paper(HEADS),
        "t5": biases.t5_bias(table(8), max_distance=30),
        "t5 both ways": biases.t5_bias(table(8), max_distance=30, bidirectional=True),
        "per offset": biases.PerOffset(table(12)),
        "kerple": biases.KerpleLogarithmic(positive(), positive()),
    }


def all_rules():
    ramp = {"factor": 8.0, "original_length": L}
    return [
        scaling.none(),
        scaling.linear(factor=8.0),
        scaling.ntk(factor=8.0),
        scaling.explicit_base(base=1e4),
        scaling.proportional(proportion=0.5),
        scaling.by_parts(**ramp, beta=8.0),
        scaling.yarn(**ramp, beta_fast=8.0),
        scaling.llama3(**ramp, low_freq_factor=1.0, high_freq_factor=4.0),
        scaling.per_pair(factors=[1.0, 2.0, 3.0, 4.0], attention_factor=1.1),
        scaling.resonance(),
        length_rules.dynamic_ntk(**ramp).at(200),
        length_rules.longrope(short_factor=[1.0] * 4, long_factor=[1.0, 2.0, 4.0, 8.0], original_length=L).at(65),
    ]


@pytest.mark.parametrize("name", all_biases())
def test_lowering_is_the_bias_at_every_offset(name):
    bias = all_biases()[name]
    reach = 400
    built = build(ROTARY, bias, max_offset=reach if name == "kerple" else None)
    far = reach if name == "kerple" else 10**6
    offset = jnp.asarray(np.random.default_rng(1).integers(-far, far, (30, 20)), jnp.int32)
    near = jnp.asarray(np.arange(-60, 60).reshape(10, 12), jnp.int32)
    for offsets in (offset, near):
        expected = jnp.zeros((HEADS, *offsets.shape)) if bias is None else bias(offsets)
        actual = built.bias(offsets)
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
        np.testing.assert_array_equal(built.bias(offsets[None])[0], actual)
        np.testing.assert_array_equal(scheme.widen(built, 1000).bias(offsets), actual)


def test_the_parts_of_a_scheme():
    yarn = scaling.yarn(factor=8.0, original_length=L, beta_fast=8.0)(ROTARY)
    built = build(yarn, all_biases()["t5"], layout="interleaved", phase="float32")
    np.testing.assert_allclose(frequencies_of(built), yarn.inverse_frequencies, rtol=2.0**-46)
    assert float(built.cos_sin_factor) == pytest.approx(yarn.cos_sin_factor)
    assert (float(built.logit_scale), built.layout, built.phase) == (1.0, "interleaved", "float32")
    assert (built.num_heads, built.rotary_dim) == (HEADS, DIM)
    assert built.max_offset == all_biases()["t5"].flat_from
    cos, sin = built.cos_sin(jnp.arange(5))
    np.testing.assert_allclose(cos**2 + sin**2, yarn.cos_sin_factor**2, rtol=1e-5)
    nope = build(None, None)
    assert (nope.rotary_dim, nope.max_offset) == (0, 0)
    x = jnp.ones((1, 3, HEADS, DIM))
    np.testing.assert_array_equal(nope.rotate(x, jnp.arange(3)[None]), x)
    unscaled = biases.t5_bias(np.zeros((HEADS, 8)), max_distance=30, unscaled_logits=True)
    assert float(build(None, unscaled).logit_scale) == pytest.approx(DIM**0.5)


def test_stack_widens_and_unstacks_exactly():
    schemes = [build(ROTARY, bias, max_offset=50 if name == "kerple" else None) for name, bias in all_biases().items()]
    together = scheme.stack(schemes)
    offset = jnp.arange(-70, 70).reshape(1, 140)
    for row, one in enumerate(schemes):
        alone = jax.tree.map(lambda leaf, row=row: leaf[row], together)
        assert alone.max_offset == 50
        np.testing.assert_array_equal(alone.bias(offset), one.bias(offset))
    for name, other in {
        "layout": build(ROTARY, layout="interleaved"),
        "phase": build(ROTARY, phase="float32"),
        "rotary_dim": build(None),
        "num_heads": scheme.build(ROTARY, None, num_heads=2, head_dim=DIM),
    }.items():
        with pytest.raises(ValueError, match=f"different {name} do not stack"):
            scheme.stack([schemes[0], other])
    with pytest.raises(ValueError, match="no schemes"):
        scheme.stack([])
    with pytest.raises(ValueError, match="cannot be cut"):
        scheme.widen(together, 3)


def test_errors_of_build():
    with pytest.raises(ValueError, match="the bias has 2 heads, the model 4"):
        build(ROTARY, biases.alibi_paper(2))
    with pytest.raises(ValueError, match="16 rotary dimensions do not fit"):
        build(frequencies.rotary(16, base=194.0, original_length=L))
    with pytest.raises(ValueError, match="never becomes flat"):
        build(ROTARY, all_biases()["kerple"])
    with pytest.raises(ValueError, match="still changes at offset 11"):
        build(ROTARY, all_biases()["per offset"], max_offset=10)


@pytest.mark.parametrize("name", [name for name in all_biases() if name != "none"])
def test_gradients_pass_through_build(name):
    bias = all_biases()[name]
    offset = jnp.asarray([[-50, -3, 0], [1, 9, 300]])
    weights = jnp.asarray(np.random.default_rng(2).standard_normal((HEADS, 2, 3)), jnp.float32)
    through = jax.jit(jax.grad(lambda bias: jnp.sum(weights * build(ROTARY, bias, max_offset=400).bias(offset))))(bias)
    direct = jax.jit(jax.grad(lambda bias: jnp.sum(weights * bias(offset))))(bias)
    for ours, expected in zip(jax.tree.leaves(through), jax.tree.leaves(direct), strict=True):
        assert np.any(expected)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


# ---- one program

CONFIG = DecoderConfig(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=16,
    num_layers=2,
    num_heads=HEADS,
    num_kv_heads=2,
    head_dim=DIM,
    rms_norm_eps=1e-5,
)
GRAPH, STATE = nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))
TOKENS = jnp.asarray(np.random.default_rng(3).integers(0, 11, (2, 24)), jnp.int32)


def forward(one, tokens=TOKENS):
    return nnx.merge(GRAPH, STATE)(tokens, one)


def many_schemes():
    return [build(rule(ROTARY), bias, max_offset=60) for rule in all_rules() for bias in all_biases().values()]


def test_every_retrofit_runs_in_one_compiled_program():
    schemes = many_schemes()
    assert len(schemes) >= 50
    assert len({jax.tree.structure(one) for one in schemes}) == 1
    compiled = jax.jit(forward)
    logits = np.stack([compiled(one) for one in schemes])
    assert compiled._cache_size() == 1
    assert np.isfinite(logits).all()
    # None of them is the same model as another, but for the two that change nothing or nothing yet.
    flat = logits.reshape(len(schemes), -1)
    different = np.abs(flat[:, None] - flat[None]).max(axis=-1) > 1e-6
    assert different.sum() >= 0.99 * len(schemes) * (len(schemes) - 1)
    sweep = scheme.stack(schemes[::6] + schemes[1:5])
    one_by_one = np.concatenate([logits[::6], logits[1:5]])
    np.testing.assert_allclose(jax.jit(lambda many: jax.lax.map(forward, many))(sweep), one_by_one, atol=2e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(forward))(sweep), one_by_one, atol=2e-5)


def test_a_batch_with_a_scheme_for_each_sequence():
    pair = [build(all_rules()[6](ROTARY), all_biases()["t5"]), build(ROTARY, all_biases()["alibi"])]
    together = jax.jit(forward)(scheme.stack(pair))
    for row, one in enumerate(pair):
        np.testing.assert_allclose(together[row], jax.jit(forward)(one)[row], atol=1e-5)


def test_gradients_reach_every_array_but_the_remainder():
    built = build(all_rules()[6](ROTARY), all_biases()["t5"])
    gradient = jax.jit(jax.grad(lambda one: jnp.sum(forward(one)[..., 0])))(built)
    for name in ("inverse_frequencies", "cos_sin_factor", "logit_scale", "slopes", "offset_bias"):
        assert np.isfinite(getattr(gradient, name)).all()
        assert np.any(getattr(gradient, name)), name
    assert not np.any(gradient.remainder)
    past, future = np.split(np.asarray(gradient.offset_bias), [built.max_offset], axis=1)[::-1]
    assert np.any(past)
    assert not np.any(future)  # a causal model never reads offsets below 0


# ---- retrofits


def test_the_three_options():
    case = scheme.Retrofit(ROTARY, scaling.ntk(factor=8.0), biases.alibi_paper(HEADS))
    offset = jnp.arange(10)[None]
    make = functools.partial(scheme.scheme_of, num_heads=HEADS, head_dim=DIM)
    status_quo, first = make(case), make(scheme.drop_bias(case))
    second, third = make(scheme.undo_scaling(case)), make(scheme.rescale(case, scaling.linear(factor=8.0)))
    scaled = case.rule(ROTARY).inverse_frequencies
    for one, theta, biased in (
        (status_quo, scaled, True),
        (first, scaled, False),
        (second, ROTARY.inverse_frequencies, True),
        (third, ROTARY.inverse_frequencies / 8, True),
    ):
        np.testing.assert_array_equal(one.inverse_frequencies, theta.astype(np.float32))
        assert bool(np.any(one.bias(offset))) == biased
    assert case.rule.name == "ntk"  # untouched
    assert scheme.Retrofit(ROTARY).rule.name == "none"


def test_rules_by_length_need_a_length_or_per_length():
    for rule in (
        length_rules.dynamic_ntk(factor=8.0, original_length=L),
        length_rules.longrope(
            short_factor=[1.0] * 4, long_factor=[1.0, 2.0, 4.0, 8.0], original_length=L, attention_factor=1.2
        ),
    ):
        case = scheme.Retrofit(ROTARY, rule, biases.alibi_paper(HEADS))
        with pytest.raises(ValueError, match="depends on the sequence's length"):
            scheme.scheme_of(case, num_heads=HEADS, head_dim=DIM)
        lengths = [10, L, L + 1, 500]
        at = scheme.per_length(case, num_heads=HEADS, head_dim=DIM, layout="interleaved")
        batched = jax.jit(at)(jnp.asarray(lengths, jnp.int32))
        assert (batched.layout, batched.slopes.shape) == ("interleaved", (4, HEADS))
        for row, length in enumerate(lengths):
            alone = scheme.scheme_of(case, length=length, num_heads=HEADS, head_dim=DIM, layout="interleaved")
            mine = jax.tree.map(lambda leaf, row=row: leaf[row], batched)
            assert jax.tree.structure(mine) == jax.tree.structure(alone)
            np.testing.assert_allclose(frequencies_of(mine), frequencies_of(alone), rtol=1e-12)
            for name in ("cos_sin_factor", "logit_scale", "slopes", "offset_bias"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(alone, name))
    with pytest.raises(ScalingError):
        scheme.per_length(
            scheme.Retrofit(frequencies.rotary(2, base=10.0, original_length=L), case.rule), num_heads=1, head_dim=8
        )


def test_per_length_of_a_static_rule_is_the_one_scheme():
    case = scheme.Retrofit(ROTARY, scaling.linear(factor=2.0))
    at = scheme.per_length(case, num_heads=HEADS, head_dim=DIM)
    assert at(jnp.asarray([1, 100])) is at(jnp.asarray([7, 8]))


# ---- what a caller may get wrong

INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


@pytest.mark.parametrize("wrong", [{"layout": "hlaf"}, {"phase": "exakt"}, {"layout": "interleaved "}])
def test_a_misspelt_layout_or_phase_is_refused_with_the_names(wrong, without_type_checks):
    ((name, value),) = wrong.items()
    allowed = {"layout": "'half' or 'interleaved'", "phase": "'exact' or 'float32'"}[name]
    for make in (
        lambda: build(ROTARY, **wrong),
        lambda: build(None, **wrong),
        lambda: scheme.scheme_of(scheme.Retrofit(ROTARY), num_heads=HEADS, head_dim=DIM, **wrong),
        lambda: dataclasses.replace(build(ROTARY), **wrong),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be {allowed}, got {value!r}"):
            make()


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_heads": 0},
        {"num_heads": 2.0},
        {"num_heads": True},
        {"head_dim": 0},
        {"head_dim": 8.5},
        {"max_offset": -1},
        {"max_offset": 7.5},
    ],
)
def test_sizes_of_a_scheme_are_whole_numbers_in_range(wrong, without_type_checks):
    ((name, value),) = wrong.items()
    with pytest.raises(ScalingError, match=f"^{name} must be a whole number, at least [01], got {value!r}$"):
        scheme.build(None, None, **{"num_heads": HEADS, "head_dim": DIM, **wrong})


@pytest.mark.parametrize("width", INTEGERS)
def test_positions_offsets_and_lengths_of_any_width_are_those_of_int32(width):
    info, x = np.iinfo(width), jnp.ones((1, 5, HEADS, DIM))
    ends = [max(info.min, -(2**31)), max(info.min, -(2**31)) + 1, 3, min(info.max, 2**31 - 1) - 1]
    values = np.array([[0, *ends]], np.int64)
    for bias in all_biases().values():
        built = build(ROTARY, bias, max_offset=300 if isinstance(bias, biases.KerpleLogarithmic) else None)
        right = jnp.asarray(values, jnp.int32)
        for made in [values.astype(width), *([jnp.asarray(values.astype(width))] if info.bits < 64 else [])]:
            for call in (
                built.cos_sin,
                lambda p, built=built: built.rotate(x, p),
                lambda p, built=built: built.bias(p[..., None]),
            ):
                assert_trees_equal(call(made), call(right))
        assert np.asarray(built.bias(right[..., None])).max() < 1e4  # |-2^31| is no int32
    at = scheme.per_length(
        scheme.Retrofit(ROTARY, length_rules.dynamic_ntk(factor=4.0, original_length=L)), num_heads=HEADS, head_dim=DIM
    )
    lengths = np.array([1, L, L + 1, 2 * L - 1, min(info.max, 2**31 - 1)], np.int64)
    assert_trees_equal(at(lengths.astype(width)), at(jnp.asarray(lengths, jnp.int32)))


def assert_trees_equal(ours, right):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.bool_])
def test_what_is_no_integer_is_refused_by_name(dtype, without_type_checks):
    built, x = build(ROTARY, biases.alibi_paper(HEADS)), jnp.ones((1, 3, HEADS, DIM))
    at = scheme.per_length(
        scheme.Retrofit(ROTARY, length_rules.dynamic_ntk(factor=4.0, original_length=L)), num_heads=HEADS, head_dim=DIM
    )
    for name, call in (
        ("positions", built.cos_sin),
        ("positions", lambda p: built.rotate(x, p)),
        ("offset", lambda p: built.bias(p[..., None])),
        ("lengths", at),
    ):
        with pytest.raises(TypeError, match=f"^{name} must be integers"):
            call(jnp.ones((1, 3), dtype))


def deployed(rule=None, temperature=1.0):
    rule = rule or scaling.yarn(factor=4.0, original_length=L)
    return scheme.Retrofit(ROTARY, rule, biases.alibi_paper(HEADS), temperature, bias_name="alibi")


def lowered(retrofit):
    return scheme.scheme_of(retrofit, num_heads=HEADS, head_dim=DIM, length=4 * L)


def logit_factor(retrofit):
    one = lowered(retrofit)
    return float(one.cos_sin_factor) ** 2 * float(one.logit_scale)


def test_each_option_changes_one_thing():
    before, ntk = deployed(temperature=1.25), scaling.ntk(factor=4.0)
    one = scheme.drop_bias(before)
    assert (one.rule, one.temperature, one.name) == (before.rule, 1.25, "yarn + none + temperature 1.25")
    two = scheme.undo_scaling(before)
    np.testing.assert_array_equal(frequencies_of(lowered(two)), frequencies_of(build(ROTARY)))
    assert (two.bias, logit_factor(two)) == (before.bias, 1.25)
    three = scheme.rescale(before, ntk)
    assert (three.rule, three.bias, logit_factor(three)) == (ntk, before.bias, 1.25)
    assert_trees_equal(lowered(scheme.undo_both(before)), build(ROTARY))
    sharper = scheme.sharpen(before, 2.0)
    assert logit_factor(sharper) == pytest.approx(logit_factor(before) * 2 / 1.25)
    assert scheme.rescale(three, before.rule) == before


def test_without_rotation_only_the_bias_knows_positions():
    dropped = lowered(scheme.drop_rotation(deployed()))
    assert not frequencies_of(dropped).any()
    q = jnp.ones((1, 3, HEADS, DIM))
    np.testing.assert_array_equal(dropped.rotate(q, jnp.arange(3)[None]), q)
    np.testing.assert_array_equal(dropped.slopes, biases.alibi_paper(HEADS).slopes)


@pytest.mark.parametrize(
    "rule",
    [scaling.ntk(factor=4.0), scaling.yarn(factor=2.0, original_length=L),
     length_rules.longrope(short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_length=L, attention_factor=1.5)],
    ids=["none of its own", "another", "by length"],
)  # fmt: skip
def test_keeping_the_temperature_changes_the_map_alone(rule):
    before = deployed(temperature=1.25)
    after = scheme.rescale(before, rule)
    kept = scheme.keeping_temperature(before, after, length=4 * L)
    assert logit_factor(kept) == pytest.approx(logit_factor(before), rel=1e-6)
    np.testing.assert_array_equal(frequencies_of(lowered(kept)), frequencies_of(lowered(after)))
    same = deployed(scaling.linear(factor=4.0))
    assert scheme.keeping_temperature(same, scheme.rescale(same, scaling.ntk(factor=4.0)), length=1).temperature == 1


def test_the_temperature_is_on_all_logits_at_every_length():
    rule = length_rules.dynamic_ntk(factor=4.0, original_length=L)
    at = scheme.per_length(deployed(rule, temperature=1.25), num_heads=HEADS, head_dim=DIM)
    np.testing.assert_array_equal(at(np.array([1, 4 * L])).logit_scale, np.float32([1.25, 1.25]))
    assert float(lowered(deployed(rule, temperature=1.25)).logit_scale) == 1.25
