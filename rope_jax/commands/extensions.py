"""`--load=FILE.py`: a user's own rules, biases and faults, registered before a command runs."""

import os
import runpy

from absl import flags as absl_flags

from rope_jax.errors import InputError, RopeJaxError


def define_load(flag_values: absl_flags.FlagValues) -> None:
    """Declares `--load`."""
    absl_flags.DEFINE_list(
        "load",
        [],
        "Python files that are run first: what they register (scalings, biases, faults) can be named.",
        flag_values=flag_values,
    )


def load(files: list[str]) -> None:
    """Runs Python files of the user's, which register what they define.

    Raises:
      InputError: if a file is not there, or fails.
    """
    for file in files:
        if not os.path.isfile(file):
            raise InputError(f"--load: {file!r}: no such file")
        try:
            runpy.run_path(file)
        except RopeJaxError as error:
            raise InputError(f"--load: {file}: {error}") from error
        except Exception as error:
            raise InputError(f"--load: {file}: {type(error).__name__}: {error}") from error
