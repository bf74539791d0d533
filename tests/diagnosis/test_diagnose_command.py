"""`rope-jax diagnose` on tiny random models, from the arguments to the files and the exit status."""

import json
import os
import re
import shutil
import types

import numpy as np
import pytest
from cases import DIM, HEADS, TARGET, TRAINED, save_bundled_model, save_checkpoint, untimed_costs

from rope_jax.cli import main
from rope_jax.commands import diagnose as command
from rope_jax.diagnosis import api
from rope_jax.diagnosis.evaluation import costs, own_model
from rope_jax.diagnosis.evaluation.configurations import wanted
from rope_jax.diagnosis.evaluation.runs import Runs
from rope_jax.diagnosis.tasks.contexts import VOCAB_SIZE

FILES = {"diagnosis.json", "diagnosis.txt", "diagnosis.html", "costs.json"}


@pytest.fixture(autouse=True, scope="module")
def untimed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "costs_record", untimed_costs)
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_bundled_model(tmp_path_factory.mktemp("model"))


def diagnose(directory, out, *flags, learned="--margins=learned=0"):
    return main([
        "diagnose", str(directory), f"--out={out}", f"--target_length={TARGET}", "--contexts=3", "--text_rows=2",
        "--deployed=ntk+alibi", "--transforms=llama3", learned, *flags,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def out(directory, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert diagnose(directory, out) == 0
    return out


def test_all_files_are_written_and_say_the_same(out, directory):
    assert {path.name for path in out.iterdir()} == {*FILES, "finished"}
    record = json.loads((out / "diagnosis.json").read_text())
    assert record["models"][0]["origin"] == str(directory)
    assert record["lengths"]["trained"] == TRAINED
    (judgement,) = record["judgements"]
    text, page = ((out / f"diagnosis.{kind}").read_text() for kind in ("txt", "html"))
    for shown in (text, page):
        assert judgement["verdict"]["first"] in shown
    beside = json.loads((out / "costs.json").read_text())
    assert {one["configuration"] for one in beside["costs"]} >= {"none + none", "ntk + alibi"}


def test_a_run_that_goes_on_gives_the_same_bytes(out, directory, tmp_path, capsys):
    again = shutil.copytree(out, tmp_path / "again")
    for file in sorted((again / "finished").iterdir())[::2]:
        file.unlink()
    (again / "diagnosis.json").unlink()
    capsys.readouterr()
    assert diagnose(directory, again, "--json") == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert (again / "diagnosis.json").read_bytes() == (out / "diagnosis.json").read_bytes()
    assert printed + "\n" == (out / "diagnosis.json").read_text()


def test_a_gate_sets_the_exit_status(out, directory, capsys):
    record = json.loads((out / "diagnosis.json").read_text())
    rise = record["judgements"][0]["verdict"]["price"]["short_loss"]["mean"]
    for condition, status, said in (
        ("short_loss_rise>1000", 0, "pass"),
        ("short_loss_rise>-1000", 3, "fail"),
        (f"short_loss_rise>{rise!r}", 4, "undecided"),
        ("short_loss_rise>1000,long_loss_rise<1000", 3, "fail"),
    ):
        capsys.readouterr()
        assert diagnose(directory, out, f"--fail_if={condition}") == status, condition
        assert said in capsys.readouterr().out


def test_a_gate_on_a_task_that_was_not_learned_is_open_never_passed(out, directory, capsys):
    assert diagnose(directory, out, "--fail_if=order_fall>0.3", learned="--margins=learned=1.01") == 4
    assert "undecided: order_fall was not measured" in capsys.readouterr().out


def test_a_gate_on_a_configuration_that_was_not_run_is_open(tmp_path, capsys):
    llama3 = {
        "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": TRAINED // 2,
    }  # fmt: skip
    declared = save_checkpoint(tmp_path / "declared", rope_scaling=llama3)
    np.save(tmp_path / "rows.npy", np.random.default_rng(1).integers(0, VOCAB_SIZE, (4, TARGET)).astype(np.int32))
    status = main([
        "diagnose", str(declared), f"--text={tmp_path / 'rows.npy'}", f"--target_length={TARGET}", "--compose",
        "--layout=half", "--deployed=ntk+alibi,linear+alibi", "--transforms=linear", f"--out={tmp_path / 'out'}",
        "--fail_if=short_loss_rise>1000",
    ])  # fmt: skip
    assert status == 4
    assert "undecided: ntk + alibi was not run: ntk after llama3 has no single meaning" in capsys.readouterr().out


def test_a_budget_picks_a_configuration(out, directory, capsys):
    assert diagnose(directory, out, "--budget=latency=2") == 0
    assert "WITHIN THE BUDGET" in capsys.readouterr().out
    assert "configuration" in json.loads((out / "costs.json").read_text())["budget"]


def test_a_budget_without_a_learned_task_ends_in_a_sentence(out, directory, capsys):
    assert diagnose(directory, out, "--budget=steps=0", learned="--margins=learned=1.01") == 0
    printed, err = capsys.readouterr()
    assert "WITHIN THE BUDGET: " in printed
    assert "Traceback" not in err


def test_items_are_written_and_what_was_observed_is_read(directory, out, tmp_path, capsys):
    items = tmp_path / "items.npz"
    assert diagnose(directory, tmp_path / "none", f"--write_items={items}") == 0
    assert "3 contexts at each length" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.npz"]
    with np.load(items) as written:
        seen = {reach: np.zeros(written[f"{reach}_choices"].shape, np.float32) for reach in ("short", "long")}
    np.savez(tmp_path / "seen.npz", **seen)
    assert diagnose(directory, out, f"--observed={tmp_path / 'seen.npz'}", "--faults=bf16_frequencies") == 0
    capsys.readouterr()


def test_a_bias_of_ones_own_is_deployed(directory, out, tmp_path):
    np.save(tmp_path / "slopes.npy", np.array([0.5, 0.25], np.float32))
    flags = (f"--own_bias={tmp_path / 'slopes.npy'}", "--deployed=ntk+own,ntk+alibi")
    assert diagnose(directory, out, *flags) == 0
    record = json.loads((out / "diagnosis.json").read_text())
    slopes = {one["name"]: one["slopes"] for one in record["configurations"]}
    assert slopes["ntk + own"] == [0.5, 0.25]
    assert slopes["ntk + alibi"] != slopes["ntk + own"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--fail_if=short_loss_rise",), "is not NAME OP NUMBER"),
        (("--fail_if=magic>1",), "'magic' is no measure; there are order_fall"),
        (("--budget=magic=1",), "--budget: 'magic=1' is not one of"),
        (("--deployed=ntk",), "--deployed: 'ntk' is not SCALING+BIAS"),
        (("--deployed=ntk+own",), "--deployed: 'ntk+own' needs --own_bias"),
        (("--deployed=magic+alibi",), "--deployed: unknown scaling 'magic'"),
        (("--deployed=",), "--deployed names no configuration"),
        (("--transforms=magic",), "--transforms: unknown scaling 'magic'"),
        (("--faults=magic",), "--faults: unknown fault 'magic'"),
        (("--faulty=magic",), "--faulty: unknown fault 'magic'"),
        (("--margins=magic=1",), "--margins: 'magic=1' is not NAME=NUMBER"),
        (("--margins=gain=nan",), "--margins=gain: 'nan' is not a number"),
        (("--margins=gain=0,gain=1",), "--margins: 'gain' is given twice"),
        (("--out=",), "--out is empty: name a directory"),
        (("--own_distance=9",), "--own_distance is of the table that --own_bias gives"),
        ((f"--trained_length={TRAINED + 1}",), f"--trained_length {TRAINED + 1}: a bundled test model was trained on"),
        ((f"--target_length={TRAINED}",), f"--target_length {TRAINED} must be above"),
        ((f"--target_length={TRAINED + 1}", "--text_rows=64"), "no copied token beyond"),
        (("--target_length=0",), "--target_length must be from 1"),
        (("--contexts=0",), "--contexts must be from 1"),
        (("--contexts=8", "--most_contexts=7"), "--most_contexts must be from 8 (that of --contexts)"),
        (("--contexts=16384", "--target_length=1048576"), "16384 contexts of 192 and 1048576 tokens"),
        (("--contexts=2800", "--ratios=2,1024"), "2800 contexts of 192 and 196608 tokens"),
        (("--text_rows=-1",), "--text_rows must be from 1"),
        (("--ratios=x",), "--ratios: 'x' is not a number"),
        (("--ratios=1",), "--ratios: 1 times 192 tokens is no longer context"),
        (("--ratios=2", "--write_items=x.npz"), "--ratios has no effect with --write_items"),
        (("--budget=steps=9",), "--budget: steps=9 is for configurations that were trained: give --adapt_steps"),
        (("--budget=steps=9", "--adapt_steps=10"), "--budget: steps=9 leaves out all that was trained"),
        (("--exempt_first=-1",), "--exempt_first must be from 0"),
        (("--seed=-1",), "--seed must be from 0"),
        (("--num_buckets=1",), "--num_buckets must be from 2"),
        (("--out=/nowhere/deep/out",), "cannot write"),
        (("--observed=/nowhere.npz",), "--observed: '/nowhere.npz': no such file"),
        (("--observed=",), "--observed"),
        (("--write_items=",), "--write_items is empty"),
        (("--write_items=x.npz", "--full"), "--write_items is of one model"),
        (("--own_bias=/nowhere.npy",), "--own_bias: '/nowhere.npy': no such file"),
        (("--text=/nowhere.npy",), "--text: '/nowhere.npy': no such file"),
        (("--separator=",), "--separator must not be empty"),
        (("--phase=float16",), "float16"),
        (("--status_quo=ntk+alibi",), "status_quo"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(directory, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Runs, "__call__", lambda *_, **__: pytest.fail("the work began"))
    assert diagnose(directory, tmp_path / "out", *flags) == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1]
    assert printed.err.count("error:") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "flags", "message"),
    [
        (np.zeros(HEADS, np.int32), (), "needs floats, [heads] slopes or a [heads, buckets] table, got int32"),
        (np.zeros((HEADS, 8), np.float32), ("--own_distance=1",), "max_distance must be above"),
        (np.zeros(HEADS + 1, np.float32), (), f"bias own has {HEADS + 1} heads, the model {HEADS}"),
        (b"no array", (), "not a readable .npy array"),
    ],
)
def test_what_is_wrong_with_a_file_of_ones_own_names_flag_and_file(directory, tmp_path, capsys, values, flags, message):
    file = tmp_path / "mine.npy"
    file.write_bytes(values) if isinstance(values, bytes) else np.save(file, values)
    assert diagnose(directory, tmp_path / "out", f"--own_bias={file}", "--deployed=ntk+own", *flags) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert f"error: --own_bias={file}: " in err
    assert message in err
    assert err.count(str(file)) == 1


def test_a_distance_is_of_a_table_only(directory, tmp_path, capsys):
    np.save(tmp_path / "slopes.npy", np.full(HEADS, 0.1, np.float32))
    flags = (f"--own_bias={tmp_path / 'slopes.npy'}", "--deployed=ntk+own", "--own_distance=9")
    assert diagnose(directory, tmp_path / "out", *flags) == 2
    assert "--own_distance is of a [heads, buckets] table" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["ratios=2", "adapt_steps=1"])
def test_what_is_asked_again_needs_a_learned_task(directory, out, tmp_path, capsys, flag):
    """Otherwise nothing would be said of it anywhere."""
    again = shutil.copytree(out, tmp_path / "again")
    assert diagnose(directory, again, f"--{flag}", learned="--margins=learned=1.01") == 2
    name = flag.partition("=")[0]
    assert f"--{name}: it needs a task that the model has learned, and there is none" in capsys.readouterr().err


def test_a_bias_of_ones_own_may_stand_beside_a_temperature(without_type_checks, tmp_path):
    np.save(tmp_path / "slopes.npy", np.full(HEADS, 0.1, np.float32))
    flags = types.SimpleNamespace(
        own_bias=str(tmp_path / "slopes.npy"), own_distance=None, target_length=None, deployed=["ntk+own+temperature"]
    )
    (one,) = command._deployed(flags)
    assert wanted(one).name == "ntk + own + temperature"


@pytest.mark.parametrize("flag", ["text", "fit_text", "own_bias", "observed"])
def test_a_pipe_in_place_of_an_array_is_refused_at_once(directory, tmp_path, capsys, flag):
    os.mkfifo(tmp_path / "pipe.npy")
    assert diagnose(directory, tmp_path / "out", f"--{flag}={tmp_path / 'pipe.npy'}") == 2
    assert "not a regular file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_a_bundled_model_one_must_be_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rope_jax.diagnosis.models.bundled_models", lambda: ())
    assert main(["diagnose", f"--out={tmp_path / 'out'}"]) == 2
    assert "no test model is installed with the package: name a checkpoint" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_bundled_model_of_another_vocabulary_is_refused(directory, tmp_path, capsys):
    model = shutil.copytree(directory, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    wrong = save_checkpoint(tmp_path / "other")
    assert config["vocab_size"] == VOCAB_SIZE
    tensors = wrong / "model.safetensors"
    from safetensors.numpy import load_file, save_file

    cut = {name: value[:24] if "embed" in name else value for name, value in load_file(tensors).items()}
    save_file(cut, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 24}))
    assert diagnose(model, tmp_path / "out") == 2
    assert "a vocabulary of 24 tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "make", "what"),
    [
        ("0123.npz", os.mkfifo, "is a FIFO, not a regular file"),
        ("0123.npz", os.mkdir, "is a directory, not a regular file"),
        ("table-0-steps.npz", lambda path: os.symlink(path, path), "is a link that leads nowhere, not a regular file"),
    ],
)
def test_what_finished_work_cannot_replace_is_refused_before_the_work(
    name, make, what, directory, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(api, "findings_of", lambda *_, **__: pytest.fail("the work began"))
    (tmp_path / "finished").mkdir()
    make(tmp_path / "finished" / name)
    assert diagnose(directory, tmp_path) == 2
    err = capsys.readouterr().err
    assert f"--out: {tmp_path / 'finished' / name} {what}" in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["finished"]


@pytest.mark.parametrize("make", [lambda path: path.write_text("mine"), os.mkfifo], ids=["file", "pipe"])
def test_a_file_in_place_of_a_directory_is_one_line(directory, tmp_path, capsys, make):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out" / "finished")
    assert diagnose(directory, tmp_path / "out") == 2
    assert "cannot keep finished work" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["finished"]
    (tmp_path / "file").write_text("mine")
    assert diagnose(directory, tmp_path / "file") == 2
    assert "is not a directory" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_single_context_and_row_is_no_crash(directory, tmp_path, capsys):
    """No interval anywhere; with everything counted as learned the whole way is walked."""
    flags = ("--contexts=1", "--text_rows=1", "--fail_if=order_fall>0.3")
    assert diagnose(directory, tmp_path / "out", *flags) == 4
    assert "undecided" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert record["judgements"][0]["verdict"]["regression"]["answer"] == "not resolved"


def test_every_flag_is_in_one_group_of_the_help(capsys):
    assert main(["diagnose", "--help"]) == 0
    title, *groups = re.split(r"\n\n(?=[a-z ]+:\n)", capsys.readouterr().out)
    assert title.startswith("usage: rope-jax diagnose [CHECKPOINT")
    assert [group.splitlines()[0] for group in groups][-2:] == ["what is decided:", "the result:"]
    names = re.findall(r"^  (?:-h, )?--(\w+)$", "\n".join(groups), re.MULTILINE)
    assert len(set(names)) == len(names) > 30
    assert names[-3:] == ["out", "json", "help"]


def test_a_checkpoint_of_ones_own_is_one_command_too(tmp_path, capsys):
    own = save_checkpoint(tmp_path / "own", trained_length=64)
    np.save(tmp_path / "rows.npy", np.random.default_rng(1).integers(0, VOCAB_SIZE, (4, 160)).astype(np.int32))
    argv = [
        "diagnose", str(own), f"--text={tmp_path / 'rows.npy'}", "--target_length=160", f"--out={tmp_path / 'out'}",
        "--deployed=ntk+alibi", "--transforms=llama3", "--layout=half", "--json",
    ]  # fmt: skip
    assert main(argv) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["lengths"]["trained"] == 64
    assert record["judgements"][0]["verdict"]["first"]
    assert main([*argv, "--ratios=2"]) == 2
    assert "--ratios: only a bundled test model" in capsys.readouterr().err
    assert main([argv[0], argv[1], *argv[3:]]) == 2
    assert "--text: a checkpoint of your own is asked on text, and none is given" in capsys.readouterr().err


def test_reported_frequencies_include_the_rule_that_the_config_declares(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(own_model, "require_layout", lambda *_, **__: None)
    linear = {"rope_type": "linear", "factor": 2.0}
    own = save_checkpoint(tmp_path / "own", trained_length=64, rope_scaling=linear)
    np.save(tmp_path / "rows.npy", np.random.default_rng(1).integers(0, VOCAB_SIZE, (4, 320)).astype(np.int32))
    status = main([
        "diagnose", str(own), f"--text={tmp_path / 'rows.npy'}", "--target_length=320", f"--out={tmp_path / 'out'}",
        "--deployed=linear+alibi", "--transforms=", "--json",
    ])  # fmt: skip
    assert status == 0
    record = json.loads(capsys.readouterr().out)
    found = {one["name"]: np.array(one["inverse_frequencies"]) for one in record["configurations"]}
    fresh = 170.0 ** -(np.arange(0, DIM, 2) / DIM)
    np.testing.assert_allclose(found["none + none"], fresh / 2)
    np.testing.assert_allclose(found["linear + alibi"], fresh * 64 / 320)  # in the declared one's place
    assert len(next(one["slopes"] for one in record["configurations"] if one["name"] == "linear + alibi")) == HEADS
