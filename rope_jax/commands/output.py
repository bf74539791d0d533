"""What commands share in writing: a result directory that gets all files or none."""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping

from rope_jax.commands.output_file import checked_file
from rope_jax.errors import InputError


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


def kept_in(out: pathlib.Path) -> str:
    """Returns what a stopped command that keeps finished parts in folders of `out` has kept, and how to go on."""
    entries = sorted(out.iterdir()) if os.path.isdir(out) else []
    filled = [str(one) for one in entries if one.name[0] != "." and one.is_dir() and os.listdir(one)]
    if filled:
        return f"what was finished is kept in {', '.join(filled)}: the same command goes on from there"
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
