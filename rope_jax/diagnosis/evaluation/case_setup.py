"""What a case is made of before anything is run: settings, the cells they ask for, and biases with what was fitted."""

import concurrent.futures
import dataclasses
from collections.abc import Collection, Mapping, Sequence

from rope_jax import scaling
from rope_jax.biases import Bias, alibi_paper, bucket_starts
from rope_jax.diagnosis.evaluation import fitting
from rope_jax.diagnosis.evaluation.arms import Arms
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell, CellSchemes, corners, options
from rope_jax.diagnosis.evaluation.deployment import EXACT
from rope_jax.diagnosis.evaluation.losses import LossProgram
from rope_jax.diagnosis.evaluation.scalings import TRANSFORMS, scaling_rule
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.verdict.verdict import Margins
from rope_jax.errors import InputError
from rope_jax.rules import Rule

BIASES = ("none", "alibi", "alibi_star", "t5")
SCALINGS = ("none", "ntk", *TRANSFORMS)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked.

    Attributes:
      status_quos: the retrofits to judge.
      transforms: what option 3 may scale by.
      full: whether every scaling x bias x temperature is run, not only what the verdicts need.
      margins: what is too little to matter.
      slopes: multiplier of ALiBi's paper slopes in the bias `alibi`.
      num_buckets: T5 buckets.
      max_distance: T5's largest told-apart distance, tokens.
      fit_steps: Adam steps of the T5 table.
      faults: what every status quo is also run with, names from `scalings.FAULTS`.
      adapt_steps: training steps of the adapted arms; 0 for none.
      deployed: the fault that the deployment is known to have, or "exact".
      spared: first keys that a further arm of every status quo with a bias spares it; 0 for no such arm.
      looks: at the verdict; each after the first doubles the contexts, until it is settled.
      seed: of the fit's order.
    """

    status_quos: tuple[Cell, ...] = (Cell("ntk", "alibi"), Cell("ntk", "alibi_star"), Cell("ntk", "t5"))
    transforms: tuple[str, ...] = TRANSFORMS
    full: bool = False
    margins: Margins = dataclasses.field(default_factory=Margins)
    slopes: float = 1.0
    num_buckets: int = 32
    max_distance: int = 128
    fit_steps: int = 60
    faults: tuple[str, ...] = ("bf16_frequencies",)
    adapt_steps: int = 0
    deployed: str = EXACT
    spared: int = 0
    looks: int = 1
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class FittedBiases:
    """What was fitted for one model, all on text that is not evaluated and no longer than the trained length.

    Attributes:
      biases: by name, None for none.
      star: how ALiBi's largest harmless multiplier was found, or None.
      table: T5's table, or None.
    """

    biases: Mapping[str, Bias | None]
    star: fitting.Multiplier | None
    table: fitting.FittedTable | None


def rules_of(factor: float, trained_length: int) -> dict[str, Rule]:
    """Returns the rule of every scaling; YaRN without its temperature, which cells turn on by themselves."""
    rules: dict[str, Rule] = {}
    for name in SCALINGS:
        rule = scaling_rule(name, factor=factor, original_length=trained_length)
        assert isinstance(rule, Rule)
        rules[name] = rule
    rules["yarn"] = scaling.yarn(factor=factor, original_length=trained_length, attention_factor=1.0)
    return rules


def fit_biases(subject: Subject, arms: Arms, settings: Settings, names: set[str]) -> FittedBiases:
    """Returns the biases called `names`, fitted where they have something to fit, for one model.

    A* is the largest multiplier that costs no more than the margin on the unscaled model; T5's table is fitted under
    the base scaling that it is to go with, from zeros, the weights frozen.
    """
    heads = subject.checkpoint.config.num_heads
    biases: dict[str, Bias | None] = {"none": None}
    star = table = None
    if "alibi" in names:
        biases["alibi"] = alibi_paper(heads, multiplier=settings.slopes)

    program = LossProgram(subject.checkpoint.model)

    def largest() -> fitting.Multiplier:
        return fitting.largest_multiplier(
            program,
            lambda value: arms.schemes("none", alibi_paper(heads, multiplier=value)),
            subject.fit_text,
            counted=subject.fit_counted,
            margin=settings.margins.short_cost,
        )

    def fitted() -> fitting.FittedTable:
        return fitting.fit_t5_table(
            program,
            subject.checkpoint.model,
            lambda bias: arms.schemes("ntk", bias),
            subject.fit_text,
            counted=subject.fit_counted,
            num_heads=heads,
            num_buckets=settings.num_buckets,
            max_distance=settings.max_distance,
            steps=settings.fit_steps,
            seed=settings.seed,
        )

    # Neither keeps two cores busy by itself.
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        starring = pool.submit(largest) if "alibi_star" in names else None
        tabling = pool.submit(fitted) if "t5" in names else None
    if starring is not None:
        star = starring.result()
        biases["alibi_star"] = alibi_paper(heads, multiplier=star.value)
    if tabling is not None:
        table = tabling.result()
        biases["t5"] = table.bias(max_distance=settings.max_distance)
    return FittedBiases(biases, star, table)


def arms_of(subject: Subject, settings: Settings) -> Arms:
    """Returns what builds the schemes of all cells of a model, of one shape."""
    biases = {cell.bias for cell in needed_cells(settings)}
    offsets = bucket_starts(settings.num_buckets, settings.max_distance)[-1] if "t5" in biases else 0
    return Arms(
        positions=subject.checkpoint.positions,
        rules=rules_of(subject.factor, subject.trained_length),
        layout=subject.checkpoint.layout,
        phase="exact",
        length=subject.target_length,
        max_offset=offsets,
    )


def fitted_schemes(subject: Subject, settings: Settings, cells: Collection[Cell]) -> tuple[FittedBiases, CellSchemes]:
    """Returns what was fitted for the biases of `cells` on one model, and what makes their schemes."""
    arms = arms_of(subject, settings)
    fitted = fit_biases(subject, arms, settings, {cell.bias for cell in cells})
    return fitted, CellSchemes(arms, fitted.biases, subject.factor)


def needed_cells(settings: Settings) -> list[Cell]:
    """Returns the cells to run, the unchanged model first, in an order that does not depend on anything else."""
    cells = {UNCHANGED: None}
    for status_quo in settings.status_quos:
        cells |= dict.fromkeys([status_quo, *corners(status_quo).values()])
        cells |= dict.fromkeys(option.cell for option in options(status_quo, transforms=settings.transforms))
    if settings.full:
        biases = dict.fromkeys(["none", *(cell.bias for cell in settings.status_quos)])
        cells |= {Cell(s, b, t): None for s in SCALINGS for b in biases for t in (False, True)}
    return list(cells)


def check(subjects: Sequence[Subject], settings: Settings) -> None:
    """Raises `InputError` unless the status quos exist and the lengths of all models agree."""
    for cell in settings.status_quos:
        if cell.scaling not in SCALINGS or cell.bias not in BIASES:
            raise InputError(f"status quo {cell}: scalings are {', '.join(SCALINGS)}; biases are {', '.join(BIASES)}")
    for subject in subjects:
        if subject.target_length <= subject.trained_length:
            raise InputError(
                f"target length {subject.target_length} must be above the trained length {subject.trained_length}"
            )
    lengths = {(subject.trained_length, subject.target_length) for subject in subjects}
    if len(lengths) > 1:
        raise InputError(f"models of one case must share their lengths, got {sorted(lengths)}")
