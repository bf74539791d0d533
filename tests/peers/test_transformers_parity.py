"""The loaded decoder against transformers itself, on checkpoints that transformers wrote."""

import dataclasses
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
from rope_jax.checkpoints.loading import load_checkpoint  # noqa: E402

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
sys.path.append(str(GOLDEN))
from logit_cases import CASES, MODELS, ROPES, RUNS, new_schema, our_logits, write  # noqa: E402
from record_transformers_logits import peer_logits  # noqa: E402

# Measured over all cases, on logits up to 4: 4e-6 near and 2.5e-4 far, in float32 and exact phases alike. At position
# 5000 a float32 angle is coarse by 2e-4 radians, and both libraries' float32 frequencies differ in the last bit; with
# the peer's own frequencies the far run agrees within 1e-4 too.
NEAR, FAR, FAR_SAME_FREQUENCIES = 2e-5, 1e-3, 1e-4


@pytest.fixture(autouse=True)
def quiet_threads():
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("case", [f"{model}-{rope}" for model in MODELS for rope in ROPES])
def test_every_model_and_rope_type(case, tmp_path):
    write(tmp_path / "ours", CASES[case])
    expected, peer = peer_logits(tmp_path / "ours")
    peer.save_pretrained(tmp_path / "theirs")
    checkpoint = load_checkpoint(tmp_path / "theirs")
    for run in RUNS:
        tolerance = FAR if run == "far" else NEAR
        np.testing.assert_allclose(our_logits(checkpoint, run, phase="float32"), expected[run], rtol=0, atol=tolerance)
    exact = our_logits(checkpoint, "far", phase="exact")
    np.testing.assert_allclose(exact, expected["far"], rtol=0, atol=FAR)

    peers_frequencies = jnp.asarray(peer.model.rotary_emb.inv_freq.numpy())  # of the last run, the far one

    def with_peers_frequencies(scheme):
        np.testing.assert_allclose(scheme.inverse_frequencies, peers_frequencies, rtol=1e-6)
        return dataclasses.replace(scheme, inverse_frequencies=peers_frequencies)

    same = our_logits(checkpoint, "far", phase="float32", change=with_peers_frequencies)
    np.testing.assert_allclose(same, expected["far"], rtol=0, atol=FAR_SAME_FREQUENCIES)


@pytest.mark.parametrize("rope", [rope for rope in ROPES if rope != "default"])
def test_another_rope_type_would_not_pass(rope, tmp_path):
    write(tmp_path / "right", CASES[f"llama-{rope}"])
    write(tmp_path / "wrong", new_schema("llama", "default"))
    right, wrong = load_checkpoint(tmp_path / "right"), load_checkpoint(tmp_path / "wrong")
    difference = np.abs(our_logits(right, "long", phase="float32") - our_logits(wrong, "long", phase="float32")).max()
    assert difference > 1000 * NEAR


@pytest.mark.parametrize("case", ["llama-llama3-v4", "llama-longrope-v4", "llama-biases", "llama-tied"])
def test_either_schema_and_switches(case, tmp_path):
    write(tmp_path, CASES[case])
    expected, _ = peer_logits(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    for run in ("short", "long"):
        np.testing.assert_allclose(our_logits(checkpoint, run, phase="float32"), expected[run], rtol=0, atol=NEAR)


@pytest.mark.parametrize("case", ["mistral-window", "qwen2-window", "qwen2-window-v4", "qwen3-window"])
def test_sliding_windows(case, tmp_path):
    write(tmp_path / "ours", CASES[case])
    expected, peer = peer_logits(tmp_path / "ours")
    peer.save_pretrained(tmp_path / "theirs")
    checkpoint = load_checkpoint(tmp_path / "theirs")
    assert 24 in checkpoint.config.windows
    for run in ("short", "long"):
        np.testing.assert_allclose(our_logits(checkpoint, run, phase="float32"), expected[run], rtol=0, atol=NEAR)


def test_shards_and_half_precision(tmp_path):
    write(tmp_path / "ours", CASES["qwen3-yarn"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("model-*-of-*.safetensors"))) > 1
    checkpoint = load_checkpoint(tmp_path / "theirs")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(checkpoint.model))} == {"bfloat16"}
    expected, _ = peer_logits(tmp_path / "theirs")
    np.testing.assert_allclose(our_logits(checkpoint, "long", phase="float32"), expected["long"], rtol=0, atol=NEAR)


def test_the_real_model(real):
    path = real / "models" / "stories260K"
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    tokens = np.load(real / "text" / "tinystories_packed_6x4096.npy")[:1, :300]
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens.astype(np.int64)), use_cache=False).logits.numpy()
    checkpoint = load_checkpoint(path)
    scheme = schemes_of(checkpoint, phase="float32")
    logits = jax.jit(lambda tokens: checkpoint.model(tokens, scheme))(jnp.asarray(tokens))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
