"""Pictures as inline SVG that takes the page's own text colour, so that one picture serves light and dark."""

import io
import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from rope_jax.diagnosis.report.reading import Reading
from rope_jax.diagnosis.report.wording import tokens
from rope_jax.diagnosis.theory.plain_text import drawn_plainly

INK = "#010203"  # stands for the page's text colour until the SVG is written
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "sans-serif",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}


def styled():
    """Returns the context in which a figure is made and written."""
    return drawn_plainly(STYLE)


def length_axis(axis: Axes, one: Reading) -> None:
    """Makes the x axis one of tokens, logarithmic, with the trained length dotted."""
    axis.axvline(one.record["lengths"]["trained"], color=INK, linewidth=0.8, linestyle=":")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: tokens(round(value)))
    axis.tick_params(axis="x", labelsize=8)


def legend(figure: Figure, axis: Axes, *, columns: int = 3) -> None:
    """Puts what is drawn in one of the axes above all of them."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=columns, fontsize=9)


def written(figure: Figure, title: str) -> str:
    """Returns the `<svg>` element of a figure.

    Args:
      figure: what is drawn.
      title: for readers who do not see it; other than those of the page's other figures, since names made of it tell
        the parts of one from those of another.
    """
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None, "Title": title})
    text = out.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    referred = {*re.findall(r'="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)}
    # matplotlib counts from 1 in every figure, and a name may stand only once in a page.
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in referred else "", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "sans-serif", text)
    # A hundredth of a point is finer than any screen.
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), re.sub(r"<!--.*?-->\s*", "", text))
    return text.replace(INK, "currentColor")
