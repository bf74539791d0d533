"""`rope-jax diagnose` on a stand-in: haystacks in its own language, and a verdict for every status quo."""

import functools
import json
import pathlib
import re
import shlex
import sys

from absl import flags as absl_flags

from rope_jax.commands.output import Progress, checked_out, write_all
from rope_jax.errors import InputError

TRAINING = "training.json"
"""What `experiments/train.py` leaves beside the weights: the checkpoint knows the haystacks' vocabulary."""

_FILES = ("verdict.json", "verdict.txt", "verdict.html")
_DEFAULT_OUT = "rope-jax-diagnosis"
_LARGEST_ROWS = 2**14


def define_flags(flag_values: absl_flags.FlagValues) -> None:
    """Declares the flags of a case on probes."""
    integer = functools.partial(absl_flags.DEFINE_integer, flag_values=flag_values)
    names = functools.partial(absl_flags.DEFINE_list, flag_values=flag_values)
    names(
        "status_quo",
        ["ntk+alibi", "ntk+alibi_star", "ntk+t5"],
        "Retrofits to judge, each SCALING+BIAS, with +temperature where logits are sharpened.",
    )
    integer("haystacks", 32, "Haystacks at each length.")
    absl_flags.DEFINE_boolean(
        "full", False, "Every scaling x bias x temperature, on every stand-in that ships.", flag_values=flag_values
    )
    absl_flags.DEFINE_string(
        "fail_if",
        None,
        "A gate for CI, such as 'short_cost>0.02': exit 0 only if the whole interval is on the good side, 3 if it is "
        "on the bad one, 4 if that is open. Measures are those of the first status quo.",
        flag_values=flag_values,
    )


def run(arguments: list[str], flags: absl_flags.FlagValues) -> int:
    """Runs the case; returns the exit status."""
    out = _checked(flags)

    # JAX is imported only once the flags are known to be good.
    from rope_jax.diagnosis import case_table, subject
    from rope_jax.diagnosis.case import run_case
    from rope_jax.diagnosis.case_record import json_record
    from rope_jax.diagnosis.case_report import html_page

    directories = [pathlib.Path(arguments[0])] if arguments else list(subject.standins())
    if not flags.full:
        directories = directories[:1]
    settings = _settings(flags, bool(arguments))
    subjects = [
        subject.standin_subject(
            directory, target_length=flags.target_length, rows=flags.haystacks, text_rows=flags.rows, seed=flags.seed
        )
        for directory in directories
    ]
    with Progress() as progress:
        case = run_case(subjects, settings, store=out / "cells", progress=progress)
    record = json_record(case)
    command = shlex.join(["rope-jax", *sys.argv[1:]]) if sys.argv[1:2] == ["diagnose"] else "rope-jax diagnose"
    written = json.dumps(record, allow_nan=False)
    table = case_table.table_text(record)
    page = html_page(record, command=command)
    write_all(out, dict(zip(_FILES, (written + "\n", table, page), strict=True)))
    print(written if flags.json else table + f"\nwritten to {out}: {', '.join(_FILES)}")
    return _gate(case, flags)


def _gate(case, flags: absl_flags.FlagValues) -> int:
    if flags.fail_if is None:
        return 0
    from rope_jax.diagnosis import gates
    from rope_jax.diagnosis.case import gate_measures

    result = gates.check(flags.fail_if, gate_measures(case, case.judgements[0]))
    if not flags.json:
        print("\n".join(result.lines))
    return result.status


def _settings(flags: absl_flags.FlagValues, own_model: bool):
    from rope_jax.diagnosis.case_setup import Settings
    from rope_jax.diagnosis.verdict import Margins

    return Settings(
        status_quos=tuple(_cell(text) for text in flags.status_quo),
        full=flags.full,
        margins=Margins(short_cost=flags.margin),
        num_buckets=flags.num_buckets,
        max_distance=flags.max_distance,
        fit_steps=flags.fit_steps,
        seed=flags.seed,
    )


def _cell(text: str):
    from rope_jax.diagnosis.case_setup import BIASES, SCALINGS
    from rope_jax.diagnosis.cells import Cell

    match = re.fullmatch(r"(\w+)\+(\w+?)(\+temperature)?", text)
    if match is None or match[1] not in SCALINGS or match[2] not in BIASES:
        raise InputError(
            f"--status_quo: {text!r} is not SCALING+BIAS; scalings: {', '.join(SCALINGS)}; biases: {', '.join(BIASES)}"
        )
    return Cell(match[1], match[2], match[3] is not None)


def _checked(flags: absl_flags.FlagValues) -> pathlib.Path:
    if not flags.status_quo:
        raise InputError("--status_quo names no retrofit")
    for name in ("haystacks", "rows", "num_buckets", "max_distance", "fit_steps"):
        if not 1 <= getattr(flags, name) <= _LARGEST_ROWS:
            raise InputError(f"--{name} must be from 1 to {_LARGEST_ROWS}, got {getattr(flags, name)}")
    if not 0 <= flags.margin < float("inf"):
        raise InputError(f"--margin must be a finite number, 0 or more, got {flags.margin}")
    if not 0 <= flags.seed < 2**32:
        raise InputError(f"--seed must be from 0 to {2**32 - 1}, got {flags.seed}")
    if flags.fail_if is not None:
        from rope_jax.diagnosis import gates

        gates.parse(flags.fail_if)  # before anything is run
    return checked_out(pathlib.Path(flags.out or _DEFAULT_OUT), _FILES)
