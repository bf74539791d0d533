"""The schemes of a diagnosis drawn from its record: wavelengths, biases by offset, coherence of trained relations."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from rope_jax.biases import bucket_starts
from rope_jax.diagnosis.report import labels
from rope_jax.diagnosis.report.reading import Reading, Record
from rope_jax.diagnosis.report.svg import INK, legend, length_axis, styled, written
from rope_jax.diagnosis.report.wording import tokens
from rope_jax.diagnosis.theory import resolution

__all__ = ["biases", "coherence", "wavelengths"]

_FLOOR = -20.0  # nats: a key this far down is not seen, whatever its content
_POINTS = 60


def _frequencies(one: Reading) -> dict[str, np.ndarray]:
    """Returns the inverse frequencies of every scaling that was run, the trained ones first."""
    found: dict[str, np.ndarray] = {}
    for run in one.record["configurations"]:
        if run["inverse_frequencies"]:
            found.setdefault(run["scaling"], np.asarray(run["inverse_frequencies"], np.float64))
    pairs = {len(values) for values in found.values()}
    return found if "none" in found and len(pairs) == 1 else {}


def _line(name: str) -> dict[str, Any]:
    return {
        "color": labels.colour(name, ink=INK),
        "linewidth": 2.0 if name == "none" else 1.4,
        "linestyle": "--" if name == "none" else "-",
        "label": "as trained" if name == "none" else labels.label(name),
    }


def wavelengths(one: Reading) -> str:
    """Returns the tokens of a turn, pair by pair, as trained and under every scaling; "" if nothing rotates."""
    known, lengths = _frequencies(one), one.record["lengths"]
    if not known:
        return ""
    with styled():
        figure = Figure(figsize=(7.2, 3.5), layout="constrained")
        axis = figure.subplots()
        for name, theta in known.items():
            turning = theta > 0
            axis.plot(np.flatnonzero(turning), 2 * np.pi / theta[turning], marker="o", markersize=3, **_line(name))
        for key, shown in (("trained", one.short), ("target", one.long)):
            axis.axhline(lengths[key], color=INK, linewidth=0.8, linestyle=":")
            axis.annotate(f"{key} length {shown}", (0, lengths[key]), va="bottom", fontsize=8)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("rotary pair, fastest first")
        axis.set_ylabel("one turn (tokens)")
        figure.legend(loc="outside right upper", fontsize=9)
        return written(figure, "Wavelengths, trained and scaled")


def biases(one: Reading) -> str:
    """Returns a panel a bias, a line a head; "" where there is no bias whose numbers are known."""
    shown: dict[str, Record] = {}
    for run in one.record["configurations"]:
        if run["slopes"] is not None or (run["table"] is not None and run["max_distance"]):
            shown.setdefault(run["bias"], run)
    if not shown:
        return ""
    target = one.record["lengths"]["target"]
    with styled():
        figure = Figure(figsize=(3.7 * len(shown) + 0.5, 2.9), layout="constrained")
        for axis, (name, run) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
            offsets, curves, drawn = _curves(run, target)
            for head, curve in enumerate(curves):
                fade = 0.4 + 0.6 * head / max(len(curves) - 1, 1)
                colour = labels.colour(name, ink=INK)
                axis.plot(offsets, curve, color=colour, alpha=fade, linewidth=1.3, drawstyle=drawn)
            axis.set_xlim(1, target)
            if curves.min() < _FLOOR:
                axis.set_ylim(_FLOOR, 0.5)
            axis.set_title(labels.label(name), fontsize=10)
            length_axis(axis, one)
        figure.supxlabel("offset (tokens, log scale; dotted: trained length)", fontsize=10)
        figure.supylabel("bias (nats)", fontsize=10)
        return written(figure, "The biases against the offset")


def _curves(run: Record, end: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """Returns offsets, `[heads, offsets]` nats, and how matplotlib is to join them."""
    if run["slopes"] is not None:
        offsets = np.unique(np.geomspace(1, end, _POINTS).round())
        return offsets, -np.asarray(run["slopes"])[:, None] * offsets, "default"
    table = np.asarray(run["table"])
    starts = bucket_starts(table.shape[1], run["max_distance"])
    inside = [k for k, start in enumerate(starts) if start <= end]
    # The last value holds to the end; offset 0 has no place on a log axis and shares no bucket with others.
    offsets = np.array([*(starts[k] for k in inside), end], dtype=float)
    offsets[0] = 0.5
    return offsets, table[:, [*inside, inside[-1]]], "steps-post"


def coherence(one: Reading) -> str:
    """Returns what every scaling makes of relations of trained offsets, all pairs weighed alike; "" if none rotates."""
    known, lengths = _frequencies(one), one.record["lengths"]
    if len(known) < 2 or lengths["trained"] < 8:
        return ""
    trained = known["none"]
    weights = resolution.uniform_weights(len(trained))
    stars = [int(star) for star in np.unique(np.geomspace(1, lengths["trained"] / 2, 14).round())]
    # A head's peak lies within the stretch of the scaling, twice over to be sure.
    reach = min(lengths["target"], round(2 * lengths["factor"] * stars[-1]) + 2)
    with styled():
        figure = Figure(figsize=(8.6, 3.4), layout="constrained")
        place, lands = figure.subplots(1, 2)
        for name, theta in known.items():
            curves = resolution.coherence_curves(trained, theta, weights, stars, reach)
            style = _line(name)
            lands.plot(stars, [max(resolution.peak(row)[0], 1) for row in curves], **style)
            place.plot(stars, [row[star] for row, star in zip(curves, stars, strict=True)], **style)
        place.set_title("coherence left in place", fontsize=10)
        lands.set_title("where the peak lands (tokens)", fontsize=10)
        for axis in (place, lands):
            axis.set_xscale("log", base=2)
            axis.set_xlabel("trained offset (tokens)")
            axis.xaxis.set_major_formatter("{x:g}")
        lands.set_yscale("log", base=2)
        lands.yaxis.set_major_formatter(lambda value, _: tokens(round(value)))
        place.set_ylim(top=1.05)
        legend(figure, place, columns=len(known))
        return written(figure, "Coherence of trained relations under every scaling")
