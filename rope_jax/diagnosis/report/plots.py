"""What was measured, drawn from a record: changes against margins, cause, distance, errors of binding, loss of text."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rope_jax.diagnosis.report import labels
from rope_jax.diagnosis.report.reading import Reading, Record
from rope_jax.diagnosis.report.svg import INK, legend, length_axis, styled, written
from rope_jax.diagnosis.report.wording import capital, negated, numbered
from rope_jax.diagnosis.verdict.wording import named

__all__ = ["binding_errors", "by_distance", "cause", "changes", "loss_by_position"]

GOOD, BAD, OPEN = "#009e73", "#d55e00", "#8a8f96"
_PARTS = {"scaling": "#3b8fd1", "bias": "#e08a00", "interaction": OPEN}
_OPTIONS: dict[str, dict[str, Any]] = {
    "1": {"color": "#3b8fd1", "linestyle": "--"},
    "2": {"color": "#b03a6f", "linestyle": "-."},
    "3": {"color": "#d55e00", "linestyle": "-"},
    "": {"color": "#8c6d1f", "linestyle": ":"},
}


def changes(one: Reading) -> str:
    """Returns every change's gains and prices with their intervals against the margins; "" where none was judged."""
    judged = one.verdict["changes"]
    if not judged:
        return ""
    panels = list(_panels(one, judged))
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
            axis.set_yticks(range(len(judged)), [numbered(change["option"], change["words"]) for change in judged])
        figure.axes[0].set_ylim(len(judged) - 0.5, -0.5)
        return written(figure, f"Gains and prices of the changes of {one.judgement['deployed']}")


def _panels(one: Reading, judged: Sequence[Record]) -> Iterator[tuple[str, list[Any], float, bool]]:
    """Yields title, values, margin (on the side where it counts), and whether more is better."""
    margins, prices = one.record["margins"], [change["against_deployed"] for change in judged]
    if one.unit == "nats":
        together = [change["together"]["log_odds"] for change in judged]
        yield f"event order and binding @{one.long}\n(nats)", together, margins["gain"], True
    if "retrieval" in one.used:
        kept = [change["gain"]["retrieval"]["log_odds"] for change in judged]
        yield f"retrieval @{one.long}\n(nats)", kept, -margins["retrieval"], True
    if all(price["short_accuracy"] is not None for price in prices):
        fall = [negated(price["short_accuracy"]) for price in prices]
        yield f"accuracy @{one.short}\n(share)", fall, -margins["short_accuracy"], True
    for key, words in (("short_loss", f"loss to {one.short}"), ("long_loss", f"loss beyond {one.short}")):
        yield f"{words}\n(nats a token)", [price[key] for price in prices], margins[key], False


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


def cause(one: Reading) -> str:
    """Returns the shares of scaling and bias in what each task lost; "" where no 2 x 2 was run."""
    by_task = one.verdict["cause"]["by_task"]
    if not by_task:
        return ""
    with styled():
        figure = Figure(figsize=(6.4, 0.75 * len(by_task) + 0.9), layout="constrained")
        axis = figure.subplots()
        for at, shares in enumerate(by_task.values()):
            for part, (name, value) in enumerate(shares.items()):
                label = capital(name)[:-1] if not at else None
                where = at + (part - (len(shares) - 1) / 2) * 0.24
                axis.barh(where, value["mean"] or 0, height=0.22, color=_PARTS[name], alpha=0.6, label=label)
                _whisker(axis, value, where, color=INK, marker="|")
        axis.set_yticks(range(len(by_task)), [named(task) for task in by_task])
        axis.set_ylim(len(by_task) - 0.5, -0.5)
        axis.axvline(0, color=INK, linewidth=0.6)
        axis.set_xlabel("nats lost at the target length; right of 0 is worse")
        figure.legend(loc="outside upper right", ncols=3, fontsize=9)
        return written(figure, f"Shares of scaling and bias in what {one.judgement['deployed']} lost")


def by_distance(one: Reading) -> str:
    """Returns accuracy and log-odds of every task against the distance to what is asked about; "" without tasks."""
    if not one.used:
        return ""
    lines = [(name, run["by_distance"], style) for name, run, style in _shown(one)]
    with styled():
        figure = Figure(figsize=(max(2.6 * len(one.used) + 0.6, 5.0), 5.2), layout="constrained")
        axes = figure.subplots(2, len(one.used), sharex=True, sharey="row", squeeze=False)
        for column, task in zip(axes.T, one.used, strict=True):
            for axis, key in zip(column, ("accuracy", "log_odds"), strict=True):
                for name, values, style in lines:
                    _curve(
                        axis, values[task]["edges"], values[task][key], label=name, markersize=3, marker="o", **style
                    )
                length_axis(axis, one)
            column[0].axhline(one.record["tasks"]["chance"][task], color=INK, linewidth=0.5)
            column[1].axhline(0, color=INK, linewidth=0.5)
            column[0].set_title(named(task), fontsize=10)
        axes[0, 0].set_ylabel("share right")
        axes[0, 0].set_ylim(-0.03, 1.03)
        axes[1, 0].set_ylabel("log-odds (nats)")
        figure.supxlabel("distance (tokens; dotted: trained length; thin line: chance)", fontsize=10)
        legend(figure, axes[0, 0])
        return written(figure, f"Outcomes by distance of {one.judgement['deployed']} and its changes")


def binding_errors(one: Reading) -> str:
    """Returns how far beside the item asked for `binding` was answered, short and long; "" where it was not asked."""
    if "binding" not in one.used:
        return ""
    drawn = [("deployed", one.deployed["binding_errors"], OPEN)]
    if one.changed is not None:
        drawn.append((one.change["words"], one.changed["binding_errors"], "#3b8fd1"))
    with styled():
        figure = Figure(figsize=(7.6, 2.9), layout="constrained")
        asked = {"short": one.short, "long": one.long}
        for axis, (reach, length) in zip(figure.subplots(1, 2, sharey=True), asked.items(), strict=True):
            for at, (name, errors, colour) in enumerate(drawn):
                where = np.array([int(error) for error in errors[reach]]) + (at - (len(drawn) - 1) / 2) * 0.42
                counts = np.array(list(errors[reach].values()))
                axis.bar(where, counts / counts.sum(), width=0.4, color=colour, label=name)
            axis.set_title(f"at {length} tokens", fontsize=10)
            axis.set_xlabel("places beside the item asked for; 0 is right")
            axis.set_xlim(-7.8, 7.8)
            axis.set_ylim(0, 1.02)
        figure.axes[0].set_ylabel("share of answers")
        legend(figure, figure.axes[0])
        return written(figure, f"Errors of binding under {one.judgement['deployed']}")


def loss_by_position(one: Reading) -> str:
    """Returns the loss of text against position under the original, the deployed and every changed configuration."""
    with styled():
        figure = Figure(figsize=(7.0, 3.6), layout="constrained")
        axis = figure.subplots()
        for name, run, style in _shown(one):
            _curve(axis, run["loss_by_position"]["edges"], run["loss_by_position"]["loss"], label=name, **style)
        length_axis(axis, one)
        axis.set_xlabel("position (tokens; dotted: trained length)")
        axis.set_ylabel("loss (nats a token)")
        legend(figure, axis)
        return written(figure, f"Loss of text by position under {one.judgement['deployed']} and its changes")


def _shown(one: Reading) -> Iterator[tuple[str, Record, dict[str, Any]]]:
    """Yields the original model, the changes of the deployed configuration, and itself on top, with their lines."""
    yield "original", one.original, {"color": OPEN, "linestyle": ":", "linewidth": 1.4}
    drawn = {one.original["name"], one.judgement["deployed"]}
    rescaled = 0
    for change in one.verdict["changes"]:
        run = one.find(change["configuration"])
        if run is None or run["name"] in drawn:
            continue
        drawn.add(run["name"])
        style = {**_OPTIONS[change["option"]], "linewidth": 1.5}
        if change["option"] == "3":
            style["color"] = labels.colour(run["scaling"], ink=style["color"])
            style["alpha"] = 1 - 0.2 * min(rescaled, 3)
            rescaled += 1
        yield numbered(change["option"], change["words"]), run, style
    if one.deployed is not one.original:
        yield "deployed", one.deployed, {"color": INK, "linewidth": 2.4}


def _curve(axis: Axes, edges: Sequence[float], values: Sequence[float | None], **style: Any) -> None:
    """Draws a value between every two edges at their geometric middle."""
    # The first stratum starts at 0, which no log axis has: half its end stands for it.
    low = np.maximum(np.asarray(edges[:-1], dtype=float), edges[1] / 4)
    middles = np.sqrt(low * np.asarray(edges[1:], dtype=float))
    axis.plot(middles, np.array(values, dtype=float), **style)
