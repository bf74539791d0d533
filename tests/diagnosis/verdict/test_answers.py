"""Each answer by itself on made-up outcomes: contrasts, the regression, the cause, shipping, what would resolve it."""

import dataclasses
import re

import numpy as np
import pytest

from rope_jax.diagnosis.evaluation.panel import LIMIT, Evidence, Option, Panel
from rope_jax.diagnosis.verdict import next_steps, wording
from rope_jax.diagnosis.verdict.answers import Margins
from rope_jax.diagnosis.verdict.cause import cause, shapley
from rope_jax.diagnosis.verdict.contrasts import Contrasts, Paired, above
from rope_jax.diagnosis.verdict.regression import regression
from rope_jax.diagnosis.verdict.shipping import criteria, shipping
from rope_jax.statistics.intervals import Estimate, estimate

USED = ("retrieval", "binding", "order")
CONTRASTS = Contrasts(USED, 0.95)
MARGINS = Margins()


def panel(contexts=60, *, seed=0, noise=0.1, short=3.0, long=3.0, loss=(2.0, 2.0), rows=64, **tasks) -> Panel:
    """A panel of mean log-odds: `long` of every task but those named; accuracies follow from them."""
    rng = np.random.default_rng(seed)

    def odds(mean):
        return (mean + noise * rng.standard_normal(contexts))[None]

    log_odds = {
        "short": {task: odds(short) for task in USED},
        "long": {task: odds(tasks.get(task, long)) for task in USED},
    }
    accuracy = {
        reach: {task: np.clip(0.5 + values / (2 * LIMIT), 0, 1) for task, values in of.items()}
        for reach, of in log_odds.items()
    }
    for way, sign in (("first", -1), ("last", 1)):
        log_odds["long"][f"order, {way} asked"] = log_odds["long"]["order"] + sign * tasks.get("pull", 0.0)
    text = {
        reach: (mean + 0.01 * rng.standard_normal(rows))[None]
        for reach, mean in zip(("short", "long"), loss, strict=True)
    }
    return Panel(log_odds, accuracy, text)


ORIGINAL = panel(seed=1)


def corners(none=0.0, scaling=0.0, bias=0.0, both=0.0, noise=0.1):
    values = {frozenset(): none, frozenset({"scaling"}): scaling, frozenset({"bias"}): bias}
    values[frozenset({"scaling", "bias"})] = both
    return {parts: panel(long=3 - lost, seed=k, noise=noise) for k, (parts, lost) in enumerate(values.items())}


def evidence(of_corners, options=()) -> Evidence:
    deployed = of_corners.get(frozenset({"scaling", "bias"}), ORIGINAL)
    return Evidence("deployed", deployed, None, ORIGINAL, options, {}, of_corners, USED, {}, {})


def found_cause(of_corners):
    return cause(evidence(of_corners), CONTRASTS, MARGINS)


@pytest.mark.parametrize(
    ("tasks", "answer", "lost"),
    [
        ({"order": 1.0}, "yes", ("order",)),
        ({"binding": 1.0, "order": 1.0}, "yes", ("binding", "order")),
        ({"retrieval": 1.0, "order": 1.0}, "no", ("retrieval", "order")),
        ({}, "no", ()),
    ],
)
def test_the_regression_described_keeps_retrieval_and_loses_order_or_binding(tasks, answer, lost):
    found = regression(panel(seed=2, **tasks), ORIGINAL, CONTRASTS, MARGINS)
    assert (found.answer, found.lost, found.open) == (answer, lost, ())
    assert set(found.kept) == set(USED) - set(lost)
    assert found.sentence.startswith("Yes" if answer == "yes" else "No")
    for task in lost:
        assert found.falls[task].log_odds.mean == pytest.approx(2, abs=0.1)
        assert found.falls[task].accuracy.mean == pytest.approx(1 / LIMIT, abs=0.02)


def test_retrieval_that_may_be_lost_leaves_the_regression_open():
    found = regression(panel(8, seed=2, order=0.0), panel(8, seed=1), CONTRASTS, MARGINS)
    assert (found.answer, found.lost, found.open) == ("not resolved", ("order",), ("retrieval", "binding"))


def test_a_pull_toward_near_events_is_told_from_lost_order():
    pulled = regression(panel(seed=2, pull=1.5), ORIGINAL, CONTRASTS, MARGINS)
    assert pulled.pull.mean == pytest.approx(1.5)
    assert "order" in pulled.kept  # both ways of asking alike: a pull leaves their mean alone
    assert regression(panel(seed=2, order=1.0), ORIGINAL, CONTRASTS, MARGINS).pull.mean == pytest.approx(0)


@pytest.mark.parametrize(
    ("of_corners", "part"),
    [
        ({"bias": 2.0, "both": 2.0}, "bias"),
        ({"scaling": 2.0, "both": 2.0}, "scaling"),
        ({"scaling": 1.0, "bias": 1.0, "both": 2.0}, "both"),
        ({}, "neither"),
        ({"scaling": -1.0, "bias": 1.0, "both": 0.0}, "bias"),
        ({"scaling": 2.0, "bias": 1.0, "both": 3.0}, "scaling"),
    ],
)
def test_the_cause_is_the_part_that_costs_more(of_corners, part):
    found = found_cause(corners(**of_corners))
    assert found.part == part
    values = found.by_task["together"]
    total = of_corners.get("both", 0.0)
    assert values["scaling"].mean + values["bias"].mean == pytest.approx(total, abs=0.1)  # all that is lost is divided


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_what_wins_is_not_said_to_cost(noise):
    said = found_cause(corners(scaling=-1.82, both=-1.82, noise=noise)).sentence
    assert re.search(r"the scaling wins 1\.\d", said)
    assert "-1." not in said
    made = evidence({}, (Option("2", "undo the scaling", "none + none"),))
    assert (
        "the scaling wins 1."
        in cause(dataclasses.replace(made, as_deployed=panel(long=4.5)), CONTRASTS, MARGINS).sentence
    )


def test_what_rises_is_not_said_to_fall():
    after = panel(seed=3, noise=0.05, order=3.5)
    assert "event order (" in (told := regression(after, ORIGINAL, CONTRASTS, MARGINS).sentence)
    assert "a rise of 0.5" in told
    assert "a fall of -" not in told
    said = ships(panel(seed=3, noise=0.0, long=3.2, short=3.2, loss=(2.0, 1.9)), original=ORIGINAL).sentence
    assert "by -" not in said


def test_more_than_can_be_asked_for_is_no_advice():
    needs = wording.number(66_543, "contexts")
    said = "To know whether it may ship takes more contexts than is practical (about 67,000)."
    assert next_steps._ask(needs, "whether it may ship") == said
    assert next_steps._ask("190 contexts", "whether it ships") == "Ask about 190 contexts, to know whether it ships."


def test_a_runner_up_that_costs_nearly_as_much_leaves_the_cause_open():
    found = found_cause(corners(scaling=0.28, bias=0.5, both=0.78, noise=1.0))
    assert found.part == "not resolved"
    assert found.ahead.low < 0 < found.ahead.high


def test_the_interaction_is_what_both_cost_beyond_each():
    values = shapley(corners(scaling=0.5, bias=0.5, both=2.0), "order", CONTRASTS)
    assert {part: round(of.values.mean(), 1) for part, of in values.items()} == {
        "scaling": 1.0,
        "bias": 1.0,
        "interaction": 1.0,
    }


def test_one_part_alone_is_judged_against_the_unchanged_model():
    made = evidence({}, (Option("2", "undo the scaling", "none + none"),))
    found = cause(dataclasses.replace(made, as_deployed=panel(long=1.0)), CONTRASTS, MARGINS)
    assert (found.part, found.ahead) == ("scaling", None)
    assert cause(made, CONTRASTS, MARGINS).part == "neither"
    neither = cause(evidence({}), CONTRASTS, MARGINS)
    assert (neither.part, neither.by_task) == ("not resolved", {})


def ships(after, deployed=None, original=ORIGINAL, margins=MARGINS):
    deployed = deployed or panel(seed=5, long=1.0, loss=(2.0, 2.5))
    return shipping("drop the bias", criteria(after, deployed, original, CONTRASTS, margins))


@pytest.mark.parametrize(
    ("changes", "decides"),
    [
        ({"order": 1.0}, "order"),
        ({"retrieval": 1.0}, "retrieval"),
        ({"short": 1.0}, "short accuracy"),
        ({"loss": (2.2, 2.0)}, "short loss of text"),
        ({"loss": (2.0, 3.3)}, "long loss of text"),
    ],
)
def test_one_loss_beyond_its_margin_forbids_shipping_and_is_named(changes, decides):
    said = ships(panel(seed=3, **changes))
    assert (said.answer, said.decides, said.resolve) == ("no", decides, "")
    assert decides in said.sentence


def test_a_margin_of_zero_allows_nothing_and_weighs_most():
    said = ships(panel(seed=3, order=0.0, loss=(2.1, 2.0)), margins=Margins(short_loss=0.0))
    assert (said.answer, said.decides) == ("no", "short loss of text")
    same = ships(ORIGINAL, ORIGINAL, margins=Margins(short_accuracy=0.0, short_loss=0.0, long_loss=0.0))
    assert (same.answer, same.decides) == ("yes", "")


def test_what_loses_nothing_ships():
    said = ships(panel(seed=3, noise=0.05))
    assert (said.answer, said.decides) == ("yes", "")
    assert said.sentence.startswith("Yes: after 'drop the bias' every loss is within")


def test_a_rise_of_the_long_loss_over_what_is_deployed_is_never_green():
    """The original at that length may be worse still: what counts is the worse of both comparisons."""
    worse_original = dataclasses.replace(
        ORIGINAL, loss={"short": ORIGINAL.loss["short"], "long": ORIGINAL.loss["long"] + 3}
    )
    said = ships(panel(seed=3, loss=(2.0, 2.77)), panel(seed=5), worse_original)
    assert (said.answer, said.decides) == ("no", "long loss of text")


def test_twenty_contexts_that_all_agree_do_not_promise_what_one_in_twelve_may_break():
    few, many = (panel(count, noise=0.0, short=LIMIT, long=LIMIT) for count in (20, 60))
    said = ships(few, few, dataclasses.replace(few))  # another configuration that answers all of them as well
    assert said.answer == "not resolved"
    assert said.decides in ("retrieval", "binding", "order", "short accuracy")
    assert said.resolve == "49 contexts"
    assert ships(many, many, dataclasses.replace(many)).answer == "yes"


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_what_would_resolve_it_does(spread):
    """So many contexts of the same mean and spread, and the margin is out of the interval; with fewer it is not."""

    def rows(count):
        values = np.tile([spread, -spread], count // 2 + 1)[: count - count % 2]
        return values[None] + 0.1

    assert above(estimate(rows(20)[0]), 0.3) == "not resolved"
    wanted = CONTRASTS.needed(Paired(rows(20)), 0.3)
    assert above(estimate(rows(int(1.2 * wanted) + 2)[0]), 0.3) == "no"
    assert above(estimate(rows(int(0.8 * wanted))[0]), 0.3) == "not resolved"


def test_no_accuracy_falls_by_more_than_all_of_it():
    """Three contexts, of which one answers nothing any more: a t interval would reach beyond 100 points."""
    before, after = panel(3, seed=1, noise=0.0), panel(3, seed=2, noise=0.0)
    for reach in ("short", "long"):
        for task in USED:
            before.accuracy[reach][task], after.accuracy[reach][task] = np.ones((1, 3)), np.array([[1.0, 0.0, 1.0]])
    short = next(one for one in criteria(after, before, before, CONTRASTS, MARGINS) if one.name == "short accuracy")
    assert short.needed > 3
    for fall in (
        -CONTRASTS.shift(after, before, "order").accuracy,
        CONTRASTS.price(after, before).short_accuracy,
        short.loss,
    ):
        assert fall.mean == pytest.approx(1 / 3)
        assert fall.high == 1.0
        assert fall.low >= -1.0


def test_one_configuration_by_two_names_differs_by_nothing():
    same = dataclasses.replace(ORIGINAL)
    assert CONTRASTS.shift(same, ORIGINAL, "retrieval").log_odds == Estimate(0.0, 0.0, 0.0)
    assert CONTRASTS.price(same, ORIGINAL).short_accuracy == Estimate(0.0, 0.0, 0.0)


def test_contexts_are_paired_by_their_number():
    few, many = panel(20, seed=3), panel(60, seed=3, noise=0.0)
    paired = CONTRASTS.gain(many, few, "order")
    assert paired.units == 20
    np.testing.assert_allclose(paired.values, many.log_odds["long"]["order"][:, :20] - few.log_odds["long"]["order"])


@pytest.mark.parametrize(("low", "high", "answer"), [(0.4, 0.5, "yes"), (0.1, 0.3, "no"), (0.2, 0.4, "not resolved")])
def test_yes_and_no_need_the_whole_interval(low, high, answer):
    assert above(Estimate(0.3, low, high), 0.3) == answer
    assert above(Estimate(0.3, None, None), 0.3) == "not resolved"
