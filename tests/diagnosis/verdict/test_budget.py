"""The best configuration within a budget: what is said of it has its interval, its unit and its noise."""

import numpy as np
import pytest

from rope_jax.diagnosis.evaluation.configurations import ORIGINAL
from rope_jax.diagnosis.evaluation.panel import Panel
from rope_jax.diagnosis.verdict.answers import Margins
from rope_jax.diagnosis.verdict.budget import Budget, budget_lines, choose

COST = {"milliseconds": 10.0, "rounds": 5, "fastest": 9.5, "slowest": 12.0, "mib": 8.0}
ORDER = ("order",)


def panel(long: float, *, short: float = 3.0, loss: float = 2.0, noise: float = 0.3) -> Panel:
    rng = np.random.default_rng(0)
    odds = {reach: {"order": (mean + noise * rng.standard_normal(40))[None]} for reach, mean in
            (("short", short), ("long", long))}  # fmt: skip
    right = {reach: {"order": (of["order"] > 0).astype(float)} for reach, of in odds.items()}
    text = {reach: (loss + 0.01 * rng.standard_normal(40))[None] for reach in ("short", "long")}
    return Panel(odds, right, text)


def said(panels, used=ORDER, budget=None, costs=(), adapted=None) -> str:
    found = choose(panels, adapted or {}, panels[ORIGINAL], costs, used, budget or Budget(), margins=Margins())
    return " ".join(" ".join(budget_lines(found)).split())


def test_a_gain_has_its_interval_and_its_unit():
    rng = np.random.default_rng(1)
    better = panel(1.5)
    better.log_odds["long"]["order"] += 0.2 * rng.standard_normal((1, 40))
    text = said({ORIGINAL: panel(1.0), "ntk + none": better})
    assert text.startswith("WITHIN THE BUDGET: ntk + none, as it is: gains 0.5")
    assert "] nats of event order and binding over the original model at the target length" in text
    assert "choice among 2" in text
    assert "not resolved" not in text


def test_a_gain_that_may_be_none_is_not_resolved():
    unclear, added = panel(1.0), np.random.default_rng(1).standard_normal((1, 40))
    unclear.log_odds["long"]["order"] += added - added.mean() + 0.05
    assert "that it gains at all is not resolved" in said({ORIGINAL: panel(1.0), "ntk + none": unclear})


def test_text_is_in_nats_a_token():
    text = said({ORIGINAL: panel(1.0), "ntk + none": panel(1.0, loss=1.99)}, used=())
    assert "gains 0.01 [0.01, 0.01] nats a token of the long loss of text" in text


def test_the_original_model_gains_nothing_over_itself():
    text = said({ORIGINAL: panel(1.0), "ntk + none": panel(0.5)})
    assert text == "WITHIN THE BUDGET: the original model as it is: of all that stays within, nothing gains over it"


@pytest.mark.parametrize(
    ("fastest", "times"), [(14.5, "15 ms [14.5, 16] against 10 ms [9.5, 12]"), (None, "a single run")]
)
def test_what_is_too_slow_is_said_with_the_noise_of_its_time(fastest, times):
    slow = COST | {"milliseconds": 15.0, "fastest": fastest, "slowest": 16.0}
    costs = [{"configuration": ORIGINAL, **COST}, {"configuration": "ntk + none", **slow}]
    text = said({ORIGINAL: panel(1.0), "ntk + none": panel(1.5)}, budget=Budget(latency=1.2), costs=costs)
    assert f"not ntk + none: latency: 1.50 times the original model's ({times}" in text


def test_what_costs_too_much_short_is_said_with_its_interval():
    text = said({ORIGINAL: panel(1.0), "ntk + none": panel(1.5, loss=2.3)})
    assert "not ntk + none: short loss of text: 0.300 [0.300, 0.300] lost, at most 0.02 may be" in text
