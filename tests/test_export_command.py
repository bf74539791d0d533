"""The export command: what it prints and writes, what it refuses in one line, and that it starts without JAX."""

import json
import math
import os
import pathlib
import shlex
import subprocess
import sys

import numpy as np
import pytest

from rope_jax import cli
from rope_jax.checkpoints.dialects import read_positions
from rope_jax.checkpoints.peer_readings import readings
from rope_jax.commands import export

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 200.0,
    "vocab_size": 7,
}
CASE = ["export", "tiny", "--to=transformers", "--target_length=1024", "--out=out.json"]


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def files(workdir):
    return sorted(file.name for file in workdir.iterdir())


@pytest.mark.parametrize("peer", ["sglang", "mlx"])
@pytest.mark.parametrize("name", ["none", "linear", "ntk", "yarn", "by_parts", "llama3", "yarn_map"])
def test_what_is_written_for_a_server_is_read_alike_by_it(workdir, capsys, peer, name):
    assert cli.main([*CASE[:2], f"--to={peer}", *CASE[3:], f"--scaling={name}"]) == 0
    capsys.readouterr()
    written = json.loads((workdir / "out.json").read_text())
    assert [one.same for one in readings(written, [peer, "transformers"], target_length=1024)] == [True, True]


@pytest.mark.parametrize("peer", ["transformers", "vllm"])
@pytest.mark.parametrize("changes", [{"model_type": "qwen3"}, {"partial_rotary_factor": 0.5}, {"model_type": "phi3"}])
def test_readers_that_were_not_looked_at_keep_nothing_from_being_written(workdir, capsys, peer, changes):
    (workdir / "tiny" / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    assert cli.main([*CASE[:2], f"--to={peer}", *CASE[3:], "--scaling=ntk"]) == 0, capsys.readouterr().err
    assert read_positions("out.json").declared_length == 1024


@pytest.mark.parametrize(
    ("changes", "flags", "why"),
    [
        ({}, ["--to=sglang", "--scaling=dynamic_ntk"], "the base is fixed when the model loads"),
        ({}, ["--to=mlx", "--factors=factors.json"], "would read full_attention layers otherwise, angles by up to 0"),
        (
            {"model_type": "phi3"},
            ["--to=mlx", "--scaling=ntk"],
            "model_type phi3: how others read it was not looked at",
        ),
    ],
)
def test_what_a_server_would_read_otherwise_is_not_written(workdir, capsys, changes, flags, why):
    (workdir / "tiny" / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (workdir / "factors.json").write_text(
        json.dumps({"factors": [1 + pair for pair in range(16)], "attention_factor": 1.3})
    )
    before = files(workdir)
    assert cli.main([*CASE[:2], *CASE[3:], *flags]) == 2
    assert why in capsys.readouterr().err
    assert files(workdir) == before


def test_writes_a_config_and_says_how_close_it_is(workdir, capsys):
    assert cli.main([*CASE, "--scaling=yarn"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "as the yarn rope type" in out
    assert "differ by at most 0.0e+00 (relative)" in out
    written = json.loads((workdir / "out.json").read_text())
    assert written["rope_parameters"]["factor"] == 8.0
    assert {key: written[key] for key in ("vocab_size", "architectures")} == {
        "vocab_size": 7,
        "architectures": ["LlamaForCausalLM"],
    }
    assert read_positions("out.json").declared_length == 1024
    assert files(workdir) == ["out.json", "tiny"]
    # An old result is replaced, and can be exported on.
    assert cli.main(["export", "out.json", *CASE[2:-1], "--scaling=none", "--out=again.json", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["on_top_of"], record["in_place_of"], record["rope_type"]) == ("yarn", None, "yarn")
    assert record["notes"] == ["nothing was added to the config's own yarn"]


def test_json_and_the_call_of_vllm(workdir, capsys):
    arguments = ["export", "tiny", "--to=vllm", "--scaling=linear", "--target_length=1024", "--out=out.json"]
    assert cli.main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert (out.count("\n"), err) == (1, "")
    assert record["largest_relative_difference"] <= 1e-12
    assert (record["trained_length"], record["target_length"], record["factor"]) == (128, 1024, 8.0)
    call = shlex.split(record["vllm_command"])
    assert call[:4] == ["vllm", "serve", "tiny", "--hf-overrides"]
    assert json.loads(call[4]) == {"max_position_embeddings": 128, "rope_parameters": record["rope_parameters"]}
    assert call[5:] == ["--max-model-len", "1024"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == record["vllm_command"]


def by_flags(call, *, dim, declared):
    """Returns frequencies and cos/sin factor by the formulas of llama-context.cpp and ggml-cpu/ops.cpp."""
    flags = dict(zip(call[5::2], call[6::2], strict=True))
    base, scale = float(flags["--rope-freq-base"]), 1 / float(flags.get("--rope-scale", 1))
    plain = base ** (-np.arange(0, dim, 2) / dim)
    if flags["--rope-scaling"] != "yarn":
        return plain * scale, float(flags.get("--yarn-attn-factor", declared))
    turns = [float(flags[f"--yarn-beta-{name}"]) for name in ("fast", "slow")]
    original = int(flags["--yarn-orig-ctx"])
    low, high = (dim * math.log(original / (turn * 2 * math.pi)) / (2 * math.log(base)) for turn in turns)
    low, high = max(0, math.floor(low)), min(dim - 1, math.ceil(high))
    ramp = 1 - np.clip((np.arange(dim // 2) - low) / max(0.001, high - low), 0, 1)
    return plain * (scale * (1 - ramp) + ramp), 1 + 0.1 * math.log(1 / scale)


@pytest.mark.parametrize("name", ["none", "linear", "ntk", "yarn"])
@pytest.mark.parametrize("declared", [None, 0.9])
def test_what_llama_cpp_is_called_with_says_the_same(workdir, capsys, name, declared):
    if declared is not None:
        if name == "none":
            return  # yarn with such a factor stays, which no llama.cpp reads
        section = {"rope_type": "yarn", "factor": 2.0, "attention_factor": declared}
        section["original_max_position_embeddings"] = 64
        (workdir / "tiny" / "config.json").write_text(json.dumps({**CONFIG, "rope_scaling": section}))
    assert cli.main([*CASE[:2], "--to=llama.cpp", *CASE[3:], f"--scaling={name}", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    call = shlex.split(record["llama_cpp_command"])
    assert call[:5] == ["llama-server", "-m", "MODEL.gguf", "-c", "1024"]
    (found,) = readings(json.loads((workdir / "out.json").read_text()), ["llama.cpp"], target_length=1024)
    assert found.same
    frequencies, factor = by_flags(call, dim=32, declared=declared or 1.0)
    np.testing.assert_allclose(frequencies, found.inverse_frequencies, rtol=1e-7)
    assert factor == pytest.approx(found.cos_sin_factor, rel=1e-7)


def test_what_llama_cpp_has_no_words_for(workdir, capsys):
    assert cli.main([*CASE[:2], "--to=llama.cpp", *CASE[3:], "--scaling=llama3"]) == 0
    assert "llama-server" not in capsys.readouterr().out
    gemma = {**CONFIG, "model_type": "gemma", "head_dim": 32, "rope_theta": 1e4}
    (workdir / "tiny" / "config.json").write_text(json.dumps(gemma))
    assert cli.main([*CASE[:2], "--to=llama.cpp", *CASE[3:], "--scaling=ntk"]) == 2
    assert "the converter writes no rope keys" in capsys.readouterr().err


@pytest.mark.parametrize("wrapped", [False, True])
def test_factors_of_a_search(wrapped, workdir, capsys):
    factors = [1.0 + i / 4 for i in range(16)]
    found = (
        {"factors": factors, "attention_factor": 1.25, "bias": {"name": "none"}, "history": []} if wrapped else factors
    )
    (workdir / "factors.json").write_text(json.dumps(found))
    assert cli.main([*CASE, "--factors=factors.json"]) == 0
    assert "a longrope list of 16 factors" in capsys.readouterr().out
    section = json.loads((workdir / "out.json").read_text())["rope_parameters"]
    assert section["long_factor"] == pytest.approx(factors, rel=1e-15)
    assert section["attention_factor"] == (1.25 if wrapped else 1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "2 per-pair factors given for 16 rotary pairs"),
        ("[]", "factors must be a list"),
        ("[1, 0]", "factors[1] must be a number above 0"),
        ("[1, true]", "factors[1] must be a number above 0"),
        ("[1, NaN]", "factors[1] must be a number above 0"),
        ("[1, 1e999]", "factors[1] must be a number above 0"),
        ('[1, "2"]', "factors[1] must be a number above 0"),
        ("[1, 2", "not JSON"),
        ("[1], 2", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "factors must be a list of numbers, got None"),
        ('{"factors": [1], "factors": [1]}', "appears twice"),
        ('{"factors": [1], "attention_factor": 0}', "attention_factor must be"),
        ('{"factors": [1], "bias": {"name": "alibi_star", "slopes": [1]}}', "with the bias 'alibi_star', which no"),
        ('{"factors": [1], "bias": {}}', "with the bias None, which no"),
        ('{"factors": [1], "bias": "t5"}', "with the bias 't5', which no"),
        ('{"factors": [1], "bias": null}', "with the bias None, which no"),
        ('{"factors": [1], "loss": [3]}', "unknown key 'loss'; there are factors, attention_factor, model"),
        ('{"factors": [1], "attention_facter": 1.2}', "unknown key 'attention_facter'"),
        ("", "not JSON"),
    ],
)
def test_bad_factors(content, message, workdir, capsys):
    (workdir / "factors.json").write_text(content)
    assert cli.main([*CASE, "--factors=factors.json"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert err.startswith("rope-jax export: error: --factors=factors.json: ")
    assert files(workdir) == ["factors.json", "tiny"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export"], "--to is required"),
        (["export", "tiny", "--to=ollama"], "ollama"),
        ([*CASE, "--scaling=yarn_map", "--to=llama.cpp"], "nothing is scaled: the converter makes factor tensors"),
        (CASE, "give either --scaling=NAME or --factors=FILE"),
        ([*CASE, "--scaling=yarn", "--factors=f.json"], "not both"),
        ([*CASE, "--factors=f.json"], "--factors=f.json: cannot be read"),
        ([*CASE, "--factors="], "--factors is empty"),
        ([*CASE, "--scaling=yarn", "--out=out.json/"], "--out=out.json/: names a directory"),
        ([*CASE, "--scaling=ropey"], "--scaling=ropey: unknown scaling 'ropey'"),
        ([*CASE, "--scaling=config"], "name a scaling, or none"),
        ([*CASE, "--scaling=yarn", "--bias=alibi"], "--bias=alibi: transformers has no key that adds a bias"),
        ([*CASE, "--scaling=yarn", "--bias=t5", "--to=vllm"], "--bias=t5: vllm has no key that adds a bias"),
        ([*CASE, "--scaling=yarn", "--target_length=100"], "below the 128 tokens"),
        ([*CASE, "--scaling=yarn", "--target_length=0"], "--target_length must lie in 2 ..."),
        ([*CASE, "--scaling=yarn", "--trained_length=2048"], "below the 2048 tokens"),
        ([*CASE, "--scaling=yarn", "--trained_length=1"], "--trained_length must lie in 2 ..."),
        ([*CASE, "--scaling=yarn", "--preset=llama-2-7b"], "not both"),
        ([*CASE, "--scaling=yarn", "more.json"], "one config file at most"),
        (["export", "missing", *CASE[2:], "--scaling=yarn"], "no such config file: missing"),
        (["export", *CASE[2:], "--scaling=yarn"], "name a model"),
        ([*CASE, "--scaling=yarn", "--out=tiny"], "--out=tiny: is a directory"),
        ([*CASE, "--scaling=yarn", "--out=no/out.json"], "there is no directory no"),
        ([*CASE, "--scaling=yarn", "--out=tiny/config.json"], "is tiny/config.json, which the command reads"),
        ([*CASE, "--scaling=dynamic_ntk", "--to=vllm"], "cannot be exported to vllm"),
        ([*CASE, "--scaling=yarn", f"--out={'n' * 300}"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, workdir, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("rope-jax export: error: ")
    assert message in err
    assert files(workdir) == ["tiny"]
    assert json.loads((workdir / "tiny" / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("damage", ["other", "unread"])
def test_what_does_not_read_back_is_not_written(damage, workdir, capsys, monkeypatch):
    (workdir / "out.json").write_text("old")
    dumps = json.dumps

    def damaged(config, **kwargs):
        if "rope_parameters" in config:
            config = {**config, "rope_scaling": None, "rope_theta": None}
            changes = {"factor": 8.001} if damage == "other" else {"surprise": 1}
            config["rope_parameters"] = {**config["rope_parameters"], **changes}
        return dumps(config, **kwargs)

    monkeypatch.setattr(export.json, "dumps", damaged)
    assert cli.main([*CASE, "--scaling=linear"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert ("differs by 1.2e-04 (relative)" if damage == "other" else "out.json: rope_parameters.surprise") in err
    assert ".rope-jax-" not in err
    assert (workdir / "out.json").read_text() == "old"
    assert files(workdir) == ["out.json", "tiny"]


def test_a_full_disk_leaves_nothing(workdir, capsys, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert cli.main([*CASE, "--scaling=yarn"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert files(workdir) == ["tiny"]


def test_a_window_that_begins_to_cut_is_told(workdir, capsys):
    config = {**CONFIG, "model_type": "mistral", "sliding_window": 512}
    (workdir / "tiny" / "config.json").write_text(json.dumps(config))
    assert cli.main([*CASE, "--scaling=ntk", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("cuts the new one in 2 layers" in note for note in notes)


def test_a_preset_without_jax(workdir):
    code = (
        "import sys; from rope_jax.cli import main; status = main(sys.argv[1:]);"
        "print({'jax', 'flax', 'scipy'} & set(sys.modules), file=sys.stderr); sys.exit(status)"
    )
    arguments = ["export", "--preset=llama-3.1-8b", "--to=vllm", "--scaling=linear", "--target_length=262144"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--out=out.json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "set()\n")
    assert "a factor of 32" in done.stdout
    assert "linear takes the place of the config's own llama3: its factor is against the 8192 tokens" in done.stdout
    assert "vllm serve MODEL --hf-overrides" in done.stdout
