"""Gemma's decoders against transformers: logits, a key cache, and gradients."""

import pathlib
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, at import
    transformers = pytest.importorskip("transformers")

from rope_jax.checkpoints.checkpoint import schemes_of  # noqa: E402
from rope_jax.checkpoints.huggingface import published_name  # noqa: E402
from rope_jax.checkpoints.loading import load_checkpoint  # noqa: E402
from rope_jax.checkpoints.weights import path_of, published_shapes  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parents[1] / "golden"))
from logit_cases import GEMMAS, RUNS, TOKENS, our_logits, write  # noqa: E402
from record_transformers_logits import peer_logits  # noqa: E402

NEAR, FAR = 2e-5, 1e-3  # as for the other families


@pytest.fixture(autouse=True)
def quiet_threads():
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("case", GEMMAS)
def test_logits_near_and_far(case, tmp_path):
    write(tmp_path / "ours", GEMMAS[case])
    expected, peer = peer_logits(tmp_path / "ours")
    peer.save_pretrained(tmp_path / "theirs")
    # What transformers writes of a Gemma 3 has a private key for what its list of layers says already.
    for directory in ("ours",) if "gemma3" in case else ("ours", "theirs"):
        checkpoint = load_checkpoint(tmp_path / directory)
        for run in RUNS:
            found = our_logits(checkpoint, run, phase="float32")
            np.testing.assert_allclose(found, expected[run], rtol=0, atol=FAR if run == "far" else NEAR)


@pytest.mark.parametrize("case", ["gemma2", "gemma3-linear"])
@pytest.mark.parametrize("cached", ["unrotated", "rotated"])
def test_a_prompt_and_steps_through_the_cache(case, cached, tmp_path):
    write(tmp_path, GEMMAS[case])
    expected, _ = peer_logits(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    scheme, tokens = schemes_of(checkpoint, phase="float32"), jnp.asarray(TOKENS)
    hidden, cache = checkpoint.model.prefill(tokens[:, :90], scheme, capacity=160, cached=cached)
    found = [checkpoint.model.unembed(hidden)]
    for first, last in ((90, 91), (91, 130), (130, 160)):
        places = jnp.arange(first, last, dtype=jnp.int32)[None]
        logits, cache = checkpoint.model.extend(cache, tokens[:, first:last], scheme, positions=places)
        found.append(logits)
    np.testing.assert_allclose(jnp.concatenate(found, 1)[0], expected["long"], rtol=0, atol=NEAR)


@pytest.mark.parametrize("case", ["gemma2", "gemma3"])
def test_gradients_of_the_loss(case, tmp_path):
    write(tmp_path, GEMMAS[case])
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    tokens = torch.from_numpy(TOKENS.astype(np.int64))
    logits = peer(tokens, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).backward()
    expected = {name: value.grad.numpy() for name, value in peer.named_parameters()}

    checkpoint = load_checkpoint(tmp_path)
    graph, state = nnx.split(checkpoint.model)
    scheme, ids = schemes_of(checkpoint, phase="float32"), jnp.asarray(TOKENS)

    def loss(state):
        logits = nnx.merge(graph, state)(ids, scheme)[0, :-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[0, 1:, None], axis=-1).mean()

    found = jax.grad(loss)(state)
    shapes = published_shapes(state)
    leaves, _ = jax.tree_util.tree_flatten_with_path(found)
    assert len(leaves) == len(expected)
    for keys, leaf in leaves:
        path = path_of(keys)
        value = np.asarray(leaf)
        if path.endswith(".kernel"):
            value = value.reshape(shapes[path][::-1]).T
        wanted = expected[published_name(path, checkpoint.config)]
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-5 + 1e-4 * np.abs(wanted).max(), err_msg=path)
