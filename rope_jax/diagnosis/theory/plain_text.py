"""Texts of a picture as they stand: names come from users, and none of them is a formula or a reason to warn."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib


@contextlib.contextmanager
def drawn_plainly(style: Any) -> Iterator[None]:
    """Draws and writes with a style, no text of which is typeset as a formula, whatever dollar signs it holds.

    Args:
      style: matplotlib's settings. Axes that matplotlib itself would label with formulas, as powers on a logarithmic
        scale, need a formatter of their own.
    """
    with matplotlib.rc_context({**style, "text.parse_math": False}), warnings.catch_warnings():
        # Readers of an SVG have fonts of their own; in a PNG a box stands for the letter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield
