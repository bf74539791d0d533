"""The command: exit statuses, one-line errors, nothing written on failure, and a quick start without JAX."""

import json
import os
import pathlib
import resource
import subprocess
import sys
import types

import pytest

from rope_jax import __version__, cli
from rope_jax.errors import ScalingError

CASE = ["inspect", "--preset=llama-2-7b", "--target_length=8192"]
ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_file_is_written_unless_asked_for(workdir, capsys):
    assert cli.main(CASE) == 0
    out, err = capsys.readouterr()
    assert "predicted, not measured" in out
    assert "Values used" not in out
    assert err == ""
    assert not list(workdir.iterdir())
    assert cli.main([*CASE, "--details"]) == 0
    details, _ = capsys.readouterr()
    assert details.startswith(out.rstrip("\n"))
    assert "Values used, and where they were read" in details
    assert not list(workdir.iterdir())


def test_json_is_one_object_and_nothing_else(workdir, capsys):
    assert cli.main([*CASE, "--json", "--amplitude", "12.5", "--scaling=yarn", "--bias=none"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert out.count("\n") == 1
    assert err == ""
    assert record["status"] == "predicted, not measured"
    assert (record["plot"], record["deployed"]["amplitude"], record["deployed"]["scaling"]) == (None, 12.5, "yarn")
    assert record["layer_groups"][0]["pairs"][1]["wavelength"] == pytest.approx(7.2557, abs=1e-4)
    assert not list(workdir.iterdir())


def test_a_config_file_and_a_plot(workdir, capsys):
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"max_position_embeddings": 128, "rope_theta": 200.0}
    (workdir / "tiny").mkdir()
    (workdir / "tiny" / "config.json").write_text(json.dumps(config))
    assert cli.main(["inspect", "tiny", "--target_length", "256", "--plot=tiny/out.PNG"]) == 0
    assert (workdir / "tiny" / "out.PNG").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["inspect", "tiny/config.json", "--target_length=256", "--plot=out.svg", "--json"]) == 0
    assert (workdir / "out.svg").exists()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["plot"] == "out.svg"


def test_flags_about_the_model_reach_it(capsys):
    told = ["--trained_length=8192", "--trained_base=20000", "--scaling=explicit_base:5e5"]
    assert cli.main(["inspect", "--preset=llama-2-7b", "--target_length=16384", *told]) == 0
    out, _ = capsys.readouterr()
    assert "8,192 tokens (given), base 20,000 (given)" in out
    assert "base 20,000 -> 500,000" in out
    assert (
        cli.main(["inspect", "--preset=llama-3.1-8b", "--target_length=262144", "--scaling=linear", "--compose"]) == 0
    )
    assert "factor 2 on top of the declared" in capsys.readouterr().out


def test_a_target_below_the_trained_length_extends_nothing(capsys):
    assert cli.main(["inspect", "--preset=llama-2-7b", "--target_length=2048"]) == 0
    assert "nothing is extended" in capsys.readouterr().out


def test_presets_are_listed(capsys):
    assert cli.main(["inspect", "--list_presets"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["llama-3.1-8b"] == ["131,072", "500,000", "llama3", "none", "-"]
    assert cli.main(["inspect", "--list_presets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "llama-2-7b"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command given; there are: inspect, diagnose"),
        (["inspekt"], "unknown command 'inspekt'"),
        (["inspect"], "name a model"),
        (["inspect", "--preset=llama-2-7b"], "--target_length"),
        (["inspect", "--target_length=8192"], "name a model"),
        (["inspect", "--preset=llama-2-7b", "--target_length=-1"], "--target_length must lie in 2 ..."),
        ([*CASE, "--trained_length=1"], "--trained_length must lie in"),
        ([*CASE, "--trained_base=-1"], "--trained_base: base must be a finite positive number"),
        ([*CASE, "--scaling=explicit_base:x"], "--scaling: scaling 'explicit_base:x': explicit_base:B takes a"),
        ([*CASE, "--bias=alibi*0"], "--bias: bias 'alibi*0': only alibi has multiples, by a positive number"),
        ([*CASE, "--bias=alibi_star"], "--bias: bias 'alibi_star' is fitted to a model's weights"),
        (["inspect", "--preset=llama-3.1-8b", "--target_length=262144", "--compose"], "name the scaling"),
        (["inspect", "--preset=llama-2-7b", "--target_length=8k"], "8k"),
        (["inspect", "--preset=llama-2-7b", "--target_length=8192.5"], "8192.5"),
        (
            ["inspect", "--preset=llama-9", "--target_length=8192"],
            "--preset: unknown preset 'llama-9'; there are: code",
        ),
        (["inspect", "--preset=", "--target_length=8192"], "unknown preset ''"),
        ([*CASE, "--scaling=ropey"], "--scaling: unknown scaling 'ropey'"),
        ([*CASE, "--bias=ropey"], "--bias: unknown bias 'ropey'"),
        ([*CASE, "--amplitude=0"], "--amplitude must be"),
        ([*CASE, "--amplitude=nan"], "amplitude"),
        ([*CASE, "--amplitude=1e300"], "at most 16777216, got 1e+300: larger logits in float32"),
        ([*CASE, "--amplitude=16777218"], "at most 16777216, got 16777218.0"),
        ([*CASE, "--plot=x.svg/"], "--plot=x.svg/: names a directory"),
        ([*CASE, "--wavelength=3"], "wavelength"),
        ([*CASE, "--flagfile=missing"], "flagfile"),
        ([*CASE, "--undefok=wavelength", "--wavelength=3"], "undefok"),
        ([*CASE, "config.json"], "not both"),
        (["inspect", "a.json", "b.json", "--target_length=8192"], "one config file at most"),
        (["inspect", "missing.json", "--target_length=8192"], "missing.json"),
        ([*CASE, "--plot=nowhere/plot.svg"], "there is no directory nowhere"),
        ([*CASE, "--plot=plot.pdf"], ".svg or .png"),
        ([*CASE, f"--plot={'n' * 300}.svg"], "cannot be written"),
        ([*CASE, "--plot=plot"], ".svg or .png"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, workdir, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("rope-jax")
    assert ": error: " in err
    assert message in err
    assert not list(workdir.iterdir())


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": "llama"}', "\x00\xff"])
def test_a_damaged_config_is_one_line_and_status_2(content, workdir, capsys):
    (workdir / "config.json").write_text(content, encoding="latin-1")
    assert cli.main(["inspect", "config.json", "--target_length=8192"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert [file.name for file in workdir.iterdir()] == ["config.json"]


def test_a_plot_that_cannot_be_written_leaves_nothing(workdir, capsys, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert cli.main([*CASE, "--plot=out.svg"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "No space left on device" in err
    assert not list(workdir.iterdir())


def test_help_lists_every_flag(capsys):
    assert cli.main(["inspect", "--help"]) == 0
    out, _ = capsys.readouterr()
    for flag in ("target_length", "preset", "scaling", "bias", "compose", "details", "plot", "json", "help"):
        assert f"--{flag}" in out
    assert out.startswith("usage: rope-jax inspect")


def test_overview_and_version(capsys):
    assert cli.main(["--help"]) == 0
    assert "inspect" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rope-jax {__version__}\n"


def command(raised: BaseException) -> types.ModuleType:
    module = types.ModuleType("a_command")

    def run(arguments, flags):
        raise raised

    module.kept = lambda arguments, flags: "some is kept:\ngo on"
    module.SUMMARY, module.USAGE, module.define_flags, module.run = "s", "u", lambda flags: None, run
    return module


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (ScalingError("two\nlines"), 2, "rope-jax fake: error: two lines\n"),
        (ZeroDivisionError("a bug"), 1, "Traceback"),
        (KeyboardInterrupt(), 130, "rope-jax: interrupted; some is kept: go on\n"),
        (BrokenPipeError(), 1, "Traceback"),  # of a stream other than stdout
    ],
)
def test_what_a_command_raises_decides_the_status(raised, status, message, capsys, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "fake", "a_command")
    monkeypatch.setitem(sys.modules, "a_command", command(raised))
    assert cli.main(["fake"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert bool(err) == bool(message)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_a_fresh_process_is_quick_and_imports_no_jax():
    code = (
        "import sys; from rope_jax.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'jax', 'flax', 'optax', 'scipy', 'matplotlib.pyplot'} & set(sys.modules);"
        "print(heavy, file=sys.stderr); sys.exit(status)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python("-c", code, "inspect", "--preset=llama-2-7b", "--target_length=32768", "--bias=alibi*2")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "set()\n")
    # Of the processor, so that a busy machine does not count; it takes about one.
    assert after.ru_utime - before.ru_utime < 10


def test_matplotlib_is_not_imported_without_a_plot():
    code = "import sys; from rope_jax.cli import main; main(sys.argv[1:]); sys.exit('matplotlib' in sys.modules)"
    assert run_python("-c", code, *CASE, "--json").returncode == 0


def test_as_a_module_and_a_closed_pipe():
    done = run_python("-m", "rope_jax", "inspect", "--preset=nope", "--target_length=1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    # The reader goes away before anything is written.
    code = "import os, sys; os.close(0); r, w = os.pipe(); os.close(r); os.dup2(w, 1);"
    code += "from rope_jax.cli import main; sys.exit(main(['--version']))"
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("amplitude", ["1e-300", "1e-9", "1e4", "16777216"])
def test_every_amplitude_up_to_the_largest_is_taken(amplitude, capsys):
    assert cli.main([*CASE, "--json", f"--amplitude={amplitude}"]) == 0
    assert json.loads(capsys.readouterr().out)["deployed"]["amplitude"] == float(amplitude)
