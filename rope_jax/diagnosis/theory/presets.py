"""The built-in models as a list: what each was trained on, and what its config declares."""

from typing import Any

from rope_jax.checkpoints.dialects import positions_of
from rope_jax.checkpoints.extending import trained_length
from rope_jax.checkpoints.presets import PRESETS, preset


def preset_rows() -> list[dict[str, Any]]:
    """Returns {name, trained_length, base, scaling, bias, window} of every preset; base and window may be None."""
    rows = []
    for name in PRESETS:
        config = positions_of(preset(name), origin=f"preset {name}")
        main = config.main_group
        rows.append(
            {
                "name": name,
                "trained_length": trained_length(config),
                "base": None if main.rotary is None else main.rotary.base,
                "scaling": main.rule.name,
                "bias": "none" if main.bias is None else main.bias.kind,
                "window": next((group.window for group in config.groups if group.window), None),
            }
        )
    return rows


def presets_text() -> str:
    """Returns the presets as a table of at most 80 columns."""
    lines = [f"{'preset':<18}{'trained length':>15}{'base':>12}  {'scaling':<9}{'bias':<7}{'window':>8}"]
    for row in preset_rows():
        base = "-" if row["base"] is None else f"{row['base']:,.0f}"
        window = "-" if row["window"] is None else f"{row['window']:,}"
        lines.append(
            f"{row['name']:<18}{row['trained_length']:>15,}{base:>12}  {row['scaling']:<9}{row['bias']:<7}{window:>8}"
        )
    return "\n".join(lines)
