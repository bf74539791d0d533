"""What commands share in writing: a result directory that gets all files or none."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping

from rope_jax.commands.output_file import checked_file
from rope_jax.errors import InputError
from rope_jax.regular_files import irregular_kind

STORE = "finished"
"""Directory of finished work in that of a diagnosis' result."""

_KEPT_FILES = (".npz", ".json")


def checked_out(
    out: pathlib.Path, names: Iterable[str], *, inputs: Iterable[str | os.PathLike[str] | None] = ()
) -> pathlib.Path:
    """Returns `out` if files called `names` can be written into it, as far as that can be known without writing any.

    Args:
      out: the directory, which need not be there.
      names: of its files.
      inputs: what the command reads and leaves as it is; None for a flag that was not given.
    """
    # Unlike pathlib, os.path does not raise where a folder on the way may not be read or a name is too long.
    if os.path.lexists(out) and not os.path.isdir(out):
        raise InputError(f"--out: {out} is not a directory")
    parent = out if os.path.isdir(out) else out.absolute().parent
    if not os.path.isdir(parent):
        raise InputError(f"--out: cannot write into {parent}: no such directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"--out: cannot write into {parent}: permission denied")
    known = [source for source in inputs if source is not None]
    for name in names:
        if os.path.isdir(out / name):
            raise InputError(f"--out: {out / name} is a directory, a file is to be written there")
        if os.path.islink(out / name):
            raise InputError(f"--out: {out / name} is a symbolic link, a file is to be written there")
        if os.path.isdir(out):
            checked_file(out / name, flag="--out", inputs=known)
    return out


def checked_store(out: pathlib.Path) -> pathlib.Path:
    """Returns the directory of `out` for finished work, if such work can be kept there.

    Args:
      out: from `checked_out`.

    Raises:
      InputError: if it is no directory that can be written into, or what is to be a file in it is none.
    """
    store = out / STORE
    try:  # before hours of work that could not be kept
        os.lstat(store)
    except FileNotFoundError:
        return store
    except OSError as error:
        raise InputError(f"--out: cannot write into {out}: {error.strerror}") from error
    if not os.path.isdir(store):
        raise InputError(f"--out: {store} is not a directory: cannot keep finished work there")
    if not os.access(store, os.R_OK | os.W_OK | os.X_OK):
        raise InputError(f"--out: cannot write into {store}: permission denied")
    for name in sorted(os.listdir(store)):
        entry = store / name
        if name.endswith(_KEPT_FILES) and not os.path.isfile(entry):
            kind = irregular_kind(os.stat(entry).st_mode) if os.path.exists(entry) else "a link that leads nowhere"
            raise InputError(f"--out: {entry} is {kind}, not a regular file of finished work: remove it")
    return store


def kept_in(out: pathlib.Path) -> str:
    """Returns what a stopped command that keeps finished parts in `out` has kept, and how to go on."""
    store = out / STORE
    with contextlib.suppress(OSError):
        if any(name[0] != "." for name in os.listdir(store)):
            # What lies there may be another run's, of another seed or model.
            return f"what this run finished, if anything, is kept in {store}: the same command goes on from there"
    return "no part was finished and nothing is kept: run it again"


def write_all(out: pathlib.Path, files: Mapping[str, str]) -> None:
    """Writes all files or none: they appear in `out` only once every one of them is on disk."""
    staging = None
    try:
        # Beside or inside `out`, so that a rename never crosses file systems.
        where = out if out.exists() else out.absolute().parent
        staging = pathlib.Path(tempfile.mkdtemp(prefix=".rope-jax-", dir=where))
        for name, content in files.items():
            # A path can hold bytes that are no text.
            (staging / name).write_text(content, encoding="utf-8", errors="backslashreplace")
        out.mkdir(exist_ok=True)
        for name in files:
            os.replace(staging / name, out / name)
    except OSError as error:
        raise InputError(f"--out: cannot write into {out}: {error.strerror}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
