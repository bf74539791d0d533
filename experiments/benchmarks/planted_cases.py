"""Plants causes on one model: what the tool says of each on a few contexts, and what is true of it on many others.

The tool gets the deployed scaling and bias as objects, a fault under a name of its own, and answers through `ask_on`.
The truth removes the plant and measures, on contexts that are the same for all cases of a model, what that wins back
and what every change wins back that the tool could have named.
"""

import dataclasses
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from planted_causes import Draw, Pair, Plant
from planted_faults import fault_maker

from rope_jax.checkpoints.saving import llama_config, save_llama
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.diagnosis.evaluation.cases import EXACT, Cases
from rope_jax.diagnosis.evaluation.configurations import ORIGINAL, TRANSFORMS, wanted
from rope_jax.diagnosis.evaluation.faults import FAULTS, register
from rope_jax.diagnosis.evaluation.panel import PRECISION, Evidence, Panel
from rope_jax.diagnosis.evaluation.plan import ModelPlan, PlanSettings, plan_of
from rope_jax.diagnosis.evaluation.runs import Runs, panel_of
from rope_jax.diagnosis.evaluation.schemes import SchemeMaker
from rope_jax.diagnosis.judging import tasks_of
from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.subject import Items, Subject, read_bundled_model
from rope_jax.diagnosis.verdict.answers import Margins, Verdict
from rope_jax.diagnosis.verdict.contrasts import Contrasts
from rope_jax.diagnosis.verdict.decide import REPAIR
from rope_jax.diagnosis.verdict.sampling import ask_on
from rope_jax.rules import Rule
from rope_jax.scheme import Retrofit
from rope_jax.statistics.intervals import CONFIDENCE

_TRUTH_SEED, _CALIBRATION_SEED = 2**31 + 7, 2**31 + 11
_CALIBRATION = 96  # contexts on which the best scaling is chosen, and nulls are weakened


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a result depends on beside the model and the case's seed.

    Attributes:
      contexts: at each length, that the tool sees first.
      interim: analyses that it may make; each further one doubles what it has seen.
      truth: contexts of the target length that the truth is measured on.
      text_rows: rows of text that the tool sees.
      ratio: target over trained length.
      margins: of the verdict and the truth.
    """

    contexts: int = 24
    interim: int = 3
    truth: int = 384
    text_rows: int = 8
    ratio: float = 2.0
    margins: Margins = dataclasses.field(default_factory=Margins)


class Bench:
    """Plants causes on one model and judges them.

    Args:
      directory: of the model.
      settings: sizes and margins.

    Attributes:
      checkpoint: the model.
      best: the scaling that does best on it without a bias, of the transforms that the tool tries and ntk.
    """

    def __init__(self, directory: Path, settings: Settings) -> None:
        self._settings = settings
        self._bundled = read_bundled_model(directory)
        self.checkpoint = self._bundled.checkpoint
        self._target = round(settings.ratio * self.checkpoint.positions.original_length)
        self._maker = SchemeMaker(
            positions=self.checkpoint.positions,
            layout=self.checkpoint.layout,
            phase="exact",
            trained_length=self.checkpoint.positions.original_length,
            target_length=self._target,
        )
        self._runs = Runs(self._subject(0))  # its programs serve all cases
        self._true_runs = self._runs.on(_long_only(self._subject(_TRUTH_SEED, rows=settings.truth)))
        self._calibration = self._runs.on(_long_only(self._subject(_CALIBRATION_SEED, rows=_CALIBRATION)))
        self.best: Rule = max(map(self._maker.rule, (*TRANSFORMS, "ntk")), key=lambda rule: self._mean((rule, None)))

    def draw(self, family: str, seed: int) -> Plant:
        """Returns a case of a family."""
        group = self.checkpoint.positions.main_group
        assert group.rotary is not None
        drawn = Draw(
            np.random.default_rng(np.random.SeedSequence([seed, 0])),
            rotary=group.rotary,
            num_heads=group.num_heads,
            ratio=self._settings.ratio,
            best=self.best,
            cost=lambda planted, without: self._mean(without) - self._mean(planted),
        )
        return drawn.plant(family)

    def judge(self, plant: Plant, seed: int) -> dict[str, Any]:
        """Returns what the tool says about a plant and what is true of it, for the record.

        Args:
          plant: the cause.
          seed: of the tool's items.
        """
        name = f"planted_{seed}" if plant.wrong else EXACT
        if plant.wrong:
            register(name, fault_maker(name, plant.wrong))
        try:
            started = time.perf_counter()
            plan = self._plan(plant.deployed)
            cases = Cases([self._subject(seed)], [plan], faulty=name)
            cases.runs = [self._runs.on(cases.subjects[0])]
            said = self._said(cases, plan.deployed[0], seed)
            between = time.perf_counter()
            many = cases.on([self._true_runs.subject])
            many.runs = [self._true_runs]  # what other cases ran on the same contexts is known
            true = self._truth(many, plan, plant, tuple(said["used"]))
        finally:
            FAULTS.pop(name, None)
        seconds = {"tool": round(between - started, 2), "truth": round(time.perf_counter() - between, 2)}
        return {**said, **true, "best": self.best.name, "seconds": seconds}

    # What the tool says.

    def _said(self, cases: Cases, deployed: str, seed: int) -> dict[str, Any]:
        margins = self._settings.margins
        used = tasks_of(cases.panel(cases.scores(ORIGINAL)), cases.subjects[0], learned=margins.learned).used
        if not set(PRECISION) & set(used):
            raise ValueError(f"{self.checkpoint.origin}: the model has learned neither order nor binding")

        def more(number: int, asked: Collection[str]) -> Evidence:
            return cases.on([self._subject(seed, part=number)]).evidence(deployed, asked, used)

        first = cases.evidence(deployed, [one.configuration for one in cases.options(deployed)], used)
        verdict = ask_on(
            first, more, margins=margins, looks=self._settings.interim, confidence=CONFIDENCE, seed=seed % 2**31
        )
        gains = mean_gains(first)
        return {"used": list(used), **in_words(verdict), "seen": gains}

    # What is true.

    def _truth(self, cases: Cases, plan: ModelPlan, plant: Plant, used: tuple[str, ...]) -> dict[str, Any]:
        deployed = plan.deployed[0]
        evidence = cases.evidence(deployed, [one.configuration for one in cases.options(deployed)], used)

        def without(pair: Pair) -> Panel:
            if pair is plant.deployed:  # it is only run wrongly
                return evidence.base
            return cases.panel([cases.runs[0]([plan.maker(self._retrofit(pair))])])

        contrasts = Contrasts(used, CONFIDENCE)
        return {
            "removed": {
                part: float(contrasts.together(without(pair), evidence.as_deployed).values.mean())
                for part, pair in plant.removed.items()
            },
            "gains": mean_gains(evidence),
        }

    def _mean(self, pair: Pair) -> float:
        """Returns the mean log-odds of order and binding of a configuration on the calibration's contexts."""
        runs = self._calibration
        scores = runs([self._plan(pair).maker(self._retrofit(pair))])
        long = panel_of([scores], runs.subject.items, runs.subject.trained_length).log_odds["long"]
        return float(np.mean([long[task].mean() for task in PRECISION]))

    def _subject(self, seed: int, *, part: int = 0, rows: int | None = None) -> Subject:
        return self._bundled.asked(
            rows=rows or self._settings.contexts,
            target_length=self._target,
            text_rows=self._settings.text_rows,
            seed=seed,
            part=part,
        )

    def _retrofit(self, pair: Pair) -> Retrofit:
        return dataclasses.replace(self._maker.original(), rule=pair[0], bias=pair[1])

    def _plan(self, pair: Pair) -> ModelPlan:
        return plan_of([self._runs.subject], PlanSettings((wanted(pair),), TRANSFORMS))


def _long_only(subject: Subject) -> Subject:
    """Returns a subject that is asked at the target length only, and reads no text."""
    items = subject.items
    return dataclasses.replace(subject, items=Items(None, items.long, items.text[:0], items.counted[:0]))


def mean_gains(evidence: Evidence) -> dict[str, float]:
    """Returns the mean gain of order and binding, nats: of a repair over what runs, of each change over a repair."""
    contrasts, exact = Contrasts(evidence.used, CONFIDENCE), evidence.base
    gains = {REPAIR: contrasts.together(exact, evidence.as_deployed)}
    for option in evidence.options:
        gains[option.words] = contrasts.together(evidence.changed[option.configuration], exact)
    return {words: float(gain.values.mean()) for words, gain in gains.items()}


def in_words(verdict: Verdict) -> dict[str, Any]:
    """Returns of a verdict what is scored."""
    ranking = verdict.decisive
    first = next((place for place in ranking.places if place.change == verdict.first), None)
    outside = ranking.outside[0] if ranking.outside else None
    return {
        "contexts": verdict.contexts,
        "settled": verdict.settled,
        "regression": verdict.regression.answer,
        "implementation": verdict.implementation.status,
        "first": verdict.first,
        "probability_first": verdict.probability_first,
        "option": first.option if first else "",
        "gain": dataclasses.asdict(first.gain) if first else None,
        "outside": [outside.change, outside.probability_first] if outside else None,
        "cause": verdict.cause.part,
    }


def tiny_model(directory: Path) -> None:
    """Writes a small decoder with random weights that reads the contexts' vocabulary."""
    config = DecoderConfig(
        contexts.VOCAB_SIZE,
        16,
        16,
        1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        tie_embeddings=True,
    )
    model = Decoder(config, rngs=nnx.Rngs(0))
    save_llama(directory, model, llama_config(model, base=200.0, trained_length=192))
    (directory / "training.json").write_text("{}\n")
