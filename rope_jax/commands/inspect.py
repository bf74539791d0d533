"""`rope-jax inspect`: what a model's config alone predicts about serving it at a longer context.

Starts without JAX, and without matplotlib where no plot is asked for.
"""

import functools
import json
import os
import pathlib

from absl import flags as absl_flags

from rope_jax.commands.output_file import checked_file, replacing
from rope_jax.errors import InputError

SUMMARY = "predict from a config alone what serving a longer context changes and puts at risk"
USAGE = "rope-jax inspect (--preset=NAME | CONFIG) --target_length=TOKENS [flags]"
_SUFFIXES = (".svg", ".png")


def define_flags(flag_values: absl_flags.FlagValues) -> None:
    """Defines the command's flags."""
    from rope_jax.biases.registry import BIASES
    from rope_jax.scaling.registry import SCALINGS

    integer = functools.partial(absl_flags.DEFINE_integer, flag_values=flag_values)
    number = functools.partial(absl_flags.DEFINE_float, flag_values=flag_values)
    string = functools.partial(absl_flags.DEFINE_string, flag_values=flag_values)
    boolean = functools.partial(absl_flags.DEFINE_boolean, flag_values=flag_values)
    known = ", ".join(name for name, record in BIASES.items() if not record.fitted or name == "t5")
    integer("target_length", None, "Tokens the model is asked to serve; required.")
    string("preset", None, "A built-in model, not a config file.")
    boolean("list_presets", False, "Lists the built-in models with their trained length and base, and stops.")
    string(
        "scaling",
        None,
        f"Scaling to serve it with: {', '.join(SCALINGS)}, or explicit_base:B. It takes the place of one that the "
        "config declares. By default the declared one with the factor that the target takes, else ntk. Layers with a "
        "sliding window beside full ones keep theirs.",
    )
    string(
        "bias",
        None,
        f"Bias to add: {known}, or a multiple such as alibi*16. By default what the config declares, if anything. Of "
        "t5 the bucket edges are known, not the table.",
    )
    integer("trained_length", None, "Tokens the model was trained on, in place of what its config says.")
    number("trained_base", None, "Base it was trained with, in place of what its config says.")
    boolean("compose", False, "Puts --scaling on top of a declared scaling, not in its place.")
    number("amplitude", 20.0, "A, nats: how far the rotary logit of a matching head can rise; for bias horizons.")
    boolean("details", False, "Also prints every value and its source, every pair, curves and possible faults.")
    string(
        "plot",
        None,
        "File for a plot, .svg or .png. A regular file already there is replaced; through a symbolic link, what it "
        "points to.",
    )


def run(arguments: list[str], flags: absl_flags.FlagValues) -> int:
    """Runs the command; returns the exit status."""
    if flags.list_presets:
        print(_presets(as_json=flags.json))
        return 0
    model = _model(arguments, flags)
    if flags.target_length is None:
        raise InputError("--target_length=TOKENS is required")
    target = None
    if flags.plot is not None:
        if pathlib.Path(flags.plot).suffix.lower() not in _SUFFIXES:
            raise InputError(f"--plot={flags.plot}: a plot is written as {' or '.join(_SUFFIXES)}")
        target = checked_file(flags.plot, flag="--plot", inputs=_read(arguments))

    from rope_jax.diagnosis.theory.inspection import Inspection, inspect

    found = inspect(
        model,
        target_length=flags.target_length,
        scaling=flags.scaling,
        bias=flags.bias,
        trained_length=flags.trained_length,
        trained_base=flags.trained_base,
        compose=flags.compose,
        amplitude=flags.amplitude,
    )
    if target is not None:
        picture = found.plot(kind=pathlib.Path(flags.plot).suffix[1:].lower())
        with replacing(target, named=f"--plot={flags.plot}") as temporary:
            temporary.write_bytes(picture)
        found = Inspection({**found.record, "plot": flags.plot})
    print(found.to_json() if flags.json else found.table(details=flags.details).rstrip("\n"))
    return 0


def kept(arguments: list[str], flags: absl_flags.FlagValues) -> str:
    """Returns what is kept of a run that was stopped."""
    return "an inspection takes seconds and keeps nothing: run it again"


def _model(arguments: list[str], flags: absl_flags.FlagValues) -> str:
    """Returns the preset's name or the config's path."""
    from rope_jax.checkpoints.presets import preset

    if len(arguments) > 1:
        raise InputError(f"one config file at most, got {len(arguments)}: {' '.join(arguments)}")
    if flags.preset is not None and arguments:
        raise InputError(
            f"give either --preset or a config file, not both (--preset={flags.preset} and {arguments[0]})"
        )
    if flags.preset is not None:
        preset(flags.preset)
        return flags.preset
    if not arguments:
        raise InputError("name a model: --preset=NAME or the path of its config.json; --list_presets lists names")
    return arguments[0]


def _presets(*, as_json: bool) -> str:
    from rope_jax.diagnosis.theory.presets import preset_rows, presets_text

    return json.dumps(preset_rows()) if as_json else presets_text()


def _read(arguments: list[str]) -> list[str]:
    """Returns the files that are read of a config's path."""
    return [os.path.join(path, "config.json") if os.path.isdir(path) else path for path in arguments]
