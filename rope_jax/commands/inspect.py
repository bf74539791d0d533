"""`rope-jax inspect`: what a model's config alone predicts about serving it at a longer context.

Starts without JAX, and without matplotlib where no plot is asked for.
"""

import json
import os
import pathlib

from absl import flags as absl_flags

from rope_jax.biases.registry import BIASES
from rope_jax.checkpoints.dialects import positions_of, read_config
from rope_jax.checkpoints.extending import trained_length
from rope_jax.checkpoints.gguf_file import is_gguf
from rope_jax.checkpoints.peer_readings import readings, record_of
from rope_jax.checkpoints.peers import MODEL_TYPES, PEERS
from rope_jax.checkpoints.presets import PRESETS, preset
from rope_jax.commands.flags import Define, check_ranges, config_of
from rope_jax.commands.output_file import checked_file, replacing
from rope_jax.commands.readings_table import readings_table
from rope_jax.diagnosis.theory.extension import LARGEST_TARGET
from rope_jax.diagnosis.theory.inspection import Inspection, inspect
from rope_jax.errors import InputError, named
from rope_jax.scaling.registry import SCALINGS

SUMMARY = "predict from a config alone what serving a longer context changes and puts at risk"
USAGE = "rope-jax inspect (--preset=NAME | CONFIG) --target_length=TOKENS [flags]"
_SUFFIXES = (".svg", ".png")


def define_flags(define: Define) -> None:
    """Declares the command's flags."""
    known = ", ".join(name for name, record in BIASES.items() if not record.fitted or name == "t5")
    define.integer("target_length", None, "Tokens the model is asked to serve; required.")
    define.string("preset", None, "A built-in model, not a config file.")
    define.boolean("list_presets", False, "Lists the built-in models with their trained length and base, and stops.")
    define.string(
        "scaling",
        None,
        f"Scaling to serve it with: {', '.join(SCALINGS)}, or explicit_base:B. It takes the place of one that the "
        "config declares. By default the declared one with the factor that the target takes, else ntk. Layers with a "
        "sliding window beside full ones keep theirs.",
    )
    define.string(
        "bias",
        None,
        f"Bias to add: {known}, or a multiple such as alibi*16. By default what the config declares, if anything. Of "
        "t5 the bucket edges are known, not the table.",
    )
    define.integer("trained_length", None, "Tokens the model was trained on, in place of what its config says.")
    define.float("trained_base", None, "Base it was trained with, in place of what its config says.")
    define.boolean("compose", False, "Puts --scaling on top of a declared scaling, not in its place.")
    define.float("amplitude", 20.0, "A, nats: how far the rotary logit of a matching head can rise; for bias horizons.")
    define.boolean("details", False, "Also prints every value and its source, every pair, curves and possible faults.")
    define.list(
        "as",
        [],
        f"Instead shows how others read the config, and how far their angles are from its own: {', '.join(PEERS)}. For "
        f"the model types {', '.join(MODEL_TYPES)}.",
    )
    define.string(
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
    path = config_of(arguments, flags, hint="; --list_presets lists names")
    if flags.preset is not None:
        with named("preset"):
            preset(flags.preset)  # refuses an unknown name
    if flags.target_length is None:
        raise InputError("--target_length=TOKENS is required")
    others: list[str] = flags["as"].value or []
    if flags["as"].present:
        print(_as_others(path, others, flags))
        return 0
    target = None
    if flags.plot is not None:
        if pathlib.Path(flags.plot).suffix.lower() not in _SUFFIXES:
            raise InputError(f"--plot={flags.plot}: a plot is written as {' or '.join(_SUFFIXES)}")
        target = checked_file(flags.plot, flag="--plot", inputs=_files_of(path))
    names = ("target_length", "scaling", "bias", "trained_length", "trained_base", "compose", "amplitude")
    found = inspect(flags.preset if path is None else path, **{name: getattr(flags, name) for name in names})
    if target is not None:
        picture = found.plot(kind=pathlib.Path(flags.plot).suffix[1:].lower())
        with replacing(target, named=f"--plot={flags.plot}") as temporary:
            temporary.write_bytes(picture)
        found = Inspection({**found.record, "plot": flags.plot})
    print(found.to_json() if flags.json else found.table(details=flags.details).rstrip("\n"))
    return 0


def _as_others(path: str | None, others: list[str], flags: absl_flags.FlagValues) -> str:
    """Returns how others read the config, as JSON or a table."""
    for name in ("scaling", "bias", "trained_length", "trained_base", "compose", "amplitude", "details", "plot"):
        if flags[name].present:
            raise InputError(f"--{name}: --as shows the config as it is, and takes only --target_length beside it")
    if not others:
        raise InputError(f"--as: name one at least; there are: {', '.join(PEERS)}")
    if path is not None and is_gguf(path):
        raise InputError(f"{path}: a GGUF file is read by llama.cpp, not by those of --as; give a config.json")
    check_ranges(flags, {"target_length": (2, LARGEST_TARGET)})
    config, origin = (preset(flags.preset), f"preset {flags.preset}") if path is None else (read_config(path), path)
    found = readings(config, others, target_length=flags.target_length, origin=origin)
    return json.dumps(record_of(found), allow_nan=False) if flags.json else readings_table(found, origin=origin)


def kept(arguments: list[str], flags: absl_flags.FlagValues) -> str:
    """Returns what is kept of a run that was stopped."""
    return "an inspection takes seconds and keeps nothing: run it again"


def _presets(*, as_json: bool) -> str:
    """Returns what every preset was trained on and declares, as JSON or a table of at most 80 columns."""
    rows = []
    for name in PRESETS:
        config = positions_of(preset(name), origin=f"preset {name}")
        main = config.main_group
        rows.append(
            {
                "name": name,
                "trained_length": trained_length(config),
                "base": None if main.rotary is None else main.rotary.base,
                "scaling": main.rule.name,
                "bias": "none" if main.bias is None else main.bias.kind,
                "window": next((group.window for group in config.groups if group.window), None),
            }
        )
    if as_json:
        return json.dumps(rows)
    lines = [f"{'preset':<18}{'trained length':>15}{'base':>12}  {'scaling':<9}{'bias':<7}{'window':>8}"]
    for row in rows:
        base, window = ("-" if row[key] is None else f"{row[key]:,.0f}" for key in ("base", "window"))
        lines.append(
            f"{row['name']:<18}{row['trained_length']:>15,}{base:>12}  {row['scaling']:<9}{row['bias']:<7}{window:>8}"
        )
    return "\n".join(lines)


def _files_of(path: str | None) -> list[str]:
    return [] if path is None else [os.path.join(path, "config.json") if os.path.isdir(path) else path]
