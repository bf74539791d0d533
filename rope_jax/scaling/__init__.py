"""Scaling rules: pure maps from one rotary embedding to another. `registry` has every rule by name."""

from rope_jax.scaling.static import (
    by_parts,
    explicit_base,
    linear,
    llama3,
    longrope_factor,
    no_rotation,
    none,
    ntk,
    per_pair,
    proportional,
    resonance,
    yarn,
    yarn_map,
    yarn_mscale,
)

__all__ = [
    "by_parts",
    "explicit_base",
    "linear",
    "llama3",
    "longrope_factor",
    "no_rotation",
    "none",
    "ntk",
    "per_pair",
    "proportional",
    "resonance",
    "yarn",
    "yarn_map",
    "yarn_mscale",
]
