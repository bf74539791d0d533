"""One GGUF file is a checkpoint for every command."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from rope_jax.cli import main

sys.path.append(str(pathlib.Path(__file__).parent / "golden"))
from gguf_models import write_gguf
from logit_cases import CASES, GEMMAS, random_weights

ROOT = pathlib.Path(__file__).resolve().parents[1]


def tokens(writer, prefix):
    """Adds a tokenizer of 64 pieces: letters, bytes of none."""
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    pieces = ["<unk>", "<s>", *letters]
    pieces += [a + b for a in "▁abcdef" for b in "aeiou"][: 64 - len(pieces)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0, 0.0, *(-float(rank) for rank in range(62))])
    writer.add_token_types([2, 3, *[1] * 62])
    writer.add_bos_token_id(1)
    writer.add_unk_token_id(0)


@pytest.fixture
def gemma(tmp_path):
    config = {**GEMMAS["gemma3"], "num_hidden_layers": 3}
    config["layer_types"] = config["layer_types"][:3]
    return write_gguf(tmp_path / "gemma.gguf", config, random_weights(config), change=tokens)


def test_inspect_needs_no_jax_and_names_the_file_to_diagnose(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", CASES["llama-yarn"], random_weights(CASES["llama-yarn"]))
    code = (
        "import sys; from rope_jax.cli import main; status = main(sys.argv[1:]);"
        "print('jax' in sys.modules); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(path), "--target_length=2048", "--details"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n")
    assert "llama.rope.scaling.factor" in done.stdout
    assert "rope-jax diagnose" in done.stdout
    assert "m.gguf --text=FILE" in " ".join(done.stdout.replace("\\\n", " ").split())


def test_export_writes_a_config_of_a_gguf_file(tmp_path, capsys):
    path = write_gguf(tmp_path / "m.gguf", CASES["llama-default"], random_weights(CASES["llama-default"]))
    out = tmp_path / "out.json"
    assert (
        main(["export", str(path), "--to=transformers", "--target_length=512", "--scaling=yarn", f"--out={out}"]) == 0
    )
    assert "differ by at most 0.0e+00" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert (written["model_type"], written["rope_parameters"]["rope_type"]) == ("llama", "yarn")
    assert main(["export", str(path), "--to=vllm", "--target_length=512", "--scaling=yarn", f"--out={path}"]) == 2
    assert "gguf" in capsys.readouterr().err


@pytest.mark.slow
def test_diagnose_reads_weights_and_tokenizer_of_one_file(gemma, tmp_path, capsys):
    rng, text = np.random.default_rng(0), tmp_path / "text.txt"
    text.write_text(" ".join("".join(rng.choice(list("abcdefghij"), 5)) for _ in range(900)))
    argv = [
        "diagnose", str(gemma), f"--text={text}", "--target_length=128", f"--out={tmp_path / 'out'}",
        "--deployed=ntk+none", "--transforms=", "--layout=half", "--contexts=1", "--text_rows=4", "--json",
    ]  # fmt: skip
    assert main(argv) == 0, capsys.readouterr().err
    record = json.loads(capsys.readouterr().out)
    assert record["lengths"] == {**record["lengths"], "trained": 64, "target": 128}


def test_search_and_other_files_end_in_one_line(gemma, tmp_path, capsys):
    assert main(["search", str(gemma), f"--out={tmp_path / 'out'}"]) == 2
    assert "a vocabulary of 64 tokens" in capsys.readouterr().err
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gemma.read_bytes()[:100])
    for argv in (
        ["inspect", str(cut), "--target_length=512"],
        ["export", str(cut), "--to=vllm", "--target_length=512", "--scaling=yarn", f"--out={tmp_path / 'o.json'}"],
        ["diagnose", str(cut), "--text=x", "--target_length=512", f"--out={tmp_path / 'out'}"],
    ):
        assert main(argv) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "error:" in last


def test_without_the_package_every_command_says_what_to_install(gemma, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    text = tmp_path / "text.txt"
    text.write_text("a")
    for argv in (
        ["inspect", str(gemma), "--target_length=512"],
        ["export", str(gemma), "--to=vllm", "--target_length=512", "--scaling=yarn", f"--out={tmp_path / 'o.json'}"],
        ["search", str(gemma), f"--out={tmp_path / 'out'}"],
        ["diagnose", str(gemma), f"--text={text}", "--target_length=512", f"--out={tmp_path / 'out'}"],
    ):
        assert main(argv) == 2
        assert "pip install 'rope_jax[gguf]'" in capsys.readouterr().err.splitlines()[-1]
