"""The causes that are planted: what is done to a model's scheme, with strengths drawn anew for every case.

Written down before any run: the families, the ranges their strengths come from, and which verdicts each allows.

| family | planted | beside it, harmless |
|---|---|---|
| bias_line | ALiBi's line, any multiplier of the paper's slopes | a ramp of scaling that is no arm |
| bias_buckets | a T5-like table, far buckets lowered, each head by another amount | the same |
| scaling_base | base scaling by any factor up to far too much | a gentle line |
| scaling_pairs | such a ramp, every pair's period then changed by another random factor | the same |
| both | bias_line and scaling_base together | |
| implementation | positions on a grid, rounded frequencies, rounded bias, or a stale cache | the declared scheme |
| outside | cooled logits, noise in the weights, or a length at which nothing holds | the scheme |

Base scaling by the period match is no harmless scaling: on small models it costs more precision than the margin, and
much short context. What is harmless is a ramp from pairs left alone to pairs stretched by the ratio, its ends drawn.

A third of the cases have strengths so small that they should not matter; whether they do is decided by the truth.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from rope_jax import scaling
from rope_jax.biases import Bias, alibi_paper, bucket_starts, t5_bias
from rope_jax.frequencies import Rotary, base_multiplier
from rope_jax.rules import Rule

VERSION = 1  # of the draws below: results of another version are not taken for these

FAMILIES = ("bias_line", "bias_buckets", "scaling_base", "scaling_pairs", "both", "implementation", "outside")

_BELOW = frozenset({"outside these options", "no fault found"})
ALLOWED: Mapping[str, frozenset[str]] = {
    # Another transform keeps the bias, but may bring a temperature, and a steep bias may hide that the scaling is gone.
    "bias_line": _BELOW | {"option 1", "option 2", "option 3"},
    "bias_buckets": _BELOW | {"option 1", "option 2", "option 3"},
    # The line is too gentle for its loss to win anything back.
    "scaling_base": _BELOW | {"option 2", "option 3"},
    "scaling_pairs": _BELOW | {"option 2", "option 3"},
    "both": _BELOW | {"option 1", "option 2", "option 3"},
    # The declared scheme is harmless: an option that helps does so only because it is run exactly.
    "implementation": _BELOW | {"implementation"},
    # A temperature comes with YaRN, so that another transform may truly help where logits are cooled.
    "outside": _BELOW | {"option 3"},
}
"""The verdicts that a family allows at most; which of them are right is decided case by case by the truth."""

SMALL_SHARE = 1 / 3
BUCKETS, FARTHEST_BUCKET = 32, 128


@dataclasses.dataclass(frozen=True)
class Wrong:
    """How an implementation runs the declared scheme; each None where that is done right.

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
      small: whether the strength was drawn from the range that should not matter.
      strengths: what was drawn, for the record.
      ratio: target over trained length.
      divisors: what each trained inverse frequency is divided by in the declared scheme, `[pairs]`.
      bias: of the declared scheme.
      wrong: how the scheme is run, or None where it runs exactly.
      cooling: factor of all logits under the scheme and every option.
      noise: standard deviation of what is added to the weights, as a share of each array's root mean square.
    """

    family: str
    kind: str
    small: bool
    strengths: Mapping[str, float]
    ratio: float
    divisors: Float64[np.ndarray, " pairs"]
    bias: Bias
    wrong: Wrong | None = None
    cooling: float = 1.0
    noise: float = 0.0

    @property
    def rule(self) -> Rule:
        """The declared scaling."""
        return scaled_by(self.divisors)


def scaled_by(divisors: Float64[np.ndarray, " pairs"]) -> Rule:
    """Returns the rule that divides every inverse frequency by its own number."""
    return Rule(
        "planted",
        lambda rotary: dataclasses.replace(rotary, inverse_frequencies=rotary.inverse_frequencies / divisors),
    )


def base_divisors(dim: int, multiplier: float) -> Float64[np.ndarray, " pairs"]:
    """Returns what a base times `multiplier` divides the inverse frequencies by.

    >>> base_divisors(4, 100.0).tolist()
    [1.0, 10.0]
    """
    return np.float64(multiplier) ** (np.arange(0, dim, 2) / dim)


def draw(
    family: str, rng: np.random.Generator, *, rotary: Rotary, num_heads: int, ratio: float, long_ratio: float
) -> Plant:
    """Returns a case of a family, every strength drawn from `rng`.

    Args:
      family: one of `FAMILIES`.
      rng: the case's own randomness.
      rotary: the trained embedding.
      num_heads: query heads.
      ratio: target over trained length.
      long_ratio: the ratio at which nothing is expected to hold.
    """
    return _Draw(rng, rotary, num_heads, ratio, long_ratio).plant(family)


class _Draw:
    """One case in the making: the order of its draws is part of what a seed means."""

    def __init__(self, rng, rotary: Rotary, num_heads: int, ratio: float, long_ratio: float) -> None:
        self._rng = rng
        self._rotary, self._heads = rotary, num_heads
        self._ratio, self._long_ratio = ratio, long_ratio
        self._small = bool(rng.random() < SMALL_SHARE)
        self._strengths: dict[str, float] = {}

    def plant(self, family: str) -> Plant:
        match family:
            case "bias_line":
                return self._made(family, "line", bias=self._line())
            case "bias_buckets":
                return self._made(family, "buckets", bias=self._table())
            case "scaling_base":
                return self._made(family, "base", divisors=self._base())
            case "scaling_pairs":
                return self._made(family, "pairs", divisors=self._pairs())
            case "both":
                return self._made(family, "line and base", divisors=self._base(), bias=self._line())
            case "implementation":
                # Rounded numbers spoil a harmless scheme less often than positions and caches do.
                kind = str(self._rng.choice(["positions", "frequencies", "bias", "cache"], p=[0.35, 0.15, 0.15, 0.35]))
                # A bias that is hardly there cannot be spoiled by rounding.
                bias = self._gentle_line(0.03 if kind == "bias" else 0.01)
                return self._made(family, kind, bias=bias, wrong=self._wrong(kind, bias))
            case "outside":
                # A length cannot be too long by a little.
                kinds = ["cooled", "noise"] if self._small else ["cooled", "cooled", "noise", "noise", "length"]
                kind = str(self._rng.choice(kinds))
                if kind == "cooled":
                    return self._made(family, kind, cooling=self._uniform("cooling", (0.97, 1.0), (0.4, 0.9)))
                if kind == "noise":
                    return self._made(family, kind, noise=self._log("noise", (0.001, 0.02), (0.03, 0.15)))
                self._ratio = self._long_ratio
                return self._made(family, kind)
        raise ValueError(f"unknown family {family!r}")

    def _made(self, family: str, kind: str, *, divisors=None, bias: Bias | None = None, **others) -> Plant:
        divisors = self._ramp() if divisors is None else divisors
        bias = self._gentle_line() if bias is None else bias
        return Plant(family, kind, self._small, self._strengths, self._ratio, divisors, bias, **others)

    def _log(self, name: str, small: tuple[float, float], large: tuple[float, float]) -> float:
        low, high = small if self._small else large
        self._strengths[name] = value = math.exp(self._rng.uniform(math.log(low), math.log(high)))
        return value

    def _uniform(self, name: str, small: tuple[float, float], large: tuple[float, float]) -> float:
        self._strengths[name] = value = float(self._rng.uniform(*(small if self._small else large)))
        return value

    def _either_way(self, value: float) -> float:
        return value if self._rng.random() < 0.5 else 1 / value

    # What is harmless.

    def _ramp(self) -> np.ndarray:
        """Fast pairs as trained, slow ones stretched, and a ramp between that no arm has: precision hardly suffers."""
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

    def _gentle_line(self, steepest: float = 0.01) -> Bias:
        multiplier = math.exp(self._rng.uniform(math.log(steepest / 5), math.log(steepest)))
        self._strengths["harmless slopes"] = multiplier
        return alibi_paper(self._heads, multiplier=multiplier)

    # What is planted.

    def _line(self) -> Bias:
        return alibi_paper(self._heads, multiplier=self._log("slopes", (0.001, 0.01), (0.1, 3.0)))

    def _table(self) -> Bias:
        amount = self._log("lowered", (0.01, 0.1), (1.0, 16.0))
        cut = int(self._rng.integers(BUCKETS // 2, BUCKETS))
        self._strengths["from offset"] = bucket_starts(BUCKETS, FARTHEST_BUCKET)[cut]
        table = self._rng.normal(0, 0.02, (self._heads, BUCKETS))
        table[:, cut:] -= amount * self._rng.uniform(0.2, 1, (self._heads, 1))
        return t5_bias(jnp.asarray(table, jnp.float32), max_distance=FARTHEST_BUCKET)

    def _base(self) -> np.ndarray:
        match = base_multiplier(self._rotary.dim, factor=self._ratio)
        if self._small or self._rng.random() < 0.75:
            beyond = self._log("base", (1.0, 1.1), (1.5, 40.0))
            beyond = self._either_way(beyond) if self._small else beyond
        else:
            beyond = 1 / self._log("base", (1.0, 1.0), (1.25, match))  # too little, down to the trained base
        self._strengths["base"] = beyond
        return base_divisors(self._rotary.dim, match * beyond)

    def _pairs(self) -> np.ndarray:
        spread = self._log("spread", (0.001, 0.01), (0.05, 1.0))
        return self._ramp() * np.exp(spread * self._rng.standard_normal(self._rotary.dim // 2))

    def _wrong(self, kind: str, bias: Bias) -> Wrong:
        match kind:
            case "positions":
                return Wrong(grid=self._log("grid", (0.5, 1.0), (1.02, 4.0)))
            case "frequencies":
                return Wrong(levels=2 ** self._uniform("bits", (8.0, 11.0), (0.0, 3.0)))
            case "bias":
                # Steps as large as the bias itself: finer ones are finer than what it says.
                longest = round(self._ratio * self._rotary.original_length) - 1
                largest = float(np.abs(bias(jnp.asarray([longest]))).max())
                return Wrong(bias_step=largest * self._uniform("step", (0.01, 0.1), (0.5, 1.9)))
            case "cache":
                return Wrong(cached_base=self._either_way(self._log("cached base", (1.0, 1.03), (1.3, 8.0))))
        raise ValueError(f"unknown fault {kind!r}")
