"""The `rope-jax` command: finds the subcommand, parses its flags, and turns bad input into one line and status 2."""

import contextlib
import importlib
import os
import re
import signal
import sys
import traceback
from types import ModuleType
from typing import NoReturn

from absl import flags as absl_flags

from rope_jax import __version__
from rope_jax.commands.flags import Define, by_flag
from rope_jax.commands.streams import guarded
from rope_jax.commands.termination import INTERRUPTED, TERMINATED, Terminated, raised_on_signals
from rope_jax.errors import RopeJaxError

# A module has SUMMARY, USAGE, define_flags(define), run(arguments, flags) -> exit status, and
# kept(arguments, flags) -> what is kept of a run that was stopped, and how to go on.
COMMANDS = {
    "inspect": "rope_jax.commands.inspect",
    "diagnose": "rope_jax.commands.diagnose",
    "export": "rope_jax.commands.export",
    "search": "rope_jax.commands.search",
}

UNWRITTEN = 74
"""Exit status where the result could not be written to stdout: EX_IOERR of sysexits.h."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status, which a failing stream does not change once it says something.

    0: done. 1: a bug, with its traceback. 2: bad input, with one line on stderr. 3, 4: a gate, see `diagnose`.
    74: done, but the result could not be written to stdout. 130, 143: interrupted, terminated.

    Args:
      argv: arguments without the program's name; those of the process by default.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    with guarded() as (output, _):
        status = _status(arguments)
        output.flush()
        # Whoever read a pipe and left has seen enough: that is no failure.
        if output.failure is not None and not isinstance(output.failure, BrokenPipeError):
            reason = getattr(output.failure, "strerror", None) or output.failure
            print(f"rope-jax: error: cannot write to standard output: {reason}", file=sys.stderr)
            status = status or UNWRITTEN
    return status


def process() -> NoReturn:
    """Runs the command as a process and ends it."""
    status = main()
    if status in (INTERRUPTED, TERMINATED):
        os._exit(status)  # not waiting for threads that still work on what nobody wants any more
    sys.exit(status)


def _status(arguments: list[str]) -> int:
    def stopped(number: int) -> int:
        """Says in one line what is kept of a command that was told to stop, and how to go on; returns the status."""
        how, what = "interrupted" if number == signal.SIGINT else "terminated", "nothing was begun"
        with contextlib.suppress(absl_flags.Error, IndexError, KeyError):
            command, positional, flags = _parsed(arguments)
            what = command.kept(positional, flags)
        print(f"rope-jax: {how}; {' '.join(what.split())}", file=sys.stderr)
        return 128 + number

    try:
        with raised_on_signals(stopped):
            return _dispatch(arguments)
    except MemoryError:
        return _refuse("rope-jax", "out of memory: fewer rows, a shorter target or a smaller model may fit")
    except KeyboardInterrupt:
        return stopped(signal.SIGINT)
    except Terminated:
        return stopped(signal.SIGTERM)
    except Exception:
        traceback.print_exc()
        return 1


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("--help", "-h", "-help", "help"):
        print(_overview())
        return 0
    if arguments and arguments[0] in ("--version", "-version"):
        print(f"rope-jax {__version__}")
        return 0
    known = ", ".join(COMMANDS)
    if not arguments:
        return _refuse("rope-jax", f"no command given; there are: {known}")
    name = arguments[0]
    if name not in COMMANDS:
        return _refuse("rope-jax", f"unknown command {name!r}; there are: {known}")
    try:
        command, positional, flags = _parsed(arguments)
    except absl_flags.Error as error:
        return _refuse(f"rope-jax {name}", str(error))
    if flags.help:
        print(_help(command, flags))
        return 0
    try:
        return command.run(positional, flags)
    except (absl_flags.Error, RopeJaxError) as error:
        return _refuse(f"rope-jax {name}", by_flag(str(error), flags))


def _parsed(arguments: list[str]) -> tuple[ModuleType, list[str], absl_flags.FlagValues]:
    """Returns the subcommand's module, its positional arguments and its flags."""
    name = arguments[0]
    command = importlib.import_module(COMMANDS[name])
    flags = absl_flags.FlagValues()
    flags.set_gnu_getopt(True)
    define = Define(flags)
    command.define_flags(define)
    define.boolean("json", False, "One JSON object on stdout, nothing else.")
    define.boolean("help", False, "This text.", short_name="h")
    # absl knows two flags of its own: one reads a file by surprise, the other lets misspelt flags pass.
    for own in ("flagfile", "undefok"):
        if any(re.fullmatch(rf"--?{own}(=.*)?", argument, re.DOTALL) for argument in arguments):
            raise absl_flags.UnrecognizedFlagError(own)
    return command, flags([f"rope-jax {name}", *arguments[1:]])[1:], flags


def _refuse(who: str, why: str) -> int:
    print(f"{who}: error: {' '.join(why.split())}", file=sys.stderr)
    return 2


def _overview() -> str:
    lines = ["usage: rope-jax COMMAND [flags]", "", "commands:"]
    for name, module in COMMANDS.items():
        lines.append(f"  {name:<10} {importlib.import_module(module).SUMMARY}")
    return "\n".join([*lines, "", "rope-jax COMMAND --help lists a command's flags; rope-jax --version."])


def _help(command: ModuleType, flags: absl_flags.FlagValues) -> str:
    lines = [f"usage: {command.USAGE}", "", command.SUMMARY]
    groups = flags.flags_by_module_dict()
    for title, group in groups.items():
        lines += ["", f"{title}:"]
        for flag in group if len(groups) > 1 else sorted(group, key=lambda flag: flag.name):
            name = f"-{flag.short_name}, --{flag.name}" if flag.short_name else f"--{flag.name}"
            default = "" if flag.default in (None, False, []) else f" (default: {_default(flag.default)})"
            lines += [f"  {name}", f"      {' '.join(flag.help.split())}{default}"]
    return "\n".join(lines)


def _default(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
