"""What a case measured, drawn from its record: options against margins, distance, errors, loss, what is due to what."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rope_jax.diagnosis.report.case_table import cell_name
from rope_jax.diagnosis.report.svg import COLOURS, INK, styled, written

Record = Mapping[str, Any]

GOOD, BAD, OPEN = "#009e73", "#d55e00", "#8a8f96"
_UNCHANGED_LINE: dict[str, Any] = {"color": OPEN, "linestyle": ":", "linewidth": 1.4}
_PANELS = (
    # key of an option, title, margin, whether more is better
    ("gain_simultaneous", "long precision gained (nats)", "gain", True),
    ("retrieval_loss", "long retrieval lost (nats)", "retrieval", False),
    ("short_loss", "short accuracy lost (share)", "short_accuracy", False),
    ("short_cost", "short loss of text added (nats)", "short_cost", False),
)


def find_cell(record: Record, cell: Mapping[str, Any] | None) -> Record | None:
    """Returns the measured cell that has the scaling, bias and temperature of `cell`, or None."""
    keys = ("scaling", "bias", "temperature")
    return next((one for one in record["cells"] if cell and all(one[key] == cell[key] for key in keys)), None)


def promising(judgement: Record) -> Record | None:
    """Returns the option to draw beside the status quo: the chosen one, else the one that gains most precision."""
    chosen = judgement["verdict"]["chosen"]
    if chosen is not None:
        return chosen
    best = max(judgement["options"], key=lambda one: one["gain_simultaneous"]["mean"], default=None)
    return None if best is None else best["option"]


def options(record: Record, judgement: Record) -> str:
    """Returns every option's effects with their intervals against the margins; "" where none was judged."""
    judged, margins = judgement["options"], record["settings"]["margins"]
    if not judged:
        return ""
    chosen = judgement["verdict"]["chosen"]
    names = [f"{_number(one['option'])}{one['option']['change']}" for one in judged]
    with styled():
        figure = Figure(figsize=(13.2, 0.3 * len(judged) + 1.2), layout="constrained")
        for axis, (key, title, margin, more) in zip(
            figure.subplots(1, len(_PANELS), sharey=True), _PANELS, strict=True
        ):
            for at, one in enumerate(judged):
                colour, marker = _answer(one[key], margins[margin], more)
                _whisker(axis, one[key], at, color=colour, marker=marker)
            axis.axvline(0, color=INK, linewidth=0.6)
            axis.axvline(margins[margin], color=INK, linewidth=0.8, linestyle="--")
            largest = max(abs(one[key][end] or 0) for one in judged for end in ("mean", "low", "high"))
            if largest > 20 * margins[margin] > 0:
                axis.set_xscale("symlog", linthresh=5 * margins[margin])  # one broken option must not flatten the rest
                axis.xaxis.set_major_formatter("{x:g}")
            else:
                axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.set_title(title, fontsize=10)
            axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        for one, label in zip(judged, figure.axes[0].get_yticklabels(), strict=True):
            label.set_fontweight("bold" if one["option"] == chosen else "normal")
        return written(figure, f"Effects of the options on {cell_name(judgement['status_quo'])}")


def _number(option: Record) -> str:
    return f"{option['number']}  " if option["number"] in ("1", "2", "3") else ""


def _answer(value: Mapping[str, float | None], margin: float, more: bool) -> tuple[str, str]:
    low, high = value["low"], value["high"]
    if low is None or high is None or low <= margin < high:
        return OPEN, "s"
    over = low > margin
    return (GOOD if over == more else BAD if over else OPEN if more else GOOD), "o" if over == more else "X"


def _whisker(axis: Axes, value: Mapping[str, Any], at: float, **style) -> None:
    mean, low, high = value["mean"], value["low"], value["high"]
    spread = None if low is None or high is None else [[mean - low], [high - mean]]
    axis.errorbar(mean, at, xerr=spread, markersize=6, elinewidth=1.3, linestyle="", **style)


def shapley(record: Record) -> str:
    """Returns how the change of long precision divides between scaling and bias; "" where no 2 x 2 was run."""
    divided = [one for one in record["judgements"] if one["shapley"]]
    if not divided:
        return ""
    with styled():
        figure = Figure(figsize=(3.5 * len(divided) + 0.6, 1.9), layout="constrained")
        axes = figure.subplots(1, len(divided), squeeze=False, sharex=True, sharey=True)[0]
        for axis, judgement in zip(axes, divided, strict=True):
            for at, value in enumerate(judgement["shapley"].values()):
                axis.barh(at, value["mean"], height=0.6, color=BAD if value["mean"] < 0 else GOOD, alpha=0.55)
                _whisker(axis, value, at, color=INK, marker="|")
            names = list(judgement["shapley"])
            axis.set_yticks(range(len(names)), names)
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.axvline(0, color=INK, linewidth=0.6)
            axis.set_title(cell_name(judgement["status_quo"]), fontsize=10)
        figure.supxlabel("change of long precision (nats); left of 0 is lost", fontsize=10)
        return written(figure, "Change of long precision due to scaling and bias")


def by_distance(record: Record, judgement: Record) -> str:
    """Returns log-odds and accuracy of every probe against the distance to what is asked about; "" without probes."""
    probes = record["probes"]["used"]
    lines = [
        (name, cell["by_distance"], style) for name, cell, style in _arms(record, judgement) if "by_distance" in cell
    ]
    if not probes or not lines:
        return ""
    with styled():
        figure = Figure(figsize=(max(2.35 * len(probes) + 0.5, 5.0), 5.4), layout="constrained")
        axes = figure.subplots(2, len(probes), sharex=True, sharey="row", squeeze=False)
        for column, probe in zip(axes.T, probes, strict=True):
            for axis, key in zip(column, ("log_odds", "accuracy"), strict=True):
                for name, values, style in lines:
                    points = np.array([np.nan if value is None else value for value in values[probe][key]])
                    axis.plot(_middles(values[probe]["edges"]), points, label=name, markersize=3, marker="o", **style)
                axis.axvline(record["lengths"]["trained"], color=INK, linewidth=0.8, linestyle=":")
                axis.set_xscale("log", base=2)
                axis.xaxis.set_major_formatter("{x:g}")
                axis.tick_params(axis="x", labelsize=8)
            column[0].axhline(0, color=INK, linewidth=0.5)
            column[0].set_title(probe, fontsize=10)
        axes[0, 0].set_ylabel("log-odds (nats; 0 is chance)")
        axes[1, 0].set_ylabel("share right")
        axes[1, 0].set_ylim(-0.03, 1.03)
        figure.supxlabel("distance to what is asked about (tokens, log scale; dotted: trained length)", fontsize=10)
        _legend(figure, axes[0, 0])
        return written(figure, f"Outcome by distance: {cell_name(judgement['status_quo'])} and its options")


def bind_errors(record: Record, judgement: Record) -> str:
    """Returns how far beside the item asked for `bind` answered, short and long; "" where it was not asked."""
    option = promising(judgement)
    arms = [(_name_of_quo(judgement), find_cell(record, judgement["status_quo"]), OPEN)]
    if option is not None:
        arms.append((option["change"], find_cell(record, option), COLOURS["ntk"]))
    drawn = [(name, cell, colour) for name, cell, colour in arms if cell is not None and cell.get("bind_errors")]
    if not drawn:
        return ""
    with styled():
        figure = Figure(figsize=(8.4, 3.1), layout="constrained")
        lengths = {"short": record["lengths"]["trained"], "long": record["lengths"]["target"]}
        for axis, reach in zip(figure.subplots(1, 2, sharey=True), drawn[0][1]["bind_errors"], strict=True):
            for at, (name, cell, colour) in enumerate(drawn):
                counts = {int(error): count for error, count in cell["bind_errors"][reach].items()}
                total = sum(counts.values()) or 1
                where = np.array(list(counts)) + (at - (len(drawn) - 1) / 2) * 0.42
                half = cell["bind_g50"][reach]
                label = f"{name} (half within ±{half})" if half is not None else name
                shares = [count / total for count in counts.values()]
                axis.bar(where, shares, width=0.4, color=colour, label=label)
            axis.set_title(f"at {lengths[reach]:,} tokens", fontsize=10)
            axis.set_xlabel("places beside the item asked for; 0 is right")
            axis.set_xlim(-7.8, 7.8)
            axis.legend(fontsize=8, loc="upper left", borderpad=0)
            axis.set_ylim(0, 1.3)
            axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
        figure.axes[0].set_ylabel("share of answers")
        return written(figure, f"Errors of bind: {cell_name(judgement['status_quo'])}")


def loss_by_position(record: Record, judgements: Sequence[Record]) -> str:
    """Returns the loss of text against position, a panel a status quo with its options."""
    judgements = [one for one in judgements if find_cell(record, one["status_quo"])]
    if not judgements:
        return ""
    with styled():
        columns = min(3, len(judgements))
        rows = -(-len(judgements) // columns)
        figure = Figure(figsize=(3.8 * columns + 0.6, 3.5 * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axis, judgement in zip(axes, judgements, strict=False):
            for name, cell, style in _arms(record, judgement):
                curve = cell["loss_by_position"]
                points = np.array([np.nan if value is None else value for value in curve["loss"]])
                axis.plot(_middles(curve["edges"]), points, label=name, **style)
            axis.axvline(record["lengths"]["trained"], color=INK, linewidth=0.8, linestyle=":")
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_title(cell_name(judgement["status_quo"]), fontsize=10)
        for axis in axes[len(judgements) :]:
            axis.set_visible(False)
        figure.supxlabel("position (tokens, log scale; dotted: trained length)", fontsize=10)
        figure.supylabel("loss (nats a token)", fontsize=10)
        _legend(figure, *axes[: len(judgements)])
        return written(figure, "Loss of text by position")


def prediction(record: Record) -> str:
    """Returns measured against predicted errors of `bind`, a point a cell and offset; "" where none were predicted."""
    cells = (record.get("prediction") or {}).get("cells")
    if not cells:
        return ""
    markers = dict(zip(dict.fromkeys(cell["bias"] for cell in cells), itertools.cycle("os^D"), strict=False))
    with styled():
        figure = Figure(figsize=(6.8, 4.0), layout="constrained")
        axis = figure.subplots()
        for cell in cells:
            style: dict[str, Any] = {"color": COLOURS.get(cell["scaling"], OPEN), "marker": markers[cell["bias"]]}
            axis.scatter(cell["predicted"], cell["measured"], s=20, alpha=0.75, linewidths=0, **style)
        for name in dict.fromkeys(cell["scaling"] for cell in cells):
            axis.plot([], [], color=COLOURS.get(name, OPEN), linewidth=3, label=name)
        for name, marker in markers.items():
            axis.plot([], [], color=INK, marker=marker, linestyle="", label=f"bias {name}")
        axis.set_xlabel("predicted error of bind")
        axis.set_ylabel("measured error of bind")
        figure.legend(loc="outside right upper", fontsize=9)
        return written(figure, "Predicted and measured errors of bind")


def _arms(record: Record, judgement: Record) -> Iterator[tuple[str, Record, dict[str, Any]]]:
    """Yields the unchanged model, the options and the status quo on top, each with its name and line."""
    unchanged = find_cell(record, {"scaling": "none", "bias": "none", "temperature": False})
    if unchanged is not None:
        yield "unchanged model", unchanged, _UNCHANGED_LINE
    quo = find_cell(record, judgement["status_quo"])
    for one in judgement["options"]:
        cell = find_cell(record, one["option"])
        if cell is not None and cell is not unchanged and cell is not quo:
            yield one["option"]["change"], cell, _line(one["option"])
    if quo is not None:
        yield _name_of_quo(judgement), quo, {"color": INK, "linewidth": 2.4}


def _name_of_quo(judgement: Record) -> str:
    # Cells are run exactly; a deployment that is known to have a fault is not among them.
    faulty = any(one["option"]["number"] == "implementation" for one in judgement["options"])
    return "status quo, run exactly" if faulty else "status quo"


def _line(option: Record) -> dict[str, Any]:
    match option["number"]:
        case "1":
            return {"color": COLOURS["ntk"], "linestyle": "--", "linewidth": 1.6}
        case "2":
            return {"color": "#b03a6f", "linestyle": "-.", "linewidth": 1.6}
        case "3":
            return {"color": COLOURS.get(option["scaling"], OPEN), "linewidth": 1.4}
    return {"color": "#8c6d1f", "linestyle": ":", "linewidth": 1.6}


def _middles(edges: Sequence[float]) -> np.ndarray:
    # The first stratum starts at 0, which no log axis has: half its end stands for it.
    low = np.maximum(np.asarray(edges[:-1], dtype=float), edges[1] / 4)
    return np.sqrt(low * np.asarray(edges[1:], dtype=float))


def _legend(figure: Figure, *axes: Axes) -> None:
    """Puts one legend above all panels, an entry a name whichever panel has it."""
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = 3 if figure.get_figwidth() < 9 else 5
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns, fontsize=9)
