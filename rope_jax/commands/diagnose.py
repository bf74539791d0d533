"""`rope-jax diagnose`: which part of a retrofit broke what, and which fix to ship first.

Without a checkpoint the case runs on the bundled test model that ships with the package; with one and a text, on those.
"""

import functools
import os
import pathlib

from absl import flags as absl_flags

from rope_jax.commands import probe_case, text_factorial
from rope_jax.commands.output import kept_in
from rope_jax.diagnosis.evaluation import scalings
from rope_jax.diagnosis.tasks.contexts import TRAINING
from rope_jax.errors import InputError

SUMMARY = "measure which part of a retrofit broke what on a model, and which fix to ship first"
USAGE = "rope-jax diagnose [CHECKPOINT] [--text=FILE --target_length=N] [--out=DIR] [flags]"


def define_flags(flag_values: absl_flags.FlagValues) -> None:
    """Declares the command's flags."""
    integer = functools.partial(absl_flags.DEFINE_integer, flag_values=flag_values)
    string = functools.partial(absl_flags.DEFINE_string, flag_values=flag_values)
    names = functools.partial(absl_flags.DEFINE_list, flag_values=flag_values)
    choice = functools.partial(absl_flags.DEFINE_enum, flag_values=flag_values)
    number = functools.partial(absl_flags.DEFINE_float, flag_values=flag_values)
    string("text", None, "A .npy of token rows, or UTF-8 text for the checkpoint's tokenizer.")
    integer("target_length", None, "Tokens of an evaluated row; for a bundled test model eight times its trained one.")
    string("out", None, "Directory for the result; for the bundled test model rope-jax-diagnosis by default.")
    integer("trained_length", None, "Tokens the model was trained on; default: the config's.")
    integer("rows", None, "Rows of text evaluated at most; by default 8, or 4 of the bundled test model's own.")
    string("fit_text", None, "Other text to fit A* and T5 on; default: what --text leaves over.")
    string("t5_table", None, "A .npy [heads, buckets] in place of a fitted T5 table.")
    integer("num_buckets", 32, "T5 buckets of a fitted table.")
    integer("max_distance", 128, "T5's largest told-apart distance, tokens.")
    integer("fit_steps", 60, "Adam steps of the T5 fit.")
    number("margin", 0.02, "Short-context cost that A* may have, nats a token.")
    names("scalings", list(scalings.ARMS), "Scaling arms to run on text; none is always one.")
    names("biases", list(scalings.BIAS_ARMS), "Bias arms to run on text; none is always one.")
    choice("phase", "exact", ["exact", "float32"], "How angles are formed; float32 as peers do.")
    choice("layout", None, ["half", "interleaved"], "Layout of rotary pairs, even if the text contradicts it.")
    string("separator", "<|endoftext|>", "Between documents of a text.")
    integer("seed", 0, "Of items, of the fit's order and of the resampling.")
    probe_case.define_flags(flag_values)


def kept(arguments: list[str], flags: absl_flags.FlagValues) -> str:
    """Returns what is kept of a run that was stopped."""
    return kept_in(pathlib.Path(flags.out or probe_case.DEFAULT_OUT))


def run(arguments: list[str], flags: absl_flags.FlagValues) -> int:
    """Runs the command; returns the exit status."""
    if len(arguments) > 1:
        raise InputError(f"one checkpoint at most, got {len(arguments)}: {USAGE}")
    on_text = bool(arguments) and (flags.text is not None or not os.path.isfile(os.path.join(arguments[0], TRAINING)))
    for name in probe_case.FLAGS if on_text else text_factorial.FLAGS:
        if flags[name].present:
            what = "a bundled test model" if on_text else "a checkpoint and its --text"
            raise InputError(f"--{name} is for {what} only: {USAGE}")
    return (text_factorial if on_text else probe_case).run(arguments, flags)
