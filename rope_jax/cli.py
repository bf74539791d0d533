"""The `rope-jax` command: finds the subcommand, parses its flags, and turns bad input into one line and status 2."""

import contextlib
import importlib
import io
import os
import re
import sys
import traceback
from types import ModuleType

from absl import flags as absl_flags

from rope_jax import __version__
from rope_jax.errors import RopeJaxError

# A module has SUMMARY, USAGE, define_flags(flag_values) and run(arguments, flags) -> exit status.
COMMANDS = {
    "inspect": "rope_jax.commands.inspect",
    "diagnose": "rope_jax.commands.diagnose",
    "export": "rope_jax.commands.export",
    "search": "rope_jax.commands.search",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    0: done. 1: a bug, with its traceback. 2: bad input, with one line on stderr. 130: interrupted.

    Args:
      argv: arguments without the program's name; those of the process by default.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    # A path can hold bytes that are no text, and a terminal lack a letter: neither is worth losing a result for.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter's own flush at exit must not complain either.
        with contextlib.suppress(OSError, ValueError):  # where stdout is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _refuse("rope-jax", "out of memory: fewer rows, a shorter target or a smaller model may fit")
    except KeyboardInterrupt:
        print("rope-jax: interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return status


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
        command = importlib.import_module(COMMANDS[name])
        flags = absl_flags.FlagValues()
        flags.set_gnu_getopt(True)
        absl_flags.DEFINE_boolean("json", False, "One JSON object on stdout, nothing else.", flag_values=flags)
        absl_flags.DEFINE_boolean("help", False, "This text.", short_name="h", flag_values=flags)
        command.define_flags(flags)
        # absl knows two flags of its own: one reads a file by surprise, the other lets misspelt flags pass.
        for own in ("flagfile", "undefok"):
            if any(re.fullmatch(rf"--?{own}(=.*)?", argument, re.DOTALL) for argument in arguments):
                raise absl_flags.UnrecognizedFlagError(own)
        positional = flags([f"rope-jax {name}", *arguments[1:]])[1:]
        if flags.help:
            print(_help(command, flags))
            return 0
        return command.run(positional, flags)
    except (absl_flags.Error, RopeJaxError) as error:
        return _refuse(f"rope-jax {name}", str(error))


def _refuse(who: str, why: str) -> int:
    print(f"{who}: error: {' '.join(why.split())}", file=sys.stderr)
    return 2


def _overview() -> str:
    lines = ["usage: rope-jax COMMAND [flags]", "", "commands:"]
    for name, module in COMMANDS.items():
        lines.append(f"  {name:<10} {importlib.import_module(module).SUMMARY}")
    return "\n".join([*lines, "", "rope-jax COMMAND --help lists a command's flags; rope-jax --version."])


def _help(command: ModuleType, flags: absl_flags.FlagValues) -> str:
    lines = [f"usage: {command.USAGE}", "", command.SUMMARY, "", "flags:"]
    for name in sorted(flags):
        flag = flags[name]
        if name != flag.name:  # a short name, shown beside the long one
            continue
        shown = f"-{flag.short_name}, --{name}" if flag.short_name else f"--{name}"
        default = "" if flag.default in (None, False) else f" (default: {flag.default})"
        lines += [f"  {shown}", f"      {' '.join(flag.help.split())}{default}"]
    return "\n".join(lines)
