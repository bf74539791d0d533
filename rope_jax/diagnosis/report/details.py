"""Everything below the first screen, as sections of text and tables that any medium can lay out."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rope_jax.diagnosis.report import labels
from rope_jax.diagnosis.report.advice import change_of, leading
from rope_jax.diagnosis.report.wording import (
    TASKS,
    answered,
    capital,
    estimate,
    listed,
    negated,
    percent,
    points,
    probability,
    tokens,
)

__all__ = ["Section", "Table", "details"]

Record = Mapping[str, Any]
REACHES = ("short", "long")
_CHANGES = (
    "Differences on the same items: right answers, the more the better; loss of text in nats a token, the less the "
    "better."
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
      deployed: the configuration that it is about, or "" for all.
    """

    key: str
    title: str
    texts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    deployed: str = ""


def details(record: Record, costs: Sequence[Record] = ()) -> list[Section]:
    """Returns the sections that have something to say, in the order in which they are shown.

    Args:
      record: from `record.record_of`.
      costs: objects with `configuration`, `milliseconds` and `mib`, where they were measured.
    """
    sections = [_configurations(record), *_judged(record), *_adapted(record), *_ratios(record), *_prediction(record)]
    sections += [_costs(record, costs), _findings(record), _method(record)]
    return [one for one in sections if one.texts or one.tables]


def _configurations(record: Record) -> Section:
    short, long = (tokens(record["lengths"][key]) for key in ("trained", "target"))
    used, right, odds, loss = record["tasks"]["used"], [], [], []
    for one in record["configurations"]:
        asked = [(reach, task) for task in used for reach in REACHES]
        right.append((one["name"], *(percent(one["accuracy"].get(reach, {}).get(task)) for reach, task in asked)))
        odds.append((one["name"], *(estimate(one["log_odds"].get(reach, {}).get(task)) for reach, task in asked)))
        loss.append((one["name"], *(estimate(one["loss"].get(reach), digits=3, sign=False) for reach in REACHES)))
    head = ("configuration", *(f"{task} @{length}" for task in used for length in (short, long)))
    tables = []
    if used:
        tables.append(Table(head, tuple(right), "Right answers."))
        tables.append(Table(head, tuple(odds), "The same as log-odds in nats; 0 is chance."))
    columns: tuple[str, ...] = ("configuration", f"to {short}", f"beyond {short}")
    tables.append(Table(columns, tuple(loss), "Loss of text by position, nats a token; lower is better."))
    if len(record["models"]) > 1 and used:
        by_model = [
            (
                f"{one['name']}, model {model + 1}",
                *(f"{values['accuracy'].get('long', {}).get(task, float('nan')) * 100:.0f} %" for task in used),
                *(f"{values['loss'][reach]:.3f}" for reach in REACHES if reach in values["loss"]),
            )
            for one in record["configurations"]
            for model, values in enumerate(one["by_model"])
        ]
        columns = ("configuration", *(f"{task} @{long}" for task in used), f"loss to {short}", f"beyond {short}")
        tables.append(Table(columns, tuple(by_model), "Each model by itself."))
    names = dict.fromkeys(one[key] for one in record["configurations"] for key in ("scaling", "bias"))
    known = [f"{name}: {labels.explanation(name)}" for name in names if name != "none" and labels.explanation(name)]
    fitted: dict[str, list[str]] = {}
    for one in record["configurations"]:
        if one["fitted"]:
            fitted.setdefault(one["fitted"], []).append(one["name"])
    made = [capital(f"{listed(names)}: {text}") for text, names in fitted.items()]
    chance = record["tasks"]["chance"]
    texts = ["Chance: " + ", ".join(f"{task} {chance[task] * 100:.0f} %" for task in used if task in chance) + "."]
    texts = [*(texts if used else []), *(["; ".join(known) + "."] if known else []), *made]
    return Section("configurations", "Every configuration", tuple(texts), tuple(tables))


def _judged(record: Record) -> Iterator[Section]:
    for judgement in record["judgements"]:
        verdict, name = judgement["verdict"], judgement["deployed"]
        of = f" ({name})" if len(record["judgements"]) > 1 else ""
        links = tuple(f"{heading}: {text}" for heading, text in judgement["links"].items())
        yield Section("links", f"From the scheme to what was seen{of}", links, (), name)
        yield Section("regression", f"What is lost{of}", *_regression(record, verdict), name)
        yield Section("ranking", f"Which change first{of}", (), _rankings(verdict), name)
        yield Section("changes", f"What each change does{of}", (_CHANGES,), _changes(record, verdict), name)
        yield Section("cause", f"Which part costs how much{of}", *_cause(verdict), name)
        yield Section("implementation", f"Is it run as it is meant to be{of}", *_implementation(verdict), name)
        texts = [judgement["pattern"]] if judgement["pattern"] else []
        if judgement["by_model"]:
            yield Section(
                "models", f"Model by model{of}", (capital(judgement["agreement"]),), (_models(judgement),), name
            )
        yield Section("pattern", f"Which way wrong answers lean{of}", tuple(capital(text) for text in texts), (), name)


def _regression(record: Record, verdict: Record) -> tuple[tuple[str, ...], tuple[Table, ...]]:
    regression = verdict["regression"]
    short, long = (tokens(record["lengths"][key]) for key in ("trained", "target"))
    rows = []
    for task, fall in regression["falls"].items():
        state = next((word for word in ("lost", "kept", "open") if task in regression[word]), "")
        rows.append((TASKS.get(task, task).strip(), estimate(fall["log_odds"]), points(fall["accuracy"]), state))
    texts = [capital(regression["sentence"])]
    if regression["pull"] is not None:
        texts.append(f"Lean of event order to the nearer event: {estimate(regression['pull'])} nats (0 is none).")
    margins = record["margins"]
    allowed = f"{margins['gain']:g} nats (retrieval {margins['retrieval']:g})"
    allowed = allowed if record["tasks"]["used"] else f"{margins['long_loss']:g} nats a token"
    note = (
        f"From the original at {short} to the deployed at {long}; positive is worse. Lost: significantly more than "
        f"{allowed}; kept: significantly no more."
    )
    unit = "log-odds lost (nats)" if record["tasks"]["used"] else "lost (nats a token)"
    table = Table(("", unit, "accuracy lost", "state"), tuple(rows), note, whole=True)
    price = verdict["price"]
    rises = [estimate(price[key], digits=3) for key in ("short_loss", "long_loss")]
    texts.append(f"Loss of text against the original: {rises[0]} nats a token to {short}, {rises[1]} beyond.")
    if price["short_accuracy"] is not None:
        texts.append(f"Accuracy at {short} against the original: {points(negated(price['short_accuracy']), digits=1)}.")
    return tuple(text for text in texts if text), (table,) if rows else ()


def _rankings(verdict: Record) -> tuple[Table, ...]:
    tables = []
    for ranking in verdict["rankings"].values():
        unit = "nats a token" if "loss" in ranking["by"] else "nats"
        rows = [(_placed(place), *_gained(place)) for place in ranking["places"]]
        rows += [(f"({_placed(place)})", *_gained(place)) for place in ranking["outside"]]
        weights = listed([f"{task} x{weight:g}" for task, weight in ranking["weights"].items()])
        note = f"By {'event order' if ranking['by'] == 'order' else ranking['by']}"
        note += f" ({weights})" if len(ranking["weights"]) > 1 else ""
        if ranking["outside"]:
            note += "; in brackets: outside the one change, P that it beats the three"
        note += "".join(f"; {place['option']}: {place['demoted']}" for place in ranking["places"] if place["demoted"])
        tables.append(Table(("best first", "P(first)", f"gain ({unit})"), tuple(rows), note + ".", whole=True))
    return tuple(tables)


def _placed(place: Record) -> str:
    return place["change"] if place["option"] in ("", place["change"]) else f"{place['option']}: {place['change']}"


def _gained(place: Record) -> tuple[str, str]:
    return probability(place["probability_first"]), estimate(place["gain"])


def _changes(record: Record, verdict: Record) -> tuple[Table, ...]:
    """Returns two tables a change: its gains at the target length, and its prices."""
    short, long = (tokens(record["lengths"][key]) for key in ("trained", "target"))
    used = record["tasks"]["used"]
    tables = []
    for one in verdict["changes"]:
        gains = {TASKS.get(task, task): one["gain"][task] for task in _ordered(one["gain"])}
        gains["together" if used else "loss of text"] = one["together"]
        rows = [(name, estimate(shift["log_odds"]), points(shift["accuracy"])) for name, shift in gains.items()]
        prices = [one[key] for key in ("against_deployed", "against_original")]
        paid = []
        if all(price["short_accuracy"] is not None for price in prices):
            accuracy = (points(negated(price["short_accuracy"]), digits=1) for price in prices)
            paid.append((f"accuracy @{short}", *accuracy))
        for part, words in (("short_loss", f"loss to {short}"), ("long_loss", f"loss beyond {short}")):
            paid.append((words, *(estimate(price[part], digits=3) for price in prices)))
        name = f"{one['option']}: {one['words']}" if one["option"] else one["words"]
        decided = f" (decided by {one['decides']})" if one["decides"] else ""
        note = (
            f"{name} -> {one['configuration']}. Judged on {one['contexts']} contexts. Retrieval lost: "
            f"{one['retrieval_lost']}. Enough to ship: {one['ships']}{decided}."
        )
        tables.append(Table((f"gain @{long}", "nats" if used else "nats a token", "accuracy"), tuple(rows), note, True))
        tables.append(Table(("price", "against deployed", "against original"), tuple(paid), whole=True))
    return tuple(tables)


def _ordered(by_task: Record) -> list[str]:
    return [*(task for task in TASKS if task in by_task), *(task for task in by_task if task not in TASKS)]


def _cause(verdict: Record) -> tuple[tuple[str, ...], tuple[Table, ...]]:
    cause = verdict["cause"]
    parts = list(dict.fromkeys(part for values in cause["by_task"].values() for part in values))
    rows = [
        (TASKS.get(task, task), *(estimate(values.get(part)) for part in parts))
        for task, values in cause["by_task"].items()
    ]
    texts = [capital(cause["sentence"])]
    if cause["ahead"] is not None:
        texts.append(f"The larger part is ahead of the other by {estimate(cause['ahead'])} nats.")
    if len(parts) < 2:
        return tuple(text for text in texts if text), ()
    note = (
        "Nats lost at the target length due to each part (Shapley values of the 2 x 2: with and without either). They "
        "divide what both cost together; the ranking counts what one change of what is deployed wins back."
    )
    return tuple(text for text in texts if text), (
        Table(("task", *parts), tuple(rows), note, whole=True),
    ) if rows else ()


def _implementation(verdict: Record) -> tuple[tuple[str, ...], tuple[Table, ...]]:
    found = verdict["implementation"]
    tables: list[Table] = []
    rows: list[tuple[str, ...]]
    if found["repair"]:
        rows = [
            (TASKS.get(task, task), estimate(shift["log_odds"]), points(shift["accuracy"]))
            for task, shift in found["repair"].items()
        ]
        tables.append(
            Table(("task", "log-odds (nats)", "accuracy"), tuple(rows), "What an exact run wins back.", whole=True)
        )
    if found["faults"]:
        tasks = list(dict.fromkeys(task for one in found["faults"] for task in one["costs"]))
        rows = [
            (
                one["name"],
                *(estimate(one["costs"][task]["log_odds"]) if task in one["costs"] else "-" for task in tasks),
                one["matters"],
            )
            for one in found["faults"]
        ]
        described = "; ".join(f"{one['name']}: {one['description']}" for one in found["faults"])
        note = f"What each fault would cost at the target length, nats against the exact run. {described}."
        tables.append(Table(("fault", *tasks, "matters"), tuple(rows), note, whole=True))
    if found["nearest"]:
        rows = [(name, f"{distance:.3f}") for name, distance in found["nearest"].items()]
        tables.append(Table(("run", "nats a question"), tuple(rows), "Distance of each run to the observed answers."))
    return (capital(found["sentence"]),), tuple(tables)


def _models(judgement: Record) -> Table:
    rows = []
    for number, verdict in enumerate(judgement["by_model"], start=1):
        ranking = leading(verdict)
        place = ranking["places"][0] if ranking and ranking["places"] else None
        change = change_of(verdict, place) if place else None
        first = "repair" if verdict["first"] == "repair" else change["words"] if change else "-"
        regression = verdict["regression"]
        rows.append(
            (
                f"model {number}",
                regression["answer"],
                listed(regression["lost"]) or "-",
                first,
                probability(place["probability_first"]) if place else "-",
                estimate(place["gain"]) if place else "-",
                verdict["cause"]["part"],
                verdict["shipping"]["answer"],
            )
        )
    head = ("", "this regression", "lost", "first", "P(first)", "gain (nats)", "cause", "ships")
    return Table(head, tuple(rows))


def _adapted(record: Record) -> Iterator[Section]:
    for judgement in record["adapted"]:
        verdict = judgement["verdict"]
        ranking = leading(verdict)
        texts = [f"With {judgement['deployed']} deployed, and every configuration trained for a few steps:"]
        texts.append(capital(verdict["regression"]["sentence"]))
        if ranking and ranking["places"]:
            texts.append(f"First: {ranking['places'][0]['change']}.")
        texts.append(f"Enough to ship? {answered(verdict['shipping']['answer'], verdict['shipping']['sentence'])}")
        tables = (*_rankings(verdict), *_changes(record, verdict))
        yield Section(
            "adapted", f"After training in every configuration ({judgement['deployed']})", tuple(texts), tables
        )


def _ratios(record: Record) -> Iterator[Section]:
    if record["ratios"]:
        yield Section("ratios", "Other ratios of target to trained length", (), (_anything(record["ratios"]),))


def _prediction(record: Record) -> Iterator[Section]:
    predicted = record["prediction"]
    if predicted is None:
        return
    texts, tables = [], []
    for key, value in predicted.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
            tables.append(dataclasses.replace(_anything(value), note=capital(key.replace("_", " "))))
        elif isinstance(value, str):
            texts.append(capital(value))
        elif shown := _value(value):
            texts.append(f"{capital(key.replace('_', ' '))[:-1]}: {shown}.")
    intro = "Stretched positions imitate longer contexts inside the trained length. A prediction decides nothing above."
    yield Section("prediction", "What stretched positions predict", (intro, *texts), tuple(tables))


def _anything(rows: Sequence[Record]) -> Table:
    """Returns objects of unknown keys as a table; what is no number, word or estimate is left to the record."""
    flat = [dict(_flat(row)) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    head = tuple(name.replace("_", " ") for name in names)
    return Table(head, tuple(tuple(row.get(name, "-") for name in names) for row in flat))


def _flat(row: Record, above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in row.items():
        name = f"{above} {key}".strip()
        if isinstance(value, Mapping) and "mean" not in value:
            yield from _flat(value, name)
        elif shown := _value(value):
            yield name, shown


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return estimate(value) if "mean" in value else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) if isinstance(value, str | int) else ""


def _costs(record: Record, costs: Sequence[Record]) -> Section:
    if not costs:
        return Section("costs", "")
    known = {str(one.get("configuration")): one for one in costs}
    rows = [(name, f"{one['milliseconds']:.3g}", f"{one['mib']:.3g}") for name, one in known.items()]
    missing = [one["deployed"] for one in record["judgements"] if one["deployed"] not in known]
    rows += [(name, "not measured", "not measured") for name in missing]
    head = ("configuration", "milliseconds", "MiB")
    note = (
        f"Time and temporary memory of reading one row of {tokens(record['lengths']['target'])} tokens on this machine."
    )
    return Section("costs", "What each configuration costs to run", (), (Table(head, tuple(rows), note),))


def _findings(record: Record) -> Section:
    texts = [capital(text) for text in record["findings"]]
    texts += [capital(f"left out: {name}, {why}") for name, why in record["tasks"]["refused"].items()]
    texts += [capital(f"not run: {name}, {why}") for name, why in record["omitted"].items()]
    return Section("findings", "What else to know", tuple(texts))


def _method(record: Record) -> Section:
    items, margins = record["items"], record["margins"]
    confidences = {f"{one['verdict']['confidence'] * 100:.4g} %" for one in record["judgements"]}
    texts = [
        f"Every configuration has the same weights and answers the same items: {items['contexts']} contexts at each "
        f"length (more where they were asked on), {items['text_rows']} rows of text. {capital(items['language'])}",
        f"Intervals of configurations are of 95 %: {record['interval_method']}.",
        f"Intervals of verdicts are of {listed(sorted(confidences))}; differences are taken item by item.",
        "Too little to matter: "
        + ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in margins.items())
        + ".",
        "Versions: " + ", ".join(f"{name} {value}" for name, value in record["versions"].items()) + ".",
    ]
    return Section("method", "How the numbers were made", tuple(texts))
