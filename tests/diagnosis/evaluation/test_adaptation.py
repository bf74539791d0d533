"""Adapted configurations: what they are trained on, that they learn, and that a run that was cut off goes on."""

import dataclasses

import jax
import numpy as np
import pytest
from cases import LEARNED, SMALL, save_bundled_model, tiny_subject
from flax import nnx

from rope_jax import diagnose
from rope_jax.diagnosis.evaluation import adaptation
from rope_jax.diagnosis.evaluation.adaptation import adapted
from rope_jax.diagnosis.evaluation.configurations import wanted
from rope_jax.diagnosis.evaluation.losses import LossProgram
from rope_jax.diagnosis.evaluation.plan import PlanSettings, plan_of
from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.subject import BundledModel

DEPLOYED = "ntk + alibi"
KNOWN = contexts.Counts(first_pairs=3, last_pairs=1)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    made = tiny_subject(save_bundled_model(tmp_path_factory.mktemp("model")))
    return dataclasses.replace(made, counts=KNOWN)


@pytest.fixture(scope="module")
def scheme(subject):
    return plan_of([subject], PlanSettings((wanted("ntk+alibi"),), ("llama3",))).schemes(DEPLOYED)[0]


def weights(subject):
    return jax.tree.leaves(nnx.state(subject.checkpoint.model))


def test_it_is_trained_on_the_questions_the_model_knows(subject, scheme, monkeypatch):
    seen = []

    def watched(*arguments, **named):
        items = contexts_before(*arguments, **named)
        seen.append({contexts.PROBES[probe] for probe in np.unique(items.probe)})
        return items

    contexts_before = contexts.contexts
    monkeypatch.setattr(contexts, "contexts", watched)
    adapted(subject, scheme, name="x", steps=1)
    assert seen == [{"retrieval", "binding", "order"}]


def test_steps_lower_the_loss_and_leave_the_items_alone(subject, scheme):
    after = adapted(subject, scheme, name="x", steps=20, learning_rate=3e-3)
    assert after.items is subject.items
    losses = [LossProgram(one.checkpoint.model)(scheme, subject.items.text) for one in (subject, after)]
    counted = subject.items.counted
    before, behind = ((loss * counted).sum() / counted.sum() for loss in losses)
    assert behind < before - 0.05


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(subject, scheme, tmp_path, monkeypatch):
    first = adapted(subject, scheme, name="x", steps=2, store=tmp_path)
    again = adapted(subject, scheme, name="x", steps=2)
    other = adapted(subject, scheme, name="x", steps=2, seed=1)
    assert all((a == b).all() for a, b in zip(weights(first), weights(again), strict=True))
    assert any((a != b).any() for a, b in zip(weights(first), weights(other), strict=True))
    monkeypatch.setattr(adaptation, "_train", None)  # would fail if it were called
    kept = adapted(subject, scheme, name="x", steps=2, store=tmp_path)
    assert kept.checkpoint.sha256 == first.checkpoint.sha256
    assert all((a == b).all() for a, b in zip(weights(first), weights(kept), strict=True))


def test_kept_weights_are_not_believed_by_their_name(subject, scheme, tmp_path, capsys):
    first = adapted(subject, scheme, name="x", steps=1, store=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    with np.load(file) as archive:
        np.savez(file, **{name: -archive[name] for name in archive.files})
    again = adapted(subject, scheme, name="x", steps=1, store=tmp_path)
    assert "no checksum of this version" in capsys.readouterr().err
    assert all((a == b).all() for a, b in zip(weights(first), weights(again), strict=True))
    assert file.read_bytes() == whole


@pytest.mark.slow
def test_every_configuration_is_adapted_before_it_is_judged(subject):
    model = BundledModel(subject.checkpoint, KNOWN)
    found = diagnose(model, deployed="ntk+alibi", adapt_steps=1, **SMALL).findings
    (judgement,) = found.adapted
    assert judgement.deployed == DEPLOYED
    assert [one.option for one in judgement.verdict.changes] == ["1", "2", "3"]
    assert set(found.adapted_panels) == {DEPLOYED, "ntk + none", "none + alibi", "llama3 + alibi"}
    exact, after = found.conditions[DEPLOYED].panel, found.adapted_panels[DEPLOYED]
    assert (after.log_odds["long"]["binding"] != exact.log_odds["long"]["binding"]).any()
    assert found.margins == LEARNED
