"""The inspection record drawn: wavelengths, and what is left of trained relations, as SVG or PNG."""

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from rope_jax.diagnosis.theory.details import tokens
from rope_jax.diagnosis.theory.plain_text import drawn_plainly

# Okabe and Ito's colours, distinguished by colour-blind readers; markers and dashes say the same again.
_CLASSES = {
    "unchanged": ("#56b4e9", "s"),
    "extrapolated": ("#009e73", "o"),
    "interpolated": ("#0072b2", "D"),
    "out of distribution": ("#d55e00", "X"),
    "still": ("#999999", "v"),
}
_LINES = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d1f", "#777777", "#3d2b8f", "#000000")
_MARKERS = "os^DvPX<>*"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rope_jax",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(record: Mapping[str, Any], *, kind: str) -> bytes:
    """Returns an inspection's record as a picture of two panels.

    Args:
      record: see `keys.KEYS`.
      kind: "svg" or "png".
    """
    with drawn_plainly(_STYLE):
        # Margins by hand: an automatic layout takes longer than all the drawing.
        figure = Figure(figsize=(11, 5.8))
        margins = {"left": 0.08, "right": 0.99, "bottom": 0.21, "top": 0.87, "wspace": 0.2}
        wavelengths, coherence = figure.subplots(1, 2, gridspec_kw=margins)
        _wavelengths(wavelengths, record)
        styles = _coherence(coherence, record)
        model, deployed = record["model"], record["deployed"]
        figure.suptitle(
            f"{model['origin']}: {model['trained_length']:,} to {model['target_length']:,} tokens, deployed "
            f"{deployed['scaling']} + {deployed['bias']}    [{record['status']}]",
            y=0.965,
        )
        figure.legend(handles=styles, loc="lower center", ncols=5, fontsize=8.5, handlelength=3.2)
        out = io.BytesIO()
        if kind == "png":
            figure.set_dpi(110)
            FigureCanvasAgg(figure).print_png(out)
        else:
            metadata = {"Date": None, "Creator": None, "Title": "rope-jax inspect"}
            FigureCanvasSVG(figure).print_svg(out, metadata=metadata)
    return out.getvalue()


def _wavelengths(axis: Axes, record: Mapping[str, Any]) -> None:
    axis.set_title("Wavelengths: trained (grey) and deployed")
    group = record["layer_groups"][record["main_group"]]
    if not group["pairs"]:
        _nothing(axis)
        return
    pairs = [pair for pair in group["pairs"] if pair["wavelength"] is not None]
    axis.plot([p["pair"] for p in pairs], [p["wavelength"] for p in pairs], color="#bbbbbb", linewidth=2, zorder=1)
    for name, (colour, marker) in _CLASSES.items():
        here = [p for p in pairs if p["class"] == name and p["scaled_wavelength"] is not None]
        if here:
            axis.scatter(
                [p["pair"] for p in here],
                [p["scaled_wavelength"] for p in here],
                s=18,
                color=colour,
                marker=marker,
                label=f"{name} ({len(here)})",
                zorder=2,
            )
    for key, dash, text in (("seen", ":", "offsets seen in training"), ("reach", "-.", "offsets at the target")):
        axis.axhline(group[key], color="black", linewidth=1, linestyle=dash, label=f"{text}: {group[key]:,}")
    shown = [p["wavelength"] for p in pairs] + [p["scaled_wavelength"] or 1.0 for p in pairs]
    _log_axis(axis, min(shown) / 2, max(*shown, group["reach"]) * 30)  # room for the legend
    axis.set_xlabel(f"pair (layers {group['name']})")
    axis.set_ylabel("wavelength (tokens)")
    axis.legend(loc="upper left", fontsize=8, ncols=2, columnspacing=1.0)


def _coherence(axis: Axes, record: Mapping[str, Any]) -> list[Any]:
    """Draws one line a scaling, the same for every bias, and returns them."""
    axis.set_title("Coherence in place: what is left of a trained relation")
    curves = {option["scaling"]: option["curve"] for option in record["options"]}
    if not curves:
        _nothing(axis)
        return []
    lines = []
    for k, (name, curve) in enumerate(curves.items()):
        offsets = [point["offset"] for point in curve]
        colour, marker = _LINES[k % len(_LINES)], _MARKERS[k % len(_MARKERS)]
        label = f"{name} (deployed)" if k == 0 else name
        kept = [point["coherence"] for point in curve]
        lines += axis.plot(offsets, kept, color=colour, marker=marker, markersize=5, label=label)
    axis.set_ylim(top=1.05)
    axis.set_xlabel("offset Δ* of the relation (tokens)")
    axis.set_ylabel("coherence C(Δ* → Δ*); 1 is untouched")
    axis.set_xscale("log", subs=[])
    axis.set_xticks(offsets, [f"{offset:,}" for offset in offsets], rotation=0 if len(offsets) < 8 else 30)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(visible=True, axis="y", color="#e5e5e5", linewidth=0.6)
    return lines


def _log_axis(axis: Axes, low: float, high: float) -> None:
    """Makes y logarithmic, labelled with plain numbers: powers would be formulas."""
    axis.set_yscale("log", subs=[])
    ticks = [10**k for k in range(-1, 20) if low <= 10**k <= high]
    axis.set_yticks(ticks, [tokens(tick) for tick in ticks], minor=False)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylim(low, high)


def _nothing(axis: Axes) -> None:
    axis.text(0.5, 0.5, "nothing rotates in this model", ha="center", va="center", transform=axis.transAxes)
    axis.set_xticks([])
    axis.set_yticks([])
