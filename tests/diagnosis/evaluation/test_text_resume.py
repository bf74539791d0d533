"""Text runs tell what they do from the start, keep every finished row of every cell, and go on bit for bit."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from flax import nnx

from rope_jax.checkpoints.checkpoint import schemes_of
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.checkpoints.saving import llama_config, save_llama
from rope_jax.cli import main
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.diagnosis.evaluation import kept_files
from rope_jax.diagnosis.evaluation.kept_losses import KeptLosses
from rope_jax.diagnosis.evaluation.losses import LossProgram
from rope_jax.diagnosis.evaluation.measurement import Settings, measure
from rope_jax.diagnosis.tasks.text import read_text

VOCAB, TRAINED, TARGET, ROWS = 24, 32, 96, 4
LAYERS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    shape = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "rms_norm_eps": 1e-5, "tie_embeddings": True}
    decoder = Decoder(DecoderConfig(VOCAB, 16, 24, LAYERS, **shape), rngs=nnx.Rngs(0))
    decoder.embedding[...] = decoder.embedding[...] * 20
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_llama(directory, decoder, llama_config(decoder, base=1000.0, trained_length=TRAINED))
    return directory


def text_file(tmp_path_factory, length: int) -> pathlib.Path:
    path = tmp_path_factory.mktemp("text") / "rows.npy"
    np.save(path, np.random.default_rng(1).integers(0, VOCAB, (ROWS, length)).astype(np.int32))
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_file(tmp_path_factory, TARGET)


def command(model, text, out, *flags, length=TARGET) -> list[str]:
    fit = ("--fit_steps=2", "--num_buckets=8", "--max_distance=16")
    return ["diagnose", str(model), f"--text={text}", f"--target_length={length}", f"--out={out}", *fit, *flags]


def results(out: pathlib.Path) -> tuple[dict, str]:
    """What a run found; how long it took and how much of it was new is its own."""
    record = json.loads((out / "diagnosis.json").read_text())
    del record["seconds"], record["compilations"]
    return record, (out / "diagnosis.csv").read_text()


def kept(out: pathlib.Path) -> dict[str, bytes]:
    cells = out / "cells"
    return {file.name: file.read_bytes() for file in cells.iterdir()} if cells.is_dir() else {}


@pytest.mark.parametrize("biases", ["alibi_star", pytest.param("alibi_star,t5", marks=pytest.mark.slow)])
def test_a_run_cut_off_anywhere_goes_on_bit_for_bit(model, text, tmp_path, monkeypatch, capsys, biases):
    flags = ("--scalings=ntk", f"--biases={biases}")
    assert main(command(model, text, tmp_path / "whole", *flags)) == 0
    whole = kept(tmp_path / "whole")
    run, calls = KeptLosses._run, 0

    def cut_off(self, scheme, tokens):
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise KeyboardInterrupt
        return run(self, scheme, tokens)

    monkeypatch.setattr(KeptLosses, "_run", cut_off)
    cuts, before = 0, {}
    while main(command(model, text, tmp_path / "parts", *flags)) != 0:
        cuts += 1
        assert cuts < 50
        assert not (tmp_path / "parts" / "diagnosis.json").exists()
        now = kept(tmp_path / "parts")
        assert len(now) > len(before)
        assert before.items() <= now.items()  # nothing is done twice
        before = now
        assert f"{len(now)} finished results are kept in" in kept_files.what_is_kept(tmp_path / "parts" / "cells")
    assert cuts >= 3  # in the fits as well as in the cells
    assert "finished results are kept in" in capsys.readouterr().err
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    assert kept(tmp_path / "parts") == whole
    # A table for each of 2 folds; every row of 2 scalings x biases; the rest is what A* and the tables were fitted by.
    tables = sum(name.startswith("table-") for name in whole)
    assert tables == (2 if "t5" in biases else 0)
    assert len(whole) > tables + 2 * (2 + tables // 2) * ROWS


def test_what_does_not_hold_is_computed_anew(model, text, tmp_path, capsys):
    flags = ("--scalings=ntk", "--biases=none")
    argv = command(model, text, tmp_path / "out", *flags)
    assert main(argv) == 0
    expected, whole = results(tmp_path / "out"), kept(tmp_path / "out")
    assert len(whole) == 2 * ROWS
    first, second, third = sorted(whole)[:3]
    cells = tmp_path / "out" / "cells"
    (cells / first).write_bytes(whole[second])
    (cells / second).write_bytes(whole[second][:-9])
    with np.load(cells / third) as archive:
        stronger = {name: 1.5 * archive[name] for name in archive.files}
    np.savez(cells / third, **stronger)
    capsys.readouterr()
    assert main(argv) == 0
    err = capsys.readouterr().err
    assert all(f"{cells / name}: " in err for name in (first, second, third))
    assert err.count(": computed anew") == 3
    assert results(tmp_path / "out") == expected
    assert kept(tmp_path / "out") == whole


def test_progress_names_every_stage_and_every_row(model, text):
    checkpoint = load_checkpoint(model)
    rows = read_text(text, length=TARGET, vocab_size=VOCAB, tokenizer_file=None, max_rows=ROWS)
    settings = Settings(
        TARGET, num_buckets=8, max_distance=16, fit_steps=2, scalings=("ntk",), biases=("alibi_star", "t5")
    )
    told: list[tuple[str, int, int]] = []
    measure(checkpoint, rows, settings, progress=lambda *what: told.append(what))
    stages = [stage for stage, _, _ in told]
    assert stages[0] == "checking the layout of the rotary pairs on text"
    assert stages[1].startswith("fitting A* on rows 2-3 (cross-fitting), multiplier 0, chunks")
    assert any(stage.startswith("fitting T5 on rows 0-1") for stage in stages)
    assert ("row 1 of 4, none x none", 0, 2 * 3 * ROWS) in told
    assert ("row 1 of 4, none x none: compiling for 96 tokens a row", 0, 2 * 3 * ROWS) in told
    for layer in (1, 2):
        assert (f"row 4 of 4, ntk x t5: layer {layer} of 2", 2 * 3 * ROWS - 1, 2 * 3 * ROWS) in told
    assert told[-1] == ("all rows", 2 * 3 * ROWS, 2 * 3 * ROWS)


def test_telling_of_layers_changes_no_bit(model, text):
    checkpoint = load_checkpoint(model)
    scheme, tokens = schemes_of(checkpoint, length=TRAINED), np.load(text)[:1]
    heard = []
    telling = KeptLosses(checkpoint, by_layer=True)
    telling.tell = heard.append
    found = telling(scheme, tokens)
    np.testing.assert_array_equal(found, LossProgram(checkpoint.model)(scheme, tokens))
    assert heard == ["compiling for 96 tokens a row", "layer 1 of 2", "layer 2 of 2"]
    assert telling.compilations == 1


@pytest.mark.parametrize("what", ["file", "pipe"])
def test_a_store_that_cannot_be_is_refused_before_any_work(model, text, tmp_path, capsys, what):
    (tmp_path / "out").mkdir()
    cells = tmp_path / "out" / "cells"
    cells.write_text("mine") if what == "file" else os.mkfifo(cells)
    assert main(command(model, text, tmp_path / "out")) == 2
    assert f"--out: {cells} is not a directory" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cells"]


@pytest.mark.parametrize("flag", ["text", "fit_text", "t5_table"])
def test_a_pipe_in_place_of_an_array_is_refused_at_once(model, text, tmp_path, capsys, flag):
    os.mkfifo(tmp_path / "pipe.npy")
    assert main(command(model, text, tmp_path / "out", f"--{flag}={tmp_path / 'pipe.npy'}")) == 2
    assert f"--{flag}: {tmp_path / 'pipe.npy'}: not a regular file" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_what_was_finished(model, tmp_path_factory, by):
    length = 2048
    text, out = text_file(tmp_path_factory, length), tmp_path_factory.mktemp("killed")
    argv = command(model, text, out / "parts", "--biases=none,alibi", length=length)
    process = [sys.executable, "-m", "rope_jax", *argv]
    with open(out / "stderr", "w") as stderr:
        run = subprocess.Popen(process, stdout=subprocess.DEVNULL, stderr=stderr)
        deadline = time.monotonic() + 300
        while len(kept(out / "parts")) < 3 and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        run.send_signal(by)
        assert run.wait(60) != 0
    left = {name: x for name, x in kept(out / "parts").items() if not name.startswith(".")}
    assert 3 <= len(left) < 48
    assert not (out / "parts" / "diagnosis.json").exists()
    said = (out / "stderr").read_text()
    assert said.startswith("rope-jax diagnose: ")
    assert "Traceback" not in said
    done = subprocess.run(process, capture_output=True, text=True, timeout=300, check=True)
    assert f"{len(left)} finished results are kept in {out / 'parts' / 'cells'}" in done.stderr
    assert main([*argv[:4], f"--out={out / 'whole'}", *argv[5:]]) == 0
    assert results(out / "parts") == results(out / "whole")
    assert left.items() <= kept(out / "whole").items()
