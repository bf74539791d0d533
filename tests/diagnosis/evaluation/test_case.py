"""The case on a tiny random model: everything that follows from running it, but not whether it means anything."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from cases import TARGET, TRAINED, save_bundled_model, tiny_subject

from rope_jax.diagnosis.evaluation import deployment, fitting, probes
from rope_jax.diagnosis.evaluation.case import gate_measures, run_case
from rope_jax.diagnosis.evaluation.case_runs import CaseRuns
from rope_jax.diagnosis.evaluation.case_setup import SCALINGS, Settings, fitted_schemes, needed_cells
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell, corners, options
from rope_jax.diagnosis.evaluation.probes import ProbeProgram
from rope_jax.diagnosis.report.case_record import distance_edges, json_record
from rope_jax.diagnosis.report.case_table import table_text
from rope_jax.diagnosis.tasks import contexts, subject
from rope_jax.diagnosis.verdict.verdict import Margins, attribution
from rope_jax.errors import InputError
from rope_jax.scheme import build

DEPLOYED, TABLE = Cell("ntk", "alibi"), Cell("ntk", "t5")
SMALL = Settings(
    status_quos=(DEPLOYED, TABLE), transforms=("llama3", "yarn"), num_buckets=8, max_distance=32, fit_steps=1,
    margins=Margins(gate=0.0),  # what no model has learned counts as learned, so that all of the way is walked
)  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_bundled_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def small(directory):
    return tiny_subject(directory)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def case(small, store):
    stages = []
    made = run_case(
        [small], SMALL, store=store, progress=lambda stage, done, total: stages.append((stage, done, total))
    )
    assert stages[0] == ("fitting biases", 1, 1)
    assert (str(UNCHANGED), 1, len(made.cells)) in stages
    return made


def test_a_subject_asks_the_same_short_and_long(small):
    short, long = small.items.short, small.items.long
    assert short.tokens.shape == (3, TRAINED)
    assert long.tokens.shape == (3, TARGET)
    assert small.factor == TARGET / TRAINED
    np.testing.assert_array_equal(np.sort(short.probe), np.sort(long.probe))
    assert small.items.text.shape == (2, TARGET)
    assert small.fit_text.shape[1] == TRAINED
    assert small.fit_counted.shape == (len(small.fit_text), TRAINED - 1)
    # What is fitted on is never what is judged on.
    judged = {row.tobytes() for row in (*short.tokens, *long.tokens[:, :TRAINED], *small.items.text[:, :TRAINED])}
    assert not judged & {row.tobytes() for row in small.fit_text}
    answers = subject.answer_weights(short)
    assert answers.sum() == short.probe.size
    rows, columns = np.nonzero(answers)
    told = {(int(row), int(token)) for row, token in zip(rows, short.tokens[rows, columns + 1], strict=True)}
    assert told == {(row, int(c)) for row in range(3) for c in short.choices[row, :, 0]}


def test_the_same_seed_asks_the_same_of_any_model(directory, small, tmp_path):
    other = tiny_subject(save_bundled_model(tmp_path / "other", seed=1))
    for one, two in zip(small.items.long, other.items.long, strict=True):
        np.testing.assert_array_equal(one, two)
    assert other.checkpoint.sha256 != small.checkpoint.sha256
    assert (tiny_subject(directory, seed=5).items.text != small.items.text).any()


def test_the_cells_that_run_are_those_that_the_verdicts_need(case):
    expected = {UNCHANGED}
    for status_quo in SMALL.status_quos:
        expected |= {status_quo, *corners(status_quo).values()}
        expected |= {option.cell for option in options(status_quo, transforms=SMALL.transforms)}
    assert set(case.cells) == expected
    assert next(iter(case.cells)) == UNCHANGED
    assert case.compilations == 3
    full = needed_cells(dataclasses.replace(SMALL, full=True))
    assert set(full) >= expected
    assert len([cell for cell in full if cell.bias == "alibi"]) == 2 * len(SCALINGS)


def test_every_status_quo_gets_its_judgement(case):
    assert [judgement.status_quo for judgement in case.judgements] == [DEPLOYED, TABLE]
    for judgement in case.judgements:
        assert [one.option for one in judgement.verdict.judged] == list(
            options(judgement.status_quo, transforms=SMALL.transforms)
        )
        parts = judgement.shapley
        both, none = case.cells[judgement.status_quo], case.cells[UNCHANGED]
        whole = attribution.outcome(both, "long", case.used.precision) - attribution.outcome(
            none, "long", case.used.precision
        )
        assert parts["scaling"].mean + parts["bias"].mean == pytest.approx(whole.mean())
        assert [effect.name for effect in judgement.faults] == list(SMALL.faults)
    assert case.used.precision == ("binding", "order")


def test_the_record_is_plain_and_finite(case):
    record = json_record(case)

    def walk(value, path=""):
        if isinstance(value, dict):
            assert all(type(key) is str for key in value), path
            for key, inner in value.items():
                walk(inner, f"{path}.{key}")
        elif isinstance(value, list | tuple):
            for at, inner in enumerate(value):
                walk(inner, f"{path}[{at}]")
        else:
            assert type(value) in (str, int, float, bool, type(None)), (path, type(value))
            assert not isinstance(value, float) or math.isfinite(value), path

    walk(record)
    assert json.loads(json.dumps(record, allow_nan=False)) == json.loads(json.dumps(record))
    assert record["lengths"] == {"trained": TRAINED, "target": TARGET, "factor": 2.0}
    assert len(record["cells"]) == len(case.cells)
    assert len(record["judgements"]) == 2
    edges = distance_edges(case)
    assert edges[0] == 0
    assert edges[-1] >= TARGET
    for cell in record["cells"]:
        asked = case.subjects[0].items.long.probe == contexts.PROBES.index("binding")
        assert sum(cell["bind_errors"]["long"].values()) == asked.sum()
        for name, strata in cell["by_distance"].items():
            asked = case.subjects[0].items.long.probe == contexts.PROBES.index(name)
            assert sum(strata["count"]) == asked.sum()
            shares = zip(strata["count"], strata["accuracy"], strict=True)
            right = sum(count * share for count, share in shares if count)
            assert right / asked.sum() == pytest.approx(cell["accuracy"]["long"][name]["mean"])


def test_the_table_holds_every_cell_and_verdict(case):
    record = json_record(case)
    table = table_text(record)
    assert table.count("STATUS QUO") == 2
    for judgement in case.judgements:
        assert judgement.verdict.reason in table
        assert f"STATUS QUO {judgement.status_quo}: {judgement.verdict.kind.upper()}" in table
    assert len(table.split("accuracy of every cell:\n")[1].split("\n\n")[0].splitlines()) == 1 + len(case.cells)


@pytest.fixture
def _fitted(case, monkeypatch):
    """Fits no table again: that takes longer than all else."""
    monkeypatch.setattr(fitting, "fit_t5_table", lambda *_, **__: case.fitted[0].table)


@pytest.mark.usefixtures("_fitted")
def test_a_second_run_takes_what_the_first_has_finished(case, directory, small, store, tmp_path):
    store = shutil.copytree(store, tmp_path / "store")
    again = run_case([tiny_subject(directory)], SMALL, store=store)
    assert again.compilations == 0
    assert json.dumps(json_record(again)) == json.dumps(json_record(case))
    # Half of it lost: the rest is computed anew, to the same bits.
    for file in sorted(store.glob("*.npz"))[::2]:
        file.unlink()
    resumed = run_case([small], SMALL, store=store)
    assert resumed.compilations == 3
    assert json.dumps(json_record(resumed)) == json.dumps(json_record(case))


@pytest.mark.usefixtures("_fitted")
def test_an_open_verdict_is_asked_on_with_other_items_and_goes_on_where_it_stopped(case, directory, small, tmp_path):
    first = case.judgements[0].verdict.judged[0]
    # At a margin that is the very gain of an option, three contexts leave it open; nothing else can refuse it.
    margins = Margins(gate=0.0, gain=first.gain.mean, retrieval=20.0, short_accuracy=1.0, short_cost=20.0)
    settings = dataclasses.replace(SMALL, status_quos=(DEPLOYED,), faults=(), looks=3, margins=margins)
    parts = []

    def further(part):
        parts.append(part)
        return [subject.read_bundled_model(directory).asked(rows=3, target_length=TARGET, text_rows=2, part=part)]

    made = run_case([small], settings, further=further, store=tmp_path)
    (judgement,) = made.judgements
    assert parts == list(range(1, judgement.contexts // 3))
    assert judgement.contexts == 12  # at its very margin it is never settled
    assert max(one.haystacks for one in judgement.verdict.judged) == judgement.contexts
    assert made.compilations == 3  # further parts run through the same programs
    record = json_record(made)
    assert record["judgements"][0]["haystacks"] == judgement.contexts
    assert record["items"]["haystacks"] == 3
    assert record["judgements"][0]["confidence"] == pytest.approx(1 - 0.05 / 2)
    assert f"decided on {judgement.contexts} haystacks" in table_text(record)
    for file in sorted(tmp_path.glob("*.npz"))[::3]:
        file.unlink()
    assert json.dumps(json_record(run_case([small], settings, further=further, store=tmp_path))) == json.dumps(record)
    with pytest.raises(ValueError, match="3 looks need further items"):
        run_case([small], settings)
    with pytest.raises(ValueError, match="observed cannot be asked on"):
        run_case([small], settings, further=further, observed={})


def test_further_parts_run_with_the_fault_and_the_spared_keys_of_the_first(directory, small, tmp_path):
    settings = dataclasses.replace(SMALL, status_quos=(DEPLOYED,), faults=(), deployed="bf16_positions", spared=4)
    _, maker = fitted_schemes(small, settings, needed_cells(settings))
    other = subject.read_bundled_model(directory).asked(rows=3, target_length=TARGET, text_rows=2, part=1)
    runs = CaseRuns([small], [maker], settings)
    asked = runs.options(DEPLOYED, needed_cells(settings))
    first, further = (one.answered(DEPLOYED, asked) for one in (runs, runs.on([other])))
    alone = CaseRuns([other], [maker], settings).answered(DEPLOYED, asked)
    assert any("spare" in option.change for option in asked)
    assert any(option.number == "implementation" for option in asked)
    for one, same, before in (
        (further.status_quo, alone.status_quo, first.status_quo),
        *((further.changed[option], alone.changed[option], first.changed[option]) for option in asked),
    ):
        np.testing.assert_array_equal(one[0].log_odds["long"]["binding"], same[0].log_odds["long"]["binding"])
        np.testing.assert_array_equal(one[0].losses, same[0].losses)
        assert (one[0].losses != before[0].losses).any()
    exact = CaseRuns([other], [maker], dataclasses.replace(settings, deployed="exact")).deployed(DEPLOYED)
    assert (exact[0].log_odds["long"]["binding"] != further.status_quo[0].log_odds["long"]["binding"]).any()
    with pytest.raises(ValueError, match="is not the model of these runs"):
        runs.on([tiny_subject(save_bundled_model(tmp_path / "other", seed=1))])


def test_further_parts_are_other_items_of_the_same_kind_and_fit_to_the_same(directory, small):
    other = subject.read_bundled_model(directory).asked(rows=3, target_length=TARGET, text_rows=2, part=1)
    again = subject.read_bundled_model(directory).asked(rows=3, target_length=TARGET, text_rows=2, part=2)
    for one, two in ((small, other), (other, again)):
        assert (one.items.long.tokens != two.items.long.tokens).any(axis=1).all()
        assert (one.items.text != two.items.text).any(axis=1).all()
        np.testing.assert_array_equal(one.fit_text, two.fit_text)
        np.testing.assert_array_equal(one.unseen_items.tokens, two.unseen_items.tokens)


def test_gates_measure_costs_against_the_unchanged_model(case):
    measures = gate_measures(case, case.judgements[0])
    before, after = (json_record(case)["cells"][at]["loss"] for at in (0, 1))
    assert measures["short_cost"].mean == pytest.approx(after["short"]["mean"] - before["short"]["mean"])
    assert measures["long_cost"].mean == pytest.approx(after["long"]["mean"] - before["long"]["mean"])
    assert measures["long_cost"].low <= measures["long_cost"].mean <= measures["long_cost"].high
    assert measures["precision_drop"] == case.judgements[0].symptom.precision_drop


@pytest.mark.usefixtures("_fitted")
def test_a_fault_that_is_deployed_is_judged_against_the_exact_run(case, small, store):
    settings = dataclasses.replace(SMALL, deployed="bf16_bias", faults=())
    judgement, _ = run_case([small], settings, store=store).judgements
    repair = judgement.verdict.judged[-1]
    assert repair.option.number == "implementation"
    assert repair.option.cell == DEPLOYED
    exact = attribution.outcome(case.cells[DEPLOYED], "long", case.used.precision)
    deployed = attribution.outcome(judgement.scores, "long", case.used.precision)
    assert repair.gain.mean == pytest.approx(exact.mean() - deployed.mean())


@pytest.mark.usefixtures("_fitted")
def test_sparing_the_first_keys_is_an_arm_outside_the_options(case, small, store):
    judgement, _ = run_case([small], dataclasses.replace(SMALL, spared=TARGET, faults=()), store=store).judgements
    arm = next(one for one in judgement.verdict.judged if "spare" in one.option.change)
    assert (arm.option.number, arm.option.cell) == ("0", DEPLOYED)
    # A bias that spares every key is no bias.
    dropped = next(one for one in judgement.verdict.judged if one.option.number == "1")
    assert arm.gain.mean == pytest.approx(dropped.gain.mean, abs=1e-4)
    assert arm.gain.mean != 0


@pytest.mark.usefixtures("_fitted")
def test_observed_answers_are_recognised(case, small, store, tmp_path):
    settings = dataclasses.replace(SMALL, faults=("bf16_frequencies", "wrong_layout"))
    run = deployment.FaultRuns("wrong_layout", deployment.CellRuns(small, store=store), case.makers[0], store=store)
    raw = run.raw(DEPLOYED)
    np.savez(tmp_path / "seen.npz", short=raw["short"] - 3, long=raw["long"])  # log probabilities are as good
    observed = deployment.read_observed(tmp_path / "seen.npz", small)
    judgement, _ = run_case([small], settings, store=store, observed=observed).judgements
    names = list(judgement.nearest)
    assert names[0] == "wrong_layout"
    assert judgement.nearest["wrong_layout"] == pytest.approx(0, abs=1e-5)
    assert set(names) == {"exact", "bf16_frequencies", "wrong_layout"}


def test_several_models_of_one_kind(directory, small, tmp_path):
    models = [small, tiny_subject(save_bundled_model(tmp_path / "other", seed=1))]
    settings = dataclasses.replace(SMALL, status_quos=(Cell("ntk", "none"),), transforms=("llama3",), faults=())
    record = json_record(run_case(models, settings))
    assert len(record["models"]) == 2
    assert record["judgements"][0]["shapley"] is None  # there is no bias to share with
    assert "2 seed means" in record["interval_method"]


def test_what_contradicts_itself_is_refused(small):
    longer = dataclasses.replace(small, target_length=2 * TARGET)
    with pytest.raises(InputError, match="must share their lengths"):
        run_case([small, longer], SMALL)
    with pytest.raises(InputError, match="above the trained length"):
        run_case([dataclasses.replace(small, target_length=TRAINED)], SMALL)
    with pytest.raises(InputError, match="status quo magic"):
        run_case([small], dataclasses.replace(SMALL, status_quos=(Cell("magic", "none"),)))


@pytest.mark.parametrize("directory", subject.bundled_models(), ids=lambda directory: directory.name)
def test_bundled_models_that_ship_know_what_they_are_asked(directory):
    made = subject.read_bundled_model(directory).asked(rows=80, target_length=320, text_rows=1)
    assert (made.trained_length, made.checkpoint.config.num_layers) == (256, 4)
    positions = made.checkpoint.positions.main_group
    scheme = build(positions.rotary, num_heads=4, head_dim=32, layout=made.checkpoint.layout)
    items = made.items.short
    given = probes.answers(ProbeProgram(made.checkpoint.model)(scheme, items), items)
    right = {name: probes.by_row(given.right, items, name).mean() for name in probes.asked_probes(items)}
    assert set(right) == {"retrieval", "binding", "order"}
    assert min(right.values()) >= 0.95
