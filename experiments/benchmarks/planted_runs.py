"""Runs a planted case: what the tool sees and says, and what is true.

The tool gets the weights, the declared scheme and what the deployment answered to fresh items of the case's own. The
truth is measured on other items, the same for all cases of a model.
"""

import dataclasses
import functools
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import planted_truth
from flax import nnx
from planted_causes import FARTHEST_BUCKET, Plant, base_divisors, scaled_by
from planted_faults import faulty, rounded_bias, rounded_significands, run_wrongly
from planted_truth import Rows, Truth

from rope_jax.decoder import Decoder
from rope_jax.diagnosis.evaluation import deployment
from rope_jax.diagnosis.evaluation.arms import Arms
from rope_jax.diagnosis.evaluation.case_setup import rules_of
from rope_jax.diagnosis.evaluation.cell_runs import CellRuns, Scores
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell, CellSchemes, Option, options
from rope_jax.diagnosis.evaluation.losses import next_token_losses
from rope_jax.diagnosis.evaluation.probes import ProbeProgram
from rope_jax.diagnosis.evaluation.scalings import TRANSFORMS
from rope_jax.diagnosis.tasks.subject import Subject, read_bundled_model
from rope_jax.diagnosis.verdict.attribution import Used
from rope_jax.diagnosis.verdict.looks import Answered, ask_on
from rope_jax.diagnosis.verdict.verdict import IMPLEMENTATION, Margins, attribution
from rope_jax.scheme import Scheme

PLANTED = Cell("planted", "planted")
STRIP = FARTHEST_BUCKET  # offsets told apart: one shape for every plant, whatever its bias
_TRUTH_SEED = 2**31 + 7
FIRST_LOOK = 2  # parts of the truth's items on which every option is run; then only what is still open


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a result depends on beside the model and the case's seed.

    Attributes:
      haystacks: at each length, that the tool sees first.
      looks: that it may take; each further one doubles what it sees.
      truth: how many times as many the truth is measured on as the tool saw in a case, at most: fewer where they tell.
      text_rows: rows of text that the tool sees first, with the same doublings; the truth as many times as many.
      margins: of the verdict and the truth.
    """

    haystacks: int = 48
    looks: int = 5
    truth: int = 10
    text_rows: int = 48
    margins: Margins = dataclasses.field(default_factory=Margins)


class Programs:
    """The compiled programs of one kind of decoder: weights, schemes and strengths of faults are their arguments."""

    def __init__(self, decoder: Decoder) -> None:
        graph, _ = nnx.split(decoder)
        self.exact = ProbeProgram(decoder)
        self.wrong = ProbeProgram(decoder, attention=run_wrongly)

        @jax.jit
        def losses(state, scheme, tokens):
            return next_token_losses(nnx.merge(graph, state), scheme, tokens)

        self.losses = losses


@dataclasses.dataclass(frozen=True, eq=False)
class Deployed:
    """A plant on one model.

    Attributes:
      plant: the cause.
      state: the weights that run, and that the tool is given.
      schemes: the scheme of every cell as it should run.
      declared: the scheme that is deployed, with room for a rounded bias; None where it runs exactly.
    """

    plant: Plant
    state: Any
    schemes: CellSchemes
    declared: Scheme | None

    def scheme(self, cell: Cell) -> Scheme:
        """Returns the exact scheme of a cell; what is cooled is so under every option, but not before the retrofit."""
        scheme = self.schemes(cell)
        assert isinstance(scheme, Scheme)
        cooling = 1.0 if cell == UNCHANGED else self.plant.cooling
        return dataclasses.replace(scheme, logit_scale=scheme.logit_scale * cooling)


class Bench:
    """Plants causes on one model and judges them.

    Args:
      directory: of the model.
      settings: sizes and margins.
      programs: of its kind of decoder, by config; added to.
    """

    def __init__(self, directory: Path, settings: Settings, programs: dict[Any, Programs]) -> None:
        self._directory, self._settings = directory, settings
        self._bundled = read_bundled_model(directory)
        self.checkpoint = self._bundled.checkpoint
        if self.checkpoint.config not in programs:
            programs[self.checkpoint.config] = Programs(self.checkpoint.model)
        self._programs = programs[self.checkpoint.config]
        self._state = nnx.state(self.checkpoint.model)
        self._known: dict[tuple[float, int], tuple[Subject, Scores]] = {}

    def judge(self, plant: Plant, seed: int) -> dict[str, Any]:
        """Returns what the tool says about a plant and what is true of it, for the record.

        Args:
          plant: the cause.
          seed: of the tool's items, and of noise in the weights.
        """
        started = time.perf_counter()
        deployed = self._deploy(plant, seed)
        said = self._tool(deployed, seed)
        between = time.perf_counter()
        parts = self._settings.truth * said["haystacks"] // self._settings.haystacks
        true = self._truth(deployed, said["used"], parts)
        ended = time.perf_counter()
        return {
            **said,
            "learned": list(self._learned(plant.ratio).names),
            "right": sorted(true.right),
            "null": true.null,
            "edge": true.edge,
            "drop": true.drop,
            "effects": {label: dataclasses.asdict(one) for label, one in true.effects.items()},
            "seconds": {"tool": round(between - started, 2), "truth": round(ended - between, 2)},
        }

    def _subject(self, ratio: float, seed: int, part: int) -> Subject:
        settings, length = self._settings, round(ratio * self.checkpoint.positions.original_length)
        return self._bundled.asked(
            rows=settings.haystacks, target_length=length, text_rows=settings.text_rows, seed=seed, part=part
        )

    # What is deployed.

    def _deploy(self, plant: Plant, seed: int) -> Deployed:
        length = self.checkpoint.positions.original_length
        target = round(plant.ratio * length)
        arms = Arms(
            positions=self.checkpoint.positions,
            rules={**rules_of(plant.ratio, length), PLANTED.scaling: plant.rule},
            layout=self.checkpoint.layout,
            phase="exact",
            length=target,
            max_offset=STRIP,
        )
        schemes = CellSchemes(arms, {"none": None, PLANTED.bias: plant.bias}, plant.ratio)
        declared = self._run_wrongly(plant, arms, target) if plant.wrong else None
        return Deployed(plant, self._noisy(plant.noise, seed) if plant.noise else self._state, schemes, declared)

    def _run_wrongly(self, plant: Plant, arms: Arms, target: int) -> Scheme:
        """Returns the declared scheme as its implementation runs it, strengths and all in its arrays."""
        wrong, divisors = plant.wrong, plant.divisors
        assert wrong is not None
        rotary = self.checkpoint.positions.main_group.rotary
        assert rotary is not None
        if wrong.levels is not None:
            theta = rotary.inverse_frequencies / divisors
            divisors = rotary.inverse_frequencies / rounded_significands(theta, wrong.levels)

        def built(divisors: np.ndarray) -> Scheme:
            rules = {PLANTED.scaling: scaled_by(divisors)}
            scheme = dataclasses.replace(arms, rules=rules, max_offset=target - 1).schemes(PLANTED.scaling, plant.bias)
            assert isinstance(scheme, Scheme)
            return scheme

        scheme = built(divisors)
        if wrong.bias_step is not None:
            scheme = rounded_bias(scheme, length=target, step=wrong.bias_step)
        cached = None
        if wrong.cached_base is not None:
            cached = built(divisors * base_divisors(rotary.dim, wrong.cached_base))
        fresh = deployment.fresh_tokens(self._truth_subject(plant.ratio, 0)[0])
        return faulty(scheme, grid=wrong.grid or 0.5, cached=cached, fresh=fresh)

    def _noisy(self, noise: float, seed: int) -> Any:
        rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))

        def of_array(x: jax.Array) -> jax.Array:
            wide = np.asarray(x, np.float32)
            size = noise * np.sqrt(np.mean(wide**2))
            return jnp.asarray(wide + size * rng.standard_normal(wide.shape), x.dtype)

        return jax.tree.map(of_array, self._state)

    # What it answers.

    def _scores(self, scheme: Scheme, subject: Subject, state: Any) -> Scores:
        items = subject.items
        assert items.short is not None
        assert items.long is not None
        raw = {reach: self._programs.exact(scheme, getattr(items, reach), state) for reach in ("short", "long")}
        # A verdict reads the loss of text up to the trained length only: what comes after stands as zero.
        cut = subject.trained_length
        short = self._programs.losses(state, scheme, jnp.asarray(items.text[:, :cut], jnp.int32))
        raw["losses"] = np.pad(np.asarray(short), ((0, 0), (0, items.text.shape[1] - cut)))
        return CellRuns(subject, program=self._programs.exact).scores(raw)

    def _observed(self, deployed: Deployed, subject: Subject, exact: Scores) -> Scores:
        """Returns the outcomes of what the deployment answers; no text of it is seen."""
        if deployed.declared is None:
            return exact
        items = subject.items
        raw = {
            reach: self._programs.wrong(deployed.declared, getattr(items, reach), deployed.state)
            for reach in ("short", "long")
        }
        return deployment.observed_scores(raw, subject, exact)

    # What the tool says of it.

    def _tool(self, deployed: Deployed, seed: int) -> dict[str, Any]:
        # Whether the deployment has a fault is not known: it is always compared with the exact run.
        exactly = Option(IMPLEMENTATION, "run the same scheme exactly", PLANTED)
        asked = (*options(PLANTED, transforms=TRANSFORMS), exactly)

        def answered(part: int, asked: Collection[Option]) -> Answered:
            subject = self._subject(deployed.plant.ratio, seed, part)

            @functools.cache
            def run(cell: Cell) -> list[Scores]:
                return [self._scores(deployed.scheme(cell), subject, deployed.state)]

            observed = self._observed(deployed, subject, run(PLANTED)[0])
            return Answered([observed], run(UNCHANGED), {option: run(option.cell) for option in asked})

        first, margins = answered(0, asked), self._settings.margins
        used = attribution.gated(first.unchanged, gate=margins.gate)
        found = ask_on(first, answered, used, margins=margins, looks=self._settings.looks)
        verdict = found.verdict
        gains = {
            _label(option): float(attribution.precision_gain(scores, first.status_quo, used).mean())
            for option, scores in first.changed.items()
            if option.number != "0" and found.symptom is not None
        }
        return {
            "used": list(used.names),
            "verdict": verdict.kind if verdict.chosen is None else _label(verdict.chosen),
            "reason": verdict.reason,
            "settled": verdict.settled,
            "haystacks": found.parts * self._settings.haystacks,
            "baseline": planted_truth.best_arm(gains) if gains else planted_truth.UNDETERMINED,
            "gains": gains,
        }

    # What is true of it.

    def _truth_subject(self, ratio: float, part: int) -> tuple[Subject, Scores]:
        """Returns a part of the truth's items, as large as the tool's first, and the unchanged model's scores."""
        if (ratio, part) not in self._known:
            subject = self._subject(ratio, _TRUTH_SEED, part)
            self._known[ratio, part] = subject, self._scores(self._unchanged(ratio), subject, self._state)
        return self._known[ratio, part]

    def _learned(self, ratio: float) -> Used:
        """Returns the probes that the unchanged model has learned, by a share of the truth's items."""
        scores = [self._truth_subject(ratio, part)[1] for part in range(self._settings.truth)]
        return attribution.gated(scores, gate=self._settings.margins.gate)

    def _unchanged(self, ratio: float) -> Scheme:
        length = self.checkpoint.positions.original_length
        scheme = Arms(
            positions=self.checkpoint.positions,
            rules=rules_of(ratio, length),
            layout=self.checkpoint.layout,
            phase="exact",
            length=round(ratio * length),
            max_offset=STRIP,
        ).schemes("none", None)
        assert isinstance(scheme, Scheme)
        return scheme

    def _truth(self, deployed: Deployed, asked: Sequence[str], parts: int) -> Truth:
        """Returns the truth of the probes that passed the tool's gate, which its verdict speaks of, or of all learned.

        Args:
          deployed: the case.
          asked: names of those probes.
          parts: of the truth's items, at most.
        """
        ratio = deployed.plant.ratio
        used = self._learned(ratio)
        if not used.precision or not used.retrieval:
            raise ValueError(f"{self._directory}: the model has not learned retrieval and a probe of precision")
        if "ret" in asked and len(asked) > 1:
            used = dataclasses.replace(used, precision=tuple(name for name in asked if name != "ret"))
        margins = self._settings.margins
        cells = {_label(option): option.cell for option in options(PLANTED) if option.number != "0"}
        before: list[Rows] = []
        reference: list[np.ndarray] = []
        after: dict[str, list[Rows]] = {
            label: [] for label in [*cells, *([IMPLEMENTATION] if deployed.declared else [])]
        }
        labels: Sequence[str] = list(after)
        for part in range(parts):
            if part >= FIRST_LOOK:
                seen = {label: planted_truth.joined(after[label]) for label in labels}
                known = np.concatenate(reference)
                standing = planted_truth.standing(seen, planted_truth.joined(before), known, margins)
                if standing.settled:
                    break
                labels = standing.open
            subject, unchanged = self._truth_subject(ratio, part)
            if deployed.plant.noise:
                unchanged = self._scores(deployed.scheme(UNCHANGED), subject, deployed.state)
            reference.append(attribution.outcome([unchanged], "short", used.precision)[0])
            exact = self._scores(deployed.scheme(PLANTED), subject, deployed.state)
            before.append(planted_truth.rows_of(self._observed(deployed, subject, exact), used))
            for label in labels:
                scores = exact if label == IMPLEMENTATION else None
                scores = scores or self._scores(deployed.scheme(cells[label]), subject, deployed.state)
                after[label].append(planted_truth.rows_of(scores, used))
        effects = {
            label: planted_truth.effect(planted_truth.joined(rows), planted_truth.joined(before[: len(rows)]))
            for label, rows in after.items()
        }
        drop = float(np.concatenate(reference).mean() - planted_truth.joined(before).precision.mean())
        return planted_truth.truth(effects, drop, margins)


def _label(option: Option) -> str:
    if option.number == IMPLEMENTATION:
        return IMPLEMENTATION
    return f"option 3: {option.cell.scaling}" if option.number == "3" else f"option {option.number}"
