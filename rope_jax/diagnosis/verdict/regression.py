"""Answer 1: is it the regression described, retrieval kept while order or binding is lost?"""

from collections.abc import Mapping, Sequence

from rope_jax.diagnosis.evaluation.panel import ORDER_WAYS, PRECISION, RETRIEVAL, Panel
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import TEXT, Answer, Margins, Regression, Shift
from rope_jax.diagnosis.verdict.contrasts import Contrasts, Paired, above, few_averaged
from rope_jax.statistics.intervals import Estimate

__all__ = ["regression"]


def regression(deployed: Panel, original: Panel, contrasts: Contrasts, margins: Margins) -> Regression:
    """Returns what was lost on the way from the original at `L` to the deployed configuration at `L'`.

    Args:
      deployed: as it answers.
      original: the unchanged model.
      contrasts: makes the contrasts; where no task is used, the loss of text stands for them.
      margins: what is too little to matter.
    """
    tasks = [task for task in contrasts.used if task in deployed.log_odds.get("long", {})]
    falls = {task: -contrasts.shift(deployed, original, task, was="short") for task in tasks}
    if not contrasts.used:
        falls[TEXT] = Shift(contrasts.estimate(contrasts.loss(deployed, original, "long", was="short")), None)
    judged: dict[str, Answer] = {task: above(fall.log_odds, margins.of(task)) for task, fall in falls.items()}
    lost, kept, open_ = (
        tuple(task for task, answer in judged.items() if answer == wanted) for wanted in ("yes", "no", "not resolved")
    )
    answer = _answer(judged)
    if contrasts.used:
        told = {
            task: f"{wording.named(task)} ({wording.accuracy_change(original, deployed, task)}; "
            f"{wording.signed(fall.log_odds, 'a fall of', 'a rise of')} nats)"
            for task, fall in falls.items()
        }
        sentence = _sentence(answer, judged, told)
    else:
        rise = wording.interval(falls[TEXT].log_odds, sign=True, digits=3)
        why = "the model has learned none of the tasks" if deployed.log_odds else "the model was asked no questions"
        sentence = (
            f"Not resolved: {why}, so that no recommendation can rest on event order, binding or retrieval. Its loss "
            f"of text beyond the trained length is {rise} nats a token from that of the original below it."
        )
    return Regression(answer, lost, kept, open_, falls, _pull(deployed, contrasts), sentence)


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


def _sentence(answer: Answer, judged: Mapping[str, Answer], told: Mapping[str, str]) -> str:
    parts = ["Not resolved"]
    if answer == "yes":
        parts = [f"Yes: retrieval is kept and {_listed([t for t in PRECISION if judged.get(t) == 'yes'])} lost"]
    elif answer == "no":
        lost = judged[RETRIEVAL] == "yes"
        parts = ["No: retrieval itself is lost" if lost else "No: neither event order nor binding is lost"]
    for word, of_word in (("Kept", "no"), ("Lost", "yes"), ("Open", "not resolved")):
        tasks = [told[task] for task, judgement in judged.items() if judgement == of_word]
        parts += [f"{word}: {wording.listed(tasks)}"] if tasks else []
    if RETRIEVAL not in judged:
        parts.append("Retrieval was not learned, so that it cannot be said to be kept")
    if not any(task in judged for task in PRECISION):
        parts.append("Neither event order nor binding was learned, so that neither can be said to be lost")
    return ". ".join(parts) + "."


def _listed(tasks: Sequence[str]) -> str:
    return wording.listed([wording.named(task) for task in tasks])
