"""`rope-jax diagnose` on a tiny random bundled test model, from the arguments to the files and the exit status."""

import html
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags as absl_flags
from cases import PROBES, TARGET, TRAINED, save_bundled_model
from rope_jax.diagnosis.evaluation.cells import Cell
from rope_jax.diagnosis.verdict.attribution import Used

from rope_jax.cli import main
from rope_jax.commands import probe_case
from rope_jax.diagnosis.evaluation import case as cases_module
from rope_jax.diagnosis.evaluation import costs
from rope_jax.diagnosis.prediction import agreement
from rope_jax.diagnosis.tasks import subject
from rope_jax.statistics.intervals import Estimate

FILES = {"verdict.json", "costs.json", "verdict.txt", "verdict.html"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_bundled_model(tmp_path_factory.mktemp("model"))


def diagnose(directory, out, *flags):
    return main([
        "diagnose", str(directory), f"--out={out}", f"--target_length={TARGET}", "--contexts=3", "--rows=2",
        "--status_quo=ntk+alibi", "--transforms=llama3", *flags,
    ])  # fmt: skip


def untimed(subject, schemes, cells):
    return dict.fromkeys(cells, costs.Cost(1.0, 1.0))


@pytest.fixture(scope="module")
def out(directory, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert diagnose(directory, out) == 0
    return out


def test_a_budget_without_a_learned_probe_is_said_to_choose_nothing(directory, out, capsys):
    assert diagnose(directory, out, "--budget=steps=0") == 0
    assert "STRATEGY: none: the model has learned no probe" in capsys.readouterr().out
    strategy = json.loads((out / "costs.json").read_text())["strategy"]
    assert (strategy["cell"], strategy["reason"].split(",")[0]) == (None, "the model has learned no probe")


def test_all_files_are_written_and_say_the_same(out, directory):
    assert {path.name for path in out.iterdir()} == {*FILES, "cells"}
    record = json.loads((out / "verdict.json").read_text())
    assert record["models"][0]["origin"] == str(directory)
    assert record["lengths"]["trained"] == TRAINED
    (judgement,) = record["judgements"]
    assert judgement["verdict"]["kind"] == "undetermined"  # a random model has learned nothing
    reason = judgement["verdict"]["reason"]
    assert reason in (out / "verdict.txt").read_text()
    assert "has not learned" in html.unescape((out / "verdict.html").read_text())
    assert set(record["probes"]["refused"]) == {"retrieval", "binding", "order"}


def test_a_run_that_goes_on_gives_the_same_record(out, directory, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(costs, "measure", untimed)
    again = shutil.copytree(out, tmp_path / "again")
    for file in sorted((again / "cells").iterdir())[::2]:
        file.unlink()
    (again / "verdict.json").unlink()
    assert diagnose(directory, again, "--json") == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert (again / "verdict.json").read_bytes() == (out / "verdict.json").read_bytes()
    assert printed + "\n" == (out / "verdict.json").read_text()


@pytest.fixture
def quick(monkeypatch):
    """Leaves out what has no part in the test: costs are not timed, heads are not looked into."""
    monkeypatch.setattr(costs, "measure", untimed)
    monkeypatch.setattr(agreement, "agreement", lambda *_: None)


@pytest.mark.usefixtures("quick")
def test_a_gate_sets_the_exit_status(out, directory, capsys):
    cells = json.loads((out / "verdict.json").read_text())["cells"]
    short = {(cell["scaling"], cell["bias"], cell["temperature"]): cell["loss"]["short"]["mean"] for cell in cells}
    cost = short["ntk", "alibi", False] - short["none", "none", False]
    for condition, status, said in (
        ("short_cost>1000", 0, "pass"),
        ("short_cost>-1000", 3, "fail"),
        (f"short_cost>{cost!r}", 4, "undecided"),
        ("short_cost>1000,long_cost<1000", 3, "fail"),
        ("precision_drop>0.3", 4, "undecided: precision_drop not measured"),
    ):
        capsys.readouterr()
        assert diagnose(directory, out, f"--fail_if={condition}") == status, condition
        assert said in capsys.readouterr().out


def test_every_measure_of_a_gate_can_be_named():
    made = cases_module.gate_measures
    assert made.__doc__ is not None
    for name in probe_case._MEASURES:
        assert f"`{name}`" in made.__doc__


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--fail_if=short_cost",), "is not NAME OP NUMBER"),
        (("--fail_if=magic>1",), "'magic' is no measure; there are short_cost"),
        (("--status_quo=ntk",), "'ntk' is not SCALING+BIAS"),
        (("--status_quo=magic+alibi",), "'magic+alibi' is not SCALING+BIAS"),
        (("--status_quo=",), "names no retrofit"),
        (("--transforms=magic",), "--transforms: 'magic' is none of"),
        (("--faults=magic",), "--faults: 'magic' is none of"),
        (("--deployed=magic",), "--deployed: 'magic' is none of"),
        ((f"--target_length={TRAINED}",), f"target length {TRAINED} must be above"),
        (("--target_length=0",), "--target_length must be from 1"),
        (("--contexts=0",), "--contexts must be from 1"),
        (("--contexts=8", "--most_contexts=7"), "--most_contexts must be from the 8 of --contexts"),
        (("--contexts=16384", "--target_length=1048576"), f"need about {16384 * (2**20 + TRAINED) * 8 + 2**26} bytes"),
        (("--most_contexts=16384", "--target_length=1048576"), "16384 contexts of 192 and 1048576 tokens"),
        (("--contexts=16384", "--ratios=2,1024"), "16384 contexts of 192 and 196608 tokens"),
        (("--rows=16384", "--target_length=1048576"), "16384 rows of text of 1048576 tokens"),
        (("--most_contexts=40", "--observed=x.npz"), "no asking on up to --most_contexts"),
        (("--rows=-1",), "--rows must be from 1"),
        (("--ratios=1",), "--ratios: '1' is no number above 1"),
        (("--ratios=2,x",), "--ratios: 'x' is no number above 1"),
        (("--ratios=1.001",), "is no longer context"),
        (("--spare_first=-1",), "--spare_first must be from 0"),
        (("--seed=-1",), "--seed must be from 0"),
        (("--margin=nan",), "--margin must be a finite number"),
        (("--status_quo=ntk+t5", "--num_buckets=8", "--max_distance=3"), "max_distance must be above 4"),
        (("--status_quo=ntk+t5", "--num_buckets=1"), "num_buckets must be at least 2"),
        (("--out=/nowhere/deep/out",), "cannot write"),
        (("--observed=/nowhere.npz",), "/nowhere.npz"),
        (("--trained_length=100",), "--trained_length is for a checkpoint and its --text only"),
        (("--scalings=ntk",), "--scalings is for a checkpoint and its --text only"),
        (("--phase=float32",), "--phase is for a checkpoint and its --text only"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(directory, tmp_path, capsys, flags, what):
    assert diagnose(directory, tmp_path / "out", *flags) == 2
    printed = capsys.readouterr()
    assert what in printed.err.splitlines()[-1]
    assert printed.err.count("error:") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_flags_of_the_probes_are_not_ignored_on_text(directory, tmp_path, capsys):
    rows = tmp_path / "rows.npy"
    np.save(rows, np.random.default_rng(0).integers(0, 128, (3, TARGET)).astype(np.int32))
    on_text = [
        "diagnose", str(directory), f"--text={rows}", f"--target_length={TARGET}", f"--out={tmp_path / 'out'}",
        "--scalings=ntk", "--biases=none",
    ]  # fmt: skip
    for flag, what in (
        ("--write_items=x.npz", "--write_items is for a bundled test model only"),
        ("--ratios=2", "--ratios is for a bundled test model only"),
        ("--most_contexts=40", "--most_contexts is for a bundled test model only"),
        ("--fail_if=magic>1", "'magic' is no measure"),
        ("--faults=magic", "'magic' is none of"),
    ):
        assert main([*on_text, flag]) == 2
        assert what in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    # A gate that nothing can answer is open, never passed.
    assert main([*on_text, "--fail_if=short_cost>0.02"]) == 4
    assert "undecided" in capsys.readouterr().out
    assert main(["diagnose", "--text=/nowhere.npy", f"--out={tmp_path / 'x'}"]) == 2
    assert "--text is for a checkpoint" in capsys.readouterr().err


def test_without_a_bundled_model_one_must_be_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subject, "bundled_models", lambda: ())
    assert main(["diagnose", f"--out={tmp_path / 'out'}"]) == 2
    assert "no bundled test model is installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_another_vocabulary_is_refused(tmp_path, capsys):
    from flax import nnx

    from rope_jax.checkpoints.saving import llama_config, save_llama
    from rope_jax.decoder import Decoder, DecoderConfig

    model = Decoder(DecoderConfig(24, 16, 24, 1, 2, 2, 8, 1e-5, tie_embeddings=True), rngs=nnx.Rngs(0))
    save_llama(tmp_path / "model", model, llama_config(model, base=100.0, trained_length=TRAINED))
    (tmp_path / "model" / "training.json").write_text("{}")
    assert diagnose(tmp_path / "model", tmp_path / "out") == 2
    assert "a vocabulary of 24 tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_store_is_one_line(directory, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cells").write_text("mine")
    assert diagnose(directory, tmp_path / "out") == 2
    assert "cannot keep finished work" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cells"]


@pytest.mark.usefixtures("quick")
def test_a_single_context_and_row_is_no_crash(directory, tmp_path, monkeypatch, capsys):
    """No interval anywhere; with everything counted as learned the whole way is walked."""
    monkeypatch.setattr(
        "rope_jax.diagnosis.verdict.attribution.gated",
        lambda unchanged, *, gate: Used(("binding", "order"), True, {}, dict.fromkeys(PROBES, 1.0)),
    )
    flags = ("--contexts=1", "--rows=1", "--fail_if=precision_drop>0.3")
    assert diagnose(directory, tmp_path / "out", *flags) == 4
    record = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert record["judgements"][0]["verdict"]["kind"] == "undetermined"
    assert "one row without an interval" in capsys.readouterr().out


def test_an_estimate_without_an_interval_is_shown_as_its_mean():
    from rope_jax.diagnosis.report import case_table
    from rope_jax.diagnosis.verdict import verdict

    assert verdict._interval(Estimate(0.5, None, None)) == "0.50"
    assert case_table.in_words({"mean": 0.5, "low": None, "high": None}) == "+0.50"


def test_a_gate_is_open_where_its_status_quo_was_not_run(capsys):
    other = SimpleNamespace(status_quo=Cell("llama3", "alibi"))
    settings = SimpleNamespace(status_quos=(Cell("ntk", "alibi"), other.status_quo))
    case = SimpleNamespace(settings=settings, judgements=[other], omitted={"ntk": "does not compose"})
    flags = absl_flags.FlagValues()
    absl_flags.DEFINE_string("fail_if", "short_cost>0.02", "", flag_values=flags)
    absl_flags.DEFINE_boolean("json", False, "", flag_values=flags)
    flags.mark_as_parsed()
    assert probe_case._gate(case, flags) == 4
    assert capsys.readouterr().out == "undecided: ntk + alibi was not run: does not compose\n"


@pytest.mark.parametrize(
    "flags",
    [
        [f"--target_length={TRAINED + 1}"],
        [f"--target_length={TRAINED + 33}", "--most_contexts=8"],  # rows still to be drawn may have none
        ["--ratios=1.01"],
    ],
    ids=["one token", "asked on", "ratio"],
)
def test_a_target_without_a_copied_token_is_refused_before_the_work(flags, directory, tmp_path, capsys):
    flag = flags[0]
    assert diagnose(directory, tmp_path / "new", *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"rope-jax diagnose: error: {flag}: a target of ")
    assert err.endswith(f"from {TRAINED + 34} tokens on there always is one\n")
    assert not (tmp_path / "new").exists()


def test_a_short_target_whose_rows_all_have_a_copied_token_runs(directory, tmp_path):
    assert diagnose(directory, tmp_path / "new", f"--target_length={TRAINED + 33}") == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_target_has_a_loss_beyond_the_trained_length(seed, directory):
    asked = subject.read_bundled_model(directory).asked(rows=1, target_length=TRAINED + 34, text_rows=200, seed=seed)
    assert (asked.items.counted[:, TRAINED - 1 :].sum(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("name", "make", "what"),
    [
        ("0123.npz", os.mkfifo, "is a FIFO, not a regular file"),
        ("0123.npz", os.mkdir, "is a directory, not a regular file"),
        ("table-0-steps.npz", lambda path: os.symlink(path, path), "is a link that leads nowhere, not a regular file"),
        ("adapted-0123", os.mkfifo, "is a FIFO, not a folder"),
        ("adapted-0123", lambda path: path.write_text(""), "is a file, not a folder"),
    ],
)
def test_what_finished_work_cannot_replace_is_refused_before_the_work(
    name, make, what, directory, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(cases_module, "run_case", lambda *_, **__: pytest.fail("the work began"))
    (tmp_path / "cells").mkdir()
    make(tmp_path / "cells" / name)
    assert diagnose(directory, tmp_path) == 2
    err = capsys.readouterr().err
    assert f"--out: {tmp_path / 'cells' / name} {what}" in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


@pytest.mark.parametrize(
    ("flag", "what"),
    [
        ("--observed=", "--observed is empty"),
        ("--write_items=", "--write_items is empty"),
        ("--write_items=x.npz/", "--write_items=x.npz/: names a directory"),
    ],
)
def test_paths_that_name_no_file_are_refused(flag, what, directory, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert diagnose(directory, tmp_path / "out", flag) == 2
    assert what in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
