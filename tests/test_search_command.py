"""The search command: its result, that a killed search goes on to the same, and what it refuses in one line."""

import json
import os

import pytest
from flax import nnx

from rope_jax import cli
from rope_jax.checkpoints.saving import llama_config, save_llama
from rope_jax.commands import factors_file
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.diagnosis import judging
from rope_jax.diagnosis.evaluation import kept_files
from rope_jax.diagnosis.search import factor_search
from rope_jax.diagnosis.tasks import contexts

SMALL = ["--target_length=256", "--population=9", "--generations=2", "--contexts=2"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A decoder that has learned nothing, called a bundled test model."""
    config = DecoderConfig(
        contexts.VOCAB_SIZE,
        16,
        16,
        1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        tie_embeddings=True,
    )
    model = Decoder(config, rngs=nnx.Rngs(0))
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_llama(directory, model, llama_config(model, base=200.0, trained_length=192))
    (directory / "training.json").write_text("{}")
    return str(directory)


@pytest.fixture(scope="module")
def programs():
    return []


@pytest.fixture(autouse=True)
def one_program(programs, monkeypatch):
    """Compiles once for all runs of the module: they are of one model and ask contexts of two lengths."""
    program = factor_search.ProbeProgram

    def shared(decoder):
        programs[:] = programs or [program(decoder)]
        return programs[0]

    monkeypatch.setattr(factor_search, "ProbeProgram", shared)


@pytest.fixture
def all_learned(monkeypatch):
    """What no model has learned counts as learned."""
    tasks_of = judging.tasks_of
    monkeypatch.setattr(judging, "tasks_of", lambda panel, subject, learned: tasks_of(panel, subject, learned=0.0))


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_killed_search_goes_on_to_the_same_result(tiny, all_learned, workdir, capsys, monkeypatch):
    assert cli.main(["search", tiny, *SMALL, "--out=whole", "--json"]) == 0
    out, _ = capsys.readouterr()
    record = json.loads(out)
    assert json.loads((workdir / "whole" / "search.json").read_text()) == record
    assert len(record["factors"]) == 8
    assert record["factors"] == sorted(record["factors"])
    assert record["attention_factor"] == 1.0
    assert [line["scored"] for line in record["history"]] == [9, 7, 7]
    assert record["winner"]["objective"]["search"] == record["history"][-1]["best"]
    assert record["winner"]["objective"]["search"] >= record["named"][record["gain"]["over"]]["objective"]["search"]
    assert record["gain"]["over"] == max(record["named"], key=lambda n: record["named"][n]["objective"]["search"])
    assert record["compilations"] == 2

    def killed_in_generation_2(file, key, state):
        write_json(file, key, state)
        if state["generation"] == 1:
            raise KeyboardInterrupt

    write_json = kept_files.write_json
    with monkeypatch.context() as patch:
        patch.setattr(kept_files, "write_json", killed_in_generation_2)
        assert cli.main(["search", tiny, *SMALL, "--out=parts"]) == 130
    assert [file.name for file in (workdir / "parts").iterdir()] == ["search-state.json"]
    capsys.readouterr()
    assert cli.main(["search", tiny, *SMALL, "--out=parts"]) == 0
    out, err = capsys.readouterr()
    assert "goes on after generation 1" in err
    for name in ("search.json", "search-state.json"):
        assert (workdir / "parts" / name).read_bytes() == (workdir / "whole" / name).read_bytes()
    lines = out.splitlines()
    assert lines[0].endswith("192 -> 256 tokens, bias none, tasks retrieval, binding, event order")
    assert lines[-1] == "written to parts/search.json"
    # The result is what export reads, every key of it.
    assert set(record) == set(factors_file.KEYS)
    argv = [
        "export",
        tiny,
        "--to=transformers",
        "--factors=parts/search.json",
        "--target_length=256",
        "--out=config.json",
    ]
    assert cli.main(argv) == 0


def test_a_state_that_does_not_hold_is_said_and_searched_anew(tiny, all_learned, workdir, capsys):
    file = workdir / "out" / "search-state.json"
    argv = ["search", tiny, *SMALL, "--generations=1", "--out=out", "--json"]
    assert cli.main(argv) == 0
    result, _ = capsys.readouterr()
    whole = file.read_text()
    state = json.loads(whole)
    changed = json.loads(whole)
    changed["kept"]["population"][0][0] = 1.25  # another winner, had it been believed
    old = {"key": state["key"], **state["kept"]}
    for content, why in (
        (json.dumps(changed) + "\n", "its content does not match its checksum"),
        (json.dumps(old), "no checksum of this version"),
        (json.dumps(state | {"key": "0" * 64}) + "\n", "its content does not match its checksum"),
        ("[]", "no checksum of this version"),
        ("5", "no checksum of this version"),
        ("[" * 200_000, "no checksum of this version"),
        (whole[:-20], "no checksum of this version"),
    ):
        file.write_text(content)
        assert cli.main(argv) == 0, why
        out, err = capsys.readouterr()
        assert f"search-state.json: {why}" in err
        assert "goes on" not in err
        assert out == result
        assert file.read_text() == whole
    assert cli.main([*argv, "--seed=1"]) == 0
    assert "search-state.json: computed from something else" in capsys.readouterr().err


def test_a_pipe_in_place_of_the_state_is_refused(tiny, all_learned, workdir, capsys):
    (workdir / "out").mkdir()
    os.mkfifo(workdir / "out" / "search-state.json")
    assert cli.main(["search", tiny, *SMALL, "--generations=1", "--out=out"]) == 2
    assert "--out=out/search-state.json: is a FIFO" in capsys.readouterr().err


def test_too_many_contexts_are_refused_with_their_bytes(tiny, workdir, capsys):
    assert cli.main(["search", tiny, "--target_length=1048576", "--contexts=4096"]) == 2
    _, err = capsys.readouterr()
    assert "20480 contexts of 192 and 1048576 tokens need about" in err
    assert list(workdir.iterdir()) == []


def test_every_candidate_runs_with_the_bias(tiny, all_learned, workdir, capsys):
    assert cli.main(["search", tiny, *SMALL, "--generations=1", "--bias=alibi_star", "--json"]) == 0
    out, _ = capsys.readouterr()
    record = json.loads(out)
    assert record["bias"]["name"] == "alibi_star"
    assert min(record["bias"]["slopes"]) > 0
    assert "times the paper's slopes" in record["bias"]["fitted"]
    assert record["named"]["none"]["long"]["log_odds"] != record["unchanged"]["long"]["log_odds"]
    # No config holds the bias, and without it the factors are not what was found.
    (workdir / "found.json").write_text(out)
    argv = ["export", tiny, "--to=vllm", "--factors=found.json", "--target_length=256", "--out=config.json"]
    assert cli.main(argv) == 2
    assert "the factors were found with the bias 'alibi_star'" in capsys.readouterr().err
    assert not (workdir / "config.json").exists()


def test_a_state_of_absurd_size_is_not_read(tiny, all_learned, workdir, capsys):
    (workdir / "out").mkdir()
    with open(workdir / "out" / "search-state.json", "wb") as file:
        file.truncate(300 * 2**30)
    assert cli.main(["search", tiny, *SMALL, "--generations=1", "--out=out"]) == 0
    err = capsys.readouterr().err
    assert "search-state.json: 322122547200 bytes, of which it can have" in err
    assert "computed anew" in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["TINY", "b"], "one checkpoint at most"),
        (["nowhere"], "nowhere: no such file"),
        (["."], "no training.json"),
        (["TINY", "--target_length=192"], "must be above the trained length 192"),
        (["TINY", "--target_length=0"], "--target_length must be from 1"),
        (["TINY", "--population=7"], "--population must be from 8"),
        (["TINY", "--generations=0"], "--generations must be from 1"),
        (["TINY", "--contexts=0"], "--contexts must be from 1"),
        (["TINY", "--seed=-1"], "--seed must be from 0"),
        (["TINY", "--bias=t5"], "bias"),
        (["TINY", "--out=a/b"], "no such directory"),
        (["TINY"], "no task is learned"),
    ],
)
def test_refuses_in_one_line_and_writes_nothing(tiny, workdir, capsys, arguments, reason):
    short = [] if any("length" in argument for argument in arguments) else ["--target_length=256"]
    argv = [tiny if argument == "TINY" else argument for argument in arguments]
    assert cli.main(["search", *argv, *short, "--contexts=2", *[a for a in argv if a.startswith("--contexts")]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rope-jax search: error: ")
    assert reason in err
    assert err.count("\n") == 1
    assert list(workdir.iterdir()) == []
