"""The command from end to end, on a tiny random checkpoint and, where it is at hand, on the real one."""

import csv
import json
import struct

import numpy as np
import pytest
from rope_jax.diagnosis.report.text_records import KEYS

from rope_jax.cli import main

SUFFIXES = ("json", "csv", "txt", "html")
DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH = 16, 24, 1, 2, 1, 24, 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A llama2.c file of random weights, large enough for the layout of its pairs to matter."""
    rng = np.random.default_rng(0)
    head_dim = DIM // HEADS
    shapes = [
        (VOCAB, DIM), (LAYERS, DIM), (LAYERS, DIM, DIM), (LAYERS, KV_HEADS * head_dim, DIM),
        (LAYERS, KV_HEADS * head_dim, DIM), (LAYERS, DIM, DIM), (LAYERS, DIM), (LAYERS, HIDDEN, DIM),
        (LAYERS, DIM, HIDDEN), (LAYERS, HIDDEN, DIM), (DIM,),
    ]  # fmt: skip
    parts = [np.ones(s) if s in ((LAYERS, DIM), (DIM,)) else rng.standard_normal(s) * 0.2 for s in shapes]
    angle = np.arange(LENGTH)[:, None] * 10000.0 ** -(np.arange(0, head_dim, 2) / head_dim)
    parts += [np.cos(angle), np.sin(angle)]
    path = tmp_path_factory.mktemp("model") / "tiny.bin"
    header = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, LENGTH)
    path.write_bytes(header + b"".join(p.astype("<f4").tobytes() for p in parts))
    return path


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "rows.npy"
    np.save(path, np.random.default_rng(1).integers(0, VOCAB, (4, 96)).astype(np.int32))
    return path


def diagnose(checkpoint, tokens, out, *flags):
    return main([
        "diagnose", str(checkpoint), f"--text={tokens}", "--target_length=96", f"--out={out}", "--fit_steps=2",
        "--num_buckets=8", "--max_distance=16", *flags,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def result(checkpoint, tokens, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert diagnose(checkpoint, tokens, out, "--rows=4") == 0
    return out


def test_all_four_files_hold_the_same_cells(result):
    record = json.loads((result / "diagnosis.json").read_text())
    assert {(c["scaling"], c["bias"]) for c in record["cells"]} == {
        (s, b)
        for s in ("none", "linear", "ntk", "by_parts", "yarn", "llama3")
        for b in ("none", "alibi", "alibi_star", "t5")
    }
    with (result / "diagnosis.csv").open() as file:
        lines = list(csv.DictReader(file))
    of_csv = {(r["scaling"], r["bias"]): float(r["mean"]) for r in lines if r["measure"] == "long_gain"}
    of_json = {(c["scaling"], c["bias"]): c["long_gain"]["mean"] for c in record["cells"]}
    assert of_csv == of_json
    text = (result / "diagnosis.txt").read_text()
    assert all(f"{s:<10}{b:<12}" in text for s, b in of_json)


def test_every_key_is_documented_and_every_documented_key_is_there(result):
    assert set(json.loads((result / "diagnosis.json").read_text())) == set(KEYS)


def test_one_program_serves_all_cells(result):
    assert json.loads((result / "diagnosis.json").read_text())["compilations"] == 1


def test_the_page_is_self_contained(result):
    page = (result / "diagnosis.html").read_text()
    assert "<script" not in page
    assert "src=" not in page
    assert page.count("<svg") == 4
    assert "prefers-color-scheme: dark" in page
    assert "$" not in page  # no tick is labelled with a formula


def test_json_prints_one_object_and_nothing_else(checkpoint, tokens, tmp_path, capsys):
    flags = ("--json", "--biases=none", "--scalings=ntk", "--rows=2")
    assert diagnose(checkpoint, tokens, tmp_path / "out", *flags) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert [c["scaling"] for c in printed["cells"]] == ["none", "ntk"]


def test_fitted_biases_never_see_the_rows_they_are_judged_on(result):
    biases = json.loads((result / "diagnosis.json").read_text())["biases"]
    folds = biases["t5"]["folds"]
    assert sorted(row for fold in folds for row in fold["rows"]) == [0, 1, 2, 3]
    for fold in folds:
        first, last = fold["source"].split()[1].split("-")
        assert not set(range(int(first), int(last) + 1)) & set(fold["rows"])


def test_a_given_table_is_used(checkpoint, tokens, tmp_path):
    table = tmp_path / "table.npy"
    np.save(table, np.zeros((HEADS, 8), np.float32))
    flags = ("--biases=t5", f"--t5_table={table}", "--scalings=none", "--rows=2")
    assert diagnose(checkpoint, tokens, tmp_path / "out", *flags) == 0
    record = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    cells = {c["bias"]: c for c in record["cells"]}
    assert cells["t5"]["long"]["mean"] == cells["none"]["long"]["mean"]  # a table of zeros is no bias


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--target_length=32",), "above the trained length"),
        (("--target_length=-1",), "target_length"),
        (("--seed=-1",), "--seed must be from 0"),
        (("--separator=",), "--separator must not be empty"),
        (("--fit_text=/nowhere.npy",), "--fit_text: /nowhere.npy: no such file"),
        (("--t5_table=/nowhere.npy", "--biases=none"), "--biases has no t5"),
        (("--target_length=4000",), "fewer than the target length"),
        (("--target_length=x",), "target_length"),
        (("--margin=nan",), "margin"),
        (("--scalings=magic",), "'magic' is none of"),
        (("--biases=magic",), "'magic' is none of"),
        (("--text=/nowhere.npy",), "no such file"),
        (("--out=/nowhere/deep/out",), "cannot write"),
        (("--t5_table=/nowhere.npy",), "t5_table"),
        (("--num_buckets=8", "--max_distance=3"), "max_distance"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(checkpoint, tokens, tmp_path, capsys, flags, what):
    out = tmp_path / "out"
    assert diagnose(checkpoint, tokens, out, *flags) == 2
    printed = capsys.readouterr()
    assert what in printed.err.splitlines()[-1]
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_one_row_leaves_nothing_to_fit_on(checkpoint, tmp_path, capsys):
    single = tmp_path / "one.npy"
    np.save(single, np.zeros((1, 96), np.int32))
    assert diagnose(checkpoint, single, tmp_path / "out") == 2
    assert "no disjoint text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_that_repeat_each_other_are_not_fitted_on(checkpoint, tmp_path, capsys):
    rows = tmp_path / "twice.npy"
    np.save(rows, np.tile(np.random.default_rng(3).integers(0, VOCAB, (1, 96)), (2, 1)))
    assert diagnose(checkpoint, rows, tmp_path / "out") == 2
    assert "no disjoint text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("table", [np.full((HEADS, 8), 1e300), np.full((HEADS, 8), np.nan), np.zeros((1, 8))])
def test_a_table_that_cannot_be_used_is_one_line(checkpoint, tokens, tmp_path, capsys, table):
    np.save(tmp_path / "table.npy", table)
    assert diagnose(checkpoint, tokens, tmp_path / "out", f"--t5_table={tmp_path / 'table.npy'}") == 2
    assert "table.npy: needs finite floats" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_directory_in_place_of_a_result_is_refused_before_anything_is_written(checkpoint, tokens, tmp_path, capsys):
    (tmp_path / "out" / "diagnosis.html").mkdir(parents=True)
    assert diagnose(checkpoint, tokens, tmp_path / "out") == 2
    assert "diagnosis.html is a directory" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["diagnosis.html"]


def test_a_result_that_cannot_be_written_leaves_nothing(checkpoint, tokens, tmp_path, capsys):
    flags = ("--biases=none", "--scalings=none")
    assert diagnose(checkpoint, tokens, tmp_path / ("n" * 300), *flags) == 2
    assert "--out: cannot write into" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_files_already_in_the_directory_stay_and_nothing_else_appears(checkpoint, tokens, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert diagnose(checkpoint, tokens, tmp_path / "out", "--biases=none", "--scalings=none") == 0
    written = {"mine", "cells", *(f"diagnosis.{x}" for x in SUFFIXES)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_reported_frequencies_include_the_rule_that_the_config_declares(tmp_path, tokens):
    from safetensors.numpy import save_file

    from rope_jax.checkpoints.huggingface import load

    assert diagnose(_declared(tmp_path / "model", save_file), tokens, tmp_path / "out", "--biases=none") == 0
    record = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    group = load(tmp_path / "model").positions.main_group
    np.testing.assert_array_equal(
        record["scalings"]["none"]["inverse_frequencies"], group.rule(group.rotary).inverse_frequencies
    )
    np.testing.assert_allclose(record["scalings"]["none"]["inverse_frequencies"], group.rotary.inverse_frequencies / 2)
    assert any("as shipped, with linear" in finding for finding in record["findings"])
    assert record["trained_length"] == 2 * LENGTH  # what the declared scaling serves
    assert set(record["scalings"]) == {"none", "linear", "ntk"}
    assert set(record["omitted_scalings"]) == {"by_parts", "yarn", "llama3"}


def _declared(folder, save_file):
    """A random Llama whose config declares linear scaling."""
    folder.mkdir()
    config = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": DIM, "intermediate_size": HIDDEN,
        "num_hidden_layers": 1, "num_attention_heads": HEADS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": LENGTH, "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {
        **{f"self_attn.{x}_proj": (DIM, DIM) for x in "qkvo"},
        "mlp.gate_proj": (HIDDEN, DIM), "mlp.up_proj": (HIDDEN, DIM), "mlp.down_proj": (DIM, HIDDEN),
        "input_layernorm": (DIM,), "post_attention_layernorm": (DIM,),
    }  # fmt: skip
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in shapes.items()}
    shapes |= {"model.embed_tokens.weight": (VOCAB, DIM), "model.norm.weight": (DIM,)}
    rng = np.random.default_rng(4)
    weights = {name: (rng.standard_normal(shape) * 0.02).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_file_in_place_of_the_directory_is_refused(checkpoint, tokens, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert diagnose(checkpoint, tokens, tmp_path / "out") == 2
    assert "not a directory" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


YARDSTICK = {  # mean loss by position, from PyTorch and transformers on the same six rows
    "none": (1.351, 1.305, 1.513, 1.678, 5.225),
    "linear": (4.121, 4.039, 4.140, 4.122, 4.192),
    "ntk": (1.716, 1.721, 1.885, 1.918, 2.501),
    "yarn": (2.332, 2.902, 3.020, 3.043, 3.028),
    "llama3": (3.064, 3.541, 3.766, 3.704, 3.694),
}


@pytest.mark.slow
def test_the_yardstick_of_the_real_model_is_reproduced(real, tmp_path, capsys):
    status = main([
        "diagnose", str(real / "models" / "stories260K"), f"--text={real / 'text' / 'tinystories_packed_6x4096.npy'}",
        "--target_length=4096", f"--out={tmp_path / 'out'}", "--biases=none", "--json",
    ])  # fmt: skip
    assert status == 0
    record = json.loads(capsys.readouterr().out)
    assert record["bins"] == [[0, 256], [256, 512], [512, 1024], [1024, 2048], [2048, 4095]]
    for cell in record["cells"]:
        if cell["scaling"] in YARDSTICK:
            got = [value["mean"] for value in cell["loss"]]
            np.testing.assert_allclose(got, YARDSTICK[cell["scaling"]], atol=0.01, err_msg=cell["scaling"])


def test_weights_in_the_wrong_layout_are_refused(real, tmp_path, capsys):
    """What a converter makes that forgets to permute: it loads, runs and writes fluent garbage."""
    import shutil

    from safetensors.numpy import load_file, save_file

    from rope_jax.rotation import half_to_interleaved

    source, wrong = real / "models" / "stories260K", tmp_path / "model"
    wrong.mkdir()
    shutil.copy(source / "config.json", wrong)
    tensors = load_file(source / "model.safetensors")
    for name in tensors:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = tensors[name].reshape(-1, 8, tensors[name].shape[1])
            tensors[name] = np.ascontiguousarray(heads[:, half_to_interleaved(8)].reshape(tensors[name].shape))
    save_file(tensors, wrong / "model.safetensors")
    text = real / "text" / "tinystories_packed_6x4096.npy"
    arguments = ["diagnose", str(wrong), f"--text={text}", "--target_length=1024", f"--out={tmp_path / 'out'}"]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "are interleaved, not half" in error
    assert str(wrong) in error
    assert not (tmp_path / "out").exists()


def test_a_layout_that_was_asked_for_runs_with_a_loud_finding(real, tmp_path, capsys):
    text = real / "text" / "tinystories_packed_6x4096.npy"
    status = main([
        "diagnose", str(real / "models" / "stories260K"), f"--text={text}", "--target_length=1024", "--rows=2",
        f"--out={tmp_path / 'out'}", "--layout=interleaved", "--scalings=none", "--biases=none", "--json",
    ])  # fmt: skip
    assert status == 0
    record = json.loads(capsys.readouterr().out)
    assert any("WRONG LAYOUT" in finding for finding in record["findings"])
    assert record["layout_check"]["favours"] == "half"
    assert "WRONG LAYOUT" in (tmp_path / "out" / "diagnosis.html").read_text()
