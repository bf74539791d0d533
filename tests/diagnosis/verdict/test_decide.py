"""Six answers, always there and true as printed, whatever the evidence is and lacks."""

import dataclasses
import functools
import math

import numpy as np
import population
import pytest
from population import OPTIONS, each

from rope_jax.diagnosis.evaluation.panel import Evidence, Option, Panel
from rope_jax.diagnosis.verdict.answers import Margins
from rope_jax.diagnosis.verdict.decide import NOTHING, REPAIR, decide
from rope_jax.statistics.multiplicity import simultaneous_confidence


def drawn(contexts=20, rows=64, *, seed=0, **made) -> Evidence:
    return population.population(**made).sample(np.random.default_rng(seed), contexts, rows)


def mapped(evidence: Evidence, change) -> Evidence:
    """The evidence with every panel changed."""
    return dataclasses.replace(
        evidence,
        as_deployed=change(evidence.as_deployed),
        exact=None if evidence.exact is None else change(evidence.exact),
        original=change(evidence.original),
        changed={name: change(panel) for name, panel in evidence.changed.items()},
        corners={parts: change(panel) for parts, panel in evidence.corners.items()},
    )


def text_only(evidence: Evidence) -> Evidence:
    return dataclasses.replace(mapped(evidence, lambda panel: Panel({}, {}, panel.loss)), used=())


def of_models(evidence: Evidence, models: int, spread: float = 0.0) -> Evidence:
    """The evidence of several models that answer alike, up to a little noise."""
    rng = np.random.default_rng(7)

    def several(values):
        return np.concatenate([values + spread * rng.standard_normal(values.shape) for _ in range(models)])

    return mapped(evidence, lambda panel: each(panel, several))


def long_only(panel: Panel) -> Panel:
    """What is observed of a deployment: answers at the target length."""
    return Panel({"long": panel.log_odds["long"]}, {"long": panel.accuracy["long"]}, panel.loss)


BASE = drawn()
WORSE, SAME = BASE.changed["none + alibi"], BASE.as_deployed
EVIDENCES = {
    "usual": BASE,
    "text only": text_only(BASE),
    "one row of text": text_only(drawn(1, 1)),
    "two rows of text": text_only(drawn(1, 2)),
    "one option": dataclasses.replace(BASE, options=OPTIONS[:1]),
    "no option": dataclasses.replace(BASE, options=()),
    "outside the three only": dataclasses.replace(BASE, options=(Option("", "undo the bias", "ntk + none"),)),
    "retrieval not learned": dataclasses.replace(BASE, used=("binding", "order")),
    "retrieval only": dataclasses.replace(BASE, used=("retrieval",)),
    "order only": dataclasses.replace(BASE, used=("order",)),
    "one context": drawn(1),
    "two contexts": drawn(2, 2),
    "three contexts": drawn(3, 1),
    "five contexts": drawn(5),
    "nothing differs": dataclasses.replace(BASE, changed=dict.fromkeys(BASE.changed, SAME)),
    "no corners": dataclasses.replace(BASE, corners={}),
    "observed, faulty": dataclasses.replace(
        BASE,
        as_deployed=long_only(WORSE),
        exact=SAME,
        faults={"stale cache": ("keeps old keys", WORSE)},
        nearest={"exact": 0.9, "stale cache": 0.1},
    ),
    "observed, exact": dataclasses.replace(BASE, as_deployed=long_only(SAME), exact=SAME),
    "three models": of_models(BASE, 3, 0.05),
    "six models": of_models(BASE, 6, 0.05),
    "twelve models that are one": of_models(BASE, 12),
    "six models, one context": of_models(drawn(1), 6, 0.05),
}


@functools.cache
def found(name):
    """The verdict on one of the evidences, made once."""
    return decide(EVIDENCES[name])


def sentences(verdict):
    return [
        verdict.regression.sentence,
        verdict.implementation.sentence,
        verdict.cause.sentence,
        verdict.shipping.sentence,
        *verdict.next,
    ]


@pytest.mark.parametrize("name", EVIDENCES)
def test_every_answer_is_there(name):
    verdict = found(name)
    assert verdict.first
    assert 0 <= verdict.probability_first <= 1
    assert verdict.rankings
    assert ("together" in verdict.rankings) != ("long loss of text" in verdict.rankings)
    assert verdict.next
    for sentence in sentences(verdict):
        assert sentence.endswith((".", ")."))
        assert sentence[0].isupper() or sentence[0].isdigit()
        assert not any(word in sentence for word in ("nan", "None", "?", "{", "  "))
    for change in verdict.changes:
        assert change.ships in ("yes", "no", "not resolved")
        assert (change.ships == "yes") == (change.decides == "")
        assert math.isfinite(change.together.log_odds.mean)
    options = {option.number for option in EVIDENCES[name].options if option.number}
    for ranking in verdict.rankings.values():
        assert {place.option for place in ranking.places} == options
    assert set(verdict.open) <= set(EVIDENCES[name].changed)


@pytest.mark.parametrize("name", ["usual", "text only", "six models"])
def test_a_seed_gives_a_verdict(name):
    assert decide(EVIDENCES[name], seed=0) == found(name)


def test_the_usual_case():
    verdict = decide(drawn(60))
    assert verdict.first == "scale by llama3"
    assert verdict.probability_first > 0.99
    assert verdict.settled
    assert verdict.open == ()
    assert verdict.regression.answer == "yes"
    assert set(verdict.regression.lost) == {"order", "binding"}
    assert verdict.regression.sentence.startswith("Yes: retrieval is kept and event order and binding lost.")
    assert verdict.shipping.answer == "no"
    assert verdict.shipping.decides in ("order", "binding")
    assert verdict.next[0].startswith("Try first: scale by llama3 (llama3 + alibi): binding +0.")
    assert verdict.next[1].startswith("Adapt the model under llama3 + alibi")


def test_what_three_transforms_do_not_win_back_is_never_said_to_acquit_the_scaling():
    words = ("not what broke", "outside these options", "undetermined", "acquit", "not the scaling", "not the bias")
    nothing_helps = drawn(60, gains={"ntk + none": -0.5, "none + alibi": -0.5, "llama3 + alibi": -0.5})
    none_gains = decide(nothing_helps)
    for verdict in (*map(found, EVIDENCES), none_gains):
        for sentence in sentences(verdict):
            assert not any(word in sentence for word in words)
    assert none_gains.next[0].startswith("Keep what is deployed")


def test_too_few_contexts_leave_open_what_is_first():
    verdict = decide(drawn(8, gains={"ntk + none": 0.2, "none + alibi": -1.6, "llama3 + alibi": 0.22}))
    assert not verdict.settled
    assert set(verdict.open) == {"ntk + none", "llama3 + alibi"}  # what loses 1.6 nats is not asked on
    assert any("which is best is not settled" in step for step in verdict.next)


def test_a_repair_comes_first_and_gains_are_those_beyond_it():
    verdict = found("observed, faulty")
    exact = found("usual")
    assert (verdict.first, verdict.probability_first) == (REPAIR, 1.0)
    assert verdict.implementation.status == "repair first"
    assert verdict.implementation.faults[0].matters == "yes"
    assert next(iter(verdict.implementation.nearest)) == "stale cache"
    assert verdict.changes == exact.changes  # over the exact run, without what the repair gains
    assert verdict.rankings == exact.rankings
    assert verdict.next[0].startswith("Repair the implementation")
    assert verdict.next[1].startswith("Then: scale by llama3")
    lost = {task: fall.log_odds.mean for task, fall in verdict.regression.falls.items()}
    assert lost["order"] > exact.regression.falls["order"].log_odds.mean + 1  # of what runs, fault included


def test_a_repair_needs_no_short_gate():
    """An exact run that costs short text is a repair all the same."""
    dear = dataclasses.replace(SAME, loss={"short": SAME.loss["short"] + 1, "long": SAME.loss["long"]})
    verdict = decide(dataclasses.replace(EVIDENCES["observed, faulty"], exact=dear))
    assert verdict.first == REPAIR


def test_an_observed_deployment_that_is_exact_needs_no_repair():
    verdict = found("observed, exact")
    assert verdict.implementation.status == "faulty, harmless"
    assert verdict.first == "scale by llama3"


def test_a_repair_that_may_help_is_first_where_it_is_likelier_than_not():
    noise = 2.0 * np.tile([1.0, -1.0], 10)  # about a mean that is known

    def moved(by):
        tasks = {task: values - by + noise for task, values in SAME.log_odds["long"].items()}
        odds = {"short": SAME.log_odds["short"], "long": tasks}
        return dataclasses.replace(BASE, as_deployed=Panel(odds, SAME.accuracy, SAME.loss), exact=SAME)

    likely, unlikely = decide(moved(0.8)), decide(moved(0.1))
    for verdict in (likely, unlikely):
        assert verdict.implementation.status == "repair may help"
        assert not verdict.settled
    assert likely.first == REPAIR
    assert unlikely.first == "scale by llama3"
    assert unlikely.next[0].startswith("Find out whether the implementation is at fault")


def test_no_option_leaves_the_deployed_configuration_as_it_is():
    verdict = found("no option")
    assert (verdict.first, verdict.changes, verdict.settled) == (NOTHING, (), True)


def test_from_five_models_on_they_are_units_and_fewer_are_averaged():
    apart = of_models(BASE, 6, 0.0)
    rng = np.random.default_rng(0)
    shift = 0.5 * rng.standard_normal((6, 1))

    def moved(panel):
        tasks = {task: values + shift for task, values in panel.log_odds["long"].items()}
        return Panel({"short": panel.log_odds["short"], "long": tasks}, panel.accuracy, panel.loss)

    changed = {name: moved(panel) for name, panel in apart.changed.items()}
    six = decide(dataclasses.replace(apart, changed=changed)).changes[0].together.log_odds
    four = {name: each(panel, lambda values: values[:4]) for name, panel in changed.items()}
    few = decide(dataclasses.replace(of_models(BASE, 4), changed=four)).changes[0].together.log_odds
    assert six.high - six.low > 1.5 * (few.high - few.low)  # conditional on these four, models do not vary


def test_several_deployed_configurations_share_the_level():
    one, two = found("usual"), decide(BASE, confidence=simultaneous_confidence(2))
    assert (one.confidence, two.confidence) == (0.95, 0.975)
    narrow, wide = (verdict.changes[0].together.log_odds for verdict in (one, two))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_margins_are_those_asked_for():
    strict = decide(drawn(60), margins=Margins(gain=5.0, retrieval=5.0))
    assert strict.regression.answer == "no"
    assert strict.regression.sentence.startswith("No: neither event order nor binding is lost.")
    assert "Nothing needs to change" in strict.next[0]


def test_neither_answers_nor_text_is_refused():
    empty = mapped(BASE, lambda panel: Panel({}, {}, {}))
    with pytest.raises(ValueError, match="answers to questions"):
        decide(dataclasses.replace(empty, used=()))


@pytest.mark.slow
def test_ten_options_on_two_hundred_contexts_take_less_than_a_second():
    import time

    options = (*OPTIONS, *(Option("3", f"scale by rule {k}", f"rule{k} + alibi") for k in range(7)))
    evidence = drawn(200, options=options)
    started = time.process_time()
    decide(evidence)
    assert time.process_time() - started < 5  # with the checks of every signature; 0.2 s without
