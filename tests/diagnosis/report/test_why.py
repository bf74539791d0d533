"""Each sentence of the links is true of the numbers it is printed for."""

import dataclasses

import diagnoses
import numpy as np
import pytest

from rope_jax.diagnosis.report import labels
from rope_jax.diagnosis.report.why import links
from rope_jax.diagnosis.verdict.answers import Cause

ASKED = diagnoses.subject()
ORIGINAL = diagnoses.condition("none + none", ASKED)


def of(name: str = "ntk + alibi", one=None, **changes):
    deployed = dataclasses.replace(diagnoses.condition(name, ASKED), **changes)
    found = links(deployed, {"none + none": ORIGINAL}, one or diagnoses.verdict(), 256, 2048)
    return dict(zip(("scaling", "bias", "angle", "choice"), found.values(), strict=True))


def cause(**tasks: tuple[float, float]) -> Cause:
    shares = {
        task: {"scaling": diagnoses.about(scaling), "bias": diagnoses.about(bias)}
        for task, (scaling, bias) in tasks.items()
    }
    return Cause(shares, "scaling", diagnoses.about(0.5), "")


def with_cause(**tasks: tuple[float, float]):
    return dataclasses.replace(diagnoses.verdict(), cause=cause(**tasks))


def test_rotation_is_even_and_the_step_kept_is_that_of_the_frequencies():
    deployed = np.asarray(diagnoses.condition("ntk + alibi", ASKED).inverse_frequencies)
    step = [
        np.sqrt(8 * (np.sin(theta / 2) ** 2).sum()) for theta in (deployed, np.asarray(ORIGINAL.inverse_frequencies))
    ]
    text = of()["scaling"]
    assert "equally well at every distance" in text
    assert f"base scaling x9.19 keeps {100 * step[0] / step[1]:.0f} %" in text


@pytest.mark.parametrize("offset", [1, 700])
def test_the_step_between_neighbours_does_not_contain_the_distance(offset):
    theta = np.asarray(ORIGINAL.inverse_frequencies)
    apart = [np.exp(1j * theta * at) for at in (offset, offset + 1)]
    assert 2 * (abs(apart[1] - apart[0]) ** 2).sum() == pytest.approx(8 * (np.sin(theta / 2) ** 2).sum())


def test_a_line_hides_only_what_its_slopes_hide():
    flat = of(slopes=[1e-4, 2e-5])["bias"]
    assert "it hides nothing" in flat
    assert "at most" in flat or "less than 1 in every head" in flat
    steep = of(slopes=[0.5, 0.01])["bias"]
    assert "hides what is far in every head" in steep
    mixed = of(slopes=[0.5, 1e-5, 1e-5])["bias"]
    assert "hides what is far in 1 of 3 heads" in mixed
    assert "less than 1 nat in 2 of them" in mixed
    assert all("1/distance" in text for text in (flat, steep, mixed))
    assert "does nothing" in of(slopes=[0.0, 0.0])["bias"]


def test_buckets_leave_odds_inside_one_unchanged():
    text = of("ntk + t5")["bias"]
    assert "leaves the odds of two keys unchanged" in text
    assert "1/distance" not in text
    assert "nearly flat" in of("ntk + t5", table=(np.ones((4, 32)) * 0.3).tolist())["bias"]
    assert "No bias is added" in of("ntk + none")["bias"]
    assert "not known" in of("ntk + none", bias="mine")["bias"]


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({"retrieval": (0.0, 0), "order": (0.9, 0)}, "costs event order and not significantly retrieval"),
        ({"retrieval": (0.9, 0), "order": (0.9, 0)}, "costs event order and retrieval too"),
        ({"retrieval": (0.9, 0), "order": (0.0, 0)}, "costs retrieval and not significantly place"),
        (
            {"retrieval": (0.0, 0), "order": (-0.9, 0)},
            "costs none of the learned tasks significantly, and wins event order",
        ),
        ({"retrieval": (0.9, 0)}, "costs retrieval significantly"),
        ({"order": (0.9, 0)}, "costs event order significantly"),
    ],
)
def test_what_the_scaling_costs_is_what_was_measured(tasks, said):
    assert said in of(one=with_cause(**tasks))["scaling"]


@pytest.mark.parametrize(("share", "does"), [(0.9, "raises"), (-0.9, "lowers"), (0.0, "does not significantly change")])
def test_where_nothing_was_learned_that_is_said_and_no_task_is(share, does):
    one = dataclasses.replace(diagnoses.verdict(used=()), cause=cause(**{"long loss of text": (share, 0)}))
    text = of(one=one)["scaling"]
    assert f"the model has learned none of the tasks; measured, it {does} the loss of text" in text
    assert "costs" not in text


def test_a_loss_is_not_called_a_gain():
    worse = {option: (words, name, -1.0) for option, (words, name, _) in diagnoses.OPTIONS.items()}
    text = of(one=diagnoses.verdict(options=worse))["choice"]
    assert "loses 1.00 [0.87, 1.13] nats" in text
    assert "what is deployed is better" in text
    assert "not significant" not in text


def test_without_a_two_by_two_nothing_is_said_of_shares():
    text = of(one=with_cause())
    assert "measured" not in text["scaling"]
    assert "share" not in text["bias"]


def test_unscaled_and_unrotated_models_are_spoken_of_as_they_are():
    unscaled = of("none + alibi")
    assert "nothing is scaled here" in unscaled["scaling"].lower()
    assert "nothing slows them" in unscaled["angle"]
    still = dataclasses.replace(ORIGINAL, inverse_frequencies=[])
    found = links(
        dataclasses.replace(still, name="none + alibi"), {"none + none": still}, diagnoses.verdict(), 256, 2048
    )
    assert "nothing rotates" in found["(i) the scaling alone"].lower()
    assert "No angle can be transformed" in found["(iii) another angle"]


def test_linear_interpolation_keeps_about_one_over_its_factor():
    theta = np.asarray(ORIGINAL.inverse_frequencies) / 8
    text = of(scaling="linear", inverse_frequencies=theta.tolist())["scaling"]
    assert "keeps 13 % of it" in text
    assert "slows the pairs by a factor of 8.00" in text
    assert "base scaling" not in text


@pytest.mark.parametrize(
    ("part", "options", "said"),
    [
        ("scaling", diagnoses.OPTIONS, "the scaling costs most, and 3 acts on it"),
        ("bias", diagnoses.OPTIONS, "most of the cost on the bias, and still 3 wins back most"),
        ("bias", {"1": ("drop the bias", "ntk + none", 0.5)}, "the bias costs most, and 1 acts on it"),
        ("scaling", {"1": ("drop the bias", "ntk + none", 0.5)}, "on the scaling, which no change that was measured"),
        ("not resolved", diagnoses.OPTIONS, "not resolved"),
        ("both", diagnoses.OPTIONS, "some loss may stay"),
    ],
)
def test_cause_and_ranking_are_reconciled(part, options, said):
    assert said in of(one=diagnoses.verdict(part=part, options=options))["choice"]


def test_one_part_in_place_is_no_two_by_two():
    one = dataclasses.replace(
        diagnoses.verdict(), cause=Cause({"together": {"scaling": diagnoses.about(0.9)}}, "scaling", None, "")
    )
    assert "2 x 2" not in of(one=one)["choice"]


def test_the_choice_is_the_best_of_the_ranking_with_its_gain():
    text = of()["choice"]
    assert 'So 3 first: "keep both, scale by llama3" gains +0.36 [0.23, 0.49] nats (P(first) > .99)' in text
    assert "Undoing the scaling loses retrieval" in text
    weak = {"1": ("drop the bias", "ntk + none", 0.05)}
    assert "not significant" in of(one=diagnoses.verdict(options=weak))["choice"]
    assert "Repair first" in of(one=diagnoses.verdict(status="repair first"))["choice"]
    assert "none of the three" in of(one=diagnoses.verdict(options={}))["choice"].lower()
    assert "nats a token" in of(one=diagnoses.verdict(used=()))["choice"]


def test_the_map_spoken_of_is_the_one_whose_gain_is_stated():
    one, llama3 = diagnoses.verdict(), diagnoses.condition("llama3 + alibi", ASKED)
    linear = dataclasses.replace(llama3, name="linear + alibi", scaling="linear")
    other = dataclasses.replace(one.changes[2], words="keep both, scale by linear", configuration=linear.name)
    by_order = diagnoses.ranking("order", {"3": 0.4}, {"3": other.words})
    one = dataclasses.replace(one, changes=(other, *one.changes), rankings=one.rankings | {"order": by_order})
    conditions = {run.name: run for run in (ORIGINAL, llama3, linear)}
    text = links(diagnoses.condition("ntk + alibi", ASKED), conditions, one, 256, 2048)["(iii) another angle"]
    assert '"keep both, scale by llama3" gains' in text
    assert f"Option 3 by {labels.label('llama3')} " in text
