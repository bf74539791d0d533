"""Verdicts on made-up models: every kind is reached, and nothing broken ever wins."""

import itertools

import pytest
from cases import scores, used
from hypothesis import given, settings
from hypothesis import strategies as st
from rope_jax.diagnosis.evaluation.cells import Cell, Option, options
from rope_jax.diagnosis.verdict.verdict import IMPLEMENTATION, Margins, above, attribution, decide

from rope_jax.statistics.intervals import Estimate

DEPLOYED = Cell("ntk", "alibi")
ONE, TWO, THREE, SHARPER, BACK = options(DEPLOYED, transforms=("llama3",))
EXACT = Option(IMPLEMENTATION, "run the same scheme exactly", DEPLOYED)
GOOD = {"long": 4.0}
SAME = {"long": 1.0}
DESTROYED = {"long": -4.0, "ret": -4.0, "short_accuracy": 0.1, "text": (5.0, 5.0)}


def verdict_of(changes, *, before=SAME, models=1, rows=12, noise=0.1, probes=None, margins=None):
    """The verdict where options, by `changes`, make of `before` what they say; those not named change nothing."""
    seeds = itertools.count(1)
    given = {ONE: SAME, TWO: SAME, THREE: SAME, SHARPER: SAME, BACK: SAME} | changes
    kept = {"rows": rows, "noise": noise}
    status_quo = [scores(**kept, **before, seed=next(seeds)) for _ in range(models)]
    changed = {
        option: [scores(**(kept | what), seed=next(seeds)) for _ in range(models)] for option, what in given.items()
    }
    probes = probes or used()
    symptom = attribution.symptom(status_quo, [scores(**kept) for _ in range(models)], probes)
    return decide(status_quo, changed, symptom, probes, margins=margins or Margins())


@pytest.mark.parametrize(
    ("option", "kind", "cause"),
    [(ONE, "option 1", "bias"), (TWO, "option 2", "scaling"), (THREE, "option 3", "scaling")],
)
def test_the_option_that_wins_precision_back_is_the_verdict(option, kind, cause):
    found = verdict_of({option: GOOD})
    assert (found.kind, found.chosen, found.cause) == (kind, option, cause)
    assert found.cause_gain.mean == pytest.approx(3.0, abs=0.1)
    assert found.ties == ()
    assert found.reason.startswith(option.change)
    assert [one.option for one in found.judged] == [ONE, TWO, THREE, SHARPER, BACK]


def test_an_exact_implementation_is_the_verdict_where_that_is_what_broke():
    found = verdict_of({EXACT: GOOD})
    assert (found.kind, found.cause) == ("implementation", "implementation")
    assert found.chosen.cell == DEPLOYED  # the scheme stays


def test_an_exact_implementation_comes_first_since_every_other_gain_presupposes_it():
    found = verdict_of({EXACT: {"long": 3.98}, THREE: {"long": 4.0}}, noise=0.5)
    assert found.kind == "implementation"
    assert found.ties == (THREE,)
    found = verdict_of({EXACT: {"long": 2.0}, THREE: {"long": 4.0}})
    assert (found.kind, found.ties, found.settled) == ("implementation", (), True)
    assert any(f"once it runs exactly, to {THREE.change}" in what for what in found.would_change)
    assert found.cause == "scaling"  # beyond the 1 nat of the repair it wins back 2
    assert verdict_of({EXACT: {"long": 3.0}, THREE: {"long": 4.0}}).cause == "implementation"
    assert verdict_of({EXACT: {"long": 1.1}, THREE: {"long": 4.0}}).kind == "option 3"


def test_a_fault_that_may_matter_is_asked_on_before_the_scheme_is_changed():
    found = verdict_of({EXACT: {"long": 1.3, "noise": 2.0}, THREE: {"long": 4.0, "noise": 0.1}}, noise=0.1)
    assert (found.kind, found.settled, set(found.open)) == ("option 3", False, {EXACT, THREE})


def test_what_helps_but_destroys_something_else_is_no_fix():
    for harm in ({"ret": 0.0}, {"short_accuracy": 0.9}, {"text": (1.2, 1.0)}):
        found = verdict_of({ONE: GOOD | harm})
        assert found.kind == "outside these options"
        assert found.chosen is None
        assert found.cause == "bias"  # it is what broke precision, though it cannot be given up
        (lost,) = found.judged[0].lost
        assert lost in found.reason
        assert found.judged[0].qualifies == "no"
        assert verdict_of({ONE: GOOD | harm, THREE: {"long": 3.0}}).kind == "option 3"


def test_what_helps_outside_the_three_options_is_named_and_not_chosen():
    found = verdict_of({SHARPER: GOOD})
    assert found.kind == "outside these options"
    assert found.cause is None
    assert SHARPER.change in found.reason
    assert "none of the three options" in found.reason


def test_without_a_loss_of_precision_there_is_no_fault():
    found = verdict_of(dict.fromkeys((ONE, TWO, THREE), GOOD), before=GOOD)
    assert (found.kind, found.chosen, found.cause) == ("no fault found", None, None)


def test_gains_that_the_haystacks_do_not_resolve_decide_nothing():
    found = verdict_of({ONE: {"long": 1.3, "noise": 2.0}}, rows=6)
    assert found.kind == "undetermined"
    assert found.judged[0].helps == "unclear"
    assert "whether its gain" in found.reason
    assert found.would_change


def test_whether_anything_is_lost_may_itself_be_open():
    found = verdict_of({}, before={"long": 3.7}, noise=1.0, margins=Margins(gain=0.3))
    assert found.judged[0].helps == "no"
    assert found.kind == "undetermined"
    assert "whether precision is lost" in found.reason


def test_what_may_or_may_not_be_kept_is_not_shipped():
    """Retrieval falls by about the margin: harmless is not shown, and not refuted either."""
    found = verdict_of({ONE: GOOD | {"ret": 3.7, "noise": 0.5}})
    assert found.judged[0].helps == "yes"
    assert found.judged[0].lost == {"long retrieval": "unclear"}
    assert found.kind == "undetermined"
    assert "long retrieval" in found.reason
    # Beside a smaller, sure fix it is the doubt that is named.
    found = verdict_of({ONE: GOOD | {"ret": 3.7, "noise": 0.5}, THREE: {"long": 3.0}})
    assert found.kind == "option 3"
    assert any(ONE.change in what and "long retrieval" in what for what in found.would_change)


def test_log_odds_that_accuracy_contradicts_do_not_help():
    found = verdict_of({ONE: GOOD | {"accuracy": 0.2}}, before=SAME | {"accuracy": 0.3})
    assert found.judged[0].helps == "unclear"
    assert found.kind == "undetermined"
    assert verdict_of({ONE: GOOD | {"accuracy": 0.4}}, before=SAME | {"accuracy": 0.3}).kind == "option 1"


def test_options_whose_gains_overlap_are_ties():
    found = verdict_of({ONE: {"long": 3.0}, THREE: {"long": 3.02}, TWO: {"long": 2.0}}, noise=0.5)
    assert {found.chosen, *found.ties} == {ONE, THREE}
    assert any("not told apart" in what for what in found.would_change)


def test_nothing_is_decided_about_what_was_not_learned():
    status_quo = [scores(**SAME)]
    changed = {ONE: [scores(**GOOD)]}
    for probes, what in ((used(retrieval=False), "retrieval"), (attribution.Used((), True, {}, {}), "precision")):
        found = decide(status_quo, changed, None, probes, margins=Margins())
        assert (found.kind, found.chosen, found.judged) == ("undetermined", None, ())
        assert what in found.reason


def test_a_single_haystack_decides_nothing():
    found = verdict_of({ONE: GOOD}, rows=1)
    assert found.kind == "undetermined"
    assert found.judged[0].gain.low is None


@settings(max_examples=20, deadline=None)
@given(
    gains=st.lists(st.floats(-4, 4), min_size=3, max_size=3), rets=st.lists(st.floats(-4, 4), min_size=3, max_size=3),
    ruined=st.sampled_from([ONE, TWO, THREE, EXACT]),
)  # fmt: skip
def test_a_destroyed_model_never_wins(gains, rets, ruined):
    changes = {
        option: {"long": gain, "ret": ret} for option, gain, ret in zip((ONE, TWO, THREE), gains, rets, strict=True)
    }
    found = verdict_of(changes | {ruined: DESTROYED}, before={"long": -4.5})
    assert found.chosen != ruined
    judged = {one.option: one for one in found.judged}
    assert judged[ruined].qualifies == "no"
    if found.chosen is not None:
        chosen = judged[found.chosen]
        assert (chosen.helps, chosen.qualifies) == ("yes", "yes")
        assert chosen.effect.retrieval_loss.mean <= Margins().retrieval
        assert chosen.gain.low > Margins().gain


def test_the_more_options_the_wider_the_interval_of_each():
    few = decide(
        [scores(**SAME)], {ONE: [scores(**GOOD, seed=5)]}, attribution.symptom([scores(**SAME)], [scores()], used()),
        used(), margins=Margins(),
    )  # fmt: skip
    many = verdict_of({ONE: GOOD})
    wide = [one.judged[0].gain for one in (few, many)]
    assert wide[0].high - wide[0].low < wide[1].high - wide[1].low
    assert few.judged[0].gain == few.judged[0].effect.precision  # one option: nothing to correct for


def test_several_models_are_the_units():
    """Every model gains surely, but two of three gain little: the mean of models, not of haystacks, is in doubt."""
    seeds = itertools.count(1)
    status_quo = [scores(**SAME, seed=next(seeds)) for _ in range(3)]
    changed = {ONE: [scores(long=1.0 + gain, seed=next(seeds)) for gain in (0.1, 0.2, 3.0)]}
    symptom = attribution.symptom(status_quo, [scores() for _ in range(3)], used())
    found = decide(status_quo, changed, symptom, used(), margins=Margins())
    assert found.judged[0].gain.mean > 1.0
    assert found.kind == "undetermined"
    agreed = {ONE: [scores(long=1.0 + gain, seed=next(seeds)) for gain in (1.0, 1.1, 1.2)]}
    assert decide(status_quo, agreed, symptom, used(), margins=Margins()).kind == "option 1"


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(0.4, 0.9, "yes"), (0.3, 0.9, "unclear"), (0.1, 0.3, "no"), (-1.0, 0.31, "unclear"), (None, None, "unclear")],
)
def test_above_needs_the_whole_interval(low, high, answer):
    assert above(Estimate(0.35, low, high), 0.3) == answer


def test_two_fixes_are_settled_only_where_neither_may_win_back_more_by_the_margin():
    kept = {"ret": 6.0, "text": (0.8, 1.0)}  # nothing is lost, for all the noise
    unsure = verdict_of({ONE: kept | {"long": 4.0}, THREE: kept | {"long": 4.0}}, noise=5.0)
    assert (unsure.kind[:6], unsure.settled, set(unsure.open)) == ("option", False, {ONE, THREE})
    close = verdict_of({ONE: {"long": 3.0}, THREE: {"long": 3.1}}, noise=0.1)
    assert (close.kind, close.settled, close.open) == ("option 3", True, ())


def test_what_is_surely_out_is_not_open():
    found = verdict_of({ONE: {"long": 1.35}, TWO: DESTROYED, THREE: GOOD | {"ret": 0.0}}, noise=4.0, before=SAME)
    assert (found.kind, found.settled, found.open) == ("undetermined", False, (ONE,))
