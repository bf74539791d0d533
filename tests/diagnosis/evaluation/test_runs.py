"""Finished cells are kept and found again, and never taken for others."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from cases import TARGET, TRAINED, save_bundled_model, tiny_decoder, tiny_subject
from rope_jax.diagnosis.evaluation.case_setup import Settings, arms_of
from rope_jax.diagnosis.evaluation.cell_runs import CellRuns
from rope_jax.diagnosis.evaluation.cells import UNCHANGED, Cell, CellSchemes

from rope_jax.biases import alibi_paper
from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.evaluation.losses import LossProgram
from rope_jax.diagnosis.evaluation.probes import ProbeProgram
from rope_jax.diagnosis.tasks import contexts
from rope_jax.errors import CheckpointError, InputError

BIASED = Cell("ntk", "alibi")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return tiny_subject(save_bundled_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def schemes(subject):
    arms = arms_of(subject, Settings(status_quos=(BIASED,)))
    return CellSchemes(arms, {"none": None, "alibi": alibi_paper(2)}, subject.factor)


@pytest.fixture(scope="module")
def programs(subject):
    model = subject.checkpoint.model
    return ProbeProgram(model), LossProgram(model)


@pytest.fixture
def runs(subject, programs, tmp_path):
    """Makes runs on one store that share their compiled programs."""

    def make(subject=subject, store=tmp_path / "deep" / "store", **kwargs):
        made = CellRuns(subject, store=store, program=programs[0], **kwargs)
        made._losses = programs[1]
        return made

    return make


def same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
        assert one[name].dtype == two[name].dtype


def test_what_is_finished_is_taken_bit_for_bit(runs, schemes):
    first = runs()
    made = {cell: first.raw(schemes(cell)) for cell in (UNCHANGED, BIASED)}
    assert (first.ran, first.taken) == (2, 0)
    same(first.raw(schemes(BIASED)), made[BIASED])
    assert (first.ran, first.taken) == (2, 0)  # in memory
    again = runs()
    for cell, raw in made.items():
        same(again.raw(schemes(cell)), raw)
    assert (again.ran, again.taken) == (0, 2)
    assert (made[UNCHANGED]["long"] != made[BIASED]["long"]).any()


def test_a_run_that_was_cut_off_goes_on(runs, schemes, monkeypatch):
    cells = [UNCHANGED, Cell("ntk", "none"), BIASED]
    cut = runs()
    cut.raw(schemes(cells[0]))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", killed)
        with pytest.raises(KeyboardInterrupt):
            cut.raw(schemes(cells[1]))
    resumed = runs()
    kept = [resumed.raw(schemes(cell)) for cell in cells]
    assert (resumed.ran, resumed.taken) == (2, 1)
    whole = runs(store=None)
    for cell, raw in zip(cells, kept, strict=True):
        same(whole.raw(schemes(cell)), raw)
    assert (whole.ran, whole.taken) == (3, 0)


def test_a_damaged_file_is_computed_anew_and_repaired(runs, schemes, tmp_path):
    good = runs().raw(schemes(UNCHANGED))
    (file,) = (tmp_path / "deep" / "store").glob("*.npz")
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    flipped = []
    for at in [*rng.integers(0, len(whole), 12), *range(0, 60, 5), *range(len(whole) - 120, len(whole), 7)]:
        flipped.append(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], b"nonsense" * 50, *flipped):
        file.write_bytes(damaged)
        repaired = runs()
        repaired._compute = lambda _: good  # it is known what is computed; here only whether it is
        same(repaired.raw(schemes(UNCHANGED)), good)
        assert (repaired.ran, repaired.taken) == (1, 0)
    file.write_bytes(whole[:-30])
    really = runs()
    same(really.raw(schemes(UNCHANGED)), good)
    assert (really.ran, really.taken) == (1, 0)
    again = runs()
    same(again.raw(schemes(UNCHANGED)), good)
    assert (again.ran, again.taken) == (0, 1)


def test_a_file_without_all_that_was_asked_is_computed_anew(runs, schemes, tmp_path):
    good = runs().raw(schemes(UNCHANGED))
    (file,) = (tmp_path / "deep" / "store").glob("*.npz")
    for wrong in (
        {"long": good["long"]},
        good | {"losses": good["losses"][:1]},
        good | {"short": good["short"] * np.nan},
    ):
        np.savez(file, **wrong)
        repaired = runs()
        repaired._compute = lambda _: good
        same(repaired.raw(schemes(UNCHANGED)), good)
        assert (repaired.ran, repaired.taken) == (1, 0)


def test_no_file_is_believed_by_its_name(runs, schemes, tmp_path, capsys):
    made = {cell: runs().raw(schemes(cell)) for cell in (UNCHANGED, BIASED)}
    store = tmp_path / "deep" / "store"
    files = {cell: store / f"{runs()._key(schemes(cell), '')[:32]}.npz" for cell in made}
    whole = {cell: file.read_bytes() for cell, file in files.items()}
    assert set(store.iterdir()) == set(files.values())
    with np.load(files[BIASED]) as archive:
        np.savez(tmp_path / "stronger.npz", **{name: 1.5 * archive[name] for name in archive.files})
    inner = bytearray(whole[BIASED])
    inner[len(inner) // 2] ^= 1
    for planted, why in (
        (whole[UNCHANGED], "computed from something else"),  # another cell's file under this one's name
        ((tmp_path / "stronger.npz").read_bytes(), "no checksum of this version"),
        (bytes(inner), "does not match its checksum"),
    ):
        files[BIASED].write_bytes(planted)
        capsys.readouterr()
        again = runs()
        for cell, raw in made.items():
            same(again.raw(schemes(cell)), raw)
        assert (again.ran, again.taken) == (1, 1)
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"{files[BIASED]}: " in err
        assert why in err
        assert files[BIASED].read_bytes() == whole[BIASED]


def changed_items(subject, **changes):
    return dataclasses.replace(subject, items=dataclasses.replace(subject.items, **changes))


def test_no_other_weights_items_or_scheme_hit_the_same_cell(runs, subject, schemes):
    items, checkpoint = subject.items, subject.checkpoint
    text = items.text.copy()
    text[0, 5] += 1
    counted = items.counted.copy()
    counted[0, 5] = 1 - counted[0, 5]
    choices = items.long.choices.copy()
    choices[0, 0, 1] = choices[0, 0, 2]
    config = dataclasses.replace(checkpoint.config, rms_norm_eps=1e-6)
    narrow = Cell("ntk", "none", temperature=True)
    others = {
        "seed": dataclasses.replace(subject, items=tiny_subject(Path(checkpoint.origin), seed=1).items),
        "text": changed_items(subject, text=text),
        "counted": changed_items(subject, counted=counted),
        "choices": changed_items(subject, long=items.long._replace(choices=choices)),
        "swapped": changed_items(subject, short=items.long, long=items.short),
        "only short": changed_items(subject, long=None),
        "only long": changed_items(subject, short=None, long=items.short),
        "weights": dataclasses.replace(subject, checkpoint=dataclasses.replace(checkpoint, sha256="0" * 64)),
        "config": dataclasses.replace(subject, checkpoint=dataclasses.replace(checkpoint, config=config)),
    }
    keys = {name: runs(other)._key(schemes(BIASED), "") for name, other in others.items()}
    own = runs()
    keys |= {str(cell): own._key(schemes(cell), "") for cell in (UNCHANGED, BIASED, Cell("ntk", "none"), narrow)}
    keys["fault"] = own._key(schemes(BIASED), "bf16_bias")
    keys["interleaved"] = own._key(dataclasses.replace(schemes(BIASED), layout="interleaved"), "")
    keys["phase"] = own._key(dataclasses.replace(schemes(BIASED), phase="float32"), "")
    assert len(set(keys.values())) == len(keys)
    assert keys[str(BIASED)] == runs()._key(schemes(BIASED), "")


def test_a_fault_is_kept_apart_from_the_exact_run(runs, schemes):
    exact, faulty = runs(), runs(note="bf16_positions")
    exact.raw(schemes(BIASED))
    faulty.raw(schemes(BIASED))
    exact.raw(schemes(BIASED), note="other")
    assert (exact.ran, faulty.ran) == (2, 1)
    again = runs()
    again.raw(schemes(BIASED), note="bf16_positions")
    assert (again.ran, again.taken) == (0, 1)  # wherever the note is given


def test_scores_are_those_of_the_raw_results(runs, subject, schemes):
    made = runs(store=None)
    raw, scores = made.raw(schemes(BIASED)), made(schemes(BIASED))
    items = subject.items
    for reach, asked in (("short", items.short), ("long", items.long)):
        odds = probes.log_odds(raw[reach], asked.choices)
        np.testing.assert_array_equal(scores.answers[reach].log_odds, odds)
        for name in contexts.PROBES:
            chosen = asked.probe == contexts.PROBES.index(name)
            expected = [row[here].mean() for row, here in zip(odds, chosen, strict=True)]
            np.testing.assert_allclose(scores.log_odds[reach][name], expected)
    assert raw["losses"].shape == (2, TARGET - 1)
    cut = TRAINED - 1  # the first long token, of index L, is predicted from the one before it
    for reach, part in (("short", slice(None, cut)), ("long", slice(cut, None))):
        expected = [
            np.average(loss[part].astype(float), weights=weight[part])
            for loss, weight in zip(raw["losses"], items.counted, strict=True)
        ]
        np.testing.assert_allclose(scores.loss[reach], expected)


def test_three_programs_serve_every_cell(subject, schemes):
    made = CellRuns(subject)
    for cell in (UNCHANGED, BIASED, Cell("yarn", "alibi", temperature=True)):
        made(schemes(cell))
    assert made.compilations == 3


def test_a_model_that_overflows_is_named(runs, subject, schemes):
    broken = tiny_decoder()
    broken.embedding[...] = broken.embedding[...] * np.float32(np.nan)
    made = CellRuns(dataclasses.replace(subject, checkpoint=dataclasses.replace(subject.checkpoint, model=broken)))
    with pytest.raises(CheckpointError, match="beyond float32"):
        made(schemes(UNCHANGED))


def test_a_store_that_cannot_be_written_is_one_line(runs, schemes, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file: cannot keep finished work there: .*exists"):
        runs(store=tmp_path / "file")(schemes(UNCHANGED))
