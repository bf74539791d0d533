"""`rope_jax.diagnose` on tiny random models: what it returns and how it shows it, but not whether it means anything."""

import dataclasses
import importlib.resources
import json
import math

import jsonschema
import numpy as np
import pytest
from cases import LEARNED, SMALL, TARGET, TRAINED, save_bundled_model, save_checkpoint, untimed_costs

import rope_jax
from rope_jax import diagnose
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.diagnosis.evaluation import costs, own_model
from rope_jax.diagnosis.evaluation.observed import write_items
from rope_jax.diagnosis.evaluation.runs import Runs
from rope_jax.diagnosis.finding import subjects_of
from rope_jax.diagnosis.options import Options
from rope_jax.diagnosis.report.record import schema
from rope_jax.diagnosis.tasks.contexts import VOCAB_SIZE
from rope_jax.diagnosis.tasks.subject import read_bundled_model
from rope_jax.errors import InputError

DEPLOYED = "ntk + alibi"


@pytest.fixture(autouse=True, scope="module")
def untimed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "costs_record", untimed_costs)
        yield


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return [save_bundled_model(tmp_path_factory.mktemp("model"), seed) for seed in range(5)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def run(directories, store):
    """Diagnoses the first model, or others, keeping what is finished for the next test."""

    def diagnosed(model=None, **options):
        given = SMALL | {"deployed": "ntk+alibi"} | options
        return diagnose(directories[0] if model is None else model, store=store, **given)

    return diagnosed


@pytest.fixture(scope="module")
def found(run):
    return run(predict=True)


def check(diagnosis):
    """Every way of showing it works, and the record follows its schema."""
    record = json.loads(diagnosis.to_json())
    jsonschema.Draft202012Validator(schema()).validate(record)
    assert record == json.loads(json.dumps(diagnosis.record, allow_nan=False))
    lines = diagnosis.table().splitlines()
    assert max(map(len, lines)) <= 80
    page = diagnosis.to_html()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "<script" not in page
    assert "src=" not in page
    assert diagnosis._repr_html_() == page
    for deployed, first in diagnosis.recommendation.items():
        assert deployed in diagnosis.conditions
        assert first in diagnosis.table().replace("\n           ", " ")
    return record


def test_every_way_of_showing_it(found):
    record = check(found)
    assert set(found.recommendation) == {DEPLOYED}
    assert next(iter(found.conditions)) == "none + none"
    assert record["lengths"] == {"trained": TRAINED, "target": TARGET, "factor": 2.0}
    assert [one["name"] for one in record["configurations"]] == list(found.conditions)
    assert record["tasks"]["used"] == ["retrieval", "binding", "order"]
    assert record["prediction"]["configurations"]


def test_all_six_answers_are_always_there(found):
    (judgement,) = found.findings.judgements
    verdict = judgement.verdict
    assert verdict.regression.sentence
    assert verdict.implementation.status
    assert verdict.first == found.recommendation[DEPLOYED]
    assert 0 <= verdict.probability_first <= 1
    assert set(verdict.rankings) >= {"order", "binding"}
    assert [change.option for change in verdict.changes][:3] == ["1", "2", "3"]
    assert verdict.cause
    assert verdict.shipping
    assert verdict.next
    assert {"(i)", "(ii)", "(iii)"} <= {
        heading[: heading.index(")") + 1] for heading in judgement.links if ")" in heading
    }


def test_two_runs_with_one_seed_are_the_same_and_another_seed_is_another(found, run, directories):
    again = diagnose(directories[0], deployed="ntk+alibi", **SMALL | {"predict": True})
    assert again.to_json() == found.to_json()
    assert again.table() == found.table()
    assert run(seed=1, predict=True).to_json() != found.to_json()


def test_a_second_run_takes_what_the_first_has_finished(found, run, monkeypatch):
    ran = []
    monkeypatch.setattr(Runs, "_read", lambda *_: ran.append("text"))
    assert run(predict=True).to_json() == found.to_json()
    assert not ran


def test_progress_tells_of_every_stage(directories):
    told = []
    diagnose(directories[0], deployed="ntk+alibi_star", progress=lambda *what: told.append(what), **SMALL)
    stages = [stage for stage, _, _ in told]
    assert any(stage.startswith("fitting the largest safe slopes, multiplier") for stage in stages)
    assert any(stage.startswith("ntk + alibi_star, row 1 of 2") for stage in stages)
    assert all(0 <= done <= total for _, done, total in told)


def test_several_deployed_configurations_share_the_confidence(run):
    both = run(deployed=("ntk+alibi", "llama3+alibi"))
    check(both)
    assert set(both.recommendation) == {DEPLOYED, "llama3 + alibi"}
    for judgement in both.findings.judgements:
        assert judgement.verdict.confidence == pytest.approx(0.975)


def test_two_models_are_judged_each_by_itself_and_agreement_is_counted(run, directories):
    pair = run(directories[:2])
    check(pair)
    (judgement,) = pair.findings.judgements
    assert len(judgement.by_model) == 2
    assert "of 2 models" in judgement.agreement
    alone = run(directories[1]).findings.judgements[0].verdict
    assert judgement.by_model[1].regression.falls["order"] == alone.regression.falls["order"]
    assert judgement.by_model[1].first == alone.first


def test_five_models_are_judged_together(run, directories):
    many = run(directories, predict=False)
    record = check(many)
    (judgement,) = many.findings.judgements
    assert judgement.by_model == ()
    assert len(record["models"]) == 5
    assert "seed" in record["interval_method"] or "model" in record["interval_method"]


def test_an_open_verdict_is_asked_on_and_ends_in_the_same_when_cut_off(run, directories, tmp_path):
    options = SMALL | {"deployed": "ntk+alibi", "most_contexts": 6}
    whole = diagnose(directories[0], store=tmp_path, **options)
    check(whole)
    verdict = whole.findings.judgements[0].verdict
    assert verdict.contexts == 6  # noise is never settled by three
    assert max(change.contexts for change in verdict.changes) == 6
    assert whole.record["items"]["contexts"] == 3
    for file in sorted(tmp_path.glob("*.npz"))[::3]:
        file.unlink()
    assert diagnose(directories[0], store=tmp_path, **options).to_json() == whole.to_json()


def test_a_known_fault_comes_first_or_is_priced(run):
    faulty = run(faulty="wrong_layout", faults=("bf16_frequencies",))
    check(faulty)
    found = faulty.findings.judgements[0].verdict.implementation
    assert {effect.name for effect in found.faults} == {"wrong_layout", "bf16_frequencies"}
    assert found.status != "exact"


def test_exempting_the_first_keys_is_outside_the_three(run):
    exempt = run(exempt_first=4)
    check(exempt)
    (change,) = [one for one in exempt.findings.judgements[0].verdict.changes if "exempt" in one.words]
    assert change.option == ""


def test_observed_answers_are_read_judged_and_recognised(run, directories, tmp_path):
    options = Options(deployed="ntk+alibi", **SMALL)
    (subject,) = subjects_of(directories[0], options)
    write_items(tmp_path / "items.npz", subject)
    with np.load(tmp_path / "items.npz") as items:
        assert items["long_tokens"].shape == (3, TARGET)
        shapes = {reach: items[f"{reach}_choices"].shape for reach in ("short", "long")}
    rng = np.random.default_rng(0)
    seen = {reach: rng.standard_normal(shape).astype(np.float32) for reach, shape in shapes.items()}
    np.savez(tmp_path / "seen.npz", **seen)
    of_file, of_arrays = (run(observed=given) for given in (tmp_path / "seen.npz", seen))
    check(of_file)
    assert of_file.findings.judgements[0].verdict == of_arrays.findings.judgements[0].verdict
    asked_on = run(observed=seen, most_contexts=6)
    assert asked_on.findings.judgements[0].verdict.changes[0].contexts == 6
    with pytest.raises(InputError, match="'long' must hold the logits of all choices"):
        run(observed=seen | {"long": seen["long"][:2]})
    with pytest.raises(InputError, match="observed: it is of one model"):
        run(directories[:2], observed=seen)


def test_other_ratios_are_asked_too(run):
    several = run(ratios=(1.5,))
    record = check(several)
    names = [(one["configuration"], one["ratio"]) for one in record["ratios"]]
    assert names == [(DEPLOYED, 1.5), ("ntk + none", 1.5)]


@pytest.mark.slow
def test_everything_at_once(directories, tmp_path, monkeypatch):
    monkeypatch.setattr("rope_jax.diagnosis.models.bundled_models", lambda: tuple(directories[:2]))
    options = SMALL | {"faults": ("bf16_frequencies",), "predict": True}
    full = diagnose(full=True, store=tmp_path, **options)
    record = check(full)
    assert len(record["models"]) == 2
    assert set(full.recommendation) == {"ntk + alibi_star", "ntk + t5"}
    assert {"llama3 + none", "ntk + t5 + temperature 1.14", "none + alibi_star"} <= set(full.conditions)


def test_models_that_have_learned_nothing_are_judged_by_text(run):
    plain = run(margins=dataclasses.replace(LEARNED, learned=1.01))
    record = check(plain)
    assert record["tasks"]["used"] == []
    assert "More contexts could still change" not in plain.table()
    assert set(record["tasks"]["refused"]) == {"retrieval", "binding", "order"}
    assert plain.findings.judgements[0].verdict.first in [
        change.words for change in plain.findings.judgements[0].verdict.changes
    ]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return load_checkpoint(save_checkpoint(tmp_path_factory.mktemp("own"), trained_length=64))


@pytest.fixture
def unchecked(monkeypatch):
    """Random weights read no text better in one layout than in the other."""
    monkeypatch.setattr(own_model, "require_layout", lambda *_, **__: None)


def test_a_checkpoint_with_text_alone_gets_a_full_verdict(own, unchecked):
    rows = np.random.default_rng(1).integers(0, VOCAB_SIZE, (4, 160)).astype(np.int32)
    options = SMALL | {"text": rows, "target_length": 160, "text_rows": None, "deployed": "ntk+alibi"}
    found = diagnose(own, **options)
    record = check(found)
    assert record["lengths"]["trained"] == 64
    assert record["items"]["contexts"] == 0
    verdict = found.findings.judgements[0].verdict
    assert [change.option for change in verdict.changes][:3] == ["1", "2", "3"]
    assert verdict.shipping
    assert all(not condition.answers for condition in found.conditions.values())
    assert found.record["settings"]["text"] == "given as arrays"


def test_biases_of_a_users_text_are_fitted_without_the_rows_they_are_judged_on(own, unchecked):
    rows = np.random.default_rng(1).integers(0, VOCAB_SIZE, (4, 160)).astype(np.int32)
    options = SMALL | {"text": rows, "target_length": 160, "text_rows": None, "deployed": "ntk+t5"}
    found = diagnose(own, **options)
    assert any("cross-fitting" in finding for finding in found.record["findings"])
    # Other rows in the second half change the table of the first, so that its losses change, and nothing else does.
    other = rows.copy()
    other[2:] = other[2:][::-1, ::-1]
    again = diagnose(own, **options | {"text": other})
    for name, condition in found.conditions.items():
        changed = (again.conditions[name].losses[0][:2] != condition.losses[0][:2]).any()
        assert changed == ("t5" in name), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deployed": "ntk"}, "is not SCALING\\+BIAS"),
        ({"deployed": ()}, "no deployed configuration is named"),
        ({"deployed": "ntk+magic"}, "unknown bias 'magic'"),
        ({"transforms": ("magic",)}, "unknown scaling 'magic'"),
        ({"faults": ("rust",)}, "unknown fault 'rust'"),
        ({"faulty": "rust"}, "unknown fault 'rust'"),
        ({"target_length": TRAINED}, "must be above the trained length"),
        ({"target_length": TRAINED + 1, "text_rows": 64}, f"from {TRAINED + 34} tokens on there always is one"),
        ({"target_length": TRAINED + 33, "most_contexts": 6}, "no copied token beyond"),
        ({"ratios": (1.001,)}, "is no longer context"),
        ({"ratios": (1.01,)}, "no copied token beyond"),
        ({"text": "rows.npy"}, "a bundled test model makes its own text"),
        ({"contexts": 2**14, "target_length": 2**20}, "contexts of 192 and 1048576 tokens and 2 rows"),
    ],
)
def test_what_cannot_be_asked_is_one_line_before_any_work(run, monkeypatch, options, message):
    monkeypatch.setattr(Runs, "__call__", lambda *_, **__: pytest.fail("the work began"))
    with pytest.raises(InputError, match=message):
        run(**options)


def test_a_model_given_twice_would_count_as_two(monkeypatch):
    monkeypatch.setattr(Runs, "__call__", lambda *_, **__: pytest.fail("the work began"))
    twice = [str(importlib.resources.files("rope_jax") / "models" / "seed-0")] * 2
    with pytest.raises(InputError, match=r"model: .*seed-0 and .*seed-0 hold the same weights"):
        diagnose(twice, contexts=2)


def test_what_only_a_bundled_model_can_be_asked_is_refused_for_others(own, unchecked):
    rows = np.random.default_rng(1).integers(0, VOCAB_SIZE, (4, 160)).astype(np.int32)
    for option in ({"ratios": (2,)}, {"adapt_steps": 1}, {"most_contexts": 40}):
        with pytest.raises(InputError, match=r"bundled test model|checkpoint of your own"):
            diagnose(own, **SMALL | {"text": rows, "target_length": 160} | option)
    with pytest.raises(TypeError, match="magic"):
        diagnose(own, magic=1)


@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_target_has_a_loss_beyond_the_trained_length(seed, directories):
    asked = read_bundled_model(directories[0]).asked(rows=1, target_length=TRAINED + 34, text_rows=200, seed=seed)
    assert (asked.items.counted[:, TRAINED - 1 :].sum(axis=1) > 0).all()


def test_every_number_of_the_record_is_finite_or_null(found):
    def walk(value):
        if isinstance(value, dict):
            return all(map(walk, value.values()))
        if isinstance(value, list):
            return all(map(walk, value))
        return not isinstance(value, float) or math.isfinite(value)

    assert walk(found.record)
    assert rope_jax.diagnose is diagnose


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contexts": 0}, "contexts: a bundled test model is asked questions, at least 1"),
        ({"contexts": -1}, "contexts must be a whole number from 0 to 16384, got -1"),
        ({"contexts": True}, "contexts must be a whole number from 0 to 16384, got True"),
        ({"text_rows": 0}, "text_rows must be a whole number from 1 to 16384, got 0"),
        ({"target_length": 0}, "target_length must be a whole number from 1 to 16777215, got 0"),
        ({"target_length": 384.0}, "target_length must be a whole number from 1 to 16777215, got 384.0"),
        ({"trained_length": TRAINED + 1}, f"trained_length {TRAINED + 1}: a bundled test model was trained on"),
        ({"seed": None}, "seed must be a whole number from 0 to 4294967295, got None"),
        ({"fit_steps": 0}, "fit_steps must be a whole number from 1 to 16384, got 0"),
        ({"most_contexts": "x"}, "most_contexts must be a whole number from 1 to 16384, got 'x'"),
        ({"ratios": [math.nan]}, "ratios must be numbers up to 1024, got nan"),
        ({"ratios": 2}, "ratios must be a list, got 2"),
        ({"transforms": "llama3"}, "transforms must be a list, got 'llama3'"),
        ({"transforms": [None]}, "transforms cannot hold None"),
        ({"faults": "bf16_bias"}, "faults must be a list, got 'bf16_bias'"),
        ({"margins": {"gain": 1}}, r"margins must be Margins\(...\), got {'gain': 1}"),
        ({"phase": "float16"}, "phase must be one of exact, float32, got 'float16'"),
        ({"layout": "whole"}, "layout must be one of None, half, interleaved, got 'whole'"),
        ({"observed": 3}, "observed must be a file, or arrays by reach, got 3"),
        ({"observed": {"short": [1], "long": [2]}}, "observed: 'short' must hold the logits of all choices"),
        ({"deployed": 5}, "deployed: 5 is neither"),
        ({"deployed": [("ntk",)]}, r"deployed: \('ntk',\) is neither"),
        ({"deployed": [(None, None)]}, r"deployed: \(None, None\) is neither"),
        ({"deployed": [("ntk", 3)]}, "int is neither a name of a bias nor a Bias"),
    ],
)
def test_an_option_of_the_wrong_kind_is_named(run, monkeypatch, without_type_checks, options, message):
    monkeypatch.setattr(Runs, "__call__", lambda *_, **__: pytest.fail("the work began"))
    with pytest.raises(InputError, match=message):
        run(**options)


@pytest.mark.parametrize("model", [5, [], [None], b"x"])
def test_what_is_no_model_is_named(without_type_checks, model):
    with pytest.raises(InputError, match="model"):
        diagnose(model, **SMALL)
