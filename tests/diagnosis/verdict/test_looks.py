"""Asking on: the same verdicts from more haystacks, no more errors from more looks, and nothing asked in vain."""

import dataclasses

import numpy as np
import pytest
from cases import scores, used
from rope_jax.diagnosis.evaluation.cell_runs import Scores, joined
from rope_jax.diagnosis.evaluation.cells import Cell, Option, options
from rope_jax.diagnosis.verdict.looks import Answered, ask_on, one_look
from rope_jax.diagnosis.verdict.verdict import IMPLEMENTATION, Margins

from rope_jax.diagnosis.verdict import attribution, looks
from rope_jax.statistics import intervals

DEPLOYED = Cell("ntk", "alibi")
ONE, TWO, THREE, SHARPER, BACK = options(DEPLOYED, transforms=("llama3",))
MARGINS = Margins()


class World:
    """Answers parts of haystacks whose gains are drawn around a truth, and remembers what it was asked."""

    def __init__(self, gains, *, noise=1.0, rows=24, drop=3.0, seed=0, lost=None):
        self.gains, self.noise, self.rows, self.drop, self.lost = gains, noise, rows, drop, lost or {}
        self.rng, self.asked = np.random.default_rng(seed), []

    def made(self, long, **others) -> Scores:
        own = long + self.noise * self.rng.standard_normal(self.rows)
        made = scores(rows=self.rows, noise=0.0, **others)
        return dataclasses.replace(
            made, log_odds=made.log_odds | {"long": {**made.log_odds["long"], "bind": own, "ord": own}}
        )

    def __call__(self, part, asked) -> Answered:
        self.asked.append((part, list(asked)))
        changed = {one: [self.made(1 + self.gains.get(one, 0.0), ret=4 - self.lost.get(one, 0.0))] for one in asked}
        return Answered([scores(rows=self.rows, noise=0.0, long=1.0)], [self.unchanged()], changed)

    def unchanged(self) -> Scores:
        made = scores(rows=self.rows, noise=0.0)
        own = 1.0 + self.drop + self.noise * self.rng.standard_normal(self.rows)
        return dataclasses.replace(made, log_odds=made.log_odds | {"short": dict.fromkeys(("ret", "bind", "ord"), own)})

    def decided(self, looks=4, over=(ONE, TWO, THREE)):
        return ask_on(self(0, over), self, used(), margins=MARGINS, looks=looks)


def test_joined_parts_begin_with_the_first_and_end_with_the_last():
    parts = [scores(seed=seed, rows=rows, noise=1.0) for seed, rows in ((1, 3), (2, 5))]
    both = joined(parts)
    assert len(both.losses) == 8
    for part, found in ((parts[0], both.first(parts[0])), (parts[1], both)):
        rows = len(part.losses)
        for name in ("ret", "bind", "ord"):
            for reach in ("short", "long"):
                np.testing.assert_array_equal(part.log_odds[reach][name], found.log_odds[reach][name][-rows:])
                np.testing.assert_array_equal(part.accuracy[reach][name], found.accuracy[reach][name][-rows:])
        np.testing.assert_array_equal(part.loss["short"], found.loss["short"][-rows:])
        np.testing.assert_array_equal(part.loss["long"], found.loss["long"][-rows:])


def test_what_is_clear_at_once_is_not_asked_on():
    world = World({ONE: 3.0, TWO: -2.0, THREE: -2.0})
    found = world.decided()
    assert (found.verdict.kind, found.parts, found.verdict.settled) == ("option 1", 1, True)
    assert [part for part, _ in world.asked] == [0]


def test_what_is_open_is_asked_on_until_it_is_settled_and_nothing_else_is():
    world = World({ONE: 0.7, TWO: -3.0, THREE: -3.0})
    found = world.decided(looks=6)
    assert found.verdict.kind == "option 1"
    assert found.parts > 1
    assert [part for part, _ in world.asked] == list(range(found.parts))
    assert all(asked == [ONE] for _, asked in world.asked[1:])  # the others were surely out at the first look
    by_option = {one.option: one.haystacks for one in found.verdict.judged}
    assert by_option == {ONE: found.parts * world.rows, TWO: world.rows, THREE: world.rows}


def test_a_rival_that_may_win_back_more_is_asked_on_before_another_is_chosen():
    # Both surely help; whether the better one keeps retrieval is not known at first.
    world = World({ONE: 2.0, THREE: 4.0, TWO: -3.0})
    first = world(0, (ONE, TWO, THREE))
    (unsure,) = first.changed[THREE]
    spread = 4.0 + np.linspace(-3, 3, world.rows)  # on average nothing is lost, but 24 haystacks do not tell
    unsure = dataclasses.replace(unsure, log_odds=unsure.log_odds | {"long": unsure.log_odds["long"] | {"ret": spread}})
    first = dataclasses.replace(first, changed={**first.changed, THREE: [unsure]})
    verdict, _ = one_look(first, used(), margins=MARGINS)
    assert (verdict.kind, verdict.settled, set(verdict.open)) == ("option 1", False, {ONE, THREE})
    found = ask_on(first, world, used(), margins=MARGINS, looks=6)
    assert (found.verdict.kind, found.verdict.settled) == ("option 3", True)


def test_a_rival_that_is_surely_no_better_is_not_waited_for():
    world = World({ONE: 4.0, THREE: 1.0, TWO: -3.0}, lost={THREE: 0.3})
    found = world.decided()
    assert (found.verdict.kind, found.verdict.settled, found.parts) == ("option 1", True, 1)


def test_the_looks_end_and_what_is_still_open_stays_undetermined():
    world = World({ONE: MARGINS.gain, TWO: -3.0, THREE: -3.0}, seed=3)
    found = world.decided(looks=3)
    assert (found.verdict.kind, found.verdict.settled, found.parts) == ("undetermined", False, 4)
    assert "more haystacks" in found.verdict.would_change[0]


def test_whether_anything_is_lost_is_asked_of_the_status_quo_alone():
    world = World({}, drop=0.55, noise=1.0, seed=2)
    world.gains = dict.fromkeys((ONE, TWO, THREE), -3.0)
    found = world.decided(looks=6)
    assert found.verdict.kind == "outside these options"
    assert found.parts > 1
    assert all(asked == [] for _, asked in world.asked[1:])


def test_what_was_not_learned_is_never_asked_on():
    world = World({ONE: 0.7})
    found = ask_on(world(0, (ONE,)), world, used(retrieval=False), margins=MARGINS, looks=5)
    assert (found.verdict.kind, found.symptom, found.parts, found.verdict.settled) == ("undetermined", None, 1, True)


def test_more_looks_need_wider_intervals_and_larger_p_values():
    first = World({ONE: 0.7}, drop=0.3)(0, (ONE, TWO, THREE))
    alone, once = one_look(first, used(), margins=MARGINS)
    gain = attribution.precision_gain(first.changed[ONE], first.status_quo, used())
    assert alone.judged[0].effect.precision == intervals.clustered(gain, confidence=0.95)
    wider, often = one_look(first, used(), margins=MARGINS, share=looks.share_of_level(4, 4))
    for one, other in zip(alone.judged, wider.judged, strict=True):
        assert one.gain.mean == other.gain.mean
        assert other.gain.low < one.gain.low <= one.effect.precision.low
    assert often.precision_drop.low < once.precision_drop.low
    assert often.p_values["bind"] == pytest.approx(min(1.0, 4 * once.p_values["bind"]))


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_the_looks_spend_the_level_in_proportion_to_what_is_new(count):
    parts = [2**look for look in range(count)]
    shares = [looks.share_of_level(seen, count) for seen in parts]
    np.testing.assert_allclose(np.cumsum(shares), np.array(parts) / parts[-1], rtol=1e-15)


def test_a_decision_says_the_confidence_of_its_own_look():
    plain, hard = World({ONE: 3.0}), World({ONE: MARGINS.gain, TWO: -3.0, THREE: -3.0}, seed=3)
    assert [world.decided(looks=3).confidence for world in (plain, hard)] == pytest.approx([1 - 0.05 / 4, 1 - 0.05 / 2])
    assert World({ONE: 3.0}).decided(looks=1).confidence == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("first", "most", "count"), [(20, 20, 1), (20, 39, 1), (20, 40, 2), (20, 160, 4), (1, 1000, 10)]
)
def test_looks_double_up_to_the_most(first, most, count):
    assert looks.number_of_looks(first, most) == count
    assert first * 2 ** (count - 1) <= most < first * 2**count


@pytest.mark.slow
def test_looking_again_and_again_at_nothing_alarms_no_more_often_than_it_may():
    """Three options that win back just the margin: to be sure of any is an error, at whichever look."""
    alarms, trials = 0, 60
    for seed in range(trials):
        world = World(dict.fromkeys((ONE, TWO, THREE), MARGINS.gain), seed=seed, noise=1.0)
        found = world.decided(looks=4)
        alarms += any(one.helps == "yes" for one in found.verdict.judged)
    assert alarms / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_an_exact_run_is_asked_on_like_any_other_change():
    exact = Option(IMPLEMENTATION, "run the same scheme exactly", DEPLOYED)
    world = World({exact: 0.7, ONE: -3.0})
    found = world.decided(looks=6, over=(ONE, exact))
    assert found.verdict.kind == "implementation"
    assert all(asked == [exact] for _, asked in world.asked[1:])
