"""A user's checkpoint and text: what is judged, what is fitted on, and what a reader must know beside it."""

import dataclasses

import numpy as np
import pytest
from cases import save_checkpoint

from rope_jax.checkpoints.layout import LayoutLoss
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.diagnosis.evaluation import own_model as rooms
from rope_jax.diagnosis.evaluation.own_model import OwnSettings, own_model
from rope_jax.diagnosis.models import asked_of
from rope_jax.diagnosis.options import Options
from rope_jax.diagnosis.tasks.contexts import VOCAB_SIZE
from rope_jax.diagnosis.tasks.text import Text, without_overlap
from rope_jax.errors import CheckpointError, InputError

L, TARGET = 64, 160
LLAMA3 = {
    "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return load_checkpoint(save_checkpoint(tmp_path_factory.mktemp("own"), trained_length=L))


@pytest.fixture
def layout(monkeypatch):
    """Says what the check of the layout finds."""

    def says(favours=None, undecided=""):
        loss = LayoutLoss(9.0, 8.0, 0.1, favours, undecided)
        monkeypatch.setattr(rooms, "layout_by_loss", lambda *_: loss)

    says()
    return says


def text(rows=4, leftover=0, seed=0):
    tokens = np.random.default_rng(seed).integers(0, VOCAB_SIZE, rows * TARGET + leftover).astype(np.int32)
    return Text(tokens[: rows * TARGET].reshape(rows, TARGET), tokens[rows * TARGET :], "text.npy")


def asked(**changes):
    return Options(**{"target_length": TARGET, "contexts": 0, "text": text().rows, "separator": "|"} | changes)


def test_without_other_text_each_half_is_fitted_for_the_other(checkpoint, layout):
    given = text()
    made = own_model(checkpoint, given, OwnSettings(contexts=0))
    assert made.fold_of_row == (0, 0, 1, 1)
    assert any("cross-fitting" in finding for finding in made.findings)
    for fold, subject in enumerate(made.folds):
        judged = given.rows[np.asarray(made.fold_of_row) == fold]
        assert subject.fit_text.shape[1] == L
        assert len(subject.fit_text) == 4
        assert len(without_overlap(subject.fit_text, judged)) == len(subject.fit_text)  # nothing that is judged


def test_what_is_left_over_is_fitted_on_where_there_is_enough(checkpoint, layout):
    given = text(leftover=16 * L)
    made = own_model(checkpoint, given, OwnSettings(contexts=0))
    assert made.fold_of_row == (0, 0, 0, 0)
    np.testing.assert_array_equal(made.folds[0].fit_text.ravel(), given.leftover)
    assert len(own_model(checkpoint, text(leftover=15 * L), OwnSettings(contexts=0)).folds) == 2


def test_chunks_that_are_judged_too_are_not_fitted_on(checkpoint, layout):
    given = text()
    other = np.random.default_rng(9).integers(0, VOCAB_SIZE, (3, L)).astype(np.int32)
    fit = np.concatenate([other, given.rows[:2, :L]])
    made = own_model(checkpoint, given, OwnSettings(contexts=0), fit_text=fit)
    np.testing.assert_array_equal(made.folds[0].fit_text, other)
    with pytest.raises(InputError, match="no chunk of 64 tokens that is not also evaluated"):
        own_model(checkpoint, given, OwnSettings(contexts=0), fit_text=given.rows[:, :L].copy())
    with pytest.raises(InputError, match="one row leaves no disjoint text"):
        own_model(checkpoint, text(rows=1), OwnSettings(contexts=0))
    repeated = dataclasses.replace(given, rows=np.repeat(given.rows[:1], 4, axis=0))
    with pytest.raises(InputError, match="the rows repeat each other"):
        own_model(checkpoint, repeated, OwnSettings(contexts=0))


def test_fit_text_is_cut_to_the_length_that_is_measured_with(tmp_path, layout):
    """A model with a declared scaling counts as trained up to what that serves."""
    directory = save_checkpoint(tmp_path / "declared", trained_length=128, rope_scaling=LLAMA3)
    file = tmp_path / "fit.npy"
    tokens = np.random.default_rng(5).integers(0, VOCAB_SIZE, (4, 300)).astype(np.int32)
    np.save(file, tokens)
    for fit_text in (file, tokens):
        (subject,) = asked_of(directory, asked(fit_text=fit_text)).subjects
        assert subject.trained_length == 128
        assert subject.fit_text.shape == (8, 128)
    (subject,) = asked_of(directory, asked(fit_text=file, trained_length=100)).subjects
    assert subject.fit_text.shape == (12, 100)


@pytest.mark.parametrize("asked", [None, "interleaved"])
@pytest.mark.parametrize("undecided", ["", "in neither layout is the text read"])
def test_a_layout_check_that_cannot_tell_is_a_finding(checkpoint, layout, asked, undecided):
    layout(undecided=undecided)
    findings = own_model(checkpoint, text(), OwnSettings(contexts=0, layout=asked)).findings
    said = [finding for finding in findings if "LAYOUT" in finding]
    used = asked or "half"
    expected = [f"LAYOUT NOT CHECKED: {undecided}; the weights are taken to be {used}, as stated"]
    assert said == (expected if undecided else [])


def test_the_wrong_layout_is_refused_unless_it_was_asked_for(checkpoint, layout):
    layout(favours="interleaved")
    with pytest.raises(CheckpointError, match="are interleaved, not half"):
        own_model(checkpoint, text(), OwnSettings(contexts=0))
    findings = own_model(checkpoint, text(), OwnSettings(contexts=0, layout="half")).findings
    assert any(finding.startswith("WRONG LAYOUT") for finding in findings)


def test_what_was_shipped_with_a_scaling_is_said(tmp_path, layout):
    own = load_checkpoint(save_checkpoint(tmp_path / "declared", trained_length=128, rope_scaling=LLAMA3))
    for compose, how in ((False, "takes its place"), (True, "comes on top of it")):
        findings = own_model(own, text(), OwnSettings(contexts=0, compose=compose)).findings
        assert f"the model was shipped with llama3 up to 128 tokens: a new scaling {how}" in findings


def test_questions_that_cannot_be_asked_are_said(checkpoint, layout):
    for contexts, why in ((0, "not asked for"), (3, "the checkpoint has no tokenizer")):
        made = own_model(checkpoint, text(), OwnSettings(contexts=contexts))
        assert made.folds[0].num_contexts == 0
        assert any(why in finding for finding in made.findings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "is asked on text, and none is given"),
        ({"target_length": None}, "say how far the context of .* is to be extended"),
        ({"trained_length": 16}, "trained length 16 is too short"),
        ({"trained_length": TARGET - 1}, "leaves no token to predict beyond the trained length"),
        ({"text": text().rows[:, :100]}, "text must be rows of at least 160 tokens"),
        ({"text": text().rows.astype(float)}, "text must be rows of at least 160 tokens, got float64"),
        ({"text": text().rows + VOCAB_SIZE}, "the vocabulary has 152"),
        ({"fit_text": text().rows[:, : L - 1]}, "fit_text must be rows of at least 64 tokens"),
        ({"fit_text": -1 - text().rows}, "fit_text: token ids run from"),
    ],
)
def test_what_contradicts_itself_is_refused(checkpoint, layout, without_type_checks, changes, message):
    with pytest.raises(InputError, match=message):
        asked_of(checkpoint, asked(**changes))


def test_several_models_must_be_of_one_kind(checkpoint):
    with pytest.raises(InputError, match="several models are asked together only where"):
        asked_of([checkpoint, checkpoint], asked())
