"""`rope-jax inspect`: what a model's config alone predicts about serving it at a longer context.

Starts without JAX, and without matplotlib where no plot is asked for.
"""

import json
import os
import pathlib
import re

from absl import flags as absl_flags

from rope_jax.commands.output_file import checked_file, replacing
from rope_jax.errors import InputError

SUMMARY = "predict from a config alone what a longer context breaks, and rank the ways out"
USAGE = "rope-jax inspect (--preset=NAME | CONFIG) --target_length=TOKENS [flags]"
_SUFFIXES = (".svg", ".png")


def define_flags(flag_values: absl_flags.FlagValues) -> None:
    """Defines the command's flags."""
    absl_flags.DEFINE_integer(
        "target_length", None, "Tokens the model is asked to serve; required.", flag_values=flag_values
    )
    absl_flags.DEFINE_string(
        "preset", None, "A built-in model, not a config file; an unknown name lists them.", flag_values=flag_values
    )
    absl_flags.DEFINE_enum(
        "scaling",
        None,
        ["none", "linear", "ntk", "by_parts", "yarn", "llama3", "dynamic_ntk", "config"],
        "Scaling of the status quo, by target over trained length; 'config' takes what the config declares. By "
        "default what the config declares if it declares one, else ntk. Layers with a sliding window beside full "
        "ones keep what the config declares.",
        flag_values=flag_values,
    )
    absl_flags.DEFINE_enum(
        "bias",
        None,
        ["none", "alibi", "t5", "config"],
        "Bias of the status quo; 'config' takes what the config declares. By default the config's own if it has one, "
        "else alibi with paper slopes, as added in a retrofit. A T5 table is taken as zeros: no config holds it.",
        flag_values=flag_values,
    )
    absl_flags.DEFINE_float(
        "amplitude", 20.0, "A, nats: how far the rotary logit of a matching head can rise.", flag_values=flag_values
    )
    absl_flags.DEFINE_string(
        "plot",
        None,
        "File for the plot, .svg or .png; by default rope-jax-inspect-NAME.svg in the working directory; empty for "
        "none. A regular file already there is replaced; through a symbolic link, what it points to.",
        flag_values=flag_values,
    )


def run(arguments: list[str], flags: absl_flags.FlagValues) -> int:
    """Runs the command; returns the exit status."""
    if len(arguments) > 1:
        raise InputError(f"one config file at most, got {len(arguments)}: {' '.join(arguments)}")
    if flags.target_length is None:
        raise InputError("--target_length=TOKENS is required")
    path = arguments[0] if arguments else None
    plot = _plot_path(flags.plot, flags.preset, path)
    target = None if plot is None else checked_file(flags.plot or plot, flag="--plot", inputs=_read(path))

    from rope_jax.diagnosis.theory.record import inspect_positions, read_model
    from rope_jax.diagnosis.theory.table import table_text

    record = inspect_positions(
        read_model(preset=flags.preset, path=path),
        target_length=flags.target_length,
        scaling_name=flags.scaling,
        bias_name=flags.bias,
        amplitude=flags.amplitude,
    )
    if plot is not None:
        record["plot"] = str(plot)
    output = json.dumps(record, allow_nan=False) if flags.json else table_text(record).rstrip("\n")
    if plot is not None and target is not None:
        from rope_jax.diagnosis.theory.plot import draw

        picture = draw(record, kind=plot.suffix[1:].lower())
        with replacing(target, named=f"--plot={plot}") as temporary:
            temporary.write_bytes(picture)
    print(output)
    return 0


def kept(arguments: list[str], flags: absl_flags.FlagValues) -> str:
    """Returns what is kept of a run that was stopped."""
    return "an inspection takes seconds and keeps nothing: run it again"


def _read(path: str | None) -> list[str]:
    """Returns the files that are read of a config's path."""
    return [] if path is None else [os.path.join(path, "config.json")] if os.path.isdir(path) else [path]


def _plot_path(given: str | None, preset: str | None, path: str | None) -> pathlib.Path | None:
    """Returns where the user wants the plot, or None for no plot."""
    if given == "":
        return None
    plot = pathlib.Path(f"rope-jax-inspect-{_name(preset, path)}.svg" if given is None else given)
    if plot.suffix.lower() not in _SUFFIXES:
        raise InputError(f"--plot={plot}: a plot is written as {' or '.join(_SUFFIXES)}")
    return plot


def _name(preset: str | None, path: str | None) -> str:
    """Returns the model's name for a file name: a preset, a file's stem, or the folder of a `config.json`."""
    if preset is not None or path is None:
        name = preset or "model"
    else:
        file = pathlib.Path(path).absolute()
        name = file.name if os.path.isdir(file) else file.parent.name if file.name == "config.json" else file.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name) or "model"
