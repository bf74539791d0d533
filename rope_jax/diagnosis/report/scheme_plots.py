"""The schemes of a case drawn from its record: biases by offset, wavelengths, and what a trained relation becomes."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from rope_jax.biases import bucket_starts
from rope_jax.diagnosis.report.case_plots import promising
from rope_jax.diagnosis.report.case_table import cell_name
from rope_jax.diagnosis.report.svg import COLOURS, INK, styled, written
from rope_jax.diagnosis.theory import resolution

BIASES = {"alibi": "A: a line (ALiBi)", "alibi_star": "A*: the largest harmless line", "t5": "B: buckets (T5)"}
_FLOOR = -20.0  # nats: a key this far down is not seen, whatever its content
_OTHER = "#8a8f96"
_BANDS = ("#d55e00", "#cc79a7", "#009e73", "#3b8fd1")  # from the slowest pairs to the fastest


def bias_curves(record: Mapping[str, Any]) -> str:
    """Returns a column a bias, near offsets above and all of them below, a line a head; "" where there is no bias."""
    made = record["biases"][0] if record["biases"] else {}
    shown = {name: bias for name, bias in made.items() if "slopes" in bias or "table" in bias}
    if not shown:
        return ""
    lengths, settings = record["lengths"], record["settings"]
    near = min(round(1.25 * settings["max_distance"]), lengths["target"])
    with styled():
        figure = Figure(figsize=(3.7 * len(shown) + 0.4, 4.9), layout="constrained")
        axes = figure.subplots(2, len(shown), squeeze=False)
        for column, (name, bias) in zip(axes.T, shown.items(), strict=True):
            for axis, end in zip(column, (near, lengths["target"]), strict=True):
                _bias(axis, bias, end, settings["max_distance"])
            column[0].set_title(BIASES.get(name, name), fontsize=10)
            column[1].axvline(lengths["trained"], color=INK, linewidth=0.8, linestyle=":")
            column[1].set_xscale("log", base=2)
            column[1].xaxis.set_major_formatter("{x:g}")
        figure.supxlabel("offset (tokens; below, log scale, dotted: trained length)", fontsize=10)
        figure.supylabel("bias (nats); a line a head", fontsize=10)
        return written(figure, "The biases against the offset")


def _bias(axis: Axes, bias: Mapping[str, Any], end: int, max_distance: int) -> None:
    if "slopes" in bias:
        offsets = np.unique(np.geomspace(1, end, 60).round())
        curves = -np.asarray(bias["slopes"])[:, None] * offsets
        drawn = "default"
    else:
        buckets = np.asarray(bias["table"])
        starts = bucket_starts(buckets.shape[1], max_distance)
        inside = [k for k, start in enumerate(starts) if start <= end]
        # The last value holds to the end; offset 0 has no place on a log axis and shares no bucket with others.
        offsets = np.array([*(starts[k] for k in inside), end], dtype=float)
        offsets[0] = 0.5
        curves = buckets[:, [*inside, inside[-1]]]
        drawn = "steps-post"
    for head, curve in enumerate(curves):
        fade = 0.4 + 0.6 * head / max(len(curves) - 1, 1)
        axis.plot(offsets, curve, color=COLOURS["ntk"], alpha=fade, linewidth=1.3, drawstyle=drawn)
    axis.set_xlim(1, end)
    if curves.min() < _FLOOR:
        axis.set_ylim(_FLOOR, 0.5)


def bands(record: Mapping[str, Any]) -> str:
    """Returns a panel a retrofit: the far head's logit by distance, a line a band, and the bias; "" without a head."""
    predicted = record.get("prediction") or {}
    shown = predicted.get("bands")
    if not shown:
        return ""
    names = _band_names(predicted["turns"])
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    with styled():
        figure = Figure(figsize=(3.7 * columns, 2.6 * rows + 0.6), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        for axis, one in zip(axes, shown, strict=False):
            edges = np.asarray(one["edges"])
            middles = np.sqrt(edges[:-1] * edges[1:])
            for name, colour, curve in zip(names, _BANDS, one["logits"], strict=True):
                axis.plot(middles, curve, color=colour, linewidth=1.3, label=name)
            bias = np.maximum(one["bias_nats"], _FLOOR)
            axis.plot(middles, bias, color=INK, linewidth=1.2, linestyle="--", label="bias")
            whole = np.maximum(np.sum(one["logits"], axis=0) + one["bias_nats"], _FLOOR)
            axis.plot(middles, whole, color=INK, linewidth=2, label="together")
            axis.axvline(record["lengths"]["trained"], color=INK, linewidth=0.8, linestyle=":")
            axis.set_title(cell_name(one), fontsize=10)
            axis.tick_params(labelbottom=True)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
        figure.supxlabel("distance (tokens, log scale; dotted: trained length)", fontsize=10)
        figure.supylabel("logit (nats)", fontsize=10)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9)
        return written(figure, "What each band of rotary pairs adds")


def _band_names(turns: Sequence[float]) -> list[str]:
    between = [f"{low:g} to {high:g} turns" for low, high in itertools.pairwise(turns)]
    return [f"less than {turns[0]:g} turn in training", *between, f"{turns[-1]:g} turns and more"]


def wavelengths(record: Mapping[str, Any]) -> str:
    """Returns the tokens of a turn, pair by pair, as trained and under every scaling; "" if nothing rotates."""
    known, lengths = record.get("frequencies") or {}, record["lengths"]
    if "none" not in known:
        return ""
    with styled():
        figure = Figure(figsize=(7.4, 3.6), layout="constrained")
        axis = figure.subplots()
        for name, values in known.items():
            theta = np.asarray(values)
            turning = theta > 0
            axis.plot(
                np.flatnonzero(turning),
                2 * np.pi / theta[turning],
                color=COLOURS.get(name, _OTHER),
                marker="o",
                markersize=3 if name != "none" else 5,
                linewidth=1.2 if name != "none" else 2,
                label="trained" if name == "none" else name,
            )
        for key in ("trained", "target"):
            axis.axhline(lengths[key], color=INK, linewidth=0.8, linestyle=":")
            axis.annotate(f"{key} length {lengths[key]:,}", (0, lengths[key]), va="bottom", fontsize=8)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("rotary pair, fastest first")
        axis.set_ylabel("one turn (tokens)")
        figure.legend(loc="outside right upper", fontsize=9)
        return written(figure, "Wavelengths, trained and scaled")


def coherence(record: Mapping[str, Any]) -> str:
    """Returns what every scaling makes of relations of trained offsets, all pairs weighed alike; "" if none rotates."""
    known, lengths = record.get("frequencies") or {}, record["lengths"]
    if "none" not in known or lengths["trained"] < 8:
        return ""
    trained = np.asarray(known["none"])
    weights = resolution.uniform_weights(len(trained))
    stars = [int(star) for star in np.unique(np.geomspace(1, lengths["trained"] / 2, 14).round())]
    example = min(stars, key=lambda star: abs(star - lengths["trained"] / 8))
    seen = min(4 * example, lengths["target"])
    # One head's curve has many turns: only what is deployed and what is proposed can be told apart.
    deployed = {one["status_quo"]["scaling"] for one in record["judgements"]}
    proposed = {option["scaling"] for one in record["judgements"] if (option := promising(one))}
    with styled():
        figure = Figure(figsize=(11.2, 3.4), layout="constrained")
        place, lands, curve = figure.subplots(1, 3)
        for name, values in known.items():
            # Not on and on: a head's peak lies within the stretch of the scaling, twice over to be sure.
            reach = min(lengths["target"], round(2 * lengths["factor"] * stars[-1]) + 2)
            curves = resolution.coherence_curves(trained, np.asarray(values), weights, stars, reach)
            line: dict[str, Any] = {"color": COLOURS.get(name, _OTHER), "linewidth": 1.4}
            if name == "none":
                line |= {"linestyle": "--", "linewidth": 1}
            place.plot(stars, [row[star] for row, star in zip(curves, stars, strict=True)], **line)
            lands.plot(stars, [max(resolution.peak(row)[0], 1) for row in curves], **line)
            lands.plot([], [], label="trained" if name == "none" else name, **line)
            if name in {"none"} | deployed | proposed:
                curve.plot(np.arange(seen), curves[stars.index(example)][:seen], **line)
        place.set_title("coherence left in place", fontsize=10)
        lands.set_title("where the head's peak lands", fontsize=10)
        curve.set_title(f"the head of offset {example} itself", fontsize=10)
        for axis in (place, lands):
            axis.set_xscale("log", base=2)
            axis.set_xlabel("trained offset (tokens)")
        lands.set_yscale("log", base=2)
        for each in (place.xaxis, lands.xaxis, lands.yaxis):
            each.set_major_formatter("{x:g}")
        place.set_ylim(top=1.05)
        curve.axvline(example, color=INK, linewidth=0.8, linestyle=":")
        curve.set_xlabel("offset (tokens)")
        figure.legend(loc="outside upper left", ncols=len(known), fontsize=9)
        return written(figure, "Coherence of trained relations under every scaling")
