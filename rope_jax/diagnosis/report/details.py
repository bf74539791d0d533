"""Everything below the first screen, as sections of text and tables that any medium can lay out."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rope_jax.diagnosis.report import labels
from rope_jax.diagnosis.report.reading import Reading, Record, in_order, leading
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
from rope_jax.diagnosis.verdict.wording import listed, milliseconds, named

__all__ = ["Section", "Table", "details"]

REACHES = ("short", "long")
_OUTCOMES = (
    ("accuracy", percent, "Right answers."),
    ("log_odds", estimate, "The same as log-odds in nats; 0 is chance."),
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

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    whole: bool = False


Parts = Iterator[str | Table]
"""Paragraphs, of which empty ones are left out, and tables."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the details.

    Attributes:
      key: what it is about, such as "changes"; plots are put beside it by this.
      title: its heading.
      texts: paragraphs.
      tables: its tables, below them.
      reading: the record, with the judgement that it is about where it is about one.
    """

    key: str
    title: str
    texts: Sequence[str]
    tables: Sequence[Table]
    reading: Reading


def details(one: Reading) -> list[Section]:
    """Returns the sections that have something to say, in the order in which they are shown."""
    record, several = one.record, len(one.record["judgements"]) > 1
    found = [_section("configurations", one)]
    for judgement in record["judgements"]:
        judged, of = one.of(judgement), f" ({judgement['deployed']})" if several else ""
        found += [_section(key, judged, of) for key in _OF_A_JUDGEMENT]
    for judgement in record["adapted"]:
        found.append(_section("adapted", one.of(judgement), f" ({judgement['deployed']})"))
    found += [_section(key, one) for key in ("ratios", "prediction", "costs", "findings", "method")]
    return [section for section in found if section.texts or section.tables]


def _section(key: str, one: Reading, of: str = "") -> Section:
    title, said = _SECTIONS[key]
    parts = list(said(one))
    texts = [part for part in parts if part and isinstance(part, str)]
    return Section(key, title + of, texts, [part for part in parts if isinstance(part, Table)], one)


def _configurations(one: Reading) -> Parts:
    used, runs = one.used, one.record["configurations"]
    if used:
        chance = one.record["tasks"]["chance"]
        yield "Chance: " + ", ".join(f"{named(task)} {chance[task] * 100:.0f} %" for task in used) + "."
    names = dict.fromkeys(run[key] for run in runs for key in ("scaling", "bias") if run[key] != "none")
    known = "; ".join(f"{name}: {labels.explanation(name)}" for name in names if labels.explanation(name))
    yield known and f"{known}."
    fitted: dict[str, list[str]] = {}
    for run in runs:
        fitted.setdefault(run["fitted"], []).append(run["name"])
    yield from (capital(f"{listed(names)}: {text}") for text, names in fitted.items() if text)
    head = ["configuration", *(f"{named(task)} @{length}" for task in used for length in (one.short, one.long))]
    asked = [(task, reach) for task in used for reach in REACHES]
    for key, shown, note in _OUTCOMES if used else ():
        rows = [(run["name"], *(shown(run[key][reach][task]) for task, reach in asked)) for run in runs]
        yield Table(head, rows, note)
    rows = [(run["name"], *(estimate(run["loss"][reach], digits=3, sign=False) for reach in REACHES)) for run in runs]
    ends = (f"to {one.short}", f"beyond {one.short}")
    note = "Loss of text by position, nats a token; lower is better."
    yield Table(["configuration", *ends], rows, note)
    if len(one.record["models"]) > 1 and used:
        rows = [
            (
                f"{run['name']}, model {model}",
                *(f"{values['accuracy']['long'][task] * 100:.0f} %" for task in used),
                *(f"{values['loss'][reach]:.3f}" for reach in REACHES),
            )
            for run in runs
            for model, values in enumerate(run["by_model"], 1)
        ]
        head = ["configuration", *(f"{named(task)} @{one.long}" for task in used), f"loss {ends[0]}", ends[1]]
        yield Table(head, rows, "Each model by itself.")


def _links(one: Reading) -> Parts:
    yield from (f"{heading}: {text}" for heading, text in one.judgement["links"].items())


def _regression(one: Reading) -> Parts:
    regression, price, margins = one.verdict["regression"], one.verdict["price"], one.record["margins"]
    yield capital(regression["sentence"])
    if regression["pull"] is not None:
        yield f"Lean of event order to the nearer event: {estimate(regression['pull'])} nats (0 is none)."
    rises = [estimate(price[key], digits=3) for key in ("short_loss", "long_loss")]
    yield f"Loss of text against the original: {rises[0]} nats a token to {one.short}, {rises[1]} beyond."
    if price["short_accuracy"] is not None:
        fall = points(negated(price["short_accuracy"]), digits=1)
        yield f"Accuracy at {one.short} against the original: {fall}."
    states = {task: state for state in ("lost", "kept", "open") for task in regression[state]}
    rows = [
        (TASKS.get(task, task).strip(), estimate(fall["log_odds"]), points(fall["accuracy"]), states.get(task, ""))
        for task, fall in regression["falls"].items()
    ]
    allowed = f"{margins['long_loss']:g} nats a token"
    if one.used:
        allowed = f"{margins['gain']:g} nats (retrieval {margins['retrieval']:g})"
    note = (
        f"From the original at {one.short} to the deployed at {one.long}; positive is worse. Lost: significantly more "
        f"than {allowed}; kept: significantly no more."
    )
    if rows:
        unit = "log-odds lost (nats)" if one.used else "lost (nats a token)"
        yield Table(("", unit, "accuracy lost", "state"), rows, note, whole=True)


def _rankings(one: Reading) -> Parts:
    for ranking in one.verdict["rankings"].values():
        rows = []
        for form, places in (("{}", ranking["places"]), ("({})", ranking["outside"])):
            for place in places:
                words = form.format(numbered(place["option"], place["change"]))
                rows.append((words, probability(place["probability_first"]), estimate(place["gain"])))
        weights = listed([f"{named(task)} x{weight:g}" for task, weight in ranking["weights"].items()])
        note = f"By {named(ranking['by'])}"
        note += f" ({weights})" if len(ranking["weights"]) > 1 else ""
        note += "; in brackets: outside the one change, P that it beats the three" if ranking["outside"] else ""
        note += "".join(f"; {place['option']}: {place['demoted']}" for place in ranking["places"] if place["demoted"])
        unit = "nats a token" if "loss" in ranking["by"] else "nats"
        yield Table(("best first", "P(first)", f"gain ({unit})"), rows, f"{note}.", whole=True)


def _changes(one: Reading) -> Parts:
    """Yields two tables a change: its gains at the target length, and its prices."""
    yield (
        "Differences on the same items: right answers, the more the better; loss of text in nats a token, the less the "
        "better."
    )
    for change in one.verdict["changes"]:
        gains = {task: change["gain"][task] for task in in_order(change["gain"])}
        last = "together" if one.unit == "nats" else "loss of text (a token)" if one.used else "loss of text"
        gains[last] = change["together"]
        decided = f" (decided by {named(change['decides'])})" if change["decides"] else ""
        note = (
            f"{numbered(change['option'], change['words'])} -> {change['configuration']}. Judged on "
            f"{change['contexts']} contexts. Retrieval lost: {change['retrieval_lost']}. Enough to ship: "
            f"{change['ships']}{decided}."
        )
        yield _shifts((f"gain @{one.long}", "nats" if one.used else "nats a token", "accuracy"), gains, note)
        prices = [change[key] for key in ("against_deployed", "against_original")]
        rows = [
            (words, *(estimate(price[part], digits=3) for price in prices))
            for part, words in (("short_loss", f"loss to {one.short}"), ("long_loss", f"loss beyond {one.short}"))
        ]
        if all(price["short_accuracy"] is not None for price in prices):
            accuracy = (points(negated(price["short_accuracy"]), digits=1) for price in prices)
            rows.insert(0, (f"accuracy @{one.short}", *accuracy))
        yield Table(("price", "against deployed", "against original"), rows, whole=True)


def _shifts(head: Sequence[str], by_task: Mapping[str, Record], note: str) -> Table:
    rows = [(TASKS.get(x, x), estimate(y["log_odds"]), points(y["accuracy"])) for x, y in by_task.items()]
    return Table(head, rows, note, whole=True)


def _cause(one: Reading) -> Parts:
    cause = one.verdict["cause"]
    yield capital(cause["sentence"])
    if cause["ahead"] is not None:
        yield f"What the two cost differs by {estimate(cause['ahead'], sign=False)} {one.unit}."
    parts = list(dict.fromkeys(part for values in cause["by_task"].values() for part in values))
    rows = [
        (TASKS.get(task, task), *(estimate(values.get(part)) for part in parts))
        for task, values in cause["by_task"].items()
    ]
    note = (
        f"{capital(one.unit)[:-1]} lost at the target length due to each part, below 0 won (Shapley values of the 2 x "
        "2: with and without either). They divide what both cost together; the ranking counts what one change of what "
        "is deployed wins back."
    )
    if len(parts) > 1:
        yield Table(("task", *parts), rows, note, whole=True)


def _implementation(one: Reading) -> Parts:
    found = one.verdict["implementation"]
    yield capital(found["sentence"])
    if found["repair"]:
        yield _shifts(("task", "log-odds (nats)", "accuracy"), found["repair"], "What an exact run wins back.")
    if found["faults"]:
        tasks = list(dict.fromkeys(task for fault in found["faults"] for task in fault["costs"]))
        rows = []
        for fault in found["faults"]:
            costs = (estimate(fault["costs"].get(task, {"log_odds": None})["log_odds"]) for task in tasks)
            rows.append((fault["name"], *costs, fault["matters"]))
        described = "; ".join(f"{fault['name']}: {fault['description']}" for fault in found["faults"])
        note = f"What each fault would cost at the target length, nats against the exact run. {described}."
        yield Table(("fault", *map(named, tasks), "matters"), rows, note, whole=True)
    if found["nearest"]:
        distances = [(name, f"{distance:.3f}") for name, distance in found["nearest"].items()]
        yield Table(("run", "nats a question"), distances, "Distance of each run to the observed answers.")


def _models(one: Reading) -> Parts:
    rows = []
    for number, verdict in enumerate(one.judgement["by_model"], start=1):
        regression, first = verdict["regression"], ("-", "-", "-")
        for place in leading(verdict)["places"][:1]:
            first = (place["change"], probability(place["probability_first"]), estimate(place["gain"]))
        if verdict["first"] == "repair":
            first = ("repair", *first[1:])
        lost, ends = (
            listed([named(task) for task in regression["lost"]]) or "-",
            (verdict["cause"]["part"], verdict["shipping"]["answer"]),
        )
        rows.append((f"model {number}", regression["answer"], lost, *first, *ends))
    if rows:
        yield capital(one.judgement["agreement"])
        yield Table(("", "this regression", "lost", "first", "P(first)", "gain (nats)", "cause", "ships"), rows)


def _pattern(one: Reading) -> Parts:
    yield capital(one.judgement["pattern"])


def _adapted(one: Reading) -> Parts:
    yield f"With {one.judgement['deployed']} deployed, and every configuration trained for a few steps:"
    yield capital(one.verdict["regression"]["sentence"])
    if one.change:
        yield f"First: {one.change['words']}."
    yield f"Enough to ship? {answered(one.verdict['shipping']['sentence'])}"
    yield from (part for part in (*_rankings(one), *_changes(one)) if isinstance(part, Table))


def _ratios(one: Reading) -> Parts:
    if one.record["ratios"]:
        yield _anything(one.record["ratios"])


def _prediction(one: Reading) -> Parts:
    if one.record["prediction"] is None:
        return
    yield "Stretched positions imitate longer contexts inside the trained length. A prediction decides nothing above."
    for key, value in one.record["prediction"].items():
        words = capital(key.replace("_", " "))
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield _anything(value, note=words)
        elif isinstance(value, str):
            yield capital(value)
        elif shown := _value(value):
            yield f"{words[:-1]}: {shown}."


def _anything(rows: Sequence[Record], *, note: str = "") -> Table:
    """Returns objects of unknown keys as a table; what is no number, word or estimate is left to the record."""
    flat = [dict(_flat(row)) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    return Table([name.replace("_", " ") for name in names], [[row.get(x, "-") for x in names] for row in flat], note)


def _flat(row: Record, above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in row.items():
        name = f"{above} {named(key)}".strip()
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


def _costs(one: Reading) -> Parts:
    rows = [(name, milliseconds(cost) or "not repeated", f"{cost['mib']:.3g} MiB") for name, cost in one.costs.items()]
    missing = [each["deployed"] for each in one.record["judgements"] if each["deployed"] not in one.costs]
    rows += [(name, "not measured", "not measured") for name in missing]
    if one.costs:
        rounds = min(cost["rounds"] for cost in one.costs.values())
        timed = f", the median of {rounds} rounds with the fastest and the slowest," if rounds > 1 else ""
        note = f"Time{timed} and temporary memory of reading one row of {one.long} tokens on this machine."
        yield Table(("configuration", "time", "memory"), rows, note, whole=True)


def _findings(one: Reading) -> Parts:
    yield from map(capital, one.record["findings"])
    for left_out, by_name in (("left out", one.record["tasks"]["refused"]), ("not run", one.record["omitted"])):
        yield from (capital(f"{left_out}: {named(name)}, {why}") for name, why in by_name.items())


def _method(one: Reading) -> Parts:
    record, items = one.record, one.record["items"]
    confidences = {f"{each['verdict']['confidence'] * 100:.4g} %" for each in record["judgements"]}
    margins = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in record["margins"].items())
    yield (
        f"Every configuration has the same weights and answers the same items: {items['contexts']} contexts at each "
        f"length (more where they were asked on), {items['text_rows']} rows of text. {capital(items['language'])}"
    )
    yield f"Intervals of configurations are of 95 %: {record['interval_method']}."
    yield f"Intervals of verdicts are of {listed(sorted(confidences))}; differences are taken item by item."
    yield f"Too little to matter: {margins}."
    yield "Versions: " + ", ".join(f"{name} {value}" for name, value in record["versions"].items()) + "."


_OF_A_JUDGEMENT = {
    "links": ("From the scheme to what was seen", _links),
    "regression": ("What is lost", _regression),
    "ranking": ("Which change first", _rankings),
    "changes": ("What each change does", _changes),
    "cause": ("Which part costs how much", _cause),
    "implementation": ("Is it run as it is meant to be", _implementation),
    "models": ("Model by model", _models),
    "pattern": ("Which way wrong answers lean", _pattern),
}
_SECTIONS = {
    "configurations": ("Every configuration", _configurations),
    **_OF_A_JUDGEMENT,
    "adapted": ("After training in every configuration", _adapted),
    "ratios": ("Other ratios of target to trained length", _ratios),
    "prediction": ("What stretched positions predict", _prediction),
    "costs": ("What each configuration costs to run", _costs),
    "findings": ("What else to know", _findings),
    "method": ("How the numbers were made", _method),
}
"""Title and content by key."""
