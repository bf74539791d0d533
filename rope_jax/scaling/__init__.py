"""Scaling rules: pure maps from one rotary embedding to another, exact in float64 on the host.

Every rule leaves the rotation alone and transforms the angle, `Ro'(x, i theta) = Ro(x, i theta')`. A rule is
made from its hyperparameters (`yarn(factor=8.0, original_length=4096)`) and applied to a `Rotary` record. Rules that
depend on the length of each sequence live in `length_rules.py`, and what may follow what in `rules.py`; `registry` has
every rule by name.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rope_jax.errors import ScalingError
from rope_jax.frequencies import Rotary, base_multiplier, check_positive, inverse_frequencies, turns
from rope_jax.rules import Rule, Stage


def _scale(rotary: Rotary, frequencies: np.ndarray, **changes: Any) -> Rotary:
    return dataclasses.replace(rotary, inverse_frequencies=np.asarray(frequencies, np.float64), **changes)


def none() -> Rule:
    """Returns the rule that changes nothing: the model as it was trained."""
    return Rule("none", lambda rotary: rotary)


def linear(*, factor: float) -> Rule:
    r"""Returns position interpolation: every position divided by `factor`.

    .. math:: \theta'_i = \theta_i / s

    Args:
      factor: `s`, target length over trained length.

    Source: Chen et al., arXiv 2306.15595, equation 4.
    """
    check_positive("factor", factor)
    return Rule("linear", lambda r: _scale(r, r.inverse_frequencies / factor), {"factor": factor}, Stage.UNIFORM)


def ntk(*, factor: float | None = None, multiplier: float | None = None) -> Rule:
    r"""Returns base scaling: the base multiplied by `lambda`, once and for all lengths.

    .. math:: \theta'_i = (\lambda b)^{-2i/d} = \theta_i\, \lambda^{-2i/d}, \quad \lambda = s^{d/(d-2)}

    Args:
      factor: `s`; the longest wavelength grows by exactly this.
      multiplier: `lambda` itself, in place of `factor`.

    Raises:
      ScalingError: unless exactly one of the two is given and positive.

    Source: Peng et al., arXiv 2309.00071, section 3.1.
    """
    if (factor is None) == (multiplier is None):
        raise ScalingError("ntk takes either factor or multiplier, not both and not neither")
    given = {"factor": factor} if factor is not None else {"multiplier": multiplier}
    for key, value in given.items():
        check_positive(key, value)  # type: ignore[arg-type]

    def transform(rotary: Rotary) -> Rotary:
        if factor is not None:
            scale = base_multiplier(rotary.dim, factor=factor)
        else:
            assert multiplier is not None
            scale = float(multiplier)
        exponents = -np.arange(0, rotary.dim, 2, dtype=np.float64) / rotary.dim
        return _scale(rotary, rotary.inverse_frequencies * scale**exponents, base=rotary.base * scale)

    return Rule("ntk", transform, given, Stage.BASE)


def no_rotation() -> Rule:
    """Returns the rule under which nothing turns, `theta' = 0` for every pair: a model without rotation.

    Source: Kazemnejad et al., arXiv 2305.19466 (NoPE); DroPE, arXiv 2512.12167, drops it after training.
    """
    return Rule("no_rotation", lambda r: _scale(r, np.zeros_like(r.inverse_frequencies)), stage=Stage.UNIFORM)


def explicit_base(*, base: float) -> Rule:
    """Returns the rule that makes the frequencies anew from another base (`rope_theta` overridden)."""
    check_positive("base", base)

    def transform(rotary: Rotary) -> Rotary:
        return _scale(rotary, inverse_frequencies(rotary.dim, base=base), base=float(base))

    return Rule("explicit_base", transform, {"base": base}, Stage.ANEW)


def proportional(*, proportion: float, factor: float = 1.0) -> Rule:
    r"""Returns p-RoPE: the lowest frequencies stop turning, the exponent's denominator stays the whole dimension.

    .. math:: \theta'_i = \theta_i / s \text{ for } i < \lfloor p\,d/2 \rfloor, \quad 0 \text{ beyond}

    Args:
      proportion: `p`, the share of pairs that still turn, in (0, 1].
      factor: `s`, divides the frequencies that are left.

    Source: Barbero et al., arXiv 2410.06205, section 6; Gemma 4's `proportional` rope type.
    """
    check_positive("proportion", proportion)
    check_positive("factor", factor)
    if proportion > 1:
        raise ScalingError(f"proportion must be at most 1, got {proportion}")

    def transform(rotary: Rotary) -> Rotary:
        turning = int(proportion * rotary.dim // 2)
        keeps = np.arange(rotary.dim // 2) < turning
        return _scale(rotary, np.where(keeps, rotary.inverse_frequencies / factor, 0.0))

    return Rule("proportional", transform, {"proportion": proportion, "factor": factor}, Stage.GEOMETRY)


def by_parts(*, factor: float, original_length: int, alpha: float = 1.0, beta: float = 32.0) -> Rule:
    r"""Returns NTK-by-parts as the paper has it: a ramp in the number of turns seen in training.

    .. math:: \theta'_i = (1 - \gamma_i)\,\theta_i / s + \gamma_i \theta_i, \quad
              \gamma_i = \mathrm{clip}\Big(\frac{r_i - \alpha}{\beta - \alpha}, 0, 1\Big), \quad
              r_i = \frac{L \theta_i}{2\pi}

    Args:
      factor: `s`.
      original_length: `L`, tokens.
      alpha: turns at or below which a pair is interpolated fully.
      beta: turns at or above which a pair is left alone; equal to `alpha` for a step.

    Source: Peng et al., arXiv 2309.00071, equations 17-20.
    """
    return _ramp_in_turns("by_parts", factor, original_length, low=alpha, high=beta, names=("alpha", "beta"))


def llama3(*, factor: float, original_length: int, low_freq_factor: float, high_freq_factor: float) -> Rule:
    """Returns Llama 3.1's rule: the ramp of `by_parts` between `low_freq_factor` and `high_freq_factor` turns.

    Args:
      factor: `s`.
      original_length: `L`, tokens.
      low_freq_factor: turns at or below which a pair is interpolated fully.
      high_freq_factor: turns above which a pair is left alone; equal to `low_freq_factor` for a step.

    Source: the `llama3` rope type of Llama 3.1's published configs.
    """
    names = ("low_freq_factor", "high_freq_factor")
    return _ramp_in_turns("llama3", factor, original_length, low=low_freq_factor, high=high_freq_factor, names=names)


def _ramp_in_turns(
    name: str, factor: float, original_length: int, *, low: float, high: float, names: tuple[str, str]
) -> Rule:
    check_positive("factor", factor)
    check_positive("original_length", original_length)
    check_positive(names[0], low)
    check_positive(names[1], high)
    if high < low:
        raise ScalingError(f"{name}: {names[1]} ({high}) must not be below {names[0]} ({low})")

    def transform(rotary: Rotary) -> Rotary:
        theta = rotary.inverse_frequencies
        seen = turns(theta, original_length)
        # With low = high the ramp is a step: interpolate strictly below it, as the published wavelength test does.
        keep = np.clip((seen - low) / (high - low), 0, 1) if high > low else (seen >= low).astype(np.float64)
        return _scale(rotary, (1 - keep) * theta / factor + keep * theta)

    given = {"factor": factor, "original_length": original_length, names[0]: low, names[1]: high}
    return Rule(name, transform, given, Stage.RAMP)


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Returns `g(s, m) = 0.1 m ln s + 1`, or 1 when nothing is extended (arXiv 2309.00071, equation 22)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn(
    *,
    factor: float,
    original_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    scale_logits: bool = False,
) -> Rule:
    r"""Returns YaRN as its code has it: a ramp linear in the pair's *index*, and a cos/sin factor.

    .. math:: d(r) = \frac{d \ln(L / 2\pi r)}{2 \ln b}, \quad
              \gamma_i = 1 - \mathrm{clip}\Big(\frac{i - d(\beta_{fast})}{d(\beta_{slow}) - d(\beta_{fast})}, 0, 1\Big),
              \quad \theta'_i = (1 - \gamma_i)\,\theta_i / s + \gamma_i \theta_i

    The ramp of the paper, in turns, is `by_parts`.

    Args:
      factor: `s`, at least 1.
      original_length: `L`, tokens.
      beta_fast: turns at which interpolation begins.
      beta_slow: turns at which it is complete.
      truncate: rounds the two bounds outwards to whole pairs; False for gpt-oss.
      attention_factor: the cos/sin factor, in place of `0.1 ln s + 1`.
      mscale: with `mscale_all_dim`, the factor becomes `g(s, mscale) / g(s, mscale_all_dim)`; alone it has no effect,
        as in transformers.
      mscale_all_dim: see `mscale`.
      scale_logits: also multiplies all logits by `g(s, mscale_all_dim)^2`, as DeepSeek's attention does.

    Raises:
      ScalingError: if a value is out of range, or (when applied) the ramp lies wholly outside of the pairs.

    Source: Peng et al., arXiv 2309.00071, section 3.4, and its published code; DeepSeek-V2, arXiv 2405.04434.
    """
    check_positive("factor", factor, at_least=1)
    for name, value in (("original_length", original_length), ("beta_fast", beta_fast), ("beta_slow", beta_slow)):
        check_positive(name, value)
    if beta_fast < beta_slow:
        raise ScalingError(f"yarn: beta_fast ({beta_fast}) must not be below beta_slow ({beta_slow})")
    if attention_factor is not None:
        check_positive("attention_factor", attention_factor)
    for name, mscale_value in (("mscale", mscale), ("mscale_all_dim", mscale_all_dim)):
        if mscale_value is not None and not (math.isfinite(mscale_value) and mscale_value >= 0):
            raise ScalingError(f"{name} must be a finite number, 0 or more, got {mscale_value}")
    if attention_factor is not None:
        cos_sin_factor = float(attention_factor)
    elif mscale and mscale_all_dim:
        cos_sin_factor = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
    else:
        cos_sin_factor = yarn_mscale(factor)
    logit_scale = yarn_mscale(factor, mscale_all_dim) ** 2 if scale_logits and mscale_all_dim else 1.0

    def transform(rotary: Rotary) -> Rotary:
        if rotary.base <= 1:
            raise ScalingError(f"yarn needs a base above 1 to place its ramp, got {rotary.base}")

        def pair_that_turns(count: float) -> float:
            return rotary.dim * math.log(original_length / (count * 2 * math.pi)) / (2 * math.log(rotary.base))

        low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
        if truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary.dim - 1)
        if low > high:
            # The published code runs the ramp backwards here: fast pairs scaled, slow ones left alone.
            raise ScalingError(
                f"yarn: no pair of dim {rotary.dim}, base {rotary.base} lies between {beta_fast} and {beta_slow} "
                f"turns in {original_length} tokens"
            )
        if low == high:
            high += 0.001
        theta = rotary.inverse_frequencies
        interpolated = np.clip((np.arange(len(theta)) - low) / (high - low), 0, 1)
        return _scale(
            rotary,
            interpolated * theta / factor + (1 - interpolated) * theta,
            cos_sin_factor=rotary.cos_sin_factor * cos_sin_factor,
            logit_scale=rotary.logit_scale * logit_scale,
        )

    given = {
        "factor": factor,
        "original_length": original_length,
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
        "truncate": truncate,
        "attention_factor": attention_factor,
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
        "scale_logits": scale_logits,
    }
    return Rule("yarn", transform, given, Stage.RAMP)


def yarn_map(*, factor: float, original_length: int, **hyperparameters: Any) -> Rule:
    """Returns YaRN's map of the frequencies alone, without its temperature; arguments as those of `yarn`."""
    whole = yarn(factor=factor, original_length=original_length, attention_factor=1.0, **hyperparameters)
    return dataclasses.replace(whole, name="yarn_map")


def longrope_factor(*, factor: float, original_length: int) -> float:
    r"""Returns LongRoPE's cos/sin factor `sqrt(1 + ln s / ln L)`, 1 when nothing is extended (arXiv 2402.13753)."""
    check_positive("factor", factor)
    check_positive("original_length", original_length)
    if factor <= 1:
        return 1.0
    if original_length < 2:
        raise ScalingError(f"longrope needs an original_length of at least 2, got {original_length}")
    return math.sqrt(1 + math.log(factor) / math.log(original_length))


def per_pair(*, factors: Sequence[float], attention_factor: float = 1.0) -> Rule:
    r"""Returns LongRoPE's map for one list of factors, `theta'_i = theta_i / f_i`.

    `dynamic.longrope` switches between two such lists by sequence length; any static map of frequencies can be
    written as one list.

    Args:
      factors: `f`, one a pair, each above zero.
      attention_factor: the cos/sin factor.

    Raises:
      ScalingError: if a factor is not positive, or (when applied) the list's length is not the number of pairs.

    Source: Ding et al., arXiv 2402.13753, section 3.
    """
    divisors = np.asarray(factors, dtype=np.float64)
    if divisors.ndim != 1 or not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise ScalingError("per-pair factors must be a flat list of finite positive numbers")
    check_positive("attention_factor", attention_factor)

    def transform(rotary: Rotary) -> Rotary:
        if len(divisors) != rotary.dim // 2:
            raise ScalingError(f"{len(divisors)} per-pair factors given for {rotary.dim // 2} rotary pairs")
        return _scale(
            rotary, rotary.inverse_frequencies / divisors, cos_sin_factor=rotary.cos_sin_factor * attention_factor
        )

    return Rule("per_pair", transform, {"factors": list(factors), "attention_factor": attention_factor}, Stage.RAMP)


def resonance() -> Rule:
    r"""Returns Resonance RoPE: each wavelength rounded to a whole number of tokens.

    .. math:: \theta'_i = 2\pi / \mathrm{round}(2\pi / \theta_i)

    Applied last: it rounds whatever wavelengths the rules before it made. Pairs that do not turn stay still.

    Source: Wang et al., arXiv 2403.00071, section 3.
    """

    def transform(rotary: Rotary) -> Rotary:
        theta = rotary.inverse_frequencies
        with np.errstate(divide="ignore"):
            rounded = 2 * np.pi / np.maximum(np.round(2 * np.pi / theta), 1)
        return _scale(rotary, np.where(theta > 0, rounded, 0.0))

    return Rule("resonance", transform, stage=Stage.ROUNDING)
