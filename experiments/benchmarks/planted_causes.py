"""The causes that are planted: what is done to a context extension, with strengths drawn anew for every case.

Written down before any run: the families and the ranges their strengths come from. "best" is the scaling that does best
on the model without a bias, of those that the tool may try and ntk; "ramp" is a drawn one between fast pairs as trained
and slow pairs stretched; a "gentle" bias is ALiBi with at most a hundredth of the paper's slopes.

| family | planted | deployed beside it | the plant removed |
|---|---|---|---|
| bias_line | ALiBi, a drawn multiple of the paper's slopes | ramp | ramp, no bias |
| bias_line_best | the same | best, so that no other scaling wins back more | best, no bias |
| bias_buckets | a T5 table, far buckets lowered, each head by another amount | ramp | ramp, no bias |
| bias_buckets_best | the same | best | best, no bias |
| scaling_base | base scaling by too much or too little | gentle bias | best, gentle bias |
| scaling_pairs | every pair of a ramp off by another random factor | gentle bias | ramp, gentle bias |
| both | base scaling and ALiBi together | | either one removed |
| implementation | positions on a grid, rounded numbers, or a stale cache | best, gentle bias | run exactly |
| temperature | cooled logits, which none of the three changes mends alone | best, gentle bias | not cooled |
| null | one of the first two or of the scalings, made so weak that it costs little | best or gentle bias | as above |

What no change of positions could undo, such as noise in the weights, is not planted: there would be nothing to name.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from rope_jax import scaling
from rope_jax.biases import Bias, alibi_paper, bucket_starts, t5_bias
from rope_jax.frequencies import Rotary, base_multiplier
from rope_jax.rules import Rule

VERSION = 2
"""Of the draws below: results of another version are not taken for these."""

FAMILIES = (
    "bias_line",
    "bias_line_best",
    "bias_buckets",
    "bias_buckets_best",
    "scaling_base",
    "scaling_pairs",
    "both",
    "implementation",
    "temperature",
    "null",
)
NULL_COST = (0.1, 0.3)
"""Nats of order and binding that a null costs, on contexts that are used for nothing else."""

_BUCKETS, _FARTHEST = 32, 128
_HALVINGS = 7

Pair = tuple[Rule, Bias | None]
"""A scaling and a bias, as `diagnose` takes them."""


@dataclasses.dataclass(frozen=True)
class Wrong:
    """How an implementation runs what it declares; None where that is done right.

    Attributes:
      grid: spacing of the positions that rotation sees, tokens.
      levels: steps of an inverse frequency's significand.
      bias_step: steps of the bias, nats.
      cached_base: factor between the base that the cache was filled under and the declared one.
    """

    grid: float | None = None
    levels: float | None = None
    bias_step: float | None = None
    cached_base: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Plant:
    """A cause, planted.

    Attributes:
      family: one of `FAMILIES`.
      kind: which of the family's causes.
      strengths: what was drawn, for the record.
      deployed: what is declared.
      removed: the deployed configuration without the plant, by the component that was planted; two for two plants.
      wrong: how it is run, or None where it runs exactly.
    """

    family: str
    kind: str
    strengths: Mapping[str, float]
    deployed: Pair
    removed: Mapping[str, Pair]
    wrong: Wrong | None = None


def scaled_by(divisors: Float64[np.ndarray, " pairs"], *, cooling: float = 1.0) -> Rule:
    """Returns the rule that divides every inverse frequency by its own number, and multiplies logits by `cooling`."""

    def transform(rotary: Rotary) -> Rotary:
        return dataclasses.replace(
            rotary,
            inverse_frequencies=rotary.inverse_frequencies / divisors,
            logit_scale=rotary.logit_scale * cooling,
        )

    return Rule("planted", transform)


def base_divisors(dim: int, multiplier: float) -> Float64[np.ndarray, " pairs"]:
    """Returns what a base times `multiplier` divides the inverse frequencies by.

    >>> base_divisors(4, 100.0).tolist()
    [1.0, 10.0]
    """
    return np.float64(multiplier) ** (np.arange(0, dim, 2) / dim)


class Draw:
    """One case in the making: the order of its draws is part of what a seed means.

    Args:
      rng: the case's own randomness.
      rotary: the trained embedding.
      num_heads: query heads.
      ratio: target over trained length.
      best: the scaling that does best on the model without a bias.
      cost: nats of order and binding that the first of two configurations costs against the second.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        rotary: Rotary,
        num_heads: int,
        ratio: float,
        best: Rule,
        cost: Callable[[Pair, Pair], float],
    ) -> None:
        self._rng, self._rotary, self._heads, self._ratio = rng, rotary, num_heads, ratio
        self._best, self._cost = best, cost
        self._strengths: dict[str, float] = {}

    def plant(self, family: str) -> Plant:
        """Returns a case of a family.

        Raises:
          ValueError: if there is no such family.
        """
        match family:
            case "bias_line" | "bias_line_best" | "bias_buckets" | "bias_buckets_best":
                rule = self._best if family.endswith("best") else self._ramp_rule()
                line = "line" in family
                bias = self._line()(self._log("slopes", 0.03, 3.0)) if line else self._table()(self._lowered())
                return self._made(family, "line" if line else "buckets", (rule, bias), {"bias": (rule, None)})
            case "scaling_base":
                gentle, rule = self._gentle(), scaled_by(self._base()(self._beyond()))
                return self._made(family, "base", (rule, gentle), {"scaling": (self._best, gentle)})
            case "scaling_pairs":
                gentle, ramp, pairs = self._gentle(), *self._pairs()
                rule = scaled_by(pairs(self._log("spread", 0.05, 1.0)))
                return self._made(family, "pairs", (rule, gentle), {"scaling": (scaled_by(ramp), gentle)})
            case "both":
                rule, bias = scaled_by(self._base()(self._beyond())), self._line()(self._log("slopes", 0.1, 3.0))
                removed = {"bias": (rule, None), "scaling": (self._best, bias)}
                return self._made(family, "base and line", (rule, bias), removed)
            case "implementation":
                # Rounded numbers spoil a scheme less often than positions and caches do.
                kind = str(self._rng.choice(["positions", "frequencies", "bias", "cache"], p=[0.35, 0.15, 0.15, 0.35]))
                # A bias that is hardly there cannot be spoiled by rounding.
                gentle = self._gentle(0.03 if kind == "bias" else 0.01)
                pair = self._best, gentle
                return self._made(family, kind, pair, {"implementation": pair}, self._wrong(kind, gentle))
            case "temperature":
                gentle, cooling = self._gentle(), float(self._rng.uniform(0.4, 0.9))
                self._strengths["cooling"] = cooling
                divisors = self._rotary.inverse_frequencies / self._best(self._rotary).inverse_frequencies
                rule = scaled_by(divisors, cooling=cooling)
                return self._made(family, "cooled", (rule, gentle), {"temperature": (scaled_by(divisors), gentle)})
            case "null":
                return self._null()
        raise ValueError(f"unknown family {family!r}; there are: {', '.join(FAMILIES)}")

    def _made(
        self, family: str, kind: str, deployed: Pair, removed: Mapping[str, Pair], wrong: Wrong | None = None
    ) -> Plant:
        return Plant(family, kind, self._strengths, deployed, removed, wrong)

    def _log(self, name: str, low: float, high: float) -> float:
        self._strengths[name] = value = math.exp(self._rng.uniform(math.log(low), math.log(high)))
        return value

    # What does little harm.

    def _ramp(self) -> np.ndarray:
        rotary = self._rotary
        low, high = float(self._rng.uniform(0.8, 1.25)), float(self._rng.uniform(3, 6))
        longer = float(self._rng.uniform(1, 1.1))
        self._strengths |= {"ramp from": low, "ramp to": high, "stretched": longer}
        rule = scaling.llama3(
            factor=self._ratio * longer,
            original_length=rotary.original_length,
            low_freq_factor=low,
            high_freq_factor=high,
        )
        return rotary.inverse_frequencies / rule(rotary).inverse_frequencies

    def _ramp_rule(self) -> Rule:
        return scaled_by(self._ramp())

    def _gentle(self, steepest: float = 0.01) -> Bias:
        return alibi_paper(self._heads, multiplier=self._log("gentle slopes", steepest / 5, steepest))

    # What is planted, by its strength.

    def _line(self) -> Callable[[float], Bias]:
        return lambda multiplier: alibi_paper(self._heads, multiplier=multiplier)

    def _lowered(self) -> float:
        return self._log("lowered", 1.0, 16.0)

    def _table(self) -> Callable[[float], Bias]:
        cut = int(self._rng.integers(_BUCKETS // 2, _BUCKETS))
        self._strengths["from offset"] = bucket_starts(_BUCKETS, _FARTHEST)[cut]
        shape = self._rng.uniform(0.2, 1, (self._heads, 1))
        noise = self._rng.normal(0, 0.02, (self._heads, _BUCKETS))

        def lowered_by(amount: float) -> Bias:
            table = noise.copy()
            table[:, cut:] -= amount * shape
            return t5_bias(jnp.asarray(table, jnp.float32), max_distance=_FARTHEST)

        return lowered_by

    def _beyond(self) -> float:
        """Returns the base, times that of the period match: mostly too large, else too small, down to the trained."""
        if self._rng.random() < 0.75:
            return self._log("base", 1.5, 40.0)
        return 1 / self._log("one over base", 1.25, base_multiplier(self._rotary.dim, factor=self._ratio))

    def _base(self) -> Callable[[float], np.ndarray]:
        match = base_multiplier(self._rotary.dim, factor=self._ratio)
        return lambda beyond: base_divisors(self._rotary.dim, match * beyond)

    def _pairs(self) -> tuple[np.ndarray, Callable[[float], np.ndarray]]:
        ramp, direction = self._ramp(), self._rng.standard_normal(self._rotary.dim // 2)
        return ramp, lambda spread: ramp * np.exp(spread * direction)

    def _wrong(self, kind: str, bias: Bias) -> Wrong:
        match kind:
            case "positions":
                return Wrong(grid=self._log("grid", 1.02, 4.0))
            case "frequencies":
                return Wrong(levels=2 ** (3 * self._rng.random()))
            case "bias":
                # Steps as large as the bias itself: finer ones are finer than what it says.
                longest = round(self._ratio * self._rotary.original_length) - 1
                largest = float(np.abs(bias(jnp.asarray([longest]))).max())
                return Wrong(bias_step=largest * float(self._rng.uniform(0.5, 1.9)))
            case _:
                factor = self._log("cached base", 1.3, 8.0)
                return Wrong(cached_base=factor if self._rng.random() < 0.5 else 1 / factor)

    # What costs little.

    def _null(self) -> Plant:
        wanted = float(self._rng.uniform(*NULL_COST))
        kind = str(self._rng.choice(["line", "buckets", "base", "pairs"]))
        low, high = {"line": (1e-3, 3.0), "buckets": (0.01, 16.0), "base": (1.01, 40.0), "pairs": (1e-3, 1.0)}[kind]
        kept: Bias | None = None
        if kind in ("line", "buckets"):
            of_bias = self._line() if kind == "line" else self._table()

            def at(strength: float) -> Pair:
                return self._best, of_bias(strength)

        else:
            rotary, gentle = self._rotary, self._gentle()
            kept = gentle
            divisors = rotary.inverse_frequencies / self._best(rotary).inverse_frequencies
            direction = self._rng.standard_normal(rotary.dim // 2)

            def at(strength: float) -> Pair:
                more = base_divisors(rotary.dim, strength) if kind == "base" else np.exp(strength * direction)
                return scaled_by(divisors * more), gentle

        without, component = (self._best, kept), "bias" if kept is None else "scaling"
        strength = self._weakened(low, high, lambda strength: self._cost(at(strength), without) - wanted)
        self._strengths |= {"strength": strength, "wanted cost": wanted}
        return self._made("null", kind, at(strength), {component: without})

    def _weakened(self, low: float, high: float, excess: Callable[[float], float]) -> float:
        """Returns a strength between two at which the excess is about zero, by halving its logarithm."""
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if excess(middle) > 0 else (middle, high)
        return math.sqrt(low * high)
