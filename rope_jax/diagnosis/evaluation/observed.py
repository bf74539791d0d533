"""A deployment that is seen through its answers only: what it is asked, and how far its answers lie from each run."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rope_jax.diagnosis.evaluation import probes
from rope_jax.diagnosis.tasks.array_files import read_float_npz
from rope_jax.diagnosis.tasks.subject import Reach, Subject
from rope_jax.errors import InputError


def write_items(file: Path, subject: Subject) -> None:
    """Writes the contexts as `.npz`, for a deployment to answer: tokens, positions and choices, short and long.

    What the deployment gives back is `short` and `long`, `[contexts, questions, 8]`: the logit (or log probability) of
    each choice as the token after `position`; where a choice is -1 any number.

    Raises:
      InputError: if the model answers no questions.
    """
    if not subject.items.asked:
        raise InputError("this model answers no questions, so there are no items to write")
    arrays = {
        f"{reach}_{name}": getattr(items, name)
        for reach, items in subject.items.asked.items()
        for name in ("tokens", "position", "choices")
    }
    with open(file, "wb") as opened:
        np.savez(opened, **arrays)  # type: ignore[arg-type]


def read_observed(file: Path, subject: Subject) -> dict[Reach, np.ndarray]:
    """Returns the logits that a deployment gave to the items of `write_items`.

    Raises:
      InputError: if the file is not readable, or its arrays are not what was asked for: floats of the shape of the
        choices, finite and within float32 wherever there is a choice.
    """
    choices = {reach: items.choices for reach, items in subject.items.asked.items()}
    if not choices:
        raise InputError(f"{file}: this model answers no questions, so nothing can have been observed of it")
    given = read_float_npz(file, {reach: asked.shape for reach, asked in choices.items()})
    return checked({reach: given[reach] for reach in choices}, subject, origin=str(file))


def checked(given: Mapping[Reach, np.ndarray], subject: Subject, *, origin: str) -> dict[Reach, np.ndarray]:
    """Returns logits of a deployment as float32, 0 where there is no choice; `origin` says where they come from.

    Raises:
      InputError: if they are not what `write_items` asks for.
    """
    result: dict[Reach, np.ndarray] = {}
    for reach, items in subject.items.asked.items():
        asked = items.choices
        if reach not in given or np.shape(given[reach]) != asked.shape:
            raise InputError(f"{origin}: {reach!r} must hold the logits of all choices, of shape {asked.shape}")
        if np.asarray(given[reach]).dtype.kind not in "fiu":
            raise InputError(f"{origin}: {reach!r} must hold numbers, got {np.asarray(given[reach]).dtype}")
        logits = np.where(asked >= 0, given[reach], 0)
        wrong = np.argwhere(~(np.abs(logits) <= np.finfo(np.float32).max))
        if len(wrong):
            at = tuple(map(int, wrong[0]))
            raise InputError(f"{origin}: {reach!r} at {list(at)} is {logits[at]}: not finite, or beyond float32")
        result[reach] = logits.astype(np.float32)
    return result


def nearest(
    observed: Mapping[Reach, np.ndarray], runs: Mapping[str, Mapping[Reach, np.ndarray]], subject: Subject
) -> dict[str, float]:
    """Returns how far each run's log-odds lie from the observed ones, mean nats a question, nearest first.

    Args:
      observed: logits `[contexts, questions, 8]` of the deployment, by reach.
      runs: the same of runs, exact and with faults, by name.
      subject: whose items they are.
    """

    def log_odds(logits: Mapping[Reach, np.ndarray]) -> np.ndarray:
        asked = subject.items.asked.items()
        return np.concatenate([probes.log_odds(logits[reach], items.choices).ravel() for reach, items in asked])

    seen = log_odds(observed)
    distances = {name: float(np.abs(log_odds(logits) - seen).mean()) for name, logits in runs.items()}
    return dict(sorted(distances.items(), key=lambda item: item[1]))
