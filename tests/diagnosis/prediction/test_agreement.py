"""Predictions from short contexts, beside what the long ones gave."""

import dataclasses

import numpy as np
import pytest
from cases import TARGET, save_bundled_model, tiny_subject, used
from rope_jax.diagnosis.evaluation.case_setup import Settings, fitted_schemes, needed_cells
from rope_jax.diagnosis.evaluation.cell_runs import CellRuns
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell
from rope_jax.diagnosis.prediction.foreshortened import PARTS, ForeshortenedProgram, foreshortened

from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.prediction import agreement as agreement_module
from rope_jax.diagnosis.prediction import own_heads
from rope_jax.diagnosis.prediction.agreement import agreement
from rope_jax.diagnosis.tasks.contexts import PROBES, SYMBOLS
from rope_jax.diagnosis.tasks.subject import bundled_models, read_bundled_model
from rope_jax.statistics.intervals import Estimate
from rope_jax.statistics.ranks import RankAgreement, within_group_spearman

QUO = Cell("ntk", "alibi")
SETTINGS = Settings(status_quos=(QUO,), transforms=("llama3",))


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return tiny_subject(save_bundled_model(tmp_path_factory.mktemp("model")), rows=4)


@pytest.fixture(scope="module")
def maker(subject):
    return fitted_schemes(subject, SETTINGS, needed_cells(SETTINGS))[1]


@pytest.fixture(scope="module")
def found(subject, maker):
    run = CellRuns(subject)
    cells = {cell: [run(maker(cell))] for cell in needed_cells(SETTINGS)}
    return agreement([subject], [maker], cells, used(), [QUO])


def test_every_cell_is_predicted_and_measured(found):
    assert set(found.predicted) == set(found.measured) == set(found.figures) == set(needed_cells(SETTINGS))
    for errors in (*found.predicted.values(), *found.measured.values()):
        assert errors.shape == (8,)
        assert ((errors >= 0) & (errors <= 1)).all()
    assert set(found.by_probe) == {"retrieval", "binding", "order"}


def test_blame_adds_up_to_the_whole_predicted_loss(found, subject, maker):
    assert list(found.blame) == [QUO, Cell("ntk", "none"), UNCHANGED]
    items = subject.unseen_items
    program = ForeshortenedProgram(subject.checkpoint.model)

    def precision(cell, upto):
        seen = foreshortened(items, TARGET, upto=upto)
        given = probes.answers(program(maker(cell), items, seen), items)
        return np.mean([probes.by_row(given.log_odds, items, name).mean() for name in ("binding", "order")])

    for cell, parts in found.blame.items():
        assert list(parts) == list(PARTS)
        whole = precision(UNCHANGED, "scheme") - precision(cell, "filler")
        np.testing.assert_allclose(sum(loss.mean for loss in parts.values()), whole, atol=1e-6)
    assert found.blame[UNCHANGED]["scheme"].mean == 0


def test_a_scheme_that_changes_nothing_leaves_the_heads_as_they_were(found, subject):
    (unchanged,), (biased,) = found.figures[UNCHANGED], found.figures[QUO]
    np.testing.assert_allclose(np.abs(unchanged.coherence), 1, atol=1e-6)  # negative where a head looks away
    assert unchanged.horizon == float("inf")
    assert unchanged.step == 0
    assert 0 < biased.horizon < float("inf")
    assert 0 < found.heads[0].local.mass <= 1


def test_twice_the_slope_halves_the_horizon(subject, maker):
    own = own_heads.own_heads(subject.checkpoint.model, maker(UNCHANGED), subject.unseen_items)
    once = maker(QUO)
    twice = dataclasses.replace(once, slopes=2 * once.slopes)
    one, two = (own_heads.head_figures(own, scheme, target_length=TARGET) for scheme in (once, twice))
    np.testing.assert_allclose(two.horizon, one.horizon / 2, rtol=1e-5)


def test_models_without_contexts_are_not_predicted(subject, maker):
    full = subject.unseen_items._replace(tokens=np.full_like(subject.unseen_items.tokens, SYMBOLS[0]))
    for items in (None, full):
        bare = dataclasses.replace(subject, unseen_items=items)
        assert agreement([bare], [maker], {}, used(), []) is None


@pytest.mark.slow
def test_short_contexts_foretell_what_the_shipped_model_does_at_twice_its_length():
    subject = read_bundled_model(bundled_models()[0]).asked(rows=12, target_length=512, text_rows=1)
    settings = Settings(status_quos=(Cell("ntk", "alibi"),), slopes=0.3)
    maker = fitted_schemes(subject, settings, needed_cells(settings))[1]
    run = CellRuns(subject)
    cells = {cell: [run(maker(cell))] for cell in needed_cells(settings)}
    found = agreement([subject], [maker], cells, used(), [Cell("ntk", "alibi")])
    assert found.ranks.correlation.mean >= 0.8
    far = np.abs(np.stack([found.predicted[cell].mean() - found.measured[cell].mean() for cell in cells]))
    assert far.max() < 0.15


def test_it_is_read_by_its_interval(found):
    def said(low, mean, high, ceiling=None):
        ranks = RankAgreement(Estimate(mean, low, high), 8, 0)
        return dataclasses.replace(found, ranks=ranks, ceiling=ceiling).text

    assert said(0.85, 0.9, 0.95).endswith("the prediction may be read")
    assert said(0.1, 0.2, 0.3).endswith("cannot be trusted for this model")
    assert said(0.7, 0.85, 0.9).endswith("is open")
    assert "about 0.93 is the most" in said(0.85, 0.9, 0.95, ceiling=0.93)
    assert "nothing is known" in dataclasses.replace(found, ranks=RankAgreement(None, 0, 8)).text


def test_the_ceiling_is_that_of_the_noise():
    rng = np.random.default_rng(0)
    cells = rng.uniform(0, 1, (12, 8))
    noisy = cells + 0.5 * rng.standard_normal((40, 12, 8))
    assert agreement_module._ceiling(np.repeat(cells[None], 6, axis=0)) == pytest.approx(1)
    reached = within_group_spearman(cells, noisy).correlation.mean
    assert agreement_module._ceiling(noisy) == pytest.approx(reached, abs=0.05)
    assert agreement_module._ceiling(noisy[:3]) is None


def test_an_offset_that_few_contexts_ask_counts_as_often_as_it_is_asked(subject):
    items = subject.items.long
    asked = (items.probe == PROBES.index("binding")) & (items.asked == 1)
    fewer = items._replace(asked=np.where(asked & (np.arange(len(asked)) > 1)[:, None], 2, items.asked))
    wrong = probes.Answers(*(np.zeros(items.probe.shape, kind) for kind in (float, bool, np.int32)))
    np.testing.assert_allclose(agreement_module._errors([wrong], fewer).mean(axis=0), 1)
