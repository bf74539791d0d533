"""Evidence for a verdict: every change, the faults, and what is deployed, on one part of the items after another."""

import numpy as np
import pytest
from cases import TARGET, save_bundled_model, tiny_subject

from rope_jax.diagnosis.evaluation.cases import Cases
from rope_jax.diagnosis.evaluation.configurations import wanted
from rope_jax.diagnosis.evaluation.plan import PlanSettings, plan_of
from rope_jax.diagnosis.tasks.subject import read_bundled_model
from rope_jax.errors import InputError

DEPLOYED = "ntk + alibi"
USED = ("retrieval", "binding", "order")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_bundled_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def subject(directory):
    return tiny_subject(directory)


@pytest.fixture(scope="module")
def plan(subject):
    return plan_of([subject], PlanSettings((wanted("ntk+alibi"),), ("llama3",)))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def cases(subject, plan, store):
    return lambda subject=subject, **given: Cases([subject], [plan], store=store, **given)


def evidence(cases):
    return cases.evidence(DEPLOYED, [option.configuration for option in cases.options(DEPLOYED)], USED)


def equal(one, other):
    pairs = [(one.log_odds["long"][task], other.log_odds["long"][task]) for task in USED]
    return all(np.array_equal(a, b) for a, b in [*pairs, (one.loss["long"], other.loss["long"])])


def test_evidence_holds_every_option_and_corner(cases):
    found = evidence(cases())
    assert [option.words for option in found.options] == [
        "drop the bias", "undo the scaling", "scale by llama3 instead", "sharpen the logits", "undo both",
        "drop the rotation",
    ]  # fmt: skip
    assert set(found.changed) == {option.configuration for option in found.options}
    assert found.exact is None
    assert equal(found.corners[frozenset({"scaling", "bias"})], found.as_deployed)
    assert equal(found.corners[frozenset()], found.original)
    assert equal(found.changed["none + none"], found.original)
    some = cases().evidence(DEPLOYED, ["ntk + none"], USED)
    assert list(some.changed) == ["ntk + none"]


def test_a_known_fault_is_what_is_deployed(cases):
    found = evidence(cases(faulty="wrong_layout", faults=("bf16_frequencies",)))
    plain = evidence(cases())
    assert equal(found.exact, plain.as_deployed)
    assert not equal(found.as_deployed, found.exact)
    assert equal(found.faults["wrong_layout"][1], found.as_deployed)
    assert "bfloat16" in found.faults["bf16_frequencies"][0]
    with pytest.raises(InputError, match="unknown fault 'rust'"):
        cases(faulty="rust")


def test_exempting_every_key_is_no_bias(cases):
    found = evidence(cases(exempt_first=TARGET))
    (option,) = [option for option in found.options if "exempt" in option.words]
    assert (option.number, option.configuration) == ("", f"{DEPLOYED}, first {TARGET} exempt")
    exempt, dropped = found.changed[option.configuration], found.changed["ntk + none"]
    np.testing.assert_allclose(exempt.log_odds["long"]["binding"], dropped.log_odds["long"]["binding"], atol=1e-4)
    assert not equal(exempt, found.as_deployed)


def test_observed_answers_are_judged_and_the_nearest_run_is_found(cases, plan):
    faulty = cases(faults=("wrong_layout", "bf16_frequencies"))
    observed = faulty.runs[0].with_fault(faulty._faults["wrong_layout"][0]).logits(plan.schemes(DEPLOYED)[0])
    observed = observed | {"short": observed["short"] - 3}  # log probabilities are as good
    found = evidence(cases(faults=("wrong_layout", "bf16_frequencies"), observed=observed))
    assert next(iter(found.nearest)) == "wrong_layout"
    assert found.nearest["wrong_layout"] == pytest.approx(0, abs=1e-5)
    assert set(found.nearest) == {"exact", "wrong_layout", "bf16_frequencies"}
    np.testing.assert_allclose(
        found.as_deployed.log_odds["short"]["order"], found.faults["wrong_layout"][1].log_odds["short"]["order"],
        atol=1e-5,
    )  # fmt: skip
    np.testing.assert_array_equal(found.as_deployed.loss["long"], found.exact.loss["long"])  # none was observed


def test_further_parts_run_with_the_fault_and_the_exempt_keys_of_the_first(cases, directory):
    other = read_bundled_model(directory).asked(rows=3, target_length=TARGET, text_rows=2, part=1)
    asked = {"faulty": "bf16_positions", "exempt_first": 4}
    first = cases(**asked)
    first_found, further, alone = evidence(first), evidence(first.on([other])), evidence(cases(other, **asked))
    assert equal(further.as_deployed, alone.as_deployed)
    assert not equal(further.as_deployed, further.exact)
    for name, panel in further.changed.items():
        assert equal(panel, alone.changed[name])
        assert not equal(panel, first_found.changed[name])


def test_nothing_of_a_further_part_was_observed(cases, subject, directory):
    observed = {reach: np.zeros(items.choices.shape, np.float32) for reach, items in subject.items.asked.items()}
    other = read_bundled_model(directory).asked(rows=3, target_length=TARGET, text_rows=2, part=1)
    first = cases(observed=observed)
    assert evidence(first).exact is not None
    assert evidence(first.on([other])).exact is None


def test_further_parts_are_other_items_of_the_same_kind_and_fit_to_the_same(directory, subject):
    model = read_bundled_model(directory)
    other, again = (model.asked(rows=3, target_length=TARGET, text_rows=2, part=part) for part in (1, 2))
    for one, two in ((subject, other), (other, again)):
        assert (one.items.long.tokens != two.items.long.tokens).any(axis=1).all()
        assert (one.items.text != two.items.text).any(axis=1).all()
        np.testing.assert_array_equal(one.fit_text, two.fit_text)
        np.testing.assert_array_equal(one.unseen_items.tokens, two.unseen_items.tokens)


def test_a_stale_cache_holds_what_stands_before_the_first_question(cases):
    found = evidence(cases(faults=("stale_cache",)))
    assert "original scheme" in found.faults["stale_cache"][0]
    assert not equal(found.faults["stale_cache"][1], found.as_deployed)


def test_several_models_are_rows_of_a_panel(subject, plan, tmp_path):
    other = tiny_subject(save_bundled_model(tmp_path / "other", seed=1))
    plans = [plan, plan_of([other], PlanSettings((wanted("ntk+alibi"),), ("llama3",)))]
    both = Cases([subject, other], plans).evidence(DEPLOYED, [], USED)
    alone = [Cases([one], [of]).evidence(DEPLOYED, [], USED) for one, of in zip((subject, other), plans, strict=True)]
    for task in USED:
        np.testing.assert_array_equal(
            both.as_deployed.log_odds["long"][task],
            np.concatenate([one.as_deployed.log_odds["long"][task] for one in alone]),
        )
