"""The verdict on a deployed configuration: six answers, each always there, each with its interval."""

import dataclasses
from collections.abc import Callable, Sequence

from rope_jax.diagnosis.evaluation.panel import RETRIEVAL, Evidence, Option, Panel
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import Answer, Change, Margins, Place, Shipping, Verdict
from rope_jax.diagnosis.verdict.cause import cause
from rope_jax.diagnosis.verdict.contrasts import Contrasts, above
from rope_jax.diagnosis.verdict.implementation import implementation, repair_comes_first
from rope_jax.diagnosis.verdict.next_steps import next_steps
from rope_jax.diagnosis.verdict.ranking import Contest, contest
from rope_jax.diagnosis.verdict.regression import regression
from rope_jax.diagnosis.verdict.shipping import criteria, shipping
from rope_jax.statistics.intervals import CONFIDENCE

__all__ = ["NOTHING", "REPAIR", "decide"]

REPAIR = "repair"
NOTHING = "nothing: no change was tried"


def decide(
    evidence: Evidence, *, margins: Margins | None = None, confidence: float = CONFIDENCE, seed: int = 0
) -> Verdict:
    """Returns the verdict on one deployed configuration.

    From five models on they are units beside the contexts; fewer are averaged, and the verdict speaks of them alone.

    Args:
      evidence: what every configuration did; outcomes of one number are the same context in all of them.
      margins: what is too little to matter; those of `Margins` where None.
      confidence: of every interval; `multiplicity.simultaneous_confidence` gives that of several deployed ones.
      seed: of the resampling; the same seed gives the same verdict.

    Raises:
      ValueError: if there are neither answers nor text, or if `confidence` is not between 0 and 1.
    """
    margins = margins or Margins()
    contrasts = Contrasts(evidence.used, confidence, seed)
    if not contrasts.together(evidence.base, evidence.original).units:
        raise ValueError("a verdict needs answers to questions that were learned, or text")

    def may_ship(words: str, after: Panel) -> Shipping:
        return shipping(words, criteria(after, evidence.base, evidence.original, contrasts, margins))

    changes = tuple(_change(option, evidence, contrasts, margins, may_ship) for option in evidence.options)
    lost = {change.configuration: change.retrieval_lost for change in changes}
    result = contest(evidence, lost, contrasts, retrieval_margin=margins.retrieval)
    places = result.rankings[contrasts.decisive].places
    named = [(place.option, place.change) for place in places[:1]]
    best = next((one for one in changes if (one.option, one.words) in named), None)
    found = implementation(evidence, contrasts, margins)
    repair_first = repair_comes_first(found, margins)
    open_ = () if best is None else _open(changes, best, places, result, confidence)
    if repair_first or best is None:
        ship = may_ship("repair the implementation" if repair_first else "change nothing", evidence.base)
    else:
        ship = may_ship(best.words, evidence.changed[best.configuration])
    verdict = Verdict(
        deployed=evidence.deployed,
        contexts=_contexts(evidence.base, evidence.used),
        confidence=confidence,
        regression=regression(evidence.as_deployed, evidence.original, contrasts, margins),
        price=contrasts.price(evidence.as_deployed, evidence.original),
        implementation=found,
        first=REPAIR if repair_first else NOTHING if best is None else best.words,
        probability_first=1.0 if repair_first or best is None else places[0].probability_first,
        rankings=result.rankings,
        changes=changes,
        cause=cause(evidence, contrasts, margins),
        shipping=ship,
        next=(),
        settled=not open_ and found.status != "repair may help",
        open=open_,
    )
    needs = _regression_needs(verdict.regression.open, evidence, contrasts, margins)
    return dataclasses.replace(verdict, next=tuple(next_steps(verdict, best, repair_first, needs)))


def _contexts(panel: Panel, used: Sequence[str]) -> int:
    """Returns how many contexts a panel was asked, or rows of text where it was asked none."""
    asked = panel.log_odds.get("long", {})
    values = [asked[task] for task in used if task in asked] or [panel.loss["long"]]
    return values[0].shape[1]


def _change(
    option: Option,
    evidence: Evidence,
    contrasts: Contrasts,
    margins: Margins,
    may_ship: Callable[[str, Panel], Shipping],
) -> Change:
    after, base = evidence.changed[option.configuration], evidence.base
    ship = may_ship(option.words, after)
    retrieval: Answer = "not resolved"
    if RETRIEVAL in evidence.used:
        retrieval = above(contrasts.estimate(contrasts.gain(base, after, RETRIEVAL)), margins.retrieval)
    return Change(
        option=option.number,
        words=option.words,
        configuration=option.configuration,
        contexts=contrasts.together(after, base).units,
        gain={task: contrasts.shift(after, base, task) for task in evidence.used},
        together=contrasts.shift(after, base, contrasts.decisive),
        retrieval_lost=retrieval,
        against_deployed=contrasts.price(after, base),
        against_original=contrasts.price(after, evidence.original),
        ships=ship.answer,
        decides=ship.decides,
    )


def _regression_needs(tasks: Sequence[str], evidence: Evidence, contrasts: Contrasts, margins: Margins) -> str:
    """Returns how many contexts would tell of every task whether it is kept, in words."""
    falls = {
        task: contrasts.fall(evidence.original, evidence.as_deployed, task) for task in tasks if task in evidence.used
    }
    needed = [contrasts.needed(fall, margins.of(task)) for task, fall in falls.items()]
    known = [number for number in needed if number is not None]
    return wording.number(max(known), "contexts") if known else ""


def _open(
    changes: Sequence[Change], best: Change, places: Sequence[Place], result: Contest, confidence: float
) -> tuple[str, ...]:
    """Returns the changes that more contexts could put first, the one that is first now among them."""
    if len(places) < 2:
        return ()
    may_lose = result.may_lose_retrieval.get(best.configuration, 0.0) > 1 - confidence
    demotable = may_lose and best.retrieval_lost == "not resolved"
    if places[0].probability_first >= confidence and not (demotable and not places[1].demoted):
        return ()
    contenders = [one for one in changes if one.configuration in result.may_lead]
    chance = (1 - confidence) / max(1, len(contenders))
    return tuple(
        one.configuration
        for one in contenders
        if one.configuration == best.configuration
        or result.may_lead[one.configuration] > chance
        or (demotable and one.option == places[1].option)
    )
