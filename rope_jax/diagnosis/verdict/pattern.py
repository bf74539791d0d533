"""The pattern of a failure: which way wrong answers lean, in words with the numbers they rest on."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64

from rope_jax.biases import bucket_starts
from rope_jax.diagnosis.evaluation.panel import LIMIT
from rope_jax.diagnosis.evaluation.probes import Answers
from rope_jax.diagnosis.tasks.contexts import FIRST, LAST, Contexts
from rope_jax.diagnosis.tasks.registry import index_of
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.contrasts import few_averaged
from rope_jax.statistics import intervals
from rope_jax.statistics.intervals import Estimate
from rope_jax.statistics.multiplicity import simultaneous_confidence

__all__ = ["pattern"]

_FEW = 0.05  # share of wrong answers below which nothing is said
_LEANS = 4  # what is asked of the answers at most, all of it with the stated confidence


def pattern(
    answers: Sequence[Answers],
    items: Contexts,
    used: Sequence[str],
    *,
    table: Float[np.ndarray, "..."] | None = None,
    max_distance: int | None = None,
    confidence: float = intervals.CONFIDENCE,
) -> str:
    """Returns which way the wrong answers of a configuration lean, "" where there are too few.

    Four things are asked of them, where they apply: do answers to order questions name the nearer event more often
    than not, whichever was asked for; is order better between events in different buckets of a table; do answers to
    binding questions lie after or before the item asked for; do answers get worse with distance. What is said holds
    with the confidence, all together.

    Args:
      answers: at the target length, one a model.
      items: the contexts.
      used: tasks that were learned.
      table: of a bucketed bias, `[heads, buckets]`; nothing is said of its edges without it.
      max_distance: of that table, tokens, where its last bucket begins to hold everything.
      confidence: that all that is said holds.
    """
    tasks = [task for task in used if (items.probe == index_of(task)).any()]
    questions = np.isin(items.probe, [index_of(task) for task in tasks])
    if not tasks or np.mean([1 - one.right[questions].mean() for one in answers]) < _FEW:
        return ""
    each, said, asked = simultaneous_confidence(_LEANS, confidence), [], []

    def estimate(value: Callable[[Answers], np.ndarray], unseen: float = 0.0) -> Estimate:
        return _estimate(np.stack([value(one) for one in answers]), each, unseen)

    if "order" in tasks:
        asked.append("toward near events")
        if lean := _lean(estimate(lambda one: _near_share(one, items), 1.0), 0.5):
            share, nearer = lean
            said.append(
                f"answers to questions of event order name the {'nearer' if nearer else 'farther'} event in "
                f"{_percent(share)}, the first and the last asked for alike (50 % without a pull)"
            )
        if table is not None and np.size(table) and max_distance is not None:
            asked.append("across bucket edges")
            starts = np.asarray(bucket_starts(int(np.shape(table)[-1]), max_distance))
            lean = _lean(estimate(lambda one: _step(one, items, starts), LIMIT))
            if lean is not None and lean[1]:
                by = wording.interval(lean[0])
                said.append(f"event order is better between events in different buckets than in one, by {by} nats")
    if "binding" in tasks:
        asked.append("along the items after a marker")
        if lean := _lean(estimate(lambda one: _drift(one, items), 1.0)):
            places, after = lean
            said.append(
                f"answers to binding questions lie {wording.interval(places)} places "
                f"{'after' if after else 'before'} the item asked for, on average"
            )
    asked.append("with distance")
    if lean := _lean(estimate(lambda one: _slope(one, items, tasks))):
        slope, rises = lean
        turns = "rise" if rises else "fall"
        said.append(f"log-odds {turns} by {wording.interval(slope)} nats with each doubling of the distance")
    if not said:
        return f"Wrong answers lean no way that is significant (asked: {wording.listed(asked)})."
    text = "; ".join(said)
    return f"{text[:1].upper()}{text[1:]}."


def _near_share(one: Answers, items: Contexts) -> Float64[np.ndarray, " rows"]:
    """Returns the share of order answers that name the nearer event, both ways of asking counted alike.

    The nearer of two events is the later one: right where the last is asked for, wrong where the first is.
    """
    order = items.probe == index_of("order")
    of_first = _row_mean(one.picked != 0, order & (items.asked == FIRST))
    return (of_first + _row_mean(one.picked == 0, order & (items.asked == LAST))) / 2


def _step(one: Answers, items: Contexts, starts: np.ndarray) -> Float64[np.ndarray, " rows"]:
    """Returns by how much order is better between events in different buckets, nats."""
    order = items.probe == index_of("order")
    near, far = (np.searchsorted(starts, at, side="right") for at in (items.distance, items.distance + items.gap))
    return _row_mean(one.log_odds, order & (near != far)) - _row_mean(one.log_odds, order & (near == far))


def _drift(one: Answers, items: Contexts) -> Float64[np.ndarray, " rows"]:
    """Returns how many places after the item asked for the answer stands, mean of the binding questions of a row."""
    chosen = np.take_along_axis(items.choice_offsets, one.picked[..., None], axis=-1)[..., 0]
    return _row_mean(chosen - items.asked, items.probe == index_of("binding"))


def _slope(one: Answers, items: Contexts, tasks: Sequence[str]) -> Float64[np.ndarray, " rows"]:
    """Returns how log-odds change with each doubling of the distance, nats: a slope within each task."""
    doublings = np.log2(np.maximum(items.distance, 1))
    moved, spread = np.zeros(len(doublings)), 0.0
    for task in tasks:
        asked = items.probe == index_of(task)
        x = np.where(asked, doublings - doublings[asked].mean(), 0.0)
        y = np.where(asked, one.log_odds - one.log_odds[asked].mean(), 0.0)
        moved, spread = moved + (x * y).sum(axis=1), spread + float((x * x).sum())
    return moved * len(moved) / spread if spread > 0 else moved * np.nan


def _row_mean(values: np.ndarray, asked: Bool[np.ndarray, "rows Q"]) -> Float64[np.ndarray, " rows"]:
    """Returns the mean of the questions asked in each row; not a number where there are none."""
    counts = asked.sum(axis=1)
    sums = np.where(asked, values, 0).sum(axis=1).astype(np.float64)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _estimate(rows: Float64[np.ndarray, "models rows"], confidence: float, unseen: float) -> Estimate:
    """Returns the mean over models and rows; rows in which it cannot be told are left out."""
    rows = rows[:, np.isfinite(rows).all(axis=0)]
    if not rows.size:
        return Estimate(0.0, None, None)
    rows = few_averaged(rows)
    alike = bool((rows == rows[:, :1]).all())
    return intervals.clustered(rows, confidence=confidence, unseen=unseen if alike else 0.0)


def _lean(value: Estimate, none: float = 0.0) -> tuple[Estimate, bool] | None:
    """Returns a value, mirrored where it lies below `none`, and whether it lies above; None where neither is known.

    Rows that all agree tell no spread.
    """
    if value.low is None or value.high is None or value.low == value.high:
        return None
    if value.low > none:
        return value, True
    mirrored = Estimate(2 * none - value.mean, 2 * none - value.high, 2 * none - value.low)
    return (mirrored, False) if value.high < none else None


def _percent(share: Estimate) -> str:
    share = share.within(0.0, 1.0)
    return f"{100 * share.mean:.0f} % [{100 * (share.low or 0):.0f}, {100 * (share.high or 0):.0f}]"
