"""The inspection record drawn: wavelengths, coherence, and the blur of attention, as SVG or PNG."""

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from rope_jax.diagnosis.theory.plain_text import drawn_plainly
from rope_jax.diagnosis.theory.details import tokens

# Okabe and Ito's colours, distinguished by colour-blind readers; markers and dashes say the same again.
_CLASSES = {
    "unchanged": ("#56b4e9", "s"),
    "extrapolated": ("#009e73", "o"),
    "interpolated": ("#0072b2", "D"),
    "out of distribution": ("#d55e00", "X"),
    "still": ("#999999", "v"),
}
_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#56b4e9",
    "#8c6d1f",
    "#777777",
    "#3d2b8f",
    "#000000",
)
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
    """Returns an inspection's record as a picture of three panels.

    Args:
      record: see `keys.KEYS`.
      kind: "svg" or "png".
    """
    with drawn_plainly(_STYLE):
        # Margins by hand: an automatic layout takes longer than all the drawing.
        figure = Figure(figsize=(15, 5.8))
        wavelengths, coherence, blur = figure.subplots(
            1, 3, gridspec_kw={"left": 0.06, "right": 0.99, "bottom": 0.21, "top": 0.87, "wspace": 0.2}
        )
        _wavelengths(wavelengths, record)
        _coherence(coherence, record)
        _blur(blur, record)
        model, deployed = record["model"], record["deployed"]
        figure.suptitle(
            f"{model['origin']}: {model['trained_length']:,} to {model['target_length']:,} tokens, deployed "
            f"{deployed['scaling']} + {deployed['bias']}    [{record['status']}]",
            y=0.965,
        )
        styles = _styles(record)
        if styles:
            handles = [blur.plot([], [], label=label, **style)[0] for label, style in _legend(record, styles)]
            figure.legend(
                handles=handles, loc="lower center", ncols=min(5, len(handles)), fontsize=8.5, handlelength=3.2
            )
        out = io.BytesIO()
        if kind == "png":
            figure.set_dpi(110)
            FigureCanvasAgg(figure).print_png(out)
        else:
            metadata = {"Date": None, "Creator": None, "Title": "rope-jax inspect"}
            FigureCanvasSVG(figure).print_svg(out, metadata=metadata)
    return out.getvalue()


def _styles(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns a line style for every scaling; dashes say that there is no bias."""
    scalings = list(dict.fromkeys(option["scaling"] for option in record["options"]))
    return {
        name: {"color": _COLOURS[k % len(_COLOURS)], "marker": _MARKERS[k % len(_MARKERS)], "markersize": 5}
        for k, name in enumerate(scalings)
    }


def _dashes(option: Mapping[str, Any]) -> str:
    return "--" if option["bias"] == "none" else "-"


def _legend(record: Mapping[str, Any], styles: Mapping[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (
            option["name"] + (" (deployed)" if option["change"] == "deployed" else ""),
            {**styles[option["scaling"]], "linestyle": _dashes(option)},
        )
        for option in record["options"]
    ]


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


def _coherence(axis: Axes, record: Mapping[str, Any]) -> None:
    axis.set_title("Coherence in place: what is left of a trained relation")
    if not any(point["trained"] for option in record["options"] for point in option["curve"]):
        _nothing(axis)
        return
    drawn = set()
    for option in record["options"]:
        if option["scaling"] in drawn:
            continue
        drawn.add(option["scaling"])
        points = [point for point in option["curve"] if point["trained"]]
        axis.plot(
            [point["offset"] for point in points],
            [point["coherence"] for point in points],
            **_styles(record)[option["scaling"]],
        )
    axis.set_ylim(top=1.05)
    axis.set_xlabel("offset Δ* of the relation (tokens); the same for every bias")
    axis.set_ylabel("coherence C(Δ* → Δ*); 1 is untouched")
    _offset_axis(axis, record, trained_only=True)


def _blur(axis: Axes, record: Mapping[str, Any]) -> None:
    axis.set_title(f"Blur of attention at A = {record['deployed']['amplitude']:g} nats (dashed: no bias)")
    if not record["options"]:
        _nothing(axis)
        return
    for option in reversed(record["options"]):
        # Heads tuned before the change and after it are different questions: no line joins them.
        for trained in (True, False):
            points = [point for point in option["curve"] if point["trained"] == trained]
            axis.plot(
                [point["offset"] for point in points],
                # A logarithmic axis has no 0: half a token stands for it.
                [max(point["g50"][1], 0.5) for point in points],
                linestyle=_dashes(option),
                **_styles(record)[option["scaling"]],
            )
    if not record["options"][0]["curve"][-1]["trained"]:
        axis.axvline(record["model"]["trained_length"], color="black", linewidth=1, linestyle=":")
    _log_axis(axis, 0.35, record["model"]["target_length"])
    axis.set_xlabel("offset Δ* of the relation (tokens)\ndotted: trained length; heads beyond it are tuned anew")
    axis.set_ylabel("g50: tokens that hold half of attention (0 drawn at 0.5)")
    _offset_axis(axis, record, trained_only=False)


def _log_axis(axis: Axes, low: float, high: float) -> None:
    """Makes y logarithmic, labelled with plain numbers: powers would be formulas."""
    axis.set_yscale("log", subs=[])
    ticks = [10**k for k in range(-1, 20) if low <= 10**k <= high]
    axis.set_yticks(ticks, [tokens(tick) for tick in ticks], minor=False)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylim(low, high)


def _offset_axis(axis: Axes, record: Mapping[str, Any], *, trained_only: bool) -> None:
    offsets = [p["offset"] for p in record["options"][0]["curve"] if p["trained"] or not trained_only]
    axis.set_xscale("log", subs=[])
    axis.set_xticks(offsets, [f"{offset:,}" for offset in offsets], rotation=0 if len(offsets) < 8 else 30)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(visible=True, axis="y", color="#e5e5e5", linewidth=0.6)


def _nothing(axis: Axes) -> None:
    axis.text(0.5, 0.5, "nothing rotates in this model", ha="center", va="center", transform=axis.transAxes)
    axis.set_xticks([])
    axis.set_yticks([])
