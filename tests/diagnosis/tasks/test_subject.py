"""What a model is asked is made from a seed alone, and short ends where training did."""

import dataclasses
import json

import numpy as np
import pytest
from cases import TARGET, TRAINED, save_bundled_model, tiny_subject

from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.contexts import Counts
from rope_jax.diagnosis.tasks.subject import answer_weights, bundled_models, read_bundled_model, short_and_long
from rope_jax.errors import InputError


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_bundled_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("trained", [1, 2, 5, 9])
def test_short_are_the_tokens_below_the_trained_length(trained):
    length = 9
    predicted = np.arange(1, length)  # column t is the loss of token t + 1
    columns = short_and_long(trained)
    assert list(columns) == ["short", "long"]
    short, long = (predicted[part] for part in columns.values())
    np.testing.assert_array_equal(np.concatenate([short, long]), predicted)
    assert (short < trained).all()
    assert (long >= trained).all()
    if trained < length:
        assert long[0] == trained  # the token at index L is the first long one


def test_a_row_of_the_trained_length_is_short_throughout(directory):
    subject = tiny_subject(directory)
    columns = short_and_long(subject.trained_length)
    assert answer_weights(subject.items.short)[:, columns["short"]].sum() == subject.items.short.position.size
    assert answer_weights(subject.items.long)[:, columns["long"]].sum() == subject.items.long.position.size


def test_items_depend_on_seed_and_part_alone(directory):
    def rows(**changes):
        items = read_bundled_model(directory).asked(rows=3, target_length=TARGET, text_rows=2, **changes).items
        return np.concatenate([items.long.tokens, items.text])

    np.testing.assert_array_equal(rows(), rows())
    for changes in ({"seed": 1}, {"part": 1}, {"seed": 1, "part": 1}):
        assert (rows(**changes) != rows()).any()


def test_the_longest_gap_is_the_same_short_and_long(directory):
    items = tiny_subject(directory, rows=60).items
    gaps = [asked.gap[asked.gap > 0] for asked in items.asked.values()]
    most = min(TRAINED // 2, contexts.widest_gap(TRAINED, Counts()))
    assert all(most * 0.8 < one.max() <= most for one in gaps)
    assert gaps[0].mean() == pytest.approx(gaps[1].mean(), rel=0.2)


def test_a_subject_and_more_contexts_for_it(directory):
    subject = tiny_subject(directory, rows=3)
    assert (subject.trained_length, subject.target_length, subject.factor) == (TRAINED, TARGET, 2.0)
    assert subject.num_contexts == len(subject.items.long.tokens) == 3
    more = subject.more_contexts(np.random.default_rng(0), rows=2, length=TARGET)
    assert more.tokens.shape == (2, TARGET)
    assert more.probe.shape[1] == subject.items.long.probe.shape[1]
    assert subject.fit_counted.sum() > 0
    assert subject.fit_text.shape[1] == TRAINED
    none = dataclasses.replace(subject, items=dataclasses.replace(subject.items, short=None, long=None))
    assert none.num_contexts == 0
    assert none.items.asked == {}


def test_what_a_model_was_trained_on_is_what_it_is_asked(directory, tmp_path):
    counts = Counts(pairs=3, bind_questions=2, first_pairs=1, last_pairs=3)
    other = save_bundled_model(tmp_path / "other")
    (other / contexts.TRAINING).write_text(json.dumps({"counts": dataclasses.asdict(counts)}))
    assert read_bundled_model(other).counts == counts
    assert read_bundled_model(directory).counts == Counts()
    asked = read_bundled_model(other).asked(rows=1, target_length=TARGET, text_rows=1)
    assert (np.bincount(asked.items.long.probe[0]) == [3, 2, 4]).all()
    (other / contexts.TRAINING).write_text(json.dumps({"counts": {"distances": 2}}))
    with pytest.raises(InputError, match="counts must give whole numbers for some of bind_questions, first_pairs"):
        read_bundled_model(other)


def test_a_target_must_be_longer(directory):
    with pytest.raises(InputError, match=f"target length {TRAINED} must be above the trained length {TRAINED}"):
        read_bundled_model(directory).asked(rows=1, target_length=TRAINED)


def test_models_are_bundled_by_seed():
    found = [path.name for path in bundled_models()]
    assert found
    assert found == sorted(found)
    assert all(path.is_dir() and path.name.startswith("seed-") for path in bundled_models())
