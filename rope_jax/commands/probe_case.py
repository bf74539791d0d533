"""`rope-jax diagnose` on a bundled test model: contexts in its own language, and a verdict for every status quo."""

import functools
import json
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags as absl_flags

from rope_jax.commands.output import STORE, checked_out, checked_store, write_all
from rope_jax.commands.output_file import checked_file, replacing
from rope_jax.commands.progress import Progress
from rope_jax.diagnosis.evaluation import scalings
from rope_jax.diagnosis.evaluation.scalings import FAULTS
from rope_jax.errors import InputError

FLAGS = ("write_items", "observed", "ratios", "most_contexts")
"""Those that mean something on a bundled test model only."""

_MEASURES = ("short_cost", "long_cost", "short_loss", "precision_drop", "retrieval_drop")
_FILES = ("verdict.json", "costs.json", "verdict.txt", "verdict.html")
DEFAULT_OUT = "rope-jax-diagnosis"
_LARGEST_ROWS = 2**14
_LARGEST_RATIO = 1024
_PAPER_LENGTH = 4096
_TEXT_ROWS = 4
_SPARED = 4


def define_flags(flag_values: absl_flags.FlagValues) -> None:
    """Declares the flags of a case on probes."""
    integer = functools.partial(absl_flags.DEFINE_integer, flag_values=flag_values)
    names = functools.partial(absl_flags.DEFINE_list, flag_values=flag_values)
    names(
        "status_quo",
        ["ntk+alibi", "ntk+alibi_star", "ntk+t5"],
        "Retrofits to judge, each SCALING+BIAS, with +temperature where logits are sharpened.",
    )
    integer("contexts", 20, "Contexts at each length.")
    integer(
        "most_contexts",
        None,
        "Where they leave a verdict open, ask on in doublings up to so many; intervals allow for every look.",
    )
    absl_flags.DEFINE_boolean(
        "full",
        False,
        "Every scaling x bias x temperature, on every bundled test model.",
        flag_values=flag_values,
    )
    names("transforms", ["llama3", "yarn", "by_parts"], "What option 3 may scale by; --full takes all there are.")
    integer("adapt_steps", None, "Training steps of adapted arms; 0 for none, by default 0, or 100 with --full.")
    names("faults", [], "Faults whose cost is measured; --full takes all there are.")
    names("ratios", [], "Also asks every status quo at these ratios of target to trained length, such as 1.25,1.5,2.")
    integer(
        "spare_first", None, "Also runs every bias with this many first keys spared; by default 0, or 4 with --full."
    )
    absl_flags.DEFINE_string(
        "budget",
        None,
        "Pick a retrofit still to be chosen among all cells run: steps=N,latency=RATIO,memory=MIB, each optional.",
        flag_values=flag_values,
    )
    absl_flags.DEFINE_string(
        "deployed", "exact", "The fault that the deployment is known to run with.", flag_values=flag_values
    )
    absl_flags.DEFINE_string(
        "write_items",
        None,
        "Write the contexts to this .npz, for a deployment to answer, and stop.",
        flag_values=flag_values,
    )
    absl_flags.DEFINE_string(
        "observed",
        None,
        "A .npz with the deployment's own logits for the items of --write_items.",
        flag_values=flag_values,
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
    items = None
    if flags.write_items is not None:
        model = list(os.scandir(arguments[0])) if arguments and os.path.isdir(arguments[0]) else []
        # Items that were written beside a model before may be replaced, what it consists of may not.
        read = [entry.path for entry in model if entry.is_file() and not entry.name.endswith(".npz")]
        items = checked_file(flags.write_items, flag="--write_items", inputs=read)

    # Imports JAX: only once the flags are known to be good.
    from rope_jax.diagnosis.evaluation.ladder import target_lengths
    from rope_jax.diagnosis.tasks import subject
    from rope_jax.diagnosis.tasks.context_sizes import check_size
    from rope_jax.diagnosis.tasks.contexts import shortest_with_copy

    directories = [pathlib.Path(arguments[0])] if arguments else list(subject.bundled_models())
    if not directories:
        raise InputError("no bundled test model is installed with the package: name the directory of one")
    if not flags.full:
        directories = directories[:1]

    known = [subject.read_bundled_model(directory) for directory in directories]
    trained = known[0].checkpoint.positions.original_length
    asked = flags.target_length or 8 * trained
    targets = {f"--target_length={asked}": asked}
    for text in flags.ratios:
        (targets[f"--ratios={text}"],) = target_lengths([_ratio(text)], trained)
    for target in targets.values():  # all that may be asked on, before anything is run
        check_size(rows=flags.most_contexts or flags.contexts, lengths=[trained, target])

    def subjects_at(length: int | None, part: int = 0) -> list[Any]:
        sizes = {"rows": flags.contexts, "text_rows": flags.rows or _TEXT_ROWS}
        return [one.asked(target_length=length, seed=flags.seed, part=part, **sizes) for one in known]

    # Losses beyond the trained length are of copied tokens only, and a few tokens beyond it there may be none. Rows
    # that are asked on for are not drawn yet: then only a length that no row can fail at will do.
    shortest = shortest_with_copy(trained, trained // 2)
    for flag, target in targets.items():
        if trained < target < shortest and (flags.most_contexts or not _counted_beyond(subjects_at(target))):
            raise InputError(
                f"{flag}: a target of {target} tokens may have no copied token beyond the trained {trained} to take a "
                f"loss of: from {shortest} tokens on there always is one"
            )

    subjects = subjects_at(flags.target_length)
    if flags.write_items is not None:
        assert items is not None
        return _write_items(pathlib.Path(flags.write_items), items, subjects[0])
    further = functools.partial(subjects_at, flags.target_length)
    return conclude(subjects, flags, out, subjects_at=subjects_at, further=further)


def _counted_beyond(subjects: Sequence[Any]) -> bool:
    """Returns whether every row of text has a token beyond the trained length that a loss is taken of."""
    from rope_jax.diagnosis.tasks.subject import short_and_long

    return all(one.items.counted[:, short_and_long(one.trained_length)["long"]].any(axis=1).all() for one in subjects)


def conclude(
    subjects: Sequence[Any],
    flags: absl_flags.FlagValues,
    out: pathlib.Path,
    *,
    subjects_at: Callable[[int], Sequence[Any]] | None = None,
    further: Callable[[int], Sequence[Any]] | None = None,
    silent: bool = False,
) -> int:
    """Runs the case of subjects that know probes, writes it and, unless silent, prints it; returns the status.

    Args:
      subjects: the models and their items.
      flags: of the command.
      out: directory for the files.
      subjects_at: the same models with items of another target length, for `--ratios`.
      further: the same models with further parts of their items, for `--most_contexts`.
      silent: whether nothing is printed.
    """
    from rope_jax.diagnosis.evaluation import costs, deployment
    from rope_jax.diagnosis.evaluation.case import run_case
    from rope_jax.diagnosis.evaluation.case_adapted import judge_adapted
    from rope_jax.diagnosis.evaluation.cells import UNCHANGED
    from rope_jax.diagnosis.evaluation.ladder import ladder, target_lengths
    from rope_jax.diagnosis.prediction import agreement
    from rope_jax.diagnosis.report import case_table
    from rope_jax.diagnosis.report.case_record import json_record
    from rope_jax.diagnosis.report.case_report import html_page
    from rope_jax.diagnosis.verdict import strategy

    settings = _settings(flags, subjects[0].trained_length)
    observed = None if flags.observed is None else deployment.read_observed(pathlib.Path(flags.observed), subjects[0])
    lengths = target_lengths([_ratio(text) for text in flags.ratios], subjects[0].trained_length)
    store = out / STORE
    with Progress() as progress:
        case = run_case(subjects, settings, further=further, store=store, observed=observed, progress=progress)
        adapted = [
            judge_adapted(
                judgement.status_quo,
                subjects,
                case.makers,
                case.cells[UNCHANGED],
                case.used,
                settings,
                store=store,
                progress=progress,
            )
            for judgement in (case.judgements if settings.adapt_steps else [])
        ]
        rungs: list[Any] = []
        if subjects_at is not None and case.used.retrieval and case.used.precision:
            rungs = ladder(subjects_at, lengths, settings, case.used, store=store, progress=progress)
    prediction = agreement.agreement(
        subjects, case.makers, case.cells, case.used, [one.status_quo for one in case.judgements]
    )
    record = json_record(case, adapted=adapted, prediction=prediction, rungs=rungs)
    # Times differ from run to run, so they stand beside the record, not in it.
    judged = [one.option.cell for judgement in case.judgements for one in judgement.verdict.judged]
    timed = costs.costs_record(subjects[0], case.makers[0], judged if flags.budget is None else case.cells)
    command = shlex.join(["rope-jax", *sys.argv[1:]]) if sys.argv[1:2] == ["diagnose"] else "rope-jax diagnose"
    written = json.dumps(record, allow_nan=False)
    table = case_table.table_text({**record, "costs": timed})
    chosen = None
    if flags.budget is not None:
        trained = {judgement.status_quo: judgement.scores for judgement in adapted}
        budget = strategy.parse(flags.budget)
        chosen = strategy.choose(case.cells, trained, case.used, budget, timed, margins=settings.margins)
        table += "\n" + "\n".join(strategy.strategy_lines(chosen)) + "\n"
    found = chosen and strategy.strategy_record(chosen)
    beside = json.dumps({"costs": timed, "strategy": found, "seconds": case.seconds}, allow_nan=False)
    page = html_page({**record, "costs": timed}, command=command)
    write_all(out, dict(zip(_FILES, (written + "\n", beside + "\n", table, page), strict=True)))
    if not silent:
        print(written if flags.json else table + f"\nwritten to {out}: {', '.join(_FILES)}")
    return _gate(case, flags)


def _gate(case, flags: absl_flags.FlagValues) -> int:
    if flags.fail_if is None:
        return 0
    from rope_jax.diagnosis.evaluation.case import gate_measures
    from rope_jax.diagnosis.verdict import gates

    asked = case.settings.status_quos[0]
    judgement = next((one for one in case.judgements if one.status_quo == asked), None)
    if judgement is None:
        if not flags.json:
            print(f"undecided: {asked} was not run: {case.omitted[asked.scaling]}")
        return gates.UNDECIDED
    measures = gate_measures(case, judgement)
    missing = [condition.name for condition in gates.parse(flags.fail_if) if condition.name not in measures]
    if missing:
        if not flags.json:
            print(f"undecided: {', '.join(missing)} not measured: {judgement.verdict.reason}")
        return gates.UNDECIDED
    result = gates.check(flags.fail_if, measures)
    if not flags.json:
        print("\n".join(result.lines))
    return result.status


def _write_items(file: pathlib.Path, target: pathlib.Path, subject) -> int:
    from rope_jax.diagnosis.evaluation import deployment

    with replacing(target, named=f"--write_items={file}") as temporary:
        deployment.write_items(temporary, subject)
    print(f"{file}: {len(subject.items.long.tokens)} contexts at each length")
    return 0


def _settings(flags: absl_flags.FlagValues, trained_length: int):
    from rope_jax.diagnosis.evaluation.case_setup import Settings
    from rope_jax.diagnosis.verdict.looks import number_of_looks
    from rope_jax.diagnosis.verdict.verdict import Margins

    return Settings(
        status_quos=tuple(_cell(text) for text in flags.status_quo),
        transforms=scalings.TRANSFORMS if flags.full else tuple(flags.transforms),
        full=flags.full,
        # So that paper slopes cost at this length what they cost at eight times 4,096 tokens.
        slopes=_PAPER_LENGTH / trained_length,
        faults=FAULTS if flags.full else tuple(flags.faults),
        adapt_steps=(100 if flags.full else 0) if flags.adapt_steps is None else flags.adapt_steps,
        deployed=flags.deployed,
        looks=number_of_looks(flags.contexts, flags.most_contexts or flags.contexts),
        spared=(_SPARED if flags.full else 0) if flags.spare_first is None else flags.spare_first,
        margins=Margins(short_cost=flags.margin),
        num_buckets=flags.num_buckets,
        max_distance=flags.max_distance,
        fit_steps=flags.fit_steps,
        seed=flags.seed,
    )


def _cell(text: str):
    from rope_jax.diagnosis.evaluation.case_setup import BIASES, SCALINGS
    from rope_jax.diagnosis.evaluation.cells import Cell

    match = re.fullmatch(r"(\w+)\+(\w+?)(\+temperature)?", text)
    if match is None or match[1] not in SCALINGS or match[2] not in BIASES:
        raise InputError(
            f"--status_quo: {text!r} is not SCALING+BIAS; scalings: {', '.join(SCALINGS)}; biases: {', '.join(BIASES)}"
        )
    return Cell(match[1], match[2], match[3] is not None)


def _checked(flags: absl_flags.FlagValues) -> pathlib.Path:
    check_request(flags)
    for name in ("rows", "num_buckets", "max_distance", "fit_steps"):
        if getattr(flags, name) is not None and not 1 <= getattr(flags, name) <= _LARGEST_ROWS:
            raise InputError(f"--{name} must be from 1 to {_LARGEST_ROWS}, got {getattr(flags, name)}")
    if flags.target_length is not None and not 1 <= flags.target_length < 2**24:
        raise InputError(f"--target_length must be from 1 to {2**24 - 1}, got {flags.target_length}")
    if not 0 <= flags.margin < float("inf"):
        raise InputError(f"--margin must be a finite number, 0 or more, got {flags.margin}")
    if not 0 <= flags.seed < 2**32:
        raise InputError(f"--seed must be from 0 to {2**32 - 1}, got {flags.seed}")
    if flags.observed == "":
        raise InputError("--observed is empty: name the .npz with the deployment's logits")
    if flags.observed is not None and flags.full:
        raise InputError("--observed is of one model: --full runs all that ship")
    if flags.observed is not None and flags.most_contexts is not None:
        raise InputError("--observed is of the contexts that were written: there is no asking on up to --most_contexts")
    out = checked_out(pathlib.Path(flags.out or DEFAULT_OUT), _FILES, inputs=(flags.observed,))
    checked_store(out)
    return out


def check_request(flags: absl_flags.FlagValues) -> None:
    """Raises `InputError` unless what is asked of the probes can be asked of some model."""
    if not flags.status_quo:
        raise InputError("--status_quo names no retrofit")
    if not 1 <= flags.contexts <= _LARGEST_ROWS:
        raise InputError(f"--contexts must be from 1 to {_LARGEST_ROWS}, got {flags.contexts}")
    if flags.most_contexts is not None and not flags.contexts <= flags.most_contexts <= _LARGEST_ROWS:
        raise InputError(
            f"--most_contexts must be from the {flags.contexts} of --contexts to {_LARGEST_ROWS}, "
            f"got {flags.most_contexts}"
        )
    for name, given, known in (
        ("transforms", flags.transforms, scalings.TRANSFORMS),
        ("faults", flags.faults, FAULTS),
        ("deployed", [flags.deployed], ("exact", *FAULTS)),
    ):
        for value in given:
            if value not in known:
                raise InputError(f"--{name}: {value!r} is none of {', '.join(known)}")
    for text in flags.ratios:
        _ratio(text)
    if flags.spare_first is not None and not 0 <= flags.spare_first <= _LARGEST_ROWS:
        raise InputError(f"--spare_first must be from 0 to {_LARGEST_ROWS}, got {flags.spare_first}")
    if flags.adapt_steps is not None and not 0 <= flags.adapt_steps <= _LARGEST_ROWS:
        raise InputError(f"--adapt_steps must be from 0 to {_LARGEST_ROWS}, got {flags.adapt_steps}")
    if flags.budget is not None:
        from rope_jax.diagnosis.verdict import strategy

        strategy.parse(flags.budget)
    if flags.fail_if is not None:
        from rope_jax.diagnosis.verdict import gates

        for condition in gates.parse(flags.fail_if):  # before anything is run
            if condition.name not in _MEASURES:
                raise InputError(f"--fail_if: {condition.name!r} is no measure; there are {', '.join(_MEASURES)}")


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = float("nan")
    if not 1 < ratio <= _LARGEST_RATIO:
        raise InputError(f"--ratios: {text!r} is no number above 1 and up to {_LARGEST_RATIO}")
    return ratio
