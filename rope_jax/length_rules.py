"""Scaling rules that depend on how long each sequence is; `dynamic.py` evaluates them for lengths known only under jit.

`rule.at(length)` is the ordinary rule for sequences of that length, float64 on the host.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rope_jax import scaling
from rope_jax.errors import ScalingError
from rope_jax.frequencies import check_positive, check_whole
from rope_jax.rules import Rule, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicNtk:
    r"""Dynamic NTK: the base grows with the current length, and is the trained one up to it.

    .. math:: b' = b \Big(s\,\frac{l}{L} - (s - 1)\Big)^{d/(d-2)}, \quad l = \max(\text{length}, L)

    Attributes:
      factor: `s`, at least 1.
      original_length: `L`, tokens.

    Source: the `dynamic` rope type of transformers; arXiv 2309.00071, appendix B.
    """

    factor: float
    original_length: int
    name: ClassVar[str] = "dynamic_ntk"

    def __post_init__(self) -> None:
        check_positive("factor", self.factor, at_least=1)
        check_whole("original_length", self.original_length, at_least=1)

    def at(self, length: int | np.integer) -> Rule:
        """Returns the static rule for sequences of exactly `length` tokens, an integer of any width."""
        length = _tokens(length)
        excess = max(length, self.original_length) - self.original_length
        growth = 1 + self.factor * excess / self.original_length
        given = {"factor": self.factor, "original_length": self.original_length, "length": length}
        # `ntk(factor=growth)` has the same exponent; under another name, it composes as a rule that reads L.
        return Rule(self.name, scaling.ntk(factor=growth).transform, given, Stage.RAMP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRope:
    r"""LongRoPE: one list of per-pair factors up to the trained length, another from the very next token on.

    .. math:: \theta'_i = \theta_i / f_i, \quad f = f^{long} \text{ if length} > L \text{ else } f^{short}

    Attributes:
      short_factor: one factor a pair, for lengths up to and including `L`.
      long_factor: one factor a pair, from `L + 1` on.
      original_length: `L`, tokens.
      attention_factor: cos/sin factor, at every length.

    Source: Ding et al., arXiv 2402.13753; the `longrope` (`su`) rope type of Phi-3's published configs.
    """

    short_factor: Sequence[float]
    long_factor: Sequence[float]
    original_length: int
    attention_factor: float = 1.0
    name: ClassVar[str] = "longrope"

    def __post_init__(self) -> None:
        check_whole("original_length", self.original_length, at_least=1)
        for name in ("short_factor", "long_factor"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # so that rules compare
        if len(self.short_factor) != len(self.long_factor):
            raise ScalingError(
                f"longrope: {len(self.short_factor)} short factors but {len(self.long_factor)} long factors"
            )
        self.at(1), self.at(self.original_length + 1)  # checks both lists

    def at(self, length: int | np.integer) -> Rule:
        """Returns the static rule for sequences of exactly `length` tokens, an integer of any width."""
        factors = self.long_factor if _tokens(length) > self.original_length else self.short_factor
        inner = scaling.per_pair(factors=factors, attention_factor=self.attention_factor)
        given = {**inner.hyperparameters, "original_length": self.original_length}
        return dataclasses.replace(inner, name=self.name, hyperparameters=given)


LengthRule = DynamicNtk | LongRope


def _tokens(length: int | np.integer) -> int:
    """Returns `length` as Python's own integer, whose sums and products do not wrap as a narrow one's do."""
    check_whole("length", length, at_least=1)
    return int(length)


def at_length(rule: Rule | LengthRule, length: int) -> Rule:
    """Returns `rule` itself, or what it is for sequences of `length` tokens."""
    return rule if isinstance(rule, Rule) else rule.at(length)


dynamic_ntk, longrope = DynamicNtk, LongRope
"""Made like every other rule, by a name in lower case. `scaling.longrope_factor` gives the usual cos/sin factor."""
