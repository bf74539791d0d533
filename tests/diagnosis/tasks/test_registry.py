"""Tasks by name: what the package derives from their records, and one that comes from outside of it."""

import numpy as np
import pytest

from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.tasks.contexts import FIRST, LAST, PROBES, Contexts, chance, contexts
from rope_jax.diagnosis.tasks.registry import TASKS, Task, index_of, names, register
from rope_jax.errors import InputError


@pytest.fixture
def colour():
    """A task that the package does not know, as a user adds it."""
    yield register(Task("colour", "colour", "the colour that stood with a name", "retrieval", chance=lambda count: 0.3))
    del TASKS["colour"]


def test_the_tasks_of_the_package():
    assert PROBES == names() == ("retrieval", "binding", "order")
    assert names("retrieval") == ("retrieval",)
    assert names("precision") == ("binding", "order")
    assert [index_of(name) for name in PROBES] == [0, 1, 2]
    assert set(TASKS["order"].ways) == {FIRST, LAST}
    assert all(name == task.name and task.label and task.explanation for name, task in TASKS.items())
    assert TASKS["order"].chance(2) == 0.5


def test_the_numbers_of_tasks_are_those_in_contexts():
    made = contexts(np.random.default_rng(0), rows=2, length=192)
    assert (np.bincount(made.probe.ravel()) == [12, 16, 8]).all()
    assert probes.asked_probes(made) == PROBES


def test_a_task_from_outside_is_asked_beside_the_others(colour):
    made = contexts(np.random.default_rng(0), rows=3, length=192)
    # Four of the questions about keys become those of the new task; nothing else says what a question is of.
    probe = made.probe.copy()
    for row in probe:
        row[np.flatnonzero(row == index_of("retrieval"))[:4]] = index_of("colour")
    asked = made._replace(probe=probe)
    assert isinstance(asked, Contexts)
    assert names() == (*PROBES, "colour")
    assert names("retrieval") == ("retrieval", "colour")
    assert probes.asked_probes(asked) == (*PROBES, "colour")
    right = probe == index_of("colour")
    np.testing.assert_array_equal(probes.by_row(right, asked, "colour"), 1)
    np.testing.assert_array_equal(probes.by_row(right, asked, "retrieval"), 0)
    assert chance(asked, "colour") == pytest.approx(0.3)


def test_what_is_no_task_is_refused(colour):
    with pytest.raises(InputError, match="there is a task 'colour' already"):
        register(colour)
    with pytest.raises(InputError, match="must be one word"):
        register(Task("two words", "", "", "precision"))
    with pytest.raises(InputError, match="unknown task 'ord'; there are: retrieval, binding, order, colour"):
        index_of("ord")
