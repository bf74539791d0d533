"""The diagnosis of text drawn as inline SVG."""

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from rope_jax.biases import paper_slopes, t5_bias
from rope_jax.diagnosis.evaluation.measurement import Measurement
from rope_jax.diagnosis.report.svg import COLOURS, INK, styled, written
from rope_jax.statistics.intervals import Estimate

BIAS_TITLES = {
    "none": "no bias",
    "alibi": "ALiBi, paper slopes",
    "alibi_star": "ALiBi, largest harmless (A*)",
    "t5": "T5 buckets",
}


def loss_by_position(measured: Measurement) -> str:
    """Returns one panel a bias arm: loss against position, a line a scaling arm with its 95 % band."""
    biases = list(dict.fromkeys(bias for _, bias in measured.cells))
    with styled():
        columns = min(2, len(biases))
        rows = -(-len(biases) // columns)
        figure = Figure(figsize=(4.6 * columns, 3.0 * rows + 0.5), layout="constrained")
        axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)).ravel()
        middles = [(low + high - 1) / 2 for low, high in measured.curve_bins]
        for axis, bias in zip(axes, biases, strict=False):
            for name in measured.rules:
                curve = measured.curves[name, bias]
                mean = [value.mean for value in curve]
                axis.plot(middles, mean, color=COLOURS[name], label=name, linewidth=1.6)
                if curve[0].low is not None:
                    low, high = [value.low for value in curve], [value.high for value in curve]
                    axis.fill_between(middles, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
            axis.axvline(measured.trained_length, color=INK, linewidth=0.8, linestyle=":")
            axis.set_title(BIAS_TITLES[bias], fontsize=10)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
        top = max(value.mean for curve in measured.curves.values() for value in curve)
        axes[0].set_ylim(0, min(top * 1.05, 4 * np.log(measured.checkpoint.config.vocab_size)))
        for axis in axes[len(biases) :]:
            axis.set_visible(False)
        figure.supxlabel("position (tokens, log scale); dotted: trained length", fontsize=10)
        figure.supylabel("loss (nats a token)", fontsize=10)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9)
        return written(figure, "Loss by position for every scaling and bias")


def cost_and_gain(measured: Measurement) -> str:
    """Returns the cells as points: short-context cost across, long-context gain up, linear to 0.1 and then log."""
    markers = dict(zip(BIAS_TITLES, ("o", "s", "^", "D"), strict=True))
    with styled():
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axis = figure.subplots()
        for (scaling, bias), cell in measured.cells.items():
            axis.errorbar(
                cell.short_cost.mean,
                cell.long_gain.mean,
                xerr=_whiskers(cell.short_cost),
                yerr=_whiskers(cell.long_gain),
                fmt=markers[bias],
                color=COLOURS[scaling],
                markersize=6,
                elinewidth=0.8,
            )
        axis.axhline(0, color=INK, linewidth=0.6)
        axis.axvline(0, color=INK, linewidth=0.6)
        for scale in (axis.set_xscale, axis.set_yscale):
            scale("symlog", linthresh=0.1)  # a destroyed cell must not squeeze the others into one point
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_formatter("{x:g}")
        axis.set_xlabel(f"short-context cost (nats, positions < {measured.trained_length}); left is better")
        axis.set_ylabel("long-context gain (nats); up is better")
        for name in measured.rules:
            axis.plot([], [], color=COLOURS[name], linewidth=3, label=name)
        for bias in dict.fromkeys(bias for _, bias in measured.cells):
            axis.plot([], [], color=INK, marker=markers[bias], linestyle="", label=BIAS_TITLES[bias])
        figure.legend(loc="outside right upper", fontsize=8)
        return written(figure, "Short-context cost against long-context gain of every cell")


def effect_sizes(measured: Measurement) -> str:
    """Returns main effects and interactions on the short and on the long loss, with intervals; "" if none was run."""
    first = next(iter(measured.effects.values()))
    names = [f"scaling {s}" for s in first.scaling] + [f"bias {b}" for b in first.bias]
    names += [f"{s} x {b}" for s, b in first.interaction]
    if not names:
        return ""
    with styled():
        figure = Figure(figsize=(8.4, 0.24 * len(names) + 1.1), layout="constrained")
        for axis, (reach, effects) in zip(figure.subplots(1, 2, sharey=True), measured.effects.items(), strict=True):
            values = [*effects.scaling.values(), *effects.bias.values(), *effects.interaction.values()]
            for at, value in enumerate(values):
                colour = COLOURS["ntk"] if at < len(effects.scaling) + len(effects.bias) else COLOURS["by_parts"]
                axis.errorbar(value.mean, at, xerr=_whiskers(value), fmt="o", color=colour, markersize=4)
            axis.axvline(0, color=INK, linewidth=0.6)
            axis.set_title("loss up to the trained length" if reach == "short" else "loss beyond it", fontsize=10)
            axis.set_xlabel("nats a token; right is worse")
            axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_ylim(len(names) - 0.5, -0.5)
        return written(figure, "Main effects and interactions")


def bias_curves(measured: Measurement) -> str:
    """Returns the bias of every head against the offset, one panel a bias arm that has one."""
    heads = measured.checkpoint.config.num_heads
    offset = np.unique(np.round(np.geomspace(1, measured.settings.target_length, 200)).astype(int))
    panels: dict[str, np.ndarray] = {}
    for name in measured.settings.biases:
        if name == "alibi":
            panels[name] = -paper_slopes(heads)[:, None] * offset
        elif name == "alibi_star" and measured.folds and measured.folds[0].multiplier is not None:
            panels[name] = -measured.folds[0].multiplier.value * paper_slopes(heads)[:, None] * offset
        elif name == "t5":
            panels[name] = _t5_curves(measured, offset)
    if not panels:
        return ""
    with styled():
        figure = Figure(figsize=(3.1 * len(panels), 2.9), layout="constrained")
        for axis, (name, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for head, curve in enumerate(values):
                axis.plot(offset, curve, color=COLOURS["ntk"], alpha=0.35 + 0.6 * head / heads, linewidth=1.2)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_title(BIAS_TITLES[name], fontsize=10)
            axis.axvline(measured.trained_length, color=INK, linewidth=0.8, linestyle=":")
        figure.supxlabel("offset (tokens, log scale); a line a head", fontsize=10)
        figure.supylabel("bias (nats)", fontsize=10)
        return written(figure, "The biases, head by head")


def _t5_curves(measured: Measurement, offset: np.ndarray) -> np.ndarray:
    given = measured.settings.t5_table
    fitted = measured.folds[0].table if measured.folds else None
    table = given if given is not None else fitted.table if fitted is not None else None
    assert table is not None
    return np.asarray(t5_bias(table, max_distance=measured.settings.max_distance)(jnp.asarray(offset)))


def _whiskers(value: Estimate) -> list[list[float]] | None:
    if value.low is None or value.high is None:
        return None
    return [[value.mean - value.low], [value.high - value.mean]]
