import dataclasses
import json

import diagnoses
import jsonschema
import numpy as np
import pytest

from rope_jax.diagnosis.report.record import plain, record_of, schema


def cases():
    yield "one", diagnoses.diagnosis()
    yield "text alone", diagnoses.diagnosis(used=())
    a, b = diagnoses.verdict(), diagnoses.verdict("ntk + t5", answer="not resolved", lost=(), kept=())
    yield (
        "two deployed",
        diagnoses.diagnosis(a, b, adapted=[diagnoses.judgement(a)], prediction={"heads": [{"x": 1.0}]}),
    )
    yield (
        "three models",
        diagnoses.diagnosis(
            models=3, judgements=[diagnoses.judgement(a, by_model=(a, a, b), agreement="2 of 3 models say the same")]
        ),
    )
    yield "nothing to change", diagnoses.diagnosis(diagnoses.verdict("none + none", options={}))


@pytest.mark.parametrize(("name", "one"), list(cases()))
def test_a_record_follows_its_published_schema_and_json_gives_it_back(name, one):
    record = record_of(one)
    jsonschema.Draft202012Validator(schema()).validate(record)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_the_schema_is_one_and_refuses_what_it_does_not_describe():
    jsonschema.Draft202012Validator.check_schema(schema())
    record = record_of(diagnoses.diagnosis())
    valid = jsonschema.Draft202012Validator(schema()).is_valid
    verdict = record["judgements"][0]["verdict"]
    assert not valid(record | {"more": 1})
    assert not valid({key: value for key, value in record.items() if key != "margins"})
    assert not valid(record | {"judgements": [record["judgements"][0] | {"verdict": verdict | {"first": None}}]})
    wrong = verdict | {"regression": verdict["regression"] | {"answer": "perhaps"}}
    assert not valid(record | {"judgements": [record["judgements"][0] | {"verdict": wrong}]})


def test_a_record_holds_no_times_and_is_the_same_whatever_they_were():
    one = diagnoses.diagnosis()
    other = dataclasses.replace(one, seconds={"configurations": 99.0}, costs=[])
    assert record_of(one) == record_of(other)
    assert "seconds" not in record_of(one)


def test_numbers_are_those_of_the_panel_and_the_answers():
    one = diagnoses.diagnosis()
    found = {entry["name"]: entry for entry in record_of(one)["configurations"]}["ntk + alibi"]
    condition = one.conditions["ntk + alibi"]
    assert found["accuracy"]["long"]["order"]["mean"] == pytest.approx(condition.panel.accuracy["long"]["order"].mean())
    assert found["loss"]["long"]["mean"] == pytest.approx(condition.panel.loss["long"].mean())
    distance = found["by_distance"]["retrieval"]
    items = one.subjects[0].items.long
    assert sum(distance["questions"]) == (items.probe == 0).sum()
    right = condition.answers["long"][0].right[items.probe == 0].mean()
    known = [k for k, questions in enumerate(distance["questions"]) if questions]
    mean = sum(distance["accuracy"][k] * distance["questions"][k] for k in known) / sum(distance["questions"])
    assert mean == pytest.approx(right)
    assert all(distance["accuracy"][k] is None for k in range(len(distance["questions"])) if k not in known)
    errors = found["binding_errors"]["long"]
    assert errors["0"] == condition.answers["long"][0].right[items.probe == 1].sum()
    assert sum(errors.values()) == (items.probe == 1).sum()


def test_a_share_is_never_said_to_lie_beyond_its_bounds():
    one = diagnoses.diagnosis(models=3)
    panel = one.conditions["ntk + alibi"].panel
    rare = np.zeros((3, 20))
    rare[0, :2], rare[1, 0] = 1.0, 1.0  # a t interval over three models ends below 0
    panel.accuracy["long"]["order"], panel.accuracy["long"]["binding"] = rare, 1 - rare
    found = {entry["name"]: entry for entry in record_of(one)["configurations"]}["ntk + alibi"]["accuracy"]["long"]
    assert found["order"]["low"] == 0.0
    assert found["binding"]["high"] == 1.0
    shares = [x for entry in record_of(one)["configurations"] for of in entry["accuracy"].values() for x in of.values()]
    assert all(0 <= x["low"] <= x["mean"] <= x["high"] <= 1 for x in shares)


def test_a_share_of_which_no_context_differs_has_a_width():
    one = diagnoses.diagnosis()
    panel = one.conditions["ntk + alibi"].panel
    panel.accuracy["long"]["order"], panel.accuracy["long"]["binding"] = np.ones((1, 20)), np.zeros((1, 20))
    found = {entry["name"]: entry for entry in record_of(one)["configurations"]}["ntk + alibi"]["accuracy"]["long"]
    assert found["order"] == {"mean": 1.0, "low": pytest.approx(0.05 ** (1 / 20)), "high": 1.0}
    assert found["binding"] == {"mean": 0.0, "low": 0.0, "high": pytest.approx(1 - 0.05 ** (1 / 20))}


def test_text_by_position_is_the_mean_of_counted_tokens():
    one = diagnoses.diagnosis(used=())
    found = record_of(one)["configurations"][1]["loss_by_position"]
    counted = one.subjects[0].items.counted
    weights = [counted[:, a:b].sum() for a, b in zip(found["edges"], found["edges"][1:], strict=False)]
    mean = sum(loss * weight for loss, weight in zip(found["loss"], weights, strict=True) if weight) / sum(weights)
    losses = one.conditions["ntk + alibi"].losses[0]
    assert mean == pytest.approx((losses * counted).sum() / counted.sum())


def test_below_five_models_the_numbers_are_of_the_first_as_the_verdict_is():
    two, five = diagnoses.diagnosis(models=2), diagnoses.diagnosis(models=5)
    for one, judged in ((two, 1), (five, 5)):
        values = one.conditions["ntk + none"].panel.accuracy["long"]["order"]
        found = {entry["name"]: entry for entry in record_of(one)["configurations"]}["ntk + none"]
        assert found["accuracy"]["long"]["order"]["mean"] == pytest.approx(values[:judged].mean())
        assert [each["accuracy"]["long"]["order"] for each in found["by_model"]] == pytest.approx(values.mean(axis=1))


def test_what_json_has_no_value_for_is_null_or_refused():
    assert plain([np.nan, np.float32("inf"), np.int64(3), (np.arange(2),)]) == [None, None, 3, [[0, 1]]]
    with pytest.raises(TypeError, match="set"):
        plain({"x": {1}})
