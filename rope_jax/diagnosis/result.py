"""What a diagnosis has found, before it is written down: every configuration measured, and a verdict for each deployed.

`report` makes the JSON record, the text and the page of it; nothing here knows how they look.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rope_jax.diagnosis.evaluation.panel import Panel, Reach
from rope_jax.diagnosis.evaluation.probes import Answers
from rope_jax.diagnosis.tasks.subject import Subject
from rope_jax.diagnosis.verdict.answers import Margins, Verdict


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Which tasks decide.

    Attributes:
      used: those that the original model has learned, in the order retrieval, binding, order.
      refused: why the others are left out, by task.
      accuracy: of the original model at the trained length, by task, mean over models.
      chance: accuracy of a guess among the choices, by task.
    """

    used: tuple[str, ...]
    refused: Mapping[str, str]
    accuracy: Mapping[str, float]
    chance: Mapping[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
    """One configuration, measured on every model.

    Attributes:
      name: such as "ntk + alibi"; "none + none" is the original model.
      scaling: name of its rule.
      bias: name of its bias.
      temperature: multiplies every logit; 1 for none.
      panel: outcomes a context and a row of text.
      answers: to every question, by reach, one a model; empty for a model that answers no questions.
      losses: nats of every next token of text, `[rows, tokens - 1]`, one a model.
      inverse_frequencies: of the layers that see the whole context, radians a token; empty where nothing rotates.
      slopes: of its ALiBi, nats a token, one a head, or None.
      table: of its bucketed bias, nats, `[heads, buckets]`, or None.
      max_distance: of that table, tokens: from there on one bucket holds everything; or None.
      fitted: how its bias was found, in words, or "" where nothing was fitted.
    """

    name: str
    scaling: str
    bias: str
    temperature: float
    panel: Panel
    answers: Mapping[Reach, Sequence[Answers]]
    losses: Sequence[np.ndarray]
    inverse_frequencies: Sequence[float]
    slopes: Sequence[float] | None
    table: Sequence[Sequence[float]] | None
    max_distance: int | None
    fitted: str


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """One deployed configuration, judged.

    Attributes:
      deployed: its name.
      verdict: of all models together from five on, else of the first.
      by_model: of each model alone, where there are two to four; empty otherwise.
      agreement: how many models say the same, in words; "" for one model.
      pattern: which way wrong answers lean, in words, with its evidence; "" where there are too few errors.
      links: (i), (ii), (iii) from the scheme to what was seen, and the choice that follows, as paragraphs by heading.
    """

    deployed: str
    verdict: Verdict
    by_model: tuple[Verdict, ...] = ()
    agreement: str = ""
    pattern: str = ""
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """Everything that a diagnosis has found.

    Attributes:
      subjects: the models and what they were asked.
      settings: everything that was asked for, as plain values, margins included.
      margins: what is too little to matter.
      tasks: which tasks decide.
      conditions: every configuration that was run, the original model ("none + none") first.
      judgements: one a deployed configuration, in the order asked for.
      shared: what deployed configurations that fail alike have in common, in words, or "".
      adapted: judgements after a few steps of training in every configuration; empty where none was asked for.
      adapted_panels: what those configurations did, by name.
      prediction: from stretched positions, as plain values for the record, or None.
      ratios: deployed configurations at other ratios, as plain values.
      costs: time and memory of each configuration, as plain values; kept beside the record, as times differ.
      findings: what a reader must know beside the numbers.
      omitted: configurations that could not be run, and why.
      seconds: wall time by stage.
      versions: of what ran.
    """

    subjects: Sequence[Subject]
    settings: Mapping[str, Any]
    margins: Margins
    tasks: Tasks
    conditions: Mapping[str, Condition]
    judgements: Sequence[Judgement]
    shared: str
    adapted: Sequence[Judgement]
    adapted_panels: Mapping[str, Panel]
    prediction: Mapping[str, Any] | None
    ratios: Sequence[Mapping[str, Any]]
    costs: Sequence[Mapping[str, Any]]
    findings: tuple[str, ...]
    omitted: Mapping[str, str]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
