"""`diagnose`: which part of a context extension broke what, and which change to try first."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rope_jax.diagnosis.finding import findings_of
from rope_jax.diagnosis.models import Model
from rope_jax.diagnosis.options import Options
from rope_jax.diagnosis.report import html, record, terminal
from rope_jax.diagnosis.result import Condition, Findings


class Diagnosis:
    """What `diagnose` returns: the findings, and every way of showing them.

    Attributes:
      findings: everything as Python objects.
      record: the same as one JSON object, which `report/schema.json` describes.
    """

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.record: dict[str, Any] = record.record_of(findings)

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """Every configuration that was run, by name."""
        return self.findings.conditions

    @property
    def recommendation(self) -> dict[str, str]:
        """What to try first, by deployed configuration."""
        return {one.deployed: one.verdict.first for one in self.findings.judgements}

    def table(self) -> str:
        """Returns the report as text of at most 80 columns."""
        return terminal.table(self.record, costs=self.findings.costs)

    def to_json(self) -> str:
        """Returns the record as one line of JSON."""
        return json.dumps(self.record, allow_nan=False)

    def to_html(self, *, command: str = "") -> str:
        """Returns the report as one self-contained page."""
        return html.page(self.record, command=command, costs=self.findings.costs)

    def _repr_html_(self) -> str:
        return self.to_html()


def diagnose(
    model: Model | Sequence[Model] | None = None,
    *,
    store: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **options: Any,
) -> Diagnosis:
    """Returns which part of a context extension broke what on a model, and which change to try first.

    The same weights and the same items run under every configuration: the original, each deployed one, its 2 x 2 and
    every option. A verdict on each deployed one gives six answers: is it the regression described, is it the
    implementation, which change to try first with its probability, the cause, whether it may ship, and what is next.

    Args:
      model: a directory or file, a checkpoint, several models of one kind, or None for the bundled test model.
      store: directory of finished results, so that a run that was cut off goes on; None for none.
      progress: called with a stage, what is done of it, and of how much.
      **options: attributes of `Options`, such as `deployed`, `text`, `target_length`, `contexts`, `margins`.

    Raises:
      InputError: if a name is unknown, a file is not there, or lengths contradict each other.
      ScalingError: if no deployed configuration has a meaning on this model.
      CheckpointError: if the model cannot be read, or overflows float32.
      TypeError: if there is no such option.

    >>> diagnose(deployed="ntk+alibi_star", contexts=40).recommendation  # doctest: +SKIP
    {'ntk + alibi_star': 'scale by llama3 instead'}
    """
    return Diagnosis(findings_of(model, Options(**options), store=store, progress=progress))
