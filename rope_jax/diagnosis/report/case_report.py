"""The case as one self-contained HTML page, made from its record alone: the verdicts first, then what they rest on."""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rope_jax.diagnosis.report import case_plots, scheme_plots
from rope_jax.diagnosis.report.case_table import asked_on, cell_name, farthest_lines, in_words
from rope_jax.diagnosis.report.case_tables import blame, factorial, log_odds, options, predictions, provenance, ratios
from rope_jax.diagnosis.report.page import anything, bullets, document, figure, negated
from rope_jax.diagnosis.verdict.verdict import above
from rope_jax.statistics.intervals import Estimate

Record = Mapping[str, Any]

_TONES = {
    "option 1": "good",
    "option 2": "good",
    "option 3": "good",
    "implementation": "info",
    "outside these options": "bad",
    "no fault found": "calm",
    "undetermined": "warn",
}
_LINKS = {
    "rotation": "How rotation encodes position",
    "scaling": "What the scaling changed",
    "bias": "What the bias does far away",
}
_PROBES = {
    "ret": "the value that stood with a key",
    "bind": "the n-th item after a marker",
    "ord": "which of two came first",
    "dist": "how far apart two stood",
    "ith": "what followed the i-th of several alike",
}


def html_page(record: Record, *, command: str) -> str:
    """Returns the page.

    Args:
      record: from `case_record.json_record`.
      command: the command line that made it, for the provenance.
    """
    lengths, judgements = record["lengths"], record["judgements"]
    models = len(record["models"])
    name = record["models"][0]["origin"] if models == 1 else f"{models} models"
    parts = [
        "<h1>Which part of the retrofit broke what, and what to change first</h1>",
        f"<p class=note>{html.escape(name)}: trained at {lengths['trained']:,} tokens, asked at {lengths['target']:,} "
        f"(&times;{lengths['factor']:g}). The same weights and the same {record['items']['haystacks']} haystacks at "
        f"each length and {record['items']['text_rows']} rows of text in every cell; intervals are 95 % unless said "
        "otherwise.</p>",
        *_looks(record),
        f"<div class=cards>{''.join(_card(record, one) for one in judgements)}</div>",
        "<h2>The symptom</h2>",
        bullets(_symptom(record, one) for one in judgements),
        _asked(record["probes"]["used"]),
        bullets(f"Left out: {name}, {why}" for name, why in record["probes"]["refused"].items()),
        "<h2>From the scheme to the symptom</h2>",
        *_links(judgements),
        "<h2>Every cell: scaling &times; bias &times; temperature</h2>",
        factorial(record),
        log_odds(record),
        *_ratios(record),
        *_faults(record),
        *_options(record, judgements),
        *_more(record, judgements),
        *_adapted(record),
        *_prediction(record),
        *_costs(record),
        *_schemes(record),
        "<h2>Where the numbers come from</h2>",
        provenance(record, command),
    ]
    return document(f"rope-jax verdict: {name}", parts)


def _looks(record: Record) -> Iterator[str]:
    lines = [(cell_name(one["status_quo"]), line) for one in record["judgements"] for line in asked_on(record, one)]
    for name, line in lines:
        yield f"<p class=note>{html.escape(name)}: {html.escape(line.strip())}.</p>"


def _card(record: Record, judgement: Record) -> str:
    verdict = judgement["verdict"]
    kind, chosen = verdict["kind"], verdict["chosen"]
    rows: list[tuple[str, str]] = []
    if verdict["cause"] is not None:
        rows.append(
            (
                "What broke precision",
                f"The {verdict['cause']}: with it replaced, {in_words(verdict['cause_gain'])} nats of long precision.",
            )
        )
    elif kind != "no fault found":
        margin = record["settings"]["margins"]["gain"]
        rows.append(("What broke precision", f"Not shown: no single change surely gains more than {margin:g} nats."))
    if chosen is not None:
        judged = next((one for one in judgement["options"] if one["option"] == chosen), None)
        price = "" if judged is None else f" What else it changes: {_changes(judged)}."
        rows.append(("The fix", f"{_capital(chosen['change'])}; the model then runs {cell_name(chosen)}.{price}"))
    signature = judgement.get("signature")
    if signature:
        evidence = signature.get("evidence")
        shown = signature["text"] + (f" ({_evidence(evidence)})" if evidence else "")
        rows.append((f"Signature: {signature['name']}", shown))
    if verdict["would_change"]:
        rows.append(("What would change this", _capital("; ".join(verdict["would_change"])) + "."))
    listed = "".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in rows)
    return (
        f'<section class="card {_TONES.get(kind, "warn")}"><span class=badge>{html.escape(kind)}</span>'
        f"<h3>{html.escape(cell_name(judgement['status_quo']))}</h3>"
        f"<p>{html.escape(_capital(verdict['reason']))}.</p><dl>{listed}</dl></section>"
    )


def _changes(judged: Record) -> str:
    return (
        f"long retrieval {in_words(negated(judged['retrieval_loss']))} nats, "
        f"short accuracy {in_words(negated(judged['short_loss']), digits=3)}, "
        f"short loss of text {in_words(judged['short_cost'], digits=3)} nats a token"
    )


def _evidence(evidence: Any) -> str:
    if isinstance(evidence, Mapping) and evidence.keys() == {"mean", "low", "high"}:
        return in_words(evidence)
    if isinstance(evidence, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_evidence(value)}" for name, value in evidence.items())
    if isinstance(evidence, Sequence) and not isinstance(evidence, str):
        return ", ".join(_evidence(value) for value in evidence)
    return f"{evidence:.3g}" if isinstance(evidence, float) else str(evidence)


def _symptom(record: Record, judgement: Record) -> str:
    """Returns the symptom of one status quo in one sentence."""
    name, symptom, lengths = cell_name(judgement["status_quo"]), judgement["symptom"], record["lengths"]
    if symptom is None:
        return f"{name}: not measured, since the model has not learned the probes it would take."
    margins = record["settings"]["margins"]
    precision = above(Estimate(**symptom["precision_drop"]), margins["gain"])
    retrieval = above(Estimate(**symptom["retrieval_drop"]), margins["retrieval"])
    what = {
        ("yes", "no"): "it still finds what is asked for, but no longer tells exactly where things stand",
        ("yes", "yes"): "it loses both: finding what is asked for, and telling where things stand",
        ("yes", "unclear"): "it no longer tells exactly where things stand; whether it still finds them is open",
        ("no", "no"): "it finds things and tells where they stand as well as at the trained length",
        ("no", "yes"): "it no longer finds what is asked for, while order and place are kept",
    }.get((precision, retrieval), "whether it loses position is not resolved by these haystacks")
    accuracy = ", ".join(
        f"{probe} {symptom['accuracy']['short'][probe]['mean']:.0%} to {symptom['accuracy']['long'][probe]['mean']:.0%}"
        for probe in record["probes"]["used"]
    )
    return (
        f"{name}: from {lengths['trained']:,} to {lengths['target']:,} tokens, {what}: precision falls by "
        f"{in_words(symptom['precision_drop'], sign=False)} nats, retrieval by "
        f"{in_words(symptom['retrieval_drop'], sign=False)}; "
        f"right answers: {accuracy}."
    )


def _asked(probes: Sequence[str]) -> str:
    known = "; ".join(f"{name}: {_PROBES[name]}" for name in probes if name in _PROBES)
    return f"<p class=note>What the probes ask: {html.escape(known)}.</p>" if known else ""


def _links(judgements: Sequence[Record]) -> Iterator[str]:
    """Yields the three links; what several status quos share is said once."""
    for link in dict.fromkeys(link for judgement in judgements for link in judgement["links"]):
        texts: dict[str, list[str]] = {}
        for judgement in judgements:
            texts.setdefault(judgement["links"][link], []).append(cell_name(judgement["status_quo"]))
        yield f"<h3>{html.escape(_LINKS.get(link, _capital(link)))}</h3>"
        for text, names in texts.items():
            of = "" if len(texts) == 1 else f"<b>{html.escape(', '.join(names))}:</b> "
            yield f"<p>{of}{html.escape(text)}</p>"


def _options(record: Record, judgements: Sequence[Record]) -> Iterator[str]:
    judged = [one for one in judgements if one["options"]]
    if not judged:
        return
    margins = record["settings"]["margins"]
    yield "<h2>What each option would do</h2>"
    yield (
        f"<p class=note>Against the status quo, on the same items. An option helps if it surely gains more than "
        f"{margins['gain']:g} nats of long precision (interval that holds for all options together); it qualifies if "
        f"it surely loses no more than {margins['retrieval']:g} nats of long retrieval, {margins['short_accuracy']:g} "
        f"of short accuracy and {margins['short_cost']:g} nats a token of short text. Options without a number lie "
        "outside the three.</p>"
    )
    yield figure(
        case_plots.shapley(record),
        "How the change of long precision divides between the two parts (Shapley values of the 2 x 2); interaction: "
        "what the two do together beyond their separate effects.",
    )
    for judgement in judged:
        name = html.escape(cell_name(judgement["status_quo"]))
        yield f"<h3>{name} <span class=soft>({html.escape(judgement['verdict']['kind'])})</span></h3>"
        yield options(judgement)
        yield figure(
            case_plots.options(record, judgement),
            "Dashed: the margin. Left panel, right of it is good; others, left of it is good. Green dots: surely on "
            "the good side; orange crosses: surely lost; grey crosses: surely no gain; grey squares: open. Bold: "
            "chosen.",
        )


def _more(record: Record, judgements: Sequence[Record]) -> Iterator[str]:
    """Yields outcomes by distance, errors and loss, where they were measured."""
    drawn = [(one, case_plots.by_distance(record, one), case_plots.bind_errors(record, one)) for one in judgements]
    if any(distance or errors for _, distance, errors in drawn):
        yield "<h2>How far away it breaks</h2>"
        for judgement, distance, errors in drawn:
            yield f"<h3>{html.escape(cell_name(judgement['status_quo']))}</h3>"
            yield figure(distance, "Long haystacks; a point a stratum of distance, the mean of all its questions.")
            yield figure(
                errors,
                "Which item after the marker was answered, beside the one asked for; in blue the chosen option, or the "
                "one that gains most where none was chosen.",
            )
    loss = figure(case_plots.loss_by_position(record, judgements), "Rows of text that no bias was fitted on.")
    if loss:
        yield "<h2>Loss of text by position</h2>"
        yield loss


def _faults(record: Record) -> Iterator[str]:
    judgements = record["judgements"]
    rows = [dict(fault) for fault in record.get("faults") or ()]
    rows += [
        {"name": fault["name"], "status quo": cell_name(one["status_quo"]), **fault}
        for one in judgements
        for fault in one.get("faults") or ()
    ]
    observed = [one for one in judgements if one.get("nearest")]
    if not rows and not observed:
        return
    margin = record["settings"]["margins"]["gain"]
    yield "<h2>Faults of an implementation that look the same</h2>"
    if rows:
        described = {row["name"]: row.pop("description") for row in rows}
        costly = [
            name
            for name in described
            if any(row["name"] == name and above(Estimate(**row["precision_loss"]), margin) == "yes" for row in rows)
        ]
        yield (
            "<p class=note>The scheme run wrongly on purpose: what each fault would cost at the target length, in "
            f"nats. Surely more than {margin:g} nats of precision: {html.escape(', '.join(costly) or 'none')}.</p>"
        )
        yield bullets(f"{name}: {text}" for name, text in described.items())
        yield anything(sorted(rows, key=lambda row: list(described).index(row["name"])))
    yield bullets(
        f"{cell_name(one['status_quo'])}: what was observed lies nearest to {next(iter(one['nearest']))}; mean "
        f"distance in nats a question: {', '.join(f'{name} {value:.3f}' for name, value in one['nearest'].items())}"
        for one in observed
    )


def _adapted(record: Record) -> Iterator[str]:
    adapted = record.get("adapted")
    if not adapted:
        return
    yield "<h2>After adaptation to the new length</h2>"
    yield "<p class=note>Another question: what the options are worth once the weights were trained on with them.</p>"
    yield f"<div class=cards>{''.join(_card(record, one) for one in adapted)}</div>"
    yield bullets(_symptom(record, one) for one in adapted)
    for judgement in adapted:
        if judgement["options"]:
            yield f"<h3>{html.escape(cell_name(judgement['status_quo']))}, adapted</h3>"
            yield options(judgement)


def _ratios(record: Record) -> Iterator[str]:
    if record.get("ratios"):
        yield "<h2>At other ratios of target to trained length</h2>"
        yield "<p class=note>Losses in nats of log-odds against the unchanged model at its trained length.</p>"
        yield ratios(record)
        yield bullets(_capital(line) for line in farthest_lines(record))


def _prediction(record: Record) -> Iterator[str]:
    predicted = record.get("prediction")
    if predicted:
        yield "<h2>Predicted from short haystacks, and measured</h2>"
        yield (
            "<p class=note>Predicted from haystacks of the trained length, foreshortened: their tokens stand at the "
            "positions of long ones, and each filler token counts for as many as the long ones hold. Nothing is fitted "
            "to these haystacks nor judged by them.</p>"
        )
        yield f"<p>{html.escape(_capital(predicted['text']))}.</p>"
        yield figure(
            case_plots.prediction(record),
            f"Errors of bind: a point a cell and offset asked for; rank correlation {in_words(predicted['spearman'])}.",
        )
        if predicted["blame"]:
            yield (
                "<p class=note>Precision lost to each part, added in this order, nats: the scheme at the trained "
                "positions, then the longer distances, then the filler that has to be looked through.</p>"
            )
            yield blame(predicted)
        yield predictions(predicted)
        yield figure(
            scheme_plots.bands(record),
            "The head by which questions find the item, as trained: what pairs that turn so often within the trained "
            "length add to its logit, mean over stretches of distance; of the first model, cut off at -20 nats.",
        )


def _costs(record: Record) -> Iterator[str]:
    if record.get("costs"):
        yield "<h2>What each option costs to run</h2>"
        yield "<p class=note>Time to read one row of the target length, and temporary memory.</p>"
        yield anything(record["costs"])


def _schemes(record: Record) -> Iterator[str]:
    curves = figure(
        scheme_plots.bias_curves(record),
        "Of the first model. The line hides what is far and tells neighbours apart by its slope alone; the buckets "
        "hold one value over ever wider stretches. Cut off at -20 nats, below which nothing is seen.",
    )
    waves = figure(
        scheme_plots.wavelengths(record),
        "Above the dotted trained length a pair never completed a turn in training.",
    )
    coherent = figure(
        scheme_plots.coherence(record),
        "Predicted, all rotary pairs weighed alike: 1 is a relation as sharp as in training. A peak off the dashed "
        "line is a head that looks at the wrong offset.",
    )
    if curves or waves or coherent:
        yield "<h2>The schemes themselves</h2>"
        yield from (curves, waves, coherent)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
