"""The table of how other programs read a config."""

import math
import textwrap
from collections.abc import Sequence

from rope_jax.checkpoints.peer_readings import Difference, Reading

_WIDTH = 80


def readings_table(found: Sequence[Reading], *, origin: str) -> str:
    """Returns a line for each reader and layer type, and what it does otherwise below it; at most 80 columns.

    Args:
      found: readings, not none.
      origin: the config's name.
    """
    lengths = next(([one.length for one in each.differences] for each in found if each.differences), [])
    title = (
        f"{origin}, as others read it, beside what it says. The phase is the largest difference of an angle at an "
        "offset of that many tokens; the factor is what cos and sin are multiplied by, over the config's own."
    )
    heads = [f"at {length:,}" for length in lengths]
    widths = [max(14, len(head) + 1) for head in heads]
    across = lambda cells: "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))  # noqa: E731
    lines = [*textwrap.wrap(title, _WIDTH), "", f"{'reader':<19}{'layers':<8}{across(heads)}{'factor':>7}"]
    for one in found:
        label = f"{one.peer:<19}{one.layer_type.removesuffix('_attention'):<8}"
        if not one.differences:
            lines.append(f"{label}   stops with an error")
        elif one.same:
            lines.append(f"{label}{'the same':>14}")
        else:
            lines.append(f"{label}{across(map(_phase, one.differences))}{one.differences[-1].factor:>7.4g}")
        for reason in one.reasons:
            lines += textwrap.wrap(reason, _WIDTH - 4, initial_indent="  - ", subsequent_indent="    ")
    return "\n".join(lines)


def _phase(difference: Difference) -> str:
    turns = difference.phase / (2 * math.pi)
    if turns < 1:
        return f"{difference.phase:.2g} rad"
    return f"{turns:.1f} turns" if turns < 10 else f"{turns:,.0f} turns" if turns < 1e5 else f"{turns:.1e} turns"
