"""The training of a stand-in: what its phases ask, what is scored, and that what is written can be gone on from."""

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
from rope_jax.subjects import haystacks as hay
from rope_jax.subjects.subject import read_standin

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "experiments"))
train = importlib.import_module("train")

ASKED = train.asked_of(1, extras=False)


@pytest.fixture(autouse=True)
def _parsed():
    flags.FLAGS(["train.py", "--out=unused"])


@pytest.mark.parametrize(("length", "trained"), [(128, [128] * 4), (256, [128] * 4 + [256])])
def test_what_is_learned_first_is_learned_at_the_base_of_short_rows(length, trained):
    phases = train.curriculum(length, steps=10, asked=ASKED)
    assert [phase.trained for phase in phases] == trained
    assert all(max(phase.lengths) <= phase.trained for phase in phases)
    assert phases[-1].counts[0] == ASKED
    assert max(phases[-1].lengths) == length
    for phase in phases:
        for counts in phase.counts:
            for rows in phase.lengths:
                hay.haystacks(np.random.default_rng(0), rows=2, length=rows, counts=counts)  # there is room for them


def test_the_base_is_matched_to_the_length():
    assert train.matched_base(4096) == pytest.approx(10_000)
    assert train.matched_base(256) == pytest.approx(194.3, abs=0.05)


def test_what_is_scored_are_answers_and_copies():
    (*_, phase) = train.curriculum(128, steps=1, asked=ASKED)
    phase = dataclasses.replace(phase, tokens=20 * 128, counts=(ASKED,))
    tokens, kinds = train.batch_of(np.random.default_rng(0), phase, 128)
    assert tokens.shape == (20, 128)
    assert kinds.shape == (20, 127)
    copies = (kinds == train._KINDS.index("copy")).any(axis=1)
    assert copies.sum() == 3
    for row, kind in zip(tokens[~copies], kinds[~copies], strict=True):
        for name, count in (("ret", 6), ("bind", 8), ("ord", 4)):
            at = np.flatnonzero(kind == train._KINDS.index(name))
            assert len(at) == count
            # A key is asked for by one token after the sign of its question, the others by two.
            assert (row[at - (1 if name == "ret" else 2)] == hay.QUESTION[name]).all()
            assert (row[at + 1] >= hay.SYMBOLS[0]).all()


@pytest.mark.slow
def test_steps_lower_the_loss_and_the_model_is_a_subject(tmp_path):
    config = DecoderConfig(hay.VOCAB_SIZE, 32, 64, 1, 2, 2, 16, 1e-5, tie_embeddings=True)
    before = {"command": "an earlier one"}
    run = train.Run(Decoder(config, rngs=nnx.Rngs(0)), before)
    scheme = train.scheme_at(config, 128)
    (*_, phase) = train.curriculum(128, steps=1, asked=ASKED)
    phase = dataclasses.replace(phase, tokens=4 * 112, lengths=(112,))
    rng = np.random.default_rng(0)
    shown = [run.step(scheme, *train.batch_of(rng, phase, 112), 1e-2) for _ in range(2 * train._SHOW_EVERY)]
    assert sum(one is not None for one in shown) == 2
    first, second = run.curve
    assert second["bind"][0] < first["bind"][0]
    run.save(tmp_path, length=128, counts=ASKED)
    record = json.loads((tmp_path / hay.TRAINING).read_text())
    assert record["before"] == before
    assert record["counts"] == dataclasses.asdict(ASKED)
    subject = read_standin(tmp_path).asked(rows=1, text_rows=1)
    assert (subject.trained_length, subject.target_length, subject.counts) == (128, 1024, ASKED)
    rotary = load_checkpoint(tmp_path).positions.main_group.rotary
    assert rotary.base == pytest.approx(train.matched_base(128))
