"""What a deployment answered is read exactly, or refused by the name of the array, its value and the file."""

import os

import numpy as np
import pytest
from cases import save_bundled_model, tiny_subject
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.cli import main
from rope_jax.diagnosis.evaluation.observed import read_observed
from rope_jax.errors import InputError

LARGEST = float(np.finfo(np.float32).max)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_bundled_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def subject(directory):
    return tiny_subject(directory)


@pytest.fixture(scope="module")
def logits(subject):
    rng = np.random.default_rng(0)
    return {reach: rng.standard_normal(items.choices.shape) for reach, items in subject.items.asked.items()}


def changed(logits, subject, value, *, chosen=True, reach="long"):
    """The logits with one value in another's place, and where that is."""
    places = np.argwhere((subject.items.asked[reach].choices >= 0) == chosen)
    at = tuple(map(int, places[len(places) // 2]))
    array = logits[reach].copy()
    array[at] = value
    return {**logits, reach: array}, list(at)


@settings(deadline=None, max_examples=40)
@given(
    value=st.floats(width=64),
    chosen=st.booleans(),
    reach=st.sampled_from(["short", "long"]),
)
def test_a_value_is_taken_as_it_is_or_named(subject, logits, tmp_path_factory, value, chosen, reach):
    file = tmp_path_factory.mktemp("observed") / "seen.npz"
    given_logits, at = changed(logits, subject, value, chosen=chosen, reach=reach)
    np.savez(file, **given_logits)
    if not chosen or abs(value) <= LARGEST:
        found = read_observed(file, subject)
        assert all(np.isfinite(array).all() and array.dtype == np.float32 for array in found.values())
        assert found[reach][tuple(at)] == (np.float32(value) if chosen else 0)
    else:
        with pytest.raises(InputError) as caught:
            read_observed(file, subject)
        assert str(caught.value) == f"{file}: {reach!r} at {at} is {value}: not finite, or beyond float32"


@pytest.mark.parametrize("value", [1e300, -1e300, 3.5e38, np.nan, np.inf, -np.inf])
def test_values_that_would_become_no_number_are_refused(subject, logits, tmp_path, value):
    file = tmp_path / "seen.npz"
    np.savez_compressed(file, **changed(logits, subject, value)[0])
    with pytest.raises(InputError, match=f"'long' at .* is {value}: not finite, or beyond float32".replace("+", r"\+")):
        read_observed(file, subject)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda x: x.astype(np.int32), "got int32"),
        (lambda x: x.astype("m8[s]"), r"got timedelta64\[s\]"),
        (lambda x: x.astype(np.complex64), "got complex64"),
        (lambda x: x > 0, "got bool"),
        (lambda x: x[:-1], "needs floats"),
        (lambda x: x[..., None], "needs floats"),
        (lambda x: x.astype(str), "holds <U32, not numbers"),
    ],
)
def test_other_types_and_shapes_are_refused(subject, logits, tmp_path, change, what):
    file = tmp_path / "seen.npz"
    np.savez(file, short=logits["short"], long=change(logits["long"]))
    with pytest.raises(InputError, match=what) as caught:
        read_observed(file, subject)
    assert str(file) in str(caught.value)


def test_the_command_refuses_a_pipe_and_a_plain_array_in_one_line(directory, logits, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.npz")
    np.save(tmp_path / "plain.npy", logits["long"])
    for name, what in (
        ("pipe.npz", "not a regular file"),
        ("plain.npy", "not a readable .npz archive: it is a .npy array"),
    ):
        argv = ["diagnose", str(directory), f"--observed={tmp_path / name}", f"--out={tmp_path / 'out'}"]
        assert main([*argv, "--contexts=3", "--target_length=384", "--text_rows=2"]) == 2
        err = capsys.readouterr().err
        assert str(tmp_path / name) in err
        assert what in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
