"""What was measured, drawn from a record: changes against margins, cause, distance, errors of binding, loss of text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rope_jax.diagnosis.report import labels
from rope_jax.diagnosis.report.advice import find, first_change
from rope_jax.diagnosis.report.svg import INK, styled, written
from rope_jax.diagnosis.report.wording import capital, named, negated, tokens

__all__ = ["binding_errors", "by_distance", "cause", "changes", "loss_by_position"]

Record = Mapping[str, Any]

GOOD, BAD, OPEN = "#009e73", "#d55e00", "#8a8f96"
_PARTS = {"scaling": "#3b8fd1", "bias": "#e08a00", "interaction": OPEN}
_OPTIONS: dict[str, dict[str, Any]] = {
    "1": {"color": "#3b8fd1", "linestyle": "--"},
    "2": {"color": "#b03a6f", "linestyle": "-."},
    "3": {"color": "#d55e00", "linestyle": "-"},
    "": {"color": "#8c6d1f", "linestyle": ":"},
}


def changes(record: Record, judgement: Record) -> str:
    """Returns every change's gains and prices with their intervals against the margins; "" where none was judged."""
    judged, margins = judgement["verdict"]["changes"], record["margins"]
    if not judged:
        return ""
    short, long = tokens(record["lengths"]["trained"]), tokens(record["lengths"]["target"])
    together = "order and binding" if record["tasks"]["used"] else "loss of text saved"
    # title, values, margin (on the side where it counts), whether more is better
    panels = [(f"{together} @{long}\n(nats)", [one["together"]["log_odds"] for one in judged], margins["gain"], True)]
    if not record["tasks"]["used"]:
        panels = []
    elif all("retrieval" in one["gain"] for one in judged):
        kept = [one["gain"]["retrieval"]["log_odds"] for one in judged]
        panels.append((f"retrieval @{long}\n(nats)", kept, -margins["retrieval"], True))
    prices = [one["against_deployed"] for one in judged]
    if all(price["short_accuracy"] is not None for price in prices):
        fall = [negated(price["short_accuracy"]) for price in prices]
        panels.append((f"accuracy @{short}\n(share)", fall, -margins["short_accuracy"], True))
    for key, words in (("short_loss", f"loss to {short}"), ("long_loss", f"loss beyond {short}")):
        panels.append((f"{words}\n(nats a token)", [price[key] for price in prices], margins[key], False))
    with styled():
        figure = Figure(figsize=(2.3 * len(panels) + 2.6, 0.34 * len(judged) + 1.3), layout="constrained")
        for axis, (title, values, margin, more) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
        ):
            for at, value in enumerate(values):
                _whisker(axis, value, at, **_answer(value, margin, more))
            axis.axvline(0, color=INK, linewidth=0.6)
            axis.axvline(margin, color=INK, linewidth=0.8, linestyle="--")
            ends = [abs(value[end] or 0) for value in values for end in ("mean", "low", "high")]
            if max(ends) > 20 * abs(margin) > 0:
                axis.set_xscale("symlog", linthresh=5 * abs(margin))  # one broken change must not flatten the rest
                axis.xaxis.set_major_formatter("{x:g}")
                axis.tick_params(axis="x", labelsize=7)
            else:
                axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.set_title(title, fontsize=9)
            axis.set_yticks(range(len(judged)), [_numbered(one) for one in judged])
        figure.axes[0].set_ylim(len(judged) - 0.5, -0.5)
        return written(figure, f"Gains and prices of the changes of {judgement['deployed']}")


def _numbered(change: Record) -> str:
    return f"{change['option']}: {change['words']}" if change["option"] else change["words"]


def _answer(value: Record, margin: float, more: bool) -> dict[str, Any]:
    """Returns colour and marker: significantly better than the margin, significantly worse, or neither."""
    low, high = value["low"], value["high"]
    if low is None or high is None or low <= margin <= high:
        return {"color": OPEN, "marker": "s"}
    if (low > margin) == more:
        return {"color": GOOD, "marker": "o"}
    # Too small a gain is no harm; a price above its margin is.
    return {"color": OPEN, "marker": "s"} if more and margin > 0 and high >= 0 else {"color": BAD, "marker": "X"}


def _whisker(axis: Axes, value: Record, at: float, **style: Any) -> None:
    mean, low, high = value["mean"], value["low"], value["high"]
    if mean is None:
        return
    spread = None if low is None or high is None else [[max(mean - low, 0)], [max(high - mean, 0)]]
    axis.errorbar(mean, at, xerr=spread, markersize=6, elinewidth=1.3, linestyle="", **style)


def cause(judgement: Record) -> str:
    """Returns the shares of scaling and bias in what each task lost; "" where no 2 x 2 was run."""
    by_task = judgement["verdict"]["cause"]["by_task"]
    if not by_task:
        return ""
    with styled():
        figure = Figure(figsize=(6.4, 0.75 * len(by_task) + 0.9), layout="constrained")
        axis = figure.subplots()
        for at, shares in enumerate(by_task.values()):
            for part, (name, value) in enumerate(shares.items()):
                label = capital(name)[:-1] if not at else None
                colour = _PARTS.get(name, OPEN)
                where = at + (part - (len(shares) - 1) / 2) * 0.24
                axis.barh(where, value["mean"] or 0, height=0.22, color=colour, alpha=0.6, label=label)
                _whisker(axis, value, where, color=INK, marker="|")
        axis.set_yticks(range(len(by_task)), [named(task) for task in by_task])
        axis.set_ylim(len(by_task) - 0.5, -0.5)
        axis.axvline(0, color=INK, linewidth=0.6)
        axis.set_xlabel("nats lost at the target length; right of 0 is worse")
        figure.legend(loc="outside upper right", ncols=3, fontsize=9)
        return written(figure, f"Shares of scaling and bias in what {judgement['deployed']} lost")


def by_distance(record: Record, judgement: Record) -> str:
    """Returns accuracy and log-odds of every task against the distance to what is asked about; "" without tasks."""
    used = record["tasks"]["used"]
    lines = [(name, one["by_distance"], style) for name, one, style in _shown(record, judgement) if one["by_distance"]]
    if not used or not lines:
        return ""
    with styled():
        figure = Figure(figsize=(max(2.6 * len(used) + 0.6, 5.0), 5.2), layout="constrained")
        axes = figure.subplots(2, len(used), sharex=True, sharey="row", squeeze=False)
        for column, task in zip(axes.T, used, strict=True):
            for axis, key in zip(column, ("accuracy", "log_odds"), strict=True):
                for name, values, style in lines:
                    points = np.array([np.nan if value is None else value for value in values[task][key]])
                    axis.plot(_middles(values[task]["edges"]), points, label=name, markersize=3, marker="o", **style)
                _length_axis(axis, record)
            chance = record["tasks"]["chance"].get(task)
            if chance is not None:
                column[0].axhline(chance, color=INK, linewidth=0.5)
            column[1].axhline(0, color=INK, linewidth=0.5)
            column[0].set_title(named(task), fontsize=10)
        axes[0, 0].set_ylabel("share right")
        axes[0, 0].set_ylim(-0.03, 1.03)
        axes[1, 0].set_ylabel("log-odds (nats)")
        figure.supxlabel("distance (tokens; dotted: trained length; thin line: chance)", fontsize=10)
        _legend(figure, axes[0, 0])
        return written(figure, f"Outcomes by distance of {judgement['deployed']} and its changes")


def binding_errors(record: Record, judgement: Record) -> str:
    """Returns how far beside the item asked for `binding` was answered, short and long; "" where it was not asked."""
    change = first_change(judgement["verdict"])
    shown = [("deployed", find(record, judgement["deployed"]), OPEN)]
    if change is not None:
        shown.append((change["words"], find(record, change["configuration"]), "#3b8fd1"))
    drawn = [(name, one["binding_errors"], colour) for name, one, colour in shown if one and one["binding_errors"]]
    if not drawn:
        return ""
    lengths = {"short": record["lengths"]["trained"], "long": record["lengths"]["target"]}
    with styled():
        figure = Figure(figsize=(7.6, 2.9), layout="constrained")
        for axis, (reach, length) in zip(figure.subplots(1, 2, sharey=True), lengths.items(), strict=True):
            for at, (name, errors, colour) in enumerate(drawn):
                counts = {int(error): count for error, count in errors.get(reach, {}).items()}
                where = np.array(list(counts)) + (at - (len(drawn) - 1) / 2) * 0.42
                total = sum(counts.values()) or 1
                axis.bar(where, [count / total for count in counts.values()], width=0.4, color=colour, label=name)
            axis.set_title(f"at {tokens(length)} tokens", fontsize=10)
            axis.set_xlabel("places beside the item asked for; 0 is right")
            axis.set_xlim(-7.8, 7.8)
            axis.set_ylim(0, 1.02)
        figure.axes[0].set_ylabel("share of answers")
        _legend(figure, figure.axes[0])
        return written(figure, f"Errors of binding under {judgement['deployed']}")


def loss_by_position(record: Record, judgement: Record) -> str:
    """Returns the loss of text against position under the original, the deployed and every changed configuration."""
    lines = [(name, one["loss_by_position"], style) for name, one, style in _shown(record, judgement)]
    lines = [(name, curve, style) for name, curve, style in lines if curve["loss"]]
    if not lines:
        return ""
    with styled():
        figure = Figure(figsize=(7.0, 3.6), layout="constrained")
        axis = figure.subplots()
        for name, curve, style in lines:
            points = np.array([np.nan if value is None else value for value in curve["loss"]])
            axis.plot(_middles(curve["edges"]), points, label=name, **style)
        _length_axis(axis, record)
        axis.set_xlabel("position (tokens; dotted: trained length)")
        axis.set_ylabel("loss (nats a token)")
        _legend(figure, axis)
        return written(figure, f"Loss of text by position under {judgement['deployed']} and its changes")


def _shown(record: Record, judgement: Record) -> Iterator[tuple[str, Record, dict[str, Any]]]:
    """Yields the original model, the changes of the deployed configuration, and itself on top, with their lines."""
    original, deployed = record["configurations"][0], find(record, judgement["deployed"])
    yield "original", original, {"color": OPEN, "linestyle": ":", "linewidth": 1.4}
    drawn = {original["name"], judgement["deployed"]}
    rescaled = 0
    for change in judgement["verdict"]["changes"]:
        one = find(record, change["configuration"])
        if one is None or one["name"] in drawn:
            continue
        drawn.add(one["name"])
        style = {**_OPTIONS[change["option"]], "linewidth": 1.5}
        if change["option"] == "3":
            style["color"] = labels.colour(one["scaling"], ink=style["color"])
            style["alpha"] = 1 - 0.2 * min(rescaled, 3)
            rescaled += 1
        yield _numbered(change), one, style
    if deployed is not None and deployed is not original:
        yield "deployed", deployed, {"color": INK, "linewidth": 2.4}


def _length_axis(axis: Axes, record: Record) -> None:
    axis.axvline(record["lengths"]["trained"], color=INK, linewidth=0.8, linestyle=":")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: tokens(round(value)))
    axis.tick_params(axis="x", labelsize=8)


def _middles(edges: Sequence[float]) -> np.ndarray:
    # The first stratum starts at 0, which no log axis has: half its end stands for it.
    low = np.maximum(np.asarray(edges[:-1], dtype=float), edges[1] / 4)
    return np.sqrt(low * np.asarray(edges[1:], dtype=float))


def _legend(figure: Figure, axis: Axes) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=3, fontsize=9)
