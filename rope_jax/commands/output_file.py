"""One file as a command's output: what may be replaced by it, and that it appears whole or not at all."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator

from rope_jax.errors import InputError
from rope_jax.regular_files import irregular_kind


def checked_file(
    given: str | os.PathLike[str], *, flag: str, inputs: Iterable[str | os.PathLike[str]] = ()
) -> pathlib.Path:
    """Returns where the file is written, as far as it can be known that it can be without writing anything.

    Only a regular file is replaced. A symbolic link stays, and what it points to is written.

    Args:
      given: the path, as the user named it.
      flag: that named it, for messages.
      inputs: files that the command reads, which are left as they are.

    Raises:
      InputError: if the path is a directory, device, FIFO, socket, one of the command's own streams or inputs, or lies
        in no directory.
    """
    if not os.fspath(given):
        raise InputError(f"{flag} is empty: name a file")
    if os.fspath(given).endswith(os.sep):  # which a path of pathlib has lost
        raise InputError(f"{flag}={given}: names a directory, name a file in it")
    # Unlike pathlib, os.path does not raise where a name is too long.
    target = pathlib.Path(os.path.realpath(given))
    if not os.path.exists(given):
        if os.path.islink(target):
            raise InputError(f"{flag}={given}: is a symbolic link that leads back to itself")
        where = target.parent if os.path.islink(given) else pathlib.Path(given).parent
        # With `..` after a folder that is not there, Python finds a file where the system finds none.
        if not os.path.isdir(where) or os.path.exists(target):
            raise InputError(f"{flag}={given}: there is no directory {where}")
        return target
    # By the name given: what a link of /dev leads to has no name of its own.
    found = os.stat(given)
    kind = irregular_kind(found.st_mode)
    if kind is not None:
        hint = ", name a file in it" if kind == "a directory" else ": only a regular file is written or replaced"
        raise InputError(f"{flag}={given}: is {kind}{hint}")
    for stream, name in ((0, "standard input"), (1, "standard output"), (2, "standard error")):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(found, os.fstat(stream)):
                raise InputError(f"{flag}={given}: is the command's own {name}, name another file")
    for source in inputs:
        if os.path.exists(source) and os.path.samefile(source, given):
            raise InputError(f"{flag}={given}: is {source}, which the command reads and leaves as it is")
    return target


@contextlib.contextmanager
def replacing(target: pathlib.Path, *, named: str, suffix: str = "") -> Iterator[pathlib.Path]:
    """Yields a temporary file beside `target` that takes its place once the body is done, and is removed if it fails.

    Args:
      target: from `checked_file`.
      named: what messages call it: the flag with the path as given.
      suffix: of the temporary file, where its name matters.

    Raises:
      InputError: if it cannot be written.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=".rope-jax-", suffix=suffix, dir=target.parent)
        temporary = pathlib.Path(name)
        os.close(handle)
        yield temporary
        put_in_place(temporary, target)
    except OSError as error:
        raise InputError(f"{named}: cannot be written: {error.strerror}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def put_in_place(temporary: str | pathlib.Path, target: pathlib.Path) -> None:
    """Moves a private temporary file, already whole, to where users find it, with the rights a new file has."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)
    os.replace(temporary, target)
