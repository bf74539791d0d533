"""What a command writes never replaces a device, a FIFO, a socket, a directory or what it reads, by whatever name."""

import json
import os
import pathlib
import socket
import stat
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams_and_signals import environment, fake, real

from rope_jax import cli
from rope_jax.commands.output import checked_out
from rope_jax.commands.output_file import checked_file, replacing
from rope_jax.errors import InputError

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 200.0,
}
INSPECT = ["inspect", "config.svg", "--target_length=256"]
EXPORT = ["export", "config.svg", "--to=transformers", "--target_length=1024"]
WRITERS = {
    "inspect": lambda out: [*INSPECT, f"--plot={out}"],
    "export": lambda out: [*EXPORT, "--scaling=yarn", f"--out={out}"],
    "factors": lambda out: [*EXPORT, "--factors=factors.svg", f"--out={out}"],
}
READ = {"inspect": ["config.svg"], "export": ["config.svg"], "factors": ["config.svg", "factors.svg"]}


def made(folder: pathlib.Path, kind: str) -> None:
    """Makes `out.svg` one of the things that are no regular file."""
    out = folder / "out.svg"
    match kind:
        case "directory":
            out.mkdir()
        case "fifo":
            os.mkfifo(out)
        case "socket":
            with socket.socket(socket.AF_UNIX) as one:
                one.bind("out.svg")  # relative, since such names are short
        case "device":
            out.symlink_to(os.devnull)
        case "loop":
            out.symlink_to("out.svg")
        case "stdout":
            out.symlink_to("/dev/stdout")


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.svg").write_text(json.dumps(CONFIG))
    (tmp_path / "factors.svg").write_text(json.dumps([1.0 + i / 4 for i in range(16)]))
    return tmp_path


def state(folder: pathlib.Path) -> dict[str, tuple]:
    """Everything in a folder: what it is and, of a regular file, what it holds."""
    found = {}
    for entry in os.scandir(folder):
        mode = entry.stat(follow_symlinks=False).st_mode
        content = pathlib.Path(entry.path).read_bytes() if stat.S_ISREG(mode) else b""
        found[entry.name] = (stat.S_IFMT(mode), content)
    return found


def refused(arguments, capsys, flag):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"error: --{flag}=" in err
    return err


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device", "loop"])
@pytest.mark.parametrize("name", WRITERS)
def test_only_a_regular_file_is_replaced(name, kind, workdir, capsys):
    made(workdir, kind)
    before = state(workdir)
    said = refused(WRITERS[name]("out.svg"), capsys, "plot" if name == "inspect" else "out")
    assert {"loop": "leads back to itself"}.get(kind, kind if kind != "fifo" else "FIFO") in said
    assert state(workdir) == before


@pytest.mark.parametrize(
    ("out", "redirection"),
    [
        *((out, way) for out in ("/dev/stdout", "/dev/null", "/dev/fd/1") for way in ("", "> printed", "| cat")),
        ("printed", "> printed"),
    ],
)
def test_the_commands_own_streams_are_refused(out, redirection, workdir):
    command = real(*EXPORT, "--scaling=yarn", f"--out={out}")
    script = f'set -o pipefail; "$@" {redirection}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command], capture_output=True, text=True, env=environment(), check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"error: --out={out}: is " in done.stderr
    assert not (workdir / "printed").exists() or (workdir / "printed").read_text() == ""


@pytest.mark.parametrize("way", ["itself", "other path", "hard link", "symlink", "symlinked folder"])
@pytest.mark.parametrize(("name", "source"), [(name, source) for name, sources in READ.items() for source in sources])
def test_what_is_read_is_never_written(name, source, way, workdir, capsys):
    match way:
        case "itself":
            out = source
        case "other path":
            out = f"../{workdir.name}/./{source}"
        case "hard link":
            os.link(source, out := "other.svg")
        case "symlink":
            os.symlink(source, out := "other.svg")
        case _:
            os.symlink(".", "folder")
            out = f"folder/{source}"
    before = state(workdir)
    assert "which the command reads" in refused(WRITERS[name](out), capsys, "plot" if name == "inspect" else "out")
    assert state(workdir) == before


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("exists", [True, False])
def test_through_a_symlink_what_it_points_to_is_written(name, exists, workdir, capsys):
    (workdir / "deep").mkdir()
    os.symlink("deep/real.svg", "out.svg")
    if exists:
        (workdir / "deep" / "real.svg").write_text("old")
    assert cli.main(WRITERS[name]("out.svg")) == 0
    assert (workdir / "out.svg").is_symlink()
    assert (workdir / "deep" / "real.svg").stat().st_size > 100
    assert [entry.name for entry in (workdir / "deep").iterdir()] == ["real.svg"]
    capsys.readouterr()


def test_factors_from_a_fifo_are_refused_at_once(workdir):
    os.mkfifo("pipe")
    done = subprocess.run(
        real(*EXPORT, "--factors=pipe", "--out=out.json"),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "rope-jax export: error: --factors=pipe: cannot be read as factors: it is a FIFO, not a regular file\n"
    )
    assert not (workdir / "out.json").exists()


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ("text", "--text=out/diagnosis.txt"),
        ("fit_text", "--fit_text=out/diagnosis.txt"),
        ("observed", "--observed=out/diagnosis.json"),
    ],
)
def test_a_directory_of_results_does_not_swallow_an_input(given, flag, workdir, capsys):
    (workdir / "out").mkdir()
    for name in ("diagnosis.txt", "diagnosis.json"):
        (workdir / "out" / name).write_text("what is read")
    (workdir / "some.txt").write_text("text")
    on_text = given != "observed"
    arguments = ["diagnose", *(["config.svg", "--target_length=8"] if on_text else []), "--out=out", flag]
    arguments += ["--text=some.txt"] if given == "fit_text" else []
    assert "which the command reads" in refused(arguments, capsys, "out")
    assert {path.read_text() for path in (workdir / "out").iterdir()} == {"what is read"}


def test_a_directory_of_results_replaces_regular_files_only(workdir):
    (workdir / "out").mkdir()
    os.mkfifo("out/a")
    os.symlink("../config.svg", "out/b")
    (workdir / "out" / "c").write_text("old")
    for name, kind in (("a", "a FIFO"), ("b", "a symbolic link")):
        with pytest.raises(InputError, match=f"is {kind}"):
            checked_out(pathlib.Path("out"), [name, "c"])
    assert checked_out(pathlib.Path("out"), ["c", "new"]) == pathlib.Path("out")


def test_items_do_not_replace_the_model_that_they_are_of(workdir, capsys):
    (workdir / "model").mkdir()
    (workdir / "model" / "training.json").write_text("{}")
    os.symlink("training.json", "model/items.npz")
    for path in ("model/training.json", "model/items.npz"):
        refused(["diagnose", "model", f"--write_items={path}"], capsys, "write_items")
    assert (workdir / "model" / "training.json").read_text() == "{}"


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([".", "..", "a", "b", "link", "up"]), min_size=1, max_size=5),
    st.sampled_from(["file", "hard", "soft", "new", "a"]),
)
def test_no_path_leads_to_an_input(tmp_path_factory, folders, last):
    root = tmp_path_factory.mktemp("tree", numbered=True)
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "link").symlink_to("b")
    (root / "a" / "b" / "up").symlink_to("../..")
    for folder in (root, root / "a", root / "a" / "b"):
        (folder / "soft").symlink_to(root / "a" / "file")
    (root / "a" / "file").write_text("read")
    os.link(root / "a" / "file", root / "hard")
    path = os.path.join(root, *folders, last)
    same = os.path.exists(path) and os.path.samefile(path, root / "a" / "file")
    within = os.path.realpath(path).startswith(f"{root}/")
    if same or os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
        with pytest.raises(InputError, match=r"which the command reads|is a directory|there is no directory"):
            checked_file(path, flag="--out", inputs=[root / "a" / "file"])
    elif within:
        target = checked_file(path, flag="--out", inputs=[root / "a" / "file"])
        with replacing(target, named="--out") as temporary:
            temporary.write_text("new")
        assert pathlib.Path(path).read_text() == "new"
    assert (root / "a" / "file").read_text() == "read"
    assert not list(root.rglob(".rope-jax-*"))


def test_an_interrupt_while_writing_leaves_the_old_file(workdir):
    (workdir / "out").write_text("old")
    body = "import os, pathlib, signal\nfrom rope_jax.commands.output_file import checked_file, replacing\n"
    body += "with replacing(checked_file('out', flag='--out'), named='--out=out') as temporary:\n"
    body += "    temporary.write_text('half')\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(3600)"
    done = subprocess.run(fake(body), capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 143
    assert (workdir / "out").read_text() == "old"
    assert {entry.name for entry in workdir.iterdir()} == {"out", "config.svg", "factors.svg"}
