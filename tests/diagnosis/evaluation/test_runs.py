"""Finished results are kept and found again, and never taken for others."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import HEADS, TARGET, TRAINED, save_bundled_model, tiny_decoder, tiny_subject

from rope_jax.attention.api import attend
from rope_jax.biases import alibi_paper
from rope_jax.diagnosis.evaluation import probes, runs
from rope_jax.diagnosis.evaluation.faults import Fault
from rope_jax.diagnosis.evaluation.losses import LossProgram
from rope_jax.diagnosis.evaluation.panel import ORDER_WAYS
from rope_jax.diagnosis.evaluation.probes import ProbeProgram
from rope_jax.diagnosis.evaluation.runs import Runs, panel_of
from rope_jax.diagnosis.evaluation.schemes import SchemeMaker
from rope_jax.diagnosis.tasks import contexts
from rope_jax.errors import CheckpointError, InputError
from rope_jax.scheme import Retrofit


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return tiny_subject(save_bundled_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def schemes(subject):
    checkpoint = subject.checkpoint
    maker = SchemeMaker(checkpoint.positions, checkpoint.layout, "exact", TRAINED, TARGET)
    trained = maker.original()
    biased = Retrofit(trained.rotary, maker.rule("ntk"), alibi_paper(HEADS))
    made = {
        "original": trained, "scaled": dataclasses.replace(biased, bias=None), "biased": biased,
        "sharper": dataclasses.replace(biased, temperature=1.2),
    }  # fmt: skip
    return {name: maker(retrofit) for name, retrofit in made.items()}


@pytest.fixture(scope="module")
def programs(subject):
    model = subject.checkpoint.model
    return ProbeProgram(model), LossProgram(model)


@pytest.fixture
def make(subject, programs, tmp_path):
    """Makes runs on one store that share their compiled programs."""

    def made(subject=subject, store=tmp_path / "deep" / "store", **kwargs):
        found = Runs(subject, store=store, **kwargs)
        found._programs[attend] = programs
        return found

    return made


def taken(made):
    """How many results were found in the store."""
    return len(made._kept) - made.ran


def same(one, two):
    assert one.answers.keys() == two.answers.keys()
    for reach, given in one.answers.items():
        np.testing.assert_array_equal(given.log_odds, two.answers[reach].log_odds)
        np.testing.assert_array_equal(given.picked, two.answers[reach].picked)
    np.testing.assert_array_equal(one.losses, two.losses)
    assert one.losses.dtype == two.losses.dtype


def test_what_is_finished_is_taken_bit_for_bit(make, schemes):
    first = make()
    found = {name: first([schemes[name]]) for name in ("original", "biased")}
    assert (first.ran, taken(first)) == (6, 0)  # short, long and text of each
    same(first([schemes["biased"]]), found["biased"])
    assert (first.ran, taken(first)) == (6, 0)  # in memory
    again = make()
    for name, scores in found.items():
        same(again([schemes[name]]), scores)
    assert (again.ran, taken(again)) == (0, 6)
    assert (found["original"].losses != found["biased"].losses).any()


def test_a_run_that_was_cut_off_goes_on(make, schemes, monkeypatch):
    names = ["original", "scaled", "biased"]
    cut = make()
    cut([schemes[names[0]]])

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", killed)
        with pytest.raises(KeyboardInterrupt):
            cut([schemes[names[1]]])
    resumed = make()
    kept = [resumed([schemes[name]]) for name in names]
    assert (resumed.ran, taken(resumed)) == (6, 3)
    whole = make(store=None)
    for name, scores in zip(names, kept, strict=True):
        same(whole([schemes[name]]), scores)
    assert (whole.ran, taken(whole)) == (9, 0)


class Known(ProbeProgram):
    """Answers what is known: whether it was asked is what counts."""

    def __init__(self, answer):
        self._answer = answer

    def __call__(self, scheme, items):
        return self._answer


def only_long(subject):
    return dataclasses.replace(subject, items=dataclasses.replace(subject.items, short=None))


def test_a_damaged_file_is_computed_anew_and_repaired(make, subject, schemes, tmp_path):
    asked, scheme = only_long(subject), schemes["original"]
    good = make(asked).logits(scheme)["long"]
    (file,) = (tmp_path / "deep" / "store").glob("*.npz")
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    flipped = []
    for at in [*rng.integers(0, len(whole), 12), *range(0, 60, 5), *range(len(whole) - 120, len(whole), 7)]:
        flipped.append(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], b"nonsense" * 50, *flipped):
        file.write_bytes(damaged)
        repaired = make(asked)
        repaired._programs[attend] = Known(good), repaired.programs[1]
        np.testing.assert_array_equal(repaired.logits(scheme)["long"], good)
        assert (repaired.ran, taken(repaired)) == (1, 0)
        assert file.read_bytes() == whole


def test_no_file_is_believed_by_its_name(make, subject, schemes, tmp_path, capsys):
    asked = only_long(subject)
    found = {name: make(asked).logits(schemes[name])["long"] for name in ("original", "biased")}
    store = tmp_path / "deep" / "store"
    files = {name: store / f"{make(asked)._key('logits', schemes[name], asked.items.long)[:32]}.npz" for name in found}
    whole = {name: file.read_bytes() for name, file in files.items()}
    assert set(store.iterdir()) == set(files.values())
    with np.load(files["biased"]) as archive:
        np.savez(tmp_path / "stronger.npz", **{name: 1.5 * archive[name] for name in archive.files})
    inner = bytearray(whole["biased"])
    inner[len(inner) // 2] ^= 1
    for planted, why in (
        (whole["original"], "computed from something else"),  # another configuration's file under this one's name
        ((tmp_path / "stronger.npz").read_bytes(), "no checksum of this version"),
        (bytes(inner), "does not match its checksum"),
    ):
        files["biased"].write_bytes(planted)
        capsys.readouterr()
        again = make(asked)
        for name, logits in found.items():
            np.testing.assert_array_equal(again.logits(schemes[name])["long"], logits)
        assert (again.ran, taken(again)) == (1, 1)
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"{files['biased']}: " in err
        assert why in err
        assert files["biased"].read_bytes() == whole["biased"]


def test_no_other_weights_items_or_scheme_hit_the_same_result(make, subject, schemes):
    items, checkpoint = subject.items, subject.checkpoint
    choices = items.long.choices.copy()
    choices[0, 0, 1] = choices[0, 0, 2]
    config = dataclasses.replace(checkpoint.config, rms_norm_eps=1e-6)
    own, biased = make(), schemes["biased"]
    asked = {
        "seed": tiny_subject(Path(checkpoint.origin), seed=1).items.long,
        "choices": items.long._replace(choices=choices),
        "short": items.short,
    }
    keys = {name: own._key("logits", biased, changed) for name, changed in asked.items()}
    others = {
        "weights": dataclasses.replace(checkpoint, sha256="0" * 64),
        "config": dataclasses.replace(checkpoint, config=config),
    }
    for name, other in others.items():
        keys[name] = make(dataclasses.replace(subject, checkpoint=other))._key("logits", biased, items.long)
    keys |= {f"scheme {name}": own._key("logits", scheme, items.long) for name, scheme in schemes.items()}
    keys["losses"] = own._key("losses", biased, items.long)
    keys["fault"] = own.with_fault(Fault("bf16_bias", ""))._key("logits", biased, items.long)
    keys["interleaved"] = own._key("logits", dataclasses.replace(biased, layout="interleaved"), items.long)
    keys["phase"] = own._key("logits", dataclasses.replace(biased, phase="float32"), items.long)
    assert len(set(keys.values())) == len(keys)
    assert keys["scheme biased"] == make()._key("logits", biased, items.long)


def test_a_fault_is_kept_apart_from_the_exact_run(make, subject, schemes):
    exact = make(only_long(subject))
    shifted = Fault("shifted", "", lambda scheme: dataclasses.replace(scheme, logit_scale=2 * scheme.logit_scale))
    by_name = Fault("by_name", "")  # that changes nothing known
    for fault, differs in ((shifted, True), (by_name, False)):
        found = exact.with_fault(fault).logits(schemes["biased"])["long"]
        assert (found != exact.logits(schemes["biased"])["long"]).any() == differs
        again = make(only_long(subject)).with_fault(fault)
        np.testing.assert_array_equal(again.logits(schemes["biased"])["long"], found)
        assert (again.ran, taken(again)) == (0, 1)
    assert exact.ran == 1
    deaf = Fault("deaf", "", attention=lambda *call: jax.tree.map(jnp.zeros_like, attend(*call)))
    found = exact.with_fault(deaf).logits(schemes["biased"])["long"]
    assert (found != exact.logits(schemes["biased"])["long"]).any()
    assert exact.with_fault(deaf).on(subject).programs is exact.with_fault(deaf).programs  # compiled once


def test_rows_of_one_fold_are_read_under_its_own_scheme(make, subject, schemes):
    both = make(folds=[1, 0])([schemes["original"], schemes["biased"]])
    one, other = (make()([schemes[name]]) for name in ("original", "biased"))
    np.testing.assert_array_equal(both.losses, np.stack([other.losses[0], one.losses[1]]))
    np.testing.assert_array_equal(both.answers["long"].log_odds, one.answers["long"].log_odds)


def test_a_panel_holds_a_number_a_context_and_a_row(make, subject, schemes):
    made = make(store=None)
    scores, logits, items = made([schemes["biased"]]), made.logits(schemes["biased"]), subject.items
    panel = panel_of([scores, scores], items, TRAINED)
    for reach, asked in (("short", items.short), ("long", items.long)):
        odds = probes.log_odds(logits[reach], asked.choices)
        for name in contexts.PROBES:
            chosen = asked.probe == contexts.PROBES.index(name)
            expected = [row[here].mean() for row, here in zip(odds, chosen, strict=True)]
            np.testing.assert_allclose(panel.log_odds[reach][name], [expected, expected])
        first, last = (panel.accuracy[reach][name] for name in ORDER_WAYS)
        np.testing.assert_allclose((first + last) / 2, panel.accuracy[reach]["order"])


def test_short_is_one_thing_up_to_the_token_of_index_l(make, subject, schemes):
    """In the losses of a panel as in the training: tokens below index L, so losses of columns below L - 1."""
    losses = np.tile(np.arange(1, TARGET, dtype=np.float32), (2, 1))  # of a token its index
    items = dataclasses.replace(subject.items, counted=np.ones((2, TARGET - 1)))
    answers = make(store=None)([schemes["original"]]).answers
    panel = panel_of([runs.Scores(answers, losses)], items, TRAINED)
    np.testing.assert_allclose(panel.loss["short"], np.arange(1, TRAINED).mean())
    np.testing.assert_allclose(panel.loss["long"], np.arange(TRAINED, TARGET).mean())


def test_three_programs_serve_every_configuration(subject, schemes):
    made = Runs(subject)
    for scheme in schemes.values():
        made([scheme])
    assert made.compilations == 3


def test_further_items_run_through_the_same_programs(subject, schemes, tmp_path):
    made = Runs(subject)
    made([schemes["biased"]])
    other = tiny_subject(Path(subject.checkpoint.origin), seed=1)
    further = made.on(other)
    assert (further([schemes["biased"]]).losses != made([schemes["biased"]]).losses).any()
    assert further.compilations == made.compilations == 3
    with pytest.raises(ValueError, match="is not the model of these runs"):
        made.on(tiny_subject(save_bundled_model(tmp_path / "other", seed=1)))


def test_telling_of_layers_changes_no_bit(subject, schemes, monkeypatch):
    plain = Runs(subject).losses([schemes["biased"]])
    monkeypatch.setattr(runs, "_LONG_ROW", 1)
    heard = []
    telling = Runs(subject)
    telling.tell = heard.append
    np.testing.assert_array_equal(telling.losses([schemes["biased"]]), plain)
    assert heard == ["row 1 of 2", "layer 1 of 1", "layer 1 of 1"]


def test_a_model_that_overflows_is_named(subject, schemes):
    broken = tiny_decoder()
    broken.embedding[...] = broken.embedding[...] * np.float32(np.nan)
    made = Runs(dataclasses.replace(subject, checkpoint=dataclasses.replace(subject.checkpoint, model=broken)))
    with pytest.raises(CheckpointError, match="beyond float32"):
        made([schemes["original"]])


def test_a_store_that_cannot_be_written_is_one_line(make, subject, schemes, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file: cannot keep finished work there: .*exists"):
        make(only_long(subject), store=tmp_path / "file").logits(schemes["original"])
