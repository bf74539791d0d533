"""Budgets are read strictly, and a strategy stays within them."""

import pytest
from cases import scores, used
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell
from rope_jax.diagnosis.verdict.attribution import Used
from rope_jax.diagnosis.verdict.strategy import Budget, choose, parse, strategy_lines, strategy_record
from rope_jax.diagnosis.verdict.verdict import Margins
from rope_jax.errors import InputError

GOOD, SLOW = Cell("llama3", "none"), Cell("yarn", "none", True)


@pytest.mark.parametrize("text", ["", "steps", "steps=1.5", "steps=-1", "speed=2", "steps=1,steps=2", "latency=x"])
def test_a_malformed_budget_is_refused(text):
    with pytest.raises(InputError, match="--budget"):
        parse(text)


def test_parts_left_out_cost_nothing():
    assert parse("latency=1.5") == Budget(steps=0, latency=1.5)


def cost(cell: Cell, milliseconds: float) -> dict:
    return {**cell._asdict(), "milliseconds": milliseconds, "mib": 10.0}


def test_the_best_cell_within_the_budget_is_chosen_and_the_dearer_one_named():
    cells = {
        UNCHANGED: [scores(seed=1, long=0.0)],
        GOOD: [scores(seed=1, long=1.0)],
        SLOW: [scores(seed=1, long=2.0)],
    }
    costs = [cost(UNCHANGED, 10.0), cost(GOOD, 11.0), cost(SLOW, 30.0)]
    free = choose(cells, {}, used("bind"), Budget(), costs, margins=Margins())
    assert free.cell == SLOW
    tight = choose(cells, {}, used("bind"), Budget(latency=2.0), costs, margins=Margins())
    assert tight.cell == GOOD
    assert "latency" in tight.refused[str(SLOW)]
    assert str(GOOD) in strategy_lines(tight)[0]


def test_where_nothing_else_qualifies_the_unchanged_model_is_left():
    only = choose({UNCHANGED: [scores(seed=1)]}, {}, used("bind"), Budget(), [], margins=Margins())
    assert only.cell == UNCHANGED


@settings(max_examples=20)
@given(st.sets(st.sampled_from(["bind", "ord"])), st.booleans(), st.sampled_from([None, 0.5, 2.0]), st.integers(1, 3))
def test_whatever_was_learned_ends_in_a_strategy_or_a_reason(precision, retrieval, latency, rows):
    learned = Used(precision=tuple(precision), retrieval=retrieval, refused={}, accuracy={})
    cells = {UNCHANGED: [scores(seed=1, rows=rows)], GOOD: [scores(seed=1, long=1.0, rows=rows)]}
    budget = Budget() if latency is None else Budget(latency=latency)
    costs = [cost(UNCHANGED, 10.0), cost(GOOD, 11.0)]
    chosen = choose(cells, {GOOD: [scores(rows=rows)]}, learned, budget, costs, margins=Margins())
    assert (chosen.cell is None) == (not learned.names)
    assert (chosen.reason is None) == bool(learned.names)
    assert strategy_record(chosen)["reason"] == chosen.reason
    assert strategy_lines(chosen)[0].startswith(
        "STRATEGY: none: the model has learned no probe" if chosen.reason else ""
    )
