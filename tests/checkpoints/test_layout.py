"""Telling layouts apart, and changing one into the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from rope_jax import scheme as schemes
from rope_jax.checkpoints import layout as layouts
from rope_jax.checkpoints.checkpoint import schemes_of
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.errors import CheckpointError
from rope_jax.frequencies import rotary


def config_of(num_layers=1, *, switches=True):
    return DecoderConfig(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=24,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        qkv_bias=switches,
        qk_norm=switches,
    )


def random_model(seed=0, config=None):
    """A decoder in which no two entries of a bias or a norm are alike either."""
    graph, state = nnx.split(Decoder(config or config_of(), rngs=nnx.Rngs(seed)))
    stream = np.random.RandomState(seed)
    return nnx.merge(graph, jax.tree.map(lambda x: x + jnp.asarray(stream.rand(*x.shape), x.dtype) / 4, state))


@functools.cache
def plain_model():
    return random_model()


def scheme_in(layout, dim=8):
    return schemes.build(
        rotary(dim, base=10.0, original_length=32), num_heads=4, head_dim=8, layout=layout, phase="float32"
    )


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, state, tokens, scheme):
    return nnx.merge(graph, state)(tokens, scheme)


def leaves(model):
    return jax.tree.leaves(nnx.state(model))


@pytest.mark.parametrize("dim", [None, 4])
@pytest.mark.parametrize("to", ["half", "interleaved"])
def test_a_converted_model_computes_the_same(to, dim):
    other = "interleaved" if to == "half" else "half"
    model = random_model()
    converted = layouts.convert_layout(model, to=to, rotary_dim=dim)
    tokens = jnp.arange(12).reshape(1, 12)
    before, after, wrong = (
        _logits(*nnx.split(one), tokens, scheme_in(layout, dim or 8))
        for one, layout in ((model, other), (converted, to), (model, to))
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)
    assert np.abs(wrong - before).max() > 1e-2


@pytest.mark.parametrize("dim", [None, 4])
def test_there_and_back_is_the_identity(dim):
    model = random_model()
    there = layouts.convert_layout(model, to="interleaved", rotary_dim=dim)
    back = layouts.convert_layout(there, to="half", rotary_dim=dim)
    for a, b in zip(leaves(model), leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)
    changed = [not np.array_equal(a, b) for a, b in zip(leaves(model), leaves(there), strict=True)]
    assert sum(changed) == 6  # kernel, bias and norm of queries and of keys


@pytest.mark.parametrize(("to", "dim"), [("sideways", None), ("half", 10), ("half", 3)])
def test_an_impossible_conversion(to, dim):
    with pytest.raises((ValueError, TypeCheckError)):
        layouts.convert_layout(random_model(), to=to, rotary_dim=dim)


def test_random_weights_are_evidence_of_nothing():
    for seed in range(4):
        model = random_model(seed, config_of(5))
        assert layouts.layout_evidence(model).favours is None


def test_few_heads_are_evidence_of_nothing():
    found = layouts.layout_evidence(random_model())
    assert found.favours is None
    assert np.isinf(found.standard_error)


def test_symmetric_rows_are_evidence():
    config = config_of(4, switches=False)
    model = random_model(0, config)
    for block in model.blocks:
        for projection in (block.attention.q, block.attention.k):
            first = projection.kernel[...][..., :4]
            projection.kernel[...] = jnp.concatenate([first, 1.1 * first], axis=-1)
    assert layouts.layout_evidence(model).favours == "half"
    assert layouts.layout_evidence(layouts.convert_layout(model, to="interleaved")).favours == "interleaved"


def test_the_loss_of_a_random_model_favours_neither():
    tokens = jnp.asarray(np.random.RandomState(0).randint(0, 13, size=(2, 40)))
    found = layouts.layout_by_loss(random_model(), tokens, scheme_in("half"))
    assert found.favours is None
    layouts.require_layout(found, "half", origin="here")
    layouts.require_layout(found, "interleaved", origin="here")


def unreadable_text(model, length):
    """Returns tokens guessed worse than blindly in both layouts, and worse as half than as interleaved."""
    graph, state = nnx.split(model)
    tokens = np.zeros((1, length), np.int32)
    for at in range(length - 1):
        half, interleaved = (
            np.asarray(jax.nn.log_softmax(_logits(graph, state, jnp.asarray(tokens), scheme_in(layout))))[0, at]
            for layout in ("half", "interleaved")
        )
        unlikely = np.maximum(half, interleaved) < -np.log(13)
        tokens[0, at + 1] = np.where(unlikely, interleaved - half, -np.inf).argmax()
    return jnp.asarray(tokens)


def test_text_that_the_model_cannot_read_decides_nothing():
    model = random_model()
    model.unembedding[...] = model.unembedding[...] * 8  # surer of what it says
    found = layouts.layout_by_loss(model, unreadable_text(model, 65), scheme_in("half"))
    assert found.margin < -max(4 * found.standard_error, 0.02)  # what a lower loss alone would call interleaved
    assert found.interleaved > np.log(13)
    assert found.favours is None
    assert "blind guess" in found.undecided
    for layout in ("half", "interleaved"):
        layouts.require_layout(found, layout, origin="here")


MEANS = st.floats(0.5, 40)
SIZES = st.integers(2, 400)


@given(half=MEANS, interleaved=MEANS, spread=st.floats(0, 10), size=SIZES, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=150)
def test_a_verdict_needs_a_text_that_is_read(half, interleaved, spread, size, seed):
    stream = np.random.default_rng(seed)
    noise = stream.normal(size=(2, size)) * spread
    losses = {"half": noise[0] + half, "interleaved": noise[1] + interleaved}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "_losses", lambda graph, state, tokens, scheme: losses[scheme.layout])
        found = layouts.layout_by_loss(plain_model(), jnp.zeros((1, size), int), scheme_in("half"))
    lower = min(found.half, found.interleaved)
    assert (found.favours is None) == bool(found.undecided)
    if found.favours is None:
        assert f"{found.half:.3f}" in found.undecided
    else:
        assert lower < np.log(13)
        assert lower == getattr(found, found.favours)
    error = losses["half" if lower == found.half else "interleaved"].std(ddof=1) / np.sqrt(size)
    apart = abs(found.margin) > max(4.1 * found.standard_error, 0.021)
    assert found.favours is not None or not (apart and lower + 4.1 * error < np.log(13))


@given(rows=st.integers(1, 9), length=st.integers(2, 3000))
@settings(deadline=None, max_examples=25)
def test_a_few_hundred_tokens_are_looked_at_whatever_the_text(rows, length):
    tokens = jnp.arange(rows * length).reshape(rows, length)
    pieces = np.asarray(layouts._pieces(tokens))
    assert 2 <= pieces.size <= 514
    assert pieces.shape[1] == min(length, 257)
    assert (np.diff(pieces, axis=1) == 1).all()  # runs of text, none across two rows
    assert (pieces[:, 0] // length == pieces[:, -1] // length).all()
    assert len(pieces) == min(2, rows * (length // pieces.shape[1]))


def test_one_piece_at_a_time_goes_through_the_vocabulary():
    graph, state = nnx.split(plain_model())
    tokens = jnp.zeros((2, 257), int)
    program = str(jax.make_jaxpr(functools.partial(layouts._losses, graph))(state, tokens, scheme_in("half")))
    assert "f32[1,256,13]" in program
    assert "2,256,13]" not in program


@pytest.fixture(scope="module")
def both(real):
    path = real / "models" / "stories260K"
    return load_checkpoint(path), load_checkpoint(path / "stories260K.bin")


def test_evidence_of_the_real_model(both):
    for checkpoint in both:
        found = layouts.layout_evidence(checkpoint.model)
        assert found.favours == checkpoint.layout
        assert found.log_odds.shape == (5, 4)
        assert 1.3 < abs(found.mean) < 1.5


def test_loss_of_the_real_model(both, real):
    tokens = jnp.asarray(np.load(real / "text" / "tinystories_packed_6x4096.npy")[:2, :257])
    for checkpoint in both:
        found = layouts.layout_by_loss(checkpoint.model, tokens, schemes_of(checkpoint))
        assert found.favours == checkpoint.layout
        assert abs(found.margin) > 3
        layouts.require_layout(found, checkpoint.layout, origin=checkpoint.origin)
        wrong = "half" if checkpoint.layout == "interleaved" else "interleaved"
        with pytest.raises(CheckpointError, match=checkpoint.layout) as caught:
            layouts.require_layout(found, wrong, origin=checkpoint.origin)
        assert checkpoint.origin in str(caught.value)


def test_the_real_model_on_text_that_it_cannot_read(both, real):
    stories = np.load(real / "text" / "tinystories_packed_6x4096.npy")[:2, :257]
    stream = np.random.default_rng(0)
    texts = [stream.permuted(stories, axis=1), stories[:, ::-1], stream.integers(0, 512, stories.shape)]
    for checkpoint in both:
        for text in texts:
            found = layouts.layout_by_loss(checkpoint.model, jnp.asarray(text), schemes_of(checkpoint))
            assert found.favours is None
            assert min(found.half, found.interleaved) > np.log(512)
            layouts.require_layout(found, checkpoint.layout, origin=checkpoint.origin)


def test_the_real_model_converted(both):
    half, interleaved = both
    converted = layouts.convert_layout(interleaved.model, to="half")
    for a, b in zip(leaves(converted), leaves(half.model), strict=True):
        np.testing.assert_array_equal(a, b)
