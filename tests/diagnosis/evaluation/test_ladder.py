"""The ladder of ratios, on a tiny random model and on symptoms that were made up."""

import dataclasses

import pytest
from cases import TRAINED, save_bundled_model, scores, tiny_subject, used

from rope_jax.diagnosis.evaluation.case import run_case
from rope_jax.diagnosis.evaluation.case_setup import Settings
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell
from rope_jax.diagnosis.evaluation.ladder import Rung, farthest, ladder, target_lengths
from rope_jax.diagnosis.tasks.subject import read_bundled_model
from rope_jax.diagnosis.verdict.verdict import Margins, attribution
from rope_jax.errors import InputError

DEPLOYED = Cell("ntk", "alibi")
SETTINGS = Settings(status_quos=(DEPLOYED,), transforms=("llama3",), margins=Margins(gate=0.0))


def test_a_rung_is_what_the_case_says_at_its_length(tmp_path):
    directory = save_bundled_model(tmp_path / "model")
    case = run_case([tiny_subject(directory)], SETTINGS)
    lengths = target_lengths([1.5, 2], TRAINED)
    rungs = ladder(
        lambda length: [read_bundled_model(directory).asked(rows=3, target_length=length, text_rows=2, seed=0)],
        lengths,
        SETTINGS,
        case.used,
        store=tmp_path / "store",
    )
    assert [(rung.cell, rung.ratio) for rung in rungs] == [
        (cell, ratio) for ratio in (1.5, 2) for cell in (Cell("ntk", "none"), DEPLOYED)
    ]
    by_itself = case.judgements[0].symptom
    assert rungs[-1].symptom == by_itself
    bare = attribution.symptom(case.cells[Cell("ntk", "none")], case.cells[UNCHANGED], case.used)
    assert rungs[-2].symptom.precision_drop == bare.precision_drop
    assert rungs[1].symptom != by_itself


def test_how_far_retrieval_is_kept_ends_at_the_first_ratio_that_is_open():
    known = used()
    seen = attribution.symptom([scores(long=2.0)], [scores()], known)
    made = Rung(DEPLOYED, 0, 1.0, seen, "yes", "yes")
    other = Cell("ntk", "none")

    def rungs(cell, **answers):
        return [
            dataclasses.replace(made, cell=cell, ratio=float(name[1:]), retrieves=answer)
            for name, answer in answers.items()
        ]

    found = farthest([*rungs(DEPLOYED, r4="yes", r2="yes", r3="unclear"), *rungs(other, r2="no", r3="yes")])
    assert found == {DEPLOYED: 2.0, other: None}


def test_a_ratio_must_add_a_token():
    assert target_lengths([1.25], TRAINED) == [240]
    with pytest.raises(InputError, match=r"1\.001 times 192 tokens is no longer context"):
        target_lengths([2, 1.001], TRAINED)
