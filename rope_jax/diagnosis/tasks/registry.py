"""Every task by name: what it asks, what it is asked for, and how often a guess is right.

A task of your own is one record, and questions about it in the form of `Contexts`, beside the others or alone:

    register(Task("colour", "colour", "the colour that stood with a name", role="retrieval"))
    probe = np.full((rows, questions), index_of("colour"), np.int32)
    asked = Contexts(tokens, probe, position, choices, distance, gap, asked, choice_offsets)

`position` is that of the token before the answer, `choices` holds the answer and then its distractors; what does not
apply to the task is 0. Put such contexts, short and long, into the `Items` of a `Subject`: they are run, gated and
judged like those of the package, and reports take label and explanation from the record. Starts without JAX.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from rope_jax import named_records
from rope_jax.errors import InputError

__all__ = ["PROBES", "TASKS", "Role", "Task", "index_of", "names", "register"]

Role = Literal["retrieval", "precision"]
"""Whether a task asks for what stands somewhere, or for where something stands."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One task, and how it is shown.

    Attributes:
      name: as flags and reports have it.
      label: for plots and tables.
      explanation: one line, for help and reports.
      role: "precision" tasks decide what broke and what mends it; "retrieval" must be kept.
      chance: accuracy of a guess, from the number of choices of a question.
      ways: ways of asking that are reported apart too, by `Contexts.asked`; empty where there is one.
    """

    name: str
    label: str
    explanation: str
    role: Role
    chance: Callable[[int], float] = lambda choices: 1 / choices
    ways: Mapping[int, str] = dataclasses.field(default_factory=dict)


TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Adds a task under its name, after those that are there, and returns it.

    Raises:
      InputError: if the name is taken, or is no word.
    """
    return named_records.add(TASKS, task.name, task, kind="task")


def names(role: Role | None = None) -> tuple[str, ...]:
    """Returns the tasks of a role in the order in which they were registered, or all where None.

    >>> names("precision")
    ('binding', 'order')
    """
    return tuple(name for name, task in TASKS.items() if role in (None, task.role))


def index_of(name: str) -> int:
    """Returns the number that stands for a task in `Contexts.probe`.

    Raises:
      InputError: if there is no such task.

    >>> index_of("binding")
    1
    """
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; there are: {', '.join(TASKS)}")
    return list(TASKS).index(name)


for _record in (
    Task("retrieval", "retrieval", "the value that stands with a key", role="retrieval"),
    Task("binding", "n-th item", "which item stands n-th after a marker", role="precision"),
    Task(
        "order", "event order", "which of two events came first, or last", role="precision",
        ways={1: "order, first asked", 2: "order, last asked"},
    ),
):  # fmt: skip
    register(_record)

PROBES = names()
"""The tasks that the package's own contexts ask, synthetic and in English."""
