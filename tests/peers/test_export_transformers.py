"""Exported configs in transformers itself: its frequencies, its factor and its logits are those that were asked for."""

import pathlib
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, at import
    transformers = pytest.importorskip("transformers")

from rope_jax import scaling  # noqa: E402
from rope_jax.checkpoints.dialects import positions_of  # noqa: E402
from rope_jax.checkpoints.exporting import export_config, wanted_scaling  # noqa: E402
from rope_jax.checkpoints.extending import trained_length  # noqa: E402
from rope_jax.checkpoints.loading import load_checkpoint  # noqa: E402
from rope_jax.scaling.registry import SCALINGS  # noqa: E402
from rope_jax.scheme import build  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parents[1] / "golden"))
from logit_cases import CASES, MODELS, RUNS, L, new_schema, old_schema, our_logits, write  # noqa: E402
from record_transformers_logits import peer_logits  # noqa: E402

TARGET = 8 * L
LISTS = {"factors": scaling.per_pair(factors=[1.0, 1.1, 1.5, 2.0, 3.0, 5.0, 7.0, 8.0], attention_factor=1.1)}
NAMES = [*(name for name in SCALINGS if name != "no_rotation"), *LISTS]
# As in test_transformers_parity: float32 angles of both libraries near and far.
TOLERANCES = {"short": 2e-5, "long": 2e-5, "far": 1e-3}


@pytest.fixture(autouse=True)
def quiet_threads():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def exported(config, name, *, peer="transformers", target=TARGET, compose=False):
    positions = positions_of(config, origin="test.json")
    scaling = LISTS.get(name) or name
    wanted = wanted_scaling(
        positions, scaling, trained_length=trained_length(positions), target_length=target, compose=compose
    )
    return export_config(config, positions, wanted, peer=peer).config, wanted


def rotary_embedding(config, folder):
    """Returns what transformers makes of a config: its rotary module."""
    write(folder, config, {})
    read = transformers.AutoConfig.from_pretrained(folder)
    return transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(read)


def check(module, wanted, length):
    x, places = torch.zeros(1, 1, 1), torch.tensor([[0, length - 1]])
    module(x, places)
    record = wanted.at(length)
    np.testing.assert_allclose(module.inv_freq.numpy(), record.inverse_frequencies, rtol=2e-6)
    assert module.attention_scaling == pytest.approx(record.cos_sin_factor, rel=1e-12)


@pytest.mark.parametrize("peer", ["transformers", "vllm"])
@pytest.mark.parametrize("schema", [new_schema, old_schema])
@pytest.mark.parametrize("name", NAMES)
def test_their_frequencies_and_factor(name, schema, peer, tmp_path):
    if (name, peer) == ("dynamic_ntk", "vllm"):
        pytest.skip("refused: vLLM would scale nothing")
    config, wanted = exported(schema("llama", "default"), name, peer=peer)
    module = rotary_embedding(config, tmp_path)
    for length in (L // 2, L, L + 1, TARGET):
        check(module, wanted, length)


@pytest.mark.parametrize("schema", [new_schema, old_schema])
@pytest.mark.parametrize("declared", ["llama3", "yarn_attention_factor", "linear", "yarn_untruncated"])
def test_a_scaling_on_top_of_a_declared_one(declared, schema, tmp_path):
    for name in ("none", "linear"):
        config, wanted = exported(schema("llama", declared), name, target=2 * TARGET)
        module = rotary_embedding(config, tmp_path / name)
        for length in (L // 2, L + 1, TARGET + 1):
            check(module, wanted, length)


@pytest.mark.parametrize("case", [*(f"llama-{name}" for name in NAMES), "qwen3-factors", "mistral-ntk4", "qwen2-yarn"])
def test_their_logits_are_ours_under_the_rule_itself(case, tmp_path):
    """The rule is applied to the old config's weights here; the exported config goes to transformers alone."""
    model, name = case.split("-")
    config, wanted = exported(new_schema(model, "default"), name)
    write(tmp_path / "new", config)
    write(tmp_path / "old", new_schema(model, "default"))
    expected, _ = peer_logits(tmp_path / "new")
    checkpoint = load_checkpoint(tmp_path / "old")
    worst = {}
    for run, (first, count, _) in RUNS.items():

        def asked(scheme, length=first + count):
            return build(
                wanted.at(length),
                None,
                num_heads=scheme.num_heads,
                head_dim=MODELS[model]["head_dim"],
                layout=scheme.layout,
                phase="float32",
            )

        logits = our_logits(checkpoint, run, phase="float32", change=asked)
        np.testing.assert_allclose(logits, expected[run], rtol=0, atol=TOLERANCES[run])
        worst[run] = float(jnp.abs(logits - our_logits(checkpoint, run, phase="float32")).max())
    if name != "none":
        assert worst["far"] > 0.05, "the scaling is seen in the logits"


def test_nothing_about_rope_is_logged(tmp_path, caplog):
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_propagation()
    try:
        for name in NAMES:
            rotary_embedding(exported(CASES["llama-default"], name)[0], tmp_path / name)
        assert "rope" not in caplog.text.lower()
        rotary_embedding(exported(CASES["llama-default"], "factors", peer="vllm")[0], tmp_path / "vllm")
        assert "short_mscale" in caplog.text, "what vLLM alone reads is seen here as unknown, so the log is heard"
    finally:
        transformers.logging.disable_propagation()


def test_phi3_takes_longrope_only(tmp_path):
    phi = {**new_schema("llama", "default"), "model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    del phi["head_dim"]
    phi["hidden_size"] = 64
    config, wanted = exported(phi, "yarn")
    write(tmp_path, config, {})
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    module = transformers.models.phi3.modeling_phi3.Phi3RotaryEmbedding(read)
    for length in (L, L + 1, TARGET):
        check(module, wanted, length)
