"""The training of a test model: what its phases ask, what is scored, and that what is written can be gone on from."""

import dataclasses
import importlib
import json
import pathlib
import sys

import numpy as np
import pytest
from absl import flags
from flax import nnx

from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.subject import read_bundled_model

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "experiments"))
train = importlib.import_module("train")
curriculum = importlib.import_module("curriculum")

ASKED = curriculum.asked_of(1)


@pytest.fixture(autouse=True)
def _parsed():
    flags.FLAGS(["train.py", "--out=unused"])


@pytest.mark.parametrize(
    ("length", "trained"),
    [(128, [128] * 4), (256, [128] * 5 + [256]), (4096, [128] * 5 + [512, 2048, 4096])],
)
def test_what_is_learned_first_is_learned_at_the_base_of_short_rows(length, trained):
    asked = curriculum.asked_of(1, length)
    phases = curriculum.curriculum(length, steps=10, asked=asked)
    assert [phase.trained for phase in phases] == trained
    assert all(max(phase.lengths) <= phase.trained for phase in phases)
    assert phases[-1].counts[0] == asked
    assert max(phases[-1].lengths) == length
    for phase in phases:
        for counts in phase.counts:
            for rows in phase.lengths:
                rng = np.random.default_rng(0)
                # There is room.
                made = contexts.contexts(rng, rows=2, length=rows, largest_gap=phase.reach, counts=counts)
                assert made.gap[made.gap > 0].min() >= counts.smallest_gap


def test_the_base_is_matched_to_the_length():
    assert curriculum.matched_base(4096) == pytest.approx(10_000)
    assert curriculum.matched_base(256) == pytest.approx(194.3, abs=0.05)


def test_what_is_scored_are_answers_and_copies():
    (*_, phase) = curriculum.curriculum(128, steps=1, asked=ASKED)
    phase = dataclasses.replace(phase, tokens=20 * 128, counts=(ASKED,))
    tokens, kinds = curriculum.batch_of(np.random.default_rng(0), phase, 128)
    assert tokens.shape == (20, 128)
    assert kinds.shape == (20, 127)
    copies = (kinds == curriculum.KINDS.index("copy")).any(axis=1)
    assert copies.sum() == 3
    for row, kind in zip(tokens[~copies], kinds[~copies], strict=True):
        for name, count in (("retrieval", 6), ("binding", 8), ("order", 4)):
            at = np.flatnonzero(kind == curriculum.KINDS.index(name))
            assert len(at) == count
            # A key is asked for by one token after the sign of its question, the others by two.
            signs = row[at - (1 if name == "retrieval" else 2)].tolist()
            wanted = ["first", "first", "last", "last"] if name == "order" else [name] * count
            assert sorted(signs) == [contexts.QUESTION[sign] for sign in wanted]
            assert (row[at + 1] >= contexts.SYMBOLS[0]).all()


def test_order_is_learned_one_way_before_both():
    phases = [phase for phase in curriculum.curriculum(256, steps=1, asked=ASKED) if phase.judged == ("order",)]
    ways = [[(counts.first_pairs, counts.last_pairs) for counts in phase.counts] for phase in phases]
    assert ways == [[(4, 0), (8, 0)], [(2, 2), (4, 4)]]


def test_batches_are_the_same_whoever_makes_them():
    (phase, *_) = curriculum.curriculum(128, steps=1, asked=ASKED, tokens=210)
    phase = dataclasses.replace(phase, steps=5)
    alone, helped = curriculum.Batches(3, 1), curriculum.Batches(3, 1, workers=1)
    for one, other in zip(alone.of_phase(2, phase), helped.of_phase(2, phase), strict=True):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)
    (first, *_), (second, *_) = alone.of_phase(2, phase), alone.of_phase(3, phase)
    assert not np.array_equal(first[0], second[0])
    helped.close()


def test_a_step_takes_as_many_rows_at_once_as_divide_it(monkeypatch):
    config = DecoderConfig(contexts.VOCAB_SIZE, 1024, 2048, 6, 8, 8, 128, 1e-5, tie_embeddings=True)
    at_once = lambda *shapes: [train.rows_at_once(*shape, config) for shape in shapes]  # noqa: E731
    assert at_once((128, 32), (390, 32), (48, 112)) == [8, 6, 1]
    monkeypatch.setattr(train.jax, "default_backend", lambda: "gpu")
    assert at_once((73, 112), (8, 4096), (14, 4096), (1, 2**20)) == [73, 8, 7, 1]


@pytest.mark.parametrize("number", [0, 5])
def test_a_training_that_is_cut_off_leaves_what_its_last_phase_knew(number, tmp_path):
    config = DecoderConfig(contexts.VOCAB_SIZE, 16, 32, 1, 1, 1, 16, 1e-5, tie_embeddings=True)
    run = train.Run(Decoder(config, rngs=nnx.Rngs(0)))
    asked = curriculum.asked_of(1, 4096)
    phase = dataclasses.replace(curriculum.curriculum(4096, steps=1, asked=asked)[number], tokens=512)
    phases = {number: phase, number + 1: phase}
    train.train(run, curriculum.Batches(0), phases, lambda phase: run.save(tmp_path, phase), minutes=1e-6)
    run.close()
    assert json.loads((tmp_path / contexts.TRAINING).read_text())["steps"] == 1
    subject = read_bundled_model(tmp_path).asked(rows=2, text_rows=1)
    assert subject.trained_length == phase.trained == (128 if number == 0 else 512)
    gaps = subject.items.short.gap[subject.items.short.gap > 0]
    assert gaps.min() >= (16 if number == 0 else 32)
    assert (gaps < 256).any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--length=4096", "--tokens=1000"], "--tokens=1000 is too few for a row of 4096 tokens"),
        (["--minutes=0"], "--minutes must be a number above 0"),
        (["--first_phase=6"], "--first_phase must be from 0 to 5"),
    ],
)
def test_bad_requests_are_one_line(arguments, said, tmp_path):
    flags.FLAGS(["train.py", f"--out={tmp_path}", *arguments])
    try:
        with pytest.raises(SystemExit, match=said):
            train.main(["train.py"])
    finally:
        flags.FLAGS(["train.py", f"--out={tmp_path}", "--length=256", "--tokens=5376", "--first_phase=0"])
        flags.FLAGS["minutes"].value = None


@pytest.mark.slow
def test_steps_lower_the_loss_and_the_model_is_a_subject(tmp_path):
    config = DecoderConfig(contexts.VOCAB_SIZE, 32, 64, 1, 2, 2, 16, 1e-5, tie_embeddings=True)
    before = {"command": "an earlier one"}
    run = train.Run(Decoder(config, rngs=nnx.Rngs(0)), before)
    scheme = train.scheme_at(config, 128)
    (*_, phase) = curriculum.curriculum(128, steps=2 * train._SHOW_EVERY, asked=ASKED)
    phase = dataclasses.replace(phase, tokens=4 * 112, lengths=(112,))
    run.compile_ahead([phase])
    shown = [run.step(scheme, *batch, 1e-2) for batch in curriculum.Batches(0).of_phase(0, phase)]
    assert sum(one is not None for one in shown) == 2
    first, second = run.curve
    assert second["binding"][0] < first["binding"][0]
    run.save(tmp_path, phase)
    run.close()
    record = json.loads((tmp_path / contexts.TRAINING).read_text())
    assert record["before"] == before
    assert record["counts"] == dataclasses.asdict(ASKED)
    subject = read_bundled_model(tmp_path).asked(rows=1, text_rows=1)
    assert (subject.trained_length, subject.target_length, subject.counts) == (128, 1024, ASKED)
    rotary = load_checkpoint(tmp_path).positions.main_group.rotary
    assert rotary.base == pytest.approx(curriculum.matched_base(128))
