"""Answer 1: is it the regression described, retrieval kept while order or binding is lost?"""

from collections.abc import Mapping

from rope_jax.diagnosis.evaluation.panel import ORDER_WAYS, PRECISION, RETRIEVAL, Panel
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import Answer, Margins, Regression, Shift
from rope_jax.diagnosis.verdict.contrasts import TEXT, Contrasts, Paired, above, few_averaged
from rope_jax.statistics.intervals import Estimate

__all__ = ["margin_of", "regression"]


def margin_of(task: str, margins: Margins) -> float:
    """Returns by how much a task may change unheeded, in its own unit."""
    return {RETRIEVAL: margins.retrieval, TEXT: margins.long_loss}.get(task, margins.gain)


def regression(deployed: Panel, original: Panel, contrasts: Contrasts, margins: Margins) -> Regression:
    """Returns what was lost on the way from the original at `L` to the deployed configuration at `L'`.

    Args:
      deployed: as it answers.
      original: the unchanged model.
      contrasts: makes the contrasts; where no task is used, the loss of text stands for them.
      margins: what is too little to matter.
    """
    tasks = [task for task in contrasts.used if task in deployed.log_odds.get("long", {})]
    falls = {task: _negative(contrasts.shift(deployed, original, task, was="short")) for task in tasks}
    if not contrasts.used:
        falls[TEXT] = Shift(contrasts.estimate(contrasts.loss(deployed, original, "long", was="short")), None)
    judged: dict[str, Answer] = {task: above(fall.log_odds, margin_of(task, margins)) for task, fall in falls.items()}
    lost, kept, open_ = (
        tuple(task for task, answer in judged.items() if answer == wanted) for wanted in ("yes", "no", "not resolved")
    )
    answer = _answer(judged)
    return Regression(
        answer,
        lost,
        kept,
        open_,
        falls,
        _pull(deployed, contrasts),
        _sentence(answer, judged, falls, deployed, original),
    )


def _answer(judged: Mapping[str, Answer]) -> Answer:
    precision = [judged[task] for task in PRECISION if task in judged]
    if RETRIEVAL not in judged or not precision:
        return "not resolved"
    if judged[RETRIEVAL] == "yes" or all(answer == "no" for answer in precision):
        return "no"
    return "yes" if judged[RETRIEVAL] == "no" and "yes" in precision else "not resolved"


def _pull(deployed: Panel, contrasts: Contrasts) -> Estimate | None:
    """Returns the log-odds toward the nearer event: it is right when the last is asked for, wrong when the first is."""
    first, last = (deployed.log_odds.get("long", {}).get(way) for way in ORDER_WAYS)
    if first is None or last is None or "order" not in contrasts.used:
        return None
    return contrasts.estimate(Paired(few_averaged((last - first) / 2)))


def _negative(value: Shift) -> Shift:
    return Shift(-value.log_odds, None if value.accuracy is None else -value.accuracy)


def _sentence(
    answer: Answer, judged: Mapping[str, Answer], falls: Mapping[str, Shift], deployed: Panel, original: Panel
) -> str:
    if TEXT in judged:
        rise = wording.interval(falls[TEXT].log_odds, sign=True, digits=3)
        return (
            "Not resolved: the model answers no questions here, so that order and retrieval are not measured. Its loss "
            f"of text beyond the trained length is {rise} nats a token from that of the original below it."
        )

    def said(wanted: Answer) -> str:
        return wording.listed(
            [
                f"{task} ({wording.accuracy_change(original, 'short', deployed, task)}; a fall of "
                f"{wording.interval(falls[task].log_odds)} nats)"
                for task, of_task in judged.items()
                if of_task == wanted
            ]
        )

    parts = [f"{words}: {said(wanted)}" for wanted, words in _WORDS if said(wanted)]
    missing = [] if RETRIEVAL in judged else ["retrieval was not learned, so that it cannot be said to be kept"]
    if not any(task in judged for task in PRECISION):
        missing.append("neither order nor binding was learned, so that neither can be said to be lost")
    return f"{_opening(answer, judged)}. {'. '.join(part[:1].upper() + part[1:] for part in [*parts, *missing])}."


_WORDS: tuple[tuple[Answer, str], ...] = (("no", "kept"), ("yes", "lost"), ("not resolved", "open"))


def _opening(answer: Answer, judged: Mapping[str, Answer]) -> str:
    lost = wording.listed([task for task in PRECISION if judged.get(task) == "yes"])
    if answer == "yes":
        return f"Yes: retrieval is kept and {lost} lost"
    if answer == "no":
        return "No: retrieval itself is lost" if judged[RETRIEVAL] == "yes" else "No: neither order nor binding is lost"
    return "Not resolved"
