"""The verdict on a deployed configuration: six answers, each always there, each with its interval."""

from collections.abc import Sequence

from rope_jax.diagnosis.evaluation.panel import RETRIEVAL, Evidence, Option, Panel
from rope_jax.diagnosis.verdict.answers import Answer, Change, Margins, Regression, Shipping, Verdict
from rope_jax.diagnosis.verdict.cause import cause
from rope_jax.diagnosis.verdict.contrasts import Contrasts, above
from rope_jax.diagnosis.verdict.implementation import implementation, repair_is_likely
from rope_jax.diagnosis.verdict.needed import in_words, needed
from rope_jax.diagnosis.verdict.next_steps import Known, next_steps
from rope_jax.diagnosis.verdict.ranking import Contest, contest
from rope_jax.diagnosis.verdict.regression import margin_of, regression
from rope_jax.diagnosis.verdict.shipping import criteria, shipping, ships
from rope_jax.statistics.intervals import CONFIDENCE
from rope_jax.statistics.multiplicity import simultaneous_confidence

__all__ = ["NOTHING", "REPAIR", "decide", "decide_each"]

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
    base = evidence.as_deployed if evidence.exact is None else evidence.exact
    if not contrasts.together(base, evidence.original).units:
        raise ValueError("a verdict needs answers to questions that were learned, or text")
    found = implementation(evidence, contrasts, margins)
    changes = tuple(_change(option, evidence, base, contrasts, margins) for option in evidence.options)
    lost = {change.configuration: change.retrieval_lost for change in changes}
    result = contest(evidence, base, lost, contrasts, retrieval_margin=margins.retrieval)
    decisive = result.rankings[result.decisive]
    best = _best(changes, result)
    repair_first = found.status == "repair first" or (
        found.status == "repair may help" and repair_is_likely(found, margins)
    )
    open_ = _open(changes, best, result, confidence)
    symptom = regression(evidence.as_deployed, evidence.original, contrasts, margins)
    may_ship = _shipping(evidence, base, best, repair_first, contrasts, margins)
    return Verdict(
        deployed=evidence.deployed,
        contexts=_contexts(base, evidence.used),
        confidence=confidence,
        regression=symptom,
        price=contrasts.price(evidence.as_deployed, evidence.original),
        implementation=found,
        first=REPAIR if repair_first else NOTHING if best is None else best.words,
        probability_first=1.0 if repair_first or best is None else decisive.places[0].probability_first,
        rankings=result.rankings,
        changes=changes,
        cause=cause(evidence, base, contrasts, margins),
        shipping=may_ship,
        next=next_steps(
            Known(
                evidence.deployed,
                symptom,
                _regression_needs(symptom, evidence, contrasts, margins),
                found,
                repair_first,
                result,
                best,
                may_ship,
                open_,
                sum(option.number == "3" for option in evidence.options),
            )
        ),
        settled=not open_ and found.status != "repair may help",
        open=open_,
    )


def decide_each(
    evidences: Sequence[Evidence], *, margins: Margins | None = None, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[Verdict, ...]:
    """Returns the verdicts on several deployed configurations, whose intervals hold together.

    Args:
      evidences: one a deployed configuration.
      margins: see `decide`.
      confidence: with which what all verdicts say of one measure holds at once (Bonferroni).
      seed: see `decide`.
    """
    shared = simultaneous_confidence(len(evidences), confidence) if evidences else confidence
    return tuple(decide(one, margins=margins, confidence=shared, seed=seed) for one in evidences)


def _contexts(panel: Panel, used: Sequence[str]) -> int:
    """Returns how many contexts a panel was asked, or rows of text where it was asked none."""
    for task in used:
        if task in panel.log_odds.get("long", {}):
            return panel.log_odds["long"][task].shape[1]
    return panel.loss["long"].shape[1]


def _change(option: Option, evidence: Evidence, base: Panel, contrasts: Contrasts, margins: Margins) -> Change:
    after = evidence.changed[option.configuration]
    retrieval: Answer = "not resolved"
    if RETRIEVAL in evidence.used:
        retrieval = above(contrasts.shift(base, after, RETRIEVAL).log_odds, margins.retrieval)
    answer, decides = ships(criteria(after, base, evidence.original, contrasts, margins))
    return Change(
        option=option.number,
        words=option.words,
        configuration=option.configuration,
        contexts=contrasts.together(after, base).units,
        gain={task: contrasts.shift(after, base, task) for task in evidence.used},
        together=contrasts.shift_together(after, base),
        retrieval_lost=retrieval,
        against_deployed=contrasts.price(after, base),
        against_original=contrasts.price(after, evidence.original),
        ships=answer,
        decides=decides,
    )


def _regression_needs(symptom: Regression, evidence: Evidence, contrasts: Contrasts, margins: Margins) -> str:
    """Returns how many contexts would tell of every task whether it is kept, in words."""
    numbers = []
    for task in symptom.open:
        if task in evidence.used:
            fall = contrasts.fall(evidence.original, evidence.as_deployed, task)
            numbers.append(needed(symptom.falls[task].log_odds, margin_of(task, margins), fall, contrasts.confidence))
    known = [number for number in numbers if number is not None]
    return in_words(max(known), "contexts") if known else ""


def _best(changes: Sequence[Change], result: Contest) -> Change | None:
    places = result.rankings[result.decisive].places
    if not places:
        return None
    return next(one for one in changes if (one.option, one.words) == (places[0].option, places[0].change))


def _open(changes: Sequence[Change], best: Change | None, result: Contest, confidence: float) -> tuple[str, ...]:
    """Returns the changes that more contexts could put first, the one that is first now among them."""
    places = result.rankings[result.decisive].places
    if best is None or len(places) < 2:
        return ()
    lose = result.may_lose_retrieval.get(best.configuration, 0.0)
    demotable = best.retrieval_lost == "not resolved" and lose > 1 - confidence
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


def _shipping(
    evidence: Evidence, base: Panel, best: Change | None, repair_first: bool, contrasts: Contrasts, margins: Margins
) -> Shipping:
    if repair_first or best is None:
        what = "repair the implementation" if repair_first else "change nothing"
        return shipping(what, criteria(base, base, evidence.original, contrasts, margins))
    after = evidence.changed[best.configuration]
    return shipping(best.words, criteria(after, base, evidence.original, contrasts, margins))
