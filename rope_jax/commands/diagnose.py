"""`rope-jax diagnose`: which part of a context extension broke what, and which change to try first.

Parses flags, asks `rope_jax.diagnosis.api.diagnose`, and writes what comes of it. Without a checkpoint the bundled test
model is asked.
"""

import dataclasses
import json
import math
import os
import pathlib
import runpy
import shlex
import sys
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from rope_jax.commands.flags import Define, check_ranges, checkpoint_of
from rope_jax.commands.output import STORE, checked_out, checked_store, kept_in, write_all
from rope_jax.commands.output_file import checked_file, replacing
from rope_jax.commands.progress import Progress
from rope_jax.diagnosis.ranges import LARGEST_RATIO, MOST, RANGES
from rope_jax.errors import InputError, RopeJaxError, named

if TYPE_CHECKING:
    from rope_jax.diagnosis.api import Diagnosis

SUMMARY = "measure on a model which part of a context extension broke what, and which change to try first"
USAGE = "rope-jax diagnose [CHECKPOINT --text=FILE --target_length=N] [flags]"

DEFAULT_OUT = "rope-jax-diagnosis"
_ASKED_OF_A_RUN = ("observed", "faults", "ratios", "adapt_steps", "most_contexts", "fail_if", "budget")
_FILES = ("diagnosis.json", "diagnosis.txt", "diagnosis.html", "costs.json")


def define_flags(define: Define) -> None:
    """Declares the command's flags."""
    define.group = "the model and what it reads"
    define.string(
        "text", None, "A text file for the checkpoint's tokenizer, or a .npy of token rows; needed for your own."
    )
    define.integer(
        "target_length", None, "L', tokens the model is asked to serve; by default 1.5 L of the bundled test model."
    )
    define.integer("trained_length", None, "L, tokens it was trained on; by default what its config says.")
    define.integer("text_rows", None, "Rows of text judged; by default 64 that are made, or 8 of your own.")
    define.string(
        "fit_text", None, "Other text to fit biases on; by default the rest of --text, or each half for the other."
    )
    define.string("separator", "<|endoftext|>", "Between documents of a text.")
    layouts, phases = ["half", "interleaved"], ["exact", "float32"]
    define.enum("layout", None, layouts, "Layout of rotary pairs, even if the text contradicts it.")
    define.enum("phase", "exact", phases, "How angles are formed; float32 as other libraries do.")

    define.group = "what is deployed"
    define.list(
        "deployed",
        ["ntk+alibi_star", "ntk+t5"],
        "Configurations to judge, each SCALING+BIAS, with +temperature where logits are sharpened beside the rule.",
    )
    define.string(
        "own_bias", None, "A .npy with your own bias, [heads] slopes or a [heads, buckets] T5 table; named own."
    )
    define.integer(
        "own_distance",
        None,
        "Of a T5 table in --own_bias: the distance in tokens from which on all keys share its last bucket; by default "
        "--target_length.",
    )
    define.boolean("compose", False, "Scalings come on top of one that the config declares, rather than in its place.")
    define.string("faulty", "exact", "The fault that the deployment is known to run with.")
    define.string("write_items", None, "Write the contexts to this .npz, for a deployment to answer, and stop.")
    define.string("observed", None, "A .npz with the deployment's own logits for the items of --write_items.")

    define.group = "what is tried"
    transforms = ["llama3", "yarn_map", "by_parts"]
    define.list("transforms", transforms, "Scalings that option 3 may put in its place.")
    define.integer("exempt_first", 0, "Also tries a bias that exempts so many first tokens.")
    define.list("faults", [], "Faults whose cost is measured; --full takes all there are.")
    define.list("ratios", [], "Also asks at these ratios of target to trained length, such as 1.25,1.5,4.")
    define.integer("adapt_steps", 0, "Judges everything again after so many steps of training in every configuration.")
    define.boolean("full", False, "Every scaling with every bias, every bundled test model, every fault.")
    define.list(
        "load", [], "Python files that are run first: what they register (scalings, biases, faults) can be named."
    )

    define.group = "how much is asked"
    define.integer(
        "contexts", None, "Contexts with questions, at each length; by default 100, or 20 of your own checkpoint."
    )
    define.integer(
        "most_contexts", None, "Asks on, in doublings up to so many, where the first leave open what to try first."
    )
    define.integer("seed", 0, "Of everything random.")

    define.group = "how biases are fitted"
    define.integer("num_buckets", 32, "T5 buckets, up to the target length.")
    define.integer("fit_steps", 60, "Adam steps of the T5 table.")

    define.group = "what is decided"
    define.list("margins", [], "What is too little to matter, as NAME=NUMBER: " + ", ".join(_margin_names()))
    define.string(
        "fail_if",
        None,
        "A gate for CI, such as 'short_loss_rise>0.02': exit 0 only if the whole interval is on the good side, 3 if it "
        "is on the bad one, 4 if that is open. Measures are those of the first deployed configuration.",
    )
    define.string("budget", None, "Also picks the best configuration within limits: latency=RATIO,memory=MIB,steps=N.")

    define.group = "the result"
    define.string("out", None, f"Directory for the result; {DEFAULT_OUT} by default.")


def kept(arguments: list[str], flags: absl_flags.FlagValues) -> str:
    """Returns what is kept of a run that was stopped."""
    return kept_in(pathlib.Path(flags.out or DEFAULT_OUT))


def run(arguments: list[str], flags: absl_flags.FlagValues) -> int:
    """Runs the command; returns the exit status."""
    model = checkpoint_of(arguments, usage=USAGE)
    _check(flags)
    read = (model, flags.text, flags.fit_text, flags.own_bias, flags.observed)
    out = checked_out(pathlib.Path(flags.out or DEFAULT_OUT), _FILES, inputs=read)
    items = None
    if flags.write_items is not None:
        items = checked_file(flags.write_items, flag="--write_items", inputs=_files_of(model))
    else:
        checked_store(out)
    _load(flags.load)
    with Progress("rope-jax diagnose") as progress:
        progress("starting", 0, 1)
        # JAX is imported only once the flags are known to be good.
        from rope_jax.diagnosis.api import diagnose
        from rope_jax.diagnosis.evaluation.kept_files import what_is_kept

        options = _options(flags)
        if items is not None:
            return _write_items(model, options, pathlib.Path(flags.write_items), items)
        if (finished := what_is_kept(out / STORE)) is not None:
            print(f"rope-jax diagnose: {finished}", file=sys.stderr)
        try:
            found = diagnose(model, store=out / STORE, progress=progress, **options)
        except InputError as error:
            of_file = flags.own_bias is not None and str(error).startswith("bias own ")
            raise InputError(f"--own_bias={flags.own_bias}: {error}") if of_file else error from None
    return _conclude(found, flags, out)


def _load(files: list[str]) -> None:
    """Runs Python files of the user's, which register what they define."""
    for file in files:
        if not os.path.isfile(file):
            raise InputError(f"--load: {file!r}: {'not a regular file' if os.path.lexists(file) else 'no such file'}")
        try:
            runpy.run_path(file)
        except RopeJaxError as error:
            raise InputError(f"--load: {file}: {error}") from error
        except (Exception, SystemExit) as error:  # a file that ends the process would pass for a run that is done
            raise InputError(f"--load: {file}: {type(error).__name__}: {error}") from error


def _conclude(found: "Diagnosis", flags: absl_flags.FlagValues, out: pathlib.Path) -> int:
    from rope_jax.diagnosis.evaluation.configurations import wanted
    from rope_jax.diagnosis.verdict import budget, gates

    command = shlex.join(["rope-jax", *sys.argv[1:]]) if sys.argv[1:2] == ["diagnose"] else USAGE
    table, beside = found.table(), {"costs": found.findings.costs, "seconds": found.findings.seconds}
    if flags.budget is not None:
        findings = found.findings
        chosen = budget.choose(
            {name: one.panel for name, one in findings.conditions.items()},
            findings.adapted_panels,
            next(iter(findings.conditions.values())).panel,
            findings.costs,
            findings.tasks.used,
            budget.parse(flags.budget),
            margins=findings.margins,
        )
        table += "\n" + "\n".join(budget.budget_lines(chosen)) + "\n"
        beside["budget"] = dataclasses.asdict(chosen)
    contents = (
        found.to_json() + "\n",
        table,
        found.to_html(command=command),
        json.dumps(beside, allow_nan=False) + "\n",
    )
    write_all(out, dict(zip(_FILES, contents, strict=True)))
    print(found.to_json() if flags.json else f"{table}\nwritten to {out}: {', '.join(_FILES)}")
    if flags.fail_if is None:
        return 0
    first = wanted(_deployed(flags)[0]).name
    if first in found.findings.omitted:
        if not flags.json:
            print(f"undecided: {first} was not run: {found.findings.omitted[first]}")
        return gates.UNDECIDED
    result = gates.check(flags.fail_if, gates.measures(found.findings.judgements[0].verdict))
    if not flags.json:
        print("\n".join(result.lines))
    return result.status


def _write_items(model: str | None, options: dict[str, Any], file: pathlib.Path, target: pathlib.Path) -> int:
    from rope_jax.diagnosis.evaluation import observed
    from rope_jax.diagnosis.finding import subjects_of
    from rope_jax.diagnosis.options import Options

    (subject,) = subjects_of(model, Options(**options))
    with replacing(target, named=f"--write_items={file}") as temporary:
        observed.write_items(temporary, subject)
    print(f"{file}: {subject.num_contexts} contexts at each length")
    return 0


def _check(flags: absl_flags.FlagValues) -> None:
    """Raises `InputError` unless all numbers are in range and all texts can be read, before JAX is imported."""
    least, most = flags.contexts or 1, flags.most_contexts
    if most is not None and most < least:
        raise InputError(f"--most_contexts must be from {least} (that of --contexts) to {MOST}, got {most}")
    check_ranges(flags, RANGES)
    for name in ("text", "fit_text", "own_bias", "observed"):
        path = getattr(flags, name)
        # What is observed is opened so that a pipe does not block; its reader says what it is.
        if path is not None and not (os.path.isfile(path) or (name == "observed" and os.path.exists(path))):
            raise InputError(f"--{name}: {path!r}: {'not a regular file' if os.path.lexists(path) else 'no such file'}")
    if not flags.separator:
        raise InputError("--separator must not be empty: every letter would be a document")
    if not flags.deployed:
        raise InputError("--deployed names no configuration")
    if flags.out == "":
        raise InputError("--out is empty: name a directory")
    if flags.own_distance is not None and flags.own_bias is None:
        raise InputError("--own_distance is of the table that --own_bias gives")
    for name in ("write_items", "observed"):
        if getattr(flags, name) is not None and flags.full:
            raise InputError(f"--{name} is of one model: leave --full out")
        if getattr(flags, name) == "":
            raise InputError(f"--{name} is empty: name a file")
    for name in _ASKED_OF_A_RUN if flags.write_items is not None else ():
        if getattr(flags, name):
            raise InputError(f"--{name} has no effect with --write_items, which runs no configuration: leave it out")
    for text in flags.ratios:
        _number("ratios", text, least=1, most=LARGEST_RATIO)
    _margins(flags.margins)
    if flags.fail_if is not None:
        from rope_jax.diagnosis.verdict import gates

        gates.check_names(flags.fail_if)
    if flags.budget is not None:
        from rope_jax.diagnosis.verdict.budget import parse

        steps = parse(flags.budget).steps
        if steps and not flags.adapt_steps:
            raise InputError(f"--budget: steps={steps} is for configurations that were trained: give --adapt_steps")
        if 0 < steps < flags.adapt_steps:
            raise InputError(f"--budget: steps={steps} leaves out all that was trained, for {flags.adapt_steps} steps")


def _options(flags: absl_flags.FlagValues) -> dict[str, Any]:
    """Returns the attributes of `Options` that flags give."""
    from rope_jax.diagnosis.options import Options
    from rope_jax.diagnosis.verdict.answers import Margins

    return {
        **{field.name: getattr(flags, field.name) for field in dataclasses.fields(Options) if field.name in flags},
        "margins": Margins(**_margins(flags.margins)),
        "ratios": [float(text) for text in flags.ratios],
        "observed": None if flags.observed is None else pathlib.Path(flags.observed),
        "deployed": _deployed(flags),
    }


def _deployed(flags: absl_flags.FlagValues) -> list[Any]:
    """Returns what is deployed, with the user's own bias in the place of its name."""
    own = [text for text in flags.deployed if text.split("+")[1:2] == ["own"]]
    if flags.own_bias is None:
        if own:
            raise InputError(f"--deployed: {own[0]!r} needs --own_bias, the file of your own bias")
        return list(flags.deployed)
    from rope_jax.biases import Alibi
    from rope_jax.diagnosis.evaluation.configurations import wanted
    from rope_jax.diagnosis.evaluation.own_bias import read_own_bias

    bias = read_own_bias(pathlib.Path(flags.own_bias), max_distance=flags.own_distance or flags.target_length)
    if flags.own_distance is not None and isinstance(bias, Alibi):
        raise InputError(f"--own_distance is of a [heads, buckets] table: {flags.own_bias} holds slopes")
    if not own:
        raise InputError("--own_bias: --deployed has no configuration with it, such as ntk+own")
    # A name that is known stands in for the file's while the rest of the text is read.
    with named("deployed"):
        with_own = {text: wanted(text.replace("+own", "+none", 1))._replace(bias=bias) for text in own}
    return [with_own.get(text, text) for text in flags.deployed]


def _margins(given: list[str]) -> dict[str, float]:
    known, found = _margin_names(), {}
    for text in given:
        name, _, number = text.partition("=")
        if name not in known:
            raise InputError(f"--margins: {text!r} is not NAME=NUMBER; names: {', '.join(known)}")
        if name in found:
            raise InputError(f"--margins: {name!r} is given twice")
        found[name] = _number(f"margins={name}", number, least=0, most=1e6)
    return found


def _margin_names() -> list[str]:
    from rope_jax.diagnosis.verdict.answers import Margins

    return [field.name for field in dataclasses.fields(Margins)]


def _number(flag: str, text: str, *, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise InputError(f"--{flag}: {text!r} is not a number from {least:g} to {most:g}")
    return value


def _files_of(model: str | None) -> list[str]:
    """Returns the files that a model consists of; items that were written beside it before may be replaced."""
    if model is None or not os.path.isdir(model):
        return [] if model is None else [model]
    return [entry.path for entry in os.scandir(model) if entry.is_file() and not entry.name.endswith(".npz")]
