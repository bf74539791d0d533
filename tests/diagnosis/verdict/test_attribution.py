"""Contrasts of made-up models: identities that hold whatever the numbers, and units that are haystacks and models."""

import numpy as np
import pytest
from cases import PROBES, scores, used
from hypothesis import given
from hypothesis import strategies as st

from rope_jax.diagnosis.verdict import attribution
from rope_jax.statistics import intervals

PARTS = {
    "none": frozenset(),
    "s": frozenset({"scaling"}),
    "b": frozenset({"bias"}),
    "both": frozenset({"scaling", "bias"}),
}
values = st.floats(-4.5, 4.5, allow_nan=False)


def square(none, s, b, both, models=1):
    given = {"none": none, "s": s, "b": b, "both": both}
    return {
        PARTS[name]: [
            scores(long=value + 0.3 * model, seed=10 * list(PARTS).index(name) + model) for model in range(models)
        ]
        for name, value in given.items()
    }


@given(none=values, s=values, b=values, both=values)
def test_the_parts_add_up_to_the_whole_change(none, s, b, both):
    corners = square(none, s, b, both)
    parts = attribution.shapley(corners, used())
    whole = {name: attribution.outcome(corners[key], "long", ("bind", "ord")).mean() for name, key in PARTS.items()}
    total = parts["scaling"].mean + parts["bias"].mean
    assert total == pytest.approx(whole["both"] - whole["none"], abs=1e-12)
    assert parts["interaction"].mean == pytest.approx(
        whole["both"] - whole["s"] - whole["b"] + whole["none"], abs=1e-12
    )
    # Each part is its effect alone and half the interaction.
    assert parts["bias"].mean == pytest.approx(whole["b"] - whole["none"] + parts["interaction"].mean / 2, abs=1e-12)


def test_a_part_that_does_nothing_gets_nothing_and_equal_parts_get_the_same():
    parts = attribution.shapley(square(4, 1, 4, 1), used())
    assert parts["scaling"].mean == pytest.approx(-3, abs=0.05)
    assert parts["bias"].mean == pytest.approx(0, abs=0.05)
    corners = square(4, 1, 1, -3)
    corners[PARTS["b"]] = corners[PARTS["s"]]
    parts = attribution.shapley(corners, used())
    assert parts["scaling"] == parts["bias"]


def test_pairing_takes_out_what_haystacks_share():
    before, after = [scores(noise=2.0, long=1.0)], [scores(noise=2.0, long=1.5)]
    change = attribution.effect(after, before, used(), confidence=0.95)
    assert change.precision.mean == pytest.approx(0.5)  # the same noise on both sides
    assert change.precision.high - change.precision.low < 1e-9
    alone = intervals.clustered(attribution.outcome(after, "long", ("bind", "ord")))
    assert alone.high - alone.low > 1.0


def test_signs_of_an_effect():
    before = [scores(long=1.0, ret=4.0, short_accuracy=0.95, text=(1.0, 3.0))]
    after = [scores(long=2.0, ret=3.0, short_accuracy=0.9, text=(1.1, 2.5))]
    change = attribution.effect(after, before, used(), confidence=0.95)
    assert change.precision.mean == pytest.approx(1.0)
    assert change.precision_accuracy.mean == pytest.approx(1 / 9.2)
    assert change.retrieval_loss.mean == pytest.approx(1.0)
    assert change.short_loss.mean == pytest.approx(0.05)
    assert change.short_cost.mean == pytest.approx(0.1)
    assert change.long_gain.mean == pytest.approx(0.5)
    assert {name: pytest.approx(value.mean) for name, value in change.by_probe.items()} == {
        "ret": -1.0, "bind": 1.0, "ord": 1.0,
    }  # fmt: skip


def test_an_effect_turns_round_with_its_direction():
    one, other = [scores(long=1.0, seed=1)], [scores(long=2.0, seed=2, text=(1.2, 0.7))]
    there = attribution.effect(other, one, used(), confidence=0.9)
    back = attribution.effect(one, other, used(), confidence=0.9)
    for name in ("precision", "precision_accuracy", "retrieval_loss", "short_loss", "short_cost", "long_gain"):
        first, second = getattr(there, name), getattr(back, name)
        assert first.mean == pytest.approx(-second.mean)
        assert first.low == pytest.approx(-second.high)


def test_only_probes_that_were_learned_are_looked_at():
    before, after = [scores(long={"bind": 1.0, "ord": 1.0})], [scores(long={"bind": 3.0, "ord": -1.0})]
    assert attribution.effect(after, before, used("bind"), confidence=0.95).precision.mean == pytest.approx(2.0)
    assert attribution.effect(after, before, used("ord"), confidence=0.95).precision.mean == pytest.approx(-2.0)
    assert attribution.effect(after, before, used(), confidence=0.95).precision.mean == pytest.approx(0.0, abs=1e-9)


def test_the_gate_is_the_unchanged_models_accuracy_at_the_trained_length():
    models = [scores(short_accuracy=0.95), scores(short_accuracy=0.89)]
    passed = attribution.gated(models, gate=0.91)
    assert passed.names == PROBES
    assert passed.refused == {}
    assert passed.accuracy["bind"] == pytest.approx(0.92)
    models[0].accuracy["short"]["bind"] = np.full(12, 0.9)
    refused = attribution.gated(models, gate=0.91)
    assert refused.names == ("ret", "ord")
    assert "right in 89.5%" in refused.refused["bind"]


def test_models_are_units_of_their_own():
    """Twelve haystacks agree within each model, the models do not agree: only several models can show that."""
    gains = (0.2, 1.0, 1.8)
    before = [scores(long=0.0, noise=0.01, seed=model) for model in range(3)]
    after = [scores(long=gain, noise=0.01, seed=model) for model, gain in enumerate(gains)]
    alone = attribution.effect(after[:1], before[:1], used(), confidence=0.95).precision
    together = attribution.effect(after, before, used(), confidence=0.95).precision
    assert together.mean == pytest.approx(1.0, abs=0.01)
    assert alone.high - alone.low < 0.05
    assert together.low < 0 < 2 < together.high  # t with two degrees of freedom on a spread of 0.8
    # Copies of one model are no further models' worth of haystacks.
    haystack = attribution.effect([after[0]] * 3, [before[0]] * 3, used(), confidence=0.95).precision
    assert haystack.high - haystack.low == pytest.approx(alone.high - alone.low)


def test_the_symptom_compares_short_unchanged_with_long_deployed():
    unchanged, deployed = [scores(short=4.0, long=-2.0)], [scores(short=0.0, long=1.0, ret=3.5)]
    seen = attribution.symptom(deployed, unchanged, used())
    assert seen.precision_drop.mean == pytest.approx(3.0, abs=0.2)
    assert seen.retrieval_drop.mean == pytest.approx(0.5, abs=0.2)
    assert seen.specific.mean == pytest.approx(seen.precision_drop.mean - seen.retrieval_drop.mean)
    assert seen.accuracy["long"]["bind"].mean == pytest.approx(5.6 / 9.2)
    assert seen.accuracy["short"]["bind"].mean == 1.0
