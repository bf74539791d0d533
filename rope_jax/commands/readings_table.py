"""The table of how other programs read a config."""

import math
import textwrap
from collections.abc import Sequence

from rope_jax.checkpoints.peer_readings import Reading

_WIDTH = 80


def readings_table(found: Sequence[Reading], *, origin: str) -> str:
    """Returns a line for each reader and layer type, and what it does otherwise below it; at most 80 columns.

    Args:
      found: readings, not none.
      origin: the config's name.
    """
    lengths = next(([one.length for one in each.differences] for each in found if each.differences), [])
    head = (
        f"{origin}, as others read it, beside what it says. The phase is the largest difference of an angle at an "
        "offset of that many tokens; the factor is what cos and sin are multiplied by, over the config's own."
    )
    columns = "".join(f"{f'at {length:,}':>12}" for length in lengths)
    lines = [*textwrap.wrap(head, _WIDTH), "", f"{'reader':<19}{'layers':<18}{columns}{'factor':>7}"]
    for one in found:
        label = f"{one.peer:<19}{one.layer_type:<18}"
        if not one.differences:
            lines.append(f"{label}stops with an error")
        elif one.same:
            lines.append(f"{label}{'the same':>12}")
        else:
            phases = "".join(f"{_phase(each.phase):>12}" for each in one.differences)
            lines.append(f"{label}{phases}{one.differences[-1].factor:>7.4g}")
        for reason in one.reasons:
            lines += textwrap.wrap(reason, _WIDTH - 4, initial_indent="  - ", subsequent_indent="    ")
    return "\n".join(lines)


def _phase(radians: float) -> str:
    turns = radians / (2 * math.pi)
    return f"{turns:,.0f} turns" if turns >= 10 else f"{turns:.1f} turns" if turns >= 1 else f"{radians:.2g} rad"
