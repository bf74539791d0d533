import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rope_jax.diagnosis.verdict import gates
from rope_jax.errors import InputError
from rope_jax.statistics.intervals import Estimate

MEASURES = {
    "short_cost": Estimate(0.013, 0.010, 0.020),
    "long_gain": Estimate(0.5, -0.1, 1.1),
    "retrieval": Estimate(3.0, 2.0, 4.0),
    "one_row": Estimate(0.1, None, None),
}


@pytest.mark.parametrize(
    ("condition", "outcome"),
    [
        ("short_cost>0.02", "pass"),  # the upper end lies on the bound, which is not above it
        ("short_cost>=0.02", "undecided"),
        ("short_cost>0.009", "fail"),
        ("short_cost>0.010", "undecided"),  # the lower end lies on the bound
        ("short_cost>=0.010", "fail"),
        ("short_cost>0.015", "undecided"),
        ("short_cost<0.010", "pass"),
        ("short_cost<=0.010", "undecided"),
        ("short_cost<0.020", "undecided"),
        ("short_cost<=0.020", "fail"),
        ("short_cost<0.021", "fail"),
        ("long_gain<0", "undecided"),
        ("long_gain < -2e-1", "pass"),
        ("one_row>100", "undecided"),
        ("one_row<100", "undecided"),
    ],
)
def test_only_the_whole_interval_decides(condition, outcome):
    gate = gates.check(condition, MEASURES)
    assert gate.outcome == outcome
    assert gate.status == {"pass": 0, "fail": 3, "undecided": 4}[outcome]
    assert len(gate.lines) == 1
    assert gate.lines[0].startswith(outcome + ": ")


def test_an_interval_without_width_on_the_bound():
    point = {"x": Estimate(0.0, 0.0, 0.0)}
    assert [gates.check(f"x{op}0", point).outcome for op in (">", ">=", "<", "<=")] == ["pass", "fail", "pass", "fail"]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("short_cost>0.02,retrieval<2", "pass"),
        ("short_cost>0.02, long_gain<0", "undecided"),
        ("one_row>1,long_gain<0,retrieval>1", "fail"),
        ("retrieval>1,one_row>1", "fail"),
    ],
)
def test_several_conditions_pass_together_or_not(text, outcome):
    gate = gates.check(text, MEASURES)
    assert gate.outcome == outcome
    assert len(gate.lines) == text.count(",") + 2
    assert gate.lines[-1].endswith(f": {outcome}")


def test_what_was_not_measured_hides_no_other_condition():
    gate = gates.check("missing>0,retrieval>1", MEASURES)
    assert gate.outcome == "fail"
    assert [line.partition(":")[0] for line in gate.lines] == ["undecided", "fail", "gate of 2 conditions"]
    assert "missing was not measured" in gate.lines[0]
    assert gates.check("missing>0,retrieval<1", MEASURES).outcome == "undecided"


def test_lines_name_measure_interval_and_bound():
    line = gates.check("short_cost>0.015", MEASURES).lines[0]
    assert line == "undecided: short_cost is 0.013 [0.01, 0.02], partly within short_cost>0.015"
    assert "without an interval" in gates.check("one_row>1", MEASURES).lines[0]
    assert gates.parse("short_cost>0.015") == (gates.Condition("short_cost", ">", 0.015),)


def test_what_is_not_a_number_decides_nothing():
    measures = {"x": Estimate(float("nan"), float("nan"), float("nan"))}
    assert {gates.check(f"x{op}0", measures).outcome for op in ("<", ">", "<=", ">=")} == {"undecided"}


@pytest.mark.parametrize(
    "text",
    ["", "short_cost", "short_cost>", ">0.02", "short_cost=0.02", "short_cost>0.02,", "short_cost>2%", "1>2", "x>nan",
     "x>inf", "x>1e999", "0.02<short_cost", "x>1 y>2", "x>>1", "x=>1", "x>1_0", "x>0x1"],
)  # fmt: skip
def test_malformed_conditions_are_refused_with_an_example(text):
    with pytest.raises(InputError, match=r"--fail_if: .* is not NAME OP NUMBER, such as 'short_loss_rise>0.02'"):
        gates.parse(text)


def test_unknown_measures_are_refused_with_those_there_are():
    with pytest.raises(
        InputError, match=r"'nonsense' is no measure; there are order_fall, binding_fall, retrieval_fall"
    ):
        gates.check_names("short_loss_rise>0,nonsense>0")
    gates.check_names(",".join(f"{name}>0" for name in gates.MEASURES))


NUMBERS = st.floats(-1e6, 1e6)
OPERATORS = st.sampled_from([">", ">=", "<", "<="])


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS).map(sorted), OPERATORS, NUMBERS)
def test_turning_every_sign_changes_nothing(ends, operator, bound):
    low, mean, high = ends
    turned = {">": "<", ">=": "<=", "<": ">", "<=": ">="}[operator]
    plain = gates.check(f"x{operator}{bound!r}", {"x": Estimate(mean, low, high)})
    mirrored = gates.check(f"x{turned}{-bound!r}", {"x": Estimate(-mean, -high, -low)})
    assert plain.outcome == mirrored.outcome


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS).map(sorted), OPERATORS, NUMBERS)
def test_the_opposite_condition_has_the_opposite_outcome(ends, operator, bound):
    low, mean, high = ends
    opposite = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}[operator]
    measures = {"x": Estimate(mean, low, high)}
    got = {gates.check(f"x{op}{bound!r}", measures).outcome for op in (operator, opposite)}
    assert got in ({"pass", "fail"}, {"undecided"})


@given(st.lists(NUMBERS, min_size=3, max_size=3).map(sorted), NUMBERS, st.floats(0, 10))
def test_a_wider_interval_never_turns_one_answer_into_the_other(ends, bound, more):
    low, mean, high = ends
    narrow = gates.check(f"x>{bound!r}", {"x": Estimate(mean, low, high)}).outcome
    wide = gates.check(f"x>{bound!r}", {"x": Estimate(mean, low - more, high + more)}).outcome
    assert wide in (narrow, "undecided")


def test_a_retrofit_on_the_bound_passes_falsely_in_one_of_forty():
    from rope_jax.statistics.intervals import estimate

    rng, draws = np.random.default_rng(0), 600
    outcomes = [gates.check("x>0", {"x": estimate(rng.standard_normal(12))}).outcome for _ in range(draws)]
    for wrong in ("pass", "fail"):
        assert outcomes.count(wrong) / draws <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / draws)
