"""Everything below the first screen, as sections of text and tables that any medium can lay out."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rope_jax.diagnosis.report import labels
from rope_jax.diagnosis.report.reading import Reading, Record, in_order, leading, words_of
from rope_jax.diagnosis.report.wording import (
    TASKS,
    answered,
    capital,
    estimate,
    negated,
    numbered,
    percent,
    points,
    probability,
)
from rope_jax.diagnosis.verdict.wording import listed

__all__ = ["Section", "Table", "details"]

REACHES = ("short", "long")
_CHANGES = (
    "Differences on the same items: right answers, the more the better; loss of text in nats a token, the less the "
    "better."
)
_SHARES = (
    "Nats lost at the target length due to each part (Shapley values of the 2 x 2: with and without either). They "
    "divide what both cost together; the ranking counts what one change of what is deployed wins back."
)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      head: of its columns.
      rows: its cells, in words; the first names the row.
      note: how to read it.
      whole: whether intervals must not be left out where there is little room.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    whole: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the details.

    Attributes:
      key: what it is about, such as "changes"; plots are put beside it by this.
      title: its heading.
      texts: paragraphs.
      tables: its tables.
      reading: the record, of the judgement that it is about where it is about one.
    """

    key: str
    title: str
    texts: tuple[str, ...]
    tables: tuple[Table, ...]
    reading: Reading


def details(one: Reading) -> list[Section]:
    """Returns the sections that have something to say, in the order in which they are shown."""
    parts = [("configurations", "Every configuration", *_configurations(one), one)]
    for judgement in one.record["judgements"]:
        of = f" ({judgement['deployed']})" if len(one.record["judgements"]) > 1 else ""
        judged = one.of(judgement)
        parts += [(key, title + of, *said(judged), judged) for key, (title, said) in _OF_A_JUDGEMENT.items()]
    for judgement in one.record["adapted"]:
        title = f"After training in every configuration ({judgement['deployed']})"
        parts.append(("adapted", title, *_adapted(one.of(judgement)), one))
    parts += [(key, title, *said(one), one) for key, (title, said) in _OF_ALL.items()]
    return [Section(*part) for part in parts if any(part[2]) or part[3]]


_Said = tuple[tuple[str, ...], tuple[Table, ...]]
"""Paragraphs, of which empty ones are left out, and tables."""


def _configurations(one: Reading) -> _Said:
    used, every = one.used, one.record["configurations"]
    tables = []
    if used:
        head = ("configuration", *(f"{task} @{length}" for task in used for length in (one.short, one.long)))
        for key, shown, note in (
            ("accuracy", percent, "Right answers."),
            ("log_odds", estimate, "The same as log-odds in nats; 0 is chance."),
        ):
            rows = [(x["name"], *(shown(x[key].get(r, {}).get(task)) for task in used for r in REACHES)) for x in every]
            tables.append(Table(head, tuple(rows), note))
    ends = (f"to {one.short}", f"beyond {one.short}")
    rows = [(x["name"], *(estimate(x["loss"].get(r), digits=3, sign=False) for r in REACHES)) for x in every]
    note = "Loss of text by position, nats a token; lower is better."
    tables.append(Table(("configuration", *ends), tuple(rows), note))
    if len(one.record["models"]) > 1 and used:
        rows = [
            (
                f"{x['name']}, model {model + 1}",
                *(f"{values['accuracy'].get('long', {}).get(task, float('nan')) * 100:.0f} %" for task in used),
                *(f"{values['loss'][reach]:.3f}" for reach in REACHES if reach in values["loss"]),
            )
            for x in every
            for model, values in enumerate(x["by_model"])
        ]
        head = ("configuration", *(f"{task} @{one.long}" for task in used), f"loss {ends[0]}", ends[1])
        tables.append(Table(head, tuple(rows), "Each model by itself."))
    chance = one.record["tasks"]["chance"]
    texts = ["Chance: " + ", ".join(f"{task} {chance[task] * 100:.0f} %" for task in used if task in chance) + "."]
    names = dict.fromkeys(x[key] for x in every for key in ("scaling", "bias") if x[key] != "none")
    known = [f"{name}: {labels.explanation(name)}" for name in names if labels.explanation(name)]
    fitted: dict[str, list[str]] = {}
    for x in every:
        fitted.setdefault(x["fitted"], []).append(x["name"])
    made = [capital(f"{listed(names)}: {text}") for text, names in fitted.items() if text]
    return (*(texts if used else ()), "; ".join(known) + "." if known else "", *made), tuple(tables)


def _links(one: Reading) -> _Said:
    return tuple(f"{heading}: {text}" for heading, text in one.judgement["links"].items()), ()


def _regression(one: Reading) -> _Said:
    regression, price, margins = one.verdict["regression"], one.verdict["price"], one.record["margins"]
    rows = []
    for task, fall in regression["falls"].items():
        state = next((word for word in ("lost", "kept", "open") if task in regression[word]), "")
        rows.append((TASKS.get(task, task).strip(), estimate(fall["log_odds"]), points(fall["accuracy"]), state))
    allowed = f"{margins['gain']:g} nats (retrieval {margins['retrieval']:g})"
    allowed = allowed if one.used else f"{margins['long_loss']:g} nats a token"
    note = (
        f"From the original at {one.short} to the deployed at {one.long}; positive is worse. Lost: significantly more "
        f"than {allowed}; kept: significantly no more."
    )
    head = ("", "log-odds lost (nats)" if one.used else "lost (nats a token)", "accuracy lost", "state")
    texts = [capital(regression["sentence"])]
    if regression["pull"] is not None:
        texts.append(f"Lean of event order to the nearer event: {estimate(regression['pull'])} nats (0 is none).")
    rises = [estimate(price[key], digits=3) for key in ("short_loss", "long_loss")]
    texts.append(f"Loss of text against the original: {rises[0]} nats a token to {one.short}, {rises[1]} beyond.")
    if price["short_accuracy"] is not None:
        fall = points(negated(price["short_accuracy"]), digits=1)
        texts.append(f"Accuracy at {one.short} against the original: {fall}.")
    return tuple(texts), (Table(head, tuple(rows), note, whole=True),) if rows else ()


def _rankings(one: Reading) -> _Said:
    tables = []
    for ranking in one.verdict["rankings"].values():
        head = ("best first", "P(first)", f"gain ({'nats a token' if 'loss' in ranking['by'] else 'nats'})")
        rows = []
        for form, places in (("{}", ranking["places"]), ("({})", ranking["outside"])):
            for place in places:
                shown = form.format(numbered(place["option"], place["change"]))
                rows.append((shown, probability(place["probability_first"]), estimate(place["gain"])))
        weights = listed([f"{task} x{weight:g}" for task, weight in ranking["weights"].items()])
        note = f"By {'event order' if ranking['by'] == 'order' else ranking['by']}"
        note += f" ({weights})" if len(ranking["weights"]) > 1 else ""
        note += "; in brackets: outside the one change, P that it beats the three" if ranking["outside"] else ""
        note += "".join(f"; {place['option']}: {place['demoted']}" for place in ranking["places"] if place["demoted"])
        tables.append(Table(head, tuple(rows), note + ".", whole=True))
    return (), tuple(tables)


def _changes(one: Reading) -> _Said:
    """Returns two tables a change: its gains at the target length, and its prices."""
    tables = []
    for change in one.verdict["changes"]:
        gains = {task: change["gain"][task] for task in in_order(change["gain"])}
        gains["together" if one.used else "loss of text"] = change["together"]
        prices = [change[key] for key in ("against_deployed", "against_original")]
        paid: list[tuple[str, ...]] = []
        if all(price["short_accuracy"] is not None for price in prices):
            accuracy = (points(negated(price["short_accuracy"]), digits=1) for price in prices)
            paid.append((f"accuracy @{one.short}", *accuracy))
        for part, words in (("short_loss", f"loss to {one.short}"), ("long_loss", f"loss beyond {one.short}")):
            paid.append((words, *(estimate(price[part], digits=3) for price in prices)))
        decided = f" (decided by {change['decides']})" if change["decides"] else ""
        note = (
            f"{numbered(change['option'], change['words'])} -> {change['configuration']}. Judged on "
            f"{change['contexts']} contexts. Retrieval lost: {change['retrieval_lost']}. Enough to ship: "
            f"{change['ships']}{decided}."
        )
        head = (f"gain @{one.long}", "nats" if one.used else "nats a token", "accuracy")
        tables.append(Table(head, _shifts(gains), note, whole=True))
        tables.append(Table(("price", "against deployed", "against original"), tuple(paid), whole=True))
    return (_CHANGES,), tuple(tables)


def _shifts(by_task: Mapping[str, Record]) -> tuple[tuple[str, str, str], ...]:
    return tuple((TASKS.get(x, x), estimate(y["log_odds"]), points(y["accuracy"])) for x, y in by_task.items())


def _cause(one: Reading) -> _Said:
    cause = one.verdict["cause"]
    parts = list(dict.fromkeys(part for values in cause["by_task"].values() for part in values))
    rows = [
        (TASKS.get(x, x), *(estimate(values.get(part)) for part in parts)) for x, values in cause["by_task"].items()
    ]
    ahead = "" if cause["ahead"] is None else estimate(cause["ahead"])
    texts = (capital(cause["sentence"]), ahead and f"The larger part is ahead of the other by {ahead} nats.")
    return texts, (Table(("task", *parts), tuple(rows), _SHARES, whole=True),) if len(parts) > 1 else ()


def _implementation(one: Reading) -> _Said:
    found, tables = one.verdict["implementation"], []
    if found["repair"]:
        head: tuple[str, ...] = ("task", "log-odds (nats)", "accuracy")
        tables.append(Table(head, _shifts(found["repair"]), "What an exact run wins back.", whole=True))
    if found["faults"]:
        tasks = list(dict.fromkeys(task for fault in found["faults"] for task in fault["costs"]))
        rows: list[tuple[str, ...]] = []
        for fault in found["faults"]:
            costs = (estimate(fault["costs"].get(task, {"log_odds": None})["log_odds"]) for task in tasks)
            rows.append((fault["name"], *costs, fault["matters"]))
        described = "; ".join(f"{fault['name']}: {fault['description']}" for fault in found["faults"])
        note = f"What each fault would cost at the target length, nats against the exact run. {described}."
        tables.append(Table(("fault", *tasks, "matters"), tuple(rows), note, whole=True))
    if found["nearest"]:
        rows = [(name, f"{distance:.3f}") for name, distance in found["nearest"].items()]
        tables.append(Table(("run", "nats a question"), tuple(rows), "Distance of each run to the observed answers."))
    return (capital(found["sentence"]),), tuple(tables)


def _models(one: Reading) -> _Said:
    rows = []
    for number, verdict in enumerate(one.judgement["by_model"], start=1):
        regression, first = verdict["regression"], ("-", "-", "-")
        for place in leading(verdict)["places"][:1]:
            first = (words_of(verdict, place), probability(place["probability_first"]), estimate(place["gain"]))
        if verdict["first"] == "repair":
            first = ("repair", *first[1:])
        lost = listed(regression["lost"]) or "-"
        ends = verdict["cause"]["part"], verdict["shipping"]["answer"]
        rows.append((f"model {number}", regression["answer"], lost, *first, *ends))
    head = ("", "this regression", "lost", "first", "P(first)", "gain (nats)", "cause", "ships")
    return ((capital(one.judgement["agreement"]),), (Table(head, tuple(rows)),)) if rows else ((), ())


def _pattern(one: Reading) -> _Said:
    return (capital(one.judgement["pattern"]),), ()


_OF_A_JUDGEMENT = {
    # key: title, what is said
    "links": ("From the scheme to what was seen", _links),
    "regression": ("What is lost", _regression),
    "ranking": ("Which change first", _rankings),
    "changes": ("What each change does", _changes),
    "cause": ("Which part costs how much", _cause),
    "implementation": ("Is it run as it is meant to be", _implementation),
    "models": ("Model by model", _models),
    "pattern": ("Which way wrong answers lean", _pattern),
}


def _adapted(one: Reading) -> _Said:
    verdict = one.verdict
    first = "".join(f"First: {place['change']}." for place in leading(verdict)["places"][:1])
    texts = (
        f"With {one.judgement['deployed']} deployed, and every configuration trained for a few steps:",
        capital(verdict["regression"]["sentence"]),
        first,
        f"Enough to ship? {answered(verdict['shipping']['answer'], verdict['shipping']['sentence'])}",
    )
    return texts, (*_rankings(one)[1], *_changes(one)[1])


def _ratios(one: Reading) -> _Said:
    return (), (_anything(one.record["ratios"]),) if one.record["ratios"] else ()


def _prediction(one: Reading) -> _Said:
    if one.record["prediction"] is None:
        return (), ()
    texts = [
        "Stretched positions imitate longer contexts inside the trained length. A prediction decides nothing above."
    ]
    tables = []
    for key, value in one.record["prediction"].items():
        words = capital(key.replace("_", " "))
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            tables.append(_anything(value, note=words))
        elif isinstance(value, str):
            texts.append(capital(value))
        elif shown := _value(value):
            texts.append(f"{words[:-1]}: {shown}.")
    return tuple(texts), tuple(tables)


def _anything(rows: Sequence[Record], *, note: str = "") -> Table:
    """Returns objects of unknown keys as a table; what is no number, word or estimate is left to the record."""
    flat = [dict(_flat(row)) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    head = tuple(name.replace("_", " ") for name in names)
    return Table(head, tuple(tuple(row.get(name, "-") for name in names) for row in flat), note)


def _flat(row: Record, above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in row.items():
        name = f"{above} {key}".strip()
        if isinstance(value, Mapping) and "mean" not in value:
            yield from _flat(value, name)
        elif shown := _value(value):
            yield name, shown


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str | int):
        return str(value)
    return estimate(value) if isinstance(value, Mapping) and "mean" in value else ""


def _costs(one: Reading) -> _Said:
    if not one.costs:
        return (), ()
    known = {str(cost.get("configuration")): cost for cost in one.costs}
    rows = [(name, f"{cost['milliseconds']:.3g}", f"{cost['mib']:.3g}") for name, cost in known.items()]
    missing = [x["deployed"] for x in one.record["judgements"] if x["deployed"] not in known]
    rows += [(name, "not measured", "not measured") for name in missing]
    note = f"Time and temporary memory of reading one row of {one.long} tokens on this machine."
    return (), (Table(("configuration", "milliseconds", "MiB"), tuple(rows), note),)


def _findings(one: Reading) -> _Said:
    texts = list(one.record["findings"])
    texts += [f"left out: {name}, {why}" for name, why in one.record["tasks"]["refused"].items()]
    texts += [f"not run: {name}, {why}" for name, why in one.record["omitted"].items()]
    return tuple(capital(text) for text in texts), ()


def _method(one: Reading) -> _Said:
    record, items = one.record, one.record["items"]
    confidences = {f"{x['verdict']['confidence'] * 100:.4g} %" for x in record["judgements"]}
    margins = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in record["margins"].items())
    texts = (
        f"Every configuration has the same weights and answers the same items: {items['contexts']} contexts at each "
        f"length (more where they were asked on), {items['text_rows']} rows of text. {capital(items['language'])}",
        f"Intervals of configurations are of 95 %: {record['interval_method']}.",
        f"Intervals of verdicts are of {listed(sorted(confidences))}; differences are taken item by item.",
        f"Too little to matter: {margins}.",
        "Versions: " + ", ".join(f"{name} {value}" for name, value in record["versions"].items()) + ".",
    )
    return texts, ()


_OF_ALL = {
    "ratios": ("Other ratios of target to trained length", _ratios),
    "prediction": ("What stretched positions predict", _prediction),
    "costs": ("What each configuration costs to run", _costs),
    "findings": ("What else to know", _findings),
    "method": ("How the numbers were made", _method),
}
