"""HunYuan's `alpha` beside rope type "dynamic": not dynamic at all, but another base from the first token on."""

from rope_jax.checkpoints.ledger import Section, number
from rope_jax.checkpoints.type_record import refusal

__all__ = ["base_of_alpha"]

_BESIDE_ALPHA = ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def base_of_alpha(rope: Section, base: float, *, dim: int, fixed: bool, label: str) -> float:
    r"""Returns the base that a fixed `alpha` amounts to (HunYuan): `b alpha^(d / (d - 2))`."""
    if not fixed:
        raise refusal(rope, "alpha", "dynamic alpha")
    alpha = rope.need("alpha", check=number(1.0, 1e6), name=f"{label}alpha")
    if dim <= 2:
        raise rope.error("alpha", f"{dim} rotary dimensions leave no base to scale")
    for key in _BESIDE_ALPHA:
        rope.ignore(key, "the published code reads alpha in its place")
    scaled_base: float = base * alpha ** (dim / (dim - 2))
    rope.ledger.use(f"{label}base", scaled_base, "derived: rope_theta * alpha^(d / (d - 2))")
    rope.ledger.find(
        f"alpha {alpha:g} is a base of {scaled_base:.10g} from the first token on, whatever the length: rope_theta "
        "* alpha^(d / (d - 2))"
    )
    return scaled_base
